"""A weighted sum of reward rules, as DR Tulu's: 0.5 rubric, 0.2 citation, 0.2 format, 0.1 search (its code)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from cat_lib.schema import Group, Reference, RewardRule
from cat_lib.tasks.searching import parts

DR_TULU = {"rubric": 0.5, "citation": 0.2, "format": 0.2, "search": 0.1}


def of_answers(rule: RewardRule) -> RewardRule:
    """`rule` on the answers of rollouts that search; one without an answer has 0."""

    def rewards(groups: Sequence[Group], references: Sequence[Reference | None]) -> list[list[float | None]]:
        answers = [[parts(r.text)[1] for r in g.rollouts] for g in groups]
        found = zip(answers, rule(answered(groups), references), strict=True)
        return [[0.0 if a is None else r for a, r in zip(own, rs, strict=True)] for own, rs in found]

    return rewards


def answered(groups: Sequence[Group]) -> list[Group]:
    """The groups with each rollout's answer in the place of its text; empty where it has none."""
    return [replace(g, rollouts=tuple(replace(r, text=parts(r.text)[1] or "") for r in g.rollouts)) for g in groups]


@dataclass
class Weighted:
    """The sum of rules by name, each times its weight; None where any of them is. It keeps the state of those that do.

    `inner` are the rules whose tables, metrics and state are this one's, by name, where `rules` has them wrapped.
    """

    rules: Mapping[str, RewardRule]
    weights: Mapping[str, float]
    inner: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.rules.keys() != self.weights.keys():
            raise ValueError(
                f"weights of {', '.join(self.weights)}: allowed is one for each of {', '.join(self.rules)}"
            )
        self.last = dict[str, list[float]]()

    def __call__(self, groups: Sequence[Group], references: Sequence[Reference | None]) -> list[list[float | None]]:
        rows = {name: rule(groups, references) for name, rule in self.rules.items()}
        self.last = {n: [x for own in row for x in own if x is not None] for n, row in rows.items()}
        groupwise = zip(*rows.values(), strict=True)
        return [[self._sum(dict(zip(rows, v, strict=True))) for v in zip(*own, strict=True)] for own in groupwise]

    def _sum(self, values: Mapping[str, float | None]) -> float | None:
        known = [self.weights[name] * value for name, value in values.items() if value is not None]
        return sum(known) if len(known) == len(values) else None

    def tables(self) -> dict[str, pd.DataFrame]:
        return {k: t for part in self.inner.values() if hasattr(part, "tables") for k, t in part.tables().items()}

    def observe(self, step: int, folder: Path) -> dict[str, float]:
        """Each rule's mean as `reward_<name>`, and what the inner rules observe."""
        means = {f"reward_{name}": sum(own) / len(own) for name, own in self.last.items() if own}
        parts = [p.observe(step, folder) for p in self.inner.values() if hasattr(p, "observe")]
        return {k: v for part in parts for k, v in part.items()} | means

    def state(self) -> dict[str, Any]:
        return {name: part.state() for name, part in self.inner.items() if hasattr(part, "state")}

    def load(self, state: Mapping[str, Any]) -> None:
        for name, own in state.items():
            self.inner[name].load(own)
