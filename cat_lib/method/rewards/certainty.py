"""Certainty as the reward: how sure the policy was of a rollout, whatever its answer. The estimator is `voting.none`.

The four of PRIME-RL's `compute_certainty_reward` (TTRL, `ttrl_utils.py`), each of one rollout, over its tokens t with
logits l_t over the vocabulary and p_t their softmax, both at the sampling temperature:

    self_certainty       mean_t [logsumexp(l_t) - mean_v l_tv], which is KL(uniform || p_t) + log V
    token_entropy        - mean_t H(p_t)
    trajectory_entropy   mean_t log p_t(y_t), a one-sample estimate of the entropy of whole texts by token
    probability          exp(sum_t log p_t(y_t))

Intuitor's reward (arXiv 2505.19590) is `self_certainty`, at temperature 1. Left out: theirs scores a rollout without
an answer like any other, and so do these; and no weight or clip is put on any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cat_lib.schema import Completion, Group, Reference


@dataclass(frozen=True)
class Certainty:
    """A reward rule of one fact that the rollout's own pass knows, which `needs` names."""

    needs: tuple[str]
    value: Callable[[float, int], float]  # of the fact and the number of tokens

    def __call__(self, groups: Sequence[Group], references: Sequence[Reference | None]) -> list[list[float | None]]:
        """One reward a rollout, in nats or, of `probability`, a share. Raises ValueError if the fact is not known."""
        return [[self._of(rollout, group.id) for rollout in group.rollouts] for group in groups]

    def _of(self, rollout: Completion, id: str) -> float:
        (fact,) = self.needs
        known = getattr(rollout, fact)
        if known is None:
            raise ValueError(
                f"a rollout of question {id!r} comes without {fact}, which this reward is made of; draw with "
                "engine=transformers and rollouts=engine"
            )
        return self.value(known, len(rollout.token_ids))


self_certainty = Certainty(("self_certainty",), lambda x, _: x)
token_entropy = Certainty(("mean_entropy",), lambda x, _: -x)
trajectory_entropy = Certainty(("mean_logprob",), lambda x, _: x)
probability = Certainty(("mean_logprob",), lambda x, tokens: math.exp(x * tokens))
