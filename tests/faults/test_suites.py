"""Suites of real processes: killed at random moments, started twice, on other executors, with a full or closed disk."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from mlflow.entities import ViewType

from cat_lib.learning.checkpoints import newest_checkpoint
from cat_lib.runs import store as store_
from cat_lib.runs import tracking
from cat_lib.runs.mirror import copy
from cat_lib.suites import batch, executors
from cat_lib.suites.batch import plan, run_suite
from cat_lib.suites.suite import load_suite
from small import STEPS, cat_lib, configs, start, write_notebook

pytestmark = pytest.mark.fault
ROOT = Path(__file__).parents[2]


def children_of(store) -> list:
    """MLflow's runs of the suite, the parent left out."""
    client = store_.connect()
    ids = [e.experiment_id for e in client.search_experiments() if e.name.startswith("suite/")]
    runs = client.search_runs(ids, run_view_type=ViewType.ALL, max_results=1000)
    return [r for r in runs if r.data.tags["notebook"] != "suite"]


def parents(store) -> list:
    client = store_.connect()
    ids = [e.experiment_id for e in client.search_experiments() if e.name.startswith("suite/")]
    return [r for r in client.search_runs(ids) if r.data.tags["notebook"] == "suite"]


def suite_file(store: Path, seeds: int, *cells: str, extra: str = "") -> Path:
    write_notebook(store / "small.ipynb", *cells)
    file = store / "s.yaml"
    file.write_text(f"entries:\n- notebook: small.ipynb\n  seeds: {list(range(seeds))}\n{extra}")
    return file


@pytest.mark.parametrize(("kills", "entries"), [(10, 8), pytest.param(30, 20, marks=pytest.mark.slow)])
def test_a_suite_killed_again_and_again_ends_with_each_run_finished_once(store, kills, entries):
    """SIGKILL to the suite, a run's process or its kernel, whichever chance picks; then the same command again."""
    enough = store / "enough"  # the last two wait for the last kill, however fast this machine is
    last, there = entries - 3, f"pathlib.Path({str(enough)!r}).exists()"
    wait = f"import pathlib\nwhile seed > {last} and not {there}:\n    time.sleep(0.05)"
    file = suite_file(store, entries, STEPS, wait)
    random_ = random.Random(7)
    killed, rounds, code, out = Counter(), 0, None, ""
    while code != 0:
        assert rounds < 80, out
        rounds += 1
        with (store / "out.txt").open("w") as output:
            process = start(store, "suite", file, "--jobs", "2", stdout=output)
        while killed.total() < kills and process.poll() is None:
            kind = random_.choice(["suite", "run", "kernel"])
            while process.poll() is None and not of_kind(kind, process.pid):
                time.sleep(0.02)
            time.sleep(random_.uniform(0, 2.5))
            victims = of_kind(kind, process.pid) if process.poll() is None else []
            if victims:
                killed[kind] += 1
                random_.choice(victims).kill()
            if victims and kind == "suite":
                process.wait(10)
        if killed.total() == kills:
            enough.touch()
        code = process.wait(300)
        out = (store / "out.txt").read_text()
    print(f"killed {dict(killed)} in {rounds} rounds")
    assert killed.total() == kills
    assert min(killed[k] for k in ("suite", "run", "kernel")) >= kills // 10

    ended = configs(store)
    assert len(ended) == entries
    assert {c["status"] for c in ended} == {"FINISHED"}
    runs = children_of(store)
    assert Counter(r.info.status for r in runs) == {"FINISHED": entries}
    assert sorted(r.data.params["seed"] for r in runs) == sorted(map(str, range(entries)))
    assert [r.info.status for r in parents(store)] == ["FINISHED"]
    client = store_.connect()
    for run in runs:  # as undisturbed: the metrics are what the notebook computes, each step is there once
        seed = int(run.data.params["seed"])
        metrics = {"1_results/score": pytest.approx(1 + seed / 10), "1_results/sum": 36.0}
        assert {k: run.data.metrics[k] for k in metrics} == metrics
        assert [m.step for m in client.get_metric_history(run.info.run_id, "2_signal/value")] == list(range(1, 9))
        assert run.data.tags["mlflow.parentRunId"] == parents(store)[0].info.run_id
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(store) in " ".join(p.info["cmdline"] or [])]


