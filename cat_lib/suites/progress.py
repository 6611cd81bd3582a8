"""What a suite is doing, as one live table on a terminal and as plain lines elsewhere."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from cat_lib.files import read_lines
from cat_lib.suites.batch import Batch, State, Word

_PLAIN_EVERY = 60.0  # seconds between two lines of a running entry
_SHOWN = ("reward", "label_accuracy", "agreement", "validation_loss", "loss")  # the first there is, else any
_COLOURS = {Word.FINISHED: "green", Word.FAILED: "red", Word.KILLED: "yellow"}


@dataclass
class Seen:
    """What a running entry has written so far."""

    offset: int = 0
    step: int = 0
    of: int = 0
    metric: str = ""
    cell: str = ""

    def look(self, folder: Path) -> None:
        """Read what is new."""
        for offset, line in read_lines(folder / "metrics.jsonl", self.offset):
            self.offset = offset
            self.step, self.of = line["step"], line.get("of", 0)
            values: Mapping[str, float] = line["metrics"]
            ends = {key.rsplit("/", 1)[-1]: key for key in values}
            key = next((ends[k] for k in _SHOWN if k in ends), next(iter(values), ""))
            self.metric = f"{key} {values[key]:.3g}" if key else ""
        try:
            now = json.loads((folder / "progress.json").read_text())
            self.cell = f"{now['cell']}/{now['cells']}"
        except (OSError, ValueError):
            self.cell = ""

    def remaining(self, elapsed: float, usual: float | None) -> str:
        """From earlier runs of the notebook, or at least what the training under way still takes."""
        if usual:
            return clock(max(0.0, usual - elapsed))
        return f"> {clock(elapsed / self.step * (self.of - self.step))}" if self.of and self.step else "?"


class Progress:
    """Shows a batch at each call: `show`."""

    def __init__(self, console: Console) -> None:
        self.console, self.live = console, Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self.seen: dict[Path, Seen] = {}
        self.words: dict[str, str] = {}
        self.said, self.began, self.refusal = 0.0, time.time(), ""

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def show(self, batch: Batch) -> None:
        """One look at all that runs."""
        rows = [self._row(batch, s) for s in batch.states if s.word == Word.RUNNING]
        if self.live:
            self.live.update(self._table(batch, rows))
        else:
            self._lines(batch, rows)

    def _table(self, batch: Batch, rows: list[tuple[str, ...]]) -> Table:
        table = Table("entry", "cell", "step", "elapsed", "remaining", "last metric", title=self._title(batch))
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        ended = [s for s in batch.states if s.word in _COLOURS]
        for state in ended[-8:]:
            word = f"[{_COLOURS[state.word]}]{state.word}[/]"
            table.add_row(escape(state.entry.name), word, "", clock(state.seconds), "", escape(shown(state.error)[:80]))
        return table

    def _lines(self, batch: Batch, rows: list[tuple[str, ...]]) -> None:
        for state in batch.states:
            if self.words.get(state.entry.name, Word.WAITING) != state.word:
                took = f" in {clock(state.seconds)}" if state.seconds else ""
                print(f"{state.word}: {state.entry.name}{took} {shown(state.error or state.note)}".rstrip(), flush=True)
            self.words[state.entry.name] = state.word
        if batch.refusal not in ("", self.refusal):
            print(f"no more is taken now, and asked for again later: {shown(batch.refusal)}", flush=True)
        self.refusal = batch.refusal
        if time.time() - self.said > _PLAIN_EVERY:
            self.said = time.time()
            for name, cell, step, elapsed, remaining, metric in rows:
                print(f"{name}: cell {cell} step {step} elapsed {elapsed} remaining {remaining} {metric}", flush=True)

    def _row(self, batch: Batch, state: State) -> tuple[str, ...]:
        seen = self.seen.setdefault(state.entry.folder, Seen())
        seen.look(state.entry.folder)
        elapsed = time.time() - state.started
        same = [s.seconds for s in batch.states if s.word == Word.FINISHED and s.entry.notebook == state.entry.notebook]
        step = f"{seen.step}/{seen.of}" if seen.of else str(seen.step or "")
        remaining = seen.remaining(elapsed, median(same) if same else None)
        return state.entry.name, seen.cell, step, clock(elapsed), remaining, seen.metric

    def _title(self, batch: Batch) -> str:
        counts = Counter(s.word for s in batch.states)
        parts = ", ".join(f"{n} {word}" for word, n in counts.items())
        stopping = "  (stopping; Ctrl-C again ends at once)" if batch.stops else ""
        refusal = f"  (no more is taken now: {shown(batch.refusal)})" if batch.refusal else ""
        return f"{batch.suite.name}: {parts}; {clock(time.time() - self.began)}{stopping}{escape(refusal)}"


def planned(states: list[State], gigabytes: Mapping[str, float | None]) -> Table:
    """The expanded suite, for --dry-run: what each entry sets, what would be done with it, what it needs."""
    table = Table("", "entry", "parameters set", "would", "GB", title=f"{len(states)} entries")
    for i, state in enumerate(states, 1):
        given = ", ".join(f"{k}={v}" for k, v in state.entry.given.items())
        would = "run" if state.word == Word.WAITING else f"be {state.word}"
        need = gigabytes.get(state.entry.name)
        cells = (state.entry.name, given, f"{would}; {state.note}" if state.note else would)
        table.add_row(str(i), *map(escape, cells), f"{need:.1f}" if need else "?")
    return table


def summary(states: list[State]) -> list[str]:
    """How it ended, and for each failure the command that shows it."""
    counts = Counter(s.word for s in states)
    lines = [", ".join(f"{n} {word}" for word, n in counts.items())]
    for state in states:
        if state.word in (Word.FAILED, Word.KILLED):
            lines.append(f"{state.word}: {state.entry.name}: {shown(state.error)}")
            lines.append(f"    tail -n 40 '{state.entry.folder}/output.log'")
    if any(s.word in (Word.FAILED, Word.KILLED, Word.NOT_STARTED) for s in states):
        lines.append("the same command again runs what is missing; training goes on from its checkpoints")
    return lines


def shown(text: str) -> str:
    """Text that may hold a model's words, on one line and without what a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def clock(seconds: float) -> str:
    """1:02:03, or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
