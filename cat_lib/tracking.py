"""A run: a folder under results/runs/ that is the truth, and the same in MLflow for comparing.

Under the runner the run exists already (`CAT_LIB_RUN_DIR`, `CAT_LIB_RUN_ID`), and the runner's process decides how
it ended. Executed by hand in JupyterLab, `start_run` makes one and `finish` or the kernel's exit ends it.
A run left RUNNING by a killed process of this machine is marked KILLED when the next one starts.

Tracking off is a run whose MLflow side does nothing, not a second code path.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import platform
import socket
import subprocess
import sys
import time
import uuid
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "results" / "runs"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "mlflow", "papermill", "unsloth", "vllm")
_PARAM_LIMIT = 6000  # MLflow's, in characters


class TrackingError(RuntimeError):
    """The tracking server does not answer, or refuses."""


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else the SQLite file under results/, always absolute."""
    default = f"sqlite:///{ROOT / 'results' / 'mlflow.db'}"
    return os.environ.get("MLFLOW_TRACKING_URI") or default


class Run:
    """One run. Everything goes into `dir`; what MLflow can show goes there too."""

    def __init__(self, folder: Path, client: Any = None, run_id: str = "", prefix: str = "") -> None:
        self.dir, self.client, self.run_id, self.prefix = folder, client, run_id, prefix
        self.numbers: dict[str, float] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def part(self, name: str) -> Run:
        """One of several trainings in this run: a folder of its own, and `<name>/` before its keys in MLflow."""
        return Run(self.dir / name, self.client, self.run_id, f"{self.prefix}{name}/")

    def tag(self, key: str, value: str) -> None:
        """One word on the run, to filter by."""
        if self.client:
            self.client.set_tag(self.run_id, key, value)

    def step(self, metrics: dict[str, float], step: int) -> None:
        """One training step's metrics. Values that are not finite are left out: the store refuses them."""
        self._log(metrics, step)

    def metrics(self, metrics: dict[str, float]) -> None:
        """Results of the run, added to metrics.json. Raises ValueError for a value that is not a finite number."""
        bad = {k: v for k, v in metrics.items() if not math.isfinite(v)}
        if bad:
            raise ValueError(f"metrics must be finite numbers, got {bad}; leave out what was not measured")
        self.numbers |= {k: float(v) for k, v in metrics.items()}
        _write(self.dir / "metrics.json", self.numbers)
        self._log(metrics, 0)

    def figure(self, name: str, figure: Figure) -> Figure:
        """Save figures/<name>.png and return the figure, so that a notebook cell can end with this call."""
        path = self.dir / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=150, bbox_inches="tight")
        self.artifact(path, "figures")
        return figure

    def table(self, name: str, table: pd.DataFrame) -> None:
        """Save <name>.parquet."""
        table.to_parquet(self.dir / f"{name}.parquet", index=False)
        self.artifact(self.dir / f"{name}.parquet")

    def artifact(self, path: Path, under: str | None = None) -> None:
        """Copy a file, or a folder under its own name, to MLflow's artifacts."""
        if self.client and path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), self.prefix + path.name)
        elif self.client:
            self.client.log_artifact(self.run_id, str(path), (self.prefix + (under or "")).strip("/") or None)

    def parameters(self, resolved: dict[str, Any]) -> None:
        """The parameters as they take effect. A None waits for its value: MLflow's parameters cannot change."""
        self.update_config(parameters=resolved)
        for key, value in resolved.items():
            if self.client and value is not None:
                self.client.log_param(self.run_id, key, str(value)[:_PARAM_LIMIT])

    def update_config(self, **entries: Any) -> None:
        """Add entries to config.json."""
        path = self.dir / "config.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        _write(path, known | entries)
        self.artifact(path)

    def finish(self, status: str = "FINISHED") -> None:
        """End a run that this process owns; under the runner, the runner does."""
        if self.client and not os.environ.get("CAT_LIB_RUN_ID"):
            self.client.set_terminated(self.run_id, status)
            atexit.unregister(self.finish)

    def _log(self, metrics: dict[str, float], step: int) -> None:
        if self.client:
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            entries = [Metric(self.prefix + k, v, now, step) for k, v in metrics.items() if math.isfinite(v)]
            self.client.log_batch(self.run_id, metrics=entries)


