"""Prompt texts, one .txt a prompt, each a Jinja template, and the one place that fills them.

Model output that goes into a prompt is data: a template shows it through `fence`, between runs of backticks longer than
any inside it, or through `line`, where the unit is the line. Both are `plain`: what a tokenizer would read as control
is disarmed. Filling is a single pass, so a rollout that contains `{{ rollouts }}` stays as it is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cat_lib.schema import Prompt

_CONTINUED = ("few_shot", "likelihood", "predictability")  # in the names of prompts that are text to go on with
_RUN = re.compile(r"`{21,}")
# control characters, and what is invisible or reorders the line: zero-width, bidirectional, tag characters
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]")
# how the common chat templates write a change of speaker; a tokenizer reads these in any text as control tokens
_SPECIAL = re.compile(r"<(?=\||/?s>|bos>|eos>|(?:start|end)_of_turn>)|\[(?=/?INST\])")
# how reasoning models set off what they think before they answer
_TAG = r"(?:think(?:ing)?|thought)"
_CLOSE = re.compile(rf"</{_TAG}>|\[/THINK\]", re.IGNORECASE)
_THOUGHT = re.compile(rf"(?:<{_TAG}>|\[THINK\]).*?(?:{_CLOSE.pattern}|\Z)\s*", re.DOTALL | re.IGNORECASE)


def fill(name: str, **values: Any) -> str:
    """The prompt `prompts/<name>.txt` filled. Raises jinja2's UndefinedError for a value that it names and lacks."""
    return _TEMPLATES.get_template(f"{name}.txt").render(values).rstrip("\n")


def ask(name: str, **values: Any) -> Prompt:
    """The filled prompt as a model is asked it: text to go on with, or a chat of one turn."""
    text = fill(name, **values)
    return text if any(kind in name for kind in _CONTINUED) else [{"role": "user", "content": text}]


def fence(text: str) -> str:
    """The text between two lines of backticks, more of them than any run inside; a run of over 20 counts as 20."""
    text = _RUN.sub("`" * 20, plain(text))  # or the fence of 100 kB of backticks would be as long
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    bar = "`" * max(3, longest + 1)
    return f"{bar}\n{text}\n{bar}"


def one_line(text: str) -> str:
    """The text on one line without control characters: the fence of prompts whose unit is the line."""
    return " ".join(plain(text).split())


def without_thinking(text: str) -> str:
    """The answer alone: what a reasoning model thought, before or within it, is cut out; other text stays as it is.

    Of a block that was opened and never closed nothing is left. A close without an opening, from templates that open
    the block in the prompt, ends the thinking too.
    """
    spoken = _CLOSE.split(_THOUGHT.sub("", text))[-1]
    return text if spoken == text else spoken.lstrip()


def plain(text: str) -> str:
    """Valid text without control and invisible characters, and with a space in what chat templates read as control."""
    return _SPECIAL.sub(lambda m: m[0] + " ", _CONTROL.sub(" ", valid(text)))


def valid(text: str) -> str:
    """The text with what is no valid Unicode replaced, so that every tokenizer and every store takes it."""
    return text.encode("utf-8", "replace").decode()


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_TEMPLATES.filters |= {"fence": fence, "line": one_line}
