"""Copies runs' folders to MLflow: `copy`, as often as wanted, and `Mirror`, which calls it from a thread.

A folder is the truth, so nothing is lost while a store is away: what could not be sent is sent at the next look.
Sending twice changes nothing, so a copy that was cut off begins anew, `import_run` is the same copy into an empty
store, and one process can serve all runs of a suite.

Left out: metrics of a step that was trained twice (a resume goes back to a checkpoint) stay as they were first sent.
"""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cat_lib.files import Lock, read_lines
from cat_lib.runs import pages, store, traces
from cat_lib.runs.adapters import log_adapters
from cat_lib.runs.folder import ENDED, BusyError, RunError, read_config, settle
from cat_lib.runs.store import SUITE, TrackingError, advice, connect, experiment_of, find_or_create, tags_of
from cat_lib.shown import masked

PATIENCE = float(os.environ.get("CAT_LIB_STORE_PATIENCE", "120"))  # seconds that the end waits for a store that is away
_EVERY, _FILES_EVERY = 1.0, 15.0  # seconds
_PARAM_LIMIT, _TAG_LIMIT = 6000, 8000  # MLflow's, in characters
# what a run keeps for itself: checkpoints, tables by step that are joined at the end, locks, notes of the copy
_SKIPPED = re.compile(
    r"(^|/)(checkpoints|rollouts|verdicts|rubrics|slurm|\.[^/]*)/|\.(lock|partial|db)$|^mlflow\.json$"
)


@dataclass
class Sent:
    """What is known to be in the store, which to forget costs time and nothing else, and whether it is to be all."""

    run_id: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    steps: set[tuple[str, int]] = field(default_factory=set)  # of each metric
    read: dict[str, int] = field(default_factory=dict)  # of files of steps, in bytes
    files: dict[str, tuple[int, int]] = field(default_factory=dict)  # when they were changed, and their sizes
    looked: float = 0.0  # at the files
    ended: dict[str, str] | None = None  # the run has ended: to what speaks for a folder that can't be written


def copy(folder: Path, client: Any = None, sent: Sent | None = None) -> str:
    """Send what the store has not; returns the run's id there.

    That a run has ended is sent last: a store that knows it has all the rest, and nothing is sent. Raises whatever the
    store raises; another call goes on where this one stopped, with the same `sent`, or begins anew.
    """
    client, sent = client or connect(), sent or Sent()
    config = read_config(folder) | (sent.ended or {})
    final = config.get("status") in ENDED
    sent.run_id = sent.run_id or find_or_create(client, folder, config)
    if final or config != sent.config:
        there = client.get_run(sent.run_id)
        if final and (there.info.status, there.info.end_time) == (config["status"], config.get("ended")):
            return sent.run_id
        _about(client, there, folder, config)
        sent.config = config
    for name in ("metrics.jsonl", "system.jsonl"):
        _steps(client, folder / name, sent)
    if final or time.monotonic() - sent.looked > _FILES_EVERY:
        _artifacts(client, folder, sent)
        sent.looked = time.monotonic()
    if final:
        known = json.loads(results.read_text()) if (results := folder / "metrics.json").exists() else {}
        when = config.get("ended") or config["started"]
        entries = {(store.sectioned(key, step=False), 0): (value, when) for key, value in known.items()}
        _log(client, sent.run_id, entries)
        log_adapters(client, folder, sent.run_id, config, entries)
        traces.send(client, folder, there)
        client.set_terminated(sent.run_id, config["status"], config.get("ended"))
    return sent.run_id


