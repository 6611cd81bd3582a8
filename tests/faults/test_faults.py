"""Real processes that are killed, interrupted or split."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from cat_lib.runs import store as store_
from cat_lib.runs.folder import RunError
from cat_lib.runs.parameters import ParameterError
from cat_lib.runs.runner import run_notebook
from small import run_id_of

pytestmark = pytest.mark.fault
ROOT = Path(__file__).parents[2]
START = "from cat_lib.runs import tracking\nrun = tracking.start_run('small', {'x': x})\nrun.step({'seen': 1.0}, 1)"


def notebook(folder: Path, *sources: str) -> Path:
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in ("x = 2", START, *sources)])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nb.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nb, folder / "small.ipynb")
    return folder / "small.ipynb"


def status(folder: Path) -> tuple[str, str, dict]:
    config = json.loads((folder / "config.json").read_text())
    run = store_.connect().get_run(run_id_of(folder))
    return config["status"], run.info.status, run.data.metrics


@pytest.mark.parametrize(
    ("cell", "message"),
    [("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "kernel died"), ("1 / 0", "ZeroDivisionError")],
)
def test_a_run_that_dies_is_failed_and_keeps_what_it_logged(store, cell, message):
    with pytest.raises(RunError, match=message) as caught:
        run_notebook(notebook(store, cell, "run.metrics({'never': 1.0})"), {}, runs=store / "runs")
    assert status(caught.value.folder) == ("FAILED", "FAILED", {"2_signal/seen": 1.0})
    assert (caught.value.folder / "executed.ipynb").exists()
    assert not (caught.value.folder / "metrics.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_stopped_is_killed_and_says_so(store, number):
    """All reach the kernel as KeyboardInterrupt, so that training saves its state, and leave no kernel behind."""
    cells = (
        "import os, time, pathlib\npathlib.Path('kernel.pid').write_text(str(os.getpid()))",
        "try:\n    time.sleep(120)\nexcept KeyboardInterrupt:\n    pathlib.Path('interrupted').touch()\n    raise",
    )
    script = "import sys; from pathlib import Path; from cat_lib.runs import places; " \
        f"places.ROOT = Path({str(store)!r}); places.RUNS = places.ROOT / 'runs'; " \
        "sys.argv = ['cat_lib', 'run', 'small.ipynb', '--run-id', 'one']; " \
        "from cat_lib.__main__ import app; app()"  # fmt: skip
    notebook(store, *cells)
    process = subprocess.Popen([sys.executable, "-c", script], cwd=store)
    deadline = time.monotonic() + 60
    while not (store / "kernel.pid").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(1)
    process.send_signal(number)
    assert process.wait(60) == 130
    assert status(store / "runs" / "small" / "one")[:2] == ("KILLED", "KILLED")
    assert (store / "interrupted").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((store / "kernel.pid").read_text()), 0)


def test_groups_split_over_two_processes_get_the_rewards_of_one(tmp_path):
    """Two real processes hold half of each group's rows; the rewards equal those of a single process."""
    script = tmp_path / "rank.py"
    script.write_text(
        """
import json, os, sys
from types import SimpleNamespace
from accelerate import PartialState
from cat_lib.method.estimators.voting import majority
from cat_lib.learning.trl import Signal, group_reward
from cat_lib.method.rewards.verifiable import verifiable
from cat_lib.schema import Completion
from cat_lib.tasks.arithmetic import Arithmetic

state = PartialState(cpu=True)
task = Arithmetic()
examples = task.examples("train", 3, 0)
rows = [(e.id, f"{e.question[8:-1]} = {v}") for e, vs in zip(examples, [[1, 1, 2, 1], [5, 6, 6, 6], [3, 3, 3, 4]])
        for v in vs]
share = len(rows) // state.num_processes
mine = rows[state.process_index * share :][:share]
reward = group_reward(task, examples, Signal(majority, verifiable), 4,
                     lambda _, text, ids: Completion(text, tuple(ids), "stop"),
                     lambda *a: {"groups": float(len(a[1])),
                                 "logprobs": [r.mean_logprob for g in a[1] for r in g.rollouts]})
logged = {}
out = reward(prompts=[], completions=[t for _, t in mine], completion_ids=[[9]] * share,
             example_id=[i for i, _ in mine], mean_logprob=[-1.0 * rows.index(row) for row in mine],
             trainer_state=SimpleNamespace(global_step=0),
             log_metric=logged.__setitem__)
with open(f"{sys.argv[1]}.{state.num_processes}.{state.process_index}", "w") as f:
    json.dump([out, logged], f)
state.destroy_process_group()  # left to the interpreter's end, its threads may abort the process
"""
    )

    def run(world: int) -> list:
        processes = [
            subprocess.Popen(
                [sys.executable, str(script), str(tmp_path / "out")],
                env=os.environ | {"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": str(world),
                                  "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29571"} if world > 1 else None,
            )
            for r in range(world)
        ]  # fmt: skip
        assert [p.wait(120) for p in processes] == [0] * world
        return [json.loads((tmp_path / f"out.{world}.{r}").read_text()) for r in range(world)]

    ((whole, _),) = run(1)
    halves = run(2)
    assert halves[0][0] + halves[1][0] == whole == [1, 1, 0, 1, 0, 1, 1, 1, 1, 1, 1, 0]
    first_of_its_text = [0, 0, -2, 0, -4, -5, -5, -5, -8, -8, -8, -11]
    assert halves[0][1] == {"groups": 3.0, "logprobs": first_of_its_text}  # each rollout's own fact stays with it


def changed(path: Path, **metadata: object) -> Path:
    """The notebook with other metadata than nbformat's own."""
    content = json.loads(path.read_text())
    content["metadata"] = metadata
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    "metadata",
    [{}, {"kernelspec": {"name": "their-conda", "display_name": "Their machine"}}, {"kernelspec": {}},
     {"kernelspec": {"name": "their-conda", "display_name": "x", "language": "python"}, "language_info": {}}],
)  # fmt: skip
def test_a_notebook_of_another_machine_runs_by_this_python(store, metadata):
    path = changed(notebook(store, "run.metrics({'python': float(__import__('sys').prefix is not None)})"), **metadata)
    folder = run_notebook(path, {"x": 3}, runs=store / "runs")
    assert status(folder) == ("FINISHED", "FINISHED", {"2_signal/seen": 1.0, "1_results/python": 1.0})


def test_a_notebook_in_another_language_is_refused_before_a_kernel(store):
    for metadata in (
        {"kernelspec": {"name": "ir", "display_name": "R", "language": "R"}},
        {"language_info": {"name": "julia"}},
    ):
        with pytest.raises(ParameterError, match=r"is in (R|julia); allowed is Python"):
            run_notebook(changed(notebook(store), **metadata), {}, runs=store / "runs")
    assert not (store / "runs").exists()


def test_a_notebook_with_a_quote_in_its_name_is_a_run_in_the_store(store):
    path = notebook(store).rename(store / "it's mine.ipynb")
    folder = run_notebook(path, {}, runs=store / "runs")
    assert status(folder) == ("FINISHED", "FINISHED", {"2_signal/seen": 1.0})
