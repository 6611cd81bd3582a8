"""Suites as they are read and refused; nothing is started here."""

from __future__ import annotations

import io
import json
import re
import time

import pytest
from rich.console import Console

from cat_lib.files import write_json
from cat_lib.learning.settings import GRPOSettings
from cat_lib.runs import places, tracking
from cat_lib.runs.parameters import effective, resolve
from cat_lib.suites.batch import Batch, State, Word, plan
from cat_lib.suites.executors import outcome
from cat_lib.suites.preflight import check, check_all, require_together
from cat_lib.suites.progress import progress, summary
from cat_lib.suites.suite import SuiteError, load_suite
from small import write_notebook


@pytest.fixture
def suite(store):
    """Writes a suite's file beside a small notebook, and loads it."""
    write_notebook(store / "small.ipynb")

    def load(text: str, **options):
        (store / "s.yaml").write_text(text)
        return load_suite(store / "s.yaml", **options)

    return load


GRID = """
entries:
- notebook: small.ipynb
  grid: {x: [1, 2e-1]}
  seeds: [0, 3]
- {notebook: small.ipynb, name: other, parameters: {x: 9}}
"""


def test_grids_and_seeds_are_multiplied_and_typed(suite):
    loaded = suite(GRID)
    assert [e.name for e in loaded.entries] == [
        "small x=1.0 seed=0", "small x=1.0 seed=3", "small x=0.2 seed=0", "small x=0.2 seed=3", "other",
    ]  # fmt: skip
    assert loaded.entries[3].parameters == {"x": 0.2, "seed": 3}  # YAML reads 2e-1 as text
    assert loaded.name == "s"
    assert len({e.folder for e in loaded.entries}) == 5
    assert [e.name for e in loaded.only("x=0.2")] == ["small x=0.2 seed=0", "small x=0.2 seed=3"]
    assert [e.name for e in loaded.only("*seed=3")] == ["small x=1.0 seed=3", "small x=0.2 seed=3"]
    again = suite(GRID)
    assert [e.folder for e in again.entries] == [e.folder for e in loaded.entries]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "holds list; a suite is a mapping with the key 'entries'"),
        ("entries: [", "can't be read as YAML"),
        ("\0", "can't be read as YAML"),
        ("entries: []", "has no entries"),
        ("suite: ..\nentries: [{notebook: small.ipynb}]", "names a folder"),
        ("suite: ../../etc\nentries: [{notebook: small.ipynb}]", "names a folder"),
        ("entires: []", "unknown key 'entires'; did you mean 'entries'"),
        ("entries: [small.ipynb]", "'small.ipynb' is no entry: it needs a notebook"),
        ("entries: [{notebook: small.ipynb, seed: [0]}]", "unknown key 'seed'; did you mean 'seeds'"),
        ("entries: [{notebook: small.ipynb, notebook: small.ipynb}]", "notebook stands twice"),
        ("entries: [{notebook: 00_quikstart}]", r"no notebook .*00_quikstart.*did you mean .*00_quickstart"),
        ("entries: [{notebook: small.ipynb, parameters: {y: 1}}]", "unknown parameter 'y'"),
        ("entries: [{notebook: small.ipynb, parameters: {seed: one}}]", "seed='one': allowed is int"),
        ("entries: [{notebook: small.ipynb, parameters: {seed: -1}}]", "seed=-1: allowed is 0 or more"),
        ("entries: [{notebook: small.ipynb, parameters: {x: .nan}}]", "x=nan: allowed is a finite number"),
        ("entries: [{notebook: small.ipynb, parameters: {x: 2026-01-01}}]", "x=.*is date; allowed is float"),
        ("entries: [{notebook: small.ipynb, grid: {x: 1}}]", r"no list of values; write x: \[1\]"),
        ("entries: [{notebook: small.ipynb, grid: {x: []}}]", "no list of values"),
        ("entries: [{notebook: small.ipynb, seeds: []}]", "makes no run"),
        ("entries: [{notebook: small.ipynb, seeds: [0], parameters: {seed: 1}}]", "seed stands in two"),
        ("entries: [{notebook: small.ipynb, seeds: [0], grid: {seed: [1]}}]", "seed stands in two"),
        ("entries: [{notebook: small.ipynb, parameters: {x: [2026-01-01]}}]", "x=.* is list; allowed is float"),
        ("entries: [{notebook: small.ipynb, name: 3}]", "name: 3 is int"),
        ("entries: [{notebook: 10_compare, parameters: {experiments: [2026-01-01]}}]", "must be plain values"),
        ("entries: [{notebook: 10_compare, parameters: {experiments: &a [*a]}}]", "allowed are plain values"),
        ("entries: [{notebook: small.ipynb, seeds: [0, 0]}]", "is the same run as"),
        ("entries: [{notebook: small.ipynb}, {notebook: small.ipynb, parameters: {x: 1}}]", "is the same run as"),
        ("entries: [{notebook: small.ipynb}, {notebook: small.ipynb, parameters: {x: 2}}]", "two entries are called"),
        ("entries: [{notebook: none.ipynb}]", "cells tagged 'parameters'"),
    ],
)  # fmt: skip
def test_what_is_no_suite_is_refused_and_says_what_is_allowed(suite, store, text, message):
    write_notebook(store / "none.ipynb")
    bare = json.loads((store / "none.ipynb").read_text())
    bare["cells"][0]["metadata"] = {}
    (store / "none.ipynb").write_text(json.dumps(bare))
    with pytest.raises(SuiteError, match=message):
        suite(text)


