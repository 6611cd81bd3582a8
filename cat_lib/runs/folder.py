"""A run: a folder under results/runs/ that is the truth, all that a notebook writes into it, and who works on it.

config.json has what the run is and how it ended, metrics.jsonl every step as it came, metrics.json the results. Only
files are written, so no tracking server can slow or break a kernel.

Who works on a folder holds a lock on a file in it. The operating system drops such a lock when its process is gone,
however it went: that, and no process number, tells a dead run from a living one. On a file system shared by machines
it works where flock does (Linux NFS, Lustre mounted with `flock`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from cat_lib.files import Lock, append_line, write_json
from cat_lib.runs import places
from cat_lib.runs.pages import write_table
from cat_lib.runs.provenance import code_version, environment
from cat_lib.shown import masked

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from cat_lib.schema import Example

ENDED = ("FINISHED", "FAILED", "KILLED")


class BusyError(RuntimeError):
    """Another process works on this run."""


class FinishedError(RuntimeError):
    """The run has finished already, and was asked for once."""


class RunError(RuntimeError):
    """A run that did not finish. `status` is FAILED or KILLED, `folder` holds what it left."""

    def __init__(self, message: str, status: str, folder: Path, storage: bool = False) -> None:
        super().__init__(message)
        self.status, self.folder, self.storage = status, folder, storage  # `storage`: the folder can't say so itself


class Run:
    """One run's folder, or a part of it. Only the first of several training processes writes."""

    def __init__(self, folder: Path, whole: Run | None = None, prefix: str = "") -> None:
        self.dir, self.whole, self.prefix = folder, whole or self, prefix
        self.numbers: dict[str, float] = {}
        self.writes = os.environ.get("RANK", "0") == "0"
        self.lock = Lock(folder / "run.lock")  # held by who works on the run, from `open_run` to `end`
        self.close: Callable[[], None] | None = None  # set by who lets this process say how the run ended
        folder.mkdir(parents=True, exist_ok=True)

    def part(self, name: str) -> Run:
        """One of several trainings in this run: a folder of its own, and `<name>/` before its metrics' keys."""
        return Run(self.dir / name, self.whole, f"{self.prefix}{name}/")

    def tag(self, key: str, value: str) -> None:
        """One word on the run, to filter by."""
        self._add("tags", {key: value})

    def step(self, metrics: Mapping[str, float], step: int, of: int = 0) -> None:
        """One training step's metrics, `of` so many, to metrics.jsonl. No store takes values that are not finite."""
        finite = {self.prefix + k: float(v) for k, v in metrics.items() if math.isfinite(v)}
        if self.writes:
            append_line(self.whole.dir / "metrics.jsonl", {"time": now(), "step": step, "of": of, "metrics": finite})

    def metrics(self, metrics: Mapping[str, float]) -> None:
        """Results of the run, added to metrics.json. Raises ValueError for a value that is not a finite number."""
        bad = {k: v for k, v in metrics.items() if not math.isfinite(v)}
        if bad:
            raise ValueError(f"metrics must be finite numbers, got {bad}; leave out what was not measured")
        self.numbers |= {k: float(v) for k, v in metrics.items()}
        if self.writes:
            write_json(self.dir / "metrics.json", self.numbers)

    def figure(self, name: str, figure: Figure) -> Figure:
        """Save figures/<name>.png and return the figure, so that a notebook cell can end with this call."""
        path = self.dir / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=150, bbox_inches="tight")
        return figure

    def table(self, name: str, table: pd.DataFrame) -> None:
        """Save <name>.parquet, and what pages show of it."""
        if self.writes:
            table.to_parquet(self.dir / f"{name}.parquet", index=False)
            write_table(self.dir / "tables" / f"{name}.json", table)

    def dataset(self, context: str, examples: Sequence[Example], source: str) -> None:
        """Note which questions were used, as a digest over ids, questions and keys: two runs used the same or not."""
        rows = [
            [e.id, e.question, e.gold, e.rubric and [(c.text, c.points) for c in e.rubric.criteria]] for e in examples
        ]
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]
        self._add("datasets", {self.prefix + context: {"source": source, "digest": digest, "n": len(rows)}})

    def parameters(self, resolved: Mapping[str, Any]) -> None:
        """The parameters as they take effect, once the preset is known."""
        self.whole.update_config(parameters=dict(resolved))

    def update_config(self, **entries: Any) -> None:
        """Add entries to config.json."""
        if self.writes:
            write_json(self.dir / "config.json", read_config(self.dir) | entries)

    def finish(self, status: str = "FINISHED", error: str = "") -> None:
        """End a run that this process owns; under the runner, the runner does."""
        if self.close:
            self.end(status, error)
            self.close()
            self.close = None

    def end(self, status: str, error: str = "") -> None:
        """Set how the run ended, and let another process work on it, even if that could not be written."""
        try:
            self.update_config(status=status, error=masked(error), ended=now())
        finally:
            self.lock.release()

    def _add(self, kind: str, entries: Mapping[str, Any]) -> None:
        """To a mapping in the whole run's config.json."""
        self.whole.update_config(**{kind: read_config(self.whole.dir).get(kind, {}) | entries})


