"""Shared-prefix rollouts against `transformers.generate`: 24 few-shot questions, 8 rollouts, the same tokens asked.

    python benchmarks/rollouts.py [COPIES [REPEATS]]

COPIES repeats the two solved questions of each prompt (default 1: the task's own prompts), for longer openings.
Checks first that greedy text is the same.
"""

from __future__ import annotations

import sys

import torch

from cat_lib.models import attention, load_model
from cat_lib.schema import Sampling
from cat_lib.tasks.arithmetic import Arithmetic
from common import compare

NEW_TOKENS, ROLLOUTS = 14, 8

model = load_model("embedded")
copies, repeats = (int(a) for a in (*sys.argv[1:], *("1", "5")[len(sys.argv) - 1 :]))
prompts = [e.prompt for e in Arithmetic().examples("train", 24, 0)]
opening = prompts[0][: prompts[0].rindex("Q:")]
prompts = [opening * (copies - 1) + p for p in prompts]
print(f"prompts of {len(model.encode(prompts[0]))} tokens")


def generate(seed: int, n: int, greedy: bool) -> list[list[str]]:
    """transformers' own way: left padding, n sequences a prompt."""
    model.model.set_attn_implementation("sdpa")
    batch = model.tokenizer(prompts, return_tensors="pt", padding=True)
    sample = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    torch.manual_seed(seed)
    with torch.inference_mode():
        out = model.model.generate(**batch, max_new_tokens=NEW_TOKENS, num_return_sequences=n, **sample)
    texts = model.tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    return [texts[i : i + n] for i in range(0, len(texts), n)]


def ours(seed: int, n: int, greedy: bool) -> list[list[str]]:
    """The engine, with nothing but the model's own end to stop it, as above."""
    model.model.set_attn_implementation(attention.NAME)
    groups = model.generate(prompts, n, Sampling(NEW_TOKENS, temperature=0.0 if greedy else 1.0, seed=seed))
    return [[c.text for c in group] for group in groups]


model.model.float()  # in bfloat16 a near-tie can fall either way
same = sum(a == b for a, b in zip(generate(0, 1, True), ours(0, 1, True), strict=True))
model.model.bfloat16()
print(f"greedy text equal on {same} of {len(prompts)} prompts, in float32")
compare(
    lambda seed: generate(seed, ROLLOUTS, False),
    lambda seed: ours(seed, ROLLOUTS, False),
    repeats=repeats,
    what="seconds of transformers.generate over seconds of the shared-prefix engine",
)
