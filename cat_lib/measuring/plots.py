"""Every figure. Functions take tables and return figures; they read no state and write no file.

Colours are Okabe and Ito's, readable with colour-blind eyes; a method keeps its colour in all figures.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from cat_lib.shown import plain

COLOURS = {
    "single": "#0072B2",
    "greedy": "#56B4E9",
    "majority": "#E69F00",
    "synthesis": "#009E73",
    "synthesis_1": "#8BD3BB",
    "self_bon": "#CC79A7",
    "min_ppl": "#D55E00",
    "mutual_predictability": "#A6761D",
    "gold": "#000000",
    "pass@k": "#777777",
    "before": "#777777",
    "after": "#0072B2",
    "policy": "#0072B2",
    "untrained": "#777777",
    "anchor": "#009E73",
    "update": "#CC79A7",
    "judge": "#D55E00",
    "self-proposed": "#009E73",
    "one rollout": "#56B4E9",
    "question-only": "#E69F00",
    "physician": "#0072B2",
    "model-as-judge": "#D55E00",
}
_LABELS = {"single": "one sample", "greedy": "one greedy answer"}
GREY = "#777777"
_VERDICT = ["criterion", "rollout", "points", "met"]


def accuracy(scores: pd.DataFrame, group_size: int) -> Figure:
    """Accuracy by method, before and after, with 95 % intervals.

    scores: columns phase ("before", "after"), method, accuracy, low, high, n (`evaluation.score_table`).
    """
    figure, axis = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    methods = list(dict.fromkeys(scores["method"]))
    for offset, (phase, face) in enumerate((("before", "white"), ("after", None))):
        part = scores[scores["phase"] == phase].set_index("method").loc[methods]
        for i, (method, row) in enumerate(part.iterrows()):
            colour = COLOURS.get(str(method), GREY)
            x = i + (offset - 0.5) * 0.3
            axis.errorbar(
                x, row.accuracy, [[row.accuracy - row.low], [row.high - row.accuracy]], fmt="o", color=colour,
                markerfacecolor=face or colour, markersize=8, capsize=4,
            )  # fmt: skip
            axis.annotate(f"{row.accuracy:.2f}", (x, row.high), (0, 4), textcoords="offset points", ha="center")
    names = [_LABELS.get(m, f"{m}\nof {group_size} rollouts") for m in methods]
    axis.set_xticks(range(len(methods)), names)
    axis.set_xlim(-0.6, len(methods) - 0.4)
    axis.set_ylim(0, 1.05)
    axis.set_ylabel("held-out accuracy")
    axis.set_title(
        f"Before (open) and after (filled) training; 95 % intervals over n = {scores['n'].iloc[0]} questions"
    )
    return clean(figure)


def lines(history: pd.DataFrame, keys: Iterable[str], ylabel: str, title: str) -> Figure:
    """Metrics over training steps. history: one row a step; keys: columns, each a line under its own name."""
    figure, axis = plt.subplots(figsize=(7.2, 3.4), layout="constrained")
    colours = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7")
    for key, colour in zip(keys, colours, strict=False):
        part = history.dropna(subset=[key])
        axis.plot(part["step"], part[key], marker="o", markersize=4, color=colour, label=key)
    axis.set_xlabel("training step")
    axis.set_ylabel(ylabel)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylim(bottom=0)
    axis.set_title(title)
    axis.legend(frameon=False)
    return clean(figure)


def answer_distribution(
    question: str, gold: str, before: Sequence[str | None], after: Sequence[str | None], most: int = 8
) -> Figure:
    """How one group's rollouts answer one question, before and after; the right answer is marked."""
    counts = Counter(before) + Counter(after)
    shown = [a for a, _ in counts.most_common(most)]
    if gold not in shown:
        shown.append(gold)
    shown.sort(key=lambda a: (a is None, len(a or ""), a or ""))
    figure, axis = plt.subplots(figsize=(7.2, 3.2), layout="constrained")
    width = 0.4
    for side, (name, answers) in enumerate((("before", before), ("after", after))):
        heights = [sum(a == s for a in answers) / len(answers) for s in shown]
        places = [i + (side - 0.5) * width for i in range(len(shown))]
        axis.bar(places, heights, width, color=("#BBBBBB", "#0072B2")[side], label=name)
    names = ["none" if a is None else f"{plain(a)} (right)" if a == gold else plain(a) for a in shown]
    axis.set_xticks(range(len(shown)), names)
    axis.set_xlabel("answer")
    axis.set_ylabel("share of rollouts")
    axis.set_ylim(0, 1)
    axis.set_title(f"{plain(question)}  ({len(before)} rollouts each)")
    axis.legend(frameon=False)
    return clean(figure)


def compute(roles: pd.DataFrame) -> Figure:
    """Where the run's compute went. roles: index role; columns tokens, flops, seconds."""
    columns = {"tokens": "tokens (thousands)", "flops": "model TFLOP", "seconds": "seconds"}
    scales = {"tokens": 1e3, "flops": 1e12, "seconds": 1.0}
    figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.6), layout="constrained", sharey=True)
    for axis, (column, label) in zip(axes, columns.items(), strict=True):
        values = roles[column] / scales[column]
        bars = axis.barh(list(roles.index), values, color=[COLOURS.get(str(r), GREY) for r in roles.index])
        axis.bar_label(bars, fmt="{:.3g}", padding=3)
        axis.set_xlim(0, max(values) * 1.3)
        axis.set_xlabel(label)
    axes[0].invert_yaxis()
    figure.suptitle("Compute by role", fontsize=11)
    return clean(figure)


