"""What a training run keeps of itself: every rollout in a file, signals by step.

A rule may have `tables() -> dict[str, DataFrame]`, what it knows of its last call, and `observe(step, folder) ->
dict[str, float]`, that step's further metrics. Both are asked after the rewards, where the rule has scored.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cat_lib.learning.trl import Signal
from cat_lib.method.estimators.voting import first
from cat_lib.method.signals import Rewards, flip_rate, gold_signals, signals
from cat_lib.prompts import valid
from cat_lib.runs.tracking import Run
from cat_lib.schema import Example, Group, Reference, Task


class Record:
    """Keeps what the reward saw: every completion in a file, signals for the log."""

    def __init__(self, task: Task, examples: Sequence[Example], run: Run, signal: Signal, trained: int) -> None:
        self.run, self.signal, self.task, self.trained = run, signal, task, trained
        self.golds = {e.id: e.gold for e in examples}  # for plots alone

    def on_step(
        self, step: int, groups: list[Group], references: list[Reference | None], rewards: Rewards
    ) -> dict[str, float]:
        """Called by the reward once its numbers are fixed; returns the step's signals."""
        rule: Any = self.signal.rule
        if self.run.writes:  # each of several processes sees all groups
            write_step(self.run.dir, "rollouts", step, rollout_table(groups, references, rewards, self.trained))
        known = self._signals(groups, references, rewards)
        if self.signal.scored and hasattr(rule, "tables"):
            for name, table in rule.tables().items():
                write_step(self.run.dir, name, step, table)
        if self.signal.scored and hasattr(rule, "observe"):
            known |= rule.observe(step, self.run.dir)
        if self.task.verifiable:
            known |= flip_rate(groups, self.signal.majorities)
        if any(len(group.rollouts) > self.trained for group in groups):
            kept = self._signals(first(groups, self.trained), references, [own[: self.trained] for own in rewards])
            known |= {f"trained_{name}": value for name, value in kept.items()}
        return known

    def _signals(self, groups: list[Group], references: list[Reference | None], rewards: Rewards) -> dict[str, float]:
        known = signals(groups, references, rewards, self.task.verifiable)
        golds = [self.golds[g.id] for g in groups]
        if self.task.verifiable and all(golds):  # nobody knows the gold of a question that was posed
            known |= gold_signals(groups, references, rewards, golds, self.task.correct)
        return known

    def tables(self, steps: int) -> pd.DataFrame:
        """Join each table's steps into one file of the run, up to `steps`; returns the rollouts."""
        joined = {}
        for name in sorted({part.parent.name for part in self.run.dir.glob("*/step_*.parquet")}):
            parts = [pd.read_parquet(p) for p in sorted((self.run.dir / name).glob("step_*.parquet"))]
            table = pd.concat(parts, ignore_index=True)
            joined[name] = table[table["step"] <= steps]
            self.run.table(name, joined[name])
        return joined["rollouts"]


def write_step(run_dir: Path, name: str, step: int, table: pd.DataFrame) -> None:
    """Keep one step's part of a table; each process writes a file of its own."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    path = run_dir / name / f"step_{step:05d}_rank{rank}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    if rank == 0:  # of a process that an earlier try had and this one, resumed on fewer, has not
        for old in path.parent.glob(f"step_{step:05d}_rank*.parquet"):
            if int(old.stem.rpartition("rank")[2]) >= world:
                old.unlink()
    table.assign(step=step).to_parquet(path, index=False)


def rollout_table(
    groups: Sequence[Group],
    references: Sequence[Reference | None],
    rewards: Sequence[Sequence[float | None]],
    trained: int | None = None,
) -> pd.DataFrame:
    """One row a rollout, with what it was measured against. Text that is no UTF-8 is replaced, so that it is kept.

    `trained`: how many of each group, the first, are trained on; None: all.
    """
    return pd.DataFrame(
        {
            "question": group.question,
            "text": valid(rollout.text),
            "answer": answer,
            "reference": valid(reference.text) if reference else None,
            "reward": reward,
            "example": group.id,
            "rollout": i,
            "finish": rollout.finish,
            "reference_answer": reference.answer if reference else None,
            "trained": trained is None or i < trained,
        }
        for group, reference, rs in zip(groups, references, rewards, strict=True)
        for i, (rollout, answer, reward) in enumerate(zip(group.rollouts, group.answers, rs, strict=True))
    )
