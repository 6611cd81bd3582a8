"""The report of a real suite through the real runner."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from cat_lib import store as store_
from cat_lib.runner import RunError, run_notebook
from small import cat_lib, write_notebook

pytestmark = pytest.mark.notebook
COMPARE = Path(__file__).parents[2] / "notebooks" / "10_compare.ipynb"


def test_a_suite_is_tabled_and_its_report_kept_as_an_artifact(store):
    write_notebook(store / "small.ipynb", "run.metrics({'policy_tokens': 10 * x, 'policy_seconds': 2.0})")
    (store / "s.yaml").write_text("entries: [{notebook: small.ipynb, grid: {x: [1, 2]}, seeds: [0, 1]}]")
    code, out = cat_lib(store, "suite", store / "s.yaml", "--jobs", "2")
    assert code == 0, out
    given = {"experiments": ["suite/s"], "metric": "score"}
    folder = run_notebook(COMPARE, given, runs=store / "runs")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == {"runs_read": 4, "runs_compared": 4, "configurations": 2, "differences_decided": 0}
    table = pd.read_parquet(folder / "summary.parquet")
    assert table["mean"].tolist() == pytest.approx([1.05, 2.05])  # x + seed / 10
    assert table["tokens"].tolist() == [10, 20]
    assert list(table["seeds"]) == ["0, 1", "0, 1"]
    (versus,) = pd.read_parquet(folder / "paired.parquet").itertuples()
    assert (versus.difference, versus.n, versus.verdict) == (
        pytest.approx(1.0),
        2,
        "undecided",
    )  # both seeds +1: no spread
    assert {p.stem for p in (folder / "figures").iterdir()} == {"summary", "paired"}
    executed = nbformat.read(folder / "executed.ipynb", as_version=4)
    assert len([o for c in executed.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]) == 2
    artifacts = {a.path for a in store_.connect().list_artifacts(store_.run_id_of(folder))}
    assert {"report.html", "summary.parquet", "executed.ipynb"} <= artifacts
    assert "x=2.0" in (folder / "report.html").read_text()


def test_a_filter_that_finds_nothing_says_what_is_there(store):
    with pytest.raises(RunError, match="no experiment 'suite/s'"):
        run_notebook(COMPARE, {"experiments": ["suite/s"]}, runs=store / "runs")
