"""Two steps on a real GPU by each engine. Not run by the authors yet: no GPU was at hand."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from cat_lib.learning.grpo import add_lora, train
from cat_lib.learning.settings import GRPOSettings
from cat_lib.method.estimators.synthesis import synthesis
from cat_lib.method.rewards.verifiable import verifiable
from cat_lib.models import load_model
from cat_lib.runs.tracking import Run
from cat_lib.tasks.arithmetic import Arithmetic

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


WAYS = [(engine, rollouts) for engine in ("transformers", "unsloth") for rollouts in ("engine", "vllm")]


@pytest.mark.parametrize(("engine", "rollouts"), [*WAYS, ("unsloth_4bit", "engine")])
def test_two_steps(engine, rollouts, tmp_path):  # the second draws from a policy that has learnt, asleep in between
    for needed in {engine.removesuffix("_4bit"), rollouts} - {"transformers", "engine"}:
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    task = Arithmetic()
    policy = add_lora(load_model("embedded", engine, rollouts=rollouts), 8, 0)
    estimator = synthesis(policy.anchor(), task)
    settings = GRPOSettings(steps=2, prompts_per_step=4, lora_rank=8)
    trained = train(policy, task, task.examples("train", 8, 0), estimator, verifiable, settings, Run(tmp_path))
    assert len(trained.rollouts) == 64
