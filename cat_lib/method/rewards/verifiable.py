"""The verifiable reward: `R_i = 1[answer(o_i) == answer(s)]` (section 3.2.1 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence

from cat_lib.schema import Group, Reference


def verifiable(groups: Sequence[Group], references: Sequence[Reference | None]) -> list[list[float | None]]:
    """1.0 for a rollout whose answer equals its reference's, 0.0 for another answer or none.

    A group whose reference is missing or has no answer is unscorable: None for each of its rollouts. The paper
    is silent on that case; a 0 would punish rollouts for the anchor's failure. So is a rollout whose answer was lost.
    """
    rewards: list[list[float | None]] = []
    for group, reference in zip(groups, references, strict=True):
        if reference is None or reference.answer is None:
            rewards.append([None] * len(group.rollouts))
        else:
            rewards.append(
                [None if i in group.lost else float(a == reference.answer) for i, a in enumerate(group.answers)]
            )
    return rewards
