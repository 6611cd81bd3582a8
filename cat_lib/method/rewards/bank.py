"""Criteria from a bank, for models too small to write them: a rubric's first ones, and those that tell rollouts apart.

Not in DR Tulu. `sentences` makes a bank of what search returns for a question; with given criteria in it, it is gold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import pstdev

from cat_lib.method.rewards.contrast import Contrasted, new
from cat_lib.method.rewards.proposals import Proposal
from cat_lib.method.rewards.rubric import Rubrics
from cat_lib.schema import Criterion, Group, Judging, Rubric
from cat_lib.tasks.search import LONGEST, Search

Bank = Callable[[str], Sequence[Criterion]]  # a question to criteria, the best first
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def sentences(search: Search, passages: int = 4) -> Bank:
    """The sentences of the passages that search finds for a question, by their last turn and what stands before it."""

    def bank(question: str) -> list[Criterion]:
        found = search(question[-LONGEST:], passages)
        parts = [part.rstrip(".") for p in found for part in _SENTENCE.split(p.text) if len(part.split()) > 3]
        return [Criterion(f"Says that {part[0].lower()}{part[1:]}.") for part in dict.fromkeys(parts)]

    return bank


def from_bank(bank: Bank, most: int = 5) -> Rubrics:
    """A source of rubrics: the first `most` of the bank; None, with the cause, where it has nothing."""

    def one(group: Group) -> Proposal:
        criteria = tuple(bank(group.question)[:most])
        return Proposal(Rubric(criteria, "search")) if criteria else Proposal(None, cause="search found no passage")

    return lambda groups, references: [one(g) for g in groups]


@dataclass(frozen=True)
class Picker:
    """Of the criteria that `bank` has for a group, the `most` on which its rollouts differ most, by the judge.

    Without a single verdict on any of them nothing is known, and the cause is that of the first failure.
    """

    bank: Bank
    judge: Judging
    most: int = 2

    def __call__(self, groups: Sequence[Group], known: Sequence[Sequence[Criterion]], seed: int) -> list[Contrasted]:
        """One finding a group, as `contrast.Writer`; nothing is drawn, so `seed` has no say."""
        left = [new(self.bank(g.question), own, g.rollouts) for g, own in zip(groups, known, strict=True)]
        pairs = [(r.text, c.text) for g, own in zip(groups, left, strict=True) for c in own for r in g.rollouts]
        verdicts, found = iter(self.judge(pairs)), list[Contrasted]()
        for group, own in zip(groups, left, strict=True):
            judged = [[next(verdicts) for _ in group.rollouts] for _ in own]
            worth = [[v.worth for v in row if v.met is not None] for row in judged]
            if own and not any(worth):
                found.append(Contrasted(None, judged[0][0].cause))
                continue
            spread = {c: pstdev(row) for c, row in zip(own, worth, strict=True) if len(row) > 1}
            best = sorted((c for c in spread if spread[c]), key=lambda c: -spread[c])
            found.append(Contrasted(tuple(best[: self.most])))
        return found
