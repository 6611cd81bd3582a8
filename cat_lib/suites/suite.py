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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cat_lib.runs import places
from cat_lib.runs.folder import read_config
from cat_lib.runs.parameters import ParameterError, declared, nearest, resolve
from cat_lib.runs.provenance import code_version

LIMIT = 500  # runs in a suite, unless raised
_LARGEST = 1_000_000  # bytes of a suite's file


class SuiteError(ValueError):
    """A suite that can't be run as it stands; one line for each thing that is wrong."""


class _Written(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _SuiteFile(_Written):
    """What a suite's file may hold."""

    suite: str = ""
    parameters: dict[str, Any] = {}
    entries: list[Any] = []  # of _EntryWritten, each read by itself, so that all that is wrong is said


class _EntryWritten(_Written):
    notebook: str
    name: str = ""
    parameters: dict[str, Any] = {}
    grid: dict[str, Any] = {}
    seeds: list[Any] | None = None

    @property
    def runs(self) -> int:
        """How many this entry makes, without making them."""
        sizes = [len(v) for v in self.grid.values() if isinstance(v, list)]
        return math.prod(sizes) * (1 if self.seeds is None else len(self.seeds))


_Kind = TypeVar("_Kind", bound=_Written)


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
        """What this entry has that its newest earlier run had not; nothing if there was none, or it is the same."""
        stem = self.folder.name[:-9]  # less the digest
        others = [p for p in self.folder.parent.glob(f"{stem}-????????") if p != self.folder and read_config(p)]
        if not others or read_config(self.folder):
            return ""
        from cat_lib.runs.runner import differences

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


def load_suite(file: Path, limit: int = LIMIT, runs: Path | None = None) -> Suite:
    """Read, expand and check a suite. Raises SuiteError with all that is wrong."""
    written = _parse(_SuiteFile, _read(file), "the suite")
    if not written.entries:
        raise SuiteError(f"{file} has no entries; write at least one: entries: [{{notebook: 00_quickstart}}]")
    name = written.suite or file.stem
    if not re.fullmatch(r"\w[\w.-]{,59}", name):
        raise SuiteError(
            f"suite: {name!r} names a folder; allowed are letters, digits, '_', then also '-' and '.', 60 at most"
        )
    read, wrong = list[tuple[int, _EntryWritten]](), list[tuple[int, str]]()
    for i, raw in enumerate(written.entries, 1):
        try:
            read.append((i, _entry(raw)))
        except SuiteError as error:
            wrong.append((i, str(error)))
    if (total := sum(entry.runs for _, entry in read)) > limit:
        raise SuiteError(
            f"{file} makes {total} runs; allowed are {limit}: narrow its grids, or raise it: --limit {total}"
        )
    entries = list[Entry]()
    for i, entry in read:
        try:
            entries += _expand(entry, written.parameters, name, file, runs or places.RUNS)
        except (SuiteError, ParameterError) as error:
            wrong += [(i, line) for line in str(error).split("\n")]
    lines = [f"entry {i}: {line}" for i, line in sorted(wrong)] + _twice(entries)
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


def _parse(kind: type[_Kind], content: Mapping[Any, Any], what: str) -> _Kind:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
    key, known = first["loc"][0], kind.model_fields
    if first["type"] in ("extra_forbidden", "invalid_key"):
        raise SuiteError(f"{what} has the unknown key {key!r}{nearest(str(key), known)}; known are {', '.join(known)}")
    needed = {"string_type": "str", "dict_type": "dict", "list_type": "list"}.get(first["type"], first["msg"])
    raise SuiteError(f"{key}: {content[key]!r} is {type(content[key]).__name__}; allowed is {needed}")


def _entry(raw: Any) -> _EntryWritten:
    if not isinstance(raw, dict) or "notebook" not in raw:
        raise SuiteError(f"{raw!r} is no entry: it needs a notebook, as in {{notebook: 00_quickstart}}")
    return _parse(_EntryWritten, raw, "it")


def _expand(entry: _EntryWritten, shared: Mapping[str, Any], suite: str, file: Path, runs: Path) -> Iterator[Entry]:
    notebook = _notebook(entry.notebook, file)
    known, code = declared(notebook), code_version(notebook)
    axes: dict[str, list[Any]] = {}
    for key, values in entry.grid.items():
        if not isinstance(values, list) or not values:
            raise SuiteError(f"grid: {key}: {values!r} is no list of values; write {key}: [{values!r}]")
        axes[key] = values
    if entry.seeds is not None:
        if not entry.seeds:
            raise SuiteError("seeds: [] makes no run; leave it out, or give at least one, e.g. seeds: [0]")
        seeded = next((k for k in ("seed", "seeds") if k in known), None)
        if not seeded:
            raise SuiteError(f"{notebook.name} has no parameter 'seed'; leave out seeds")
        axes[seeded] = [s if seeded == "seed" else [s] for s in entry.seeds]
    fixed = {**shared, **entry.parameters}
    if both := sorted(fixed.keys() & axes.keys()):
        raise SuiteError(f"{', '.join(both)} stands both among the parameters and in the grid or seeds; leave out one")
    wrong = set[str]()
    for values in itertools.product(*axes.values()):
        varied = dict(zip(axes, values, strict=True))
        try:
            given = {k: _typed(known.get(k), v) for k, v in {**fixed, **varied}.items()}
            parameters = resolve(notebook, given)
            _plain(parameters)
        except (ParameterError, SuiteError) as error:
            wrong.add(str(error))
            continue
        words = [f"{k}={varied[k][0] if k == 'seeds' else parameters[k]}" for k in varied]
        name = " ".join([entry.name or notebook.stem, *words])
        yield Entry(
            name, notebook, given, parameters, code, runs / notebook.stem / _folder(suite, name, parameters, code)
        )
    if wrong:
        raise SuiteError("\n".join(sorted(wrong)))


def _notebook(name: str, file: Path) -> Path:
    """A path from the suite's file, or a name in notebooks/."""
    path = (file.parent / name).resolve()
    return path if path.exists() else places.NOTEBOOKS / f"{name.removesuffix('.ipynb')}.ipynb"


def _typed(parameter: Any, value: Any) -> Any:
    """YAML reads 1e-4 as text; a parameter that takes no text reads it as what it takes."""
    return parameter.parse(value) if parameter and isinstance(value, str) and "str" not in parameter.types else value


def _plain(parameters: Mapping[str, Any]) -> None:
    try:
        json.dumps(parameters, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SuiteError(f"parameters must be plain values ({error}): a date or .nan has no place among them") from None


def _folder(suite: str, name: str, parameters: Mapping[str, Any], code: str) -> str:
    digest = hashlib.sha256(json.dumps([parameters, code], sort_keys=True).encode()).hexdigest()[:8]
    return f"{suite}-{re.sub(r'[^0-9A-Za-z._=-]+', '_', name)[:80]}-{digest}"


def _twice(entries: list[Entry]) -> list[str]:
    """Entries that would be the same run, and different ones of one name."""
    runs, names, wrong = dict[str, str](), set[str](), list[str]()
    for entry in entries:
        key = json.dumps([str(entry.notebook), entry.parameters], sort_keys=True)
        if key in runs:
            wrong.append(
                f"{entry.name!r} is the same run as {runs[key]!r}: same notebook, same parameters; leave out one"
            )
        elif entry.name in names:
            wrong.append(f"two entries are called {entry.name!r}; give one a name of its own: name: ...")
        runs.setdefault(key, entry.name)
        names.add(entry.name)
    return wrong
