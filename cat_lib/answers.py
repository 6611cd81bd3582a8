r"""Reading and comparing mathematical answers, bounded in time and size.

Plain numbers are read here. All else goes to worker processes (`cat_lib.answer_worker`), as sympy evaluates what it
reads and `9^{9^{9^9}}` stops only with its process. An item is lost (None) if it takes over LIMIT seconds of its
worker's processor time, whatever else the machine does, or more memory than it has; the rest of its batch goes on.

Ignored are dollar, percent and degree signs, units, the case of letters, and what stands left of `x = ...`. Numbers in
a base (`52_8`) and times of day are compared as written; `3:2` is a ratio; `1,2` is a set; `1,000` is a number.

Known weak spots: 5 cm equals 5 kg, and 50\% equals 50; `x=5` and `y=5` have one form; `(1,2)` is a pair and an open
interval; `3:2` equals 1.5, but `3:20` is a time; letters that look like a word are one (`abc` is not `bca`), others
are factors; what the parser can't read is compared as text; what takes about LIMIT
seconds may be lost on a slower machine only. POSIX only.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

LIMIT = 2.0  # seconds of processor time an item may take; honest answers take 0.001 to 0.3
PATIENCE = 60.0  # seconds until a worker that says nothing is ended
WORKERS = min(2, os.cpu_count() or 1)
LONGEST = 1_000  # characters read of an answer

_N = r"(?:(?:[0-9]{1,3}(?:[, ][0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
_NUMBER = re.compile(rf"([+-]?) ?(?:\\frac ?\{{([+-]?{_N})\}} ?\{{({_N})\}}|\\frac ?([0-9])([0-9])|({_N})(?:/({_N}))?)")
_TOKEN = re.compile(r"\\boxed\s*\{|\\(?!\\boxed).|[{}]", re.DOTALL)  # an escaped brace is none


def boxed(text: str) -> str | None:
    r"""The content of the one `\boxed{...}` of a text, or None: there is none, or several that differ, or a broken one.

    Empty boxes (as in quoted instructions) don't count; of boxes in boxes the innermost do. Of a text over 100,000
    characters the last 20,000 are read; a content over LONGEST characters makes it None. Linear in the text.
    """
    text = text[-20_000:] if len(text) > 100_000 else text
    found, opened = set[str](), list[int]()  # opened: where a box's content starts, or 0 for another brace
    for token in _TOKEN.finditer(text):
        if token[0] == "{" or token[0].startswith(r"\boxed"):
            opened.append(token.end() if token[0] != "{" else 0)
        elif token[0] == "}" and opened and (start := opened.pop()):
            if token.start() - start > LONGEST:
                return None
            if r"\boxed" not in (content := text[start : token.start()].strip()):
                found |= {content} - {""}
    return found.pop() if len(found) == 1 and not any(opened) else None


def canonical(answers: Sequence[str]) -> list[str | None]:
    """The canonical form of each answer: equal answers have equal forms, as far as sympy can tell in LIMIT seconds.

    "p/q" for a rational number, LaTeX for other mathematics, words without case, and normalised source for what is no
    mathematics; an answer over LONGEST characters stays as it is.
    None: the answer is empty, or it was lost (see `lost`). Raises RuntimeError if no worker can be started.
    """
    texts = [a.strip() for a in answers]
    known = [t if not t or len(t) > LONGEST else number(t) for t in texts]
    return [None if form is None else str(form) or None for form in _complete(known, [(t,) for t in texts])]


def equal(pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
    """Whether each (gold, answer) is the same to math-verify, decimals to 6 places; None where that was lost.

    Unlike there, `1, 2` is not `(1, 2)`, 0 is no `2x - y = 0`, and empty texts equal nothing. Texts over LONGEST
    characters are compared as they are. Raises RuntimeError if no worker can be started.
    """
    known: list[bool | None] = []
    for gold, answer in pairs:
        ours, theirs = (number(t) if len(t) <= LONGEST else None for t in (gold, answer))
        both = None if ours is None or theirs is None else same(ours, theirs, gold + answer)
        known.append(gold == answer if max(len(gold), len(answer)) > LONGEST else both)
    return _complete(known, pairs)


def lost() -> int:
    """How many items were lost so far in this process, each time they were asked for."""
    return len(_lost)


def number(text: str) -> Fraction | None:
    """The number that a text writes in digits, or None: it writes none."""
    if not (match := _NUMBER.fullmatch(text)):
        return None
    over, under = match[2] or match[4] or match[6], match[3] or match[5] or match[7] or "1"
    top, bottom = (Fraction(re.sub("[, ]", "", n)) for n in (over, under))
    return None if not bottom else (-top if match[1] == "-" else top) / bottom


def same(gold: Fraction, answer: Fraction, source: str) -> bool:
    """Whether two numbers are equal, to 6 places if either is written as a decimal."""
    return gold == answer or ("." in source and round(gold, 6) == round(answer, 6))


def _complete(known: Sequence[Any], items: Sequence[tuple[str, ...]]) -> list[Any]:
    """What is known, and where that is None, a worker's reply to the item, or None if it was lost."""
    unknown = list(dict.fromkeys(i for i, value in zip(items, known, strict=True) if value is None))
    replies = dict(zip(unknown, _pool.map(_reply, unknown), strict=True))  # an interrupt cancels what has not begun
    return [replies[i] if value is None else value for i, value in zip(items, known, strict=True)]


def _reply(item: tuple[str, ...]) -> Any:
    try:
        return _ask(item)
    except TimeoutError:
        _lost.append(item)
        return None


@lru_cache(50_000)
def _ask(item: tuple[str, ...]) -> Any:
    """The reply of this thread's worker. Raises TimeoutError if the item is lost, which the cache does not keep."""
    worker = _workers.get(threading.get_ident())
    if worker is None or worker.poll() is not None:
        worker = _workers[threading.get_ident()] = _start()
    assert worker.stdin is not None
    with suppress(BrokenPipeError):  # then there is no reply either
        worker.stdin.write(json.dumps(item).encode() + b"\n")
    return json.loads(_line(worker))


def _start() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cat_lib.answer_worker"]
    root = Path(__file__).parents[1]  # where one works may be a sympy.py, and may be no cat_lib
    worker = subprocess.Popen(
        command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        cwd=root, env={**os.environ, "PYTHONHASHSEED": "0"}, start_new_session=True,
    )  # fmt: skip
    try:
        _line(worker)
    except TimeoutError:
        why = f"(exit status {worker.returncode}); to see why, run {' '.join(command)} < /dev/null in {root}"
        raise RuntimeError(f"no worker can be started to read answers {why}") from None
    return worker


def _line(worker: subprocess.Popen[bytes]) -> bytes:
    """What a worker says next. Raises TimeoutError, and ends it, if it has ended or says nothing."""
    assert worker.stdout is not None
    line = os.read(worker.stdout.fileno(), 1 << 16) if wait([worker.stdout.fileno()], PATIENCE) else b""
    if not line.endswith(b"\n"):
        with worker:
            worker.kill()
        raise TimeoutError
    return line


def _begin() -> None:
    """No workers yet; those of a process that forks stay its own."""
    global _pool, _workers
    _pool, _workers = ThreadPoolExecutor(WORKERS, "answers"), {}


_pool: ThreadPoolExecutor
_workers: dict[int, subprocess.Popen[bytes]]  # by the thread that asks; a worker ends with its input
_lost: list[tuple[str, ...]] = []
_begin()
os.register_at_fork(after_in_child=_begin)
