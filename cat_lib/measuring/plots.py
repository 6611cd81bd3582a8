"""Every figure. Functions take tables and return figures; they read no state and write no file.

A table has the columns of `measuring.tables`: method, value, low, high, n, and what it is about. The colours (of
colours.yaml) are readable with colour-blind eyes; a method keeps its own in all figures.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from cat_lib.shown import plain, visible

_USED = yaml.safe_load(Path(__file__).with_name("colours.yaml").read_text("utf-8"))
COLOURS = {name: colour for colour, names in _USED.items() for name in names}
GREY, BLUE = "#777777", "#0072B2"
# of kinds without an own colour
SPARE = (BLUE, "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#A6761D", "#44AA99", "#882255", GREY)
_COSTS = {"tokens": "generated tokens a question", "gflops": "model GFLOP a question", "seconds": "seconds a question"}
Published = Mapping[str, float | tuple[float, float] | None]  # by method a number, a range, or what nobody knows


def accuracy(scores: pd.DataFrame, group_size: int) -> Figure:
    """Accuracy by method, before and after. scores: the convention's columns and phase ("before", "after")."""
    figure, (axis,) = _panels(3.6)
    methods, names = scores["method"].unique(), {"single": "one sample", "greedy": "one greedy answer"}
    for offset, (phase, face) in enumerate((("before", "white"), ("after", None))):
        part = scores[scores["phase"] == phase].set_index("method", drop=False).loc[methods]
        for i, (_, row) in enumerate(part.iterrows()):
            x, colour = i + (offset - 0.5) * 0.3, COLOURS.get(row.method, GREY)
            _dot(axis, x, row, colour, markerfacecolor=face or colour, markersize=8, capsize=4)
            axis.annotate(f"{row.value:.2f}", (x, row.high), (0, 4), textcoords="offset points", ha="center")
    axis.set_xticks(range(len(methods)), [names.get(m, f"{m}\nof {group_size} rollouts") for m in methods])
    axis.set(xlim=(-0.6, len(methods) - 0.4), ylim=(0, 1.05), ylabel="held-out accuracy")
    title = f"Before (open) and after (filled) training; 95 % intervals over n = {scores['n'].iloc[0]} questions"
    return _done(figure, title)


def lines(history: pd.DataFrame, keys: Iterable[str], ylabel: str, title: str) -> Figure:
    """Metrics over training steps. history: one row a step; keys: columns, each a line under its own name."""
    figure, (axis,) = _panels(3.6)
    _lines(axis, history.melt("step", list(keys), "key"), "step", "value", "key")
    axis.set_ylim(bottom=0)
    axis.set_ylabel(ylabel)
    return _done(figure, title, legend=3)


def by_arm(histories: Mapping[str, pd.DataFrame], keys: Mapping[str, str], title: str) -> Figure:
    """One panel a metric, a line an arm, over training steps, its band where there is `<key>_low`. keys: to labels."""
    figure, axes = _panels(3.2, len(keys))
    steps = pd.concat(histories, names=["arm"]).reset_index("arm")
    for axis, (key, label) in zip(axes, keys.items(), strict=True):
        named = steps.rename(columns={f"{key}_{end}": end for end in ("low", "high")})
        named[key] = named.get(key, math.nan)  # a signal that no arm had
        _lines(axis, named, "step", key, "arm")
        axis.set_ylabel(label)
    return _done(figure, title, legend=2)


