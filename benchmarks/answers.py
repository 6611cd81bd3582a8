"""Checking short answers by `cat_lib.tasks.answers.equal` against plain math-verify, parse and verify, in one process.

    python benchmarks/answers.py [REPEATS]

Both sides get the same 10,000 pairs, new ones in each round: integers, decimals, fractions and some LaTeX, half of
them right, hardly any twice. For the ratio both get every tenth pair, as plain math-verify takes seconds for these.
Memory is the resident one of this process and its workers, in MiB.
"""

from __future__ import annotations

import random
import sys
import time

import math_verify
import psutil

from cat_lib.tasks import answers
from common import compare

PAIRS, PART = 10_000, 10  # pairs; one in this many for the ratio
repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3


def pairs(seed: int) -> list[tuple[str, str]]:
    """Gold and answer: 50% integers, 15% decimals, 20% fractions, 15% roots, pairs and polynomials."""
    rng = random.Random(seed)
    made = []
    for i in range(PAIRS):
        a, b, kind = rng.randrange(1, 999), rng.randrange(2, 99), rng.random()
        off = a + i % 2  # every other answer is wrong
        if kind < 0.5:
            made.append((str(a * b), f"{off * b:,}"))
        elif kind < 0.65:
            made.append((f"{a}.{b}", f"{off}.{b}0"))
        elif kind < 0.85:
            made.append((rf"\frac{{{a}}}{{{b}}}", f"{2 * off}/{2 * b}"))
        elif kind < 0.9:
            made.append((rf"{a}\sqrt{{{2 * b}}}", rf"\sqrt{{{2 * b}}}\cdot {off}"))
        elif kind < 0.95:
            made.append((rf"({a}, \frac{{\pi}}{{{b}}})", rf"\left({off},\pi/{b}\right)"))
        else:
            made.append((f"{a}x+{b}", f"{b}+{off}x"))
    return made


def memory() -> float:
    process = psutil.Process()
    return sum(p.memory_info().rss for p in (process, *process.children())) / 2**20


def theirs(round_: int) -> int:
    right = 0
    for gold, answer in pairs(round_)[::PART]:
        right += math_verify.verify(math_verify.parse(f"${gold}$"), math_verify.parse(f"${answer}$"))
    return right


def ours(round_: int) -> int:
    return sum(map(bool, answers.equal(pairs(round_)[::PART])))


def main() -> None:
    answers.read([r"\sqrt{8}", r"\sqrt{7}"])  # starts the workers
    for round_ in range(3):
        made, before, start = pairs(100 + round_), memory(), time.perf_counter()
        verdicts = answers.equal(made)
        took = time.perf_counter() - start
        wrong = sum(verdict is not (i % 2 == 0) for i, verdict in enumerate(verdicts))
        print(f"{PAIRS / took:.0f} checks a second; {wrong} of {PAIRS} verdicts differ from what was made", end="; ")
        print(f"memory {before:.0f} MiB before, {memory():.0f} MiB after")
    what = "plain math-verify parse and verify in one process / cat_lib.tasks.answers.equal on 2 workers, 1,000 pairs"
    compare(theirs, ours, repeats, what)


if __name__ == "__main__":
    main()
