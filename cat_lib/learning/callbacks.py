"""What is noted while a trainer works: costs, metrics by step or epoch, and how several processes end together."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback

from cat_lib.files import append_line, read_lines
from cat_lib.learning.trl import Signal
from cat_lib.ledger import Cost, Ledger, clock
from cat_lib.models.local import LocalModel
from cat_lib.runs.tracking import Run

SPENT = "spent.jsonl"


class Spending(TrainerCallback):  # type: ignore[misc]
    """What training has cost so far by role, noted after each step, so that one resumed at `step` counts all before it.

    The note comes before the step's checkpoint, so that no kill leaves a checkpoint whose cost is unknown. Of several
    processes, all count, seconds too: they are then process-seconds, as GPU-seconds are. The others' share is that of
    the last finished step.
    """

    def __init__(self, ledger: Ledger, folder: Path, step: int) -> None:
        self.ledger, self.start = ledger, {role: replace(cost) for role, cost in ledger.roles.items()}
        self.path = folder / SPENT
        known = [line["spent"] for _, line in read_lines(self.path) if line["step"] <= step]
        self.before = {role: Cost(**cost) for role, cost in known[-1].items()} if known else {}
        self.others: list[dict[str, Cost]] = []

    def total(self) -> dict[str, Cost]:
        parts = [self.before, self._mine(), *self.others]
        both = {role: sum((p.get(role, Cost()) for p in parts), Cost()) for part in parts for role in part}
        return {role: cost for role, cost in both.items() if cost != Cost()}

    def _mine(self) -> dict[str, Cost]:
        return {role: cost - self.start.get(role, Cost()) for role, cost in self.ledger.roles.items()}

    def keep(self, step: int) -> None:
        append_line(self.path, {"step": step, "spent": {role: asdict(cost) for role, cost in self.total().items()}})

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.world_size > 1:  # here all processes are at the same place
            everyone = gather_object([self._mine()])
            self.others = [mine for rank, mine in enumerate(everyone) if rank != args.process_index]
        self.on_evaluate(args, state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.keep(state.global_step)


class KeepsState(TrainerCallback):  # type: ignore[misc]
    """Hands the trainer what estimator and rule know after each step, as JSON, for its next checkpoint.

    At the step's end and not when it is saved: one that Ctrl-C ends has shown them rollouts that a resume draws again.
    """

    def __init__(self, trainer: Any, signal: Signal) -> None:
        self.trainer, self.signal = trainer, signal

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.signal_state = json.dumps(self.signal.state())

    on_step_end = on_train_begin


class Together(TrainerCallback):  # type: ignore[misc]
    """Ctrl-C or SIGTERM on several processes: all end after the step in which one was told to.

    One that left inside a step would leave the others waiting for it, until its closed connection fails them.
    """

    def __init__(self) -> None:
        self.told = self.stopped = False
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.world_size > 1:
            self._before = {n: signal.signal(n, self._tell) for n in (signal.SIGINT, signal.SIGTERM)}

    def _tell(self, number: int, _: object) -> None:
        self.told = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.world_size > 1 and any(gather_object([self.told])):
            self.stopped = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.stopped:  # else the caller's own saving comes first
            for number, handler in self._before.items():
                signal.signal(number, handler)


def book(policy: LocalModel, args: Any, tokens: int, grad: float, plain: float, seconds: float) -> None:
    """Book an update of `tokens` tokens. FLOPs a parameter: 4 a token with gradient (forward, and backward through
    frozen weights, which need no gradient of their own), 6 where gradient checkpointing runs forward twice, 2 without.
    """
    passes = 6.0 if args.gradient_checkpointing else 4.0
    flops = policy.parameters * (passes * grad + 2.0 * plain)
    policy.ledger.add("update", prompt_tokens=tokens, completion_tokens=0, flops=flops, seconds=seconds)


class StepLog(TrainerCallback):  # type: ignore[misc]
    """Books each step under `update`, sends its metrics to the run, and prints one line.

    `computed` is the trainer's count of tokens with gradient and without; without one, all rows count in full.
    """

    def __init__(self, policy: LocalModel, run: Run, steps: int, computed: list[int] | None) -> None:
        self.policy, self.run, self.steps = policy, run, steps
        self.computed = computed
        self.start = self.engine = 0.0
        self.seen, self.counted = 0, [0, 0]

    def _engine_seconds(self) -> float:
        return sum(cost.seconds for role, cost in self.policy.ledger.roles.items() if role != "update")

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.start, self.engine = clock(), self._engine_seconds()
        self.seen = state.num_input_tokens_seen

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        everyone = state.num_input_tokens_seen - self.seen
        tokens = (everyone + args.process_index) // args.world_size  # shares of all processes, which add up to it
        counts = self.computed or [self.counted[0] + tokens, self.counted[1]]
        grad, plain = (now - before for now, before in zip(counts, self.counted, strict=True))
        self.counted = list(counts)
        seconds = clock() - self.start - (self._engine_seconds() - self.engine)
        book(self.policy, args, tokens, grad, plain, seconds)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "reward" not in logs:  # the summary at the end
            return
        numbers = {k: float(v) for k, v in logs.items() if isinstance(v, int | float)}
        self.run.step(numbers, state.global_step, self.steps)
        shown = ("reward", "agreement", "verdict_agreement", "label_accuracy", "unscorable", "entropy", "step_time")
        line = "  ".join(f"{k} {numbers[k]:.2f}" for k in shown if k in numbers)
        if state.is_world_process_zero:
            print(f"step {state.global_step}/{self.steps}  {line}", flush=True)


class EpochLog(TrainerCallback):  # type: ignore[misc]
    """Books each epoch of fine-tuning under `update` and sends its validation loss to the run, before it is saved.

    `tokens` are those of what is trained on, `checked` those of the validation.
    """

    def __init__(self, policy: LocalModel, run: Run, tokens: int, checked: int, epochs: int) -> None:
        self.policy, self.run, self.epochs = policy, run, epochs
        self.tokens, self.checked = tokens, checked
        self.start = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.start = clock()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        book(self.policy, args, self.tokens, self.tokens, self.checked, clock() - self.start)
        self.start = clock()
        epoch = round(state.epoch)
        self.run.step({"validation_loss": metrics["eval_loss"]}, epoch, self.epochs)
        print(f"epoch {epoch}/{self.epochs}  validation_loss {metrics['eval_loss']:.3f}", flush=True)
