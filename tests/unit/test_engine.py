"""The transformers engine against transformers itself, on the real embedded model."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cat_lib.learning.grpo import add_lora
from cat_lib.models import load_model
from cat_lib.models.vllm import VLLMModel
from cat_lib.schema import Completion, Sampling
from cat_lib.tasks.arithmetic import Arithmetic

TASK = Arithmetic()
PROMPTS = [e.prompt for e in TASK.examples("train", 6, 0)]
GREEDY = Sampling(12, temperature=0)


@pytest.fixture(scope="module")
def exact():
    """The embedded model in float32: in bfloat16, near-ties fall differently with the shape of a batch."""
    model = load_model("embedded")
    return replace(model, model=model.model.float())


def test_greedy_text_is_that_of_transformers(exact):
    ours = [c for (c,) in exact.generate(PROMPTS, 1, GREEDY)]
    for prompt, completion in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([exact.encode(prompt)])
        theirs = exact.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        assert completion.text == exact.tokenizer.decode(theirs, skip_special_tokens=True)


def test_same_seed_same_completions_and_other_seed_others(exact):
    first, again, other = (exact.generate(PROMPTS, 4, Sampling(12, seed=s)) for s in (3, 3, 4))
    assert first == again
    assert first != other


def test_samples_do_not_depend_on_the_split_into_batches(exact):
    whole = exact.generate(PROMPTS, 4, Sampling(12, seed=3))
    split = replace(exact, batch_tokens=600).generate(PROMPTS, 4, Sampling(12, seed=3))
    same = [a.text == b.text for g, h in zip(whole, split, strict=True) for a, b in zip(g, h, strict=True)]
    assert sum(same) >= len(same) - 2  # a shifted draw would change nearly all; rounding can move one in the tail


def test_a_cut_completion_says_so(exact):
    by_line = replace(GREEDY, stop=("\n",))
    (cut,), (ended,) = (exact.generate(PROMPTS[:1], 1, replace(by_line, max_new_tokens=n))[0] for n in (2, 16))
    assert (cut.finish, cut.ended, len(cut.token_ids)) == ("length", False, 2)
    assert ended.ended
    assert "\n" in exact.tokenizer.decode(ended.token_ids[-1:])


def test_stop_string_ends_and_is_not_in_the_text(exact):
    ((completion,),) = exact.generate(["a, b, c\nd, e, f\n"], 1, Sampling(30, temperature=0, stop=("\n",)))
    assert completion.ended
    assert "\n" not in completion.text


def test_logprobs_agree_with_a_full_pass_and_with_what_generate_recorded(exact):
    ((completion,),) = exact.generate(PROMPTS[:1], 1, GREEDY)
    text = exact.tokenizer.decode(completion.token_ids)
    (ours,) = exact.logprobs(PROMPTS[:1], [text])
    ids = torch.tensor([exact.encode(PROMPTS[0]) + list(completion.token_ids)])
    with torch.inference_mode():
        logp = exact.model(ids).logits[0, :-1].float().log_softmax(-1)
    full = logp.gather(-1, ids[0, 1:, None])[-len(completion.token_ids) :, 0].tolist()
    assert ours == pytest.approx(full, abs=1e-3)
    assert sum(ours) / len(ours) == pytest.approx(completion.mean_logprob, abs=1e-3)
    assert completion.mean_entropy > 0


def test_nucleus_and_top_k_keep_what_they_promise():
    from cat_lib.models.passes import draw

    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).repeat(4000, 1)
    uniform = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    plain = draw(logits, Sampling(1), uniform)[0]
    shares = torch.bincount(plain, minlength=4) / 4000
    assert shares.tolist() == pytest.approx(logits[0].softmax(-1).tolist(), abs=0.02)
    assert draw(logits, Sampling(1, top_k=2), uniform)[0].unique().tolist() == [0, 1]
    assert draw(logits, Sampling(1, top_p=0.5), uniform)[0].unique().tolist() == [0]


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.0])
def test_what_a_pass_knows_of_its_token_is_at_the_sampling_temperature_and_before_filters(temperature):
    from cat_lib.models.passes import draw

    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(1)) * 3
    uniform = torch.rand(50, generator=torch.Generator().manual_seed(2))
    tokens, logp, entropy, certainty = draw(logits, Sampling(1, temperature, top_k=3, top_p=0.9), uniform)
    by_hand = torch.distributions.Categorical(logits=logits / (temperature or 1))
    torch.testing.assert_close(logp, by_hand.log_prob(tokens))
    torch.testing.assert_close(entropy, by_hand.entropy())
    scaled = logits / (temperature or 1)
    torch.testing.assert_close(certainty, scaled.logsumexp(-1) - scaled.mean(-1))


def test_a_completion_s_means_are_at_the_sampling_temperature(exact):
    ((completion,),) = exact.generate(PROMPTS[:1], 1, replace(GREEDY, temperature=0.7, seed=4))
    ids = torch.tensor([exact.encode(PROMPTS[0]) + list(completion.token_ids)])
    with torch.inference_mode():
        logits = exact.model(ids).logits[0, -len(completion.token_ids) - 1 : -1].float()
    by_hand = torch.distributions.Categorical(logits=logits / 0.7)
    assert completion.mean_logprob == pytest.approx(by_hand.log_prob(ids[0, -len(logits) :]).mean().item(), abs=1e-3)
    assert completion.mean_entropy == pytest.approx(by_hand.entropy().mean().item(), abs=1e-3)
    certainty = ((logits / 0.7).logsumexp(-1) - (logits / 0.7).mean(-1)).mean().item()
    assert completion.self_certainty == pytest.approx(certainty, abs=1e-3)


def test_the_mask_of_a_completion_names_the_tokens_that_the_policy_wrote():
    ids = (5, 6, 7, 8, 9)
    assert Completion("", ids, "stop").mask == (1, 1, 1, 1, 1)
    assert Completion("", ids, "stop", foreign=((0, 2), (3, 4))).mask == (0, 0, 1, 0, 1)


def test_anchor_is_the_initial_model_whatever_the_adapter_learnt(exact):
    initial = exact.generate(PROMPTS, 1, GREEDY)
    policy = add_lora(exact, 4, 0)
    assert policy.generate(PROMPTS, 1, GREEDY) == initial  # a fresh adapter changes nothing
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    assert policy.generate(PROMPTS, 1, GREEDY) != initial
    assert policy.anchor().generate(PROMPTS, 1, GREEDY) == initial
    assert {"policy", "anchor"} <= policy.ledger.roles.keys()
    assert exact.generate(PROMPTS, 1, GREEDY) == exact.anchor().generate(PROMPTS, 1, GREEDY) == initial


def test_shared_prefix_is_computed_once(exact):
    with exact.ledger.measure() as one:
        exact.generate(PROMPTS[:1], 1, replace(GREEDY, max_new_tokens=1))
    with exact.ledger.measure() as eight:
        exact.generate(PROMPTS[:1], 8, replace(GREEDY, max_new_tokens=1))
    assert eight["policy"].flops == one["policy"].flops
    assert eight["policy"].prompt_tokens == 8 * one["policy"].prompt_tokens


@pytest.mark.parametrize("prompt", ["", "word " * 9000])
def test_a_prompt_that_does_not_fit_is_refused(exact, prompt):
    with pytest.raises(ValueError, match="allowed are 1 to 8192"):
        exact.generate([prompt], 1, GREEDY)


def test_a_stop_string_that_no_token_holds_is_refused(exact):
    with pytest.raises(ValueError, match="shorter stop string"):
        exact.generate(PROMPTS[:1], 1, replace(GREEDY, stop=("</final-answer>",)))


def test_answers_of_vllm_are_not_kept_for_a_folder_whose_weights_have_changed(tmp_path):
    """A cache of verdicts is keyed by the model's identity; the engine itself is not needed to tell."""
    config = SimpleNamespace(model=str(tmp_path), dtype="float32", hf_config=SimpleNamespace())
    engine = SimpleNamespace(llm_engine=SimpleNamespace(model_config=config))
    model = VLLMModel(engine, 0, tokenizer=None, name="./mine")
    (tmp_path / "model.safetensors").write_text("one")
    first = model.identity
    assert model.identity == model.anchor("judge").identity == first != replace(model, thinking=True).identity
    (tmp_path / "model.safetensors").write_text("other")
    assert model.identity != first
    with pytest.raises(ValueError, match=r"can't be cached; judge with its anchor"):
        assert replace(model, lora="adapter").identity
