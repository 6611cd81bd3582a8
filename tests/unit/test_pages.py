"""What a run leaves for its readers: names, sections, tables, the page, the description and the traces."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from cat_lib.runs import pages, traces
from cat_lib.runs import store as store_
from cat_lib.runs.folder import open_run, read_config
from cat_lib.runs.mirror import Sent, copy, import_run
from small import write_training

MADE_UP = "20261128-120000-abcdef"  # the name of a folder that nobody chose
LONG = "x" * 100_000
HOSTILE = [
    "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script></td></table></pre>",
    "**bold** [link](javascript:alert(1)) ![](https://host/x.png) $x$ | a | b |",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \u202eright to left\u2066 \x00",
    f"{{{{ 7 * 7 }}}} {LONG}",
]


@pytest.fixture(params=HOSTILE, ids=["html", "markdown", "unseen", "long"])
def hostile(request, store):
    return write_training(store / "runs" / "00_quickstart" / MADE_UP, request.param)


def test_what_a_model_wrote_is_text_on_the_page_and_in_the_tables(hostile):
    page = (hostile / "executed.html").read_text("utf-8")
    soup = BeautifulSoup(page, "html.parser")
    assert {e.name for e in soup.find_all(["script", "img", "iframe", "link", "object", "a", "strong"])} <= {
        "strong",
        "a",
    }
    assert all(e.get("href", "").startswith("https://") for e in soup.find_all("a"))
    assert not any(name.startswith("on") or name == "src" for e in soup.find_all(True) for name in e.attrs)
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", page)
    assert len(page) < 60_000
    for name in ("rollouts", "rubrics", "verdicts", "heldout"):
        text = (hostile / "tables" / f"{name}.json").read_text("utf-8")
        table = json.loads(text)
        assert set(table) == {"columns", "data"}
        cells = [c for row in table["data"] for c in row if isinstance(c, str)]
        assert max(map(len, cells)) <= pages.LONGEST + 40
        assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", "".join(cells))


def test_the_page_opens_on_the_verdict_loads_nothing_and_has_its_equations_as_mathml(store):
    folder = write_training(store / "runs" / "00_quickstart" / "one")
    page = (folder / "executed.html").read_text("utf-8")
    soup = BeautifulSoup(page, "html.parser")
    first = soup.body.find(True)
    assert (first["id"], "Not shown by seed 0." in first.text, "The question." in first.text) == ("verdict", True, True)
    assert [m["display"] for m in soup.find_all("math")] == ["inline", "inline", "block"]  # the question is there twice
    assert "$" not in soup.text
    assert "default-src 'none'" in soup.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    assert {e["src"][:10] for e in soup.find_all(src=True)} <= {"data:image"}


def test_a_page_says_what_ended_the_run_and_one_that_cannot_be_made_ends_none(store, capsys):
    folder = write_training(store / "runs" / "00_quickstart" / "one")
    pages.write_page(folder, {"notebook": "n", "status": "FAILED", "error": "<b>1</b> *2* `3`"})
    verdict = BeautifulSoup((folder / "executed.html").read_text("utf-8"), "html.parser").find(id="verdict")
    assert "FAILED. <b>1</b> *2* `3`" in verdict.text
    (folder / "executed.ipynb").write_text('{"cells": [{}]}')
    pages.write_page(folder, {"notebook": "n", "status": "FINISHED"})
    assert capsys.readouterr().out.startswith(f"no executed.html in {folder}: KeyError")


def test_every_notebook_asks_its_question_and_names_its_figure_and_its_equations_are_known():
    for path in sorted(store_.places.NOTEBOOKS.glob("*.ipynb")):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        question, _, figure, caption = pages.story(cells, {"status": "FINISHED"})
        assert all([question, figure, caption]), path.name
        page = pages.page(cells, {"notebook": path.stem, "status": "FINISHED"})
        soup = BeautifulSoup(page, "html.parser")
        for code in soup.find_all(["details", "code"]):
            code.decompose()
        assert not re.search(r"[$\\]", soup.text), path.name


def test_a_table_shows_its_first_and_last_step_whole_and_a_few_rows_between():
    at = [(step, example, i) for step in range(50) for example in range(8) for i in range(4)]
    table = pd.DataFrame(at, columns=["step", "example", "rollout"])
    shown = pages.sample(table)
    assert shown["step"].isin([0, 49]).sum() == 64
    assert (len(shown), shown["step"].nunique()) == (64 + 1536 // 4, 50)
    assert shown.equals(table.loc[shown.index])
    plain = pages.sample(pd.DataFrame({"value": range(10_000)}))
    assert plain["value"].tolist() == list(range(0, 10_000, 25))
    for small in (table[:100], table[:0], pd.DataFrame({"step": [None, 1.0, None]}), pd.DataFrame({"value": ["a"]})):
        assert pages.sample(small).equals(small)


def test_sections_read_in_the_order_of_the_story_and_come_off_again():
    steps = ["agreement", "arm/reward", "loss", "clip_ratio/low_mean", "arm/completions/mean_length", "rollout_tokens"]
    results = [
        "heldout_accuracy_after",
        "policy_tokens",
        "judge_usd",
        "agreement_last",
        "gold_collapsed",
        "heldout_tokens_after",
    ]
    keys = [store_.sectioned(k, step=True) for k in steps] + [store_.sectioned(k, step=False) for k in results]
    assert sorted(keys) == [
        "1_results/heldout_accuracy_after", "1_results/heldout_tokens_after", "2_signal/agreement",
        "2_signal/agreement_last", "2_signal/arm/reward", "2_signal/gold_collapsed", "2_signal/rollout_tokens",
        "3_cost/judge_usd", "3_cost/policy_tokens", "trainer/arm/completions/mean_length",
        "trainer/clip_ratio/low_mean", "trainer/loss",
    ]  # fmt: skip
    assert [store_.bare(k) for k in keys] == steps + results
    assert [store_.bare(k) for k in steps + results] == steps + results  # of a run that was copied without
    assert store_.sectioned("system/cpu", step=True) == "system/cpu"


@pytest.mark.parametrize(
    ("run", "tags", "more", "name"),
    [
        (MADE_UP, {}, {}, "synthesis · smoke · seed 0"),
        (MADE_UP, {}, {"estimator": "majority", "beta": 0.0, "seed": 3}, "majority · smoke · beta=0.0 · seed 3"),
        (MADE_UP, {}, {"model": "m" * 99}, f"synthesis · smoke · model={'m' * 60}… · seed 0"),
        ("chosen", {}, {}, "chosen"),
        (MADE_UP, {"entry": "small x=1"}, {}, "small x=1"),
    ],
)  # fmt: skip
def test_a_run_is_called_by_what_varies_unless_somebody_named_it(tmp_path, run, tags, more, name):
    given = {"preset": "smoke", "estimator": "synthesis", "beta": 1e-3, "model": None, "seed": 0} | more
    config = {"notebook": "00_quickstart", "given": given, "parameters": given | {"steps": 12}, "tags": tags}
    assert store_.title(config, tmp_path / run) == name
    assert store_.title({"notebook": "gone"}, tmp_path / run) == run  # of no parameters that are known


def test_a_copy_names_describes_and_tags_its_run_and_a_second_changes_nothing(store):
    folder = write_training(store / "runs" / "00_quickstart" / MADE_UP)
    client = store_.connect()
    run_id = import_run(folder)
    before = contents(client, run_id)
    tags = client.get_run(run_id).data.tags
    assert tags["mlflow.runName"] == client.get_run(run_id).info.run_name == "synthesis · smoke · steps=3 · seed 0"
    assert tags["mlflow.source.name"] == "notebooks/00_quickstart.ipynb"
    assert tags["mlflow.user"] == folder.owner()
    note = tags["mlflow.note.content"]
    order = [
        note.index(part) for part in ("Does G help?", "Not shown by seed 0.", "Open circles", "figures%2Faccuracy.png")
    ]
    assert order == sorted(order)
    listed = [t["path"] for t in json.loads(tags["mlflow.loggedArtifacts"])]
    assert listed == [f"tables/{name}.json" for name in ("heldout", "rollouts", "rubrics", "verdicts")]
    assert client.load_table(client.get_run(run_id).info.experiment_id, "tables/rollouts.json").shape == (24, 10)
    client.update_run(run_id, status="RUNNING")  # as after a copy that was cut off: all is sent again
    copy(folder, client, Sent())
    assert contents(client, run_id) == before


def contents(client, run_id):
    """A run's metrics, tags and files, and its traces with spans and feedback."""
    run = client.get_run(run_id)
    found = client.search_traces(locations=[run.info.experiment_id], run_id=run_id)
    seen = [
        (t.info.trace_id, t.info.request_time, t.info.tags, [(s.span_id, s.outputs) for s in t.data.spans],
         [(a.name, a.value) for a in t.info.assessments]) for t in found
    ]  # fmt: skip
    files = sorted(a.path for p in (None, "tables", "figures") for a in client.list_artifacts(run_id, p))
    history = {k: len(client.get_metric_history(run_id, k)) for k in run.data.metrics}
    return history, run.data.tags, files, sorted(seen, key=lambda t: t[0])


