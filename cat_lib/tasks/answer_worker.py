r"""The process that reads mathematics for `cat_lib.tasks.answers`: `python -m cat_lib.tasks.answer_worker`.

What takes too long or too much (time, memory, recursion) ends the process, so that the item is lost however fast the
machine is.
"""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache
from math import gcd, isqrt
from typing import Any

import math_verify
import sympy as sp
from latex2sympy2_extended.math_normalization import NormalizationConfig
from math_verify.grader import is_relation
from sympy.simplify.fu import TR1, TR2

from cat_lib.tasks.answer_text import WORDS, WRAPPED, plain, quantity
from cat_lib.tasks.answers import APPROXIMATE, LIMIT, LONGEST, MEMORY, number, places
from cat_lib.tasks.workers import serve

_REPEATING = re.compile(r"(-?)([0-9]*)\.([0-9]*)\\overline ?\{([0-9]+)\}")
_WRITTEN = re.compile(r"([0-9][0-9A-Fa-f]*)_ ?\{?([0-9]+)\}?|[0-9]{1,2}:[0-5][0-9](?: [ap]m)?|[0-9]{1,2} [ap]m")
_RATIO = re.compile(r"[0-9]+(?: ?: ?[0-9]+){2,}")
_FLAT = re.compile(r"\(([^()[\]|]+,[^()[\]|]+)\)")  # (a, b, ...)
_LIST = re.compile(r"[+-]?[0-9.]+(?: ?, ?[+-]?[0-9.]+)+")
# the parser would multiply it
_PROSE = re.compile(r"(?<![_^0-9.])[0-9.]+ [0-9]|(?<![\\a-zA-Z{])[a-zA-Z]{4,}(?![a-zA-Z}])")
_RULES = NormalizationConfig(units=False, malformed_operators=True, nits=True)  # its units include the letter t
_WHOLE = math_verify.LatexExtractionConfig(False, boxed_match_priority=0, normalization_config=_RULES)
_PI = Fraction("3.14159265358979323846264338327950288419716939937510582097494459")


def reply(text: str) -> str:
    """The canonical form of an answer; what is no mathematics, or no number (1/0), has its source for one.

    Raises MemoryError, OverflowError or RecursionError for what takes too much: the process ends, and it is lost.
    """
    text = plain(text)
    try:
        known = quick(named := quantity(text))
        return known if isinstance(known, str) else _form(_parse(named))
    except (MemoryError, OverflowError, RecursionError):
        raise
    except Exception:  # sympy raises many types for what it can't do
        return " ".join(WRAPPED.sub(r"\1", text).casefold().split())


