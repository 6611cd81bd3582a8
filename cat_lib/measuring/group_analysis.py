"""Tables over groups of rollouts: what estimators pick, how accuracy grows with the group, what a policy can do at all.

Gold answers are read here, after the fact; nothing feeds a reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean

import numpy as np
import pandas as pd

from cat_lib.measuring.analysis import adjusted, interval
from cat_lib.measuring.evaluation import Evaluation, sample_groups
from cat_lib.measuring.stats import Estimate, mean_interval, paired_difference, pass_at_k, wilson
from cat_lib.method.estimators import voting
from cat_lib.schema import Estimator, Example, Group, Model, Reference, Sampling, Task

References = Mapping[str, Sequence[Reference | None]]  # estimator to its reference of each group


def by_agreement(groups: Sequence[Group], examples: Sequence[Example], task: Task) -> pd.DataFrame:
    """How often the majority is right, by how large it is: kind (share of the group), accuracy, low, high, n."""
    edges = [0.0, 0.25, 0.5, 0.75, 1.0]
    shares = [voting.agreement(g.answers) for g in groups]
    right = _right(task, voting.majority(groups), examples)
    rows = []
    for low, high in pairwise(edges):
        part = [int(r) for r, share in zip(right, shares, strict=True) if low < share <= high or (low == share == 0)]
        if part:
            estimate = wilson(sum(part), len(part))
            rows.append({"kind": f"{low:g} to {high:g}", **interval("accuracy", estimate), "n": estimate.n})
    return pd.DataFrame(rows)


def picks(group: Group, index: int, references: References, gold: str, task: Task) -> pd.DataFrame:
    """What each estimator makes of one group: estimator, text, answer, and whether it is right."""
    rows = []
    for name, found in references.items():
        r = found[index]
        answer = r.answer if r else None
        rows.append(
            (name, r.text.strip() if r else None, answer, group.answers.count(answer), task.correct(answer, gold))
        )
    return pd.DataFrame(rows, columns=["estimator", "text", "answer", "rollouts with it", "right"])


def departures(references: References) -> pd.DataFrame:
    """Share of questions on which two estimators give different answers (none counts as an answer): a square table."""
    answers = {name: [r.answer if r else None for r in found] for name, found in references.items()}
    return pd.DataFrame(
        {a: {b: fmean(x != y for x, y in zip(answers[a], answers[b], strict=True)) for b in answers} for a in answers}
    )


def limits(groups: Sequence[Group], examples: Sequence[Example], task: Task) -> pd.DataFrame:
    """What no selection can leave: one sample, and any of the G; kind, accuracy, low, high, n."""
    right = _rights(task, groups, examples)
    lines = {"one sample": mean_interval(right), "any of G (pass@G)": mean_interval(pass_at_k(right, right.shape[1]))}
    return pd.DataFrame({"kind": kind, **interval("accuracy", e), "n": e.n} for kind, e in lines.items())


def variants(
    groups: Sequence[Group], examples: Sequence[Example], task: Task, estimators: Mapping[str, Estimator]
) -> pd.DataFrame:
    """Estimators on the same rollouts: kind, accuracy, low, high, n, and the paired difference to the first of them.

    `difference`, `difference_low`, `difference_high`, `p` and `p_holm` are empty for the first.
    """
    scores = {name: np.array(_right(task, estimator(groups), examples)) for name, estimator in estimators.items()}
    first = next(iter(scores))
    rows = []
    for name, values in scores.items():
        estimate = mean_interval(values)
        row = {"kind": name, **interval("accuracy", estimate), "n": estimate.n}
        if name != first:
            d = paired_difference(scores[first], values)
            row |= {"difference": d.mean, "difference_low": d.low, "difference_high": d.high, "p": d.p}
        rows.append(row)
    return adjusted(pd.DataFrame(rows), "kind", "p") if len(rows) > 1 else pd.DataFrame(rows)


def scaling(
    groups: Sequence[Group],
    examples: Sequence[Example],
    task: Task,
    estimators: Mapping[str, Estimator],
    sizes: Sequence[int],
    most: int,
) -> dict[tuple[str, int], np.ndarray]:
    """(method, group size) to 0 and 1, (questions, subsamples): at most `most` disjoint subsamples of the rollouts.

    `pass@k`, the unbiased share of groups of that size with a right rollout, is the limit of any voting.
    Raises ValueError for no size and for one that a group does not have, before anything is computed.
    """
    sizes = sorted(set(sizes))
    if not sizes or most < 1:
        raise ValueError(f"sizes={sizes}, subsamples={most}: give at least one size, and 1 subsample or more")
    voting.first(groups, sizes[-1])
    right, scores = _rights(task, groups, examples), {}
    for size in sizes:
        starts = range(0, min(most, right.shape[1] // size) * size, size)
        for method, estimator in estimators.items():
            columns = [_right(task, estimator(voting.first(groups, size, start)), examples) for start in starts]
            scores[method, size] = np.array(columns).T
        scores["pass@k", size] = pass_at_k(right, size)[:, None]
    return scores


def scaling_table(scores: Mapping[tuple[str, int], np.ndarray]) -> pd.DataFrame:
    """One row a size and method: accuracy, low, high, n, subsamples."""
    return pd.DataFrame(
        {"method": method, "size": size, **interval("accuracy", e), "n": e.n, "subsamples": own.shape[1]}
        for (method, size), own in scores.items()
        for e in [mean_interval(own)]
    )


def growth(scores: Mapping[tuple[str, int], np.ndarray], middle: int = 8) -> pd.DataFrame:
    """What larger groups bring, paired by question: from the smallest size to `middle`, and from there to the largest.

    Columns: method, step ("8 to 32"), difference, difference_low, difference_high, p, n, p_holm.
    """
    sizes = sorted({size for _, size in scores})
    stops = sorted({sizes[0], sizes[-1], *(s for s in sizes if s == middle)})
    rows = []
    for small, large in pairwise(stops):
        for method in dict.fromkeys(m for m, _ in scores if m != "pass@k"):
            d = paired_difference(scores[method, small], scores[method, large])
            row = {"method": method, "step": f"{small} to {large}", "difference": d.mean}
            rows.append(row | {"difference_low": d.low, "difference_high": d.high, "p": d.p, "n": d.n, "seeds": 1})
    if not rows:
        raise ValueError(f"sizes={sizes}: growth needs two sizes or more")
    return adjusted(pd.DataFrame(rows), ["method", "step"], "p")


def pass_table(groups: Mapping[str, Sequence[Group]], examples: Sequence[Example], task: Task) -> pd.DataFrame:
    """pass@k of each phase's groups for k = 1, 2, 4 ... up to the group size: phase, k, accuracy, low, high, n."""
    rows = []
    for phase, own in groups.items():
        right = _rights(task, own, examples)
        for k in (2**i for i in range(right.shape[1].bit_length())):
            estimate = mean_interval(pass_at_k(right, k))
            rows.append({"phase": phase, "k": k, **interval("accuracy", estimate), "n": estimate.n})
    return pd.DataFrame(rows)