def verdict_matrix(verdicts: pd.DataFrame, title: str) -> Figure:
    """Which rollout meets which criterion; negative points mark a fault, and meeting it is bad.

    verdicts: columns rollout, criterion, points, met (True, False, or None: failed).
    """
    if verdicts.empty:
        title, verdicts = (
            f"{title}: no rubric, so no verdicts",
            pd.DataFrame([["none", 0, 1.0, None]], columns=_VERDICT),
        )
    table = verdicts.assign(value=verdicts["met"].map({True: 1.0, False: 0.0}).fillna(0.5))
    grid = table.pivot(index="criterion", columns="rollout", values="value")
    grid = grid.loc[list(dict.fromkeys(table["criterion"]))]
    points = table.drop_duplicates("criterion").set_index("criterion")["points"]
    labels = [c if (points == 1).all() else f"[{points[c]:+g}] {c}" for c in grid.index]
    names = [plain(textwrap.fill(c, 46, max_lines=2, placeholder=" ...")) for c in labels]
    figure, axis = plt.subplots(figsize=(7.2, 1.3 + 0.42 * len(grid)), layout="constrained")
    colours = ListedColormap(["#EEEEEE", "#E69F00", "#009E73"])
    axis.pcolormesh(grid.to_numpy(), cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=2)
    axis.set_xticks([i + 0.5 for i in range(grid.shape[1])], [str(c) for c in grid.columns])
    axis.set_yticks([i + 0.5 for i in range(len(grid))], names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("rollout")
    axis.set_title(plain(title), fontsize=11)
    patches = [Patch(color=colours(v), label=n) for v, n in ((1.0, "met"), (0.0, "not met"), (0.5, "no verdict"))]
    figure.legend(handles=patches, ncols=3, frameon=False, loc="outside lower center")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    plt.close(figure)
    return figure


def intervals(
    table: pd.DataFrame,
    value: str,
    xlabel: str,
    title: str,
    line: float | None = None,
    paper: Mapping[str, float | tuple[float, float]] | None = None,
) -> Figure:
    """A number with its 95 % interval for each kind. table: columns kind, `value`, low, high, n.

    `paper`: published values by kind, drawn beside ours as a diamond, or as a bar where a range is published.
    """
    figure, axis = plt.subplots(figsize=(7.2, 1.1 + 0.36 * len(table)), layout="constrained")
    for i, (_, row) in enumerate(table.iterrows()):
        colour = COLOURS.get(str(row.kind), "#0072B2")
        mean = row[value]
        axis.errorbar(mean, i, xerr=[[mean - row.low], [row.high - mean]], fmt="o", color=colour, capsize=4)
        published = (paper or {}).get(str(row.kind))
        if isinstance(published, tuple):
            axis.plot(published, [i + 0.28] * 2, color="black", linewidth=2, marker="|")
        elif published is not None:
            axis.plot(published, i + 0.28, "D", color="black", markerfacecolor="white", markersize=6)
    names = [f"{plain(k)} (n = {n})" for k, n in zip(table["kind"], table["n"], strict=True)]
    axis.set_yticks(range(len(table)), names)
    axis.set_ylim(len(table) - 0.5, -0.5)
    if line is not None:
        axis.axvline(line, color=GREY, linestyle="--", linewidth=1)
    if paper:
        mark = Line2D([], [], marker="D", color="black", markerfacecolor="white", linestyle="")
        label = "the paper's value or range, for its own models and task"
        figure.legend([mark], [label], frameon=False, loc="outside lower center")
    axis.set_xlabel(plain(xlabel))
    axis.set_title(plain(title), fontsize=11)
    clean(figure)
    axis.grid(axis="x", alpha=0.25)
    return figure


def by_arm(histories: Mapping[str, pd.DataFrame], keys: Mapping[str, str], title: str) -> Figure:
    """One panel a metric, one line an arm, over training steps. keys: column to axis label."""
    figure, axes = plt.subplots(1, len(keys), figsize=(7.2, 3.2), layout="constrained", squeeze=False)
    for axis, (key, label) in zip(axes[0], keys.items(), strict=True):
        for arm, history in histories.items():
            if key in history:
                part = history.dropna(subset=[key])
                colour = COLOURS.get(arm, GREY)
                axis.plot(part["step"], part[key], marker="o", markersize=4, color=colour, label=plain(arm))
        axis.set_xlabel("training step")
        axis.set_ylabel(label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=2, frameon=False, loc="outside lower center")
    figure.suptitle(plain(title), fontsize=11)
    return clean(figure)


def clean(figure: Figure) -> Figure:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.25)
        axis.set_axisbelow(True)
    plt.close(figure)  # a notebook shows what a cell returns; open figures would pile up
    return figure
