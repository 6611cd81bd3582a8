"""What is known of each question's criteria in RLER: which score, how far they tell rollouts apart, which have gone.

Persistent criteria stay. Active ones retire by one of the two official rules: `std` (rlresearch/dr-tulu) drops those
without spread over the group at once and keeps the `keep` of largest spread; `fifo` (allenai/open-instruct) keeps the
last `keep`. The spread is the population's standard deviation over the verdicts that did not fail. A criterion that
never had two verdicts has none, and stays before those that have one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

import pandas as pd

from cat_lib.method.rewards.rubric import Rubrics
from cat_lib.schema import Criterion, Group, Reference

_COLUMNS = ("example", "kind", "criterion", "points", "born", "spread", "gone", "why")


@dataclass
class Buffer:
    """By question: `persistent` and `active` criteria, and those `retired`; when each came and went, and why."""

    retirement: Literal["std", "fifo"] = "std"
    keep: int = 5
    questions: dict[str, dict[str, Any]] = field(default_factory=dict)  # what JSON can hold

    def __post_init__(self) -> None:
        if self.retirement not in ("std", "fifo") or self.keep < 1:
            raise ValueError(
                f"retirement={self.retirement!r}, keep={self.keep}: allowed are std or fifo, and 1 or more"
            )

    def meet(self, groups: Sequence[Group], references: Sequence[Reference | None], first: Rubrics) -> None:
        """Write the persistent criteria of the questions that are new, or the cause why one has none."""
        new = [(g, r) for g, r in zip(groups, references, strict=True) if g.id not in self.questions]
        for (group, _), proposal in zip(new, first([g for g, _ in new], [r for _, r in new]), strict=True):
            criteria = proposal.rubric.criteria if proposal.rubric else ()
            known: dict[str, Any] = {"persistent": [{"text": c.text, "points": c.points} for c in criteria]}
            self.questions[group.id] = known | {"active": [], "retired": [], "cause": proposal.cause}

    def criteria(self, id: str) -> list[Criterion]:
        """The persistent criteria, then the active ones: the oldest first by `fifo`, the largest spread by `std`."""
        known = self.questions[id]
        return [Criterion(c["text"], c["points"]) for c in (*known["persistent"], *known["active"])]

    def update(self, id: str, new: Sequence[Criterion], spreads: Mapping[str, float], at: int) -> None:
        """Take in what step `at` found of a question: new criteria, and spreads by text; then retire by the rule."""
        known = self.questions[id]
        fresh: list[dict[str, Any]] = [{"text": c.text, "points": c.points, "born": at, "spread": None} for c in new]
        pool = [e | {"spread": spreads.get(e["text"], e["spread"])} for e in (*known["active"], *fresh)]
        if self.retirement == "fifo":
            known["active"] = pool[-self.keep :]
        else:
            alive = [e for e in pool if e["spread"] != 0]
            alive.sort(key=lambda e: -math.inf if e["spread"] is None else -e["spread"])
            known["active"] = alive[: self.keep]
        stay = {e["text"] for e in known["active"]}
        for gone in (e for e in pool if e["text"] not in stay):
            dull = self.retirement == "std" and gone["spread"] == 0
            known["retired"].append(gone | {"gone": at, "why": "no spread" if dull else "one too many"})

    def table(self) -> pd.DataFrame:
        """One row a criterion; kind is persistent, active or retired, born and gone are steps."""
        kinds = [(id, k, e) for id, own in self.questions.items() for k in own if k != "cause" for e in own[k]]
        rows = [{"example": id, "kind": kind, "criterion": e["text"]} | e for id, kind, e in kinds]
        return pd.DataFrame(rows, columns=_COLUMNS).astype(dict.fromkeys(("points", "born", "spread", "gone"), float))

    def observe(self, at: int) -> dict[str, float]:
        """What the buffer holds after step `at`; formulas in docs/metrics.md."""
        own = self.questions.values()
        spreads = [e["spread"] for known in own for e in known["active"] if e["spread"] is not None]
        return {
            "active_criteria": fmean(len(known["active"]) for known in own),
            "born_criteria": float(sum(e["born"] == at for k in own for e in (*k["active"], *k["retired"]))),
            "retired_criteria": float(sum(e["gone"] == at for known in own for e in known["retired"])),
        } | ({"active_spread": fmean(spreads)} if spreads else {})
