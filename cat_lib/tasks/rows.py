"""Rows of other people's files, read strictly: nothing is guessed, and nothing is turned into text in silence.

`usable` makes something of each row of a file, and `settle` decides what becomes of it. A row that can't be used is
refused with its place, the key and the reason; `skip_bad_rows` of a loader leaves such rows out and says how many.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import urllib.request
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import yaml

from cat_lib.files import cache_folder
from cat_lib.schema import Example, Message
from cat_lib.shown import masked

DATASETS = yaml.safe_load(Path(__file__).with_name("datasets.yaml").read_text("utf-8"))
ROLES = ("system", "user", "assistant")
NAMED, _SHOWN = 20, 5  # bad rows that a list names, and that one message does
_LARGEST = 1e9  # points of a criterion
_DEEPEST, _TOO_DEEP = 500, "lists in lists, too deep to read"
_HALF = re.compile("[\ud800-\udfff]")
_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}

_Made = TypeVar("_Made")
Bad = list["DataError"]


class DataError(ValueError):
    """A data file that cannot be had, or a row that cannot be used."""


@dataclass(frozen=True)
class Given:
    """What stands somewhere in a row. What it can't be read as is refused: a DataError with place, key and reason."""

    value: Any
    where: str  # "file:line" or "id, row n"
    key: str = ""  # the way to it in its row, as rubrics[0].points

    def __getitem__(self, key: str) -> Given:
        """What stands under a key of this object; None if nothing does."""
        return Given(self.value.get(key), self.where, f"{self.key}.{key}" if self.key else key)

    def inside(self) -> list[Given]:
        """What an object or a list holds, and keys. Refused is a number or a text that JSON's standard has not."""
        if isinstance(self.value, dict):
            return [Given(name, self.where, self.key or "a key") for name in self.value] + [self[k] for k in self.value]
        if isinstance(self.value, list):
            return [Given(entry, self.where, f"{self.key}[{i}]") for i, entry in enumerate(self.value)]
        if isinstance(self.value, float) and not math.isfinite(self.value):
            raise self.refused(f"is {self.value}, where a finite number is needed")
        if isinstance(self.value, str) and _HALF.search(self.value):
            raise self.refused("holds half of a surrogate pair, which is no text")
        return []

    def text(self) -> str:
        """Text that is not blank."""
        if not isinstance(self.value, str):
            raise self.refused(f"is {self.shown}, where text is needed")
        if not self.value.strip():
            raise self.refused("is empty")
        return self.value

    def number(self) -> float:
        """A number that is not huge."""
        if type(self.value) not in (int, float) or abs(self.value) > _LARGEST:
            raise self.refused(f"is {self.shown}, where a number is needed, at most {_LARGEST:g}")
        return float(self.value)

    def entries(self, kind: type = dict) -> list[Given]:
        """The entries of a list of objects, or of texts (`str`)."""
        needed = f"where a list of {'objects' if kind is dict else 'texts'} is needed"
        if not isinstance(self.value, list):
            raise self.refused(f"is {self.shown}, {needed}")
        for entry in (found := self.inside()):
            if not isinstance(entry.value, kind):
                raise entry.refused(f"is {entry.shown}, {needed}")
        return found

    def texts(self) -> tuple[str, ...]:
        """A list of texts, or null: none."""
        return () if self.value is None else tuple(entry.value for entry in self.entries(str))

    def content(self) -> str:
        """A message's content: text, or a list of text parts, joined by line ends as vLLM does."""
        if not isinstance(self.value, list):
            return self.text()
        for part in (parts := self.entries()):
            if part["type"].value != "text":
                raise part.refused(f"has the type {part['type'].value!r}, where only text can be read")
        return replace(self, value="\n".join(part["text"].text() for part in parts)).text()

    def conversation(self) -> list[Message]:
        """Messages of which the last is the user's."""
        turns = []
        for turn in self.entries():
            if (role := turn["role"]).value not in ROLES:
                raise role.refused(f"is {role.shown}; allowed are {', '.join(ROLES)}")
            turns.append(Message(role=role.value, content=turn["content"].content()))
        if not turns or turns[-1]["role"] != "user":
            raise self.refused("is a conversation that ends with the user's turn")
        return turns

    def refused(self, why: str) -> DataError:
        return DataError(f"{self.where}: {self.key} {why}")

    @property
    def shown(self) -> str:
        """The value's kind, and the first of it."""
        if self.value is None:
            return "null or missing"
        text, kind = json.dumps(self.value, default=str), type(self.value)
        return f"{_KINDS.get(kind, kind.__name__)} ({text if len(text) <= 40 else text[:40] + '...'})"


