"""Numbers in sentences: an Estimate, or a table of differences. No winner is named without evidence.

A difference is called one only by `stats.decided`; all else is undecided, and is said to be.
"""

from __future__ import annotations

import pandas as pd

from cat_lib.measuring.stats import Estimate
from cat_lib.measuring.tables import estimate

_SAID = {"above": "is above", "below": "is below", "undecided": "is not told apart from"}


def finding(difference: Estimate, this: str, that: str) -> str:
    """One sentence on `this` minus `that`; `p` is to be adjusted where several are compared (`tables.one_family`)."""
    p = "" if difference.p is None else f", p = {difference.p:.4f}"
    sentence = f"{this} {_SAID[difference.outcome]} {that}: {_numbers(difference)}, n = {difference.n}{p}."
    return sentence[0].upper() + sentence[1:]


def findings(differences: pd.DataFrame, that: str, name: str = "{method}") -> str:
    """One sentence on a table of `tables.compare`: which rows are above or below `that`, and which are undecided.

    name: what a row is called, filled from its columns, as in "{method} at {k}".
    """
    rows = differences.dropna(subset="value").to_dict("records")
    if not rows:
        return f"There is nothing to compare with {that}."
    parts: dict[str, list[str]] = {"above": [], "below": [], "undecided": []}
    for row in rows:
        parts[row["outcome"]].append(f"{name.format(**row)} ({_numbers(estimate(row))})")
    least, most, seeds = min(r["n"] for r in rows), max(r["n"] for r in rows), str(rows[0]["seed"]).count(",") + 1
    n = f"n = {least} questions" if least == most else f"n = {least} to {most} questions"
    said = "; ".join(f"{outcome}: {', '.join(found)}" for outcome, found in parts.items() if found)
    return f"Against {that}, {n}, {seeds} seed{'s' if seeds > 1 else ''}: {said}."


def _numbers(difference: Estimate) -> str:
    limits = f"[{difference.low:.3f}, {difference.high:.3f}]"
    return f"{difference.value:+.3f} {limits if difference.low == difference.low else 'no interval'}"
