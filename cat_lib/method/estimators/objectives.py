"""Majority of objective values, without labels: OR-R1's idea (github.com/SCUTE-ZZ/OR-R1), with a tolerance."""

from __future__ import annotations

from collections.abc import Sequence

from cat_lib.method.estimators.voting import pick
from cat_lib.schema import Group, Reference
from cat_lib.tasks.solvers import equal

LEAST = 2  # votes that make a reference: one value says nothing of another


def objectives(groups: Sequence[Group]) -> list[Reference | None]:
    """Per group, the first rollout whose optimum most others have too, as near as `solvers.equal` asks.

    Only models with an optimum vote: a group may agree on `infeasible` because all are wrong. None where no value has
    LEAST votes.
    """
    found = list[Reference | None]()
    for group in groups:
        values = [a for a in group.answers if a and not a[-1].isalpha()]
        # each as near as the other asks: a model written as non-linear wins no votes by its wider tolerance
        votes = {a: sum(equal(b, a) and equal(a, b) for b in values) for a in values}
        best = max(votes, key=votes.__getitem__, default="")  # of equals the first
        enough = votes.get(best, 0) >= LEAST
        found.append(pick(group, group.answers.index(best), "objectives") if enough else None)
    return found
