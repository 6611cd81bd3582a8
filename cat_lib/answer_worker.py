r"""The process that reads mathematics for `cat_lib.answers`: `python -m cat_lib.answer_worker`.

A JSON list of one text a line in, its canonical form out; two texts in, whether they are equal out. What takes too long
or too much (time, memory, recursion, a form over LONGEST characters) ends the process, so that the item is lost however
fast the machine is; only what is no mathematics to the parser, or no number (1/0), has its source for a form.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache
from typing import Any

import math_verify
import sympy as sp
from latex2sympy2_extended.math_normalization import NormalizationConfig
from math_verify.grader import is_relation
from sympy.simplify.fu import TR1, TR2

from cat_lib.answers import LIMIT, LONGEST, number, same

MEMORY = 2 << 30  # bytes of address space

_REPEATING = re.compile(r"(-?)([0-9]*)\.([0-9]*)\\overline ?\{([0-9]+)\}")
_WRITTEN = re.compile(r"([0-9][0-9A-Fa-f]*)_ ?\{?([0-9]+)\}?|[0-9]{1,2}:[0-5][0-9]")
_WORDS = re.compile(r"(?=.*\b(?!and\b|infinity\b)(?:[a-z]{3,}|no)\b)[a-z][a-z' -]*", re.IGNORECASE)
_FLAT = re.compile(r"\(([^()[\]|]+,[^()[\]|]+)\)")  # (a, b, ...)
_FONT = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname) ?"
_WRAPPED = re.compile(rf"{_FONT}\{{([^{{}}]*)\}}")
_UNIT, _POWER = r"(?:[ckm]m|kg|ft|mph|sq|[a-z]{4,})", r"(?: ?\^ ?\{?[23]\}?)?"
_SIGNS = str.maketrans({"−": "-", "–": "-", "π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "°": ""})
_SUBS = [
    (re.compile(r"\\(?:left|right|displaystyle)(?![a-zA-Z])|(?<!\\)\\[!()]|\\?\$|\s*\\?%$"), ""),
    (re.compile(r"(?:(?<!\\)\\[,;: ]|\\q?quad(?![a-zA-Z])|~|\s)+"), " "),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])"), r"\\pi"),
    (re.compile(r"^\( ?\\?[a-zA-Z]+(?: ?, ?\\?[a-zA-Z]+)+ ?\) ?= ?(?=\()"), ""),  # (x, y) = (1, 2)
    (re.compile(r"(?<=[0-9])[eE]([+-]?[0-9]{1,3})$"), r" \\times 10^{\1}"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r" ?\^ ?(?:\\circ(?![a-zA-Z])|\{ ?\\circ ?\})"), ""),
    (re.compile(rf"(?<=[^ ,_^=(]) *{_FONT}\{{[^{{}}0-9]*\}}{_POWER}$"), ""),  # units, in a font or bare
    (re.compile(rf"(?<=[0-9}}]) {_UNIT}(?: {_UNIT})*{_POWER}$"), ""),
]
_RULES = NormalizationConfig(units=False, malformed_operators=True, nits=True)  # its units include the letter t
_WHOLE = math_verify.LatexExtractionConfig(False, boxed_match_priority=0, normalization_config=_RULES)


def main() -> None:
    """Reply to each line of stdin until it ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not pass for a reply
    with suppress(OSError, ValueError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.set_int_max_str_digits(0)  # a huge number is too long or too slow, and lost either way
    form(r"(\frac{x}{2} + 1, \sin 1)")  # the first takes longest
    print('"ready"', file=out, flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, LIMIT)  # its signal ends the process
        texts = [plain(t) for t in json.loads(line)]
        try:
            reply = form(*texts) if len(texts) == 1 else equal(*texts)
        except (MemoryError, OverflowError, RecursionError):
            return
        except Exception:  # no mathematics, or none that sympy can do: it raises many types
            reply = len(texts) == 1 and _WRAPPED.sub(r"\1", texts[0]).casefold()
        if len(str(reply)) > LONGEST:
            return
        print(json.dumps(reply), file=out, flush=True)
        signal.setitimer(signal.ITIMER_PROF, 0)


def plain(text: str) -> str:
    """The text in one line, without what canonical forms ignore."""
    text = text.translate(_SIGNS).strip().rstrip(". ")
    for pattern, replacement in _SUBS:
        text = pattern.sub(replacement, text).strip()
    while wrapped := _WRAPPED.fullmatch(text):
        text = wrapped[1].strip()
    return text.rstrip(". ")


def quick(text: str) -> Fraction | str | None:
    """A plain text's number, or its form if it is words or compared as written; None: it has to be parsed."""
    if match := _REPEATING.fullmatch(text):
        whole, some, again = match[2] or "0", match[3], match[4]
        value = Fraction(int(whole + some + again) - int(whole + some), 10 ** len(some) * (10 ** len(again) - 1))
        return -value if match[1] else value
    if match := _WRITTEN.fullmatch(text):
        return (f"{match[1]}_{match[2]}" if match[1] else text).casefold()
    return text.casefold() if not text or _WORDS.fullmatch(text) else number(text)


def form(text: str) -> str:
    """The canonical form of a plain text. Raises ValueError or what sympy raises if it is no mathematics."""
    known = quick(text)
    return _form(_parse(text)) if known is None else str(known)


def equal(gold: str, answer: str) -> bool:
    """Whether two plain texts are equal, where empty ones equal nothing. Raises what `form` does."""
    if gold == answer:
        return gold != ""
    ours, theirs = quick(gold), quick(answer)
    if isinstance(ours, Fraction) and isinstance(theirs, Fraction):
        return same(ours, theirs, gold + answer)
    if isinstance(ours, str) or isinstance(theirs, str):
        return ours == theirs
    first, second = _parse(gold), _parse(answer)
    if _kind(first) != _kind(second):
        return _form(first) == _form(second)
    return bool(math_verify.verify(first, second, timeout_seconds=None))


@lru_cache(1_000)
def _parse(text: str) -> Any:
    """The sympy object of a plain text. Raises ValueError if it is no mathematics."""
    if isinstance(known := quick(text), Fraction):
        return sp.Rational(known.numerator, known.denominator)
    parts = _FLAT.fullmatch(text)
    if parts and r"\{" not in text and number(parts[1]) is None:  # ten times as fast as the parser
        return sp.Tuple(*(_parse(p.strip()) for p in parts[1].split(",")))
    found = math_verify.parse(rf"\boxed{{{text}}}", [_WHOLE], "no_fallback", "first_match", parsing_timeout=None)
    if not found or not isinstance(found[0], sp.Basic | sp.MatrixBase):
        raise ValueError(f"no mathematics: {text}")
    return found[0]


def _form(e: Any) -> str:
    """The canonical form of a sympy object. Raises ValueError or what sympy raises if it has none."""
    if isinstance(e, sp.MatrixBase):
        rows = r" \\ ".join(" & ".join(map(_form, row)) for row in e.tolist())
        return rf"\begin{{pmatrix}} {rows} \end{{pmatrix}}"
    if isinstance(e, sp.Tuple):
        return f"({', '.join(map(_form, e))})"
    if isinstance(e, sp.Interval):
        return f"{'[('[bool(e.left_open)]}{_form(e.start)}, {_form(e.end)}{'])'[bool(e.right_open)]}"
    equations = [x for x in e.args if isinstance(x, sp.Eq)]
    if isinstance(e, sp.Union) or (isinstance(e, sp.FiniteSet) and not equations and all(map(is_relation, e.args))):
        return r" \cup ".join(sorted(map(_form, e.args)))  # x < 1 or x > 2
    if isinstance(e, sp.FiniteSet):
        named = equations if len({x.lhs for x in equations}) > 1 else []
        forms = sorted({f"{_form(x.lhs)} = {_form(x.rhs)}" if x in named else _form(x) for x in e.args})
        return forms[0] if len(forms) == 1 else rf"\{{{', '.join(forms)}\}}"
    if is_relation(e):
        return _relation((e,) if isinstance(e, sp.core.relational.Relational) else getattr(e, "_unsorted_args", e.args))
    if isinstance(e, sp.Set):
        return str(sp.latex(e))
    e = _exact(e)
    rational = e.is_rational_function(*e.free_symbols)
    if not e.free_symbols:
        e = sp.expand(sp.expand_log(sp.sqrtdenest(sp.radsimp(e)), force=True))
    else:
        e = sp.cancel(sp.together(e)) if rational else sp.simplify(TR2(TR1(e)))  # cot x as cos x / sin x
    if e.has(sp.zoo, sp.nan):
        raise ValueError("no number")
    return str(e) if e.is_Rational else str(sp.latex(e, ln_notation=True, inv_trig_style="power"))


def _relation(parts: Any) -> str:
    """The form of equations and inequalities that all hold."""
    if all(isinstance(p, sp.Eq) for p in parts):
        left, right = parts[0].lhs, parts[-1].rhs
        if isinstance(right, sp.Symbol) and not left.free_symbols:
            left, right = right, left
        if isinstance(left, sp.Symbol | sp.core.function.AppliedUndef) and not right.has(left):
            return _form(right)
        poly = sp.Poly(sp.expand(sp.together(_exact(left - right)).as_numer_denom()[0])).primitive()[1]
        return f"{_form((poly if poly.LC() > 0 else -poly).as_expr())} = 0"
    if len(set().union(*(p.free_symbols for p in parts))) == 1:
        with suppress(NotImplementedError, TypeError, ValueError):  # what it can't solve
            return _form(sp.And(*map(_exact, parts)).as_set())
    signs = {True: r"\ge", False: ">"}
    return ", ".join(sorted(f"{_form(p.gts - p.lts)} {signs['=' in p.rel_op]} 0" for p in parts))


def _kind(e: Any) -> tuple[bool, bool, int]:
    """Whether it is a set, whether a pair or interval, and how many relations it holds: math-verify mixes these up."""
    parts = e.args if isinstance(e, sp.FiniteSet) else (e,)
    return isinstance(e, sp.FiniteSet), isinstance(e, sp.Tuple | sp.Interval), sum(map(is_relation, parts))


def _exact(e: Any) -> Any:
    """Evaluated, with decimals as rational numbers and i and e as what they mean."""
    names = {s: {"i": sp.I, "e": sp.E}[s.name] for s in e.atoms(sp.Symbol) if s.name in ("i", "e")}
    return e.xreplace({x: sp.Rational(str(x)) for x in e.atoms(sp.Float)} | names).doit()


if __name__ == "__main__":
    main()
