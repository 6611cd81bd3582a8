"""Unsloth on a CPU against the transformers engine, in a process of its own: it patches what other tests import."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import util

import pytest

from cat_lib.models import load_model

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


def said(what: str, program: str = PROGRAM) -> list:
    done = subprocess.run([sys.executable, "-c", program, what], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_text_and_log_probabilities_are_those_of_the_transformers_engine():
    (one, numbers), (other, theirs) = said("transformers"), said("unsloth")
    for mine, its in zip(one, other, strict=True):
        assert sum(a == b for a, b in zip(mine, its, strict=True)) >= 46
    assert one[0] != one[1]
    flat, its = ([x for row in part[0] for x in row] for part in (numbers, theirs))
    assert flat == pytest.approx(its, abs=1e-3)


FOUR_BIT = """
import json, sys, tempfile
from pathlib import Path
import torch
from cat_lib.learning.grpo import add_lora
from cat_lib.models import load_model
from cat_lib.tasks.arithmetic import Arithmetic
model = load_model(sys.argv[1], "unsloth_4bit")
plain = load_model(sys.argv[1])
from bitsandbytes.functional import dequantize_4bit
layers = dict(plain.model.named_modules())
packed = [(name, one) for name, one in model.model.named_modules() if type(one).__name__ == "Linear4bit"]
for name, one in packed:
    layers[name].weight.data = dequantize_4bit(one.weight.data, one.weight.quant_state).to(plain.model.dtype)
policy = add_lora(model, 8, 0)
shared = {id(p) for p in model.model.parameters()} <= {id(p) for p in policy.model.parameters()}
task = Arithmetic()
prompts = [e.prompt for e in task.examples("heldout", 24, 0)]
drawn = [m.generate(prompts, 4, task.sampling) for m in (model, plain, policy)]
texts = [[c.text for group in groups for c in group] for groups in drawn]
loss = -sum(policy.model(**policy.tokenizer(["2 + 2 = 4"], return_tensors="pt")).logits[0, -1].log_softmax(-1)[:4])
loss.backward()
learns = {name.split(".")[-3] for name, p in policy.model.named_parameters() if p.grad is not None}
from cat_lib.learning.grpo import train
from cat_lib.learning.settings import GRPOSettings
from cat_lib.method.estimators.voting import none
from cat_lib.runs.folder import Run
rule = lambda groups, _: [[float(len(c.text)) for c in group.rollouts] for group in groups]
settings = GRPOSettings(1, 4, 4, 4, 1e-7, beta=0.0, lora_rank=8)
with tempfile.TemporaryDirectory() as folder:
    train(policy, task, task.examples("train", 4, 0), none, rule, settings, Run(Path(folder)))
dtypes = [str(p.dtype) for p in policy.model.parameters() if p.requires_grad]
from cat_lib.learning.sft import SFTSettings, finetune
from cat_lib.schema import Reference
asked = task.examples("train", 8, 0)
right = [Reference(f" {e.question[8:-1]} = {e.gold}", e.gold, "gold") for e in asked]
with tempfile.TemporaryDirectory() as folder:
    tuned = finetune(policy, task, asked, right, SFTSettings(2, 4, 1e-2, validation_share=0.5), Run(Path(folder)))
losses = list(tuned.history["validation_loss"])
exact = {*dtypes, *(str(p.dtype) for p in policy.model.parameters() if p.requires_grad)} == {"torch.float32"}
known = [model.parameters == plain.parameters, model.identity == plain.identity]
print(json.dumps([texts, len(packed), shared, sorted(learns), known, exact, losses]))
"""


def test_four_bits_are_the_weights_that_both_the_anchor_and_the_policy_are_made_of(two_layers):
    """Rollouts of 4-bit weights are, seed for seed, those of transformers' model with the same weights unpacked."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: make engines")
    texts, packed, shared, learns, known, exact, losses = said(two_layers, FOUR_BIT)
    assert texts[0] == texts[1] == texts[2]
    assert (packed, shared, learns) == (14, True, ["lora_A", "lora_B"])
    assert exact  # after either training: of bfloat16's numbers most stay at a small rate
    assert losses[-1] < losses[0]  # of fine-tuning
    assert known == [True, False]  # parameters, and what a cache of verdicts goes by


def test_what_draws_from_other_weights_than_the_four_bit_ones_is_refused():
    with pytest.raises(ValueError, match=r"learns on 4-bit weights, and vLLM would draw from 16-bit ones: take roll"):
        load_model("embedded", "unsloth_4bit", rollouts="vllm")
