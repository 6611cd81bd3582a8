"""The quickstart through the real runner, at smoke size: the numbers the README promises, and again the same."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from cat_lib.runs import store as store_
from cat_lib.runs.runner import run_notebook
from cat_lib.runs.store import sectioned
from small import run_id_of

pytestmark = pytest.mark.notebook
QUICKSTART = Path(__file__).parents[2] / "notebooks" / "00_quickstart.ipynb"
FIGURES = {"accuracy", "agreement", "answers", "compute", "signal"}


@pytest.mark.longest
def test_smoke_run_learns_without_labels_and_keeps_everything(store):
    folder = run_notebook(QUICKSTART, {}, runs=store / "runs")
    metrics = json.loads((folder / "metrics.json").read_text())
    # published: results/published/quickstart_seeds.csv, synthesis, seed 0. The tolerance is below half the gain.
    published = pd.read_csv(QUICKSTART.parents[1] / "results/published/quickstart_seeds.csv")
    row = published[(published.teacher == "synthesis") & (published.seed == 0)].iloc[0]
    assert 0.3 <= metrics["heldout_accuracy_before"] <= 0.7
    assert metrics["heldout_accuracy_before"] == pytest.approx(row.heldout_accuracy_before, abs=0.03)
    tolerance = min(0.08, row.heldout_accuracy_difference / 2)
    assert metrics["heldout_accuracy_difference"] == pytest.approx(row.heldout_accuracy_difference, abs=tolerance)
    assert metrics["heldout_accuracy_difference_low"] > 0
    assert 8 < metrics["synthesis_over_single_tokens"] < 11
    assert metrics["collapsed"] == 0

    run = store_.connect().get_run(run_id_of(folder))
    assert run.info.status == "FINISHED"
    assert {k: run.data.metrics[sectioned(k, step=False)] for k in metrics} == pytest.approx(metrics)
    assert len(store_.connect().get_metric_history(run.info.run_id, "2_signal/agreement")) == 12
    config = json.loads((folder / "config.json").read_text())
    assert config["trainer"]["loss_type"] == "grpo"
    assert config["parameters"]["steps"] == 12
    assert {p.stem for p in (folder / "figures").iterdir()} == FIGURES
    rollouts = pd.read_parquet(folder / "rollouts.parquet")
    assert len(rollouts) == 12 * 16 * 8
    assert {"text", "reference", "reward"} <= set(rollouts)
    executed = nbformat.read(folder / "executed.ipynb", as_version=4)
    pictures = [o for c in executed.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == len(FIGURES)


def test_the_same_seed_gives_the_same_metrics(store, untracked, two_layers):
    """Of a model that gives no answers: nothing is rewarded, and every figure is there all the same."""
    tiny, runs = {"preset": "tiny", "seed": 3, "model": two_layers}, store / "runs"
    folders = [run_notebook(QUICKSTART, tiny, runs=runs) for _ in range(2)]
    assert {p.stem for p in (folders[0] / "figures").iterdir()} == FIGURES
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in folders)
    timed = {k for k in first if k.endswith("_seconds")}
    assert {k: v for k, v in first.items() if k not in timed} == {k: v for k, v in second.items() if k not in timed}
