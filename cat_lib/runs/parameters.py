"""A notebook's parameters: read from its tagged cell, checked before any kernel starts.

papermill only warns of an unknown name, so a misspelt parameter would run the default. Here the tagged cell is the
declaration: the annotation (or the default's type) is the type, and the comment above a name may hold
`one of: a, b, c` (to the end of its line) or `at least N`. Values are literals: nothing is executed to read them.
"""

from __future__ import annotations

import ast
import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TYPES: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}
_ONE_OF = re.compile(r"one of: (.+)")
_LARGEST = 1e308  # of what becomes a float
_AT_LEAST = re.compile(r"at least (-?[0-9.]+)")


class ParameterError(ValueError):
    """A parameter, or a notebook's declaration of them, that cannot be used."""


@dataclass(frozen=True)
class Parameter:
    """One declared name: its default, the types it takes, and what its comment says."""

    name: str
    default: Any
    types: tuple[str, ...]  # of _TYPES, or "None"
    help: str

    def check(self, value: Any) -> Any:
        """The value, an int widened to float where declared so. Raises ParameterError naming what is allowed."""
        kind = "None" if value is None else type(value).__name__
        if kind == "int" and "int" not in self.types and "float" in self.types and abs(value) < _LARGEST:
            value, kind = float(value), "float"
        if not _finite(value):
            raise ParameterError(f"{self.name}={value!r}: allowed is a finite number; nan and infinity are none")
        if kind not in self.types:
            raise ParameterError(f"{self.name}={value!r} is {kind}; allowed is {' or '.join(self.types)}")
        if value is None:
            return value
        if choices := _ONE_OF.search(self.help):
            allowed = [c.strip() for c in choices[1].split(",")]
            if str(value) not in allowed:
                hint = nearest(str(value), allowed)
                raise ParameterError(f"{self.name}={value!r}: allowed is one of {', '.join(allowed)}{hint}")
        if (least := _AT_LEAST.search(self.help)) and value < float(least[1].rstrip(".")):
            raise ParameterError(f"{self.name}={value!r}: allowed is {least[1].rstrip('.')} or more")
        return value

    def parse(self, text: str) -> Any:
        """A value typed on the command line, read as this parameter's type. Raises ParameterError if it is not."""
        if text == "None" and "None" in self.types:
            return None
        if "bool" in self.types and text.lower() in ("true", "false"):
            return text.lower() == "true"
        for kind in (k for k in ("int", "float") if k in self.types):
            try:
                return _TYPES[kind](text)
            except ValueError:
                continue
        if "str" in self.types:
            return text
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise ParameterError(f"{self.name}={text!r}: allowed is {' or '.join(self.types)}") from None


def declared(notebook: Path) -> dict[str, Parameter]:
    """The parameters of a notebook by name.

    Raises ParameterError if it is none, is in another language than Python, or has not exactly one tagged cell.
    """
    import nbformat  # here: a kernel that asks for presets alone has no use for it

    try:
        content = nbformat.read(notebook, as_version=4)
        cells, about = content.cells, content.metadata
        languages = {about.get("kernelspec", {}).get("language"), about.get("language_info", {}).get("name")}
    except FileNotFoundError:
        near = difflib.get_close_matches(notebook.stem, [p.stem for p in notebook.parent.glob("*.ipynb")], 1, 0.4)
        hint = f"; did you mean {notebook.parent / near[0]}.ipynb?" if near else ""
        raise ParameterError(f"no notebook {notebook}{hint}") from None
    except Exception as error:  # nbformat raises several kinds for a file that is no notebook
        raise ParameterError(f"{notebook} is no notebook: {' '.join(str(error).split())[:200]}") from error
    if other := languages - {None, "", "python", "ipython"}:
        raise ParameterError(f"{notebook} is in {', '.join(map(str, other))}; allowed is Python, which cat_lib is in")
    tagged = [c for c in cells if c.cell_type == "code" and "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ParameterError(f"{notebook} has {len(tagged)} cells tagged 'parameters'; it needs exactly one")
    return _read(tagged[0].source, notebook)


def resolve(notebook: Path, given: Mapping[str, Any], typed: bool = True) -> dict[str, Any]:
    """All parameters of a notebook, `given` over defaults. `typed=False`: values are text from a command line.

    Raises ParameterError for an unknown name, naming the nearest, a wrong type, or a value that is not allowed.
    """
    known = declared(notebook)
    for name in given:
        if name not in known:
            hint = nearest(name, known) or f"; known are {', '.join(known)}"
            raise ParameterError(f"unknown parameter {name!r} of {notebook.name}{hint}")
    values = {}
    for name, parameter in known.items():
        value = given.get(name, parameter.default)
        value = parameter.parse(value) if name in given and not typed else value
        values[name] = parameter.check(value)
    return values


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at what was meant, to be put behind what was written; empty if nothing is near."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def with_preset(presets: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with each None filled from the preset that `given["preset"]` names: explicit values win."""
    preset = presets[given["preset"]]
    return {name: preset.get(name) if value is None else value for name, value in given.items()}


def _finite(value: Any) -> bool:
    if isinstance(value, list | dict):
        return all(map(_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _read(source: str, notebook: Path) -> dict[str, Parameter]:
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
        target = node.targets[0] if isinstance(node, ast.Assign) and len(node.targets) == 1 else None
        target = node.target if isinstance(node, ast.AnnAssign) else target
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(target, ast.Name) or node.value is None:
            raise ParameterError(f"{notebook}: line {node.lineno} of the parameters cell is no plain assignment")
        try:
            default = ast.literal_eval(node.value)
        except (ValueError, TypeError, RecursionError, MemoryError):
            raise ParameterError(f"{notebook}: parameter {target.id!r} is no literal value") from None
        if isinstance(node, ast.AnnAssign):
            types = tuple(t.strip() for t in ast.unparse(node.annotation).split("|"))
        else:
            types = (type(default).__name__,)
        if unknown := [t for t in types if t not in _TYPES and t != "None"]:
            raise ParameterError(
                f"{notebook}: parameter {target.id!r} has the type {unknown[0]}; use {', '.join(_TYPES)}"
            )
        first = node.lineno - 1
        start = first
        while start and lines[start - 1].lstrip().startswith("#"):
            start -= 1
        found[target.id] = Parameter(
            target.id, default, types, "\n".join(line.lstrip("# ") for line in lines[start:first])
        )
    return found
