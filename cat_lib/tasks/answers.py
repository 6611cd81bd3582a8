r"""Reading and comparing mathematical answers, bounded in time and size.

Two answers are equal if they have one canonical form; evaluation, rewards and votes know no other equality. Which
notations are read, which are refused, and where math-verify reads otherwise, stands in docs/answers.md.

Plain numbers are read here. All else goes to worker processes (workers.py, answer_worker.py), as sympy evaluates what
it reads and `9^{9^{9^9}}` stops only with its process. An item is lost if it takes over LIMIT seconds of its worker's
processor time or MEMORY, or if its form would be longer than LONGEST; the rest of its batch goes on. What takes about
LIMIT seconds may be lost on a slower machine only.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from fractions import Fraction

from cat_lib.schema import Lost
from cat_lib.tasks.workers import Pool

LIMIT = 2.0  # seconds of processor time an item may take; honest answers take 0.001 to 0.3
MEMORY = 2 << 30  # bytes of address space of a worker
LONGEST = 1_000  # characters of an answer, and of a form
APPROXIMATE = 6  # decimal places from which on a number may stand for one that it rounds

_N = r"(?:(?:[1-9][0-9]{0,2}(?:[, ][0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
_NUMBER = re.compile(rf"([+-]?) ?(?:\\frac ?\{{([+-]?{_N})\}} ?\{{({_N})\}}|\\frac ?([0-9])([0-9])|({_N})(?:/({_N}))?)")
_TOKEN = re.compile(r"\\boxed\s*\{|\\(?!\\boxed).|[{}]", re.DOTALL)  # an escaped brace is none

_SLOW = Lost(f"it can't be read in time (over {LIMIT:g} s) or memory")
_LONG = Lost(f"its exact form has over {LONGEST:,} characters")
_pool = Pool([sys.executable, "-m", "cat_lib.tasks.answer_worker"], "read answers", _SLOW, _LONG, most=50_000)


def boxes(text: str) -> list[str]:
    r"""What stands in the `\boxed{...}` of a text, in order; none if one of them is broken or over LONGEST characters.

    Empty boxes (as in quoted instructions) don't count; of boxes in boxes the innermost do. Of a text over 100,000
    characters the last 20,000 are read. Linear in the text.
    """
    text = text[-20_000:] if len(text) > 100_000 else text
    found, opened = list[str](), list[int]()  # opened: where a box's content starts, or 0 for another brace
    for token in _TOKEN.finditer(text):
        if token[0] == "{" or token[0].startswith(r"\boxed"):
            opened.append(token.end() if token[0] != "{" else 0)
        elif token[0] == "}" and opened and (start := opened.pop()):
            if token.start() - start > LONGEST:
                return []
            if r"\boxed" not in (content := text[start : token.start()].strip()) and content:
                found.append(content)
    return [] if any(opened) else found


def read(answers: Sequence[str]) -> list[str | Lost | None]:
    """The canonical form of each answer, in which equal answers are equal; None: it is empty; or why it was lost.

    "p/q" for a rational number, LaTeX for other mathematics, words without case, and normalised source for what is no
    mathematics; an answer over LONGEST characters stays as it is. Raises RuntimeError if no worker can be started.
    """
    texts = [answer.strip() for answer in answers]
    forms = {text: _easy(text) for text in texts}
    found = _pool.ask([text for text, form in forms.items() if form is None])
    return [(found.get(text) or forms[text]) or None for text in texts]


def _easy(text: str) -> str | None:
    """The form of a text that needs no parser, or None."""
    if not text or len(text) > LONGEST:
        return text
    value = number(text)
    return None if value is None or places(value) >= APPROXIMATE else str(value)


def equal(pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
    """Whether both texts of each pair have one canonical form, which empty ones have not; None if one was lost."""
    forms = read([text for pair in pairs for text in pair])
    return [same(one, other) for one, other in zip(forms[::2], forms[1::2], strict=True)]


def same(one: str | Lost | None, other: str | Lost | None) -> bool | None:
    """Whether two readings are one form, as for `equal`."""
    return None if isinstance(one, Lost) or isinstance(other, Lost) else one is not None and one == other


def number(text: str) -> Fraction | None:
    """The number that a text writes in digits, or None: it writes none."""
    if text.lstrip("+-").startswith("0,"):  # 0,125: no group of thousands begins with 0
        text = re.sub("^([+-]?0),(?=[0-9]{3,}$)", r"\1.", text)
    if not (match := _NUMBER.fullmatch(text)):
        return None
    over, under = match[2] or match[4] or match[6], match[3] or match[5] or match[7] or "1"
    top, bottom = (Fraction(re.sub("[, ]", "", n)) for n in (over, under))
    return None if not bottom else (-top if match[1] == "-" else top) / bottom


def places(value: Fraction) -> int:
    """Decimal places that write the number exactly; 0 if none do."""
    of, most = value.denominator, value.denominator.bit_length()
    # written exactly if 10 to some power is a multiple of the denominator, and no power above its bits is needed
    return 0 if pow(10, most, of) else next(count for count in range(most + 1) if not pow(10, count, of))
