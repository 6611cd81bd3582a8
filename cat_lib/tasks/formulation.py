"""Optimization models that are data: LP text in a strict subset of what HiGHS reads, and a JSON form.

LP text: `min` or `max` with the objective, `st` with rows (`name: 3 x + 2 y <= 4`), `bounds`, `general`, `binary`,
`end`, each on lines of its own. Variables are at least 0 unless `bounds` says otherwise. The JSON form declares its
variables, and writes a sum as `{"x": 3, "y": 2}`, and what is not linear as a tree: `["*", 3, ["^", "x", 2]]`.

Nothing is evaluated. Refused, with line and reason, is what HiGHS's own reader takes for something else without a word:
`(x`, `x/2` and `x.1` as names, `Y` and `y` as two variables, constants left of a sign (dropped), numbers taken for
infinite or for 0, bounds on a binary variable (they replace 0 and 1), names that only bounds or types know, repeated
sections and names. Left out: quadratic and semi-continuous parts of LP text, special ordered sets, ranges in one row.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any

from cat_lib.tasks.rows import DataError, Given, usable

LONGEST, MOST, DEEPEST = 20_000, 1_000, 50  # characters; variables, and rows; operations in one another
SMALLEST, LARGEST = 1e-9, 1e9  # HiGHS drops what is smaller, errs from about 1e10 on, and takes 1e20 for infinite
_ONE, _TWO = (1, 1), (2, 2)  # how many an operation takes, at least and at most
OPERATIONS = {"+": (1, 99), "*": (2, 99), "-": (1, 2), "/": _TWO, "^": _TWO, "sqrt": _ONE, "exp": _ONE, "log": _ONE}
_WORDS = "min|minimum|minimize max|maximum|maximize st|s.t.|subject to|such that bounds|bound end".replace(" t", "\0t")
_WORDS += " general|generals|gen|integer|integers binary|binaries|bin"
_SECTION = {w.replace("\0", " "): ws.split("|")[0] for ws in _WORDS.split() for w in ws.split("|")}
_RESERVED = {*_SECTION, "free", "inf", "infinity", "nan", "semi", "semis", "sos", "sos1", "sos2", "subject", "such"}
_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![A-Za-z0-9_.])"
_NAME = r"[A-Za-z_][A-Za-z0-9_]{0,99}(?![A-Za-z0-9_.(])"
_SIGN, _END = "(<=|>=|=<|=>|==|[<>=])", rf"([+-]?) ?({_NUMBER}|inf|infinity)"
_SIGNS = {"<": "<=", "=<": "<=", ">": ">=", "=>": ">=", "==": "="}
_HEAD = re.compile(rf"({'|'.join(map(re.escape, _SECTION))})(?= |$)(?! ?:) ?", re.IGNORECASE)
_LABEL = re.compile(rf"({_NAME}) ?: ?")
_TERM = re.compile(rf" ?([+-]?) ?(?:({_NUMBER}) ?(?:\*? ?({_NAME}))?|({_NAME})) ?(?=[+-]|$)")
_ROW = re.compile(rf"([^<>=]*){_SIGN} ?([+-]?) ?({_NUMBER})")
_COMPARED = re.compile(rf"{_SIGN} ?[+-]? ?[0-9.]")
_BOUND = re.compile(rf"(?:{_END} ?(?:<=|=<|<) ?)?({_NAME}) ?(?:{_SIGN} ?{_END}|(free))?", re.IGNORECASE)

Tree = float | str | tuple[Any, ...]  # a number, a variable, or an operation and what it is of


class FormulationError(ValueError):
    """A formulation that can't be read; says where and why."""


@dataclass
class Variable:
    """What one number is allowed to be."""

    low: float = 0.0
    high: float = math.inf
    integer: bool = False


@dataclass
class Expression:
    """A constant, a sum of variables, and a tree, added."""

    terms: dict[str, float] = field(default_factory=dict)
    constant: float = 0.0
    tree: Tree | None = None


@dataclass
class Formulation:
    """A model: `rows` are (left side, sign, right side) with the signs `<=`, `>=` and `=`."""

    maximize: bool = False
    objective: Expression = field(default_factory=Expression)
    variables: dict[str, Variable] = field(default_factory=dict)
    rows: list[tuple[Expression, str, float]] = field(default_factory=list)

    @property
    def nonlinear(self) -> bool:
        """Whether a tree stands in it."""
        return any(e.tree is not None for e in (self.objective, *(left for left, _, _ in self.rows)))


def read(text: str) -> Formulation:
    """The formulation that LP text, or a JSON object, writes. Raises FormulationError for any other text."""
    if len(text) > LONGEST:
        raise FormulationError(f"it has {len(text):,} characters; at most {LONGEST:,} are read")
    if not text.lstrip().startswith("{"):
        return _LP().read(text)
    try:
        return usable([Given(text.encode("utf-8", "replace"), "the object")], _of_object)[0][1]
    except DataError as error:
        raise FormulationError(str(error)) from None


