"""Scores on held-out questions, with what each answer cost.

Gold answers are read here and nowhere near a reward. Every method answers the same questions, so that each
comparison is paired; costs are measured calls of the engine, not formulas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from cat_lib.ledger import Cost
from cat_lib.measuring.scoring import RubricScore
from cat_lib.measuring.stats import change, paired_difference
from cat_lib.measuring.tables import outcomes
from cat_lib.method.estimators.synthesis import OfFirst
from cat_lib.method.estimators.voting import agreement
from cat_lib.prompts import valid
from cat_lib.schema import Estimator, Example, Group, Model, Reference, Task
from cat_lib.tasks import sample_groups as sample_groups


@dataclass(frozen=True)
class Score:
    """One method on one set of questions."""

    correct: np.ndarray  # (questions,) or (questions, samples) of 0 and 1
    cost: Cost  # of answering each question once


@dataclass(frozen=True)
class Evaluation:
    """A policy on held-out questions: its groups of rollouts and the score of each way to use it."""

    groups: list[Group]
    scores: dict[str, Score]
    references: dict[str, list[Reference | None]]  # of each estimator, by group
    levels: Sequence[str] = ()  # of each question
    seed: int = 0

    @property
    def answer_lost(self) -> float:
        """Share of the rollouts whose answer could not be read within its limits."""
        return sum(len(g.lost) for g in self.groups) / sum(len(g.rollouts) for g in self.groups)

    @property
    def outcomes(self) -> pd.DataFrame:
        """One row a method and question: method, seed, example, value (its share of right answers), level."""
        correct = {method: score.correct for method, score in self.scores.items()}
        frame = outcomes(correct, [g.id for g in self.groups], self.seed)
        return frame.assign(level=[*self.levels] * len(correct)) if self.levels else frame


def graded(task: Task, examples: Sequence[Example], found: Sequence[Group | Reference | None]) -> np.ndarray:
    """Which answers are right: (questions, rollouts) of 0 and 1 for groups, (questions, 1) for references."""
    answers = [f.answers if isinstance(f, Group) else (f.answer if f else None,) for f in found]
    return np.array([[task.correct(a, e.gold) for a in own] for own, e in zip(answers, examples, strict=True)], float)


def evaluate(
    policy: Model,
    task: Task,
    examples: Sequence[Example],
    group_size: int,
    estimators: Mapping[str, Estimator],
    seed: int,
) -> Evaluation:
    """Answer each question once in every way: one sample, one greedy answer, each estimator over `group_size` rollouts.

    `seed` is the one that the evaluation is for; its rollouts are drawn with the next. An answer that was lost to a
    limit is wrong here, as no answer is; `Evaluation.answer_lost` counts them.

    The score of `single` is over the `group_size` samples of each question (avg@k); its cost is that of one sample,
    measured in a call of its own. An estimator's cost holds the rollouts it reads: one for `OfFirst`.
    Raises ValueError for a task without answers that can be checked.
    """
    if not task.verifiable:
        raise ValueError(f"task={task.name!r} has no answers that can be checked; take arithmetic or a math task")
    ledger, sampling = policy.ledger, replace(task.sampling, seed=seed + 1)
    with ledger.measure() as one:
        sample_groups(policy, task, examples, 1, sampling)
    with ledger.measure() as once:
        greedy = sample_groups(policy, task, examples, 1, replace(sampling, temperature=0.0))
    with ledger.measure() as many:
        groups = sample_groups(policy, task, examples, group_size, sampling)
    scores = {
        "single": Score(graded(task, examples, groups), sum(one.values(), Cost())),
        "greedy": Score(graded(task, examples, greedy)[:, 0], sum(once.values(), Cost())),
    }
    references = {}
    for name, estimator in estimators.items():
        with ledger.measure() as reading:
            references[name] = estimator(groups)
        drawn = one if isinstance(estimator, OfFirst) else many
        cost = sum([*drawn.values(), *reading.values()], Cost())
        scores[name] = Score(graded(task, examples, references[name])[:, 0], cost)
    return Evaluation(groups, scores, references, [e.level for e in examples], seed)


def comparison_metrics(
    split: str, before: Evaluation, after: Evaluation, methods: Sequence[str] | None = None
) -> dict[str, float]:
    """Flat metrics of a run: each method (None: all) before and after, and the paired difference, see `stats.change`.

    `<split>_accuracy_*` is one sample; the other methods carry their name, as in `<split>_majority_accuracy_*`.
    """
    metrics = {f"{split}_questions": float(len(before.groups))}
    metrics |= {f"{split}_answer_lost_before": before.answer_lost, f"{split}_answer_lost_after": after.answer_lost}
    for method in before.scores if methods is None else methods:
        key = f"{split}_accuracy" if method == "single" else f"{split}_{method}_accuracy"
        first, last = before.scores[method].correct, after.scores[method].correct
        metrics |= change(key, first.mean(), last.mean(), paired_difference(first, last))
    return metrics


def side_by_side(examples: Sequence[Example], phases: Mapping[str, Evaluation | RubricScore]) -> pd.DataFrame:
    """One row a question: the first sample of each phase, the right answer, and each phase's mean score of it."""
    texts = {name: [valid(group.rollouts[0].text) for group in phase.groups] for name, phase in phases.items()}
    rows = {name: phase.outcomes.query("method in ['single', 'score']") for name, phase in phases.items()}
    about = {"question": [e.question for e in examples]} | texts | {"gold": [e.gold for e in examples]}
    return pd.DataFrame(about | {f"{name} score": own["value"].to_numpy() for name, own in rows.items()})


def cost_ratios(of: Score, over: Score) -> dict[str, float]:
    """What answering the same questions cost by `of` over `over`: in generated tokens, model FLOPs and seconds.

    The paper's 9 is G = 8 rollouts and one synthesis over one sample of the trained policy.
    """
    return {
        "tokens": of.cost.completion_tokens / over.cost.completion_tokens,
        "flops": of.cost.flops / over.cost.flops,
        "seconds": of.cost.seconds / over.cost.seconds,
    }


def preview(groups: Sequence[Group], rollouts: int = 4) -> pd.DataFrame:
    """One row a group: its question, its first rollouts as they are, and its agreement."""
    rows = [[g.question, *(r.text for r in g.rollouts[:rollouts]), round(agreement(g.answers), 2)] for g in groups]
    return pd.DataFrame(rows, columns=["question", *(f"rollout {i + 1}" for i in range(rollouts)), "agreement"])
