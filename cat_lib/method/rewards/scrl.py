"""SCRL (*What If Consensus Lies?*, arXiv 2603.19880): a majority that may abstain, and negatives among rare answers.

As its code does it (Jasper-Yan/SCRL, `scrl_utils.py` and `scrl_math`), where that departs from the paper's text: a
rollout without an answer counts in N and gets -1. Answers are compared as the task extracts them. Defaults are the
paper's. An answer lost to a limit is our case, not theirs: it counts as none, and is unscorable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import ClassVar

from cat_lib.method.estimators.voting import majority
from cat_lib.schema import Group, Reference


@dataclass(frozen=True)
class SCRL:
    """Both halves of the method: `estimate` is the estimator, the object itself the reward rule.

    Ablations: with `voting.majority` as the estimator any majority is positive, tau_neg=0 has no negatives, gate=False
    asks no entropy of them, dynamic=False rewards 1, -1 and 0. Raises ValueError for thresholds that are out of order.
    """

    tau_pos: float = 0.375  # least share of a positive
    tau_marg: float = 0.125  # by how much its share is above the runner-up's
    tau_neg: float = 0.125  # below which share an answer may be negative
    lambda_h: float = 0.1  # weight of the entropy of an answer's rollouts
    gate: bool = True
    dynamic: bool = True
    needs: ClassVar = ("mean_entropy",)  # of the whole distribution, at the sampling temperature

    def __post_init__(self) -> None:
        if not (0 <= self.tau_neg <= self.tau_pos <= 1 and 0 <= self.tau_marg < 1 and self.lambda_h >= 0):
            raise ValueError(f"{self}: allowed is 0 <= tau_neg <= tau_pos <= 1, 0 <= tau_marg < 1 and lambda_h >= 0")

    def require(self, votes: int) -> None:
        """Raises ValueError for so few votes that `tau_neg` admits no negative."""
        if self.tau_neg and 1 / votes >= self.tau_neg:
            raise ValueError(
                f"SCRL with votes={votes}: one of them is a share of {1 / votes:.3f}, not below tau_neg="
                f"{self.tau_neg}, so no answer can be negative; take {int(1 / self.tau_neg) + 1} votes or more, or "
                "tau_neg=0 for none"
            )

    def estimate(self, groups: Sequence[Group]) -> list[Reference | None]:
        """The majority where its share is enough and enough above the next one's; else None: it abstains."""
        found = zip(groups, majority(groups), strict=True)
        return [replace(m, estimator="scrl") if m and self._sure(g.answers) else None for g, m in found]

    def _sure(self, answers: Sequence[str | None]) -> bool:
        best, *others = (n / len(answers) for _, n in Counter(a for a in answers if a is not None).most_common(2))
        return best >= self.tau_pos and all(best - other > self.tau_marg for other in others)

    def __call__(self, groups: Sequence[Group], references: Sequence[Reference | None]) -> list[list[float | None]]:
        """One reward a rollout. Raises ValueError for too few rollouts, or one of unknown entropy."""
        return [self._rewards(g, r.answer if r else None) for g, r in zip(groups, references, strict=True)]

    def _rewards(self, group: Group, positive: str | None) -> list[float | None]:
        entropies = [h for rollout in group.rollouts if (h := rollout.mean_entropy) is not None]
        self.require(votes := len(group.answers))
        if len(entropies) < votes:
            raise ValueError(
                f"question {group.id!r} has {votes} rollouts, {len(entropies)} of known entropy; SCRL needs all: draw "
                "with engine=transformers and rollouts=engine"
            )
        reward, mean = dict[str | None, float](), fmean(entropies)
        for answer, count in Counter(group.answers).items():
            share = count / votes
            excess = fmean(h for h, a in zip(entropies, group.answers, strict=True) if a == answer) - mean
            negative = share < self.tau_neg and (excess >= 0 or not self.gate)
            sign = 1 if answer == positive else -1 if negative else 0
            value = {1: share, -1: share - self.tau_neg, 0: 0.0}[sign] - self.lambda_h * excess
            reward[answer] = -1.0 if answer is None else value if self.dynamic else float(sign)
        return [None if i in group.lost else reward[a] for i, a in enumerate(group.answers)]
