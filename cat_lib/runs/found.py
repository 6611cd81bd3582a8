"""What a run found, read from its folder for a terminal: the verdict, scores before and after, where figures are.

The verdict is the notebook's own words, under its last heading. All of it is a run's text, and is escaped.
"""

from __future__ import annotations

import html
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from cat_lib.shown import printed

_LONGEST = 500  # characters of a sentence


def found(folder: Path) -> list[str]:
    """Lines on what a finished run found, in the order in which one asks; a folder without some of it has fewer."""
    lines = [*verdict(folder), *scores(folder)]
    if figures := sorted((folder / "figures").glob("*.png")):
        lines.append(f"figures: {folder / 'figures'} ({', '.join(path.stem for path in figures)})")
    if (folder / "report.html").exists():
        lines.append(f"report: {folder / 'report.html'}")
    return lines


def verdict(folder: Path) -> list[str]:
    """The sentences under a run's heading `Verdict`, without their markup; none where there is no such notebook."""
    cells: list[dict[str, Any]] = []
    with suppress(OSError, ValueError):
        cells = json.loads((folder / "executed.ipynb").read_text("utf-8"))["cells"]
    heads = [i for i, cell in enumerate(cells) if "".join(cell["source"]).startswith("## Verdict")]
    shown = (
        [output.get("data", {}) for cell in cells[heads[-1] :] for output in cell.get("outputs", [])] if heads else []
    )
    texts = "\n".join("".join(data.get("text/markdown", "")) for data in shown).replace("**", "").splitlines()
    return [printed(html.unescape(text), _LONGEST).removeprefix("- ") for text in texts if text.strip()]


def scores(folder: Path) -> list[str]:
    """A line for each score that a run has before and after, with the limits of the difference where it has them."""
    known: dict[str, float] = {}
    with suppress(OSError, ValueError):
        known = json.loads((folder / "metrics.json").read_text())
    keys = [key.removesuffix("_before") for key in known if key.endswith("_before")]
    keys = [key for key in keys if f"{key}_after" in known]
    rows = [["", "before", "after", "difference"]] * bool(keys)
    for key in keys:
        before, after = known[f"{key}_before"], known[f"{key}_after"]
        low, high = (known.get(f"{key}_difference_{end}") for end in ("low", "high"))
        limits = f" [{low:+.3f}, {high:+.3f}]" if low is not None and high is not None else ""
        rows.append([key, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}{limits}"])
    width = max((len(row[0]) for row in rows), default=0)
    return [f"{printed(key):<{width}}  {'  '.join(f'{cell:>8}' for cell in cells)}" for key, *cells in rows]