class _LP:
    """Reads LP text; what it remembers are names that stood in it."""

    def __init__(self) -> None:
        self.made, self.known, self.labels, self.bounded = Formulation(), dict[str, str](), set[str](), set[str]()
        self.declared = False  # whether all variables are

    def read(self, text: str) -> Formulation:
        found, number = _sections(text)
        self.made.maximize, sense = "max" in found, "max" if "max" in found else "min"
        if missing := [s for s in (sense, "st", "end") if not found.get(s, []) and (s != "end" or s not in found)]:
            raise FormulationError(f"line {number}: {missing[0]} is missing, or nothing stands under it")
        for section in (sense, "st", "bounds", "general", "binary"):
            self.declared = section not in (sense, "st")
            for number, line in found.get(section, ()):
                try:
                    getattr(self, "goal" if section == sense else section)(line)
                except FormulationError as error:
                    raise FormulationError(f"line {number}: {error}") from None
        return self.made

    def goal(self, text: str) -> None:
        self.made.objective = self.sum(self.unlabelled(text))
        if not self.made.objective.terms:
            raise FormulationError("the objective has no variable")

    def st(self, text: str) -> None:
        if not (parts := _ROW.fullmatch(self.unlabelled(text))):
            raise FormulationError(f"{text[:60]!r} is no sum of variables, one of <= >= =, and one number")
        left = self.sum(parts[1])
        if left.constant or not left.terms or len(self.labels) > MOST + 1:
            raise FormulationError(f"left of a sign stand variables alone, and there are at most {MOST:,} rows")
        self.made.rows.append((left, _SIGNS.get(parts[2], parts[2]), _signed(parts[3], parts[4])))

    def bounds(self, text: str) -> None:
        if not (match := _BOUND.fullmatch(text)) or not (match[2] or match[4] or match[7]):
            raise FormulationError(f"{text[:40]!r} is no bound as x >= 2, 2 <= x <= 3, x = 3 or x free")
        ends = [("low", match[1], match[2]), ("low", "-", match[7] and "inf"), ("high", "", match[7] and "inf")]
        ends += [(end, match[5], match[6]) for end, but in (("low", "<"), ("high", ">")) if but not in (match[4] or "")]
        variable = self.made.variables[self.name(match[3])]
        for end, value in ((end, _signed(sign, size)) for end, sign, size in ends if size):
            if f"{end} {match[3]}" in self.bounded or value == (math.inf if end == "low" else -math.inf):
                raise FormulationError(f"{value:g} can't be the {end} end of {match[3]}, which has one, or has none")
            self.bounded.add(f"{end} {match[3]}")
            setattr(variable, end, value)

    def general(self, text: str, high: float | None = None) -> None:
        for word in text.split(" "):
            variable = self.made.variables[self.name(word)]
            if variable.integer or (high and {f"low {word}", f"high {word}"} & self.bounded):
                raise FormulationError(f"{word} has a type or bounds already; a binary variable is 0 or 1")
            variable.integer, variable.high = True, high or variable.high

    def binary(self, text: str) -> None:
        self.general(text, 1.0)

    def unlabelled(self, text: str) -> str:
        label = _LABEL.match(text)
        key = label[1] if label else f"{len(self.labels)}:"
        if key in self.labels or key.lower() in _RESERVED:
            raise FormulationError(f"{key} can't be a name here: another row has it, or the format")
        self.labels.add(key)
        return text[label.end() :] if label else text

    def sum(self, text: str) -> Expression:
        made, start = Expression(), 0
        while start < len(text) or not start:
            if not (term := _TERM.match(text, start)):
                raise FormulationError(
                    f"{text[start:][:40]!r} does not begin with a term as + 3 x, without parentheses"
                )
            value, name, start = _signed(term[1], term[2]), term[3] or term[4], term.end()
            if not name:
                made.constant += value
            elif self.name(name) in made.terms:
                raise FormulationError(f"{name} stands twice in one sum; add its numbers")
            else:
                made.terms[name] = value
        return made

    def name(self, name: str) -> str:
        """A variable's name, which is known from here on."""
        if name.lower() in _RESERVED:
            raise FormulationError(f"{name} is a word of the format")
        if (known := self.known.setdefault(name.lower(), name)) != name:
            raise FormulationError(f"{name} differs from {known} by case alone")
        if name not in self.made.variables and (self.declared or len(self.made.variables) >= MOST):
            raise FormulationError(f"{name} stands in no row and not in the objective, or is one of over {MOST:,}")
        self.made.variables.setdefault(name, Variable())
        return name


