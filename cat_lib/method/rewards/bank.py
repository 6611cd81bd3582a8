"""Criteria that tell a question's rollouts apart, picked from a bank: for models too small to write them.

Not in DR Tulu. The bank may be sentences of searched passages; with given criteria in it, it is gold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import pstdev

from cat_lib.method.rewards.contrast import Contrasted, new
from cat_lib.schema import Criterion, Group, Judging


@dataclass(frozen=True)
class Picker:
    """Of the criteria that `bank` has for a group, the `most` on which its rollouts differ most, by the judge.

    Without a single verdict on any of them nothing is known, and the cause is that of the first failure.
    """

    bank: Callable[[Group], Sequence[Criterion]]
    judge: Judging
    most: int = 2

    def __call__(self, groups: Sequence[Group], known: Sequence[Sequence[Criterion]], seed: int) -> list[Contrasted]:
        """One finding a group, as `contrast.Writer`; nothing is drawn, so `seed` has no say."""
        left = [new(self.bank(g), own, g.rollouts).criteria or () for g, own in zip(groups, known, strict=True)]
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
