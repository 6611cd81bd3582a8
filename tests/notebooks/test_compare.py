"""Notebook 10 through the real runner on four small runs: numbers, tables, and a report that MLflow keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from cat_lib.runs import mirror, tracking
from cat_lib.runs import store as store_
from cat_lib.runs.folder import RunError
from cat_lib.runs.runner import run_notebook
from small import run_id_of

pytestmark = pytest.mark.notebook
COMPARE = Path(__file__).parents[2] / "notebooks" / "10_compare.ipynb"
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)> $\\frac{$ \u202e"


def make_runs(store: Path) -> None:
    for estimator, seed, score in (("majority", 0, 0.4), ("majority", 1, 0.6), ("gold", 0, 0.5), ("gold", 1, 0.8)):
        folder = store / "runs" / "06_training_signals" / f"{estimator}{seed}"
        run = tracking.open_run("06_training_signals", {"estimator": estimator, "seed": seed, "data": HOSTILE}, folder)
        run.metrics({"heldout_score": score, "heldout_score_low": score - 0.1, "heldout_score_high": score + 0.1})
        run.metrics({"policy_tokens": 1000.0, "update_flops": 2e12, "heldout_questions": 48.0})
        run.step({"reward": score, "agreement": 0.5}, 1, 1)
        run.table("rollouts", pd.DataFrame({"question": ["q"], "text": [HOSTILE], "reference": "r", "reward": 1.0}))
        run.end("FINISHED")
        mirror.import_run(folder)


def test_runs_are_compared_and_the_report_is_an_artifact(store):
    make_runs(store)
    folder = run_notebook(COMPARE, {"title": f"Mine {HOSTILE}", "examples": 1}, runs=store / "runs")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == {
        "runs_compared": 4, "groups_compared": 2, "seeds_compared": 2, "rollouts_shown": 2, "runs_left_out": 0,
        "differences": 1, "differences_decided": 0,
    }  # fmt: skip
    assert '"stderr"' not in (folder / "executed.ipynb").read_text()  # no bars between the tables
    table = pd.read_parquet(folder / "comparison.parquet").set_index("method")
    assert list(table.index) == ["estimator=gold", "estimator=majority"]
    assert table["value"].tolist() == pytest.approx([0.65, 0.5])
    assert table[["tokens", "flops", "n"]].iloc[0].tolist() == [1000, 2e12, 48]
    difference = pd.read_parquet(folder / "differences.parquet").iloc[0]
    assert difference.value == pytest.approx(-0.15)
    assert (difference.n, difference.outcome) == (2, "undecided")
    assert {p.name for p in (folder / "figures").iterdir()} == {
        "comparison.png",
        "cost.png",
        "differences.png",
        "learning.png",
    }
    names = ("comparison", "differences", "rollouts", "runs", "settings")
    kept = {p.name for p in (folder / "tables").iterdir()}
    assert kept > {f"{n}.{e}" for n in names for e in ("csv", "tex")}
    assert {name for name in kept if name.endswith(".json")} == {"comparison.json", "differences.json", "runs.json"}
    assert pd.read_csv(folder / "tables" / "comparison.csv")["value"].tolist() == pytest.approx([0.65, 0.5])
    assert len(pd.read_parquet(folder / "runs.parquet")) == 4
    soup = BeautifulSoup((folder / "report.html").read_text("utf-8"), "html.parser")
    assert not soup.find_all(["link", "iframe", "a"])
    assert len(soup.find_all("script")) == 1
    assert [e["src"][:10] for e in soup.find_all("img")] == ["data:image"] * 4
    assert soup.title.text == f"Mine {HOSTILE[:-1]}\\u202e"
    assert "estimator=majority: undecided (-0.150 [" in soup.li.text
    client, run_id = store_.connect(), run_id_of(folder)
    assert "report.html" in {a.path for a in client.list_artifacts(run_id)}
    config = json.loads((folder / "config.json").read_text())
    assert config["parameters"]["metric"] == "heldout_score"
    assert config["parameters"]["baseline"] == "estimator=gold"


def test_an_empty_store_and_a_group_alone(store):
    with pytest.raises(RunError, match=r"ValueError: no finished run .*mlflow\.db"):
        run_notebook(COMPARE, {}, runs=store / "runs")
    make_runs(store)
    given = {"filter": "params.estimator = 'gold'", "examples": 0}
    folder = run_notebook(COMPARE, given, runs=store / "runs")
    assert json.loads((folder / "metrics.json").read_text())["differences"] == 0
    assert "no other group" in (folder / "report.html").read_text()
