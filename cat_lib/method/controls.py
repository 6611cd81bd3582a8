"""Controls: would any reward have done? Signals that know nothing of the answer, and one that is wrong on purpose.

After Shao et al. (*Spurious Rewards*, arXiv 2506.10947), whose random and format rewards raised some models nearly as
far as right labels did. The plurality control is TTRL itself: `voting.majority` with `verifiable`; the ceiling is
`voting.gold`. `random` and `format_only` need no reference: their estimator is `voting.none`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from cat_lib.method.estimators.voting import gold, majority
from cat_lib.schema import Estimator, Group, Reference


class Random:
    """1 with the chance p, else 0, for each rollout, drawn anew at each step: what it teaches is no signal at all.

    Keeps how often it was called, so that a resumed training draws on. Raises ValueError for p outside 0 to 1.
    """

    def __init__(self, p: float = 0.5, seed: int = 0) -> None:
        if not 0 < p < 1:
            raise ValueError(f"p={p}: allowed is above 0 and below 1; at both ends all rewards are equal")
        self.p, self.seed, self.calls = p, seed, 0

    def __call__(self, groups: Sequence[Group], references: Sequence[Reference | None]) -> list[list[float | None]]:
        rng = random.Random(f"{self.seed} {self.calls}")
        self.calls += 1
        return [[float(rng.random() < self.p) for _ in group.rollouts] for group in groups]

    def state(self) -> dict[str, int]:
        return {"calls": self.calls}

    def load(self, state: Mapping[str, int]) -> None:
        self.calls = state["calls"]


def format_only(groups: Sequence[Group], references: Sequence[Reference | None]) -> list[list[float | None]]:
    """1 for a rollout that gives an answer, right or wrong, 0 for one that gives none; None where it was lost."""
    return [[None if i in g.lost else float(a is not None) for i, a in enumerate(g.answers)] for g in groups]


def gold_wrong_majority(golds: Mapping[str, str], correct: Callable[[str | None, str], bool]) -> Estimator:
    """The most frequent wrong answer of each group, by the gold answers, which it reads to avoid them.

    `correct` is the task's. None where no rollout gives a wrong answer. Raises ValueError for a group without a gold.
    """
    known = gold(golds)

    def estimate(groups: Sequence[Group]) -> list[Reference | None]:
        truths = [right.text if right else "" for right in known(groups)]
        wrong = [[None if correct(a, t) else a for a in g.answers] for g, t in zip(groups, truths, strict=True)]
        voting = [replace(group, answers=tuple(answers)) for group, answers in zip(groups, wrong, strict=True)]
        return [vote and replace(vote, estimator="gold_wrong_majority") for vote in majority(voting)]

    return estimate
