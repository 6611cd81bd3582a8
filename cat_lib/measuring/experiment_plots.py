"""The figures of the numbered experiments: curves, levels, a matrix of shares, and what quality costs."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from cat_lib.measuring.plots import COLOURS, GREY, clean
from cat_lib.shown import plain


def curves(
    table: pd.DataFrame,
    x: str,
    xlabel: str,
    title: str,
    by: str = "method",
    ylabel: str = "accuracy",
    log2: bool = True,
) -> Figure:
    """A line with its 95 % band for each kind in column `by`. table: columns x, `by`, accuracy, low, high."""
    figure, axis = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    for kind, part in table.groupby(by, sort=False):
        colour = COLOURS.get(str(kind), GREY)
        axis.plot(part[x], part["accuracy"], marker="o", markersize=5, color=colour, label=plain(kind))
        axis.fill_between(part[x], part["low"], part["high"], color=colour, alpha=0.12, linewidth=0)
    if log2:
        axis.set_xscale("log", base=2)
    ticks = sorted(table[x].unique())
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ylim(0, 1.02)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.set_title(plain(title), fontsize=11)
    figure.legend(*axis.get_legend_handles_labels(), ncols=4, frameon=False, loc="outside lower center")
    return clean(figure)


def levels(table: pd.DataFrame, title: str) -> Figure:
    """Accuracy of each method within each level. table: columns level, method, accuracy, low, high, n."""
    names, methods = list(dict.fromkeys(table["level"])), list(dict.fromkeys(table["method"]))
    figure, axis = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    for j, method in enumerate(methods):
        part = table[table["method"] == method].set_index("level").loc[names]
        places = [i + 0.8 * (j / max(1, len(methods) - 1) - 0.5) for i in range(len(names))]
        errors = [part["accuracy"] - part["low"], part["high"] - part["accuracy"]]
        colour = COLOURS.get(method, GREY)
        axis.errorbar(places, part["accuracy"], errors, fmt="o", markersize=5, capsize=2, color=colour, label=method)
    n = table.drop_duplicates("level").set_index("level")["n"]
    axis.set_xticks(range(len(names)), [f"{plain(name)}\n(n = {n[name]})" for name in names])
    axis.set_ylim(-0.02, 1.02)
    axis.set_ylabel("accuracy")
    axis.set_title(plain(title), fontsize=11)
    figure.legend(*axis.get_legend_handles_labels(), ncols=4, frameon=False, loc="outside lower center")
    return clean(figure)


def matrix(table: pd.DataFrame, title: str) -> Figure:
    """Shares in [0, 1] between kinds, as a square of numbers. table: index and columns are the kinds."""
    figure, axis = plt.subplots(figsize=(7.2, 1.2 + 0.45 * len(table)), layout="constrained")
    axis.pcolormesh(table.to_numpy(), cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=2)
    for i, row in enumerate(table.to_numpy()):
        for j, value in enumerate(row):
            colour = "white" if value > 0.6 else "black"
            axis.text(j + 0.5, i + 0.5, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=9)
    places = [i + 0.5 for i in range(len(table))]
    axis.set_xticks(places, [str(c).replace("_", "\n", 1) for c in table.columns], fontsize=8)
    axis.set_yticks(places, [str(c) for c in table.index], fontsize=9)
    axis.invert_yaxis()
    axis.set_title(plain(title), fontsize=11)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    plt.close(figure)
    return figure


def quality_against_cost(table: pd.DataFrame, title: str) -> Figure:
    """Accuracy against a question's cost, three panels.

    table: columns method, accuracy, low, high, tokens, gflops, seconds. Methods that start with "trained" are open.
    """
    labels = {"tokens": "generated tokens", "gflops": "model GFLOP", "seconds": "seconds"}
    figure, axes = plt.subplots(1, 3, figsize=(7.2, 3.4), layout="constrained", sharey=True)
    for axis, (column, label) in zip(axes, labels.items(), strict=True):
        for _, row in table.iterrows():
            errors = [[row.accuracy - row.low], [row.high - row.accuracy]]
            colour = COLOURS.get(row.method.removeprefix("trained, "), GREY)
            face = "white" if row.method.startswith("trained") else colour
            axis.errorbar(
                row[column], row.accuracy, errors, fmt="o", color=colour, markerfacecolor=face, label=row.method
            )
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(f"{label} a question")
    axes[0].set_ylabel("accuracy")
    axes[0].set_ylim(0, 1.02)
    figure.suptitle(plain(title), fontsize=11)
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=4, frameon=False, loc="outside lower center", fontsize=8)
    return clean(figure)


def break_even(fixed: float, each: Mapping[str, float], ylabel: str, title: str) -> Figure:
    """Total cost against questions answered: `fixed` is the training's, paid by kinds that start with "trained"."""
    figure, axis = plt.subplots(figsize=(7.2, 3.2), layout="constrained")
    counts = [10 ** (i / 10) for i in range(0, 61)]
    for kind, cost in each.items():
        start = fixed if kind.startswith("trained") else 0.0
        style = "--" if kind.startswith("trained") else "-"
        axis.plot(counts, [start + n * cost for n in counts], style, color=COLOURS.get(kind, "#0072B2"), label=kind)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("questions answered")
    axis.set_ylabel(ylabel)
    axis.set_title(plain(title), fontsize=11)
    axis.legend(frameon=False)
    return clean(figure)
