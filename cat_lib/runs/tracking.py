"""A run: a folder under results/runs/ that is the truth. `mirror.py` copies it to MLflow.

The kernel only ever writes files, so no tracking server can slow or break it; config.json has what the run is and how
it ended, metrics.jsonl every step as it came, metrics.json the results. Under the runner the folder exists already
(`CAT_LIB_RUN_DIR`), and the runner says how it ended. Executed by hand in JupyterLab, `start_run` makes a folder and
mirrors it, and `finish` or the kernel's exit ends it.

Who works on a folder holds a lock on a file in it. The operating system drops such a lock when its process is gone,
however it went: that, and no process number, tells a dead run from a living one. On a file system shared by machines
it works where flock does (Linux NFS, Lustre mounted with `flock`).

`CAT_LIB_TRACKING=off` leaves MLflow out; nothing else changes.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import math
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from cat_lib.files import Lock, append_line, write_json
from cat_lib.runs.provenance import code_version
from cat_lib.runs.provenance import environment as environment
from cat_lib.shown import masked

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from cat_lib.schema import Example

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "results" / "runs"
NOTEBOOKS = ROOT / "notebooks"
ENDED = ("FINISHED", "FAILED", "KILLED")


class TrackingError(RuntimeError):
    """The tracking server does not answer, or refuses."""


class FinishedError(RuntimeError):
    """The run has finished already, and was asked for once."""


class BusyError(RuntimeError):
    """Another process works on this run."""


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else the SQLite file under results/, always absolute."""
    default = f"sqlite:///{ROOT / 'results' / 'mlflow.db'}"
    return os.environ.get("MLFLOW_TRACKING_URI") or default


class Run:
    """One run's folder, or a part of it. Only the first of several training processes writes."""

    def __init__(self, folder: Path, root: Path | None = None, prefix: str = "") -> None:
        self.dir, self.root, self.prefix = folder, root or folder, prefix
        self.numbers: dict[str, float] = {}
        self.writes = os.environ.get("RANK", "0") == "0"
        folder.mkdir(parents=True, exist_ok=True)

    def part(self, name: str) -> Run:
        """One of several trainings in this run: a folder of its own, and `<name>/` before its metrics' keys."""
        return Run(self.dir / name, self.root, f"{self.prefix}{name}/")

    def tag(self, key: str, value: str) -> None:
        """One word on the run, to filter by."""
        self._update(self.root, tags=read_config(self.root).get("tags", {}) | {key: value})

    def step(self, metrics: Mapping[str, float], step: int, of: int = 0) -> None:
        """One training step's metrics, `of` so many, to metrics.jsonl. No store takes values that are not finite."""
        finite = {self.prefix + k: float(v) for k, v in metrics.items() if math.isfinite(v)}
        if self.writes:
            append_line(self.root / "metrics.jsonl", {"time": _now(), "step": step, "of": of, "metrics": finite})

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
        """Save <name>.parquet."""
        if self.writes:
            table.to_parquet(self.dir / f"{name}.parquet", index=False)

    def dataset(self, context: str, examples: Sequence[Example], source: str) -> None:
        """Note which questions were used, as a digest over ids, questions and keys: two runs used the same or not."""
        rows = [
            [e.id, e.question, e.gold, e.rubric and [(c.text, c.points) for c in e.rubric.criteria]] for e in examples
        ]
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]
        known = read_config(self.root).get("datasets", {})
        entry = {"source": source, "digest": digest, "n": len(rows)}
        self._update(self.root, datasets=known | {self.prefix + context: entry})

    def parameters(self, resolved: Mapping[str, Any]) -> None:
        """The parameters as they take effect, once the preset is known."""
        self._update(self.root, parameters=dict(resolved))

    def update_config(self, **entries: Any) -> None:
        """Add entries to config.json."""
        self._update(self.dir, **entries)

    def finish(self, status: str = "FINISHED", error: str = "") -> None:
        """End a run that this process owns; under the runner, the runner does."""
        if not os.environ.get("CAT_LIB_RUN_DIR"):
            self.end(status, error)
            atexit.unregister(self.finish)
            if mirrors := _by_hand.pop(self.dir, None):
                mirrors.end(self.dir)
                mirrors.close()

    def end(self, status: str, error: str = "") -> None:
        """Set how the run ended."""
        self.update_config(status=status, error=masked(error), ended=_now())

    def _update(self, folder: Path, **entries: Any) -> None:
        if self.writes:
            write_json(folder / "config.json", read_config(folder) | entries)


_by_hand: dict[Path, Any] = {}  # the mirrors of runs that this kernel owns
_locks: dict[Path, Lock] = {}  # held by this process until it ends, or until `settle`


