"""Texts cut so that a prompt made of them fits a model's context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cat_lib.prompts import ask
from cat_lib.schema import Model, Prompt

_CUT = " [...] "


def fitted(model: Model, reserve: int, name: str, rollouts: Sequence[str], **values: Any) -> Prompt:
    """The prompt `name` with its rollouts cut so that it leaves `reserve` tokens of the model's context."""
    frame = len(model.encode(ask(name, rollouts=[""] * len(rollouts), **values)))
    room = model.context - reserve - frame - 8 * len(rollouts)  # joins can re-tokenise
    return ask(name, rollouts=fit(model, rollouts, room), **values)


def fit(model: Model, texts: Sequence[str], room: int) -> list[str]:
    """The texts cut to `room` tokens together: each gets an equal share, and what the short ones leave unused.

    A longer text keeps the first third and the last two thirds of its share, where its answer stands, with
    `[...]` between. Raises ValueError if the share is under 16 tokens, since nothing readable would be left.
    """
    ids = [model.encode(text) if text else [] for text in texts]
    if sum(map(len, ids)) <= room:
        return list(texts)
    left, share = room, 0
    for rest, length in zip(range(len(ids), 0, -1), sorted(map(len, ids)), strict=True):
        share = left // rest
        left -= min(length, share)
    if share < 16:
        raise ValueError(
            f"{len(texts)} rollouts leave {share} tokens each in a context of {model.context}; "
            "lower group_size or take an anchor with a longer context"
        )
    head, tail = share // 3, share - share // 3 - 4
    return [
        text if len(own) <= share else model.decode(own[:head]) + _CUT + model.decode(own[-tail:])
        for text, own in zip(texts, ids, strict=True)
    ]