def quick(text: str) -> Fraction | str | None:
    """A plain text's number, or its form if it is words or compared as written; None: it has to be parsed."""
    if match := _REPEATING.fullmatch(text):
        whole, some, again = match[2] or "0", match[3], match[4]
        value = Fraction(int(whole + some + again) - int(whole + some), 10 ** len(some) * (10 ** len(again) - 1))
        return -value if match[1] else value
    if match := _WRITTEN.fullmatch(text):
        return (f"{match[1]}_{match[2]}" if match[1] else text).casefold()
    if _RATIO.fullmatch(text):
        parts = [int(n) for n in text.split(":")]
        return ":".join(str(n // (gcd(*parts) or 1)) for n in parts)
    return text.casefold() if not text or WORDS.fullmatch(text) else number(text)


@lru_cache(1_000)
def _parse(text: str) -> Any:
    """The sympy object of a plain text. Raises ValueError if it is no mathematics."""
    if isinstance(known := quick(text), Fraction):
        return sp.Rational(known.numerator, known.denominator)
    parts = _FLAT.fullmatch(text)
    if parts and r"\{" not in text and (parts[1][0] == "0" or number(parts[1]) is None):  # 10 times the parser's speed
        return sp.Tuple(*(_parse(p.strip()) for p in parts[1].split(",")))
    if _LIST.fullmatch(text):  # 0,11 is no 11
        return sp.FiniteSet(*(_parse(p.strip()) for p in text.split(",")))
    if _PROSE.search(text):
        raise ValueError(f"no mathematics: {text}")
    found = math_verify.parse(rf"\boxed{{{text}}}", [_WHOLE], "no_fallback", "first_match", parsing_timeout=None)
    if not found or not isinstance(found[0], sp.Basic | sp.MatrixBase):
        raise ValueError(f"no mathematics: {text}")
    return found[0]


def _meant(value: sp.Rational) -> Any:
    """What a decimal of six places or more rounds: a simple fraction, its root, or its multiple of pi; or the number.

    Simple is what a number of so many digits would meet by chance once in a thousand times or less.
    """
    exact = Fraction(int(value.p), int(value.q))
    count = places(exact)
    if not APPROXIMATE <= count <= 50 or abs(exact) * 10**count < 10**4:
        return value
    half = Fraction(1, 2 * 10**count)
    rounded = (("", exact, Fraction(1)), ("root", exact**2, 2 * abs(exact)), ("pi", exact / _PI, 1 / _PI))
    for kind, seen, slope in rounded:
        simple = seen.limit_denominator(isqrt(int(10 ** (count - 3) / max(slope, 1))) or 1)
        if simple and abs(simple - seen) <= half * slope:
            found = sp.Rational(simple.numerator, simple.denominator)
            return sp.sign(value) * sp.sqrt(found) if kind == "root" else sp.pi * found if kind else found
    return value


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
    if not e.is_number and e.has(sp.MatrixBase, sp.MatrixExpr):
        e = e.replace(lambda x: isinstance(x, sp.Pow) and isinstance(x.base, sp.MatrixBase), lambda x: x.base**x.exp)
        return _form(sp.Matrix(e.doit()))
    e = _simplest(_exact(e))
    if e.has(sp.zoo, sp.nan):
        raise ValueError("no number")
    e = _meant(e) if e.is_Rational else e
    return str(e) if e.is_Rational else str(sp.latex(e, ln_notation=True, inv_trig_style="power"))


def _simplest(e: Any) -> Any:
    """The one way to write an expression, as far as sympy finds it."""
    if not (symbols := e.free_symbols):
        if all(
            x.is_Rational or x is sp.pi or (x.is_Pow and x.base.is_Integer and x.exp is sp.S.Half)
            for x in sp.Mul.make_args(e)
        ):
            return e  # 7 sqrt(2) is written so already; to ask takes ten times as long
        return sp.expand(sp.expand_log(sp.sqrtdenest(sp.radsimp(e)), force=True))
    if not e.is_rational_function(*symbols):
        return sp.simplify(TR2(TR1(e)))  # cot x as cos x / sin x
    if e.is_polynomial(*symbols) and (poly := sp.Poly(e, *symbols)).domain in (sp.ZZ, sp.QQ):
        return poly.as_expr()
    return sp.cancel(sp.together(e))


def _relation(parts: Any) -> str:
    """The form of equations and inequalities that all hold."""
    if all(isinstance(p, sp.Eq) for p in parts):
        left, right = parts[0].lhs, parts[-1].rhs
        if isinstance(right, sp.Symbol) and not left.free_symbols:
            left, right = right, left
        named = isinstance(left, sp.Symbol | sp.core.function.AppliedUndef) and not right.has(left)
        if named or not (left.free_symbols or right.free_symbols):
            return _form(right)
        poly = sp.Poly(sp.expand(sp.together(_exact(left - right)).as_numer_denom()[0])).primitive()[1]
        last = max(poly.gens, key=str)  # y of a line in x and y
        line = sp.Poly(poly.as_expr(), last)
        if isinstance(last, sp.Symbol) and line.degree() == 1 and line.LC().is_number:
            return _form(-line.coeff_monomial(1) / line.LC())
        return f"{_form((poly if poly.LC() > 0 else -poly).as_expr())} = 0"
    functions = set().union(*(p.atoms(sp.core.function.AppliedUndef) for p in parts))
    if len(functions) == 1:  # 0 < f(x) < 1
        parts = [p.xreplace({f: sp.Symbol("f", real=True) for f in functions}) for p in parts]
    if len(set().union(*(p.free_symbols for p in parts))) == 1:
        with suppress(NotImplementedError, TypeError, ValueError):  # what it can't solve
            return _form(sp.And(*map(_exact, parts)).as_set())
    signs = {True: r"\ge", False: ">"}
    return ", ".join(sorted(f"{_form(p.gts - p.lts)} {signs['=' in p.rel_op]} 0" for p in parts))


def _exact(e: Any) -> Any:
    """Evaluated, with decimals as rational numbers and i and e as what they mean."""
    names = {s: {"i": sp.I, "e": sp.E}[s.name] for s in e.atoms(sp.Symbol) if s.name in ("i", "e")}
    return e.xreplace({x: _meant(sp.Rational(str(x))) for x in e.atoms(sp.Float)} | names).doit()


if __name__ == "__main__":
    sys.set_int_max_str_digits(0)  # a huge number is too long or too slow, and lost either way
    serve(reply, r"(\frac{x}{2} + 1, \sin 1)", LIMIT, MEMORY, LONGEST)
