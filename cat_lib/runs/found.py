"""What a run found, read from its folder for a terminal: the verdict, scores before and after, where figures are."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from cat_lib.shown import printed

_ENDS = ["_before", "_after", "_difference", "_difference_low", "_difference_high"]


def found(folder: Path) -> list[str]:
    """Lines on what a finished run found, in the order in which one asks; a folder that lacks some has fewer.

    The verdict is what the notebook showed under its last heading `Verdict`, without its markup.
    """
    import pandas as pd

    cells, known = _read(folder / "executed.ipynb").get("cells", []), _read(folder / "metrics.json")
    start = max((i for i, c in enumerate(cells) if "".join(c["source"]).startswith("## Verdict")), default=len(cells))
    shown = [o.get("data", {}).get("text/markdown", "") for c in cells[start:] for o in c.get("outputs", [])]
    text = html.unescape("\n".join("".join(part) for part in shown).replace("**", ""))
    lines = [line for line in text.splitlines() if line.strip()]
    if scores := [k.removesuffix("_before") for k in known if k.endswith("_before")]:
        table = pd.DataFrame([[known.get(k + end) for end in _ENDS] for k in scores], scores, dtype=float)
        table.columns = [end.rpartition("_")[2] for end in _ENDS]
        lines += table.to_string(float_format="{:.3f}".format, na_rep="").splitlines()
    if figures := sorted(path.stem for path in (folder / "figures").glob("*.png")):
        lines.append(f"figures: {folder / 'figures'} ({', '.join(figures)})")
    return [printed(line, 500) for line in [*lines, *(f"report: {path}" for path in folder.glob("report.html"))]]


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError):
        return {}
