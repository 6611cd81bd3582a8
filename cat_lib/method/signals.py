"""How good the training signal is, step by step, and a watch for the way it usually breaks.

`label_accuracy`, `reward_accuracy` and `rollout_accuracy` read the gold answers, for plots alone: they are computed
here, after the rewards, and nothing reads them back. `label_accuracy` is TTRL's (arXiv 2504.16084, `ttt_metrics.py`);
`reward_accuracy` is our own: theirs, here `reward_hit_rate`, counts rewards that equal gold's, which means nothing for
a fraction.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean

from cat_lib.method.estimators.voting import agreement, majority
from cat_lib.schema import Group, Reference

Rewards = list[list[float | None]]
SIGNALS = ("agreement", "disagreement", "unscorable", "zero_variance", "rollout_tokens")
RUBRIC_SIGNALS = ("met_share", "verdict_agreement", "verdict_failed", "rubric_criteria", "rubric_missing")
_WINDOW, _RISE, _FALL = 3, 0.1, 0.25  # of the collapse watch
GOLD_SIGNALS = ("label_accuracy", "reward_accuracy", "rollout_accuracy", "pass_at_n")


def signals(
    groups: Sequence[Group], references: Sequence[Reference | None], rewards: Rewards, verifiable: bool = True
) -> dict[str, float]:
    """What a run without labels can know of its own signal; formulas in docs/metrics.md.

    A share of nothing is left out, and of free text, which has no answers, all that needs them.
    """
    flat = [r for group in rewards for r in group]
    scored = [{r for r in group if r is not None} for group in rewards]
    shares: dict[str, Sequence[float]] = {
        "unscorable": [r is None for r in flat],
        "zero_variance": [len(values) == 1 for values in scored if values],
        "rollout_tokens": [sum(r.mask) for group in groups for r in group.rollouts],
    }
    if not verifiable:
        return {name: fmean(values) for name, values in shares.items() if values}
    answers = [(a, i in group.lost) for group in groups for i, a in enumerate(group.answers)]
    votes = [m.answer if m else None for m in majority(groups)]
    both = [(v, r.answer) for v, r in zip(votes, references, strict=True) if v and r and r.answer]
    shares |= {
        "agreement": [agreement(group.answers) for group in groups],
        "labelled": [bool(r and r.answer) for r in references],
        "disagreement": [v != r for v, r in both],
        "no_answer": [a is None and not gone for a, gone in answers],
        "answer_lost": [gone for _, gone in answers],
        "answer_dependence": [answer_dependence([group.answers for group in groups])],
    }
    return {name: fmean(values) for name, values in shares.items() if values}


def gold_signals(
    groups: Sequence[Group],
    references: Sequence[Reference | None],
    rewards: Rewards,
    golds: Sequence[str],
    correct: Callable[[str | None, str], bool],
) -> dict[str, float]:
    """What only the gold answers tell, for plots alone; `correct` is the task's comparison of answer and gold."""
    right = [[correct(a, gold) for a in group.answers] for group, gold in zip(groups, golds, strict=True)]
    ordered = reward_accuracy(rewards, right)
    binary = {r for group in rewards for r in group if r is not None} <= {0.0, 1.0}
    # as theirs: what has no reward counts as 0
    hits = [(r or 0.0) == g for own, known in zip(rewards, right, strict=True) for r, g in zip(own, known, strict=True)]
    labelled = list(zip(references, golds, strict=True)) if any(references) else []
    shares: dict[str, Sequence[float]] = {
        "label_accuracy": [correct(r.answer if r else None, g) for r, g in labelled],
        "reward_accuracy": [] if ordered is None else [ordered],
        "rollout_accuracy": [g for group in right for g in group],
        "pass_at_n": [any(group) for group in right],
        "reward_hit_rate": hits if binary else [],
    }
    return {name: fmean(values) for name, values in shares.items() if values}


def reward_accuracy(rewards: Rewards, right: Sequence[Sequence[bool]]) -> float | None:
    """How well rewards of any kind order a group's rollouts: the chance that a right one has more than a wrong one.

    Over all pairs of a right and a wrong rollout of one group, both scored: the share in which the right one has the
    larger reward, a tie counting half; the mean over the groups that have such a pair, or None. A coin has 0.5.
    """
    shares = []
    for group, known in zip(rewards, right, strict=True):
        scored = [(r, g) for r, g in zip(group, known, strict=True) if r is not None]
        pairs = [(good, bad) for good, g in scored if g for bad, b in scored if not b]
        if pairs:
            shares.append(fmean((good > bad) + (good == bad) / 2 for good, bad in pairs))
    return fmean(shares) if shares else None


def answer_dependence(answers: Iterable[Sequence[str | None]]) -> float:
    """Mutual information, in nats, between question and answer over groups of rollouts that gave one.

    It rises as rollouts of one question come to agree, and falls to 0 when they agree because every question gets the
    same answer.
    """
    counts = [Counter(a for a in group if a is not None) for group in answers]
    every = sum(counts, Counter[str]())
    n = every.total()
    terms = (c / n * math.log(c * n / (every[a] * own.total())) for own in counts for a, c in own.items())
    return max(0.0, math.fsum(terms))


def flip_rate(groups: Sequence[Group], last: dict[str, str | None]) -> dict[str, float]:
    """How often the majority's answer is another one than at the question's last visit, which no label is needed for.

    `last` are those answers by question, and this step's afterwards; nothing comes back where none was seen before.
    TTRL-Guard's leading signal (arXiv 2605.19444, `_get_fr`). Theirs counts a first visit as no flip; here it is left
    out, or the rate would only say how many questions are new.
    """
    votes = {g.id: vote.answer if vote else None for g, vote in zip(groups, majority(groups), strict=True)}
    flipped = [vote != last[id] for id, vote in votes.items() if id in last]
    last.update(votes)
    return {"flip_rate": fmean(flipped)} if flipped else {}


def collapse(history: Iterable[Mapping[str, float]]) -> list[str]:
    """The first logged step at which agreement is bought by forgetting the question, in words, or none.

    The mean of the last _WINDOW steps is compared with that of the first: a rise of agreement by more than _RISE
    together with a fall of `answer_dependence` by more than the share _FALL. In healthy learning both rise. It cannot
    see wrong majorities that still depend on the question; `label_accuracy` shows those.
    """
    logged = [h for h in history if "answer_dependence" in h]
    for end in range(2 * _WINDOW, len(logged) + 1):
        parts = logged[:_WINDOW], logged[end - _WINDOW : end]
        a0, a1 = (fmean(h["agreement"] for h in part) for part in parts)
        d0, d1 = (fmean(h["answer_dependence"] for h in part) for part in parts)
        if a1 - a0 > _RISE and d1 < d0 * (1 - _FALL):
            return [
                f"step {logged[end - 1]['step']}: collapse: agreement rose from {a0:.2f} to {a1:.2f} while "
                f"answer_dependence fell from {d0:.2f} to {d1:.2f} nats: rollouts agree without reading the question. "
                "Lower the learning rate, raise beta, or make extraction stricter."
            ]
    return []
