"""Rows of other people's files, read strictly: nothing is guessed, and nothing is turned into text in silence.

`read_rows` makes something of each row of a file, and `settle` decides what becomes of it. A row that can't be used is
refused with its place, the key and the reason; `skip_bad_rows` of a loader leaves such rows out and says how many.
"""

from __future__ import annotations

import hashlib
import json
import math
import urllib.request
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from cat_lib.files import cache_folder
from cat_lib.schema import Example, Message
from cat_lib.shown import masked

ROLES = ("system", "user", "assistant")
NAMED, _SHOWN = 20, 5  # bad rows that a list names, and that one message does
_LARGEST = 1e9  # points of a criterion
_DEEPEST, _TOO_DEEP = 500, "no JSON (lists in lists, too deep to read)"

_Made = TypeVar("_Made")
Make = Callable[[Any, str], _Made]  # of a row, an object with keys, and its place; raises DataError
Placed = list[tuple[str, _Made]]  # the place is "file:line" or "id, row n"
Bad = list["DataError"]


class DataError(ValueError):
    """A data file that cannot be had, or a row that cannot be used."""


def local_file(source: str, others: str = "a hub id") -> Path:
    """The file of a path, or of an address, fetched once into the cache folder.

    Raises DataError if it can't be had; `others` are what could be given beside a file and an address.
    """
    if source.startswith(("http://", "https://")):
        name = hashlib.sha256(source.encode()).hexdigest()[:16]
        path = cache_folder() / "data" / f"{name}.json{'' if urlsplit(source).path.endswith('.json') else 'l'}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            try:
                with urllib.request.urlopen(source, timeout=60) as reply:
                    partial.write_bytes(reply.read())
            except (OSError, HTTPException) as error:
                raise DataError(f"{masked(source)} can't be fetched ({masked(error)}); give a local file") from None
            partial.replace(path)
        return path
    if not Path(source).is_file():
        raise DataError(f"no file {masked(source)}; give a local .jsonl or .json file, a URL, or {others}")
    return Path(source)


def read_rows(path: Path, make: Make[_Made], bad: Bad | None = None) -> Placed[_Made]:
    """What `make` makes of each row and its place, of JSON Lines or a .json file with a list; and the places.

    A BOM at the beginning of a line is none of it. Refused, like what `make` refuses, is a row that is no object or
    holds what JSON's standard has not (NaN and infinite numbers, a key twice, half a surrogate pair): into `bad`, or
    by a DataError where that is not given. Raises DataError for a .json file without one list, too.
    """
    raw, found = path.read_bytes(), list[tuple[str, Any]]()
    if path.suffix == ".json":
        content = _json(raw if raw.removeprefix(BOM_UTF8).strip() else b"[]", str(path))
        values = content.values() if isinstance(content, dict) else [content]
        lists = [value for value in values if isinstance(value, list)]
        if len(lists) != 1:
            raise DataError(
                f"{path}: {len(lists)} lists of rows, where one is needed: a list, or an object with one list"
            )
        found = [(f"{path}, row {number}", row) for number, row in enumerate(lists[0], 1)]
    else:  # a text may hold other kinds of line end
        lines = enumerate(raw.split(b"\n"), 1)
        found = [(f"{path}:{number}", line) for number, line in lines if line.removeprefix(BOM_UTF8).strip()]
    return usable(found, lambda given, where: make(_object(given, where), where), bad)


def usable(found: Iterable[tuple[str, Any]], make: Make[_Made], bad: Bad | None) -> Placed[_Made]:
    """As `read_rows`, of rows that came another way."""
    made = []
    for where, given in found:
        try:
            made.append((where, make(given, where)))
        except DataError as error:
            if bad is None:
                raise
            bad.append(error)
    return made


def settle(source: object, found: Placed[Example], bad: Bad, skip: bool) -> tuple[list[Example], dict[str, Any]]:
    """The examples of a file, each with an id of its own, and what was skipped (see `Task.skipped`).

    With `skip`, rows that can't be used are printed and left out. Raises DataError naming the first of them and how
    many there are, with `skip` if no other is left; and for a file without rows.
    """
    kept: dict[str, tuple[str, Example]] = {}
    for where, example in found:
        if example.id in kept:
            first = kept[example.id][0]
            bad.append(DataError(f"{where}: id {example.id!r} stands at {first} already; each question needs its own"))
        else:
            kept[example.id] = where, example
    examples, why = [example for _, example in kept.values()], [masked(error) for error in bad]
    if not examples and not bad:
        raise DataError(f"{masked(source)}: no rows; give a file with a question in each row")
    if not bad:
        return examples, {}
    more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    which = f"{len(bad)} of {len(examples) + len(bad)} rows can't be used: {'; '.join(why[:_SHOWN])}{more}"
    if not (skip and examples):
        raise DataError(which + (" (skip_bad_rows=True leaves them out)" if examples else ""))
    print(f"skipped: {which}", flush=True)
    return examples, {"source": masked(source), "skipped": len(bad), "read": len(examples), "why": why[:NAMED]}


def take(
    parts: Mapping[str, Sequence[Example]], split: str, n: int | None, advice: str = "give more data"
) -> list[Example]:
    """The first n questions of a split, or all. Raises ValueError if there is no such split, or it has fewer."""
    if split not in parts:
        raise ValueError(f"split={split!r}: allowed are {', '.join(parts)}")
    if not (pool := parts[split]):
        raise ValueError(f"the {split} split of {sum(map(len, parts.values()))} questions is empty; {advice}")
    if n is not None and not 1 <= n <= len(pool):
        raise ValueError(f"n={n}: the {split} split has {len(pool)} questions; ask for 1 to {len(pool)}")
    return list(pool[:n])


def _json(raw: bytes, where: str) -> Any:
    """JSON as the standard has it, with or without a BOM. Raises DataError beginning with `where`."""
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_once)
    except RecursionError:
        raise DataError(f"{where}: {_TOO_DEEP}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: no JSON, as it is no UTF-8 ({error}); save the file as UTF-8") from None
    except ValueError as error:
        raise DataError(f"{where}: no JSON ({error})") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return found


def _object(given: Any, where: str) -> dict[str, Any]:
    """A row, of its line or as it was read. Raises DataError if it is no object, or what is in it can't be used."""
    row = _json(given, where) if isinstance(given, bytes) else given
    left = [("", row, 0)]
    for key, value, depth in left:  # which grows
        if depth > _DEEPEST:
            raise DataError(f"{where}: {_TOO_DEEP}")
        if isinstance(value, dict):
            left += [(key, name, depth) for name in value]
            left += [(f"{key}.{name}" if key else name, inner, depth + 1) for name, inner in value.items()]
        elif isinstance(value, list):
            left += [(f"{key}[{i}]", inner, depth + 1) for i, inner in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            raise DataError(f"{where}: {key or 'it'} is {value}, where a finite number is needed")
        elif isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise DataError(f"{where}: {key or 'a key'} holds half of a surrogate pair, which is no text")
    if not isinstance(row, dict):
        raise DataError(f"{where}: a {type(row).__name__}, where an object is needed")
    return row


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
