"""Texts cut so that a prompt made of them fits a model's context."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cat_lib.schema import Model, Prompt

_CUT = " [...] "


def fitted(model: Model, texts: Sequence[str], build: Callable[[Sequence[str]], Prompt], reserve: int) -> Prompt:
    """`build(texts)` with the texts cut so that the prompt leaves `reserve` tokens of the model's context."""
    frame = len(model.encode(build([""] * len(texts))))
    return build(fit(model, texts, model.context - reserve - frame - 8 * len(texts)))  # joins can re-tokenise


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
