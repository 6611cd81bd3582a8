"""Rewards of a generator by how its solver fares on what it posed. The estimator is `consistency`.

a is the largest answer's share, of readable answers (`of_valid`) or of all (`of_all`), as each source has it. From the
code of Reasoning-Synthesis (arXiv 2511.09907) are `inversion_boundary` and `tent`: of readable ones, 0 where it is at
most 0.1. R-Zero (arXiv 2508.05004, `caller_penalty.py`) takes all. In `one_minus` (Absolute Zero, arXiv 2505.03335,
which runs code), `sqlm` (arXiv 2508.03682) and `variance`, the majority stands for the truth.

A question that is held out, or to which an answer was lost, is unscorable. `gate` treats an ill-posed one as none; no
source does. Left out: SPICE's Gaussian of the variance.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pandas as pd

from cat_lib.method.estimators.consistency import Asked, Posed
from cat_lib.method.validity import validity
from cat_lib.schema import Group, Reference


def inversion_boundary(p: Posed) -> float:
    """Eq. 7: 0.1 form + 0.9 ([1 - |a - (1 - a_ori)|] + min(a, 1 - a)); -1 without a question."""
    return _formed(p, 1 - abs(_a(p) - (1 - p.a_ori)) + min(_a(p), 1 - _a(p)))


def boundary(p: Posed) -> float:
    """Eq. 7 without its inversion term."""
    return _formed(p, min(_a(p), 1 - _a(p)))


def tent(p: Posed) -> float:
    """R-Zero as Reasoning-Synthesis has it: 0.1 form + 0.9 (2a up to a half, above it 2 (1 - a)); -1 likewise."""
    return _formed(p, 2 * min(_a(p), 1 - _a(p)))


def r_zero(p: Posed) -> float:
    """min(a, 1 - a), or -1 without a question, less its cluster's share of all rollouts."""
    return (min(p.of_all, 1 - p.of_all) if p.question else -1.0) - p.share


def one_minus(p: Posed) -> float:
    """1 - a where a is above 0; where nothing is left of that -0.5, without a question -1."""
    return (1 - p.of_all if 0 < p.of_all < 1 else -0.5) if p.question else -1.0


def sqlm(p: Posed) -> float:
    """1 where the majority has some and not all answers, else 0; without a question 0, which is ours."""
    return float(0 < p.largest < p.asked)


def variance(p: Posed) -> float:
    """a (1 - a), the variance of agreeing with the majority; without a question 0, which is ours."""
    return p.of_all * (1 - p.of_all)


@dataclass
class PosedReward:
    """The reward rule of one of these formulas; it keeps what it last saw for tables and metrics."""

    formula: Callable[[Posed], float]
    gate: bool = False
    last: list[Posed] = field(default_factory=list)

    def __call__(self, groups: Sequence[Group], references: Sequence[Reference | None]) -> list[list[float | None]]:
        """One reward a rollout. Warns where none poses a question; ValueError if the estimator is not `consistency`."""
        if not all(isinstance(r, Asked) for r in references):
            raise ValueError("rewards of posed questions need the solver's answers: take consistency(...)")
        found = [r.posed for r in references if isinstance(r, Asked)]
        self.last = [p for own in found for p in own]
        if not any(p.question for p in self.last):
            warnings.warn("no rollout of this step poses a question: begin with a cold start, or stop", stacklevel=2)
        return [[self.of(p, i in g.lost) for i, p in enumerate(own)] for g, own in zip(groups, found, strict=True)]

    def of(self, p: Posed, lost: bool = False) -> float | None:
        """The reward of one rollout; `lost`: its question is held out."""
        if lost or (p.question and not p.asked):
            return None
        return self.formula(replace(p, question=None, largest=0, formed=False) if self.gate and p.ill_posed else p)

    def tables(self) -> dict[str, pd.DataFrame]:
        return {"posed": pd.DataFrame(map(asdict, self.last))}

    def observe(self, step: int, folder: Path) -> dict[str, float]:
        return validity(self.last)


def _a(p: Posed) -> float:
    return p.of_valid if p.of_valid > 0.1 else 0.0


def _formed(p: Posed, value: float) -> float:
    return 0.1 * p.formed + 0.9 * value if p.question else -1.0