def answer_distribution(question: str, gold: str, before: Sequence[str | None], after: Sequence[str | None]) -> Figure:
    """How one group's rollouts answer one question, before and after; the right answer is marked."""
    frequent = {a for a, _ in (Counter(before) + Counter(after)).most_common(8)}
    shown = sorted(frequent | {gold}, key=lambda a: (a is None, len(a or ""), a or ""))
    figure, (axis,) = _panels(3.4)
    for side, (name, answers, colour) in enumerate((("before", before, "#BBBBBB"), ("after", after, BLUE))):
        heights = [sum(a == s for a in answers) / len(answers) for s in shown]
        axis.bar([i + (side - 0.5) * 0.4 for i in range(len(shown))], heights, 0.4, color=colour, label=name)
    names = ["none" if a is None else f"{plain(a)} (right)" if a == gold else plain(a) for a in shown]
    axis.set_xticks(range(len(shown)), names)
    axis.set(xlabel="answer", ylabel="share of rollouts", ylim=(0, 1))
    return _done(figure, f"{question}  ({len(before)} rollouts each)", legend=2)


def compute(roles: pd.DataFrame) -> Figure:
    """Where the run's compute went. roles: index role; columns tokens, flops, seconds."""
    units = {"tokens": ("tokens (thousands)", 1e3), "flops": ("model TFLOP", 1e12), "seconds": ("seconds", 1.0)}
    figure, axes = _panels(2.6, 3, sharey=True)
    for axis, (column, (label, scale)) in zip(axes, units.items(), strict=True):
        values = roles[column] / scale
        bars = axis.barh(list(roles.index), values, color=[COLOURS.get(str(r), GREY) for r in roles.index])
        axis.bar_label(bars, fmt="{:.3g}", padding=3)
        axis.set(xlim=(0, max(values) * 1.3), xlabel=label)
    axes[0].invert_yaxis()
    return _done(figure, "Compute by role")


def verdict_matrix(verdicts: pd.DataFrame, title: str) -> Figure:
    """Which rollout meets which criterion; negative points mark a fault, and meeting it is bad.

    verdicts: columns rollout, criterion, points, met (True, False, or None: failed).
    """
    if verdicts.empty:
        title = f"{title}: no rubric, so no verdicts"
        verdicts = pd.DataFrame([["none", 0, 1.0, None]], columns=["criterion", "rollout", "points", "met"])
    table = verdicts.assign(value=verdicts["met"].map({True: 1.0, False: 0.0}).fillna(0.5))
    points = table.drop_duplicates("criterion").set_index("criterion")["points"]
    grid = table.pivot(index="criterion", columns="rollout", values="value").loc[points.index]
    labels = [c if (points == 1).all() else f"[{points[c]:+g}] {c}" for c in grid.index]
    names = [plain(textwrap.fill(c, 46, max_lines=2, placeholder=" ...")) for c in labels]
    colours = ListedColormap(["#EEEEEE", "#E69F00", "#009E73"])
    figure, axis = _squares(grid, title, colours, [str(c) for c in grid.columns], names, 1.3 + 0.42 * len(grid))
    axis.set_xlabel("rollout")
    patches = [Patch(color=colours(v), label=n) for v, n in ((1.0, "met"), (0.0, "not met"), (0.5, "no verdict"))]
    figure.legend(handles=patches, ncols=3, frameon=False, loc="outside lower center")
    return figure


def matrix(table: pd.DataFrame, title: str) -> Figure:
    """Shares in [0, 1] between kinds, as a square of numbers. table: index and columns are the kinds."""
    columns, rows = [str(c).replace("_", "\n", 1) for c in table.columns], [str(c) for c in table.index]
    figure, axis = _squares(table, title, "Blues", columns, rows, 1.2 + 0.45 * len(table))
    for (i, j), value in np.ndenumerate(table):
        colour = "white" if value > 0.6 else "black"
        axis.text(j + 0.5, i + 0.5, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=9)
    return figure


