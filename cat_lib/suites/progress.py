"""What a suite is doing: a line for each change, what runs in a live table or in lines, and what each run found."""

from __future__ import annotations

import html
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from cat_lib.runs.pages import NOTEBOOK, story
from cat_lib.shown import duration, printed, visible
from cat_lib.suites.batch import Batch, State, Word

_LIVE_EVERY, _PLAIN_EVERY = 0.25, 60.0  # seconds between two looks at what runs, on a terminal and elsewhere
_TAIL = 65_536  # bytes that hold the last step's line
_SHOWN = ("reward", "label_accuracy", "agreement", "validation_loss", "loss")  # the first there is, else any
_FAILED = (Word.FAILED, Word.KILLED)
_ENDS = ("_before", "_after", "_difference", "_difference_low", "_difference_high")  # of a score's keys


@contextmanager
def progress(console: Console) -> Iterator[Callable[[Batch], None]]:
    """Meanwhile each call of what it gives shows a batch."""
    live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
    told, began, looked = dict[str, str](), time.time(), 0.0

    def show(batch: Batch) -> None:
        nonlocal looked
        lines = {s.entry.name: _line(s) for s in batch.states if s.word != Word.WAITING}
        refused = f"no more is taken now, and asked for again later: {_one_line(batch.refusal)}"
        for key, line in (lines | {"": refused if batch.refusal else ""}).items():
            if line not in ("", told.get(key)):
                print(line, flush=True)  # on a terminal, above the table
            told[key] = line
        if time.time() - looked < (_LIVE_EVERY if live else _PLAIN_EVERY):
            return
        looked = time.time()
        rows = [_row(batch, s) for s in batch.found(Word.RUNNING)]
        if live:
            counts = ", ".join(f"{n} {word}" for word, n in Counter(s.word for s in batch.states).items())
            stopping = "  (stopping; Ctrl-C again ends at once)" if batch.stops else ""
            title = f"{batch.suite.name}: {counts}; {duration(time.time() - began)}{stopping}"
            table = Table("entry", "cell", "step", "elapsed", "remaining", "last metric", title=title)
            for row in rows:
                table.add_row(*map(escape, row))
            live.update(table)
        else:
            for name, cell, step, elapsed, remaining, metric in rows:
                print(f"{name}: cell {cell} step {step} elapsed {elapsed} remaining {remaining} {metric}", flush=True)

    with live or nullcontext():
        yield show


def _line(state: State) -> str:
    took = f" in {duration(state.seconds)}" if state.seconds else ""
    return f"{state.word}: {state.entry.name}{took} {_one_line(state.why)}".rstrip()


def _row(batch: Batch, state: State) -> tuple[str, ...]:
    """What a running entry has written so far, and how long it still takes.

    That is from earlier runs of its notebook, or at least what the training under way still takes.
    """
    now, last = _read(state.entry.folder / "progress.json"), dict[str, Any]()
    cell = f"{now['cell']}/{now['cells']}" if now else ""
    with suppress(OSError, ValueError, IndexError), (state.entry.folder / "metrics.jsonl").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
        last = json.loads(file.read().split(b"\n")[-2])  # a line without its end may still be written
    step, of, values = last.get("step", 0), last.get("of", 0), last.get("metrics", {})
    ends = {key.rsplit("/", 1)[-1]: key for key in values}
    key = next((ends[k] for k in _SHOWN if k in ends), next(iter(values), ""))
    elapsed, remaining = time.time() - state.started, "?"
    if same := [s.seconds for s in batch.found(Word.FINISHED) if s.entry.notebook == state.entry.notebook]:
        remaining = duration(max(0.0, median(same) - elapsed))
    elif of and step:
        remaining = f"> {duration(elapsed / step * (of - step))}"
    steps, metric = f"{step}/{of}" if of else str(step or ""), f"{key} {values[key]:.3g}" if key else ""
    return state.entry.name, cell, steps, duration(elapsed), remaining, metric


def planned(states: list[State], gigabytes: Mapping[str, float | None]) -> Table:
    """The expanded suite, for --dry-run: what each entry sets, what would be done with it, what it needs."""
    table = Table("", "entry", "parameters set", "would", "GB", title=f"{len(states)} entries")
    for i, state in enumerate(states, 1):
        given = ", ".join(f"{k}={v}" for k, v in state.entry.given.items())
        would = "run" if state.word == Word.WAITING else f"be {state.word}"
        need = gigabytes.get(state.entry.name)
        cells = (state.entry.name, given, f"{would}; {state.why}" if state.why else would)
        table.add_row(str(i), *map(escape, cells), f"{need:.1f}" if need else "?")
    return table


def summary(states: list[State]) -> list[str]:
    """What each run found, how it all ended, and for each failure the command that shows it."""
    counts, lines = Counter(s.word for s in states), list[str]()
    for state in states:
        if state.word in (Word.FINISHED, Word.SKIPPED):
            lines += [f"{state.entry.name}:", *(f"    {line}" for line in found(state.entry.folder))]
    lines.append(", ".join(f"{n} {word}" for word, n in counts.items()))
    for state in states:
        if state.word in _FAILED:
            lines.append(f"{state.word}: {state.entry.name}: {_one_line(state.why)}")
            lines.append(f"    tail -n 40 '{state.entry.folder}/output.log'")
    if any(s.word in (*_FAILED, Word.NOT_STARTED) for s in states):
        lines.append("the same command again runs what is missing; training goes on from its checkpoints")
    return lines


def found(folder: Path) -> list[str]:
    """What a finished run found, in lines: what it showed under its last heading `Verdict`, its scores and figures."""
    known, text = _read(folder / "metrics.json"), ""
    with suppress(KeyError, TypeError):  # a notebook of another hand
        text = story(_read(folder / NOTEBOOK)["cells"], {"status": "FINISHED"})[1]
        text = html.unescape(text.replace("**", ""))
    lines = [line for line in text.splitlines() if line.strip()]
    if scores := [k.removesuffix("_before") for k in known if k.endswith("_before")]:
        names = [end.rpartition("_")[2] for end in _ENDS]
        table = pd.DataFrame([[known.get(k + end) for end in _ENDS] for k in scores], scores, names, float)
        lines += table.to_string(float_format="{:.3f}".format, na_rep="").splitlines()
    if figures := sorted(path.stem for path in (folder / "figures").glob("*.png")):
        lines.append(f"figures: {folder / 'figures'} ({', '.join(figures)})")
    return [printed(line, 500) for line in [*lines, *(f"report: {path}" for path in folder.glob("report.html"))]]


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return dict(json.loads(path.read_text("utf-8")))
    return {}


def _one_line(text: str) -> str:
    """Text that may hold a model's words."""
    return " ".join(visible(text).split())
