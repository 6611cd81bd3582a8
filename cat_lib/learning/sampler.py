"""Who draws the rollouts of a training: the learner's own weights, or another engine that is handed them each step.

Where another engine draws, its numbers are not the learner's: rounded otherwise, or, if the handing over failed, those
of another policy, and no loss would tell. So each step the log-probabilities that both give to a few of its rollouts
are compared, before anything is learnt of them: the gap is logged, and a step above `MOST_GAP` is not made. TRL weighs
each token by the ratio of the two (truncated importance sampling, Yao et al., 2025); where top-k or top-p cut what is
drawn there is no such ratio, and the gap alone is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import compress, groupby
from statistics import fmean
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from cat_lib.learning.lora import add_lora
from cat_lib.learning.trl import FACTS
from cat_lib.models import ModelError
from cat_lib.schema import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from cat_lib.models.local import LocalModel
    from cat_lib.models.vllm import VLLMModel

MOST_GAP = 0.1  # nats a token, mean: five times what bfloat16 made of the same policy (docs/results.md)
_COMPARED = 8  # rollouts a step
_MOVED = 0.5  # nats a token that a random adapter must move what the base model says, or the question has no power
_STRONGEST = 10.0  # of its weights
WORDS = {"anchor": "the anchor", "fresh": "a fresh adapter", "random": "a random adapter"}
Row = tuple[Prompt, Completion]


class PolicyError(ModelError):
    """What draws is not the policy that learns."""


def rollouts(
    policy: LocalModel, sampling: Sampling, seed: int, voters: int = 0
) -> Callable[[list[Prompt], Any], dict[str, Any]]:
    """TRL's `rollout_func` on our engine. Prompts arrive repeated, one row a rollout (measured; its docs differ).

    `voters`: further rollouts for each row, drawn after all that are trained on; they pass TRL by, to the signal alone.
    """

    def rollout(prompts: list[Prompt], trainer: Any) -> dict[str, Any]:
        runs = [(prompt, len(list(rows))) for prompt, rows in groupby(prompts)]
        # each process draws its own, or two halves of a group would hold the same rollouts
        step_seed = (seed * 1_000_003 + trainer.state.global_step) * 64 + trainer.accelerator.process_index
        n = max(count for _, count in runs) * (1 + voters)
        groups = policy.generate([p for p, _ in runs], n, replace(sampling, seed=step_seed))
        rows, untrained = list[Row](), list[list[Completion]]()
        for (prompt, count), group in zip(runs, groups, strict=True):
            rows += [(prompt, c) for c in group[:count]]
            untrained += [group[count + i * voters :][:voters] for i in range(count)]
        if policy.sampler:
            compare(policy, rows, sampling, trainer)
        return {
            "prompt_ids": [policy.encode(p) for p, _ in rows],
            "completion_ids": [list(c.token_ids) for _, c in rows],
            "logprobs": [list(c.logprobs or ()) for _, c in rows] if policy.sampler else None,
            "env_mask": [list(c.mask) for _, c in rows],  # TRL's name: a foreign token has no gradient
            "untrained": untrained,
            **{fact: [getattr(c, fact) for _, c in rows] for fact in FACTS},
        }

    return rollout


def compare(policy: LocalModel, rows: Sequence[Row], sampling: Sampling, trainer: Any) -> None:
    """Log `sampling_gap` and `sampling_gap_max` of a step's rollouts. Raises PolicyError above `MOST_GAP`."""
    mean, most = gap(policy, rows[:: -(-len(rows) // _COMPARED)], sampling.temperature)
    metrics = trainer._metrics["train"]
    metrics["sampling_gap"].append(mean)
    metrics["sampling_gap_max"].append(most)
    if not mean <= MOST_GAP:  # nor NaN
        raise PolicyError(
            f"step {trainer.state.global_step + 1}: the engine that draws and the policy that learns differ by "
            f"{mean:.3f} nats a token; allowed is {MOST_GAP}: it draws from other weights, or rounds too coarsely; "
            "`python -m cat_lib check engine` says which, and rollouts=engine does without it"
        )


def gap(policy: LocalModel, rows: Sequence[Row], temperature: float) -> tuple[float, float]:
    """Mean and largest difference in nats between what sampler and learner give each token of what was drawn.

    What the sampler said when it drew, at its temperature; where top-k or top-p cut that, what both say of the text.
    """
    prompts = [p for p, _ in rows]
    if all(c.logprobs and c.mean_logprob is not None for _, c in rows):
        heads, tails = [policy.encode(p) for p in prompts], [list(c.token_ids) for _, c in rows]
        learnt, _ = policy.following(heads, tails, temperature)
        said = [(c.logprobs or (), c.mask) for _, c in rows]
        pairs = [(list(compress(x, m)), list(compress(y, m))) for x, (y, m) in zip(learnt, said, strict=True)]
    else:
        assert policy.sampler is not None
        texts = [policy.decode(c.token_ids) for _, c in rows]
        theirs = policy.sampler.drawing_for(policy).logprobs(prompts, texts)
        pairs = list(zip(policy.logprobs(prompts, texts), theirs, strict=True))
    apart = [abs(x - y) for own, other in pairs for x, y in zip(own, other, strict=True)] or [0.0]
    return fmean(apart), max(apart)


def drawn_elsewhere(trainer: Any, sampler: VLLMModel) -> None:
    """Let TRL correct for rollouts that another engine drew, where that gives numbers that can be compared.

    TRL does so only if it believes that it drives vLLM, and hands weights over before a step: here `generate` does.
    The engine sleeps while the policy learns, so that on a GPU both have its memory in turn.
    """
    score = trainer._generate_and_score_completions

    def and_sleep(inputs: Any) -> Any:
        scored = score(inputs)
        sampler.sleep()
        return scored

    trainer._generate_and_score_completions = and_sleep
    trainer.use_vllm, trainer._last_loaded_step = True, -1
    trainer.vllm_generation = SimpleNamespace(sync_weights=lambda: None)


def samples_the_policy(model: LocalModel, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Whether `model.sampler` draws from an adapter of `model`: the gaps for a fresh and a random one, in nats a token.

    `moved` is by how much the random one departs from the base model, `anchor` the gap of the base model's own answers,
    the larger of before and afterwards. Raises PolicyError if a gap is above `MOST_GAP`, or no number.
    """
    drawn, found = Sampling(16, seed=1), {"anchor": 0.0}
    policy = add_lora(model, 8, 0, "canary")
    adapted = [weight for name, weight in policy.model.named_parameters() if "lora_B" in name]
    noise = [torch.randn(b.shape, generator=torch.Generator().manual_seed(i)) for i, b in enumerate(adapted)]

    def ask(name: str, of: LocalModel) -> None:
        rows = [(p, c) for p, (c,) in zip(prompts, of.generate(prompts, 1, drawn), strict=True)]
        found[name] = max(gap(of, rows, drawn.temperature)[0], found["anchor"] if name == "anchor" else 0.0)
        ids = [of.encode(p) for p in prompts], [list(c.token_ids) for _, c in rows]
        both = zip(of.following(*ids)[0], model.anchor().following(*ids)[0], strict=True)
        found["moved"] = fmean(abs(x - y) for a, b in both for x, y in zip(a, b, strict=True))
        if not found[name] <= MOST_GAP:  # nor NaN
            raise PolicyError(
                f"with {WORDS[name]} the engine that draws and the model that learns differ by {found[name]:.3f} nats "
                f"a token, where the base model and the policy differ by {found['moved']:.3f}; allowed is {MOST_GAP}: "
                "take rollouts=engine"
            )

    ask("anchor", model.anchor())
    ask("fresh", policy)
    strength = 0.01
    while not found["moved"] >= _MOVED:
        strength *= 2
        with torch.no_grad():
            for weight, own in zip(adapted, noise, strict=True):
                weight.copy_(strength * own)
        ask("random", policy)
        if strength > _STRONGEST:
            raise PolicyError(f"a random adapter moves it by {found['moved']:.3f} nats a token: too little to tell")
    moved = found["moved"]
    ask("anchor", model.anchor())
    model.policies.pop("canary", None)
    return found | {"moved": moved}