def start_run(notebook: str, parameters: dict[str, Any]) -> Run:
    """The run of this notebook execution: the runner's, or a new one when executed by hand.

    Raises TrackingError if the tracking server cannot be reached, BusyError if another kernel holds the run.
    """
    if given := os.environ.get("CAT_LIB_RUN_DIR"):
        folder = Path(given)
        if folder not in _locks and os.environ.get("RANK", "0") == "0":
            _claim(folder, "kernel.lock")
        return Run(folder)
    mirrors = None
    if os.environ.get("CAT_LIB_TRACKING") != "off":
        from cat_lib.runs.mirror import Mirrors

        mirrors = Mirrors()
    run = open_run(notebook, parameters, RUNS / notebook / new_run_id())
    if mirrors:
        mirrors.add(run.dir)
        _by_hand[run.dir] = mirrors
    atexit.register(run.finish, "KILLED")  # a kernel that is shut down before the last cell
    return run


def current() -> Run | None:
    """The run that is open in this process, if one is."""
    given = os.environ.get("CAT_LIB_RUN_DIR")
    open_ = [Path(given)] if given else list(_by_hand)
    return Run(open_[-1]) if open_ else None


def new_run_id() -> str:
    """Sortable by time and unique: 20261123-091500-1a2b3c."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"


def open_run(
    notebook: str, parameters: dict[str, Any], folder: Path, labels: Mapping[str, str] | None = None, once: bool = False
) -> Run:
    """Lock the folder and make its config.json, or go on in a folder made earlier. `labels` become tags.

    Raises BusyError if another process works in it, and with `once` FinishedError if it has finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, "run.lock")
    try:
        if once and read_config(folder).get("status") == "FINISHED":
            raise FinishedError(f"{folder} has finished")
        _evict(folder)
    except BaseException:
        release(folder)
        raise
    run, known = Run(folder), read_config(folder)
    tags = {**known.get("tags", {}), **(labels or {}), "host": socket.gethostname()}
    if "stage" in tags:  # trained by `train_entry`; now the notebook goes on with it
        tags["stage"] = "notebook"
    about: dict[str, Any] = {"tags": tags} | environment()
    if not known:
        code = tags.get("code") or code_version(NOTEBOOKS / f"{notebook}.ipynb")
        about |= {"notebook": notebook, "run": folder.name, "given": parameters, "parameters": parameters, "code": code}
        about["started"] = _now()
    (folder / "metrics.json").unlink(missing_ok=True)  # of an earlier try, whose results may be half of them
    # in one write: the mirror reads the suite's name from the first that it sees
    run.update_config(**about, status="RUNNING", error="", ended=None, pid=os.getpid())
    return run


def settle(folder: Path, status: str, error: str) -> None:
    """Say how a run ended whose process could not: if nobody works on it any more, and it says that it runs."""
    lock = Lock(folder / "run.lock")
    if folder in _locks or not lock.acquire():
        return
    try:
        _evict(folder)
        if read_config(folder).get("status") == "RUNNING":
            Run(folder).end(status, error)
    finally:
        lock.release()


def release(folder: Path) -> None:
    """Let another process work on this folder."""
    if folder in _locks:
        _locks.pop(folder).release()


def _claim(folder: Path, name: str) -> None:
    lock = Lock(folder / name)
    for _ in range(20):  # who only looks whether it is free holds it for an instant
        if lock.acquire():
            break
        time.sleep(0.05)
    else:
        pid, host = lock.holder() or ("?", "?")
        raise BusyError(f"{folder} is in the hands of process {pid} on {host}; wait for it, or choose another run id")
    _locks[folder] = lock


def _evict(folder: Path) -> None:
    """End a kernel whose runner was killed before it could do so: it would write into what another run now owns."""
    lock, deadline = Lock(folder / "kernel.lock"), time.monotonic() + 10
    while holder := lock.holder():
        pid, host = holder
        if host not in ("", socket.gethostname()) or time.monotonic() > deadline:
            raise BusyError(f"a kernel of {folder} still runs (process {pid} on {host}); end it, then start again")
        with suppress(psutil.NoSuchProcess):  # gone since
            process = psutil.Process(pid)
            if "ipykernel" in " ".join(process.cmdline()):  # and not one that has its number by now
                process.kill()
        time.sleep(0.1)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a run, or nothing."""
    try:
        return dict(json.loads((folder / "config.json").read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError:
        print(f"{folder / 'config.json'} is damaged: as if there were no run", flush=True)
        return {}


def _now() -> int:
    return int(time.time() * 1000)
