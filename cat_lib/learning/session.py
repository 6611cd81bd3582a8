"""A trainer's work in a run's folder, whatever it trains: gone on with, ended by Ctrl-C with a checkpoint, saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerState

from cat_lib.learning.callbacks import KeepsState, Spending, Together
from cat_lib.learning.checkpoints import SIGNAL, load_adapter, newest_checkpoint
from cat_lib.learning.trl import Signal
from cat_lib.ledger import Cost
from cat_lib.models.local import LocalModel
from cat_lib.runs.tracking import Run

INTERRUPTED = "interrupted.json"


def require_adapter(policy: LocalModel) -> None:
    """Raises ValueError for a policy with nothing to train."""
    if not hasattr(policy.model, "disable_adapter"):
        raise ValueError("the policy has no LoRA adapter: pass it through add_lora first, then take its anchor()")


def found(trainer: Any, run: Run, resume: bool, signal: Signal | None = None) -> Path | None:
    """The checkpoint to go on from, or None; the trainer's state, and the signal's, are then those of its step.

    All processes read the same file. Raises ValueError for a signal with state that the checkpoint has none of.
    """
    checkpoint = newest_checkpoint(run.dir, resume)
    if checkpoint:
        trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if signal and signal.keepers:
        if checkpoint and not (checkpoint / SIGNAL).exists():
            raise ValueError(f"{checkpoint} has no {SIGNAL}, and this signal keeps state: train anew with resume=False")
        if checkpoint:
            signal.load(json.loads((checkpoint / SIGNAL).read_text()))
        trainer.add_callback(KeepsState(trainer, signal))
    return checkpoint


def work(
    trainer: Any, policy: LocalModel, run: Run, checkpoint: Path | None, ended: bool
) -> tuple[Path, dict[str, Cost]]:
    """Train from `checkpoint` to the end; returns the adapter's folder and what all steps cost, by role.

    Where training had `ended` there, its adapter is loaded and nothing is trained. Where checkpoints are compared, the
    best one's adapter is kept. Ctrl-C saves a checkpoint marked by `interrupted.json` and raises KeyboardInterrupt.
    """
    spending, together = Spending(policy.ledger, run.dir, trainer.state.global_step if checkpoint else -1), Together()
    trainer.add_callback(spending)
    trainer.add_callback(together)
    try:
        if not ended:
            arguments = {k: v for k, v in trainer.args.to_dict().items() if not k.endswith("hub_token")}
            run.update_config(trainer=arguments, processes=trainer.args.world_size)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if together.stopped:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        if (together.stopped or trainer.args.world_size == 1) and not _half_evaluated(trainer.state):
            trainer._save_checkpoint(trainer.model, trial=None)  # by all processes: it has collectives
            saved, step = run.dir / "checkpoints" / f"checkpoint-{trainer.state.global_step}", trainer.state.global_step
            if run.writes:
                spending.keep(step)
                (saved / INTERRUPTED).write_text(json.dumps({"step": step, "of": trainer.state.max_steps}))
                print(f"interrupted: saved {saved}; resume=True continues from it", flush=True)
            trainer.accelerator.wait_for_everyone()  # a launcher ends all once one has gone
        raise
    kept = trainer.state.best_model_checkpoint or (checkpoint if ended else None)
    if kept:
        load_adapter(policy.model, run.dir / "checkpoints" / Path(kept).name)
    adapter = run.dir / "adapter"
    if run.writes:
        policy.model.save_pretrained(adapter)
    trainer.accelerator.wait_for_everyone()  # for what the others read next
    return adapter, spending.total()


def _half_evaluated(state: Any) -> bool:
    """Whether the step's evaluation is logged and not yet weighed: a resume would pass it over, and must redo it."""
    return any("eval_loss" in logged and logged["step"] == state.global_step for logged in state.log_history)
