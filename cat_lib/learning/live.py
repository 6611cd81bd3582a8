"""Training as it is watched: a line a step; in a notebook that a person executes, one figure and one line in place.

By papermill a notebook gets the lines: what changes in place would be lost in a log, and a log is what is read there.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from cat_lib.shown import duration

DRAWN = {"reward": "#0072B2", "agreement": "#E69F00", "label_accuracy": "#009E73"}  # those of them that a task has
_DRAW_EVERY = 2.0  # seconds, that a page is not busy with drawing


class Live:
    """Watches a training, from the first step that is told."""

    def __init__(self) -> None:
        self.began, self.drawn, self.before = time.monotonic(), 0.0, -1  # before: steps of an earlier try
        self.figure: Any = None
        self.line: Any = None

    def tell(
        self, unit: str, step: int, of: int, values: Mapping[str, float], history: Sequence[dict[str, Any]]
    ) -> None:
        """Say that `step` of `of` is done. history: what was logged at each step, for the figure; none: no figure."""
        elapsed, self.before = time.monotonic() - self.began, step - 1 if self.before < 0 else self.before
        left = elapsed / (step - self.before) * (of - step)
        numbers = "  ".join(f"{key} {value:.2f}" for key, value in values.items())
        line = f"{unit} {step}/{of}  {numbers}  elapsed {duration(elapsed)}  remaining {duration(left)}"
        if not by_hand():
            print(line, flush=True)
            return
        from IPython.display import Image, display

        if history and (step == of or time.monotonic() - self.drawn > _DRAW_EVERY):
            self.drawn = time.monotonic()
            picture = Image(drawing(history, of), width=640, height=240)  # its place is kept while it is replaced
            self.figure = self.figure or display(display_id=True)
            self.figure.update(picture)
        self.line = self.line or display(display_id=True)
        self.line.update({"text/plain": line}, raw=True)


def by_hand() -> bool:
    """Whether this is a person's notebook, and not papermill's or a script."""
    if "CAT_LIB_RUN_DIR" in os.environ:
        return False
    from IPython import get_ipython

    return hasattr(get_ipython(), "kernel")


def drawing(history: Sequence[dict[str, Any]], of: int) -> bytes:
    """Reward, agreement and label accuracy over training steps, a PNG of 640 x 240 points at twice their resolution."""
    figure = Figure((6.4, 2.4), layout="constrained")
    axis = figure.subplots()
    for key, colour in DRAWN.items():
        if points := [(h["step"], h[key]) for h in history if key in h]:
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colour, label=key)
    low, high = axis.get_ylim()
    axis.set(xlim=(0, of), ylim=(min(low, 0.0), max(high, 1.02)), xlabel="training step")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(ncols=3, frameon=False, loc="outside upper center")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=200)
    return picture.getvalue()
