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
from cat_lib.runs import pages, places
from cat_lib.runs.folder import read_config
from cat_lib.runs.parameters import declared
from cat_lib.runs.places import tracking_uri
from cat_lib.shown import masked, visible

SUITE = "suite"  # the "notebook" of a parent run
_TAGGED = {name: name for name in ("preset", "model", "task", "estimator", "seed")}  # parameters that become tags
_TAGGED |= {"estimators": "estimator", "seeds": "seed"}  # one name to filter by, whether it was one or several
_MADE_UP = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")  # the name of a folder that nobody chose
# of a step, with or without the part of the run before it, and of a result
_OF_TRAINER = r"(.*/)?((clip_ratio|completions|rewards|sampling)/.*|loss|grad_norm|learning_rate|num_tokens|epoch" \
    r"|step_time|reward_std|frac_reward_zero_std)"  # fmt: skip
_OF_COST = r".*_(tokens|g?flops|seconds|usd|calls|failures|cache_hits)"
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
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # its links open on GenAI's pages
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


def sectioned(key: str, step: bool) -> str:
    """A metric's key in MLflow, whose pages group charts by what stands before the last /, from a to z."""
    kinds = [("", "system/.*"), ("trainer/", _OF_TRAINER), ("2_signal/", ".*")]
    if not step:
        kinds = [("3_cost/", _OF_COST), ("2_signal/", r".*_(first|last)|(.*_)?collapsed"), ("1_results/", ".*")]
    return next(section + key for section, pattern in kinds if re.fullmatch(pattern, key))


def bare(key: str) -> str:
    """The key in code and metrics.json of a metric in MLflow."""
    return re.sub("^(1_results|2_signal|3_cost|trainer)/", "", key)


def title(config: Mapping[str, Any], folder: Path) -> str:
    """A run's name: what varies, as in "synthesis · smoke · seed 0"; where somebody chose a name, that."""
    if (entry := config.get("tags", {}).get("entry")) or not _MADE_UP.fullmatch(folder.name):
        return str(entry or folder.name)
    about, given = config.get("parameters", {}), config.get("given", {})
    usual, labels = dict[str, Any](), {"estimator": "", "estimators": "", "preset": ""}
    with suppress(OSError, ValueError):  # a notebook of another place, or one that has changed since
        usual = {p.name: p.default for p in declared(places.NOTEBOOKS / f"{config['notebook']}.ipynb").values()}
    last = {"seed": "seed ", "seeds": "seeds "}
    labels |= {k: f"{k}=" for k, v in given.items() if v != usual.get(k, v) and k not in labels | last} | last
    known = {k: v for k, v in (given | about).items() if v is not None}
    texts = {k: ", ".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in known.items()}
    said = [f"{label}{texts[k][:60]}{'…' * (len(texts[k]) > 60)}" for k, label in labels.items() if k in texts]
    return visible(" · ".join(said))[:250] or folder.name


def tags_of(config: Mapping[str, Any], folder: Path, run_id: str = "") -> dict[str, str]:
    """Words to filter by: what ran, on what, in which state of the code, and how it failed; and what pages show."""
    about = config.get("parameters", {})
    chosen = {tag: about[name] for name, tag in _TAGGED.items() if about.get(name) is not None}
    chosen |= {k: config.get(k) for k in ("notebook", "commit", "dirty", "code", "machine", "error")}
    chosen |= config.get("tags", {}) | {"run_dir": folder, "mlflow.runName": title(config, folder)}
    chosen["mlflow.note.content"] = pages.description(folder, config, run_id)
    if config["notebook"] != SUITE:
        chosen |= {"mlflow.source.type": "NOTEBOOK", "mlflow.source.name": f"notebooks/{config['notebook']}.ipynb"}
    with suppress(KeyError, OSError):  # a user without a name, a folder that is gone
        chosen["mlflow.user"] = folder.owner()
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
            made = client.create_run(experiment, started, {"cat_lib.run": key} | tags)
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
