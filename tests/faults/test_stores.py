"""Stores that go away, real servers, and runs rebuilt from their folders."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cat_lib.runs import store as store_
from cat_lib.runs import tracking
from cat_lib.runs.mirror import import_run
from small import STEPS, cat_lib, free_port, run_id_of, start, write_notebook

pytestmark = pytest.mark.fault
SLOW = STEPS.replace("0.15", "3.5")  # eight steps of which a server can miss some
OTHER = """
import matplotlib.pyplot as plt
import pandas as pd
from cat_lib.schema import Example
run.table("rollouts", pd.DataFrame({"text": ["a"]}))
run.figure("one", plt.figure())
run.dataset("heldout", [Example("1", "q", "q", "a", "easy")], "hand-made")
part = run.part("arm")
part.step({"reward": 0.5}, 1)
(part.dir / "adapter").mkdir(exist_ok=True)
(part.dir / "adapter" / "weights").write_text("w")
"""


def server(port: int, backend: str, artifacts: Path) -> subprocess.Popen:
    """A real MLflow server, once it answers."""
    import urllib.request

    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
         "--backend-store-uri", backend, "--artifacts-destination", str(artifacts)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            if urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200:
                return process
        except OSError:
            time.sleep(0.3)
    raise TimeoutError("the MLflow server did not start")


def stop(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


@pytest.fixture
def postgres(tmp_path):
    """A PostgreSQL server of Debian's packages, in the test's folder; its URI."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    programs, home, port = found[-1].parent, Path(f"/tmp/cat_lib_pg_{os.getpid()}"), free_port()
    home.mkdir()
    if user:
        shutil.chown(home, user)

    def call(program: str, *words: str) -> None:
        output = subprocess.run(
            [programs / program, *words], user=user, cwd=home, capture_output=True, text=True, check=False
        )
        assert output.returncode == 0, output.stderr

    call("initdb", "-D", str(home / "data"), "-A", "trust", "-U", "mlflow")
    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {home} -c fsync=off"
    call("pg_ctl", "-D", str(home / "data"), "-o", options, "-l", str(home / "log"), "-w", "start")
    call("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow")
    yield f"postgresql+pg8000://mlflow@127.0.0.1:{port}/mlflow"
    call("pg_ctl", "-D", str(home / "data"), "-m", "immediate", "stop")
    shutil.rmtree(home)


