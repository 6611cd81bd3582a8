"""Copies runs' folders to MLflow, from one thread, again and again until both say the same.

A folder is the truth, so nothing is lost while a store is away: what could not be sent is sent at the next round.
Sending twice changes nothing, so a copy that was cut off begins anew, `import_run` is the same copy into an empty
store, and one process can serve all runs of a suite.

Left out: metrics of a step that was trained twice (a resume goes back to a checkpoint) stay as they were first sent.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cat_lib.files import Lock, read_lines
from cat_lib.runs import tracking
from cat_lib.runs.store import SUITE, advice, connect, experiment_of, find_or_create, tags_of
from cat_lib.runs.tracking import TrackingError, read_config
from cat_lib.shown import masked

PATIENCE = float(os.environ.get("CAT_LIB_STORE_PATIENCE", "120"))  # seconds that the end waits for a store that is away
_EVERY, _ARTIFACTS_EVERY = 1.0, 15.0  # seconds
_PARAM_LIMIT, _TAG_LIMIT = 6000, 8000  # MLflow's, in characters
_BATCH, _PARAMS = 1000, 100  # MLflow's, in one call
# what a run keeps for itself: checkpoints, tables by step that are joined at the end, locks, notes of the mirror
_SKIPPED = re.compile(
    r"(^|/)(checkpoints|rollouts|verdicts|rubrics|slurm|\.[^/]*)/|\.(lock|partial|db)$|^mlflow\.json$"
)


class Mirror:
    """One folder's copy. `sync` raises whatever the store raises; the next call goes on where it stopped."""

    def __init__(self, folder: Path, client: Any) -> None:
        self.folder, self.client = folder, client
        self.forget()

    def forget(self) -> None:
        """Begin anew: the store has lost the run, as when its experiment was deleted meanwhile."""
        self.run_id = ""
        self._parameters: set[str] = set()
        self._tags: dict[str, str] = {}
        self._datasets: Any = None
        self._status = ""
        self._offsets: dict[str, int] = {}
        self._steps: set[tuple[str, int]] = set()
        self._files: dict[str, tuple[int, int]] = {}
        self._artifacts_at = 0.0

    def sync(self, final: bool = False, status: str | None = None, error: str = "") -> None:
        """Send what the store has not. `final` sends all files and the status; `status` speaks for a full disk."""
        config = read_config(self.folder)
        if not config:
            return
        config |= {"status": status, "error": error} if status else {}
        if not self.run_id:
            self.run_id = find_or_create(self.client, self.folder, config)
            known = self.client.get_run(self.run_id).data
            self._parameters, self._tags = set(known.params), dict(known.tags)
        if not final and not self._status:
            self._status = "RUNNING"
            self.client.update_run(self.run_id, status="RUNNING")
        self._words(config)
        for name in ("metrics.jsonl", "system.jsonl"):
            self._history(name)
        results = self.folder / "metrics.json"
        if final and results.exists():
            when = config.get("ended") or config.get("started", 0)
            self._log([(k, v, when, 0) for k, v in json.loads(results.read_text()).items()])
        if final or time.monotonic() - self._artifacts_at > _ARTIFACTS_EVERY:
            self._artifacts()
            self._artifacts_at = time.monotonic()
        if final:
            self.client.set_terminated(self.run_id, config["status"], config.get("ended"))

    def _words(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param, RunTag

        values = {k: masked(v)[:_PARAM_LIMIT] for k, v in config.get("parameters", {}).items() if v is not None}
        fresh = [Param(k, v) for k, v in values.items() if k not in self._parameters]  # MLflow's cannot change
        for i in range(0, len(fresh), _PARAMS):
            self.client.log_batch(self.run_id, params=fresh[i : i + _PARAMS])
        tags = {k: v[:_TAG_LIMIT] for k, v in tags_of(config, self.folder).items()}
        if changed := [RunTag(k, v) for k, v in tags.items() if self._tags.get(k) != v]:
            self.client.log_batch(self.run_id, tags=changed)
        if "error" in self._tags and "error" not in tags:  # of an earlier try
            self.client.delete_tag(self.run_id, "error")
            del self._tags["error"]
        self._parameters |= set(values)
        self._tags |= tags
        if (datasets := config.get("datasets")) and datasets != self._datasets:
            self.client.log_inputs(self.run_id, list(_inputs(datasets)))
            self._datasets = datasets

    def _history(self, name: str) -> None:
        entries, seen, end = [], set[tuple[str, int]](), self._offsets.get(name, 0)
        for offset, line in read_lines(self.folder / name, end):
            end = offset
            fresh = {(k, line["step"]): v for k, v in line["metrics"].items()}
            for key in fresh.keys() - self._steps - seen:
                entries.append((key[0], fresh[key], line["time"], key[1]))
                seen.add(key)
        self._log(entries)
        self._offsets[name] = end
        self._steps |= seen

    def _log(self, entries: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        for i in range(0, len(entries), _BATCH):
            self.client.log_batch(self.run_id, metrics=[Metric(*entry) for entry in entries[i : i + _BATCH]])

    def _artifacts(self) -> None:
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if _SKIPPED.search(name) or path.is_symlink() or not path.is_file():
                continue
            about = path.stat()
            if self._files.get(name) != (about.st_mtime_ns, about.st_size):
                parent = Path(name).parent.as_posix()
                self.client.log_artifact(self.run_id, str(path), None if parent == "." else parent)
                self._files[name] = (about.st_mtime_ns, about.st_size)


class Mirrors:
    """Keeps folders and the store the same from one thread. Raises TrackingError if the store can't be used now."""

    def __init__(self) -> None:
        self.client = connect()
        self._open: dict[Path, Mirror] = {}
        self._ending: dict[Path, tuple[Mirror, str | None, str]] = {}
        self._reaped: set[str] = set()
        self._lock, self._stop, self._away = threading.Lock(), threading.Event(), 0.0
        self._thread = threading.Thread(target=self._rounds, name="mirror", daemon=True)
        self._thread.start()

    def add(self, folder: Path) -> None:
        """Begin to copy a folder; its config.json may come later."""
        with self._lock:
            self._open[folder] = Mirror(folder, self.client)

    def end(self, folder: Path, status: str | None = None, error: str = "") -> None:
        """Send the rest of a folder, in the background; `status` speaks for a folder that can't be written."""
        with self._lock:
            mirror = self._open.pop(folder, None) or Mirror(folder, self.client)
            self._ending[folder] = (mirror, status, error)

    def close(self) -> list[Path]:
        """End the thread. Returns the folders that the store did not take whole within PATIENCE, and says so."""
        closing = time.monotonic()
        while self._ending and self._thread.is_alive():  # however long it takes, while the store takes it
            if self._away and time.monotonic() - max(self._away, closing) > PATIENCE:
                break
            time.sleep(0.02)
        self._stop.set()
        self._thread.join(30)
        for folder in self._ending:
            print(f"the store did not take {folder} within {PATIENCE:.0f} s; the folder has everything. Once the store")
            print(f"answers: python -m cat_lib import {folder}", flush=True)
        return list(self._ending)

    def _rounds(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            failed = self._round()
            if failed and not self._away:
                self._away = started
                print(f"not sent to the store, trying again: {failed}", flush=True)
            elif self._away and not failed:
                print(f"the store has everything again, after {started - self._away:.0f} s", flush=True)
                self._away = 0.0
            while time.monotonic() - started < _EVERY and (failed or not self._ending) and not self._stop.is_set():
                time.sleep(0.02)

    def _round(self) -> str:
        """One look at each folder; one that fails does not hold up the others. Returns the last failure."""
        with self._lock:
            running, ending = list(self._open.values()), dict(self._ending)
        failed = ""
        for mirror, status, error in [*((m, None, "") for m in running), *ending.values()]:
            final = mirror.folder in ending
            try:
                mirror.sync(final, status, error)
                if not final and (config := read_config(mirror.folder)):
                    self._reap(experiment_of(config))
            except Exception as problem:  # every client, driver and network raises its own kinds
                text = masked(" ".join(str(problem).split()))[:200]
                if "'active' state" in text or "RESOURCE_DOES_NOT_EXIST" in text:
                    mirror.forget()
                failed = f"{mirror.folder.name}: {type(problem).__name__}: {text}"
                continue
            if final:
                with self._lock:
                    del self._ending[mirror.folder]
        return failed

    def _reap(self, experiment: str) -> None:
        if experiment not in self._reaped:
            reap(self.client, experiment)
            self._reaped.add(experiment)


def reap(client: Any, experiment: str) -> None:
    """Bring up to date what this machine left RUNNING in the store and nobody works on any more.

    A run whose folder is not here is left alone: it may be another machine's of the same name.
    """
    found = client.get_experiment_by_name(experiment)
    for run in client.search_runs([found.experiment_id], "attributes.status = 'RUNNING'") if found else []:
        tags = run.data.tags
        folder = Path(tags.get("run_dir", ""))
        if tags.get("host") != socket.gethostname() or tags.get("notebook") == SUITE or not read_config(folder):
            continue
        tracking.settle(folder, "KILLED", "its process is gone")
        if read_config(folder)["status"] in tracking.ENDED:
            Mirror(folder, client).sync(final=True)


def import_run(folder: Path) -> str:
    """Copy a run's folder, or a suite's, into the store; returns its id there. What is there is brought up to date.

    Raises ValueError for a folder that holds no run, or one that still runs; TrackingError if the store can't be used.
    """
    if "notebook" not in read_config(folder):
        raise ValueError(f"{folder} holds no run: a run's folder has a config.json, as results/runs/<notebook>/<run>")
    held = Lock(folder / "suite.lock").holder() if (folder / "suite.lock").exists() else None
    if read_config(folder)["status"] not in tracking.ENDED and not held:
        tracking.settle(folder, "KILLED", "its process is gone")
    if read_config(folder)["status"] == "RUNNING":
        raise ValueError(f"{folder} still runs; its own process copies it")
    mirror = Mirror(folder, connect())
    try:
        mirror.sync(final=True)
    except Exception as error:  # every client, driver and network raises its own kinds
        raise TrackingError(f"{folder} is not copied: {advice(error)}") from error
    return mirror.run_id


def _inputs(datasets: Mapping[str, Mapping[str, Any]]) -> Iterator[Any]:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    for context, entry in datasets.items():
        about = Dataset(
            name=f"{entry['source']}"[:500], digest=entry["digest"], source_type="cat_lib",
            source=json.dumps({"source": entry["source"], "context": context}),
            profile=json.dumps({"num_rows": entry["n"]}),
        )  # fmt: skip
        yield DatasetInput(about, [InputTag("mlflow.data.context", context)])