def intervals(
    table: pd.DataFrame, xlabel: str = "", title: str = "", line: float | None = None, paper: Published | None = None
) -> Figure:
    """A number with its 95 % interval for each method. `line`: a dashed one; None: at 0 if the table is of differences.

    `paper`: published values by method, drawn beside ours as a diamond, or as a bar where a range is published.
    """
    names = [_named(method) for method in table["method"]]
    figure, (axis,) = _panels(1.1 + 0.36 * len(table) + 0.14 * "".join(names).count("\n"))
    for i, (_, row) in enumerate(table.iterrows()):
        colour = COLOURS.get(str(row.method), BLUE)
        limits = [[row.value - row.low], [row.high - row.value]]
        axis.errorbar(row.value, i, xerr=limits, fmt="o", color=colour, capsize=4)
        published = (paper or {}).get(str(row.method))
        if isinstance(published, tuple):
            axis.plot(published, [i + 0.28] * 2, color="black", linewidth=2, marker="|")
        elif published is not None:
            axis.plot(published, i + 0.28, "D", color="black", markerfacecolor="white", markersize=6)
    n = ["unknown" if n != n else f"{n:.0f}" for n in table["n"]]
    axis.set_yticks(range(len(table)), [f"{name} (n = {count})" for name, count in zip(names, n, strict=True)])
    axis.set_ylim(len(table) - 0.5, -0.5)
    if line is not None or "outcome" in table:
        axis.axvline(line or 0.0, color=GREY, linestyle="--", linewidth=1)
    if paper:
        label = "the paper's value or range, for its own models and task"
        axis.plot([], [], "D", color="black", markerfacecolor="white", label=label)
    axis.set_xlabel(plain(xlabel))
    _done(figure, title, legend=bool(paper))
    axis.grid(axis="x", alpha=0.25)
    return figure


def curves(
    table: pd.DataFrame,
    x: str,
    xlabel: str,
    title: str,
    by: str = "method",
    ylabel: str = "accuracy",
    log2: bool = True,
) -> Figure:
    """A line with its 95 % band for each kind in column `by`, over the column `x`."""
    figure, (axis,) = _panels(3.6)
    _lines(axis, table, x, "value", by)
    if log2:
        axis.set_xscale("log", base=2)
    ticks = sorted(table[x].unique())
    axis.set_xticks(ticks, [f"{round(tick, 3):g}" for tick in ticks])
    axis.set(ylim=(0, 1.02), xlabel=xlabel, ylabel=ylabel)
    return _done(figure, title, legend=4)


def levels(table: pd.DataFrame, title: str, ylabel: str = "accuracy") -> Figure:
    """Accuracy, or what `ylabel` says, of each method within each value of the column `level`."""
    names, methods = table["level"].unique(), table["method"].unique()
    (figure, (axis,)), colours = _panels(3.6), _colours(methods)
    for j, method in enumerate(methods):
        part = table[table["method"] == method].set_index("level").loc[names]
        places = [i + 0.6 * (j / max(1, len(methods) - 1) - 0.5) for i in range(len(names))]
        _dot(axis, places, part, colours[method], markersize=5, capsize=2, label=method)
    n = table.drop_duplicates("level").set_index("level")["n"]
    axis.set_xticks(range(len(names)), [f"{plain(name)}\n(n = {n[name]})" for name in names])
    axis.set(ylim=(-0.02, 1.02), ylabel=ylabel)
    return _done(figure, title, legend=4)


def quality_against_cost(table: pd.DataFrame, title: str, costs: Mapping[str, str] = _COSTS, y: str = "") -> Figure:
    """A metric `y`, or accuracy, against its cost, one panel a column of `costs`; "trained, ..." are open."""
    figure, axes = _panels(3.4, len(costs), sharey=True)
    for axis, (column, label) in zip(axes, costs.items(), strict=True):
        for i, (_, row) in enumerate(table.iterrows()):
            colour = COLOURS.get(row.method.removeprefix("trained, "), SPARE[i % len(SPARE)])
            face = "white" if row.method.startswith("trained") else colour
            _dot(axis, row[column], row, colour, markerfacecolor=face, label=_named(row.method))
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(label)
    axes[0].set(ylabel=plain(y or "accuracy"), ylim=None if y else (0, 1.02))
    return _done(figure, title, legend=4, fontsize=8)