def start_run(notebook: str, parameters: dict[str, Any]) -> Run:
    """The run of this notebook execution: the runner's, or a new one when executed by hand.

    Raises TrackingError if the tracking server cannot be reached.
    """
    if folder := os.environ.get("CAT_LIB_RUN_DIR"):
        return attach(Path(folder), os.environ.get("CAT_LIB_RUN_ID", ""))
    run = create_run(notebook, parameters, RUNS / notebook / new_run_id())
    atexit.register(run.finish, "KILLED")  # a kernel that is shut down before the last cell
    return run


def new_run_id() -> str:
    """Sortable by time and unique: 20261123-091500-1a2b3c."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"


def create_run(notebook: str, parameters: dict[str, Any], folder: Path) -> Run:
    """Make the folder, its config.json and the MLflow run. `CAT_LIB_TRACKING=off` leaves MLflow out.

    Raises TrackingError, before anything is written, if the tracking server cannot be used.
    """
    client = None if os.environ.get("CAT_LIB_TRACKING") == "off" else connect()
    config = {"notebook": notebook, "given": parameters, "parameters": parameters, **environment()}
    run = Run(folder, client, _mlflow_run(client, notebook, config, folder) if client else "")
    run.update_config(mlflow_run_id=run.run_id, status="RUNNING", **config)
    run.parameters(parameters)
    return run


def reopen_run(notebook: str, parameters: dict[str, Any], folder: Path, run_id: str) -> Run:
    """Continue in a folder made earlier, under its MLflow run where the store still has it, else under a new one."""
    client = None if os.environ.get("CAT_LIB_TRACKING") == "off" else connect()
    if client and run_id not in {r.info.run_id for r in _known(client, notebook)}:
        run_id = _mlflow_run(client, notebook, {"parameters": parameters, **environment()}, folder)
    run = Run(folder, client, run_id if client else "")
    if client:
        client.update_run(run_id, status="RUNNING")
        client.set_tag(run_id, "cat_lib.pid", str(os.getpid()))
        run.parameters(parameters)
    run.update_config(mlflow_run_id=run.run_id, status="RUNNING")
    return run


def _known(client: Any, notebook: str) -> list[Any]:
    experiment = client.get_experiment_by_name(notebook)
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def _mlflow_run(client: Any, notebook: str, config: dict[str, Any], folder: Path) -> str:
    experiment = client.get_experiment_by_name(notebook)
    if experiment is None:
        # beside the database, or MLflow would put artifacts under whatever folder this process started in
        local = (ROOT / "results" / "mlartifacts").as_uri() if tracking_uri().startswith("sqlite") else None
        experiment_id = client.create_experiment(notebook, artifact_location=local)
    else:
        experiment_id = experiment.experiment_id
        _reap(client, experiment_id)
    tags = {
        "notebook": notebook,
        "commit": str(config["commit"]),
        "dirty": str(config["dirty"]),
        "run_dir": str(folder),
        "cat_lib.host": socket.gethostname(),
        "cat_lib.pid": str(os.getpid()),
    }
    keys = ("preset", "model", "task", "estimator", "seed")
    tags |= {k: str(config["parameters"][k]) for k in keys if k in config["parameters"]}
    return str(client.create_run(experiment_id, run_name=folder.name, tags=tags).info.run_id)


def attach(folder: Path, run_id: str) -> Run:
    """A run that another process made; without an id, one that is not tracked."""
    return Run(folder, connect(), run_id) if run_id else Run(folder)


def connect() -> Any:
    """An MLflow client of the tracking URI. Raises TrackingError, naming the URI, if it does not answer."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow import MlflowClient

    uri = tracking_uri()
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except Exception as error:
        raise TrackingError(
            f"the tracking server {uri} can't be used ({type(error).__name__}: {str(error)[:200]}); start it, set "
            "MLFLOW_TRACKING_URI to one that runs, or set CAT_LIB_TRACKING=off"
        ) from error
    return client


def environment() -> dict[str, Any]:
    """Versions, commit and machine: what a run needs to be made again."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "dirty": bool(_git("status", "--porcelain")),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _reap(client: Any, experiment_id: str) -> None:
    """Mark as KILLED what this machine left RUNNING and whose process is gone."""
    import psutil

    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        pid, host = run.data.tags.get("cat_lib.pid"), run.data.tags.get("cat_lib.host")
        if pid and host == socket.gethostname() and not psutil.pid_exists(int(pid)):
            client.set_terminated(run.info.run_id, "KILLED")


def _write(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, default=str))
    partial.replace(path)
