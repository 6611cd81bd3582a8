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
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("00_quickstart", {"rollouts": "vllm"}),
        ("06_training_signals", {"engine": "unsloth", "rollouts": "vllm"}),
        pytest.param("00_quickstart", {"engine": "unsloth"}, marks=SLOW),
        pytest.param("00_quickstart", {"engine": "unsloth_4bit"}, marks=SLOW),
        pytest.param("02_rubrics_and_judge", {"engine": "vllm"}, marks=SLOW),
        pytest.param("06_training_signals", {"engine": "unsloth"}, marks=SLOW),
        pytest.param("06_training_signals", {"rollouts": "vllm"}, marks=SLOW),
    ],
)
def test_a_notebook_runs_whole(name, given, store, untracked, monkeypatch, two_layers):
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # where it is set, a kernel's output has no file number, which vLLM asks
    given = {"preset": "tiny", "model": two_layers} | given
    folder = run_notebook(NOTEBOOKS / f"{name}.ipynb", given, runs=store / "runs")
    taken = read_config(folder)["parameters"]
    assert {key: taken[key] for key in given} == given
    assert json.loads((folder / "metrics.json").read_text())
    assert list((folder / "figures").glob("*.png"))
    file = folder / "metrics.jsonl"
    steps = [json.loads(line)["metrics"] for line in file.read_text().splitlines()] if file.exists() else []
    gaps = [value for step in steps for key, value in step.items() if key.endswith("sampling_gap")]
    assert bool(gaps) == ("rollouts" in given)
    assert all(gap < 0.05 for gap in gaps)  # bfloat16