def _sections(text: str) -> tuple[dict[str, list[tuple[int, str]]], int]:
    """The statements of each section, with the line in which each begins, and the number of the last line."""
    found: dict[str, list[tuple[int, str]]] = {}
    section, number, wrong = "", 0, ""
    for number, line in enumerate(text.split("\n"), 1):
        line = re.sub(r"[ \t\r]+", " ", line.partition("\\")[0]).strip(" ")
        if head := _HEAD.match(line):
            section, line = _SECTION[head[1].lower()], line[head.end() :]
            if section in found or (section in ("min", "max")) == bool(found):
                wrong = "stands twice, or not where it should: first min or max, then the others"
            found[section] = []
        if not (line.isascii() and line.isprintable()) or (line and section in ("", "end")):
            wrong = "can't stand here: min or max comes first, end last, and all is plain ASCII"
        if wrong:
            raise FormulationError(f"line {number}: {head[1] if head else line[:40]!r} {wrong}")
        begun = found[section][-1:] if section in ("min", "max", "st") and line else []
        if begun and (section != "st" or not _COMPARED.search(begun[0][1][-200:])):  # it goes on here
            found[section][-1] = (begun[0][0], f"{begun[0][1]} {line}")
        elif line:
            found[section].append((number, line))
    return found, number


def _signed(sign: str, size: str | None) -> float:
    value = float(size or 1)
    if value and not (SMALLEST <= value <= LARGEST or (size or "").lower() in _RESERVED):
        raise FormulationError(f"{size:.30} is no number from {SMALLEST:g} to {LARGEST:g}")
    return -value if sign == "-" else value


def _of_object(given: Given) -> Formulation:
    """The formulation of {"sense", "objective", "variables": {name: {"low", "high", "integer"}}, "rows"}."""
    _keys(given, ("sense", "objective", "variables", "rows"))
    made = Formulation(_one_of(given["sense"], ("min", "max")) == "max")
    for name in _keys(given["variables"]):
        _keys(known := given["variables"][name], ("low", "high", "integer"))
        if not re.fullmatch(_NAME, name) or name.lower() in {n.lower() for n in made.variables}:
            raise known.refused("is no name, or differs from another by case alone")
        ends = {key: _number(known[key]) for key in ("low", "high") if known[key].value is not None}
        free = {"low": -math.inf} if "low" in known.value else {}  # "low": null says that there is none
        made.variables[name] = Variable(**free | ends, integer=_one_of(known["integer"], (None, True, False)) is True)
    if not 1 <= len(made.variables) <= MOST:
        raise given.refused(f"the object has no variable, or over {MOST:,}")
    for row in given["rows"].entries():
        _keys(row, ("name", "left", "sign", "right"))
        sign = _one_of(row["sign"], ("<=", ">=", "="))
        made.rows.append((_expression(row["left"], made), sign, _number(row["right"])))
    made.objective = _expression(given["objective"], made)
    return made


def _keys(given: Given, allowed: tuple[str, ...] = ()) -> dict[str, Any]:
    """The object that is given. Raises DataError if it is none, or has other keys."""
    if not isinstance(given.value, dict):
        raise given.refused(f"is {given.shown}, where an object is needed")
    for key in given.value if allowed else ():
        _one_of(replace(given, value=key), allowed)
    return given.value


def _one_of(given: Given, allowed: tuple[Any, ...]) -> Any:
    if not any(type(given.value) is type(one) and given.value == one for one in allowed):
        raise given.refused(f"is {given.shown}; allowed are {', '.join(map(str, allowed))[:200]}")
    return given.value


def _number(given: Given) -> float:
    if 0 < abs(value := given.number()) < SMALLEST:
        raise given.refused(f"is {value}; the smallest number but 0 is {SMALLEST:g}")
    return value


def _expression(given: Given, of: Formulation) -> Expression:
    if not isinstance(given.value, dict):
        return Expression(tree=_tree(given, (*of.variables,), DEEPEST))
    return Expression({name: _number(given[name]) for name in _keys(given, (*of.variables,))})


def _tree(given: Given, variables: tuple[str, ...], deepest: int) -> Tree:
    if not isinstance(given.value, list):
        return str(_one_of(given, variables)) if isinstance(given.value, str) else _number(given)
    name, *inner = given.inside() or [given]
    least, most = OPERATIONS.get(str(name.value), (1, 0))
    if not least <= len(inner) <= most or not deepest:
        raise given.refused(f"is no operation: allowed are {', '.join(OPERATIONS)}, at most {DEEPEST} in one another")
    of = tuple(_tree(part, variables, deepest - 1) for part in inner)
    if name.value == "^" and not (isinstance(of[1], float) and abs(of[1]) <= 10):
        raise given.refused("has an exponent that is no number from -10 to 10")
    return (str(name.value), *of)
