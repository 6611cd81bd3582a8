"""Estimators that pick one of the rollouts and need no model. Majority vote is the TTRL baseline (arXiv 2504.16084)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cat_lib.schema import Estimator, Group, Reference


def none(groups: Sequence[Group]) -> list[Reference | None]:
    """No reference at all, for reward rules that need none."""
    return [None] * len(groups)


def single(groups: Sequence[Group]) -> list[Reference | None]:
    """The first rollout, as if no other had been drawn: what any use of several has to beat."""
    return [pick(group, 0, "single") for group in groups]


def majority(groups: Sequence[Group]) -> list[Reference | None]:
    """Per group, the first rollout that gives the most frequent answer; ties go to the answer seen first.

    None where no rollout gives an answer. Rollouts without an answer do not vote. Answers are compared as the task
    extracts them, so a task whose answers have several notations extracts a canonical one.
    """
    votes = [Counter(a for a in group.answers if a is not None) for group in groups]
    return [  # Counter keeps first-seen order among equals
        pick(group, group.answers.index(count.most_common(1)[0][0]), "majority") if count else None
        for group, count in zip(groups, votes, strict=True)
    ]


def gold(golds: Mapping[str, str]) -> Estimator:
    """The right answer of each question by id: the upper bound, and the one estimator that reads labels.

    Raises ValueError for a group whose id has no gold.
    """

    def estimate(groups: Sequence[Group]) -> list[Reference | None]:
        if missing := [g.id for g in groups if g.id not in golds]:
            raise ValueError(f"no gold answer for {', '.join(missing[:4])}: pass the golds of the training questions")
        return [Reference(golds[g.id], golds[g.id], "gold") for g in groups]

    return estimate


def pick(group: Group, index: int, estimator: str) -> Reference:
    """Rollout `index` of the group as its reference."""
    return Reference(group.rollouts[index].text, group.answers[index], estimator)


def first(groups: Sequence[Group], k: int, start: int = 0) -> list[Group]:
    """The groups cut to k of their rollouts, from `start`. Raises ValueError if one has fewer."""
    for group in groups:
        if start < 0 or k < 1 or start + k > len(group.rollouts):
            raise ValueError(
                f"rollouts {start} to {start + k - 1} of question {group.id!r} are asked for; its group has "
                f"{len(group.rollouts)}: raise group_size or ask for fewer"
            )
    kept = range(start, start + k)
    return [
        replace(
            g,
            rollouts=tuple(g.rollouts[i] for i in kept),
            answers=tuple(g.answers[i] for i in kept),
            lost=frozenset(i - start for i in g.lost.intersection(kept)),
        )
        for g in groups
    ]


def agreement(answers: Sequence[str | None]) -> float:
    """Share of the largest answer among all rollouts, those without an answer included (TTRL's majority ratio)."""
    votes = Counter(a for a in answers if a is not None)
    return max(votes.values(), default=0) / len(answers)
