"""The verifiable reward: `R_i = 1[answer(o_i) == answer(s)]` (section 3.2.1 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence

from cat_lib.schema import Group, Reference


def verifiable(groups: Sequence[Group], references: Sequence[Reference | None]) -> list[list[float | None]]:
    """1.0 for a rollout whose answer equals its reference's, 0.0 for another answer or none.

    A group whose reference is missing or has no answer is unscorable: None for each of its rollouts. The paper
    is silent on that case; a 0 would punish rollouts for the anchor's failure. So is a rollout whose answer was lost.
    """
    truths = [reference.answer if reference else None for reference in references]
    return [
        [None if truth is None or i in group.lost else float(a == truth) for i, a in enumerate(group.answers)]
        for group, truth in zip(groups, truths, strict=True)
    ]
