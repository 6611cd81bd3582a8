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


# on the embedded model, for references that can be learnt and answers to begin with. The others on two layers of it:
# quick, and a model that gives no answers at all must not break a notebook. The quickstart is in test_quickstart.py.
WHOLE = {"07_ablations", "14_posing_problems"}


@pytest.mark.parametrize("name", sorted(presets().keys() - {"00_quickstart"}))
def test_a_notebook_runs_whole_at_tiny_size(name, store, untracked, two_layers):
    given = {"preset": "tiny"} | ({} if name in WHOLE else {"model": two_layers})
    folder = run_notebook(NOTEBOOKS / f"{name}.ipynb", given, runs=store / "runs")
    effective = read_config(folder)["parameters"]
    tiny = presets()[name]["tiny"] | given
    assert {key: effective[key] for key in tiny} == tiny
    assert json.loads((folder / "metrics.json").read_text())
    assert list((folder / "figures").glob("*.png"))
