"""The house of DESIGN: which room stands on which floor, who may call whom, and how large it all is.

Everything is read from the sources, and nothing is imported: imports inside functions, relative ones and those for
types alone count as any other. `pytest tests/unit/test_house.py -s` prints the figures.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

LINES = 14_720  # of Python in cat_lib, at most; the aim is 7,500 without engines
LONGEST = 300  # lines of a file, at most
FLOORS = (  # a room is a folder of cat_lib or a file in it; none calls one above
    {"__init__", "schema", "prompts", "ledger", "files", "shown"},
    {"models", "runs"},
    {"tasks"},
    {"method"},
    {"learning", "measuring"},
    {"suites"},
    {"doctor", "check", "train_entry", "__main__", "experiment"},
)
STRANGERS = {"models": {"runs"}, "runs": {"models"}, "learning": {"measuring"}, "measuring": {"learning"}} | {
    "suites": {"method", "learning", "measuring"}
}
ENGINES = {"torch", "LocalModel", "EndpointModel"}  # what only these two rooms may name
MACHINERY = {"models", "learning"}

HOUSE = Path(__file__).parents[2] / "cat_lib"


class Call(NamedTuple):
    """One import of a module of cat_lib's: from which file, of which."""

    file: str
    target: str

    @property
    def rooms(self) -> tuple[str, str]:
        return room(self.file), room(self.target)


def room(file: str) -> str:
    """The room of a file, by its path in the house."""
    return file.partition("/")[0].removesuffix(".py")


def floor(name: str) -> int:
    return next((i for i, rooms in enumerate(FLOORS) if name in rooms), -1)


def sources(house: Path) -> dict[str, str]:
    return {p.relative_to(house).as_posix(): p.read_text("utf-8") for p in sorted(house.rglob("*.py"))}


def modules(file: str, node: ast.AST) -> list[str]:
    """The modules, by their dotted names, that an import names; `from a import b` may name a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    here = ["cat_lib", *file.split("/")][: -node.level] if node.level else []
    base = ".".join([*here, *([node.module] if node.module else [])])
    return [f"{base}.{alias.name}" for alias in node.names]


def calls(house: Path) -> list[Call]:
    """All imports of cat_lib's modules. A module that is no file of the house is a target with no ending."""
    files, found = sources(house), []
    for file, text in files.items():
        for node in ast.walk(ast.parse(text)):
            for name in modules(file, node):
                parts = name.split(".")
                if parts[0] != "cat_lib":
                    continue
                inner = "/".join(parts[1:])
                outer = "/".join(parts[1:-1]) if isinstance(node, ast.ImportFrom) else inner
                ways = [f"{inner}.py", f"{inner}/__init__.py", f"{outer}.py", f"{outer}/__init__.py"]
                found.append(Call(file, next((w for w in ways if w in files), inner)))
    return found


def named(house: Path) -> set[tuple[str, str]]:
    """(file, name) of all engines that are named or imported outside the rooms that may."""
    found = set()
    for file, text in sources(house).items():
        if room(file) in MACHINERY:
            continue
        for node in ast.walk(ast.parse(text)):
            names = {part for name in modules(file, node) for part in name.split(".")}
            names |= {getattr(node, "id", ""), getattr(node, "attr", "")}  # of a name, of an attribute
            found |= {(file, name) for name in names & ENGINES}
    return found


def wrong_calls(house: Path) -> set[tuple[str, str]]:
    """(file, file) of all calls that go up, or to a stranger."""
    return {
        (call.file, call.target)
        for call in calls(house)
        for here, there in [call.rooms]
        if floor(there) > floor(here) or there in STRANGERS.get(here, ())
    }


def circle(house: Path) -> list[str]:
    """Rooms that call each other in a circle, if any do."""
    graph: dict[str, set[str]] = {}
    for here, there in (call.rooms for call in calls(house)):
        if here != there:
            graph.setdefault(here, set()).add(there)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def lengths(house: Path) -> dict[str, int]:
    return {file: len(text.splitlines()) for file, text in sources(house).items()}


def test_every_room_has_a_floor_and_every_import_is_of_this_house():
    assert sorted({room(file) for file in sources(HOUSE) if floor(room(file)) < 0}) == []
    assert [call for call in calls(HOUSE) if not call.target.endswith(".py")] == []
    assert len(FLOORS) <= 7


def test_nothing_calls_upward_or_a_stranger_or_names_an_engine():
    assert wrong_calls(HOUSE) | named(HOUSE) == set()


def test_no_rooms_call_each_other_in_a_circle():
    assert circle(HOUSE) == []


def test_no_file_is_too_long_and_the_whole_is_not():
    size = lengths(HOUSE)
    assert {file: n for file, n in size.items() if n > LONGEST} == {}
    assert sum(size.values()) <= LINES
    for number, rooms in reversed(list(enumerate(FLOORS))):
        here = {r: sum(n for file, n in size.items() if room(file) == r) for r in sorted(rooms)}
        print(f"floor {number}: {', '.join(f'{r} {n:,}' for r, n in here.items() if n)}")
    print(f"{sum(size.values()):,} lines in {len(size)} files, {len(calls(HOUSE))} imports; at most {LINES:,}")


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        ("tasks/a.py", "def f():\n    from cat_lib.method import b", ("tasks/a.py", "method/b.py")),
        ("tasks/a.py", "if TYPE_CHECKING:\n    import cat_lib.method.b", ("tasks/a.py", "method/b.py")),
        ("tasks/a.py", "from ..method import b", ("tasks/a.py", "method/b.py")),
        ("tasks/a.py", "from ..method.b import thing", ("tasks/a.py", "method/b.py")),
        ("models/a.py", "from cat_lib.runs.b import c", ("models/a.py", "runs/b.py")),
        ("suites/a.py", "from cat_lib import method", ("suites/a.py", "method/__init__.py")),
        ("tasks/a.py", "import torch.nn as nn", ("tasks/a.py", "torch")),
        ("check.py", "from cat_lib.models.local import LocalModel", ("check.py", "LocalModel")),
        ("check.py", "x: local.EndpointModel", ("check.py", "EndpointModel")),
        ("learning/a.py", "import torch", None),
        ("measuring/a.py", "from cat_lib.method.b import thing", None),
    ],
)
def test_a_broken_rule_is_found(tmp_path, file, line, found):
    for name in ("method/__init__.py", "method/b.py", "runs/b.py", "models/local.py", file):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(line if name == file else "")
    assert wrong_calls(tmp_path) | named(tmp_path) == ({found} if found else set())


def test_a_circle_and_what_is_not_of_this_house_are_found(tmp_path):
    for name, line in {"a.py": "from cat_lib import b", "b.py": "def f():\n    import cat_lib.a, cat_lib.gone"}.items():
        (tmp_path / name).write_text(line)
    assert set(circle(tmp_path)) == {"a", "b"}
    assert Call("b.py", "gone") in calls(tmp_path)