def test_a_trace_tells_a_group_from_its_question_to_its_rewards(store, monkeypatch):
    monkeypatch.setattr(traces, "TRACES", 2)
    folder = write_training(store / "runs" / "00_quickstart" / "one")
    client, run_id = store_.connect(), import_run(folder)
    found = client.search_traces(locations=[client.get_run(run_id).info.experiment_id], run_id=run_id)
    groups = {t.info.tags["cat_lib.group"]: t for t in found}
    assert set(groups) == {"1/q0", "2/q1", "3/q3"}  # two spread over the run, and the one that lost a verdict
    assert {t.info.tags["cat_lib.run"] for t in found} == {"00_quickstart/one"}
    assert {k: t.info.state for k, t in groups.items()} == {"1/q0": "OK", "2/q1": "ERROR", "3/q3": "OK"}
    trace = groups["3/q3"]
    names = ["group", "rollout 0", "rollout 1", "reference", "rubric", "verdicts on rollout 0", "verdicts on rollout 1"]
    spans = {s.name: s for s in trace.data.spans}
    assert sorted(spans) == sorted(names)
    assert {s.parent_id for s in trace.data.spans} == {None, spans["group"].span_id}
    assert spans["group"].inputs == {"question": "q3? = 4"}
    assert spans["group"].outputs == {"rewards": [0.0, 1.0]}
    assert spans["rollout 1"].outputs == {"text": "= 4", "answer": "4", "finish": "stop", "reward": 1.0}
    assert [v.outputs[0]["cause"] for s, v in sorted(groups_spans(groups["2/q1"])) if "verdicts" in s] == [
        "no verdict"
    ] * 2
    (feedback,) = trace.info.assessments
    assert (feedback.name, feedback.value) == ("reward", 0.5)
    assert trace.info.token_usage == {"input_tokens": 240, "output_tokens": 48, "total_tokens": 288}
    assert trace.info.cost["total_cost"] == pytest.approx(0.006)
    ended = [line["time"] for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())]
    seconds = 4 * 0.25  # of a role in a step
    assert spans["verdicts on rollout 0"].end_time_ns == ended[2] * 10**6 - int(seconds * 1e9)
    assert trace.info.request_time == ended[2] - 4 * seconds * 1e3
    assert trace.info.execution_duration == 3 * seconds * 1e3


