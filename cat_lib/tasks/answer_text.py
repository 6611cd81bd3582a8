r"""The text of an answer in one notation: LaTeX in one line, without what canonical forms ignore.

Ignored are dollar, percent and degree signs, units, fonts, and a name that stands left of `AB = ...`. Unicode signs
(`x²`, `½`, `≤`) and plain source (`sqrt(2)`, `7*sin(pi*x)`) become LaTeX. Nothing is evaluated here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from cat_lib.tasks.answers import boxes

_FONT = r"\\(?:text|textbf|textit|textrm|textnormal|textsf|mathrm|mathbf|mathit|mbox|operatorname) ?"
WRAPPED = re.compile(rf"{_FONT}\{{([^{{}}]*)\}}")
# words that change a number are no units: 2 million is not 2
_NUMERAL = (
    r"(?:(?:[mbtr]\w*illion|thousand|hundred|dozen|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|twelfth|"
    r"(?:hundred|thousand|million)th)s?|half|halves|squared|cubed|factorial)"
)
_UNIT = rf"(?:[ckm]m|kg|ft|mph|sq|per|pct|sec|min|hr|(?!{_NUMERAL}\b)[a-z]{{4,}})"
_POWER = r"(?: ?\^ ?\{?[23]\}?)?"
_GREEK = r"alpha|beta|gamma|delta|epsilon|theta|lambda|sigma|omega|phi|psi|rho|tau"
_FUNCTIONS = r"arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp"
WORDS = re.compile(
    rf"(?=.*\b(?!(?:and|infinity|{_GREEK}|{_FUNCTIONS})\b)(?:[a-z]{{3,}}|no)\b)[a-z][a-z' -]*", re.IGNORECASE
)

_LETTERS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma sigma tau "
_LETTERS += "upsilon phi chi psi omega"
_SIGNS = str.maketrans(
    {chr(0x3B1 + i): rf"\{name} " for i, name in enumerate(_LETTERS.split())}
    | dict.fromkeys("°˚º∘€£¥\u200b", "")
    | dict.fromkeys("\u2009\u202f", r"\,")
    | {"−": "-", "–": "-", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "′": "'"}
    | {"≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm "}
    | {"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "∠": r"\angle "}
    | {"√": r"\sqrt", "∛": r"\sqrt[3]", "△": r"\triangle "}
)
_RAISED, _LOWERED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ]+"), re.compile("[₀₁₂₃₄₅₆₇₈₉ₙ]+")
_VULGAR = re.compile("[¼-¾⅐-⅞]")

_Sub = tuple[re.Pattern[str], "str | Callable[[re.Match[str]], str]"]
_WHOLE, _FRACTION = r"(?:[1-9][0-9]{0,2}(?:[ ,][0-9]{3})+|[0-9]+)", r"\\frac\{([0-9]+)\}\{([0-9]+)\}"

_TIME = rf"^([0-9]{{1,2}}(?::[0-5][0-9])?) ?(?:{_FONT}\{{)? ?([apAP])\.? ?[mM]\.?\}}?$"


def _improper(match: re.Match[str]) -> str:
    r"""`3 1/4` as `\frac{13}{4}`; what is no mixed number stays."""
    whole, over, under = (int(re.sub("[ ,]", "", n)) for n in (match[1], match[2] or match[4], match[3] or match[5]))
    return rf"\frac{{{whole * under + over}}}{{{under}}}" if over < under else match[0]


def _subs(*pairs: tuple[str, str | Callable[[re.Match[str]], str]]) -> list[_Sub]:
    return [(re.compile(pattern), replacement) for pattern, replacement in pairs]


_SUBS = _subs(
    (r"(?<=[0-9])(?:, ?\\!|\{,\}) ?(?=[0-9]{3}(?![0-9]))", ""),  # no list has these
    (r"\\(?:left|right|displaystyle)(?![a-zA-Z])|(?<!\\)\\[()]|\s*(?<!\\)\\!\s*|\\?[$%]", ""),
    (r"^[+-]?[1-9][0-9]{0,2}(?:,\\[,:;] ?[0-9]{3})+(?![0-9,])", lambda m: re.sub(r"[^0-9+-]", "", m[0])),
    (r"(?:(?<!\\)\\[,;: ]|\\q?quad(?![a-zA-Z])|~|\s)+", " "),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\frac ?([0-9]) ?([0-9])", r"\\frac{\1}{\2}"),
    (r"\\sqrt(\[[0-9a-z]+\])? ?([0-9]+|[a-zA-Z])", r"\\sqrt\1{\2}"),
    (rf"(?<![0-9.,/^_}}a-zA-Z\\])({_WHOLE})(?: ?{_FRACTION}| ([0-9]+)/([0-9]+)(?![0-9.]))", _improper),
    (r"(?<![0-9.])[1-9][0-9]{0,2}(?: [0-9]{3})+(?![0-9])", lambda m: m[0].replace(" ", "")),
    (r"^\( ?\\?[a-zA-Z]+(?: ?, ?\\?[a-zA-Z]+)+ ?\) ?= ?(?=\()", ""),  # (x, y) = (1, 2)
    (r"(?<=[0-9])[eE]([+-]?[0-9]{1,3})$", r" \\times 10^{\1}"),
    (r" ?\^ ?(?:\\circ(?![a-zA-Z])|\{ ?\\circ ?\})", ""),
    (_TIME, lambda m: f"{m[1]} {m[2].lower()}m"),
)
_SOURCE = _subs(  # as a program or a keyboard has it
    (r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi"),
    (r"\*\*", "^"),
    (rf"(?i:(?<![\\a-zA-Z])(?:{_GREEK})(?![a-zA-Z]))", lambda m: f"\\{m[0].lower()}"),
    (r"(?<![\\a-zA-Z0-9])(?:infinity|inf|oo)(?![a-zA-Z])", r"\\infty"),
    (r"(?<![\\a-zA-Z])a(sin|cos|tan)(?= ?\()", r"\\arc\1"),
    (rf"(?<![\\a-zA-Z])({_FUNCTIONS})(?= ?[(^_{{]| (?:[a-zA-Z0-9](?![a-zA-Z])|\\))", r"\\\1"),
    (r"(?<!\{) (and|or) (?=[^a-zA-Z}]|[a-zA-Z](?![a-zA-Z]))", r" \\text{ \1 } "),
)
_UNITS = _subs(
    (rf"(?<=[^ ,_^=(]) *{_FONT}\{{(?! ?{_NUMERAL}\b)[^{{}}0-9]*\}}{_POWER}$", ""),  # in a font or bare
    (rf"(?<=[0-9}}]) {_UNIT}(?: {_UNIT})*{_POWER}$", ""),
)
_ROOT = re.compile(r"(?<![a-zA-Z])\\?sqrt(\[[0-9]+\])? ?\(")

_ARGUMENT = r" ?\([^()]*\)"
_PART = r"(?:[A-Z]{2,}|[a-zA-Z](?:_\{?[a-zA-Z0-9]+\}?)?)"
_NAMES = [  # of AB, \angle ABC; \text{area}, P(X > 1), [ABC], |AB|; inverses, derivatives; a sine; a:b, AB/CD
    r"(?:m ?)?(?:\\(?:angle|measuredangle|triangle|overline|widehat|vec) ?)*\{?m?[A-Z]+'?\}?",
    rf"{_FONT}\{{[^{{}}]*\}}|P{_ARGUMENT}|\[[A-Z]{{3,}}\]|\|[A-Z]{{2}}\|",
    rf"[a-zA-Z]\^\{{?-1\}}?{_ARGUMENT}|[a-zA-Z]'+(?:{_ARGUMENT})?|d[a-z]/d[a-z]|\\frac ?\{{d[a-z]\}} ?\{{d[a-z]\}}",
    r"\\(?:sin|cos|tan|cot|sec|csc) ?(?:\\angle ?)?[A-Z]+",
    rf"{_PART}(?: ?: ?{_PART}){{1,5}}|\\frac ?\{{[A-Z]{{2,}}\}} ?\{{[A-Z]{{2,}}\}}|[A-Z]{{2,}} ?/ ?[A-Z]{{2,}}",
]
_QUANTITY = re.compile(rf"(?:{'|'.join(_NAMES)}) ?= ?")


def plain(text: str) -> str:
    """The text in one line and one notation, without what canonical forms ignore."""
    if not text.isascii():
        text = _VULGAR.sub(lambda m: r"\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", m[0]).split("⁄")), text)
        text = _RAISED.sub(lambda m: f"^{{{unicodedata.normalize('NFKC', m[0])}}}", text)
        text = _LOWERED.sub(lambda m: f"_{{{unicodedata.normalize('NFKC', m[0])}}}", text)
        text = re.sub("(?<=[√∛]) ?([0-9.]+|[a-zA-Z])", r"{\1}", text)
        text = unicodedata.normalize("NFKC", text.translate(_SIGNS))
    if text.strip().startswith(r"\boxed") and len(inside := boxes(text)) == 1:
        text = inside[0]
    while True:
        text = _replace(text.strip().rstrip(". \\"), _SUBS)
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
        depth, end = 1, match.end()
        while depth and end < len(text):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        if depth:
            return text
        text = rf"{text[: match.start()]}\sqrt{match[1] or ''}{{{text[match.end() : end - 1]}}}{text[end:]}"
    return text