# two layers learn to write more, a checkpoint a step
TRAINING = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from tiny import tiny_policy
from cat_lib.learning.grpo import train
from cat_lib.learning.settings import GRPOSettings
from cat_lib.method.estimators.voting import none
from cat_lib.tasks.arithmetic import Arithmetic
def longer(groups, _):
    time.sleep(0.3)
    return [[float(len(c.text)) for c in g.rollouts] for g in groups]
policy, task = tiny_policy(), Arithmetic()
settings = GRPOSettings(8, 4, 4, 2, 1e-2, lora_rank=4, save_steps=1)
trained = train(policy, task, task.examples("train", 8, 0), none, longer, settings, run)
moved = sum(float(p.double().abs().sum()) for n, p in policy.model.named_parameters() if "lora_B" in n)
run.metrics({{"moved": moved, "reward": float(trained.history["reward"].sum())}})
"""


def of_kind(kind: str, pid: int) -> list[psutil.Process]:
    """The suite, its runs' processes, or their kernels, as many as there are now."""
    try:
        suite = psutil.Process(pid)
        runs = [c for c in suite.children() if "cat_lib.suites.entry" in " ".join(c.cmdline())]
        kernels = [k for r in runs for k in r.children() if "ipykernel" in " ".join(k.cmdline())]
    except psutil.NoSuchProcess:
        return []
    return {"suite": [suite], "run": runs, "kernel": kernels}[kind]


def test_training_that_was_killed_goes_on_from_its_checkpoint_to_the_same_metrics(store):
    write_notebook(store / "training.ipynb", TRAINING)
    (store / "t.yaml").write_text("entries: [{notebook: training.ipynb}]")
    process = start(store, "suite", store / "t.yaml")
    deadline = time.monotonic() + 120
    while not (found := [p for p in (store / "runs").glob("*/*") if newest_checkpoint(p)]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (kernel,) = of_kind("kernel", process.pid)
    kernel.kill()
    assert process.wait(60) == 1
    code, out = cat_lib(store, "suite", store / "t.yaml", "--dry-run")
    assert "was FAILED: again, from its checkpoint" in " ".join(out.split()), out
    code, out = cat_lib(store, "suite", store / "t.yaml")
    assert code == 0, out
    (folder,) = found
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, 9))
    assert len(steps) <= 9  # of what was done before the kill, at most the step at hand is done again
    resumed = json.loads((folder / "metrics.json").read_text())
    shutil.rmtree(store / "runs")
    code, out = cat_lib(store, "suite", store / "t.yaml")
    assert code == 0, out
    whole = json.loads((folder / "metrics.json").read_text())
    assert resumed == whole
    assert whole["moved"] > 0


def test_a_store_that_was_away_at_the_end_gets_everything_when_the_next_run_starts(store):
    """Killed between the end of a run and its copy: what comes next must not call it finished and leave it empty."""
    file = suite_file(store, 2, STEPS)
    (first, _) = load_suite(file).entries
    run = tracking.open_run("small", first.parameters, first.folder, {"suite": "s", "entry": "e", "code": first.code})
    copy(run.dir)
    run.metrics({"sum": 36.0})
    run.end("FINISHED")  # and now the process is gone
    assert [r.info.status for r in children_of(store)] == ["RUNNING"]
    code, out = cat_lib(store, "suite", file, "--only", "seed=1")
    assert code == 0, out
    runs = {r.data.params["seed"]: r for r in children_of(store)}
    assert (runs["0"].info.status, runs["0"].data.metrics) == ("FINISHED", {"1_results/sum": 36.0})


def test_a_run_asked_for_once_is_not_made_again_and_changed_code_is_not_run_as_the_old(store):
    (entry,) = load_suite(suite_file(store, 1)).entries
    labels = {"suite": "s", "entry": entry.name, "code": entry.code}
    spec = {
        "notebook": str(entry.notebook),
        "parameters": entry.parameters,
        "folder": str(entry.folder),
        "labels": labels,
    }

    def run() -> int:
        return executors.wait_for(json.dumps(spec), str(store / "log"), 1)

    assert run() == 0
    before = (entry.folder / "config.json").read_bytes()
    assert run() == 0
    assert (entry.folder / "config.json").read_bytes() == before
    write_notebook(store / "small.ipynb", "pass")
    assert run() == 76
    assert "start the suite again" in (store / "log").read_text()
    assert (entry.folder / "config.json").read_bytes() == before