def groups_spans(trace):
    return [(s.name, s) for s in trace.data.spans]


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (NotImplementedError("log_spans is not supported: MLflow server version 2.9 is less than 3.4"), 1),
        (ConnectionError("the network is away"), 0),
    ],
)
def test_a_store_without_traces_is_passed_over_and_said_once_and_one_that_is_away_is_not(
    store, monkeypatch, capsys, raised, said
):
    def fail(*_):
        raise raised

    traces._say_once.cache_clear()
    client = store_.connect()
    monkeypatch.setattr(client._tracing_client, "log_spans", fail)
    for name in ("one", "two"):
        folder = write_training(store / "runs" / "00_quickstart" / name)
        if said:
            assert client.get_run(copy(folder, client)).info.status == "FINISHED"
        else:
            with pytest.raises(ConnectionError):
                copy(folder, client)
    assert capsys.readouterr().out.count("this store takes no traces") == said


def test_runs_without_rollouts_of_older_versions_and_with_traces_off_are_copied(store, monkeypatch, capsys):
    client, runs = store_.connect(), store / "runs" / "00_quickstart"
    run = open_run("00_quickstart", {}, runs / "none")
    run.end("FINISHED")
    older = open_run("00_quickstart", {}, runs / "older")
    pd.DataFrame({"text": ["a"], "reward": [1.0]}).to_parquet(older.dir / "rollouts.parquet")  # no steps in it
    older.end("FINISHED")  # it is said that it has no traces
    broken = open_run("00_quickstart", {}, runs / "broken")
    (broken.dir / "rollouts.parquet").write_text("no table")
    broken.end("KILLED")
    monkeypatch.setattr(traces, "TRACES", 0)
    off = write_training(runs / "off")
    (off / "executed.html").unlink()  # as an older version leaves a run
    assert {client.get_run(import_run(f)).info.status for f in (run.dir, older.dir, off)} == {"FINISHED"}
    assert (off / "executed.html").exists()
    monkeypatch.setattr(traces, "TRACES", 5)
    assert client.get_run(import_run(broken.dir)).info.status == "KILLED"
    assert capsys.readouterr().out.count(f"no traces of {broken.dir}") == 1
    experiment = client.get_experiment_by_name("00_quickstart").experiment_id
    assert client.search_traces(locations=[experiment]) == []
    assert read_config(off)["status"] == "FINISHED"
