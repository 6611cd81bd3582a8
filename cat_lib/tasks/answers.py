r"""Reading and comparing mathematical answers, bounded in time and size.

Two answers are equal if they have one canonical form; evaluation, rewards and votes know no other equality. Which
notations are read, which are refused, and where math-verify reads otherwise, stands in docs/answers.md.

Plain numbers are read here. All else goes to worker processes (answer_worker.py), as sympy evaluates what it
reads and `9^{9^{9^9}}` stops only with its process. An item is lost if it takes over LIMIT seconds of its worker's
processor time, whatever else the machine does, or more memory than it has, or if its form would be longer than LONGEST;
the rest of its batch goes on. What takes about LIMIT seconds may be lost on a slower machine only. POSIX only.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing.connection import wait
from pathlib import Path

LIMIT = 2.0  # seconds of processor time an item may take; honest answers take 0.001 to 0.3
PATIENCE = 60.0  # seconds until a worker that says nothing is ended
WORKERS = min(2, os.cpu_count() or 1)
TOGETHER = 4  # texts that a worker gets at once, which saves half of the waiting
REMEMBERED = 50_000  # forms
LONGEST = 1_000  # characters of an answer, and of a form
APPROXIMATE = 6  # decimal places from which on a number may stand for one that it rounds

_N = r"(?:(?:[1-9][0-9]{0,2}(?:[, ][0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
_NUMBER = re.compile(rf"([+-]?) ?(?:\\frac ?\{{([+-]?{_N})\}} ?\{{({_N})\}}|\\frac ?([0-9])([0-9])|({_N})(?:/({_N}))?)")
_TOKEN = re.compile(r"\\boxed\s*\{|\\(?!\\boxed).|[{}]", re.DOTALL)  # an escaped brace is none


@dataclass(frozen=True)
class Lost:
    """An answer that has no form within the limits, and why."""

    why: str


_SLOW = Lost(f"it can't be read in time (over {LIMIT:g} s) or memory")
_LONG = Lost(f"its exact form has over {LONGEST:,} characters")


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
    texts = [a.strip() for a in answers]
    values = [number(t) if len(t) <= LONGEST else None for t in texts]
    known = [
        t if not t or len(t) > LONGEST else None if n is None or places(n) >= APPROXIMATE else str(n)
        for t, n in zip(texts, values, strict=True)
    ]
    asked = dict.fromkeys(t for t, form in zip(texts, known, strict=True) if form is None)
    forms: dict[str, str | Lost] = {t: _remembered[t] for t in asked if t in _remembered}
    unknown = [t for t in asked if t not in forms]
    size = min(TOGETHER, -(-len(unknown) // WORKERS) or 1)
    parts = [unknown[start : start + size] for start in range(0, len(unknown), size)]
    for replies in _pool.map(_ask, parts):  # an interrupt cancels what has not begun
        forms |= replies
    if len(_remembered) > REMEMBERED:
        _remembered.clear()
    _remembered.update({t: forms[t] for t in unknown if forms[t] is not _SLOW})  # on another day it may be faster
    found = [(forms[t] if form is None else form) or None for t, form in zip(texts, known, strict=True)]
    _lost.extend(form for form in found if isinstance(form, Lost))
    return found


def canonical(answers: Sequence[str]) -> list[str | None]:
    """As `read`, with None for what was lost too."""
    return [None if isinstance(form, Lost) else form for form in read(answers)]


def equal(pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
    """Whether both texts of each pair have one canonical form, which empty ones have not; None if one was lost."""
    forms = read([text for pair in pairs for text in pair])
    return [
        None if isinstance(one, Lost) or isinstance(other, Lost) else one is not None and one == other
        for one, other in zip(forms[::2], forms[1::2], strict=True)
    ]


def lost() -> int:
    """How many items were lost so far in this process, each time they were asked for."""
    return len(_lost)


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
    if value.denominator == 1:
        return 0
    rest, count = value.denominator, dict.fromkeys((2, 5), 0)
    for prime in count:
        while rest % prime == 0:
            rest, count[prime] = rest // prime, count[prime] + 1
    return max(count.values()) if rest == 1 else 0


def _ask(texts: Sequence[str]) -> dict[str, str | Lost]:
    """The forms that this thread's worker replies. What ends or silences it is lost, and the next gets the rest."""
    found: dict[str, str | Lost] = {}
    while rest := [t for t in texts if t not in found]:
        worker = _workers.get(threading.get_ident())
        if worker is None or worker.poll() is not None:
            worker = _workers[threading.get_ident()] = _start()
        assert worker.stdin is not None
        with suppress(BrokenPipeError):  # then there is no reply either
            worker.stdin.write(b"".join(json.dumps(text).encode() + b"\n" for text in rest))
        replies = _lines(worker)
        for text in rest:
            try:
                form = json.loads(next(replies))
            except TimeoutError:
                found[text] = _SLOW
                break
            found[text] = _LONG if form is None else form
    return found


def _start() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cat_lib.tasks.answer_worker"]
    root = Path(__file__).parents[2]  # where one works may be a sympy.py, and may be no cat_lib
    worker = subprocess.Popen(
        command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        cwd=root, env={**os.environ, "PYTHONHASHSEED": "0"}, start_new_session=True,
    )  # fmt: skip
    try:
        next(_lines(worker))
    except TimeoutError:
        why = f"(exit status {worker.returncode}); to see why, run {' '.join(command)} < /dev/null in {root}"
        raise RuntimeError(f"no worker can be started to read answers {why}") from None
    return worker


def _lines(worker: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """What a worker says, line by line. Raises TimeoutError, and ends it, if it has ended or says nothing."""
    assert worker.stdout is not None
    said = b""
    while True:
        more = os.read(worker.stdout.fileno(), 1 << 16) if wait([worker.stdout.fileno()], PATIENCE) else b""
        if not more:
            with worker:
                worker.kill()
            raise TimeoutError
        *lines, said = (said + more).split(b"\n")
        yield from lines


def _begin() -> None:
    """No workers yet; those of a process that forks stay its own."""
    global _pool, _workers
    _pool, _workers = ThreadPoolExecutor(WORKERS, "answers"), {}


_pool: ThreadPoolExecutor
_workers: dict[int, subprocess.Popen[bytes]]  # by the thread that asks; a worker ends with its input
_lost: list[Lost] = []
_remembered: dict[str, str | Lost] = {}
_begin()
os.register_at_fork(after_in_child=_begin)
