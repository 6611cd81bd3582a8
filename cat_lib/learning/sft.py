"""CaT-SFT: fine-tune on the pseudo-references themselves, by cross-entropy (appendix I of the paper, eq. 12).

References are made once, by the initial model, and the policy learns to write them for the question alone. It is
TRL's SFT trainer with our prompt and stop tokens, so that a trained policy is asked as it was taught. With GRPO it
shares the adapter, and how a run goes on and ends (`session.py`). Left out: packing, which this scale does not need.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from cat_lib.files import write_json
from cat_lib.learning.settings import arguments
from cat_lib.ledger import Cost, Ledger
from cat_lib.runs.tracking import Run
from cat_lib.schema import Example, Reference, Task

if TYPE_CHECKING:
    from cat_lib.models.local import LocalModel


@dataclass(frozen=True)
class SFTSettings:
    """One CaT-SFT run. Numbers marked (paper) are stated in v1, appendix E."""

    epochs: int = 10  # at most; not stated
    batch_size: int = 32  # (paper)
    learning_rate: float = 5e-5  # (paper) cosine with warm-up
    warmup_ratio: float = 0.1  # the share of steps is not stated
    patience: int = 2  # epochs without a lower validation loss; the paper stops at the lowest
    validation_share: float = 0.2  # of the references; not stated
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share={self.validation_share}: allowed is between 0 and 1, both left out")


@dataclass(frozen=True)
class Tuned:
    """What a CaT-SFT run leaves: its losses by epoch, the epoch whose adapter was kept, and the adapter."""

    history: pd.DataFrame  # one row an epoch: epoch, validation_loss
    best_epoch: float
    references: int  # that had an answer, and so were trained or validated on
    adapter: Path
    spent: dict[str, Cost]  # by role, over all epochs, those before a resume included


def kept_references(
    run: Run, ledger: Ledger, make: Callable[[], list[Reference | None]]
) -> tuple[list[Reference | None], dict[str, Cost]]:
    """What `make` gives, and what it cost by role: made once a run, and read from its references.json after that."""
    path = run.dir / "references.json"
    if not path.exists():
        with ledger.measure() as spent:
            made = make()
        references = [r and asdict(r) for r in made]
        write_json(path, {"references": references, "spent": {role: asdict(cost) for role, cost in spent.items()}})
    kept = json.loads(path.read_text())
    spent = {role: Cost(**cost) for role, cost in kept["spent"].items()}
    return [r and Reference(**r) for r in kept["references"]], spent


def finetune(
    policy: LocalModel,
    task: Task,
    examples: Sequence[Example],
    references: Sequence[Reference | None],
    settings: SFTSettings,
    run: Run,
    *,
    resume: bool = True,
) -> Tuned:
    """Train `policy`'s adapter in place on the references; the adapter of the lowest validation loss is kept.

    Each epoch leaves a checkpoint in the run's folder, and Ctrl-C one of its step. With `resume`, continues from the
    newest one, if there is one; if training had ended there, its adapter is loaded and nothing is trained again.

    A reference that is missing, or has no answer where the task's answers can be checked, teaches nothing and is left
    out. The last `validation_share` of the rest is validation: its targets are references too, no label is read.
    Raises ValueError if fewer than 4 are left or the policy has no adapter.
    """
    import trl
    from datasets import Dataset
    from transformers import EarlyStoppingCallback

    from cat_lib.learning.checkpoints import exact
    from cat_lib.learning.session import SFTSession, require_adapter

    require_adapter(policy)
    usable = [
        (e, r)
        for e, r in zip(examples, references, strict=True)
        if r is not None and r.text and (r.answer is not None or not task.verifiable)
    ]
    if len(usable) < 4:
        raise ValueError(f"{len(usable)} of {len(references)} references can be learnt from; at least 4 are needed")
    rows = [_row(policy, task, example, reference) for example, reference in usable]
    held = max(1, round(settings.validation_share * len(rows)))
    on_cpu = policy.model.device.type == "cpu"
    trainer = exact(trl.SFTTrainer)(
        model=policy.model,
        args=trl.SFTConfig(**sft_arguments(settings, run.dir / "checkpoints", len(rows) - held, on_cpu)),
        train_dataset=Dataset.from_list(rows[:-held]),
        eval_dataset=Dataset.from_list(rows[-held:]),
        processing_class=policy.tokenizer,
        callbacks=[EarlyStoppingCallback(settings.patience)],
    )
    session = SFTSession(trainer, policy, run, resume)
    adapter = session.work(_ended(_losses(trainer.state), settings))
    history = _losses(trainer.state)
    best = history.loc[history["validation_loss"].idxmin(), "epoch"]
    return Tuned(history, float(best), len(usable), adapter, session.spending.total())


def _losses(state: Any) -> pd.DataFrame:
    losses = [(h["epoch"], h["eval_loss"]) for h in state.log_history if "eval_loss" in h]
    return pd.DataFrame(losses, columns=["epoch", "validation_loss"])


def _ended(losses: pd.DataFrame, settings: SFTSettings) -> bool:
    """Whether these epochs were all: as many as there may be, or `patience` of them after the lowest loss."""
    n = len(losses)
    return n > 0 and (n >= settings.epochs or n - 1 - int(losses["validation_loss"].argmin()) >= settings.patience)


def _row(policy: LocalModel, task: Task, example: Example, reference: Reference) -> dict[str, list[int]]:
    """Token ids of prompt and reference as the policy would have generated it, stop included.

    The prompt is masked, and what a tool put into the reference.
    """
    prompt, text, tokenizer = policy.encode(example.prompt), reference.text.strip(), policy.tokenizer
    if isinstance(example.prompt, str):
        lead, stop = "" if example.prompt[-1:].isspace() else " ", (task.sampling.stop or ("",))[0]
        text = lead + text + ("\n" if stop[:1].isalpha() else "") + stop  # a word stands on a line of its own
    pieces = task.sampling.tool.pieces(text) if task.sampling.tool else [(text, True)]
    target, labels = list[int](), list[int]()
    for piece, own in pieces:
        ids = list(tokenizer(piece, add_special_tokens=False).input_ids)
        target, labels = target + ids, labels + (ids if own else [-100] * len(ids))
    if not target or target[-1] not in policy.stop_ids(task.sampling.stop):
        target, labels = [*target, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]
    room = policy.context - len(prompt)
    return {"input_ids": [*prompt, *target][: policy.context], "labels": [-100] * len(prompt) + labels[:room]}


def sft_arguments(settings: SFTSettings, output_dir: Path, rows: int, on_cpu: bool) -> dict[str, Any]:
    """Keyword arguments for `trl.SFTConfig`, with `rows` to train on."""
    micro = math.gcd(settings.batch_size, 8)  # bounds memory; the gradient is that of the whole batch
    steps = settings.epochs * math.ceil(rows / settings.batch_size)
    return arguments("sft", output_dir, on_cpu, settings.learning_rate, settings.seed) | {
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": settings.batch_size // micro,
        "warmup_steps": round(settings.warmup_ratio * steps),
    }