def _about(client: Any, there: Any, folder: Path, config: Mapping[str, Any]) -> None:
    """Parameters, tags and datasets, and that it runs."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    run_id, tags = there.info.run_id, tags_of(config, folder, there.info.run_id)
    fresh = [
        Param(name, masked(value)[:_PARAM_LIMIT])
        for name, value in config.get("parameters", {}).items()
        if value is not None and name not in there.data.params  # MLflow's cannot change
    ]
    client.log_batch(run_id, params=fresh, tags=[RunTag(k, v[:_TAG_LIMIT]) for k, v in tags.items()])
    if "error" in there.data.tags and "error" not in tags:  # of an earlier try
        client.delete_tag(run_id, "error")
    for context, entry in config.get("datasets", {}).items():
        dataset = Dataset(
            name=f"{entry['source']}"[:500], digest=entry["digest"], source_type="cat_lib",
            source=json.dumps({"source": entry["source"], "context": context}),
            profile=json.dumps({"num_rows": entry["n"]}),
        )  # fmt: skip
        client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
    if config.get("status") not in ENDED and there.info.status != "RUNNING":
        client.update_run(run_id, status="RUNNING")


def _steps(client: Any, path: Path, sent: Sent) -> None:
    fresh = dict[tuple[str, int], tuple[float, int]]()
    lines = list(read_lines(path, sent.read.get(path.name, 0)))
    for _, line in lines:
        for key, value in line["metrics"].items():
            metric = store.sectioned(key, step=True)
            if (metric, line["step"]) not in sent.steps:
                fresh.setdefault((metric, line["step"]), (value, line["time"]))
    if lines:
        _log(client, sent.run_id, fresh)
        sent.steps |= fresh.keys()
        sent.read[path.name] = lines[-1][0]


def _log(client: Any, run_id: str, entries: Mapping[tuple[str, int], tuple[float, int]]) -> None:
    from mlflow.entities import Metric

    metrics = [Metric(key, value, when, step) for (key, step), (value, when) in entries.items()]
    client.log_batch(run_id, metrics=metrics)


def _artifacts(client: Any, folder: Path, sent: Sent) -> None:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        name, about = inside.as_posix(), path.lstat()  # before it is sent: what comes meanwhile is sent the next time
        adapter = any((up / "adapter_config.json").exists() for up in list(path.parents)[:2])  # logged as a model
        if _SKIPPED.search(name) or adapter or not stat.S_ISREG(about.st_mode):
            continue
        if (stamp := (about.st_mtime_ns, about.st_size)) != sent.files.get(name):
            client.log_artifact(sent.run_id, str(path), inside.parent.as_posix() if inside.parent.name else None)
            sent.files[name] = stamp
    tables = [{"path": n, "type": "table"} for n in sorted(sent.files) if re.search(r"(^|/)tables/[^/]+\.json$", n)]
    if tables:  # or pages would show their JSON; `log_table` itself appends: a second copy would double them
        client.set_tag(sent.run_id, "mlflow.loggedArtifacts", json.dumps(tables[: _TAG_LIMIT // 100]))


class Mirror:
    """Keeps folders and the store the same from one thread. Raises TrackingError if the store can't be used now.

    With `CAT_LIB_TRACKING=off` nothing is copied, and nothing else changes.
    """

    def __init__(self) -> None:
        self._client = connect() if os.environ.get("CAT_LIB_TRACKING") != "off" else None
        self._open: dict[Path, Sent] = {}
        self._stop, self._away = threading.Event(), 0.0
        self._thread = threading.Thread(target=self._rounds, name="mirror", daemon=True)
        if self._client:
            self._thread.start()

    def add(self, folder: Path) -> None:
        """Begin to copy a folder; its config.json may come later."""
        self._open[folder] = Sent()

    def end(self, folder: Path, **ended: str) -> None:
        """Send the rest of a folder, in the background; `status` and `error` speak for one that can't be written."""
        self._open.setdefault(folder, Sent()).ended = ended

    @property
    def _ending(self) -> list[Path]:
        return [folder for folder, sent in list(self._open.items()) if sent.ended is not None]

    def close(self) -> None:
        """End the thread once the store has everything, or has been away for PATIENCE, and say what it did not take."""
        if not self._client:
            return
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

    def _rounds(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            failed = [why for folder, sent in list(self._open.items()) if (why := self._look(folder, sent))]
            if failed and not self._away:
                self._away = started
                print(f"not sent to the store, trying again: {failed[-1]}", flush=True)
            elif self._away and not failed:
                print(f"the store has everything again, after {started - self._away:.0f} s", flush=True)
                self._away = 0.0
            while time.monotonic() - started < _EVERY and (failed or not self._ending) and not self._stop.is_set():
                time.sleep(0.02)

    def _look(self, folder: Path, sent: Sent) -> str:
        """Send what is new in one folder; one that fails does not hold up the others. Returns why it failed."""
        ending = sent.ended is not None  # as it was when this look began
        try:
            config = read_config(folder)
            if config and (ending or config.get("status") not in ENDED):  # else it is yet to begin again
                begins = not ending and not sent.run_id
                copy(folder, self._client, sent)
                if begins:
                    reap(self._client, experiment_of(config))
        except Exception as problem:  # every client, driver and network raises its own kinds
            text = masked(" ".join(str(problem).split()))[:200]
            if "'active' state" in text or "RESOURCE_DOES_NOT_EXIST" in text:  # deleted meanwhile: begin anew
                sent.run_id, sent.config, sent.steps, sent.read, sent.files = "", {}, set(), {}, {}
            return f"{folder.name}: {type(problem).__name__}: {text}"
        if ending and self._open.get(folder) is sent:
            del self._open[folder]
        return ""


@contextmanager
def mirrored(folder: Path) -> Iterator[None]:
    """Meanwhile a run's folder is copied to MLflow, unless tracking is off. Raises TrackingError if it can't be."""
    mirror, ended = Mirror(), dict[str, str]()
    mirror.add(folder)
    try:
        yield
    except RunError as error:
        ended = {"status": error.status, "error": str(error)}
        raise
    finally:
        if ended or read_config(folder).get("status") in ENDED:
            mirror.end(folder, **ended)
        mirror.close()


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
        with suppress(BusyError):
            settle(folder, "KILLED", "its process is gone")
        if read_config(folder)["status"] in ENDED:
            copy(folder, client)


def import_run(folder: Path) -> str:
    """Copy a run's folder, or a suite's, into the store; returns its id there. What is there is brought up to date;
    of a run that ended there, by an older version too, nothing is sent again.

    Raises ValueError for a folder that holds no run, or one that still runs; TrackingError if the store can't be used.
    """
    if "notebook" not in read_config(folder):
        raise ValueError(f"{folder} holds no run: a run's folder has a config.json, as results/runs/<notebook>/<run>")
    suite = folder / "suite.lock"
    if not (suite.exists() and Lock(suite).holder()):
        settle(folder, "KILLED", "its process is gone")
    if read_config(folder)["status"] == "RUNNING":
        raise ValueError(f"{folder} still runs; its own process copies it")
    client = connect()
    pages.write_page(folder, read_config(folder))  # a run of an older version has none
    try:
        return copy(folder, client)
    except Exception as error:  # every client, driver and network raises its own kinds
        raise TrackingError(f"{folder} is not copied: {advice(error)}") from error