def newly_solved(
    before: Sequence[Group], again: Sequence[Group], after: Sequence[Group], examples: Sequence[Example], task: Task
) -> dict[str, Estimate]:
    """Of the questions that `before` never solved: the share that `after` solves at least once, and that `again` does.

    `again` are as many fresh rollouts of the untrained policy. Rare successes appear in any second draw, so new
    ability is what `after` has beyond `again`: `beyond` is that paired difference. Empty where nothing was unsolved.
    """

    def solved(groups: Sequence[Group]) -> np.ndarray:
        return _rights(task, groups, examples).any(axis=1).astype(float)

    unsolved = solved(before) == 0
    n = int(unsolved.sum())
    if n < 2:
        return {}
    second, trained = solved(again)[unsolved], solved(after)[unsolved]
    return {
        "again": wilson(int(second.sum()), n),
        "after": wilson(int(trained.sum()), n),
        "beyond": paired_difference(second, trained),
    }


def temperatures(
    model: Model,
    task: Task,
    examples: Sequence[Example],
    estimators: Mapping[str, Estimator],
    samplings: Mapping[str, Sampling],
    group_size: int,
) -> pd.DataFrame:
    """Rollouts drawn in each way, and what the estimators make of them.

    Columns: drawn, method, accuracy, low, high, n, agreement, distinct (answers a group); the method `single` is the
    mean over all rollouts, and difference, difference_low, difference_high, p, p_holm are each estimator minus it.
    """
    rows = []
    for drawn, sampling in samplings.items():
        groups = sample_groups(model, task, examples, group_size, sampling)
        known = {
            "agreement": fmean(voting.agreement(g.answers) for g in groups),
            "distinct": fmean(len({a for a in g.answers if a is not None}) for g in groups),
        }
        scores = {
            "single": [fmean(task.correct(a, e.gold) for a in g.answers) for g, e in zip(groups, examples, strict=True)]
        } | {name: _right(task, estimator(groups), examples) for name, estimator in estimators.items()}
        for method, values in scores.items():
            estimate = mean_interval(values)
            row = {"drawn": drawn, "method": method, **interval("accuracy", estimate), "n": estimate.n, **known}
            if method != "single":
                d = paired_difference(scores["single"], values)
                row |= {"difference": d.mean, "difference_low": d.low, "difference_high": d.high, "p": d.p}
            rows.append(row)
    return adjusted(pd.DataFrame(rows), ["drawn", "method"], "p") if estimators else pd.DataFrame(rows)


def _rights(task: Task, groups: Sequence[Group], examples: Sequence[Example]) -> np.ndarray:
    """(questions, rollouts) of True and False."""
    return np.array([[task.correct(a, e.gold) for a in g.answers] for g, e in zip(groups, examples, strict=True)])


def _right(task: Task, references: Sequence[Reference | None], examples: Sequence[Example]) -> list[float]:
    pairs = zip(references, examples, strict=True)
    return [float(reference is not None and task.correct(reference.answer, e.gold)) for reference, e in pairs]


def pass_differences(
    before: Mapping[str, Sequence[Group]],
    after: Mapping[str, Sequence[Group]],
    sets: Mapping[str, Sequence[Example]],
    task: Task,
) -> pd.DataFrame:
    """pass@1 and pass@n after minus before, paired by question: kind, difference, low, high, n, p, p_holm.

    pass@n, with n the samples drawn, is the share of questions solved at least once.
    """
    rows = []
    for name, examples in sets.items():
        first, last = (_rights(task, groups[name], examples) for groups in (before, after))
        for k in (1, first.shape[1]):
            d = paired_difference(pass_at_k(first, k), pass_at_k(last, k))
            rows.append({"kind": f"{name}, pass@{k}", **interval("difference", d), "n": d.n, "p": d.p})
    return adjusted(pd.DataFrame(rows), "kind", "p")


def plateau(phases: Mapping[str, Evaluation], methods: Sequence[str]) -> pd.DataFrame:
    """Each estimator minus one sample of the same policy, paired: kind, difference, low, high, n, p, p_holm."""
    rows = []
    for phase, evaluation in phases.items():
        for method in methods:
            d = paired_difference(evaluation.scores["single"].correct, evaluation.scores[method].correct)
            rows.append({"kind": f"{method}, {phase} training", **interval("difference", d), "n": d.n, "p": d.p})
    return adjusted(pd.DataFrame(rows), "kind", "p")