def open_run(
    notebook: str, parameters: dict[str, Any], folder: Path, labels: Mapping[str, str] | None = None, once: bool = False
) -> Run:
    """Lock the folder and make its config.json, or go on in a folder made earlier. `labels` become tags.

    Raises BusyError if another process works in it, and with `once` FinishedError if it has finished.
    """
    run = Run(folder)
    claim(run.lock)
    known = read_config(folder)
    try:
        if once and known.get("status") == "FINISHED":
            raise FinishedError(f"{folder} has finished")
        _without_kernel(folder)
    except BaseException:
        run.lock.release()
        raise
    tags = known.get("tags", {})
    if "stage" in tags:  # of an earlier program, as `train_entry`; now the notebook goes on with it
        tags["stage"] = "notebook"
    tags |= {**(labels or {}), "host": socket.gethostname()}
    about: dict[str, Any] = {"tags": tags} | environment()
    if not known:
        code = tags.get("code") or code_version(places.NOTEBOOKS / f"{notebook}.ipynb")
        about |= {"notebook": notebook, "run": folder.name, "given": parameters, "parameters": parameters, "code": code}
        about["started"] = now()
    (folder / "metrics.json").unlink(missing_ok=True)  # of an earlier try, whose results may be half of them
    # in one write: the mirror reads the suite's name from the first that it sees
    run.update_config(**about, status="RUNNING", error="", ended=None, pid=os.getpid())
    return run


def settle(folder: Path, status: str, error: str) -> None:
    """Say how a run ended whose process could not: if nobody works on it any more, and it says that it runs."""
    run = Run(folder)
    if not run.lock.acquire():
        return
    try:
        _without_kernel(folder)
        if read_config(folder).get("status") == "RUNNING":
            run.end(status, error)
    finally:
        run.lock.release()


def claim(lock: Lock, patience: float = 1.0) -> None:
    """Hold a lock of a run's folder until it is released, or this process ends. Raises BusyError, naming its holder."""
    if not lock.acquire(patience=patience):  # who only looks whether it is free holds it for an instant
        pid, host = lock.holder() or ("?", "?")
        folder = lock.path.parent
        raise BusyError(f"{folder} is in the hands of process {pid} on {host}; wait for it, or choose another run id")


def _without_kernel(folder: Path) -> None:
    """Wait for a kernel whose runner was killed: it ends itself within a second; one that is stuck is ended here."""
    kernel = Lock(folder / "kernel.lock")
    if not kernel.acquire(patience=5):
        pid, host = kernel.holder() or (0, "")
        if pid and host == socket.gethostname():
            with suppress(psutil.Error):  # gone since, or another user's
                process = psutil.Process(pid)
                if "ipykernel" in " ".join(process.cmdline()):  # and not one that has its number by now
                    process.kill()
        if not kernel.acquire(patience=5):
            raise BusyError(f"a kernel of {folder} still runs (process {pid} on {host}); end it, then start again")
    kernel.release()


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a run, or nothing."""
    try:
        return dict(json.loads((folder / "config.json").read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError:
        print(f"{folder / 'config.json'} is damaged: as if there were no run", flush=True)
        return {}


def now() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)
