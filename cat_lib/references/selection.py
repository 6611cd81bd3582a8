"""Estimators that pick among the rollouts. Majority vote is the TTRL baseline (arXiv 2504.16084)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cat_lib.schema import Group, Reference


def none(groups: Sequence[Group]) -> list[Reference | None]:
    """No reference at all, for reward rules that need none."""
    return [None] * len(groups)


def majority(groups: Sequence[Group]) -> list[Reference | None]:
    """Per group, the first rollout that gives the most frequent answer; ties go to the answer seen first.

    None where no rollout gives an answer. Rollouts without an answer do not vote.
    """
    return [_majority(group) for group in groups]


def _majority(group: Group) -> Reference | None:
    votes = Counter(a for a in group.answers if a is not None)
    if not votes:
        return None
    answer = votes.most_common(1)[0][0]  # Counter keeps first-seen order among equals
    return Reference(group.rollouts[group.answers.index(answer)].text, answer, "majority")


def agreement(answers: Sequence[str | None]) -> float:
    """Share of the largest answer among all rollouts, those without an answer included (TTRL's majority ratio)."""
    votes = Counter(a for a in answers if a is not None)
    return max(votes.values(), default=0) / len(answers)
