"""Unsloth on a CPU against the transformers engine, in a process of its own: it patches what other tests import."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import util

import pytest

pytestmark = pytest.mark.skipif(util.find_spec("unsloth") is None, reason="Unsloth is not installed: make engines")
PROGRAM = """
import json, sys
from dataclasses import replace
from cat_lib.models import load_model
model = load_model("embedded", sys.argv[1])
import torch
from cat_lib.learning.grpo import add_lora
from cat_lib.tasks.arithmetic import Arithmetic
task = Arithmetic()
model = replace(model, model=model.model.float())
policy = add_lora(model, 8, 0)
generator = torch.Generator().manual_seed(0)
with torch.no_grad():
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:
            weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
prompts = [e.prompt for e in task.examples("heldout", 48, 0)]
greedy = replace(task.sampling, temperature=0)
texts = [[c.text for (c,) in m.generate(prompts, 1, greedy)] for m in (model, policy)]
numbers = [policy.logprobs(prompts[:8], texts[0][:8])]
print(json.dumps([texts, numbers]))
"""


def said(engine: str) -> list:
    done = subprocess.run([sys.executable, "-c", PROGRAM, engine], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_text_and_log_probabilities_are_those_of_the_transformers_engine():
    (one, numbers), (other, theirs) = said("transformers"), said("unsloth")
    for mine, its in zip(one, other, strict=True):
        assert sum(a == b for a, b in zip(mine, its, strict=True)) >= 46
    assert one[0] != one[1]
    flat, its = ([x for row in part[0] for x in row] for part in (numbers, theirs))
    assert flat == pytest.approx(its, abs=1e-3)
