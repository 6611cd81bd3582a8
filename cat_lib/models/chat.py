"""Texts as a model reads and writes them: through its chat template, less its thinking, cut to fit its context."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from jinja2 import TemplateError

from cat_lib.prompts import ask, without_thinking
from cat_lib.schema import Message, Model, Prompt


def render(tokenizer: Any, messages: Sequence[Message], thinking: bool) -> str:
    """The chat as the model reads it, up to where its answer begins.

    For a template that refuses a system turn, or two turns of one role in a row, a system turn becomes the user's and
    turns of one role are joined. Raises ValueError with the template's own words if it refuses that too.
    """
    as_user = [("user" if turn["role"] == "system" else turn["role"], turn["content"]) for turn in messages]
    by_role = groupby(as_user, key=lambda turn: turn[0])
    joined = [{"role": role, "content": "\n\n".join(text for _, text in turns)} for role, turns in by_role]
    for turns in (list(messages), joined):
        try:
            options = {"add_generation_prompt": True, "tokenize": False, "enable_thinking": thinking}
            return str(tokenizer.apply_chat_template(turns, **options))
        except TemplateError as error:
            refusal = str(error)
    roles, opening = ", ".join(t["role"] for t in messages), messages[0]["content"][:60] if messages else ""
    raise ValueError(
        f"a conversation with the turns {roles} ({opening!r}): the model's chat template refuses it ({refusal}); "
        "leave it out, or let its turns begin with the user's and alternate"
    )


def spoken(text: str, rendered: str) -> str:
    """A completion's text less what the model thought; some chat templates open the thinking themselves."""
    return without_thinking("<think>" * rendered.rstrip().endswith("<think>") + text)


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
        text if len(own) <= share else model.decode(own[:head]) + " [...] " + model.decode(own[-tail:])
        for text, own in zip(texts, ids, strict=True)
    ]
