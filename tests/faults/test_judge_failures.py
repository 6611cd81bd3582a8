"""Real training steps under a judge that fails."""

from __future__ import annotations

import random
import zlib
from dataclasses import replace

import pandas as pd
import pytest
from tiny import tiny_policy

from cat_lib.learning.grpo import add_lora, train
from cat_lib.learning.settings import GRPOSettings
from cat_lib.method.estimators.voting import none
from cat_lib.method.rewards.proposals import Proposer
from cat_lib.method.rewards.rubric import JudgeError, RubricReward, from_question, physician
from cat_lib.models import load_model
from cat_lib.runs import tracking
from cat_lib.schema import Completion, Verdict
from cat_lib.tasks import load_task

pytestmark = pytest.mark.fault
TASK = load_task("clinic")
TASK = replace(TASK, sampling=replace(TASK.sampling, max_new_tokens=16))
SETTINGS = GRPOSettings(
    steps=2, group_size=4, prompts_per_step=2, prompts_per_micro_batch=2, learning_rate=1e-4, lora_rank=4
)


def failing(share: float):
    """Says yes to responses of more than 30 characters, and fails at random."""
    rng = random.Random(0)

    def judge(pairs):
        lost = Verdict(None, "busy: overloaded (429)")
        return [lost if rng.random() < share else Verdict(len(response) > 30) for response, _ in pairs]

    return judge


def run_with(share: float, folder):
    policy = add_lora(load_model("embedded"), 4, 0)
    examples = TASK.examples("train", None, 0)
    rule = RubricReward(failing(share), physician(examples))
    return train(policy, TASK, examples, none, rule, SETTINGS, tracking.Run(folder))


def test_with_30_percent_of_calls_failing_training_goes_on_and_nothing_is_scored_0_for_it(tmp_path):
    trained = run_with(0.3, tmp_path)
    assert len(trained.history) == 2
    assert 0.1 < trained.history["verdict_failed"].mean() < 0.5
    verdicts = pd.read_parquet(tmp_path / "verdicts.parquet")
    assert (verdicts.loc[verdicts["met"].isna(), "cause"] == "busy: overloaded (429)").all()
    known = verdicts.dropna(subset=["met"])
    met = known["met"].astype(bool).groupby([known["step"], known["example"], known["rollout"]]).any()
    rewards = trained.rollouts.set_index(["step", "example", "rollout"])["reward"]
    for key, reward in rewards.dropna().items():
        assert (reward == 0) == (not met[key])  # zero only where every known verdict says so
    assert rewards.notna().mean() > 0.5


def test_above_the_stated_share_training_stops_and_says_what_failed(tmp_path):
    with pytest.raises(JudgeError, match=r"verdicts failed, more than max_failed=0\.5.*429"):
        run_with(0.9, tmp_path)


class Drawing:
    """Writes rubrics that hang on the seed and on the place in the batch, and one in three has no form."""

    def generate(self, prompts, n, sampling):
        return [[Completion(self.reply(f"{sampling.seed} {i}"), (), "stop")] for i in range(len(prompts))]

    def reply(self, draw):
        rng = random.Random(draw)
        criteria = "".join(f"<criterion>Names {rng.random()} of it.</criterion>" for _ in range(5))
        return "no form" if rng.random() < 0.3 else f"<rubric>{criteria}</rubric>"


def test_a_resume_of_rubrics_written_once_a_question_changes_nothing(tmp_path):
    examples = TASK.examples("train", None, 0)[:5]  # each comes more than once
    settings = replace(SETTINGS, steps=6, group_size=3)
    ends_at = None

    def judge(pairs):
        nonlocal ends_at
        ends_at = ends_at and ends_at - 1
        if ends_at == 0:
            ends_at = None
            raise KeyboardInterrupt  # after the step's rubrics are written
        return [Verdict(zlib.crc32(f"{r}{c}".encode()) % 2 == 0) for r, c in pairs]

    def trained(folder):
        rule = RubricReward(judge, from_question(Proposer(Drawing(), attempts=1), folder / "rubrics.jsonl"))
        run = tracking.Run(folder)
        return train(tiny_policy(), TASK, examples, none, rule, settings, run)

    whole = trained(tmp_path / "whole")
    for calls in (2, 3):
        ends_at = calls
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "ended")
    resumed = trained(tmp_path / "ended")
    pd.testing.assert_frame_equal(whole.rollouts, resumed.rollouts)
    tables = [pd.read_parquet(tmp_path / name / "rubrics.parquet") for name in ("whole", "ended")]
    pd.testing.assert_frame_equal(*tables)
    assert whole.rollouts["reward"].notna().any()
    assert tables[0]["criterion"].isna().any()  # some failed, and stayed so
    assert tables[0].dropna(subset="criterion").groupby("example")["criterion"].nunique().eq(5).all()