def local_file(source: str | Path, hub: Mapping[str, str] | None = None) -> Path:
    """The file of a path, of an address, fetched once into the cache folder, or of an id that `hub` knows the file of.

    Raises DataError if it can't be had.
    """
    source, others = str(source), f"one of {', '.join(hub)}" if hub else "a hub id"
    if hub and source in hub:
        try:
            from huggingface_hub import hf_hub_download

            return Path(hf_hub_download(source.rpartition(":")[0] or source, hub[source], repo_type="dataset"))
        except Exception as error:  # the hub raises a dozen unrelated types
            raise DataError(f"{source}: the hub can't be reached ({type(error).__name__}); give a local file") from None
    if source.startswith(("http://", "https://")):
        name = hashlib.sha256(source.encode()).hexdigest()[:16]
        path = cache_folder() / "data" / f"{name}.json{'' if urlsplit(source).path.endswith('.json') else 'l'}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}.partial")  # another process may fetch the same
            try:
                with urllib.request.urlopen(source, timeout=60) as reply:
                    partial.write_bytes(reply.read())
            except (OSError, HTTPException) as error:
                partial.unlink(missing_ok=True)
                raise DataError(f"{masked(source)} can't be fetched ({masked(error)}); give a local file") from None
            partial.replace(path)
        return path
    if not Path(source).is_file():
        raise DataError(f"no file {masked(source)}; give a local .jsonl or .json file, a URL, or {others}")
    return Path(source)


def file_rows(path: Path) -> list[Given]:
    """The rows of JSON Lines, not read yet, or of a .json file. Raises DataError for one without one list."""
    raw = path.read_bytes()
    if path.suffix != ".json":  # a text may hold other kinds of line end
        lines = enumerate(raw.split(b"\n"), 1)
        return [Given(line, f"{path}:{number}") for number, line in lines if line.removeprefix(BOM_UTF8).strip()]
    content = _json(raw if raw.removeprefix(BOM_UTF8).strip() else b"[]", str(path))
    lists = [v for v in (content.values() if isinstance(content, dict) else [content]) if isinstance(v, list)]
    if len(lists) != 1:
        raise DataError(f"{path}: {len(lists)} lists of rows, where one is needed: a list, or an object with one list")
    return [Given(row, f"{path}, row {number}") for number, row in enumerate(lists[0], 1)]


def usable(found: Iterable[Given], make: Callable[[Given], _Made], bad: Bad | None = None) -> list[tuple[str, _Made]]:
    """The place of each row that can be used, and what `make` makes of it.

    A BOM at the beginning of a line is none of it. Refused, like what `make` refuses, is a row that is no object or
    holds what JSON's standard has not (NaN and infinite numbers, a key twice, half a surrogate pair): into `bad`, or
    by a DataError where that is not given.
    """
    made = []
    for given in found:
        try:
            made.append((given.where, make(_object(given))))
        except DataError as error:
            if bad is None:
                raise
            bad.append(error)
    return made


def settle(
    source: object, found: Iterable[tuple[str, Example]], bad: Bad, skip: bool
) -> tuple[list[Example], dict[str, Any]]:
    """The examples of a file, each with an id of its own, and what was skipped (see `Task.skipped`).

    With `skip`, rows that can't be used are printed and left out. Raises DataError naming the first of them and how
    many there are, with `skip` if no other is left; and for a file without rows.
    """
    places, examples = dict[str, str](), list[Example]()
    for where, example in found:
        if (first := places.setdefault(example.id, where)) is where:
            examples.append(example)
        else:
            bad.append(DataError(f"{where}: id {example.id!r} stands at {first} already; each question needs its own"))
    if not examples and not bad:
        raise DataError(f"{masked(source)}: no rows; give a file with a question in each row")
    if not bad:
        return examples, {}
    why = [masked(error) for error in bad]
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
    except (RecursionError, ValueError) as error:
        why: object = _TOO_DEEP if isinstance(error, RecursionError) else error
        if isinstance(error, UnicodeDecodeError):
            why = f"it is no UTF-8: {error}; save the file as UTF-8"
        raise DataError(f"{where}: no JSON ({why})") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return found


def _object(given: Given) -> Given:
    """A row, of its line or as it was read. Raises DataError if it is no object, or what is in it can't be used."""
    row = Given(_json(given.value, given.where), given.where) if isinstance(given.value, bytes) else given
    if not isinstance(row.value, dict):
        raise DataError(f"{row.where}: a {type(row.value).__name__}, where an object is needed")
    level = [row]
    for _ in range(_DEEPEST):
        level = [inner for given in level for inner in given.inside()]
    if level:
        raise DataError(f"{row.where}: no JSON ({_TOO_DEEP})")
    return row