def test_all_that_is_wrong_is_said_at_once(suite):
    with pytest.raises(SuiteError) as caught:
        suite(
            "entries:\n- {notebook: small.ipynb, parameters: {y: 1}}\n- {notebook: small.ipynb, grid: {seed: [a, -1]}}"
        )
    assert [line.split(":")[0] for line in str(caught.value).split("\n")] == ["entry 1", "entry 2", "entry 2"]


def test_a_grid_that_explodes_is_refused_before_it_is_made_and_the_limit_can_be_raised(suite):
    values = list(range(1000))
    text = f"entries: [{{notebook: small.ipynb, grid: {{x: {values}, seed: {values}, y: {values}}}}}]"
    started = time.monotonic()
    with pytest.raises(SuiteError, match=r"makes 1000000000 runs; allowed are 500.*--limit 1000000000"):
        suite(text)
    assert time.monotonic() - started < 5
    with pytest.raises(SuiteError, match="makes 5 runs; allowed are 4"):
        suite(GRID, limit=4)
    assert len(suite(GRID, limit=5).entries) == 5


def test_no_entry_of_that_name(suite):
    with pytest.raises(SuiteError, match="matches no entry; did you mean 'other'"):
        suite(GRID).only("othr")


def finished(entry, status="FINISHED"):
    run = tracking.open_run("small", entry.parameters, entry.folder, {"code": entry.code})
    run.end(status)


def test_a_plan_skips_what_finished_and_names_what_changed(suite, store):
    loaded = suite(GRID)
    for entry, status in zip(loaded.entries, ("FINISHED", "FAILED", "KILLED"), strict=False):
        finished(entry, status)
    words = [(s.word, s.why) for s in plan(loaded.entries, False)]
    assert words[0] == ("skipped", "finished before, same parameters and code")
    assert words[1] == ("waiting", "was FAILED: again")
    assert [w for w, _ in words] == ["skipped", "waiting", "waiting", "waiting", "waiting"]
    assert [s.word for s in plan(loaded.entries, True)] == ["skipped", "waiting", "waiting", "left", "left"]

    finished(loaded.entries[4])
    (other,) = suite(GRID.replace("x: 9", "x: 10")).only("other")
    (state,) = plan([other], False)
    assert (state.word, state.why) == ("waiting", "changed since its last run (x: 9.0 -> 10.0): runs anew")
    write_notebook(store / "small.ipynb", "pass")  # other code
    (state,) = plan(suite(GRID).only("other"), False)
    assert state.word == "waiting"
    assert "changed since its last run (code: " in state.why


def test_suites_of_the_repository_are_whole(store):
    for name in ("smoke", "paper"):
        loaded = load_suite(places.NOTEBOOKS / "suites" / f"{name}.yaml")
        assert len({e.notebook for e in loaded.entries}) >= 9
        check_all(loaded.entries, name == "smoke", GRPOSettings.of)


def test_memory_and_parameters_that_cannot_work_are_refused_before_a_kernel(suite, monkeypatch):
    def checked(parameters: str, here: bool, notebook: str = "06_training_signals"):
        loaded = suite(f"entries: [{{notebook: {notebook}, parameters: {parameters}}}]")
        return check_all(loaded.entries, here, GRPOSettings.of)

    with pytest.raises(SuiteError, match="06_training_signals: model='x/y-70B' needs about"):
        checked("{model: x/y-70B}", True)
    assert checked("{model: x/y-70B}", False) == {"06_training_signals": None}  # another machine's
    with pytest.raises(SuiteError, match=r"estimators=.*'majorty'.*did you mean 'majority'"):
        checked("{estimators: [majorty]}", False)
    with pytest.raises(SuiteError, match=r"split='transductive': arithmetic keeps"):
        checked("{split: transductive}", False)
    with pytest.raises(SuiteError, match=r"data='x\.jsonl': clinic reads no data"):
        checked("{data: x.jsonl}", False, "03_cat_rl_rubrics")
    with pytest.raises(SuiteError, match=r"prompts_per_step=6 .* can't hold whole groups; take 4"):
        checked("{prompts_per_step: 6, prompts_per_micro_batch: 4}", False)
    monkeypatch.setattr("cat_lib.suites.preflight.machine", lambda: (10.0, "cpu", 2))
    require_together([6.0, None, 4.0, 3.0], 2)
    with pytest.raises(Exception, match=r"3 at once need 13.0 GB of memory at most, and 10.0 GB are free: --jobs 2"):
        require_together([6.0, None, 4.0, 3.0], 3)


