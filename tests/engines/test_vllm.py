"""vLLM on the real embedded model against the transformers engine, in float32. Without vLLM they are skipped."""

from __future__ import annotations

import json
from dataclasses import replace

import psutil
import pytest
import torch
from tiny import tiny_policy

from cat_lib import models
from cat_lib.learning.grpo import add_lora
from cat_lib.method.judge import Judge
from cat_lib.method.verdicts import FORM, read
from cat_lib.models import ModelError, export, load_model
from cat_lib.schema import Sampling
from cat_lib.tasks.arithmetic import Arithmetic

pytest.importorskip("vllm", reason="vLLM is not installed: make engines")
from cat_lib.models import vllm

TASK = Arithmetic()
PROMPTS = [e.prompt for e in TASK.examples("heldout", 48, 0)]
GREEDY = replace(TASK.sampling, temperature=0)


@pytest.fixture
def ours(engines):
    return engines[0]


@pytest.fixture
def theirs(engines):
    return engines[1]


def policy_of(ours, seed: int, folder):
    """A policy whose adapter is random and strong enough to change many answers, and its folder."""
    policy = add_lora(ours, 8, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:
            weight.data = 0.02 * torch.randn(weight.shape, generator=generator)
    policy.model.save_pretrained(folder)
    return policy


def same(model, prompts, one, other) -> int:
    """How many greedy texts agree; where two part, their tokens there are nearly as likely to `model`."""
    parted = [(p, a, b) for p, (a,), (b,) in zip(prompts, one, other, strict=True) if a.token_ids != b.token_ids]
    for prompt, a, b in parted:
        at = next(i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if x != y)
        ids = torch.tensor([[*model.encode(prompt), *a.token_ids[:at]]])
        with torch.inference_mode():
            logits = model.model(ids).logits[0, -1]
        assert float(logits[a.token_ids[at]] - logits[b.token_ids[at]]) == pytest.approx(0, abs=1e-3)
    return len(prompts) - len(parted)


def test_greedy_text_and_log_probabilities_are_those_of_the_transformers_engine(ours, theirs):
    one, other = (m.anchor().generate(PROMPTS, 1, GREEDY) for m in (ours, theirs))
    assert same(ours, PROMPTS, one, other) >= 46
    texts = [a.text for (a,) in one]
    numbers = zip(ours.logprobs(PROMPTS, texts), theirs.logprobs(PROMPTS, texts), strict=True)
    assert max(abs(x - y) for a, b in numbers for x, y in zip(a, b, strict=True)) < 1e-3


def test_an_adapter_is_the_policy_and_one_that_is_loaded_again_takes_its_place(ours, theirs, tmp_path):
    prompts, before = PROMPTS[:4], theirs.anchor().generate(PROMPTS[:4], 1, GREEDY)
    texts = [a.text for (a,) in before]
    for seed in (1, 2):  # under one name: the prefix cache must not give what the first one left
        policy = policy_of(ours, seed, tmp_path / str(seed))
        loaded = theirs.load(tmp_path / str(seed))
        one, other = (m.generate(prompts, 1, GREEDY) for m in (policy, loaded))
        assert same(policy, prompts, one, other) >= 3
        assert one != before
        numbers = zip(policy.logprobs(prompts, texts), loaded.logprobs(prompts, texts), strict=True)
        assert max(abs(x - y) for a, b in numbers for x, y in zip(a, b, strict=True)) < 1e-3
    assert [[c.text for c in g] for g in theirs.anchor().generate(prompts, 1, GREEDY)] == [[t] for t in texts]


def test_samples_repeat_with_their_seed_and_their_log_probabilities_are_the_model_s(ours, theirs):
    sampling = Sampling(8, temperature=0.7, seed=3)
    first, again = (theirs.generate(PROMPTS[:6], 4, sampling) for _ in range(2))
    assert first == again != theirs.generate(PROMPTS[:6], 4, replace(sampling, seed=4))
    assert len({c.token_ids for c in first[0]}) > 1
    cut = theirs.generate(PROMPTS[:1], 2, replace(sampling, top_k=5))
    assert all(c.mean_logprob is None for c in cut[0])
    flat = theirs.generate(PROMPTS[:6], 4, Sampling(8, seed=3))
    for prompt, group in zip(PROMPTS, flat, strict=False):
        rows = ours.logprobs([prompt] * 4, [ours.tokenizer.decode(c.token_ids) for c in group])
        for row, c in zip(rows, group, strict=True):
            if len(row) == len(c.token_ids):  # else the text has another way into tokens
                assert sum(row) / len(row) == pytest.approx(c.mean_logprob, abs=1e-3)


def test_a_tool_s_words_go_into_rollouts_as_in_the_transformers_engine(ours, theirs):
    tool = lambda text: " So what is 2 + 3?\nAnswer:" if text.count("So") < 2 else None  # noqa: E731
    how = replace(GREEDY, tool=tool, max_new_tokens=48)
    one, other = (m.generate(PROMPTS[:4], 1, how) for m in (ours, theirs))
    assert same(ours, PROMPTS[:4], one, other) >= 3
    assert all(len(c.foreign) == 2 for (c,) in other)
    for (a,), (b,), prompt in zip(one, other, PROMPTS, strict=False):
        if a.token_ids == b.token_ids:
            assert (a.text, a.finish, a.foreign) == (b.text, b.finish, b.foreign)
            assert b.mean_logprob == pytest.approx(a.mean_logprob, abs=1e-3)
            learnt, _ = ours.following([ours.encode(prompt)], [list(b.token_ids)])
            apart = [x - y for x, y, own in zip(learnt[0], b.logprobs, b.mask, strict=True) if own]
            assert apart == pytest.approx([0.0] * sum(b.mask), abs=1e-3)
    drawn = replace(TASK.sampling, tool=tool, max_new_tokens=48, seed=3)
    first, again = (theirs.generate(PROMPTS[:2], 4, drawn) for _ in "12")
    assert [[c.token_ids for c in g] for g in first] == [[c.token_ids for c in g] for g in again]
    assert len({c.token_ids for c in first[0]}) > 1
    ((cut,),) = theirs.generate(PROMPTS[:1], 1, replace(how, tool=lambda text: "word " * 60))
    assert (len(cut.token_ids), cut.mask[-1]) == (48, 1)


def test_scores_of_words_and_of_branches_are_those_of_the_transformers_engine(ours, theirs):
    heads = [ours.encode(p) for p in PROMPTS[:3]]
    branches = [[" it is", " no"], [" yes"], [" 12", " 7 and", " 3"]]
    for words in ((" yes", " no"), ()):
        one, other = (m.score(heads, branches, words) for m in (ours, theirs))
        for a, b in zip(one, other, strict=True):
            assert [x for row in a for x in row] == pytest.approx([x for row in b for x in row], abs=1e-3)
    with pytest.raises(ValueError, match="open with the same token"):
        theirs.score(heads, branches, (" yes", " yes"))


def test_what_does_not_fit_is_refused_and_the_engine_goes_on(ours, theirs, tmp_path):
    with pytest.raises(ValueError, match="allowed are 1 to"):
        theirs.generate(["word " * 9000], 1, GREEDY)
    with pytest.raises(ModelError, match=r"'poser'.*load it with load"):
        theirs.adapter("poser")
    with pytest.raises(ModelError, match=r"holds no LoRA adapter: FileNotFoundError"):
        theirs.load(tmp_path)
    tiny_policy().model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"the adapter is for .* there it is \(\d+, \d+\): another model's"):
        theirs.load(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(ModelError, match=r"has use_dora=True; allowed is plain LoRA"):
        theirs.load(tmp_path)
    assert theirs.generate(PROMPTS[:1], 1, GREEDY)


def test_a_reply_keeps_to_the_form_that_is_asked_for(theirs):
    prompts = [[{"role": "user", "content": f"Is {n} even?"}] for n in (2, 3, 4)]
    (free,), *_ = theirs.generate(prompts[:1], 1, Sampling(60, temperature=0))
    assert read(free).met is None
    held = [c for (c,) in theirs.generate(prompts, 1, Sampling(200, temperature=0.7, form=FORM))]
    assert all(read(c).met is not None for c in held if c.ended), held
    assert any(c.ended for c in held)
    assert all(c.mean_logprob is None for c in held)


def test_a_judge_whose_reply_was_malformed_is_held_to_the_form(theirs):
    judge = Judge(theirs.anchor("judge"), "text", attempts=3)
    verdicts = judge([("Rest, and drink water.", "Recommends rest."), ("Rest.", "Recommends antibiotics.")])
    assert [v.met is not None for v in verdicts].count(True) >= 1, verdicts


def test_the_merged_folder_in_an_engine_after_another_answers_as_the_adapter_and_memory_comes_back(
    two_layers, tmp_path, monkeypatch
):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setattr(models, "preferred_dtype", lambda: torch.float32)
    process, sizes = psutil.Process(), list[float]()

    def answers(name, folder=None):
        engine = vllm.load(name)
        found = (engine.load(folder) if folder else engine).generate(PROMPTS[:4], 1, GREEDY)
        sizes.append(process.memory_info().rss / 2**30)
        engine.close()
        sizes.append(process.memory_info().rss / 2**30)
        return [c.token_ids for (c,) in found]

    policy_of(load_model(two_layers), 1, tmp_path / "adapter")
    export.export(tmp_path / "adapter", tmp_path / "merged", "merged", two_layers)
    first, merged = answers(two_layers, tmp_path / "adapter"), answers(str(tmp_path / "merged"))
    assert sum(a == b for a, b in zip(first, merged, strict=True)) >= 3  # it is rounded to 16 bits
    opened, closed = sizes[::2], sizes[1::2]
    assert all(before - after > 0.8 for before, after in zip(opened, closed, strict=True)), sizes  # a cache is 1 GB
    assert closed[1] < closed[0] + 0.2, sizes
