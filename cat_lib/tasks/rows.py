"""Rows of other people's files, read strictly: nothing is guessed, and nothing is turned into text in silence.

A row that can't be used is refused with its line, the key and the reason; `skip_bad_rows` of a loader leaves such rows
out and says how many.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from cat_lib.runs import tracking
from cat_lib.schema import Message
from cat_lib.shown import masked

ROLES = ("system", "user", "assistant")
_SHOWN = 5  # bad rows that one message names
_LARGEST = 1e9  # points of a criterion


class DataError(ValueError):
    """A data file that cannot be had, or a row that cannot be used."""


class BadRowsError(DataError):
    """Rows that can't be used, of a file with others that could be: `bad` says why, `good` how many can."""

    def __init__(self, message: str, bad: Sequence[DataError], good: int) -> None:
        super().__init__(message)
        self.bad, self.good = bad, good


def parse_json(raw: bytes, where: str) -> Any:
    """JSON as the standard has it, with or without a BOM. Raises DataError beginning with `where`.

    Refused beside what is no JSON: NaN and infinite numbers, a key that stands twice, halves of surrogate pairs.
    """
    try:
        content = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=once)
        bad = next(_unusable(content, ""), None)
    except RecursionError:
        raise DataError(f"{where}: no JSON (lists in lists, too deep to read)") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: no JSON, as it is no UTF-8 ({error}); save the file as UTF-8") from None
    except ValueError as error:
        raise DataError(f"{where}: no JSON ({error})") from None
    if bad:
        raise DataError(f"{where}: {bad}")
    return content


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, for `object_pairs_hook`. Raises ValueError for a key that stands twice."""
    if len(found := dict(pairs)) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return found


def _unusable(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _unusable(name, key)
            yield from _unusable(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _unusable(inner, f"{key}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{key or 'it'} is {value}, where a finite number is needed"
    elif isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        yield f"{key or 'a key'} holds half of a surrogate pair, which is no text"


def text(value: Any, key: str, where: str) -> str:
    """What stands under `key`, if it is text that is not blank. Raises DataError naming row and key."""
    if not isinstance(value, str):
        raise DataError(f"{where}: {key} is {_named(value)}, where text is needed")
    if not value.strip():
        raise DataError(f"{where}: {key} is empty")
    return value


def items(value: Any, key: str, where: str, kind: type = str) -> list[Any]:
    """What stands under `key`, if it is a list of that kind alone. Raises DataError naming row and key."""
    kinds: dict[type, str] = {str: "texts", dict: "objects"}
    if not isinstance(value, list):
        raise DataError(f"{where}: {key} is {_named(value)}, where a list of {kinds[kind]} is needed")
    for i, entry in enumerate(value):
        if not isinstance(entry, kind):
            raise DataError(f"{where}: {key}[{i}] is {_named(entry)}, where a list of {kinds[kind]} is needed")
    return value


def tags(value: Any, key: str, where: str) -> tuple[str, ...]:
    """What stands under `key`, if it is a list of texts, or null: none. Raises DataError naming row and key."""
    return () if value is None else tuple(items(value, key, where))


def number(value: Any, key: str, where: str) -> float:
    """What stands under `key`, if it is a number. Raises DataError naming row and key."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise DataError(f"{where}: {key} is {_named(value)}, where a number is needed, at most {_LARGEST:g}")
    return float(value)


def content_text(value: Any, key: str, where: str) -> str:
    """A message's content: text, or a list of text parts, joined by line ends as vLLM does.

    Raises DataError naming row and key, as for a part that is a picture or null.
    """
    if not isinstance(value, list):
        return text(value, key, where)
    parts = items(value, key, where, dict)
    for i, part in enumerate(parts):
        if part.get("type") != "text":
            raise DataError(f"{where}: {key}[{i}] has the type {part.get('type')!r}, where only text can be read")
    texts = [text(part.get("text"), f"{key}[{i}].text", where) for i, part in enumerate(parts)]
    return text("\n".join(texts), key, where)


def conversation(value: Any, key: str, where: str) -> list[Message]:
    """A list of messages that ends with the user's. Raises DataError naming row and key."""
    turns = []
    for i, turn in enumerate(items(value, key, where, dict)):
        if turn.get("role") not in ROLES:
            raise DataError(f"{where}: {key}[{i}].role is {_named(turn.get('role'))}; allowed are {', '.join(ROLES)}")
        turns.append(
            Message(role=turn["role"], content=content_text(turn.get("content"), f"{key}[{i}].content", where))
        )
    if not turns or turns[-1]["role"] != "user":
        raise DataError(f"{where}: {key} is a conversation that ends with the user's turn")
    return turns


def _named(value: Any) -> str:
    """A value as a message shows it: its kind, and the first of it."""
    if value is None:
        return "null or missing"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    shown = json.dumps(value)
    return f"{kinds.get(type(value), type(value).__name__)} ({shown if len(shown) <= 40 else shown[:40] + '...'})"


def settle_bad(source: object, bad: Sequence[DataError], good: int, skip: bool) -> None:
    """Raise for the bad rows of a file, or with `skip` print them and note them in the open run.

    Raises BadRowsError naming the first of them and how many there are; with `skip` if none is good.
    """
    if not bad:
        return
    more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    which = f"{len(bad)} of {good + len(bad)} rows can't be used: {'; '.join(map(str, bad[:_SHOWN]))}{more}"
    if skip and good:
        print(f"skipped: {which}", flush=True)
        if run := tracking.current():
            run.update_config(skipped_rows={"source": masked(source), "skipped": len(bad), "read": good})
        return
    message = which if skip or not good else f"{which} (skip_bad_rows=True leaves them out)"
    raise BadRowsError(message, bad, good)