@pytest.mark.parametrize(
    ("notebook", "change", "message"),
    [
        *(("04_inference_time", {"seeds": s}, "one whole number from 0") for s in ([], [1, 1], [-1], ["0"], [0.5])),
        ("04_inference_time", {"split": "transductive"}, "split='transductive': arithmetic keeps"),
        ("04_inference_time", {"data": "my.jsonl"}, "data='my.jsonl': arithmetic reads no data"),
        ("04_inference_time", {"task": "chess"}, "task='chess': allowed is arithmetic"),
        ("05_scaling_rollouts", {"sizes": [1, 64]}, "from 1 to rollouts=32"),
        ("05_scaling_rollouts", {"sizes": [8]}, "give two whole numbers"),
        ("05_scaling_rollouts", {"sizes": [1, 2], "estimators": ["mutual_predictability"]}, "from 2 to rollouts=32"),
        ("06_training_signals", {"train_questions": 4}, "train_questions=4 are fewer than prompts_per_step=8"),
        ("09_sharpening", {"split": "transductive", "task": "aime24"}, "no held-out questions"),
    ],
)
def test_parameters_that_cannot_work_together_are_refused(notebook, change, message):
    p = effective(notebook, resolve(places.NOTEBOOKS / f"{notebook}.ipynb", {}))
    check(p)
    p.values.update(change)
    with pytest.raises(ValueError, match=message):
        check(p)


class Ended:
    """A job that its executor knows this of."""

    def __init__(self, error):
        self.error = error

    def result(self):
        raise self.error


def test_what_executors_know_of_an_end_is_told_apart():
    from ray import exceptions
    from submitit.core.utils import FailedJobError, UncompletedJobError

    class TaskError(exceptions.RayTaskError, ValueError):  # as Ray raises it: of the cause's class too
        def __init__(self):
            ValueError.__init__(self, "Traceback\n  at work\nValueError: no such folder")

        __str__ = ValueError.__str__

    assert outcome(Ended(FailedJobError("Traceback\nOSError: no disk"))) == (1, "OSError: no disk")
    assert outcome(Ended(TaskError())) == (1, "ValueError: no such folder")
    assert outcome(Ended(UncompletedJobError("gone"))) == (-9, "")
    assert outcome(Ended(exceptions.WorkerCrashedError())) == (-9, "")
    assert outcome(Ended(exceptions.TaskCancelledError())) == (130, "")


def under_way(loaded) -> Batch:
    """A suite of three: one finished, one in its fourth step of eight, one failed with text from a model."""
    states = [State(e, Word(word), started=time.time() - 200) for e, word in zip(loaded.entries, WORDS, strict=True)]
    done, now, failed = states
    done.seconds, failed.why = 400.0, "raised [bold]\x1b[2J<b>"
    now.entry.folder.mkdir(parents=True)
    for step in (1, 4):
        tracking.Run(now.entry.folder).step({"arm/reward": step / 8}, step, 8)
    with (now.entry.folder / "metrics.jsonl").open("a") as half:
        half.write('{"step": 5')
    write_json(now.entry.folder / "progress.json", {"cell": 2, "cells": 5, "started": 0})
    return Batch(loaded, states, executor=None, mirror=None, show=None)


WORDS = ("FINISHED", "running", "FAILED")
THREE = "entries: [{notebook: small.ipynb, seeds: [0, 1, 2]}]"


def test_the_live_table_shows_cell_step_times_and_the_last_metric(suite):
    screen = io.StringIO()
    batch = under_way(suite(THREE))
    with progress(Console(file=screen, force_terminal=True, width=140, height=30)) as show:
        show(batch)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    row = next(line for line in text.splitlines() if "│ small seed=1" in line)
    cells = [cell.strip() for cell in row.strip("│ ").split("│")]
    assert [cells[1], cells[2], cells[5]] == ["2/5", "4/8", "arm/reward 0.5"]
    assert re.fullmatch("0:03:2.", cells[3])
    assert re.fullmatch("0:03:[12].", cells[4])  # to what the finished one took
    assert "1 FINISHED, 1 running, 1 FAILED" in text
    assert r"raised [bold]\u001b[2J<b>" in text
    assert "\x1b[2J" not in screen.getvalue()


def test_away_from_a_terminal_each_change_is_a_line(suite, capsys):
    batch = under_way(suite(THREE))
    with progress(Console(file=io.StringIO())) as show:
        show(batch)
        show(batch)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == list(WORDS)
    assert len(lines) == 4
    assert re.search(r"cell 2/5 step 4/8 elapsed 0:03:2. remaining 0:03:[12]. arm/reward 0.5$", lines[3])
    told = "\n".join(summary(batch.states))
    assert f"tail -n 40 '{batch.states[2].entry.folder}/output.log'" in told
    assert "\x1b" not in told
