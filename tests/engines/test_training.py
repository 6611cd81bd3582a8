"""Training whose rollouts vLLM draws, and the canary that tells whether it draws from what learns."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from cat_lib.__main__ import app
from cat_lib.learning import canary, sampler
from cat_lib.learning.grpo import add_lora, train
from cat_lib.learning.sampler import PolicyError, samples_the_policy
from cat_lib.learning.settings import GRPOSettings
from cat_lib.method.estimators.voting import none
from cat_lib.models import ModelError
from cat_lib.runs.folder import read_config
from cat_lib.runs.tracking import Run
from cat_lib.schema import Sampling
from cat_lib.tasks.arithmetic import Arithmetic

pytest.importorskip("vllm", reason="vLLM is not installed: make engines")
from vllm.v1.engine.exceptions import EngineDeadError

TASK = Arithmetic()
TRAIN = TASK.examples("train", 8, 0)
PROMPTS = [e.prompt for e in TRAIN]
SETTINGS = GRPOSettings(2, 4, 4, 2, 2e-3, lora_rank=4)


@pytest.fixture
def beside(small_engines):
    ours, theirs = small_engines
    return replace(ours, sampler=theirs, policies={})


def longer(groups, _):
    return [[float(len(c.text)) for c in group.rollouts] for group in groups]


def test_what_vllm_draws_is_corrected_by_the_ratio_and_its_gap_is_logged(beside, tmp_path):
    policy = add_lora(beside, 4, 0)
    trained = train(policy, TASK, TRAIN, none, longer, SETTINGS, Run(tmp_path))
    history = trained.history
    assert history["sampling_gap"].between(1e-9, 1e-4).all()  # two engines in float32
    assert (history["sampling_gap_max"] >= history["sampling_gap"]).all()
    assert history["sampling/importance_sampling_ratio/mean"].sub(1).abs().max() < 1e-4
    found = read_config(tmp_path)["canary"]
    assert max(found[name] for name in ("anchor", "fresh", "random")) < 1e-4
    assert found["moved"] > 0.5
    rows = policy.generate(PROMPTS, 2, Sampling(8, seed=3))  # what has learnt, and not what began
    ids = [policy.encode(p) for p in PROMPTS for _ in range(2)], [list(c.token_ids) for g in rows for c in g]
    said = [math.fsum(c.logprobs) for g in rows for c in g]
    assert [math.fsum(own) for own in policy.following(*ids)[0]] == pytest.approx(said, abs=1e-3)
    assert [math.fsum(own) for own in policy.anchor().following(*ids)[0]] != pytest.approx(said, abs=1e-2)
    policy.model.delete_adapter("default")


def test_what_a_tool_put_in_has_no_gap_and_no_ratio(beside, tmp_path):
    tool, seen = lambda text: " one two three" if text.count("three") < 2 else None, []
    task = replace(TASK, sampling=replace(TASK.sampling, stop=("a", "e"), tool=tool, max_new_tokens=24))

    def rule(groups, references):
        seen.extend(r for g in groups for r in g.rollouts)
        return longer(groups, references)

    settings = replace(SETTINGS, steps=1)
    trained = train(add_lora(beside, 4, 0), task, TRAIN, none, rule, settings, Run(tmp_path))
    assert sum(bool(r.foreign) for r in seen) > 4
    for r in seen:
        assert r.text.count(" one two three") == len(r.foreign)
    assert trained.history["sampling_gap_max"].between(1e-9, 1e-3).all()  # of a passage it would be some nats
    assert trained.history["sampling/importance_sampling_ratio/mean"].sub(1).abs().max() < 1e-4


def test_rollouts_that_are_cut_have_a_gap_and_no_ratio(beside, tmp_path):
    task = replace(TASK, sampling=replace(TASK.sampling, top_k=20))
    settings = replace(SETTINGS, steps=1)
    trained = train(add_lora(beside, 4, 0), task, TRAIN, none, longer, settings, Run(tmp_path))
    assert trained.history["sampling_gap"].between(1e-9, 1e-4).all()
    assert not any("importance_sampling_ratio" in name for name in trained.history)


def test_a_sampler_that_draws_from_the_base_model_is_caught_before_training(beside, monkeypatch, tmp_path):
    def base(self, model):  # as an engine does that ignores adapters
        return replace(self, lora=None, role=model.role, ledger=model.ledger)

    monkeypatch.setattr(type(beside.sampler), "drawing_for", base)
    with pytest.raises(PolicyError, match=r"with a random adapter the engine that draws and .* differ by"):
        train(add_lora(beside, 4, 0), TASK, TRAIN, none, longer, SETTINGS, Run(tmp_path))
    assert not (tmp_path / "adapter").exists()


def test_a_sampler_that_keeps_an_old_policy_is_caught_at_the_step(beside, monkeypatch, tmp_path):
    monkeypatch.setattr("cat_lib.learning.sampler.samples_the_policy", lambda *_: {})
    hand_over, first = type(beside.sampler).drawing_for, []

    def stale(self, model):
        first[:] = first or [hand_over(self, model)]
        return first[0]

    monkeypatch.setattr(type(beside.sampler), "drawing_for", stale)
    settings = replace(SETTINGS, steps=8, learning_rate=2e-2)
    with pytest.raises(PolicyError, match=r"^step [2-8]: the engine that draws and the policy that learns differ"):
        train(add_lora(beside, 4, 0), TASK, TRAIN, none, longer, settings, Run(tmp_path))


def test_an_anchor_that_moves_is_caught(beside, monkeypatch):
    hand_over, last = type(beside.sampler).drawing_for, []

    def forgetful(self, model):  # the policy's weights stay in
        drawing = hand_over(self, model)
        if model.initial is not None:
            last[:] = [drawing.lora]
        return replace(drawing, lora=last[0]) if last else drawing

    monkeypatch.setattr(type(beside.sampler), "drawing_for", forgetful)
    with pytest.raises(PolicyError, match=r"^with the anchor the engine that draws"):
        samples_the_policy(beside, PROMPTS[:4])


def test_an_anchor_that_is_wrong_from_the_start_is_caught(beside, monkeypatch):
    policy, hand_over = add_lora(beside, 4, 0, "left"), type(beside.sampler).drawing_for
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.add_(1.0)
    left = hand_over(beside.sampler, policy).lora
    monkeypatch.setattr(
        type(beside.sampler), "drawing_for", lambda self, model: replace(hand_over(self, model), lora=left)
    )
    with pytest.raises(PolicyError, match=r"^with the anchor the engine that draws"):
        samples_the_policy(beside, PROMPTS[:4])


def test_what_is_no_number_is_no_small_gap(beside, monkeypatch):
    monkeypatch.setattr(sampler, "gap", lambda *_: (math.nan, math.nan))
    with pytest.raises(PolicyError, match="differ by nan nats"):
        samples_the_policy(beside, PROMPTS[:4])


def test_two_steps_learn_what_they_are_rewarded_for(beside):
    before, after = canary.learns_the_policy(beside)
    assert after < before - 0.5


def test_the_command_says_what_it_found(beside, monkeypatch):
    monkeypatch.setattr("cat_lib.check.load_model", lambda **_: beside)
    monkeypatch.setattr(canary, "learns_the_policy", lambda _: (9.0, 7.5))
    result = CliRunner().invoke(app, ["check", "engine", "transformers", "--rollouts", "vllm"])
    assert result.exit_code == 0, result.output
    assert "mean length 9.0 to 7.5 characters" in result.output
    monkeypatch.undo()
    result = CliRunner().invoke(app, ["check", "engine", "vllm"])
    assert result.exit_code == 2
    assert "engine='vllm' does not learn; allowed are transformers, unsloth" in result.output


def test_an_engine_that_fails_in_the_middle_loses_one_step(beside, monkeypatch, tmp_path):
    draw, calls = beside.sampler.llm.generate, []

    def failing(*args, **named):
        calls.append(args)
        if len(calls) == fails_at:
            raise EngineDeadError
        return draw(*args, **named)

    monkeypatch.setattr("cat_lib.learning.sampler.samples_the_policy", lambda *_: {})
    monkeypatch.setattr(beside.sampler.llm, "generate", failing)
    fails_at, settings = 3, replace(SETTINGS, steps=4, save_steps=1)
    with pytest.raises(ModelError, match=r"vLLM failed on .* \(EngineDeadError.*run it again: a training goes on"):
        train(add_lora(beside, 4, 0), TASK, TRAIN, none, longer, settings, Run(tmp_path))
    fails_at = 0
    trained = train(add_lora(beside, 4, 0), TASK, TRAIN, none, longer, settings, Run(tmp_path))
    assert trained.rollouts.groupby("step").size().to_dict() == dict.fromkeys(range(1, 5), 16)
    assert len(calls) == 5
