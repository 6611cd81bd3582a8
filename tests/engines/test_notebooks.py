"""Notebooks through the real runner on vLLM and Unsloth, at the smallest size: they run whole and say which engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cat_lib.runs.folder import read_config
from cat_lib.runs.runner import run_notebook

pytest.importorskip("vllm", reason="vLLM is not installed: make engines")
pytestmark = pytest.mark.notebook
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def run(name, store, monkeypatch, **given):
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # where it is set, a kernel's output has no file number, which vLLM asks
    folder = run_notebook(NOTEBOOKS / f"{name}.ipynb", {"preset": "tiny"} | given, runs=store / "runs")
    taken = read_config(folder)["parameters"]
    assert {key: taken[key] for key in given} == given
    assert json.loads((folder / "metrics.json").read_text())
    assert list((folder / "figures").glob("*.png"))
    return folder


@pytest.mark.parametrize("name", ["02_rubrics_and_judge", "04_inference_time"])
def test_a_notebook_runs_whole_on_vllm(name, store, untracked, monkeypatch):
    run(name, store, monkeypatch, engine="vllm")


@pytest.mark.parametrize("name", ["00_quickstart", "06_training_signals"])
@pytest.mark.parametrize("given", [{"engine": "unsloth"}, {"rollouts": "vllm"}], ids=["unsloth", "vllm"])
def test_a_training_runs_whole(name, given, store, untracked, monkeypatch):
    folder = run(name, store, monkeypatch, **given)
    steps = [json.loads(line)["metrics"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    gaps = [v for m in steps for k, v in m.items() if k.endswith("sampling_gap")]
    assert bool(gaps) == ("rollouts" in given)
    assert all(gap < 0.05 for gap in gaps)  # bfloat16
