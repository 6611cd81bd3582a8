"""Notebooks through the real runner on the vLLM engine, at the smallest size: they run whole and say which engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cat_lib.runs.folder import read_config
from cat_lib.runs.runner import run_notebook

pytest.importorskip("vllm", reason="vLLM is not installed: make engines")
pytestmark = pytest.mark.notebook
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.mark.parametrize("name", ["02_rubrics_and_judge", "04_inference_time"])
def test_a_notebook_runs_whole_on_vllm(name, store, untracked, monkeypatch):
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # where it is set, a kernel's output has no file number, which vLLM asks
    given = {"preset": "tiny", "engine": "vllm"}
    folder = run_notebook(NOTEBOOKS / f"{name}.ipynb", given, runs=store / "runs")
    assert read_config(folder)["parameters"]["engine"] == "vllm"
    assert json.loads((folder / "metrics.json").read_text())
    assert list((folder / "figures").glob("*.png"))
