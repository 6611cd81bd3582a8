"""Training as it is watched: a line a step; in a notebook that a person executes, one figure and one line in place."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cat_lib.shown import duration

_DRAWN = {"reward": "#0072B2", "agreement": "#E69F00", "label_accuracy": "#009E73"}  # those that a task has
_DRAW_EVERY = 2.0  # seconds, so that a page is not busy with drawing


class Live:
    """Watches a training, from the first step that it is told."""

    def __init__(self) -> None:
        self.began, self.drawn, self.before = time.monotonic(), 0.0, -1  # before: steps of an earlier try
        self.places: Any = ()  # on the page, of the figure and of the line

    def tell(self, unit: str, step: int, of: int, values: Mapping[str, float], logged: Sequence[Any] = ()) -> None:
        """Say that `step` of `of` is done. logged: the metrics of each step so far, for the figure."""
        from IPython import display, get_ipython

        elapsed, self.before = time.monotonic() - self.began, step - 1 if self.before < 0 else self.before
        numbers = "  ".join(f"{key} {value:.2f}" for key, value in values.items())
        left = duration(elapsed / (step - self.before) * (of - step))
        line = f"{unit} {step}/{of}  {numbers}  elapsed {duration(elapsed)}  remaining {left}"
        if "CAT_LIB_RUN_DIR" in os.environ or not hasattr(get_ipython(), "kernel"):  # papermill, a script: a log
            print(line, flush=True)
            return
        self.places = self.places or [display.display({"text/plain": ""}, raw=True, display_id=True) for _ in "12"]
        if logged and (step == of or time.monotonic() - self.drawn > _DRAW_EVERY):
            self.drawn = time.monotonic()
            self.places[0].update(display.Image(_picture(logged, of), width=640, height=240))  # no page jumps
        self.places[1].update({"text/plain": line}, raw=True)


def _picture(logged: Sequence[Any], of: int) -> bytes:
    steps, file = (
        pd.DataFrame(logged).set_index("step").reindex(columns=list(_DRAWN)).dropna(axis=1, how="all"),
        io.BytesIO(),
    )
    axis = Figure((6.4, 2.4), layout="constrained").subplots()
    steps.plot(ax=axis, color=_DRAWN, marker=".", xlim=(0.5, of + 0.5), xlabel="training step")
    axis.set_ylim(min(0.0, steps.min().min()), max(1.02, steps.max().max()))
    axis.figure.savefig(file, format="png", dpi=200)
    return file.getvalue()
