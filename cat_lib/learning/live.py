"""Training as it is watched: a line a step; in a notebook that a person executes, one figure and one line in place."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from cat_lib.shown import duration

_DRAWN = {"reward": "#0072B2", "agreement": "#E69F00", "label_accuracy": "#009E73"}  # those that a task has
_DRAW_EVERY = 2.0  # seconds, so that a page is not busy with drawing


class Live:
    """Watches a training, from the first step that it is told."""

    def __init__(self) -> None:
        self.began, self.drawn, self.before = time.monotonic(), 0.0, -1  # before: steps of an earlier try
        self.places: Any = ()  # on the page, of the figure and of the line

    def tell(self, unit: str, step: int, of: int, values: dict[str, float], history: Sequence[dict[str, Any]]) -> None:
        """Say that `step` of `of` is done. history: what was logged of each step, for the figure."""
        from IPython import display, get_ipython

        elapsed, self.before = time.monotonic() - self.began, step - 1 if self.before < 0 else self.before
        numbers = "  ".join(f"{key} {value:.2f}" for key, value in values.items())
        left = duration(elapsed / (step - self.before) * (of - step))
        line = f"{unit} {step}/{of}  {numbers}  elapsed {duration(elapsed)}  remaining {left}"
        if "CAT_LIB_RUN_DIR" in os.environ or not hasattr(get_ipython(), "kernel"):  # papermill, a script: a log
            print(line, flush=True)
            return
        self.places = self.places or [display.display({"text/plain": ""}, raw=True, display_id=True) for _ in "12"]
        if history and (step == of or time.monotonic() - self.drawn > _DRAW_EVERY):
            self.drawn = time.monotonic()
            self.places[0].update(display.Image(_picture(history, of), width=640, height=240))  # no page jumps
        self.places[1].update({"text/plain": line}, raw=True)


def _picture(history: Sequence[dict[str, Any]], of: int) -> bytes:
    figure, file = Figure((6.4, 2.4), layout="constrained"), io.BytesIO()
    axis = figure.subplots()
    for key, colour in _DRAWN.items():
        if points := [(h["step"], h[key]) for h in history if key in h]:
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colour, label=key)
    low, high = axis.get_ylim()
    axis.set(xlim=(0, of), ylim=(min(low, 0.0), max(high, 1.02)), xlabel="training step")
    figure.legend(ncols=3, frameon=False, loc="outside upper center")
    figure.savefig(file, format="png", dpi=200)
    return file.getvalue()
