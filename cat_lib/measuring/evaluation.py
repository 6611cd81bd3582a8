"""Scores on held-out questions, with what each answer cost.

Gold answers are read here and nowhere near a reward. Every method answers the same questions, so that each
comparison is paired; costs are measured calls of the engine, not formulas.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from cat_lib.ledger import Cost
from cat_lib.measuring.stats import Estimate, mean_interval, paired_difference
from cat_lib.method.estimators.voting import agreement
from cat_lib.schema import Estimator, Example, Group, Model, Reference, Sampling, Task
from cat_lib.tasks import group_of


@dataclass(frozen=True)
class Score:
    """One method on one set of questions."""

    correct: np.ndarray  # (questions,) or (questions, samples) of 0 and 1
    cost: Cost  # of answering each question once

    @property
    def estimate(self) -> Estimate:
        return mean_interval(self.correct)


@dataclass(frozen=True)
class Evaluation:
    """A policy on held-out questions: its groups of rollouts and the score of each way to use it."""

    groups: list[Group]
    scores: dict[str, Score]
    references: dict[str, list[Reference | None]]  # of each estimator, by group

    @property
    def answer_lost(self) -> float:
        """Share of the rollouts whose answer could not be read within its limits."""
        return sum(len(g.lost) for g in self.groups) / sum(len(g.rollouts) for g in self.groups)

    def table(self, examples: Sequence[Example]) -> pd.DataFrame:
        """One row a question and method: example, level, method, correct (mean over samples)."""
        return pd.DataFrame(
            {"example": e.id, "level": e.level, "method": method, "correct": float(np.mean(score.correct[i]))}
            for method, score in self.scores.items()
            for i, e in enumerate(examples)
        )


def sample_groups(model: Model, task: Task, examples: Sequence[Example], n: int, sampling: Sampling) -> list[Group]:
    """n rollouts of each question, with their extracted answers."""
    return [
        group_of(task, e.id, e.question, rollouts, e.prompt)
        for e, rollouts in zip(examples, model.generate([e.prompt for e in examples], n, sampling), strict=True)
    ]


def evaluate(
    policy: Model,
    task: Task,
    examples: Sequence[Example],
    group_size: int,
    estimators: Mapping[str, Estimator],
    seed: int,
) -> Evaluation:
    """Answer each question once in every way: one sample, one greedy answer, each estimator over `group_size` rollouts.

    An answer that was lost to a limit is wrong here, as no answer is; `Evaluation.answer_lost` counts them.

    The score of `single` is over the `group_size` samples of each question (avg@k); its cost is that of one sample,
    measured in a call of its own. An estimator's cost holds the rollouts it reads.
    """
    ledger, golds = policy.ledger, [e.gold for e in examples]
    sampling = replace(task.sampling, seed=seed)

    def right(groups: Sequence[Group]) -> np.ndarray:
        return np.array(
            [[task.correct(a, gold) for a in group.answers] for group, gold in zip(groups, golds, strict=True)], float
        )

    with ledger.measure() as one:
        sample_groups(policy, task, examples, 1, sampling)
    with ledger.measure() as once:
        greedy = sample_groups(policy, task, examples, 1, replace(sampling, temperature=0.0))
    with ledger.measure() as many:
        groups = sample_groups(policy, task, examples, group_size, sampling)
    scores = {
        "single": Score(right(groups), _total(one)),
        "greedy": Score(right(greedy)[:, 0], _total(once)),
    }
    references = {}
    for name, estimator in estimators.items():
        with ledger.measure() as reading:
            references[name] = estimator(groups)
        correct = [
            float(reference is not None and task.correct(reference.answer, gold))
            for reference, gold in zip(references[name], golds, strict=True)
        ]
        drawn = one if name == "synthesis_1" else many
        scores[name] = Score(np.array(correct), _total(drawn, reading))
    return Evaluation(groups, scores, references)


def comparison_metrics(split: str, before: Evaluation, after: Evaluation) -> dict[str, float]:
    """Flat metrics of a run: each method before and after, the paired difference with its 95 % limits, and p.

    `<split>_accuracy_*` is one sample; the other methods carry their name, as in `<split>_majority_accuracy_*`.
    """
    metrics: dict[str, float] = {f"{split}_questions": float(len(before.groups))}
    metrics |= {f"{split}_answer_lost_before": before.answer_lost, f"{split}_answer_lost_after": after.answer_lost}
    for method, score in before.scores.items():
        key = f"{split}_accuracy" if method == "single" else f"{split}_{method}_accuracy"
        metrics |= _paired(key, score, after.scores[method])
    return metrics


def _paired(key: str, before: Score, after: Score) -> dict[str, float]:
    difference = paired_difference(before.correct, after.correct)
    return {
        f"{key}_before": before.estimate.mean,
        f"{key}_after": after.estimate.mean,
        f"{key}_difference": difference.mean,
        f"{key}_difference_low": difference.low,
        f"{key}_difference_high": difference.high,
        f"{key}_difference_p": float(difference.p if difference.p is not None else 1.0),
    }


def compute_ratios(single: Score, synthesis: Score) -> dict[str, float]:
    """Test-time compute of G rollouts plus one synthesis over that of one trained sample (the paper's 9x, G = 8).

    In generated tokens, in model FLOPs and in seconds, all measured on the same questions.
    """
    return {
        "synthesis_over_single_tokens": synthesis.cost.completion_tokens / single.cost.completion_tokens,
        "synthesis_over_single_flops": synthesis.cost.flops / single.cost.flops,
        "synthesis_over_single_seconds": synthesis.cost.seconds / single.cost.seconds,
    }


def score_table(phases: Mapping[str, Evaluation]) -> pd.DataFrame:
    """One row a phase and method: accuracy with its interval, n, and cost a question."""
    return pd.DataFrame(
        {
            "phase": phase,
            "method": method,
            "accuracy": score.estimate.mean,
            "low": score.estimate.low,
            "high": score.estimate.high,
            "n": score.estimate.n,
            "tokens": score.cost.completion_tokens / score.estimate.n,
            "gflops": score.cost.flops / score.estimate.n / 1e9,
            "seconds": score.cost.seconds / score.estimate.n,
        }
        for phase, evaluation in phases.items()
        for method, score in evaluation.scores.items()
    )


def verdict(name: str, difference: Estimate, teacher: Estimate | None = None) -> str:
    """One paragraph from the numbers: a gain, a loss, or that neither is shown; never a winner without evidence.

    `teacher`, where given, is trained sample minus the untrained model's own synthesis on the same questions.
    """
    if not difference.conclusive:
        text = f"No gain is shown: {name} changed by {difference}"
    else:
        text = f"{name} {'rose' if difference.mean > 0 else 'FELL'}: change {difference}"
    text += f"; sign-flip p after Holm = {difference.p:.4f}." if difference.p is not None else "."
    if teacher is not None:
        side = "above" if teacher.mean > 0 else "below"
        text += (
            f" One trained sample is {side} its initial teacher, {teacher}."
            if teacher.conclusive
            else f" Against its initial teacher, one trained sample is undecided: {teacher}."
        )
    return text


def compare_teachers(difference: Estimate) -> str:
    """Synthesis minus majority at the same rollouts, in words."""
    if not difference.conclusive:
        return f"Synthesis against majority vote at the same rollouts: undecided, {difference}."
    better, worse = ("Synthesis", "majority vote") if difference.mean > 0 else ("Majority vote", "synthesis")
    return f"{better} beats {worse} at the same rollouts; synthesis minus majority is {difference}."


def preview(groups: Sequence[Group], rollouts: int = 4) -> pd.DataFrame:
    """One row a group: its question, its first rollouts as they are, and its agreement."""
    rows = [
        [group.question, *(r.text for r in group.rollouts[:rollouts]), round(agreement(group.answers), 2)]
        for group in groups
    ]
    return pd.DataFrame(rows, columns=["question", *(f"rollout {i + 1}" for i in range(rollouts)), "agreement"])


def both_phases(before: Evaluation, after: Evaluation, examples: Sequence[Example]) -> pd.DataFrame:
    """`Evaluation.table` of both phases, with a column phase."""
    phases = {"before": before, "after": after}
    return pd.concat([e.table(examples).assign(phase=phase) for phase, e in phases.items()], ignore_index=True)


def most_moved(before: Sequence[Group], after: Sequence[Group]) -> int:
    """Index of the question whose answer distribution changed most (total variation distance)."""

    def distance(i: int) -> int:
        a, b = Counter(before[i].answers), Counter(after[i].answers)
        return sum(abs(a[answer] - b[answer]) for answer in a.keys() | b.keys())

    return max(range(len(before)), key=distance)


def _total(*spent: Mapping[str, Cost]) -> Cost:
    total = Cost()
    for roles in spent:
        for cost in roles.values():
            total = total + cost
    return total