def break_even(fixed: float, each: Mapping[str, float], ylabel: str, title: str) -> Figure:
    """Total cost against questions answered: `fixed` is the training's, paid by kinds that start with "trained"."""
    figure, (axis,) = _panels(3.4)
    counts = [10 ** (i / 10) for i in range(0, 61)]
    for kind, cost in each.items():
        start, style = (fixed, "--") if kind.startswith("trained") else (0.0, "-")
        axis.plot(counts, [start + n * cost for n in counts], style, color=COLOURS.get(kind, BLUE), label=kind)
    axis.set(xscale="log", yscale="log", xlabel="questions answered", ylabel=ylabel)
    return _done(figure, title, legend=3)


def _named(method: object) -> str:
    """A name in lines of 44 characters; of a long one the middle is left out, for both ends tell."""
    name = visible(method)
    return plain(textwrap.fill(name if len(name) <= 88 else f"{name[:40]} ... {name[-40:]}", 44))


def _panels(height: float, count: int = 1, sharey: bool = False) -> tuple[Figure, Sequence[Axes]]:
    figure, axes = plt.subplots(1, count, figsize=(7.2, height), layout="constrained", sharey=sharey, squeeze=False)
    return figure, axes[0]


def _colours(kinds: Sequence[Any]) -> dict[Any, str]:
    """The own colour of each kind that has one; the others share those that are left."""
    taken = {COLOURS.get(str(kind)) for kind in kinds}
    left = cycle([colour for colour in SPARE if colour not in taken] or SPARE)
    return {kind: COLOURS.get(str(kind)) or next(left) for kind in kinds}


def _dot(axis: Axes, x: Any, row: Any, colour: str, **style: Any) -> None:
    """A value with its interval at x: of a row, or those of a whole table at as many places."""
    errors = np.reshape([row.value - row.low, row.high - row.value], (2, -1))
    axis.errorbar(x, row.value, errors, fmt="o", color=colour, **style)


def _lines(axis: Axes, table: pd.DataFrame, x: str, y: str, by: str) -> None:
    """Column `y` over `x`, a line for each kind in column `by`, and its 95 % band where the table has limits."""
    for kind, colour in _colours(table[by].unique()).items():  # one each, whatever a panel lacks
        if (part := table[table[by] == kind].dropna(subset=[y])).empty:
            continue
        axis.plot(part[x], part[y], marker="o", markersize=4, color=colour, label=_named(kind))
        if "low" in part:
            axis.fill_between(part[x], part["low"], part["high"], color=colour, alpha=0.12, linewidth=0)
    if x == "step":
        axis.set_xlabel("training step")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _squares(
    grid: pd.DataFrame, title: str, colours: Any, columns: Sequence[str], rows: Sequence[str], height: float
) -> tuple[Figure, Axes]:
    """A field of squares coloured by values from 0 to 1, first row on top."""
    figure, (axis,) = _panels(height)
    axis.pcolormesh(grid.to_numpy(), cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=2)
    axis.set_xticks([i + 0.5 for i in range(len(columns))], columns, fontsize=8)
    axis.set_yticks([i + 0.5 for i in range(len(rows))], rows, fontsize=8)
    axis.invert_yaxis()
    figure.suptitle(plain(title), fontsize=11)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    plt.close(figure)
    return figure, axis


def _done(figure: Figure, title: str, legend: int = 0, fontsize: float | None = None) -> Figure:
    """The figure with its title, light axes, and a legend of that many columns below it, if any."""
    figure.suptitle(plain(title), fontsize=11)
    if legend:
        shown = dict[str, Any]()  # of all panels: one may have kinds that another lacks
        for axis in figure.axes:
            handles, labels = axis.get_legend_handles_labels()
            shown = dict(zip(labels, handles, strict=True)) | shown
        figure.legend(shown.values(), shown, ncols=legend, frameon=False, loc="outside lower center", fontsize=fontsize)
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.25)
        axis.set_axisbelow(True)
    plt.close(figure)  # a notebook shows what a cell returns; open figures would pile up
    return figure
