"""The experiments through the real runner, at smoke size, against what results/published says they give.

On the kind of processor that made the published numbers they are the same to the last digit. Elsewhere sums round
differently and other rollouts are drawn from the same seeds: it is the experiment once more. So a number with an
interval may move as far as the two intervals still meet, any other share by TOLERANCE; and what a reader takes away
from each notebook, its main effects, is asserted by side.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from cat_lib.runs import store as store_
from cat_lib.runs.runner import run_notebook
from cat_lib.runs.store import sectioned
from small import run_id_of

pytestmark = pytest.mark.notebook
ROOT = Path(__file__).parents[2]
TOLERANCE = 0.15
# times, and numbers that jump where an effect is small
HAPPENED = ("_flip_rise", "_label_fall", "_lead")  # steps, there only of what happened
NOT_COMPARED = ("_seconds", "_p", "_p_holm", "collapsed", "_tokens_first", "_tokens_last", *HAPPENED)
COUNTED = ("never_sampled_", "synthesis_right_departing_")  # there only where enough questions are
SIGNALS = ("_first", "_last")  # means over the 24 groups of three steps
RELATIVE = ("_tokens", "_flops", "_gflops", "_questions")
# of each notebook, what its reader takes away: the metric, and the side of zero (or of the other metric) it is on
EFFECTS = {
    "01_rollouts_and_references": [
        ("pass_at_g", ">", "majority_accuracy"),
        ("majority_accuracy", ">", "one_sample_accuracy"),
    ],
    "04_inference_time": [("single_versus_majority_high", "<", 0), ("synthesis_versus_majority_high", "<", 0)],
    "05_scaling_rollouts": [
        ("majority_growth_1_8_low", ">", 0),
        ("pass_at_k_accuracy_32", ">", "majority_accuracy_32"),
    ],
    "06_training_signals": [
        ("synthesis_heldout_accuracy_difference_low", ">", 0),
        ("majority_heldout_accuracy_difference_low", ">", 0),
        ("gold_heldout_accuracy_difference_low", ">", 0),
        ("gold_label_accuracy_last", "=", 1),
        ("lesson_reward_last", ">", 0.8),
        ("lesson_rollout_accuracy_last", "<", 0.1),
    ],
    "07_ablations": [
        ("CaT-SFT_heldout_accuracy_difference_low", ">", 0),
        ("CaT-RL_heldout_accuracy_difference_low", ">", 0),
    ],
    "08_compute": [("synthesis_over_trained_tokens", ">", 7), ("synthesis_over_trained_flops", ">", 7)],
    "09_sharpening": [("trained_pass_at_1_low", ">", 0), ("heldout_accuracy_difference_low", ">", 0)],
    "11_when_consensus_lies": [("wrong_majority", ">", 0.1), ("confidently_wrong", ">", 0)],
    "13_formalize_and_solve": [
        ("gold_solution_model_difference_low", ">", 0),
        ("gold_sft_model_difference_low", ">", 0),
    ],
}


def moved_too_far(before: dict[str, float], now: dict[str, float]) -> dict[str, tuple[float, float]]:
    """The metrics of both that are further apart than the same experiment on another processor: key to (then, now)."""
    found = {}
    for key in before.keys() & now.keys():
        limit = key.removesuffix("_low").removesuffix("_high")
        if key.endswith(NOT_COMPARED) or key.startswith("never_sampled_") or (limit != key and limit in now):
            continue
        allowed = 2 * TOLERANCE if key.endswith(SIGNALS) else TOLERANCE
        if f"{key}_low" in before and f"{key}_low" in now:
            widths = [(m[f"{key}_high"] - m[f"{key}_low"]) / 2 for m in (before, now)]
            if max(widths) > 2 * min(widths) + 0.05:
                found[f"{key}, half its interval"] = (widths[0], widths[1])
            allowed = max(TOLERANCE, sum(widths))
        elif key.endswith(RELATIVE) or "_over_trained_" in key:
            allowed = 0.25 * abs(before[key])
        if abs(now[key] - before[key]) > allowed:
            found[key] = (before[key], now[key])
    return found


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"a": 0.69, "a_low": 0.59, "a_high": 0.79, "b": 0.6, "c_tokens": 120.0, "d_p": 0.9, "e_last": 0.75}, set()),
        ({"a": 0.71, "a_low": 0.61, "a_high": 0.81}, {"a"}),
        ({"a_low": 0.2, "a_high": 0.8}, {"a, half its interval"}),
        ({"b": 0.7}, {"b"}),
        ({"c_tokens": 130.0}, {"c_tokens"}),
        ({"e_last": 0.85}, {"e_last"}),
    ],
)
def test_what_moves_further_than_another_draw_is_found(changed, found):
    before = {"a": 0.5, "a_low": 0.4, "a_high": 0.6, "b": 0.5, "c_tokens": 100.0, "d_p": 0.01, "e_last": 0.5}
    assert set(moved_too_far(before, before | changed)) == found


@pytest.mark.slow
@pytest.mark.parametrize("notebook", EFFECTS)
def test_smoke_run_gives_what_is_published(notebook, store):
    folder = run_notebook(ROOT / "notebooks" / f"{notebook}.ipynb", {}, runs=store / "runs")
    metrics = json.loads((folder / "metrics.json").read_text())
    published = ROOT / "results" / "published" / notebook
    before = json.loads((published / "metrics.json").read_text())
    apart = {k for k in metrics.keys() ^ before.keys() if not k.startswith(COUNTED) and not k.endswith(HAPPENED)}
    assert apart == set()
    assert moved_too_far(before, metrics) == {}
    for key, side, other in EFFECTS[notebook]:
        limit = metrics[other] if isinstance(other, str) else other
        assert {">": metrics[key] > limit, "<": metrics[key] < limit, "=": metrics[key] == limit}[side], (key, limit)

    assert {p.stem for p in (folder / "figures").iterdir()} == {p.stem for p in published.glob("*.png")}
    for table in published.glob("*.csv"):
        now, then = pd.read_parquet(folder / f"{table.stem}.parquet"), pd.read_csv(table)
        assert list(now.columns) == list(then.columns)
    run = store_.connect().get_run(run_id_of(folder))
    assert run.info.status == "FINISHED"
    assert {k: run.data.metrics[sectioned(k, step=False)] for k in metrics} == pytest.approx(metrics)
