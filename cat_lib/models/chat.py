"""Chats as a model reads and writes them: through its template, with the thinking off or cut away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from cat_lib.prompts import without_thinking
from cat_lib.schema import Message


def render(tokenizer: Any, messages: Sequence[Message], thinking: bool) -> str:
    """The chat as the model reads it, up to where its answer begins.

    For a template that refuses a system turn, or two turns of one role in a row, a system turn becomes the user's and
    turns of one role are joined. Raises ValueError with the template's own words if it refuses that too.
    """
    try:
        return _fill(tokenizer, messages, thinking)
    except TemplateError:
        turns: list[Message] = []
        for turn in messages:
            role = "user" if turn["role"] == "system" else turn["role"]
            if turns and turns[-1]["role"] == role:
                turns[-1] = {"role": role, "content": f"{turns[-1]['content']}\n\n{turn['content']}"}
            else:
                turns.append({"role": role, "content": turn["content"]})
    try:
        return _fill(tokenizer, turns, thinking)
    except TemplateError as error:
        roles, opening = ", ".join(t["role"] for t in messages), messages[0]["content"][:60] if messages else ""
        raise ValueError(
            f"a conversation with the turns {roles} ({opening!r}): the model's chat template refuses it ({error}); "
            "leave it out, or let its turns begin with the user's and alternate"
        ) from None


def _fill(tokenizer: Any, messages: Sequence[Message], thinking: bool) -> str:
    options = {"add_generation_prompt": True, "tokenize": False, "enable_thinking": thinking}
    return str(tokenizer.apply_chat_template(list(messages), **options))


def spoken(text: str, rendered: str) -> str:
    """A completion's text less what the model thought; some chat templates open the thinking themselves."""
    return without_thinking("<think>" * rendered.rstrip().endswith("<think>") + text)
