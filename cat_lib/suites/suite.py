"""A suite: a YAML file that lists notebooks with parameters, grids and seeds, checked whole before anything starts.

    suite: name                     # the file's name, if left out
    parameters: {preset: smoke}     # of every entry
    entries:
      - notebook: 00_quickstart     # in notebooks/, or a path from the suite's file
        name: base                  # the notebook's name, if left out
        parameters: {steps: 4}
        grid: {estimator: [majority, synthesis]}
        seeds: [0, 1, 2]            # sets `seed`, or a list `seeds` of one

An entry is expanded to one run for each combination of its grid and seeds. A run's folder is named by suite, entry and
a digest of its parameters and code: the same again is found again, and nothing else ever is.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cat_lib.runs import places
from cat_lib.runs.folder import read_config
from cat_lib.runs.parameters import ParameterError, declared, nearest, resolve
from cat_lib.runs.provenance import code_version
from cat_lib.runs.runner import differences

_LARGEST = 1_000_000  # bytes of a suite's file
_Values = Annotated[list[Any], Field(min_length=1)]


class SuiteError(ValueError):
    """A suite that can't be run as it stands; one line for each thing that is wrong."""


class _Written(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @classmethod
    def of(cls, content: Any) -> Self:
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise SuiteError("\n".join(_wrong(found, cls.model_fields) for found in error.errors())) from None


class _SuiteFile(_Written):
    """What a suite's file may hold."""

    suite: str = ""
    parameters: dict[str, Any] = {}
    entries: list[Any] = []  # of _EntryWritten, each read by itself, so that all that is wrong is said


class _EntryWritten(_Written):
    notebook: str
    name: str = ""
    parameters: dict[str, Any] = {}
    grid: dict[str, _Values] = {}
    seeds: _Values | None = None


@dataclass(frozen=True)
class Entry:
    """One run of a suite. `given` is what the suite sets, `parameters` all of the notebook's."""

    name: str
    notebook: Path
    given: dict[str, Any]
    parameters: dict[str, Any]
    code: str
    folder: Path

    @property
    def status(self) -> str:
        """FINISHED, FAILED, KILLED, RUNNING, or "missing": as its folder says."""
        return str(read_config(self.folder).get("status", "missing"))

    def changed(self) -> str:
        """What this entry, which has no folder yet, has that its newest earlier run had not; nothing without one."""
        stem = self.folder.name[:-9]  # less the digest
        others = [p for p in self.folder.parent.glob(f"{stem}-????????") if read_config(p)]
        if not others:
            return ""
        newest = max(others, key=lambda p: (p / "config.json").stat().st_mtime)
        keys = [f"{k}: {then!r} -> {now!r}" for k, (then, now) in differences(newest, self.parameters).items()]
        if read_config(newest).get("code") != self.code:
            keys.append(f"code: {read_config(newest).get('code')} -> {self.code}")
        return "; ".join(keys)


@dataclass(frozen=True)
class Suite:
    """A suite's name, its file and its runs."""

    name: str
    file: Path
    entries: tuple[Entry, ...]

    @property
    def folder(self) -> Path:
        return places.ROOT / "results" / "suites" / self.name

    def only(self, pattern: str) -> tuple[Entry, ...]:
        """Entries whose name matches a shell pattern, or holds it as a part. Raises SuiteError if there are none."""
        glob = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
        found = tuple(e for e in self.entries if fnmatch.fnmatchcase(e.name, glob))
        if not found:
            names = [e.name for e in self.entries]
            shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
            raise SuiteError(f"--only {pattern!r} matches no entry{nearest(pattern, names)}; there are {shown}")
        return found


def load_suite(file: Path, limit: int = 500) -> Suite:
    """Read, expand and check a suite. Raises SuiteError with all that is wrong."""
    written = _SuiteFile.of(_read(file))
    if not written.entries:
        raise SuiteError(f"{file} has no entries; write at least one: entries: [{{notebook: 00_quickstart}}]")
    name = written.suite or file.stem
    if not re.fullmatch(r"\w[\w.-]{,59}", name):
        allowed = "letters, digits, '_', then also '-' and '.', 60 at most"
        raise SuiteError(f"suite: {name!r} names a folder; allowed are {allowed}")
    read, wrong, entries = dict[int, _EntryWritten](), dict[int, str](), list[Entry]()
    for i, raw in enumerate(written.entries, 1):
        try:
            read[i] = _EntryWritten.of(raw)
        except SuiteError as error:
            wrong[i] = str(error)
    # counted without being made
    total = sum(math.prod(map(len, [*entry.grid.values(), entry.seeds or [None]])) for entry in read.values())
    if total > limit:
        advice = f"narrow its grids, or raise it: --limit {total}"
        raise SuiteError(f"{file} makes {total} runs; allowed are {limit}: {advice}")
    for i, entry in read.items():
        try:
            entries += _expand(entry, written.parameters, name, file)
        except (SuiteError, ParameterError) as error:
            wrong[i] = str(error)
    lines = [f"entry {i}: {line}" for i in sorted(wrong) for line in wrong[i].split("\n")] + list(_twice(entries))
    if lines:
        raise SuiteError("\n".join(lines[:30] + ([f"... and {len(lines) - 30} more"] if len(lines) > 30 else [])))
    return Suite(name, file, tuple(entries))


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML ships no types
    """YAML's safe loader, which would take the last of two equal keys and say nothing."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := {str(k) for k in keys if keys.count(k) > 1}:
            raise yaml.MarkedYAMLError(problem=f"{', '.join(sorted(twice))} stands twice", problem_mark=node.start_mark)
        return dict(super().construct_mapping(node, deep))


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _LARGEST:
            raise SuiteError(f"{file} has {file.stat().st_size} bytes; a suite has {_LARGEST} at most")
        content = yaml.load(file.read_text(), _Loader)
    except FileNotFoundError:
        there = sorted(file.parent.glob("*.y*ml")) if file.parent.is_dir() else []
        raise SuiteError(f"no suite {file}; there are {', '.join(map(str, there)) or 'none in its folder'}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise SuiteError(f"{file} can't be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise SuiteError(f"{file} holds {type(content).__name__}; a suite is a mapping with the key 'entries'")
    return content


def _wrong(found: Any, known: Iterable[str]) -> str:
    """One of pydantic's errors, in a line."""
    *_, key = found["loc"] or ("",)
    where, value = ": ".join(map(str, found["loc"])), found["input"]
    if found["type"] in ("model_type", "missing"):
        return f"{value!r} is no entry: it needs a notebook, as in {{notebook: 00_quickstart}}"
    if found["type"] in ("extra_forbidden", "invalid_key"):
        return f"unknown key {key!r}{nearest(str(key), known)}; known are {', '.join(known)}"
    if found["type"] == "too_short":
        return f"{where}: [] is no list of values, and makes no run; leave it out, or give at least one: {key}: [0]"
    if found["type"] == "list_type":
        return f"{where}: {value!r} is no list of values; write {key}: [{value!r}]"
    return f"{where}: {value!r} is {type(value).__name__}: {found['msg'].lower()}"


def _expand(entry: _EntryWritten, shared: Mapping[str, Any], suite: str, file: Path) -> Iterator[Entry]:
    path = (file.parent / entry.notebook).resolve()
    notebook = path if path.exists() else places.NOTEBOOKS / f"{entry.notebook.removesuffix('.ipynb')}.ipynb"
    known, code = declared(notebook), code_version(notebook)
    fixed, seeds = {**shared, **entry.parameters}, dict[str, list[Any]]()
    if entry.seeds:
        seeds = {"seed": entry.seeds} if "seed" in known else {"seeds": [[s] for s in entry.seeds]}
        if not seeds.keys() & known:
            raise SuiteError(f"{notebook.name} has no parameter 'seed'; leave out seeds")
    if both := [key for key, n in Counter([*fixed, *entry.grid, *seeds]).items() if n > 1]:
        raise SuiteError(f"{', '.join(both)} stands in two of parameters, grid and seeds; leave out one")
    axes, wrong = entry.grid | seeds, dict[str, None]()
    for values in itertools.product(*axes.values()):
        varied = dict(zip(axes, values, strict=True))
        try:
            given = {k: _typed(known.get(k), v) for k, v in {**fixed, **varied}.items()}
            parameters = resolve(notebook, given)
            whole = json.dumps([parameters, code], sort_keys=True)
        except ParameterError as error:
            wrong[str(error)] = None
            continue
        except (TypeError, RecursionError) as error:
            wrong[f"parameters must be plain values ({error}): no date, and no list in itself"] = None
            continue
        words = [f"{k}={varied[k][0] if k == 'seeds' else parameters[k]}" for k in varied]
        name = " ".join([entry.name or notebook.stem, *words])
        part, digest = re.sub(r"[^0-9A-Za-z._=-]+", "_", name)[:80], hashlib.sha256(whole.encode()).hexdigest()[:8]
        folder = places.RUNS / notebook.stem / f"{suite}-{part}-{digest}"
        yield Entry(name, notebook, given, parameters, code, folder)
    if wrong:
        raise SuiteError("\n".join(wrong))


def _typed(parameter: Any, value: Any) -> Any:
    """YAML reads 1e-4 as text; a parameter that takes no text reads it as what it takes."""
    return parameter.parse(value) if parameter and isinstance(value, str) and "str" not in parameter.types else value


def _twice(entries: Iterable[Entry]) -> Iterator[str]:
    """Entries that would be the same run, and different ones of one name."""
    runs, names = dict[tuple[Path, str], Entry](), dict[str, Entry]()
    for entry in entries:
        same = runs.setdefault((entry.notebook, entry.folder.name[-8:]), entry)
        if same is not entry:
            yield f"{entry.name!r} is the same run as {same.name!r}: same notebook, same parameters; leave out one"
        elif names.setdefault(entry.name, entry) is not entry:
            yield f"two entries are called {entry.name!r}; give one a name of its own: name: ..."
