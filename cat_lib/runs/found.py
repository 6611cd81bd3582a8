"""What a run found, read from its folder for a terminal: the verdict, scores before and after, where figures are."""

from __future__ import annotations

import html
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from cat_lib.shown import printed

_SCORE = {"before": "before", "after": "after", "difference": "difference", "difference_low": "low"}
_SCORE |= {"difference_high": "high"}


def found(folder: Path) -> list[str]:
    """Lines on what a finished run found, in the order in which one asks; a folder that lacks some has fewer.

    The verdict is what the notebook showed under its last heading `Verdict`, without its markup.
    """
    import pandas as pd

    cells, known = list[dict[str, Any]](), dict[str, float]()
    with suppress(OSError, ValueError):
        cells = json.loads((folder / "executed.ipynb").read_text("utf-8"))["cells"]
    with suppress(OSError, ValueError):
        known = json.loads((folder / "metrics.json").read_text())
    start = max((i for i, c in enumerate(cells) if "".join(c["source"]).startswith("## Verdict")), default=len(cells))
    shown = [o.get("data", {}).get("text/markdown", "") for c in cells[start:] for o in c.get("outputs", [])]
    text = html.unescape("\n".join("".join(part) for part in shown).replace("**", ""))
    lines = [line for line in text.splitlines() if line.strip()]
    keys = [k.removesuffix("_before") for k in known if k.endswith("_before")]
    if keys:
        rows = {k: [known.get(f"{k}_{end}") for end in _SCORE] for k in keys}
        table = pd.DataFrame.from_dict(rows, "index", dtype=float, columns=list(_SCORE.values()))
        lines += table.to_string(float_format="{:.3f}".format, na_rep="").splitlines()
    if figures := sorted(path.stem for path in (folder / "figures").glob("*.png")):
        lines.append(f"figures: {folder / 'figures'} ({', '.join(figures)})")
    lines += [f"report: {path}" for path in folder.glob("report.html")]
    return [printed(line, 500) for line in lines]
