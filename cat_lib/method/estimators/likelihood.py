"""Estimators that pick the rollout a model likes best: by perplexity, by mutual predictability, by its own choice.

Definitions are the paper's (appendix I, eqs. 9 to 11) where it gives them; the prompt of self-selected best-of-N is
not public and `prompts/self_bon_*.txt` are our wording. The scoring model is the frozen anchor in training as at
inference time, so that a signal does not move with the policy. Left out: reading self-BoN's choice from generated
text; the choice is the likeliest letter, which can't fail to parse.
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Sequence
from statistics import fmean

from cat_lib.method.estimators.voting import pick
from cat_lib.models.chat import fitted
from cat_lib.prompts import fence, fill, one_line
from cat_lib.schema import Estimator, Group, Model, Prompt, Reference

_ROW = 4096  # tokens of rollouts scored behind one copy of their prompt: attention and logits grow with the row
_LETTERS = string.ascii_uppercase + string.ascii_lowercase


def min_ppl(scorer: Model) -> Estimator:
    """The rollout with the lowest perplexity given the question, exp(-mean log p) (eq. 9); ties go to the first.

    A rollout without a token has no perplexity and is never picked. Raises ValueError for a group without a prompt
    and for a log-probability that is not finite.
    """

    def estimate(groups: Sequence[Group]) -> list[Reference | None]:
        for group in groups:
            if not group.prompt:
                raise ValueError(f"the group of question {group.id!r} has no prompt; min_ppl needs what was asked")
        rows = []
        for group in groups:
            texts, head = [r.text for r in group.rollouts if r.text], scorer.encode(group.prompt)
            most = max(1, _ROW // max((len(scorer.encode(t)) for t in texts), default=1))
            rows += [(head, texts[i : i + most]) for i in range(0, len(texts), most)]
        found = (s for row in scorer.score(*zip(*rows, strict=True)) for (s,) in row) if rows else iter(())
        return [_best(g, [next(found) if r.text else -math.inf for r in g.rollouts], "min_ppl") for g in groups]

    return estimate


def mutual_predictability(scorer: Model, seed: int = 0) -> Estimator:
    """The rollout that the others predict best: lowest perplexity after the other G - 1 in random order (eqs. 10, 11).

    The question stands above them (Wen et al. 2025 condition on it). The order is drawn from `seed` and the question's
    id. Raises ValueError for a group of fewer than 2 rollouts and for a log-probability that is not finite.
    """

    def prompts(group: Group) -> list[Prompt]:
        if len(group.rollouts) < 2:
            raise ValueError(
                f"the group of question {group.id!r} has {len(group.rollouts)} rollout; mutual predictability needs "
                "2 or more: raise group_size"
            )
        rng = random.Random(f"{seed} {group.id}")
        texts = [r.text for r in group.rollouts]

        def build(others: Sequence[str]) -> Prompt:
            lines = "\n".join(f"{i}. {one_line(text)}" for i, text in enumerate(others, 1))
            return fill("mutual_predictability", question=group.question, rollouts=lines, next=str(len(texts)))

        reserve = max(len(scorer.encode(t)) if t else 0 for t in texts) + 1
        orders = [[t for j, t in enumerate(texts) if j != i] for i in range(len(texts))]
        for others in orders:
            rng.shuffle(others)
        return [fitted(scorer, others, build, reserve) for others in orders]

    def estimate(groups: Sequence[Group]) -> list[Reference | None]:
        texts = [r.text for g in groups for r in g.rollouts]
        logprobs = scorer.logprobs([prompt for g in groups for prompt in prompts(g)], texts)
        found = iter(fmean(own) if own else -math.inf for own in logprobs)
        return [_best(g, [next(found) for _ in g.rollouts], "mutual_predictability") for g in groups]

    return estimate


def self_bon(reader: Model, kind: str) -> Estimator:
    """Self-selected best-of-N: the model reads question and rollouts, lettered, and the likeliest letter is picked.

    `kind` is the task's synthesis prompt: a `few_shot` one takes plain text with worked examples, else a chat.
    Raises ValueError for a group of more than 52 rollouts, a log-probability that is not finite, and for a chat with
    a model that always thinks first.
    """
    shots = kind.startswith("few_shot")
    name = "self_bon_few_shot" if shots else "self_bon_chat"

    def head(group: Group, reader: Model) -> list[int]:
        if len(group.rollouts) > len(_LETTERS):
            raise ValueError(f"{len(group.rollouts)} rollouts: self_bon letters at most {len(_LETTERS)} of them")

        def build(texts: Sequence[str]) -> Prompt:
            block, wrap = ("\n", one_line) if shots else ("\n\n", lambda text: "\n" + fence(text))
            listed = block.join(f"{letter}. {wrap(text)}" for letter, text in zip(_LETTERS, texts, strict=False))
            text = fill(name, question=group.question, rollouts=listed)
            return text if shots else [{"role": "user", "content": text}]

        return reader.encode(fitted(reader, [r.text for r in group.rollouts], build, 8))

    def estimate(groups: Sequence[Group]) -> list[Reference | None]:
        if not groups:
            return []
        asked = reader if shots else reader.direct()  # not before it is asked: a notebook lists all that it could ask
        letters = [f" {letter}" for letter in _LETTERS[: max(len(g.rollouts) for g in groups)]]
        rows = asked.score([head(g, asked) for g in groups], [["\nBest attempt:"]] * len(groups), letters)
        return [
            _best(group, scores[: len(group.rollouts)], "self_bon")
            for group, (scores,) in zip(groups, rows, strict=True)
        ]

    return estimate


def _best(group: Group, scores: Sequence[float], estimator: str) -> Reference | None:
    if bad := [s for s in scores if not s < math.inf]:
        raise ValueError(
            f"{estimator}: the model gives a log-probability of {bad[0]} on question {group.id!r}; its numbers "
            "overflow: load it in float32, or lower learning_rate if it is in training"
        )
    best = max(range(len(scores)), key=scores.__getitem__)
    return pick(group, best, estimator) if scores[best] > -math.inf else None
