"""Checking formulations by `cat_lib.tasks.solvers.solve` against plain HiGHS, in one process, on files of the text.

    python benchmarks/solver.py [REPEATS]

Both sides get the same 1,000 LPs of 8 variables and 5 rows as LP text, new ones in each round, as two in a row would be
remembered. Ours also refuses what plain HiGHS would misread, and is bounded in time and memory. A solver check is one
text read and solved.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

import highspy

from cat_lib.schema import Lost
from cat_lib.tasks.solvers import solve
from common import compare

TEXTS = 1_000
repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3


def texts(seed: int) -> list[str]:
    """LPs that have an optimum."""
    rng = random.Random(seed)

    def total(low: int, high: int) -> str:
        return " + ".join(f"{rng.randint(low, high)} x{i}" for i in range(8))

    rows = ["\n".join(f" r{k}: {total(1, 9)} <= {rng.randint(20, 200)}" for k in range(5)) for _ in range(TEXTS)]
    return [f"max\n obj: {total(1, 30)}\nst\n{row}\nend\n" for row in rows]


def theirs(round_: int) -> list[float]:
    highs, found = highspy.Highs(), []
    highs.silent()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "m.lp"
        for text in texts(round_):
            file.write_text(text)
            highs.readModel(str(file))
            highs.run()
            found.append(highs.getInfo().objective_function_value)
    return found


def ours(round_: int) -> list[float]:
    return [outcome.objective for outcome in solve(texts(round_)) if not isinstance(outcome, Lost)]


def main() -> None:
    solve(["max\n x\nst\n x <= 1\nend", "max\n x\nst\n x <= 2\nend"])  # starts the workers
    for round_ in range(100, 103):
        start = time.perf_counter()
        found = ours(round_)
        took = time.perf_counter() - start
        wrong = sum(abs(a - b) > 1e-6 for a, b in zip(found, theirs(round_), strict=True))
        print(f"{TEXTS / took:.0f} checks a second; {wrong} of {TEXTS} optima differ from plain HiGHS")
    what = "plain HiGHS on files in one process / cat_lib.tasks.solvers.solve on 2 workers, 1,000 LPs of 8 variables"
    compare(theirs, ours, repeats, what)


if __name__ == "__main__":
    main()
