r"""The text of an answer in one notation: LaTeX in one line, without what canonical forms ignore.

Ignored are dollar, percent and degree signs, units, fonts, and a name that stands left of `AB = ...`. Unicode signs
(`x²`, `½`, `≤`) and plain source (`sqrt(2)`, `7*sin(pi*x)`) become LaTeX. Nothing is evaluated here. The rules stand in
answer_rules.yaml.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import yaml

from cat_lib.tasks.answers import boxes

_Sub = tuple[re.Pattern[str], "str | Callable[[re.Match[str]], str]"]
_RULES = yaml.safe_load(Path(__file__).with_name("answer_rules.yaml").read_text("utf-8"))


def _pattern(text: str, flags: int = 0) -> re.Pattern[str]:
    """A pattern of the rules, with the parts that it names."""
    while (filled := re.sub("<([a-z]+)>", lambda m: str(_RULES["parts"][m[1]]), text)) != text:
        text = filled
    return re.compile(text, flags)


def _improper(match: re.Match[str]) -> str:
    r"""`3 1/4` as `\frac{13}{4}`; what is no mixed number stays."""
    whole, over, under = (int(re.sub("[ ,]", "", n)) for n in (match[1], match[2] or match[4], match[3] or match[5]))
    return rf"\frac{{{whole * under + over}}}{{{under}}}" if over < under else match[0]


_COMPUTED: dict[str, Callable[[re.Match[str]], str]] = {
    "DIGITS": lambda m: re.sub(r"[^0-9+-]", "", m[0]),
    "LOWER": lambda m: f"\\{m[0].lower()}",
    "IMPROPER": _improper,
}
_UNICODE, _NOTATION, _SOURCE, _UNITS = (
    [(_pattern(pattern), _COMPUTED.get(to, to)) for pattern, to in _RULES[kind]]
    for kind in ("unicode", "notation", "source", "units")
)
_SIGNS = str.maketrans({sign: to for signs, to in _RULES["signs"].items() for sign in signs})
_QUANTITY = _pattern(f"(?:{'|'.join(_RULES['names'])}) ?= ?")
_ROOT = re.compile(r"(?<![a-zA-Z])\\?sqrt(\[[0-9]+\])? ?\(")
WRAPPED, WORDS = _pattern("<wrapped>"), _pattern("<words>", re.IGNORECASE)


def plain(text: str) -> str:
    """The text in one line and one notation, without what canonical forms ignore."""
    text = unicodedata.normalize("NFKC", _replace(text, _UNICODE).translate(_SIGNS))
    if text.strip().startswith(r"\boxed") and len(inside := boxes(text)) == 1:
        text = inside[0]
    while True:
        text = _replace(text.strip().rstrip(". \\"), _NOTATION)
        if not WRAPPED.fullmatch(text):
            if not WORDS.fullmatch(text):
                text = _rooted(_replace(text, _SOURCE))
            text = _replace(text, _UNITS).rstrip(". \\")
        if not (wrapped := WRAPPED.fullmatch(text)):
            return text
        text = wrapped[1]


def quantity(text: str) -> str:
    """What a plain text says of the one thing that it names on the left: 5 of `AB = 5`."""
    while (match := _QUANTITY.match(text)) and (rest := text[match.end() :]) and not re.search("[,;].*=", rest):
        if _QUANTITY.fullmatch(f"{rest}="):  # AB = CD
            break
        text = rest
    return text


def _replace(text: str, subs: list[_Sub]) -> str:
    for pattern, replacement in subs:
        text = pattern.sub(replacement, text).strip()
    return text


def _rooted(text: str) -> str:
    r"""`sqrt(...)` as `\sqrt{...}`."""
    while match := _ROOT.search(text):
        depths = accumulate(((c == "(") - (c == ")") for c in text[match.end() :]), initial=1)
        inside = next((i for i, depth in enumerate(depths) if not depth), None)  # and the bracket behind it
        if not inside:
            return text
        start, end = match.end(), match.end() + inside
        text = rf"{text[: match.start()]}\sqrt{match[1] or ''}{{{text[start : end - 1]}}}{text[end:]}"
    return text