def test_the_same_suite_twice_at_once_makes_each_run_once(store):
    file = suite_file(store, 4, STEPS)
    first = start(store, "suite", file, "--jobs", "2")
    second = start(store, "suite", file, "--jobs", "2")
    outs = [p.communicate(timeout=120)[0] for p in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outs
    assert Counter(r.info.status for r in children_of(store)) == {"FINISHED": 4}
    assert [r.info.status for r in parents(store)] == ["FINISHED"]
    cells = [json.loads((p.parent / "executed.ipynb").read_text()) for p in (store / "runs").glob("*/*/config.json")]
    assert len(cells) == 4
    for path in (store / "runs").glob("*/*/metrics.jsonl"):  # a run made twice would have its steps twice
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(1, 9))


def test_ctrl_c_stops_a_suite_and_the_same_command_goes_on(store):
    file = suite_file(store, 3, STEPS, "import time\ntime.sleep(0 if (run.dir / 'again').exists() else 60)")
    process = start(store, "suite", file, "--jobs", "2")
    deadline = time.monotonic() + 60
    while len(list((store / "runs").glob("*/*/checkpoint.json"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 130, out
    assert Counter(c["status"] for c in configs(store)) == {"KILLED": 2}
    assert Counter(r.info.status for r in [*children_of(store), *parents(store)]) == {"KILLED": 3}
    for config in configs(store):
        (store / "runs" / "small" / config["run"] / "again").touch()
    shutil.rmtree(store / "mlartifacts", ignore_errors=True)
    (missing,) = [e for e in load_suite(file).entries if e.status == "missing"]
    missing.folder.mkdir(parents=True)
    (missing.folder / "again").touch()
    code, out = cat_lib(store, "suite", file, "--retry-failed")
    assert code == 0
    assert "1 left, 2 FINISHED" in out or "2 FINISHED, 1 left" in out, out
    code, out = cat_lib(store, "suite", file)
    assert (code, Counter(c["status"] for c in configs(store))) == (0, {"FINISHED": 3}), out


def test_a_failure_is_told_with_its_command_and_the_others_go_on(store):
    file = suite_file(store, 3, "assert seed != 1, 'one is wrong'")
    code, out = cat_lib(store, "suite", file, "--jobs", "2")
    assert code == 1
    assert "FAILED: small seed=1: cell 3 raised AssertionError: one is wrong" in out
    (command,) = re.findall(r"    (tail .*)", out)
    assert "one is wrong" in subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout
    (failed,) = [r for r in children_of(store) if r.info.status == "FAILED"]
    assert "one is wrong" in failed.data.tags["error"]
    assert [r.info.status for r in parents(store)] == ["FAILED"]
    assert cat_lib(store, "suite", file, "--only", "seed=0")[0] == 0


def test_a_full_disk_fails_that_run_with_the_reason_and_the_others_go_on(store):
    file = suite_file(store, 2, "if seed == 0:\n    (run.dir / 'large').write_bytes(b'x' * 3_000_000)")
    full = load_suite(file).entries[0].folder
    full.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(full)], check=False).returncode:
        pytest.skip("only root can mount a file system of one megabyte")
    try:
        code, out = cat_lib(store, "suite", file)
        assert code == 1, out
        assert re.search(r"FAILED: small seed=0: .*No space left on device", out), out
        runs = {r.data.params["seed"]: r for r in children_of(store)}
        assert {k: r.info.status for k, r in runs.items()} == {"0": "FAILED", "1": "FINISHED"}
        assert "No space left on device" in runs["0"].data.tags["error"]
    finally:
        subprocess.run(["umount", str(full)], check=True)


def test_results_that_cannot_be_written_are_refused_before_a_kernel(store):
    file = suite_file(store, 1)
    results = store / "closed"
    results.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(results)], check=False).returncode:
        pytest.skip("only root can mount a read-only file system")
    try:
        code, out = cat_lib(results, "suite", file)
        assert code == 2
        assert re.search(r"can't be written \(Read-only file system\)", out), out
    finally:
        subprocess.run(["umount", str(results)], check=True)


