"""Chats as a model reads and writes them: through its template, with the thinking off or cut away."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from jinja2 import TemplateError

from cat_lib.prompts import without_thinking
from cat_lib.schema import Message


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
