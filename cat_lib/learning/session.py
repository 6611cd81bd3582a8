"""A trainer's work in a run's folder: gone on with, booked and told, ended by Ctrl-C with a checkpoint, saved."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from signal import SIGINT, SIGTERM
from signal import signal as handle
from typing import Any

import pandas as pd
from accelerate.utils import gather_object
from IPython import get_ipython
from IPython.display import Image, display
from matplotlib.figure import Figure
from transformers import PrinterCallback, TrainerCallback, TrainerState

from cat_lib.files import append_line, read_lines
from cat_lib.learning.checkpoints import SIGNAL, load_adapter, newest_checkpoint
from cat_lib.learning.trl import Signal
from cat_lib.ledger import Cost, Ledger, clock
from cat_lib.method.signals import collapse
from cat_lib.models.local import LocalModel
from cat_lib.runs.tracking import Run
from cat_lib.shown import duration

_DRAWN = {"reward": "#0072B2", "agreement": "#E69F00", "label_accuracy": "#009E73"}  # those that a task has
SHOWN = ("reward", "agreement", "verdict_agreement", "label_accuracy", "unscorable", "entropy", "step_time")


class Spending:
    """What training has cost so far by role, noted in a file, so that one resumed at `step` counts all before it.

    Of several processes, all count, seconds too: they are then process-seconds, as GPU-seconds are. `others` have the
    other processes' shares up to the last finished step.
    """

    def __init__(self, ledger: Ledger, folder: Path, step: int) -> None:
        self.ledger, self.start, self.path = ledger, dict(ledger.roles), folder / "spent.jsonl"
        known = [line["spent"] for _, line in read_lines(self.path) if line["step"] <= step]
        self.before = {role: Cost(**cost) for role, cost in known[-1].items()} if known else {}
        self.others: list[dict[str, Cost]] = []

    def mine(self) -> dict[str, Cost]:
        return {role: cost - self.start.get(role, Cost()) for role, cost in self.ledger.roles.items()}

    def total(self) -> dict[str, Cost]:
        parts = [self.before, self.mine(), *self.others]
        both = {role: sum((p.get(role, Cost()) for p in parts), Cost()) for part in parts for role in part}
        return {role: cost for role, cost in both.items() if cost != Cost()}

    def keep(self, step: int) -> None:
        append_line(self.path, {"step": step, "spent": {role: asdict(cost) for role, cost in self.total().items()}})


def require_adapter(policy: LocalModel) -> None:
    """Raises ValueError for a policy with nothing to train."""
    if not hasattr(policy.model, "disable_adapter"):
        raise ValueError("the policy has no LoRA adapter: pass it through add_lora first, then take its anchor()")


class Session(TrainerCallback):  # type: ignore[misc]
    """One call of `train` or `finetune`. What it begins with is the newest checkpoint, where it may be resumed from.

    The trainer's state, and the signal's, are then those of its step. Raises ValueError for a signal with state that
    the checkpoint has none of.
    """

    def __init__(self, trainer: Any, policy: LocalModel, run: Run, resume: bool, signal: Signal | None = None) -> None:
        self.trainer, self.policy, self.run, self.signal = trainer, policy, run, signal
        self.told = self.stopped = False  # several processes: this one has had a signal; all end after this step
        # or a later resume would go on from another training; no process saves before all have made a step together
        if not resume and run.writes:
            shutil.rmtree(run.dir / "checkpoints", ignore_errors=True)
        checkpoint = self.checkpoint = newest_checkpoint(run.dir) if resume else None  # all processes read the same
        if checkpoint:
            trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if checkpoint and self.signal:
            there = (checkpoint / SIGNAL).exists()
            state = json.loads((checkpoint / SIGNAL).read_text()) if there else {}
            if missing := self.signal.keepers.keys() - state:
                raise ValueError(
                    f"{checkpoint} has no {SIGNAL} with what this signal's {' and '.join(sorted(missing))} knew: train "
                    "anew with resume=False"
                )
            self.signal.load(state)
        self._note_signal()
        self.warnings = collapse(trainer.state.log_history)
        self.began, self.drawn, self.earlier = time.monotonic(), 0.0, -1  # earlier: steps before these
        self.places = list[Any]()  # of the figure and of the line, on the page of a person's notebook
        self.spending = Spending(policy.ledger, run.dir, trainer.state.global_step if checkpoint else -1)
        trainer.remove_callback(PrinterCallback)  # it prints thirty numbers a step; we print six
        trainer.add_callback(self)

    def work(self, ended: bool) -> Path:
        """Train to the end, or where training had `ended` load its adapter; returns the saved adapter's folder.

        An ended one must not be trained: Trainer would make one more step. Where checkpoints are compared, the best
        one's adapter is kept. Ctrl-C saves a checkpoint marked by `interrupted.json` and raises KeyboardInterrupt. Of
        several processes all end after the step in which one was told to, also by SIGTERM: one that left inside a step
        would leave the others waiting for it, until its closed connection fails them.
        """
        trainer, run, several = self.trainer, self.run, self.trainer.args.world_size > 1
        try:
            if not ended:
                arguments = {k: v for k, v in trainer.args.to_dict().items() if not k.endswith("hub_token")}
                run.update_config(trainer=arguments, processes=trainer.args.world_size)
                before = {number: handle(number, self._tell) for number in (SIGINT, SIGTERM) if several}
                trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
                if self.stopped:
                    raise KeyboardInterrupt
                for number, handler in before.items():
                    handle(number, handler)
        except KeyboardInterrupt:
            state = trainer.state
            # an evaluation that is logged and not yet weighed would be passed over by a resume, which must redo it
            evaluated = any("eval_loss" in h and h["step"] == state.global_step for h in state.log_history)
            if (self.stopped or not several) and not evaluated and trainer.optimizer:  # none before the first step
                trainer._save_checkpoint(trainer.model, trial=None)  # by all processes: it has collectives
                saved = run.dir / "checkpoints" / f"checkpoint-{state.global_step}"
                if run.writes:
                    self.spending.keep(state.global_step)
                    mark = {"step": state.global_step, "of": state.max_steps}
                    (saved / "interrupted.json").write_text(json.dumps(mark))
                    print(f"interrupted: saved {saved}; resume=True continues from it", flush=True)
                trainer.accelerator.wait_for_everyone()  # a launcher ends all once one has gone
            raise
        kept = trainer.state.best_model_checkpoint or (self.checkpoint if ended else None)
        if kept:
            load_adapter(self.policy.model, run.dir / "checkpoints" / Path(kept).name)
        if run.writes:
            self.policy.model.save_pretrained(run.dir / "adapter")
        trainer.accelerator.wait_for_everyone()  # for what the others read next
        return run.dir / "adapter"

    def _tell(self, *_: object) -> None:
        self.told = True

    def tell(self, unit: str, step: int, of: int, values: Mapping[str, float], logged: Sequence[Any] = ()) -> None:
        """A line on what is done, in place under a figure of what was `logged` if a person executes the notebook."""
        elapsed, self.earlier = time.monotonic() - self.began, step - 1 if self.earlier < 0 else self.earlier
        numbers = "  ".join(f"{key} {value:.2f}" for key, value in values.items())
        left = duration(elapsed / (step - self.earlier) * (of - step))
        line = f"{unit} {step}/{of}  {numbers}  elapsed {duration(elapsed)}  remaining {left}"
        if "CAT_LIB_RUN_DIR" in os.environ or not hasattr(get_ipython(), "kernel"):  # papermill, a script: a log
            print(line, flush=True)
            return
        self.places = self.places or [display({"text/plain": ""}, raw=True, display_id=True) for _ in "12"]
        if logged and (step == of or time.monotonic() - self.drawn > 2):
            self.drawn = time.monotonic()  # not oftener than every 2 s, or a page is busy with drawing
            self.places[0].update(Image(_picture(logged, of), width=640, height=240))  # its size is known: no jumps
        self.places[1].update({"text/plain": line}, raw=True)

    def book(self, tokens: int, grad: float, plain: float, seconds: float) -> None:
        """Book an update of `tokens` tokens. FLOPs a parameter: 4 a token with gradient (forward, and backward through
        frozen weights, which need no gradient of their own), 6 where gradient checkpointing runs forward twice, 2
        without.
        """
        passes = 6.0 if self.trainer.args.gradient_checkpointing else 4.0
        flops = self.policy.parameters * (passes * grad + 2.0 * plain)
        self.policy.ledger.add("update", prompt_tokens=tokens, completion_tokens=0, flops=flops, seconds=seconds)

    def note(self, step: int) -> None:
        """Keep costs and the signal's state before the step's checkpoint: no kill leaves one whose cost is unknown.

        At the step's end and not when it is saved: a step that Ctrl-C ends has shown a signal rollouts that a resume
        draws again.
        """
        if self.run.writes:
            self.spending.keep(step)
        self._note_signal()

    def _note_signal(self) -> None:
        if self.signal:
            self.trainer.signal_state = json.dumps(self.signal.state())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.world_size > 1:  # here all processes are at the same place
            everyone = gather_object([(self.spending.mine(), self.told)])
            self.spending.others = [spent for rank, (spent, _) in enumerate(everyone) if rank != args.process_index]
            if any(told for _, told in everyone):
                self.stopped = control.should_training_stop = True
        self.note(state.global_step)


class GRPOSession(Session):
    """Books each step, sends its metrics to the run, prints one line and warns where the signal first collapses."""

    def _clock(self) -> float:
        """Seconds on a clock that stands still while an engine works."""
        return clock() - sum(cost.seconds for role, cost in self.policy.ledger.roles.items() if role != "update")

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.start, self.seen, self.trainer.computed = self._clock(), state.num_input_tokens_seen, [0, 0]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        everyone = state.num_input_tokens_seen - self.seen
        tokens = (everyone + args.process_index) // args.world_size  # shares of all processes, which add up to it
        grad, plain = self.trainer.computed if any(self.trainer.computed) else (tokens, 0)  # a trainer that can't count
        self.book(tokens, grad, plain, self._clock() - self.start)
        super().on_step_end(args, state, control)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "reward" not in logs:  # the summary at the end
            return
        numbers = {k: float(v) for k, v in logs.items() if isinstance(v, int | float)}
        self.run.step(numbers, state.global_step, state.max_steps)
        if self.run.writes:
            shown = {k: numbers[k] for k in SHOWN if k in numbers}
            self.tell("step", state.global_step, state.max_steps, shown, state.log_history)
        if not self.warnings and (found := collapse(state.log_history)):
            self.warnings = found
            if self.run.writes:
                warnings.warn(found[0], stacklevel=2)
                self.run.tag("collapse", found[0])


def _picture(logged: Sequence[Any], of: int) -> bytes:
    figure, file = Figure((6.4, 2.4), layout="constrained"), io.BytesIO()
    axis, steps = figure.subplots(), pd.DataFrame(logged).set_index("step").reindex(columns=list(_DRAWN))
    steps.dropna(axis=1, how="all").plot(ax=axis, color=_DRAWN, marker=".", xlim=(0.5, of + 0.5))
    axis.set(xlabel="training step", ylim=(min(0.0, steps.min().min()), max(1.02, steps.max().max())))
    figure.savefig(file, format="png", dpi=200)
    return file.getvalue()


class SFTSession(Session):
    """Books each epoch of fine-tuning and sends its validation loss to the run, before it is saved."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.start = clock()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        sets = self.trainer.train_dataset, self.trainer.eval_dataset
        tokens, checked = (sum(map(len, rows["input_ids"])) for rows in sets)
        self.book(tokens, tokens, checked, clock() - self.start)
        epoch, epochs = round(state.epoch), round(args.num_train_epochs)
        self.run.step({"validation_loss": metrics["eval_loss"]}, epoch, epochs)
        self.tell("epoch", epoch, epochs, {"validation_loss": metrics["eval_loss"]})
        self.note(state.global_step)
