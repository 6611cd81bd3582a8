"""Every notebook, whole, at the smallest size there is: its numbers mean nothing, that it has them does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cat_lib.runs.folder import read_config
from cat_lib.runs.parameters import presets
from cat_lib.runs.runner import run_notebook

pytestmark = pytest.mark.notebook
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


# the quickstart's is in test_quickstart.py, twice
@pytest.mark.parametrize("name", sorted(presets().keys() - {"00_quickstart"}))
def test_a_notebook_runs_whole_at_tiny_size(name, store, untracked):
    folder = run_notebook(NOTEBOOKS / f"{name}.ipynb", {"preset": "tiny"}, runs=store / "runs")
    effective = read_config(folder)["parameters"]
    tiny = presets()[name]["tiny"]
    assert {key: effective[key] for key in tiny} == tiny
    assert json.loads((folder / "metrics.json").read_text())
    assert list((folder / "figures").glob("*.png"))