@pytest.mark.slow
def test_a_server_on_postgresql_that_goes_away_for_20_seconds_loses_nothing(store, postgres, monkeypatch):
    port = free_port()
    running = server(port, postgres, store / "artifacts")
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        write_notebook(store / "small.ipynb", OTHER, SLOW)
        process = start(store, "run", store / "small.ipynb", "--run-id", "one")
        folder = store / "runs" / "small" / "one"
        deadline = time.monotonic() + 90
        while not (folder / "checkpoint.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        stop(running)
        time.sleep(20)
        missed = len((folder / "metrics.jsonl").read_text().splitlines())
        running = server(port, postgres, store / "artifacts")
        out = process.communicate(timeout=120)[0]
        assert process.returncode == 0, out
        assert "not sent to the store, trying again" in out
        assert "the store has everything again" in out
        assert missed >= 4  # steps were taken meanwhile

        client = store_.connect()
        run = client.get_run(run_id_of(folder))
        assert run.info.status == "FINISHED"
        assert run.data.metrics["1_results/sum"] == 36
        assert [m.step for m in client.get_metric_history(run.info.run_id, "2_signal/value")] == list(range(1, 9))
        assert {a.path for a in client.list_artifacts(run.info.run_id)} >= {
            "executed.ipynb",
            "rollouts.parquet",
            "figures",
        }
        write_notebook(store / "small.ipynb", "pass")
        (store / "s.yaml").write_text("entries: [{notebook: small.ipynb, seeds: [0, 1, 2]}]")
        code, out = cat_lib(store, "suite", store / "s.yaml", "--jobs", "2")
        assert code == 0, out
        (experiment,) = [e for e in client.search_experiments() if e.name == "suite/s"]
        assert [r.info.status for r in client.search_runs([experiment.experiment_id])] == ["FINISHED"] * 4
    finally:
        stop(running)


def test_a_run_that_the_store_never_took_is_whole_and_can_be_imported(store, monkeypatch):
    """A store that stays away for longer than the mirror's patience."""
    port = free_port()
    running = server(port, f"sqlite:///{store / 'server.db'}", store / "artifacts")
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("CAT_LIB_STORE_PATIENCE", "4")
        write_notebook(store / "small.ipynb", STEPS)
        process = start(store, "run", store / "small.ipynb", "--run-id", "one")
        deadline = time.monotonic() + 60
        while not (store / "runs" / "small" / "one" / "checkpoint.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        stop(running)
        out = process.communicate(timeout=120)[0]
        assert process.returncode == 0, out
        assert f"python -m cat_lib import {store / 'runs' / 'small' / 'one'}" in out
        running = server(port, f"sqlite:///{store / 'server.db'}", store / "artifacts")
        code, out = cat_lib(store, "import", store / "runs" / "small" / "one")
        assert code == 0, out
        client = store_.connect()
        (experiment,) = [e for e in client.search_experiments() if e.name == "small"]
        (run,) = client.search_runs([experiment.experiment_id])
        assert (run.info.status, run.data.metrics["1_results/sum"]) == ("FINISHED", 36)
    finally:
        stop(running)


def test_runs_and_their_suite_are_rebuilt_in_an_empty_store(store, monkeypatch):
    write_notebook(store / "small.ipynb", OTHER, STEPS)
    (store / "s.yaml").write_text("entries: [{notebook: small.ipynb, seeds: [0, 1]}]")
    code, out = cat_lib(store, "suite", store / "s.yaml")
    assert code == 0, out

    def contents() -> list:
        client = store_.connect()
        (experiment,) = [e for e in client.search_experiments() if e.name == "suite/s"]
        runs = {r.info.run_id: r for r in client.search_runs([experiment.experiment_id])}
        found = []
        for id_, run in runs.items():
            tags = {k: v for k, v in run.data.tags.items() if k != "mlflow.parentRunId"}
            parent = runs.get(run.data.tags.get("mlflow.parentRunId"))
            history = {
                k: [(m.step, m.value, m.timestamp) for m in client.get_metric_history(id_, k)] for k in run.data.metrics
            }
            files = sorted(
                a.path for p in (None, "figures", "arm", "arm/adapter") for a in client.list_artifacts(id_, p)
            )
            inputs = [(d.dataset.name, d.dataset.digest, d.dataset.profile) for d in run.inputs.dataset_inputs]
            times = (run.info.start_time, run.info.end_time)
            found.append((run.info.run_name, run.info.status, times, tags, run.data.params, history, files, inputs,
                          parent and parent.info.run_name))  # fmt: skip
        return sorted(found, key=lambda f: f[0])

    before = contents()
    assert [f[0] for f in before] == ["s", "small seed=0", "small seed=1"]
    assert [f[8] for f in before] == [None, "s", "s"]
    assert before[1][7][0][0] == "hand-made"
    assert {"arm/adapter/weights", "figures/one.png", "rollouts.parquet"} <= set(before[1][6])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'other.db'}")
    folders = [*(store / "runs" / "small").iterdir(), store / "results" / "suites" / "s"]
    for _ in range(2):  # again changes nothing
        code, out = cat_lib(store, "import", *folders)
        assert code == 0, out
        assert contents() == before


def test_what_is_no_run_is_not_imported(store):
    code, out = cat_lib(store, "import", store)
    assert code == 2
    assert "holds no run" in out
    run = tracking.open_run("small", {}, store / "runs" / "small" / "one")
    code, out = cat_lib(store, "import", run.dir)
    assert "still runs" in out
    run.lock.release()
    (run.dir / "metrics.jsonl").write_text('{"time": 1, "step": 1, "of": 0, "metrics": {"a": 1}}\n{"time": 2, "st')
    run.step({"a": 2.0}, 2)  # after a line that was cut off by a kill
    client, id_ = store_.connect(), import_run(run.dir)
    assert [(m.step, m.value) for m in client.get_metric_history(id_, "2_signal/a")] == [(1, 1.0), (2, 2.0)]
    assert client.get_run(id_).info.status == "KILLED"
    assert json.loads((run.dir / "config.json").read_text())["status"] == "KILLED"


def test_a_database_that_is_away_or_silent_is_named_in_seconds(monkeypatch):
    """MLflow alone asks it ten times."""
    silent = socket.create_server(("127.0.0.1", 0))  # takes connections and never answers
    for place in (f"127.0.0.1:{free_port()}", f"127.0.0.1:{silent.getsockname()[1]}", "no-such-host.invalid:5432"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql+pg8000://u:pa/ss@{place}/db")
        with pytest.raises(store_.TrackingError, match=r"\*\*\*@.* can't be used") as caught:
            with_limit(store_.connect)
        assert "pa/ss" not in str(caught.value)
    silent.close()


def with_limit(call) -> None:
    """Fails, rather than hangs for minutes."""

    def late(*_: object) -> None:
        raise AssertionError("still trying after 40 s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(40)
    try:
        call()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_deleted_experiment_is_restored_before_a_run_and_during_one(store):
    write_notebook(store / "small.ipynb", "import time\ntime.sleep(x)")
    code, out = cat_lib(store, "run", store / "small.ipynb", "--run-id", "one", "-p", "x=0")
    assert code == 0, out
    client = store_.connect()
    experiment = client.get_experiment_by_name("small").experiment_id
    client.delete_experiment(experiment)
    code, out = cat_lib(store, "run", store / "small.ipynb", "--run-id", "two", "-p", "x=0")
    assert (code, out.count("'small' was deleted in the store: restored")) == (0, 1), out
    assert {r.info.run_name: r.info.status for r in client.search_runs([experiment])} == dict.fromkeys(
        ("one", "two"), "FINISHED"
    )
    process = start(store, "run", store / "small.ipynb", "--run-id", "three", "-p", "x=6")
    deadline = time.monotonic() + 90
    while len(client.search_runs([experiment])) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    client.delete_experiment(experiment)
    out = process.communicate(timeout=120)[0]
    assert (process.returncode, "restored" in out) == (0, True), out
    found = {r.info.run_name: r for r in client.search_runs([experiment])}
    assert sorted(found) == ["one", "three", "two"]
    assert (found["three"].info.status, found["three"].data.metrics["1_results/score"]) == ("FINISHED", 6.0)
    assert found["three"].data.params == {"x": "6.0", "seed": "0"}


def test_an_import_that_the_store_refuses_says_so_in_one_line(store, monkeypatch):
    run = tracking.open_run("small", {"x": 1}, store / "runs" / "small" / "one")
    run.end("FINISHED")
    client = store_.connect()
    client.create_experiment("small")
    client.delete_experiment(client.get_experiment_by_name("small").experiment_id)
    code, out = cat_lib(store, "import", run.dir)
    assert (code, "Traceback" in out) == (0, False), out
    monkeypatch.setattr("cat_lib.runs.mirror.find_or_create", lambda *_: 1 / 0)
    with pytest.raises(store_.TrackingError, match=r"one is not copied: .*ZeroDivisionError") as caught:
        import_run(run.dir)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["it's mine", 'a "quoted" one', "50% 'off' `x`\\y", "ünï; or (1=1)"])
def test_a_notebook_of_any_name_is_copied_and_found_again(store, name):
    run = tracking.open_run(name, {"x": 1}, store / "runs" / name / "one")
    run.end("FINISHED")
    assert import_run(run.dir) == import_run(run.dir) == run_id_of(run.dir)
    client = store_.connect()
    (found,) = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    assert found.data.tags["cat_lib.run"] == store_.run_key(name, "one")
