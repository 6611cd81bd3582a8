"""Checkpoints of a training: written whole or passed over, and loaded bit by bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import Trainer

SIGNAL = "signal.json"


class Exact(Trainer):  # type: ignore[misc]
    """Mixed into TRL's trainers: what is saved is whole or passed over, and what is loaded is what was saved.

    `signal_state` is JSON, what estimator and rule knew after the last whole step.
    """

    signal_state: str | None = None

    def __init__(self, *args: Any, **given: Any) -> None:
        """As TRL's, which would round an adapter on 4-bit weights to bfloat16: the steps of small rates were lost."""
        own = [(weight, weight.data) for weight in given["model"].parameters() if weight.requires_grad]
        super().__init__(*args, **given)
        for weight, data in own:
            weight.data = data

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As Trainer's, but never over one that is whole: Ctrl-C after a scheduled save, then a kill, would tear it."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if broadcast_object_list([loads(folder)])[0]:
            return
        if self.args.should_save:
            if folder.exists():
                shutil.rmtree(folder)
            if self.signal_state is not None:  # before the rest: a checkpoint that loads has it
                folder.mkdir(parents=True)
                (folder / SIGNAL).write_text(self.signal_state)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As Trainer's, then the adapter once more, exactly: PEFT loads it through the base model's bfloat16."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_adapter(model or self.model, Path(resume_from_checkpoint))


def exact(trainer: type) -> Any:
    """A trainer of TRL's, or what Unsloth has made of it, with `Exact` mixed in."""
    return type(trainer.__name__, (Exact, trainer), {})


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint with the highest step that can be loaded, or None."""
    found = sorted((run_dir / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    return next(filter(loads, reversed(found)), None)


def loads(folder: Path) -> bool:
    """Whether a training can go on from this folder: each part is there, to its end."""
    try:
        json.loads((folder / "trainer_state.json").read_text())
        with safe_open(folder / "adapter_model.safetensors", "pt"):
            pass
        parts = [folder / "optimizer.pt", folder / "scheduler.pt", *(drawn := list(folder.glob("rng_state*.pth")))]
        return bool(drawn) and all(map(is_zipfile, parts))  # what torch writes; a zip's directory stands last
    except (OSError, ValueError, SafetensorError):
        return False


def load_adapter(model: Any, folder: Path) -> None:
    """Copy a saved adapter into the model's own, bit by bit."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in load_file(folder / "adapter_model.safetensors").items():
            parameters[name.removesuffix(".weight") + ".default.weight"].copy_(value)
