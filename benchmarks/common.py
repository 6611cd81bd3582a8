"""Side-by-side timing: two sides alternate in one process, and the last line is one JSON object."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable


def compare(theirs: Callable[[int], object], ours: Callable[[int], object], repeats: int, what: str) -> None:
    """Time both sides in turn, after one unmeasured round, and print the ratio theirs / ours.

    Each side gets the number of the round, to seed itself.
    """
    ratios = []
    for round_ in range(repeats + 1):
        seconds = []
        for side in (theirs, ours):
            start = time.perf_counter()
            side(round_)
            seconds.append(time.perf_counter() - start)
        if round_:
            ratios.append(seconds[0] / seconds[1])
        print(f"round {round_}: {seconds[0]:.2f} s, {seconds[1]:.2f} s", flush=True)
    result = {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    print(json.dumps({k: round(v, 2) for k, v in result.items()} | {"repeats": repeats, "what": what}))
