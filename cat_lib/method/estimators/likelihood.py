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
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from cat_lib.method.estimators.voting import pick
from cat_lib.models.chat import fitted
from cat_lib.schema import Estimator, Group, Model, Prompt, Reference

_ROW = 4096  # tokens of rollouts scored behind one copy of their prompt: attention and logits grow with the row
_LETTERS = string.ascii_uppercase + string.ascii_lowercase


def min_ppl(scorer: Model) -> Estimator:
    """The rollout with the lowest perplexity given the question, exp(-mean log p) (eq. 9); ties go to the first.

    A rollout without a token has no perplexity and is never picked. Raises ValueError for a group without a prompt
    and for a log-probability that is not finite.
    """

    def scores(groups: Sequence[Group]) -> Iterator[float]:
        rows = list[tuple[list[int], list[str]]]()
        for group in groups:
            if not group.prompt:
                raise ValueError(f"the group of question {group.id!r} has no prompt; min_ppl needs what was asked")
            texts, head = [r.text for r in group.rollouts if r.text], scorer.encode(group.prompt)
            most = max(1, _ROW // max((len(scorer.encode(t)) for t in texts), default=1))
            rows += [(head, texts[i : i + most]) for i in range(0, len(texts), most)]
        found = (mean for row in scorer.score(*zip(*rows, strict=True)) for (mean,) in row) if rows else iter(())
        return (next(found) if r.text else -math.inf for g in groups for r in g.rollouts)

    return _likeliest("min_ppl", scores)


def mutual_predictability(scorer: Model, seed: int = 0) -> Estimator:
    """The rollout that the others predict best: lowest perplexity after the other G - 1 in random order (eqs. 10, 11).

    The question stands above them (Wen et al. 2025 condition on it). The order is drawn from `seed` and the question's
    id. Raises ValueError for a group of fewer than 2 rollouts and for a log-probability that is not finite.
    """

    def prompts(group: Group) -> Iterator[Prompt]:
        if len(group.rollouts) < 2:
            raise ValueError(
                f"the group of question {group.id!r} has {len(group.rollouts)} rollout; mutual predictability needs "
                "2 or more: raise group_size"
            )
        rng, texts = random.Random(f"{seed} {group.id}"), [r.text for r in group.rollouts]
        reserve = max(len(scorer.encode(t)) if t else 0 for t in texts) + 1
        for i in range(len(texts)):
            others = texts[:i] + texts[i + 1 :]
            rng.shuffle(others)
            yield fitted(scorer, reserve, "mutual_predictability", others, question=group.question)

    def scores(groups: Sequence[Group]) -> Iterator[float]:
        asked = [prompt for g in groups for prompt in prompts(g)]
        logprobs = scorer.logprobs(asked, [r.text for g in groups for r in g.rollouts])
        return (fmean(own) if own else -math.inf for own in logprobs)

    return _likeliest("mutual_predictability", scores)


def self_bon(reader: Model, kind: str) -> Estimator:
    """Self-selected best-of-N: the model reads question and rollouts, lettered, and the likeliest letter is picked.

    `kind` is the task's synthesis prompt: a `few_shot` one takes plain text with worked examples, else a chat.
    Raises ValueError for a group of more than 52 rollouts, a log-probability that is not finite, and for a chat with
    a model that always thinks first.
    """
    shots = kind.startswith("few_shot")
    name = "self_bon_few_shot" if shots else "self_bon_chat"

    def scores(groups: Sequence[Group]) -> Iterator[float]:
        most = max(len(g.rollouts) for g in groups)
        if most > len(_LETTERS):
            raise ValueError(f"{most} rollouts: self_bon letters at most {len(_LETTERS)} of them")
        asked = reader if shots else reader.direct()  # not before it is asked: a notebook lists all that it could ask
        heads = [
            asked.encode(fitted(asked, 8, name, [r.text for r in g.rollouts], letters=_LETTERS, question=g.question))
            for g in groups
        ]
        rows = asked.score(heads, [["\nBest attempt:"]] * len(groups), [f" {letter}" for letter in _LETTERS[:most]])
        return (score for g, (own,) in zip(groups, rows, strict=True) for score in own[: len(g.rollouts)])

    return _likeliest("self_bon", scores)


def _likeliest(name: str, scores: Callable[[Sequence[Group]], Iterator[float]]) -> Estimator:
    """The rollout with the highest of `scores`, one a rollout of all groups in turn; none is picked at -inf."""

    def best(group: Group, own: Sequence[float]) -> Reference | None:
        if bad := [s for s in own if not s < math.inf]:
            raise ValueError(
                f"{name}: the model gives a log-probability of {bad[0]} on question {group.id!r}; its numbers "
                "overflow: load it in float32, or lower learning_rate if it is in training"
            )
        index = max(range(len(own)), key=own.__getitem__)
        return pick(group, index, name) if own[index] > -math.inf else None

    def estimate(groups: Sequence[Group]) -> list[Reference | None]:
        found = scores(groups) if groups else iter(())
        return [best(g, [next(found) for _ in g.rollouts]) for g in groups]

    return estimate
