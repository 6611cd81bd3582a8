"""A notebook's parameters: read from its tagged cell, checked before any kernel starts, filled in from a preset.

papermill only warns of an unknown name, so a misspelt parameter would run the default. Here the tagged cell is the
declaration: the annotation (or the default's type) is the type, and the comment above a name may hold
`one of: a, b, c` (to the end of its line, and on where that is a comma), the same with `each of:` for a list whose
items are of these, or `at least N`; `the rows of NAME` stands for the keys of the dict of that name in a cell below,
so that a method is named once. Values are literals: nothing is executed to read them. What is None takes the value
that notebooks/presets.yaml has for it under the notebook's name and `preset`.
"""

from __future__ import annotations

import ast
import difflib
import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from cat_lib.runs import places

_TYPES = ("int", "float", "str", "bool", "list", "dict")  # and None beside them
_CHOICES = re.compile(r"(one|each) of: ((?:.*,\n)*.+)")
_ROWS = re.compile(r"the rows of (\w+)")
_AT_LEAST = re.compile(r"at least (-?[0-9.]*[0-9])")


class ParameterError(ValueError):
    """A parameter, or a notebook's declaration of them, that cannot be used."""


@dataclass(frozen=True)
class Parameter:
    """One declared name: its default, the types it takes, and what its comment says."""

    name: str
    default: Any
    types: tuple[str, ...]
    help: str

    @property
    def _adapter(self) -> TypeAdapter[Any]:
        kind: Any = " | ".join(self.types)  # pydantic reads a type by its name
        return TypeAdapter(kind)

    def check(self, value: Any) -> Any:
        """The value, an int widened to float where declared so. Raises ParameterError naming what is allowed."""
        try:
            taken = self._adapter.validate_python(value, strict=True)
        except ValidationError:
            kind = type(value).__name__
            raise ParameterError(f"{self.name}={value!r:.80} is {kind}; allowed is {' or '.join(self.types)}") from None
        try:
            json.dumps(taken, allow_nan=False, default=str, skipkeys=True)
        except ValueError as error:
            finite = "is a finite number; nan and infinity are none"
            needed = "are plain values, and no list in itself" if "Circular" in str(error) else finite
            raise ParameterError(f"{self.name}={value!r}: allowed {needed}") from None
        if taken is None:
            return None
        if choices := _CHOICES.search(self.help):
            each, allowed = choices[1] == "each", [c.strip() for c in choices[2].split(",")]
            items = list(map(str, taken)) if each else [str(taken)]
            if not items or not set(items) <= set(allowed) or len(set(items)) < len(items):
                hint = next((nearest(item, allowed) for item in items if item not in allowed), "")
                what = "at least one, each once, of" if each else "one of"
                raise ParameterError(f"{self.name}={taken!r}: allowed is {what} {', '.join(allowed)}{hint}")
        if (least := _AT_LEAST.search(self.help)) and taken < float(least[1]):
            raise ParameterError(f"{self.name}={taken!r}: allowed is {least[1]} or more")
        return taken

    def parse(self, text: str) -> Any:
        """A value typed on the command line, read as this parameter's type. Raises ParameterError if it is not."""
        if text == "None" and "None" in self.types:
            return None
        for read in (self._adapter.validate_strings, self._adapter.validate_json):
            with suppress(ValidationError):
                return read(text)
        raise ParameterError(f"{self.name}={text!r}: allowed is {' or '.join(self.types)}")


class Parameters:
    """What takes effect in a run, by name: `p.task`. `given` are the cell's own values; `dict(p)` is what takes effect.

    A parameter that is found out later, as the sampling that a model's family asks for, is written into `values`.
    """

    def __init__(self, given: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        self.given, self.values = dict(given), dict(values)

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("values", {})  # not there yet while a copy is made
        if name not in values:
            raise AttributeError(f"no parameter {name!r}{nearest(name, values)}")
        return values[name]

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self.values.items())


def of(notebook: str, scope: Mapping[str, Any]) -> Parameters:
    """The parameters of `notebook` (its name in notebooks/) as they are in `scope`, its `globals()`, and its preset's.

    Raises ParameterError for a value that its cell does not allow and a preset that is none: by hand, too.
    """
    known = declared(places.NOTEBOOKS / f"{notebook}.ipynb")
    return effective(notebook, {name: parameter.check(scope[name]) for name, parameter in known.items()})


def effective(notebook: str, given: Mapping[str, Any]) -> Parameters:
    """`given` with each None filled from the preset that `given["preset"]` names: explicit values win."""
    known = presets().get(notebook, {})
    if known and given["preset"] not in known:
        raise ParameterError(f"preset={given['preset']!r}: allowed is one of {', '.join(known)}")
    preset = known[given["preset"]] if known else {}
    return Parameters(given, {name: preset.get(name) if value is None else value for name, value in given.items()})


