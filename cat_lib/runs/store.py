"""The MLflow store: reaching it within seconds, saying what to do where that fails, and finding a run in it.

A run is found by its tag `cat_lib.run` ("<notebook>/<folder>"), so a process that was killed anywhere, and an import,
meet the same MLflow run. A suite's runs share an experiment with their parent; other runs have one by notebook.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from cat_lib.files import Lock, write_json
from cat_lib.runs import places
from cat_lib.runs.folder import read_config
from cat_lib.runs.places import tracking_uri
from cat_lib.shown import masked

SUITE = "suite"  # the "notebook" of a parent run
_TAGGED = {name: name for name in ("preset", "model", "task", "estimator", "seed")}  # parameters that become tags
_TAGGED |= {"estimators": "estimator", "seeds": "seed"}  # one name to filter by, whether it was one or several
_REACH = 5  # seconds that a database has for its answer
_PATIENCE = {"pg8000": "timeout"} | dict.fromkeys(("psycopg2", "psycopg", "pymysql", "mysqldb"), "connect_timeout")


class TrackingError(RuntimeError):
    """The tracking server does not answer, or refuses."""


def connect() -> Any:
    """An MLflow client of the tracking URI. Raises TrackingError, naming the URI, if it can't be used."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the mirror has a patience of its own
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # not each step of making a store
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    uri = tracking_uri()
    try:
        _reach(uri)
        with _one_at_a_time():  # two processes would both make the tables of a new store
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
    except Exception as error:  # every client, driver and network raises its own kinds
        raise TrackingError(advice(error)) from error
    return client


def _reach(uri: str) -> None:
    """Raise at once for a database that is away or refuses us: MLflow would ask it ten times, for two minutes."""
    if not uri.startswith(("postgresql", "mysql", "mssql")):
        return
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.pool import NullPool

    url = make_url(uri)
    patience = {_PATIENCE[url.get_driver_name()]: _REACH} if url.get_driver_name() in _PATIENCE else {}
    if url.host and url.port and not patience:  # a driver that we can't tell how long to wait
        socket.create_connection((url.host, url.port), timeout=_REACH).close()
    create_engine(url, poolclass=NullPool, connect_args=patience).connect().close()


def advice(error: Exception) -> str:
    """What to do about a store that raised this, in one line."""
    uri, text = masked(tracking_uri()), masked(" ".join(str(error).split()))[:300]
    if "Can't locate revision" in text or "out-of-date database schema" in text:
        return (
            f"the store {uri} was made by another MLflow than the {metadata.version('mlflow')} installed here "
            f"({text}); open it with that version, or name another store in MLFLOW_TRACKING_URI"
        )
    return (
        f"the tracking server {uri} can't be used ({type(error).__name__}: {text}); start it, set MLFLOW_TRACKING_URI "
        "to one that runs, or set CAT_LIB_TRACKING=off"
    )


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Among the processes that share this store's file, or this results folder."""
    uri = tracking_uri()
    beside = Path(uri.removeprefix("sqlite:///") + ".lock") if uri.startswith("sqlite:///") else None
    guard = Lock(beside or places.ROOT / "results" / "store.lock")
    guard.path.parent.mkdir(parents=True, exist_ok=True)
    guard.acquire(patience=math.inf)
    try:
        yield
    finally:
        guard.release()


def run_key(notebook: str, run: str) -> str:
    """What a run is found by. MLflow's filters know no escape for quotes, so those are written as in addresses."""
    return re.sub(r"['\"`%\\]", lambda found: f"%{ord(found[0]):02X}", f"{notebook}/{run}")


def experiment_of(config: Mapping[str, Any]) -> str:
    """The MLflow experiment: a suite's runs are together, others by notebook."""
    suite = config.get("tags", {}).get("suite")
    return f"suite/{suite}" if suite else str(config["notebook"])


def tags_of(config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Words to filter by: what ran, on what, in which state of the code, and how it failed."""
    about = config.get("parameters", {})
    chosen = {tag: about[name] for name, tag in _TAGGED.items() if about.get(name) is not None}
    chosen |= {k: config.get(k) for k in ("notebook", "commit", "dirty", "code", "error")}
    chosen |= config.get("tags", {}) | {"run_dir": folder}
    listed = {k: ", ".join(map(str, v)) if isinstance(v, list) else v for k, v in chosen.items()}
    return {k: masked(v) for k, v in listed.items() if v not in (None, "")}


def find_or_create(client: Any, folder: Path, config: Mapping[str, Any]) -> str:
    """The id of this folder's run in the store, made if it is not there; two processes at once make one."""
    notebook, tags, started = config["notebook"], tags_of(config, folder), config.get("started")
    if notebook != SUITE and (suite := config.get("tags", {}).get("suite")):
        parent = places.ROOT / "results" / "suites" / suite
        about = {"notebook": SUITE, "run": suite, "started": started, "tags": {"suite": suite}} | read_config(parent)
        tags["mlflow.parentRunId"] = find_or_create(client, parent, about)
    key = run_key(notebook, config.get("run", folder.name))
    with _one_at_a_time():
        experiment = _experiment(client, experiment_of(config))
        if found := client.search_runs([experiment], f"tags.`cat_lib.run` = '{key}'", max_results=1):
            run_id = str(found[0].info.run_id)
        else:
            made = client.create_run(
                experiment, started, {"cat_lib.run": key} | tags, run_name=tags.get("entry", folder.name)
            )
            run_id = str(made.info.run_id)
            if notebook == SUITE:
                client.set_terminated(run_id, "KILLED")  # until the suite's own folder says otherwise
    path = folder / "mlflow.json"
    with suppress(OSError):  # a full or closed disk must not keep the store from learning of it
        known = json.loads(path.read_text()) if path.exists() else {}
        write_json(path, known | {masked(tracking_uri()): run_id})
    return run_id


def _experiment(client: Any, name: str) -> str:
    known = client.get_experiment_by_name(name)
    if known and known.lifecycle_stage == "deleted":  # the folder would be copied nowhere
        print(f"the experiment {name!r} was deleted in the store: restored, with the runs that it had", flush=True)
        client.restore_experiment(known.experiment_id)
    if known:
        return str(known.experiment_id)
    # beside the database, or MLflow would put artifacts under whatever folder this process started in
    local = (places.ROOT / "results" / "mlartifacts").as_uri() if tracking_uri().startswith("sqlite") else None
    return str(client.create_experiment(name, artifact_location=local))
