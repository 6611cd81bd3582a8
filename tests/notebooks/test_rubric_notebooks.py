"""The rubric notebooks through the real runner, at smoke size."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from cat_lib.runs import store as store_
from cat_lib.runs.parameters import ParameterError
from cat_lib.runs.runner import run_notebook
from small import run_id_of

pytestmark = pytest.mark.notebook
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
ARMS = ["self-proposed", "question-only", "physician", "model-as-judge"]


@pytest.mark.slow
def test_rubrics_and_judge_audits_the_judge_and_measures_attacks(store):
    folder = run_notebook(NOTEBOOKS / "02_rubrics_and_judge.ipynb", {}, runs=store / "runs")
    metrics = json.loads((folder / "metrics.json").read_text())
    # recorded: 0.633 [0.583, 0.683] on 120 held-out pairs, against a coin's 0.5
    assert metrics["judge_pairs"] == 120
    assert metrics["judge_balanced_accuracy"] == pytest.approx(0.633, abs=0.05)
    assert metrics["judge_balanced_accuracy_low"] > 0.5
    assert metrics["judge_kappa"] == pytest.approx(2 * metrics["judge_balanced_accuracy"] - 1, abs=0.01)  # half are met
    assert metrics["judge_failures"] == 0
    assert metrics["attack_fenced_difference"] == pytest.approx(-0.025, abs=0.08)  # recorded [-0.077, 0.027]
    assert {p.stem for p in (folder / "figures").iterdir()} == {"audit", "compute", "expert_verdicts", "verdicts"}
    for table in ("audit", "attacks", "expert_verdicts", "rubrics", "usefulness", "verdicts"):
        assert len(pd.read_parquet(folder / f"{table}.parquet"))


@pytest.mark.slow
def test_training_on_rubrics_compares_the_arms_and_keeps_every_verdict(store):
    # all four arms, two steps each; the smoke preset has four
    folder = run_notebook(NOTEBOOKS / "03_cat_rl_rubrics.ipynb", {"steps": 2}, runs=store / "runs")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["heldout_questions"] == 20
    assert metrics["heldout_rubric_score_before"] == pytest.approx(0.10, abs=0.08)  # hard criteria for this model
    low, high = metrics["heldout_rubric_score_difference_low"], metrics["heldout_rubric_score_difference_high"]
    assert low <= metrics["heldout_rubric_score_difference"] <= high
    assert metrics["judge_tokens"] > metrics["policy_tokens"]
    for arm in ARMS:
        rollouts, verdicts = (pd.read_parquet(folder / arm / f"{t}.parquet") for t in ("rollouts", "verdicts"))
        assert len(rollouts) == 2 * 4 * 4
        assert set(rollouts["step"]) == {1, 2}
        assert verdicts["met"].notna().all()
        scored = rollouts.dropna(subset=["reward"])
        assert len(scored) > 0
        by_rollout = verdicts.groupby(["step", "example", "rollout"])
        for key, reward in scored.set_index(["step", "example", "rollout"])["reward"].items():
            part = by_rollout.get_group(key)
            expected = part.loc[part["met"].astype(bool), "points"].sum() / part["points"].clip(lower=0).sum()
            assert reward == pytest.approx(expected)
        assert (folder / arm / "adapter" / "adapter_model.safetensors").exists()
    assert pd.read_parquet(folder / "question-only" / "rollouts.parquet")["reference"].isna().all()
    run = store_.connect().get_run(run_id_of(folder))
    assert run.info.status == "FINISHED"
    assert len(store_.connect().get_metric_history(run.info.run_id, "2_signal/self-proposed/reward")) == 2
    assert {p.stem for p in (folder / "figures").iterdir()} == {"compute", "scores", "training"}


def test_an_arm_that_does_not_exist_is_refused_before_training(store):
    allowed = "at least one, each once, of self-proposed, question-only, .*did you mean 'physician'"
    with pytest.raises(ParameterError, match=allowed):
        run_notebook(NOTEBOOKS / "03_cat_rl_rubrics.ipynb", {"arms": ["physicians"]}, runs=store / "runs")