@functools.cache
def presets() -> dict[str, dict[str, dict[str, Any]]]:
    """notebooks/presets.yaml: notebook to preset to parameter to value."""
    content = yaml.safe_load((places.NOTEBOOKS / "presets.yaml").read_text("utf-8"))
    return {name: entry for name, entry in content.items() if not name.startswith(".")}  # what several share


def declared(notebook: Path) -> dict[str, Parameter]:
    """The parameters of a notebook by name.

    Raises ParameterError if it is none, is in another language than Python, or has not exactly one tagged cell.
    """
    try:  # nbformat, a second to import, would say no more of it
        content = json.loads(notebook.read_text("utf-8"))
        if content["nbformat"] != 4:
            raise ValueError(f"its nbformat is {content['nbformat']}; allowed is 4")
        about, code = content["metadata"], [cell for cell in content["cells"] if cell["cell_type"] == "code"]
        languages = {about.get("kernelspec", {}).get("language"), about.get("language_info", {}).get("name")}
        tagged = ["".join(cell["source"]) for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    except FileNotFoundError:
        hint = nearest(str(notebook), map(str, notebook.parent.glob("*.ipynb")))
        raise ParameterError(f"no notebook {notebook}{hint}") from None
    except Exception as error:  # a file of anything raises several kinds
        raise ParameterError(f"{notebook} is no notebook: {' '.join(str(error).split())[:200]}") from error
    if other := languages - {None, "", "python", "ipython"}:
        raise ParameterError(f"{notebook} is in {', '.join(map(str, other))}; allowed is Python, which cat_lib is in")
    if len(tagged) != 1:
        raise ParameterError(f"{notebook} has {len(tagged)} cells tagged 'parameters'; it needs exactly one")
    return _read(tagged[0], notebook, ["".join(cell["source"]) for cell in code])


def resolve(notebook: Path, given: Mapping[str, Any], typed: bool = True) -> dict[str, Any]:
    """All parameters of a notebook, `given` over defaults. `typed=False`: values are text from a command line.

    Raises ParameterError for an unknown name, naming the nearest, a wrong type, or a value that is not allowed.
    """
    known = declared(notebook)
    for name in given:
        if name not in known:
            hint = nearest(name, known) or f"; known are {', '.join(known)}"
            raise ParameterError(f"unknown parameter {name!r} of {notebook.name}{hint}")
    if not typed:
        given = {name: known[name].parse(text) for name, text in given.items()}
    return {name: parameter.check(given.get(name, parameter.default)) for name, parameter in known.items()}


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at what was meant, to be put behind what was written; empty if nothing is near."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _rows(name: str, cells: Sequence[str], notebook: Path) -> str:
    """The keys of the dict `name = {...}` of a notebook's cells."""
    for cell in cells:
        with suppress(SyntaxError):  # a line that only IPython reads
            for node in ast.parse(cell).body:
                match node:
                    case ast.Assign([ast.Name(id)], ast.Dict([_, *_] as keys)) if id == name:
                        return ", ".join(str(key.value) for key in keys if isinstance(key, ast.Constant))
    raise ParameterError(f"{notebook}: a parameter takes the rows of {name}, and no cell has the dict {name} = {{...}}")


def _read(source: str, notebook: Path, cells: Sequence[str]) -> dict[str, Parameter]:
    lines, found = source.splitlines(), dict[str, Parameter]()
    try:
        nodes = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        shown = lines[line - 1].strip()[:60] if line <= len(lines) else ""
        raise ParameterError(
            f"{notebook}: line {line} of the parameters cell is no Python ({shown}); leave plain assignments in it, "
            "and put all else into a cell below"
        ) from None
    for node in nodes:
        match node:
            case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), value=ast.expr() as value):
                annotation = getattr(node, "annotation", None)
            case _:
                raise ParameterError(f"{notebook}: line {node.lineno} of the parameters cell is no plain assignment")
        try:
            default = ast.literal_eval(value)
        except (ValueError, TypeError, RecursionError, MemoryError):
            raise ParameterError(f"{notebook}: parameter {name!r} is no literal value") from None
        written = ast.unparse(annotation) if annotation else type(default).__name__
        types = tuple(t.strip() for t in written.replace("NoneType", "None").split("|"))
        if unknown := [t for t in types if t not in (*_TYPES, "None")]:
            raise ParameterError(f"{notebook}: parameter {name!r} has the type {unknown[0]}; use {', '.join(_TYPES)}")
        start = end = node.lineno - 1
        while start and lines[start - 1].lstrip().startswith("#"):
            start -= 1
        comment = "\n".join(line.lstrip("# ") for line in lines[start:end])
        comment = _ROWS.sub(lambda rows: _rows(rows[1], cells, notebook), comment)
        found[name] = Parameter(name, default, types, comment)
    return found
