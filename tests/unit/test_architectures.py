"""Every architecture of the paper, tiny and random, against the plain forward pass of transformers.

The sliding window is 16 tokens, so that what a 4B model meets after a thousand tokens happens here at once.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

from cat_lib.learning import grpo as training
from cat_lib.learning.grpo import add_lora, train
from cat_lib.learning.settings import GRPOSettings
from cat_lib.learning.trl import Signal, group_reward
from cat_lib.method.estimators.voting import majority
from cat_lib.method.rewards.verifiable import verifiable
from cat_lib.models import ModelError, load_model
from cat_lib.runs.tracking import Run
from cat_lib.schema import Sampling
from cat_lib.tasks.arithmetic import Arithmetic

WINDOW = 16
SIZES = {
    "vocab_size": 49_152, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "head_dim": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
MODELS = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=WINDOW),
    "gemma3_text": lambda: Gemma3TextConfig(**SIZES, **SLIDING),
    "gemma3": lambda: Gemma3Config(
        text_config=SIZES | SLIDING, vision_config=VISION, mm_tokens_per_image=4, image_token_index=49_000,
        boi_token_index=49_001, eoi_token_index=49_002, tie_word_embeddings=False,
    ),
}  # fmt: skip
OPENING = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
PROMPTS = {
    "short": ["one two three four red", "one two three four blue", "one two three four"],  # inside, 6 new tokens too
    "across": ["red blue", "red blue green black white grey pink brown gold lime teal navy", "red blue green"],
    "beyond": [f"{OPENING} and {tail}" for tail in ("red", "blue green black white", "red grey")],
}
NEW = 6


@pytest.fixture(scope="module")
def folders(embedded, tmp_path_factory):
    """Each model saved as a user's folder is, with the embedded model's tokenizer."""
    saved = {}
    for name, config in MODELS.items():
        torch.manual_seed(0)
        made = (
            Gemma3ForConditionalGeneration(config()) if name == "gemma3" else AutoModelForCausalLM.from_config(config())
        )
        saved[name] = tmp_path_factory.mktemp(name)
        made.save_pretrained(saved[name])
        embedded.tokenizer.save_pretrained(saved[name])
    return saved


@pytest.fixture(params=MODELS)
def model(request, folders):
    loaded = load_model(str(folders[request.param]))
    return replace(loaded, model=loaded.model.float())


@pytest.fixture(params=PROMPTS)
def prompts(request):
    return PROMPTS[request.param]


@torch.no_grad()
def plain(model, ids):
    """Log-probabilities (tokens, V) after each token, of the model alone on this row alone."""
    return model.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


def following(model, head, tail):
    logp = plain(model, [*head, *tail])
    return [float(logp[len(head) - 1 + i, token]) for i, token in enumerate(tail)]


def test_greedy_text_is_that_of_the_plain_pass(model, prompts):
    for prompt, (completion,) in zip(prompts, model.generate(prompts, 1, Sampling(NEW, temperature=0)), strict=True):
        ids = model.encode(prompt)
        for token in completion.token_ids:
            assert token == int(plain(model, ids)[-1].argmax())
            ids.append(token)


def test_sampled_completions_have_the_probability_that_they_were_given(model, prompts):
    groups = model.generate(prompts, 4, Sampling(NEW, temperature=1.0, seed=1))
    for prompt, group in zip(prompts, groups, strict=True):
        assert len({c.token_ids for c in group}) > 1
        for completion in group:
            own = following(model, model.encode(prompt), completion.token_ids)
            assert completion.mean_logprob == pytest.approx(sum(own) / len(own), abs=1e-4)


def test_logprobs_are_those_of_the_plain_pass(model, prompts):
    texts = [" red blue green", " black", " white grey pink brown red blue"]
    for prompt, text, ours in zip(prompts, texts, model.logprobs(prompts, texts), strict=True):
        tail = model.tokenizer(text, add_special_tokens=False).input_ids
        assert ours == pytest.approx(following(model, model.encode(prompt), tail), abs=1e-4)


def test_branches_are_scored_as_if_each_stood_alone(model, prompts):
    branches = [[" red blue", " black", " green green white"], [" pink"], [" brown red blue green", " grey"]]
    heads = [model.encode(p) for p in prompts]
    ids = [[model.tokenizer(b, add_special_tokens=False).input_ids for b in row] for row in branches]
    words = [" yes", " no"]
    first = [model.tokenizer(w, add_special_tokens=False).input_ids[0] for w in words]
    means, odds = model.score(heads, branches), model.score(heads, branches, words)
    for r, (head, row) in enumerate(zip(heads, ids, strict=True)):
        for b, tail in enumerate(row):
            own = following(model, head, tail)
            assert means[r][b] == pytest.approx([sum(own) / len(own)], abs=1e-4)
            assert odds[r][b] == pytest.approx(plain(model, [*head, *tail])[-1, first].tolist(), abs=1e-4)


class Questions(Arithmetic):
    """Prompts of our choice: what a step trains on decides which side of the window it is."""

    def __init__(self, prompts):
        super().__init__(Sampling(NEW))
        self.asked = [replace(e, prompt=p) for e, p in zip(super().examples("train", 3, 0), prompts, strict=True)]


def trainer_of(model, prompts, folder, beta=0.0):
    """A policy away from its anchor, the trainer of one step on these prompts, and a step's rollouts as TRL lays them.

    Rows (head, tail) of token ids; ids and mask (12, tokens), prompts padded on the left and rollouts on the right.
    """
    policy, task = add_lora(model, 4, 0), Questions(prompts)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    settings = GRPOSettings(1, 4, 3, 3, beta=beta, lora_rank=4)
    read = partial(policy.read, stop=task.sampling.stop)
    reward = group_reward(task, task.asked, Signal(majority, verifiable), 4, read, lambda *_: {})
    trainer = training._trainer(policy, task, task.asked, reward, settings, Run(folder))
    groups = policy.generate(prompts, 4, Sampling(NEW, seed=2))
    rows = [(policy.encode(p), list(c.token_ids)) for p, g in zip(prompts, groups, strict=True) for c in g]
    wide, long = max(len(h) for h, _ in rows), max(len(t) for _, t in rows)
    ids = torch.tensor([[0] * (wide - len(h)) + h + t + [0] * (long - len(t)) for h, t in rows])
    mask = torch.tensor([[0] * (wide - len(h)) + [1] * (len(h) + len(t)) + [0] * (long - len(t)) for h, t in rows])
    trainer.model.train()
    return policy, trainer, rows, ids, mask


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_update_has_the_logps_and_gradients_of_the_plain_pass(model, prompts, checkpointing, tmp_path, monkeypatch):
    arguments = training.grpo_arguments
    monkeypatch.setattr(
        training, "grpo_arguments", lambda *a: arguments(*a) | {"gradient_checkpointing": checkpointing}
    )
    policy, trainer, rows, ids, mask = trainer_of(model, prompts, tmp_path)
    long = max(len(t) for _, t in rows)
    logps, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, long)
    # the tree is not only right, it is what ran wherever the window allows it
    windowed = getattr(model.model.config.get_text_config(), "sliding_window", None) is not None
    if prompts is not PROMPTS["across"]:
        assert (trainer.computed[0] < int(mask.sum())) == (prompts is PROMPTS["short"] or not windowed)
    for row, (head, tail) in zip(logps, rows, strict=True):
        assert row[: len(tail)].tolist() == pytest.approx(following(policy, head, tail), abs=1e-4)
    logps[mask[:, -long:].bool()].sum().backward()
    adapter = {n: p for n, p in policy.model.named_parameters() if "lora_" in n}
    ours = {n: p.grad.clone() for n, p in adapter.items()}
    policy.model.zero_grad()
    for head, tail in rows:
        out = policy.model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
        sum(out[len(head) - 1 + i, token] for i, token in enumerate(tail)).backward()
    for name, parameter in adapter.items():
        assert float(ours[name].abs().sum()) > 0, f"{name} learns nothing"
        torch.testing.assert_close(ours[name], parameter.grad, atol=2e-3, rtol=1e-3)


def test_the_kl_has_the_gradient_of_grpo(folders, tmp_path):
    """k3 by hand (DeepSeekMath, eq. 4), for a policy away from its reference without advantages: the KL alone."""
    loaded = load_model(str(folders["llama"]))
    float32 = replace(loaded, model=loaded.model.float())
    policy, trainer, rows, ids, mask = trainer_of(float32, PROMPTS["short"], tmp_path, beta=0.5)
    long = max(len(t) for _, t in rows)
    anchor = [torch.tensor(following(policy.anchor(), h, t)) for h, t in rows]
    reference = torch.stack([torch.nn.functional.pad(a, (0, long - len(a))) for a in anchor])
    wide, trainer.current_gradient_accumulation_steps = ids.shape[1] - long, 1
    trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": ids[:, :wide], "prompt_mask": mask[:, :wide], "completion_ids": ids[:, wide:],
            "completion_mask": mask[:, wide:], "advantages": torch.zeros(len(rows)), "ref_per_token_logps": reference,
        },
    ).backward()  # fmt: skip
    ours = {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad()
    for (head, tail), known in zip(rows, anchor, strict=True):
        out = policy.model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
        gap = known - torch.stack([out[len(head) - 1 + i, token] for i, token in enumerate(tail)])
        (0.5 * (gap.exp() - gap - 1).mean() / len(rows)).backward()
    for name, parameter in policy.model.named_parameters():
        if name in ours:
            torch.testing.assert_close(ours[name], parameter.grad, atol=1e-6, rtol=1e-3)
    assert sum(float(g.norm()) for g in ours.values()) > 1e-3


def test_a_step_trains_and_its_adapter_is_read_as_it_was_written(folders, tmp_path):
    """On each architecture: one step of GRPO, then transformers and PEFT alone read what was saved."""
    for name, folder in folders.items():
        loaded = load_model(str(folder))
        dtype = loaded.model.dtype
        policy = add_lora(replace(loaded, model=loaded.model.float()), 4, 0)
        task = Arithmetic()
        settings = GRPOSettings(1, 4, 2, 2, learning_rate=1e-2, lora_rank=4)
        rewards = itertools.cycle([0.0, 1.0, 1.0, 0.0])

        def alternate(groups, references, rewards=rewards):
            return [[next(rewards) for _ in g.rollouts] for g in groups]

        done = train(policy, task, task.examples("train", 4, 0), majority, alternate, settings, Run(tmp_path / name))
        assert done.history["grad_norm"].item() > 0, name
        assert done.history["kl"].item() == pytest.approx(0, abs=1e-6)  # a fresh adapter is its own reference
        assert not (done.adapter / "ref").exists()
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).float()
        initial = plain(replace(policy, model=base), [5, 6, 7])
        again = PeftModel.from_pretrained(base, done.adapter).eval()
        policy.model.eval()
        torch.testing.assert_close(plain(replace(policy, model=again), [5, 6, 7]), plain(policy, [5, 6, 7]))
        assert not torch.equal(plain(policy, [5, 6, 7]), initial), name


def test_only_what_text_passes_is_counted_and_trained(folders):
    with_tower, text = load_model(str(folders["gemma3"])), load_model(str(folders["gemma3_text"]))
    assert with_tower.parameters == text.parameters
    assert with_tower.context == 512
    names = [n for n, p in add_lora(with_tower, 4, 0).model.named_parameters() if p.requires_grad]
    assert len(names) == 3 * 7 * 2
    assert not [n for n in names if "vision" in n or "projector" in n]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Gemma2Config(**SIZES, sliding_window=WINDOW), "attention of the kind capped"),
        (GptOssConfig(**SIZES, num_local_experts=2), "attention of the kind eager"),
        (Llama4TextConfig(**SIZES, num_local_experts=1, intermediate_size_mlp=64), "layers of the kind chunked"),
    ],
)
def test_an_attention_that_would_go_wrong_is_refused_by_name(config, message, embedded, tmp_path):
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    embedded.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=message):
        load_model(str(tmp_path))