def test_a_store_of_a_newer_mlflow_is_refused_and_left_as_it_is(store):
    import sqlite3

    code, out = cat_lib(store, "suite", suite_file(store, 1))
    assert code == 0, out
    with sqlite3.connect(store / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'fedcba987654'")
    database.close()
    before = (store / "mlflow.db").read_bytes()
    code, out = cat_lib(store, "suite", suite_file(store, 2))
    assert code == 2
    assert "was made by another MLflow than the 3.17.2 installed here" in out
    assert (store / "mlflow.db").read_bytes() == before


def test_slurms_executor_on_submitits_local_cluster(store):
    loaded = load_suite(suite_file(store, 2, STEPS))
    executor = executors.slurm(2, loaded.folder / "slurm", 1, 0, {}, cluster="local")
    states = plan(loaded.entries, False)
    assert not run_suite(loaded, states, executor, lambda _: None)
    assert [(s.word, s.why) for s in states] == [("FINISHED", "")] * 2
    assert Counter(r.info.status for r in children_of(store)) == {"FINISHED": 2}
    assert "run folder" in (states[0].entry.folder / "output.log").read_text()


class Limited:
    """A queue that takes `most` runs, and counts each for a second after it has ended, as Slurm does."""

    name, jobs = "limited", 100

    def __init__(self, most):
        self.most, self.inner, self.started, self.ended = most, executors.local(2), [], {}

    def start(self, spec, log):
        for job in self.started:
            if job.done():
                self.ended.setdefault(job, time.time())
        if sum(time.time() < self.ended.get(job, math.inf) + 1 for job in self.started) >= self.most:
            raise executors.ExecutorError("QOSMaxSubmitJobPerUserLimit")
        self.started.append(self.inner.start(spec, log))
        return self.started[-1]


@pytest.mark.parametrize("most", [1, 2])
def test_a_queue_that_takes_no_more_is_asked_again(store, monkeypatch, most):
    monkeypatch.setattr(batch, "_ASK_AGAIN", 0.2)
    loaded = load_suite(suite_file(store, 4))
    states, refusals = plan(loaded.entries, False), set()
    assert not run_suite(loaded, states, Limited(most), lambda b: refusals.add(b.refusal))
    assert [(s.word, s.why) for s in states] == [("FINISHED", "")] * 4
    assert refusals == {"", "QOSMaxSubmitJobPerUserLimit"}


def test_a_queue_that_takes_none_fails_the_entries_with_its_reason(store, monkeypatch):
    monkeypatch.setattr(batch, "_ASK_AGAIN", 0.1)
    monkeypatch.setattr(batch, "_PATIENCE", 10)
    loaded = load_suite(suite_file(store, 2))
    states, seen = plan(loaded.entries, False), set()
    assert not run_suite(loaded, states, Limited(0), lambda b: seen.add(tuple(s.word for s in b.states)))
    assert seen == {("waiting", "waiting"), ("FAILED", "FAILED")}  # patience is lost once, not for each
    assert "QOSMaxSubmitJobPerUserLimit" in states[1].why


def test_without_slurm_the_executor_says_so(store):
    code, out = cat_lib(store, "suite", suite_file(store, 1), "--executor", "slurm", "--slurm", "partition=gpu")
    assert code == 2
    assert "Slurm can't be used" in out


@pytest.fixture
def cluster():
    """A real Ray cluster of one machine with 2 CPUs."""
    ray = Path(sys.executable).with_name("ray")
    quiet = os.environ | {"RAY_DISABLE_USAGE_STATS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    words = ["start", "--head", "--num-cpus=2", "--port=26379", "--include-dashboard=false", "--disable-usage-stats"]
    subprocess.run([ray, *words], check=True, capture_output=True, env=quiet)
    yield "127.0.0.1:26379"
    subprocess.run([ray, "stop", "--force"], check=True, capture_output=True)


@pytest.mark.parametrize("entries", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_entries_on_ray_are_each_run_once(store, cluster, entries):
    file = suite_file(store, entries)
    code, out = cat_lib(store, "suite", file, "--executor", "ray", "--address", cluster)
    assert code == 0, out[-3000:]
    assert Counter(r.info.status for r in children_of(store)) == {"FINISHED": entries}
    assert len({r.data.params["seed"] for r in children_of(store)}) == entries
    assert len(configs(store)) == entries


def test_a_ray_address_that_does_not_answer_is_refused_at_once(store):
    started = time.monotonic()
    code, out = cat_lib(store, "suite", suite_file(store, 1), "--executor", "ray", "--address", "127.0.0.1:9")
    assert code == 2
    assert "no Ray cluster answers at 127.0.0.1:9" in out
    assert time.monotonic() - started < 30
    assert not (store / "runs").exists()
