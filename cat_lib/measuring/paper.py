"""What the papers report, for setting our own numbers beside it: results/published/paper_values.csv.

A share is a number from 0 to 1, a relative gain of 27 % is 0.27. Rows of status "conflicting" differ between versions
of the paper, "unknown" ones are named so that nobody takes a gap for an oversight. Left out: labels of figures that
can't be tied to a model, and whatever we computed from stated numbers.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import pandas as pd

FILE = Path(__file__).resolve().parents[2] / "results" / "published" / "paper_values.csv"


def paper_values() -> pd.DataFrame:
    """One row a claim; empty cells are "" in words and NaN in `value`, `low` and `high`."""
    numbers = ["value", "low", "high"]
    table = pd.read_csv(FILE, dtype=str, keep_default_na=False)
    return table.assign(**{column: pd.to_numeric(table[column]) for column in numbers})


def paper_value(key: str) -> float | tuple[float, float] | None:
    """The number, the range (low, high), or None where the paper's value is unknown.

    Raises KeyError for a key that is not in the file, with the nearest ones.
    """
    rows = paper_values().set_index("key")
    if key not in rows.index:
        near = difflib.get_close_matches(key, rows.index, n=3, cutoff=0.3)
        raise KeyError(f"{key!r} is no key of {FILE.name}; nearest: {', '.join(near) or 'none'}")
    value, low, high = (float(number) for number in rows.loc[key, ["value", "low", "high"]])
    if value == value:  # not NaN
        return value
    return (low, high) if low == low else None
