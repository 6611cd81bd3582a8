"""Rubrics that evolve with the policy: RLER (DR Tulu, arXiv 2511.19399, algorithm 1), by both official versions' rules.

Where we differ: a verdict that failed is no 0 and moves no criterion's spread, and a contrast that failed leaves the
buffer as it was and the group scored. Left out: merging of criteria, which the paper names and neither version has.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from cat_lib.method.rewards.buffer import Buffer
from cat_lib.method.rewards.contrast import Contrast
from cat_lib.method.rewards.proposals import Proposal
from cat_lib.method.rewards.rubric import RubricReward, Rubrics, share_met
from cat_lib.schema import Criterion, Group, Judging, Reference, Rubric, Verdict


@dataclass
class Evolving:
    """A reward rule: rubrics of `first`, which stay, and of `contrast`, which `buffer` keeps while they tell apart.

    New criteria score the rollouts that they came from ("now", dr-tulu) or later ones ("next", open-instruct); points
    are divided by the positive ones, at least 1 (dr-tulu), or by all, in absolute value (open-instruct). `drop` is the
    share of a group's criteria that is left out at random of each of its rewards. Raises ValueError for other values.
    """

    judge: Judging
    first: Rubrics
    contrast: Contrast
    buffer: Buffer = field(default_factory=Buffer)
    applies: Literal["now", "next"] = "now"
    over: Literal["positive", "all"] = "positive"
    drop: float = 0.0
    seed: int = 0
    calls: int = 0

    def __post_init__(self) -> None:
        if self.applies not in ("now", "next") or self.over not in ("positive", "all") or not 0 <= self.drop < 1:
            given = f"applies={self.applies!r}, over={self.over!r}, drop={self.drop}"
            raise ValueError(f"{given}: allowed are now or next, positive or all, and 0 to below 1")
        self.rule = RubricReward(self.judge, lambda groups, references: self.shown, share=self._share)

    def __call__(self, groups: Sequence[Group], references: Sequence[Reference | None]) -> list[list[float | None]]:
        self.buffer.meet(groups, references, self.first)
        known = [self.buffer.criteria(g.id) for g in groups]
        self.found = self.contrast(groups, known, self.seed + self.calls)
        fresh = [(f.criteria or ()) if self.applies == "now" else () for f in self.found]
        self.shown = [self._shown(g, [*old, *new]) for g, old, new in zip(groups, known, fresh, strict=True)]
        rewards = self.rule(groups, references)
        self.calls += 1
        for group, found in zip(groups, self.found, strict=True):
            if found.criteria is not None:
                self.buffer.update(group.id, found.criteria, self.rule.spreads(group.id), self.calls)
        return rewards

    def _shown(self, group: Group, criteria: Sequence[Criterion]) -> Proposal:
        rng, n = random.Random(f"{self.seed} {self.calls} {group.id}"), len(criteria)
        left = sorted(rng.sample(range(n), max(min(n, 1), round(n * (1 - self.drop)))))
        kept = Rubric(tuple(criteria[i] for i in left), "evolving") if n else None
        return Proposal(kept, cause=self.buffer.questions[group.id]["cause"])

    def _share(self, rubric: Rubric, verdicts: Sequence[Verdict]) -> float | None:
        whole = max(rubric.possible, 1.0) if self.over == "positive" else sum(abs(c.points) for c in rubric.criteria)
        return share_met(rubric, verdicts, whole=whole)

    def tables(self) -> dict[str, Any]:
        return {**self.rule.tables(), "buffer": self.buffer.table()}

    def observe(self, step: int, folder: Path) -> dict[str, float]:
        failed = fmean(f.criteria is None for f in self.found)
        return self.rule.observe(step, folder) | {"contrast_failed": failed} | self.buffer.observe(self.calls)

    def state(self) -> dict[str, Any]:
        rule = [self.buffer.retirement, self.buffer.keep, self.applies, self.over, self.drop, self.seed]
        found = type(self.contrast).__name__
        return {"calls": self.calls, "questions": self.buffer.questions, "rule": [*rule, found]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises ValueError if it was kept by another rule."""
        if (own := self.state()["rule"]) != state["rule"]:
            raise ValueError(f"the buffer was kept with {state['rule']}, and here is {own}: train with resume=False")
        self.calls, self.buffer.questions = state["calls"], state["questions"]
