"""Tables of the experiments: methods on the same rollouts, over several seeds, each number with n and its interval.

A seed draws new rollouts of the same questions, so both seed and question vary (`stats.over_questions_and_seeds`).
Comparisons are paired by question; p-values of one table are a family and adjusted by Holm's method. Everything here
reads gold answers, after the fact; nothing feeds a reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
import pandas as pd

from cat_lib.evaluation import Evaluation, comparison_metrics
from cat_lib.schema import Example, Task
from cat_lib.stats import (
    Estimate,
    holm,
    mcnemar,
    over_questions_and_seeds,
    paired_difference,
    standard_error,
    wilson,
)


def by_question(evaluations: Sequence[Evaluation], method: str) -> np.ndarray:
    """(seeds, questions): the share of right answers of a method, samples of one question averaged."""
    return np.array([np.reshape(e.scores[method].correct, (len(e.groups), -1)).mean(axis=1) for e in evaluations])


def method_table(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """One row a method, over the evaluations of one policy, one a seed.

    Columns: method, accuracy, low, high, standard_error (over questions, as the paper prints it), n, seeds, no_answer
    (share of references without a readable answer, or of samples), and a question's cost: tokens (generated), gflops,
    seconds.
    """
    rows = []
    for method in evaluations[0].scores:
        scores = by_question(evaluations, method)
        estimate = over_questions_and_seeds(scores)
        n, costs = len(scores[0]), [e.scores[method].cost for e in evaluations]
        rows.append(
            {
                "method": method,
                **interval("accuracy", estimate),
                "standard_error": standard_error(scores.mean(axis=0)),
                "n": n,
                "seeds": len(scores),
                "no_answer": _no_answer(evaluations, method),
                "tokens": fmean(c.completion_tokens for c in costs) / n,
                "gflops": fmean(c.flops for c in costs) / n / 1e9,
                "seconds": fmean(c.seconds for c in costs) / n,
            }
        )
    return pd.DataFrame(rows)


def versus(evaluations: Sequence[Evaluation], baseline: str) -> pd.DataFrame:
    """Each method minus `baseline`, paired by question.

    Columns: method, difference, difference_low, _high, n, seeds, p (permutation test, seeds averaged), p_holm, and
    mcnemar, the exact test on the first seed, where both give one answer a question. `beats`: the interval and the
    adjusted p agree that there is a difference.
    """
    rows, base = [], by_question(evaluations, baseline)
    for method in (m for m in evaluations[0].scores if m != baseline):
        scores = by_question(evaluations, method)
        estimate = over_questions_and_seeds(scores - base)
        test = paired_difference(base.mean(axis=0), scores.mean(axis=0))
        one_each = np.isin(scores[0], (0, 1)).all() and np.isin(base[0], (0, 1)).all()
        rows.append(
            {
                "method": method,
                "difference": estimate.mean,
                "difference_low": estimate.low,
                "difference_high": estimate.high,
                "n": len(base[0]),
                "seeds": len(base),
                "p": test.p,
                "mcnemar": mcnemar(base[0], scores[0]) if one_each else None,
                "conclusive": estimate.conclusive,
            }
        )
    table = _adjusted(pd.DataFrame(rows), "p")
    return table.assign(beats=table["conclusive"] & (table["p_holm"] < 0.05)).drop(columns="conclusive")


def _no_answer(evaluations: Sequence[Evaluation], method: str) -> float | None:
    if method == "single":
        return fmean(a is None for e in evaluations for g in e.groups for a in g.answers)
    if method not in evaluations[0].references:
        return None
    return fmean(r is None or r.answer is None for e in evaluations for r in e.references[method])


def by_level(evaluations: Sequence[Evaluation], examples: Sequence[Example]) -> pd.DataFrame:
    """One row a level and method: accuracy, low, high, n (questions of that level), seeds."""
    levels = np.array([e.level for e in examples])
    rows = []
    for level in dict.fromkeys(levels):
        for method in evaluations[0].scores:
            scores = by_question(evaluations, method)[:, levels == level]
            if scores.shape[1] > 1:
                estimate = over_questions_and_seeds(scores)
                rows.append(
                    {
                        "level": str(level),
                        "method": method,
                        **interval("accuracy", estimate),
                        "n": scores.shape[1],
                        "seeds": len(scores),
                    }
                )
    return pd.DataFrame(rows)


def disagreements(
    evaluations: Sequence[Evaluation], examples: Sequence[Example], task: Task, method: str = "synthesis"
) -> pd.DataFrame:
    """How often `method` departs from each other estimator, and who is right then (table 1 of the paper).

    Over the questions of all seeds, those where both have an answer. One row an estimator: disagreement (share,
    low, high, n), right_when_disagreeing (of those, low, high, n) and other_right (the other's share of the same).
    The intervals are Wilson's and take the seeds' questions as independent: a little too narrow.
    """
    rows = []
    for other in (m for m in evaluations[0].references if m not in (method, "gold")):
        both = [
            (a.answer, b.answer, example.gold)
            for e in evaluations
            for a, b, example in zip(e.references[method], e.references[other], examples, strict=True)
            if a and b and a.answer is not None and b.answer is not None
        ]
        parted = [(a, b, gold) for a, b, gold in both if a != b]
        row: dict[str, object] = {"method": other, **_share("disagreement", len(parted), len(both))}
        row |= _share("right_when_disagreeing", sum(task.correct(a, gold) for a, _, gold in parted), len(parted))
        row["other_right"] = fmean(task.correct(b, gold) for _, b, gold in parted) if parted else None
        rows.append(row)
    return pd.DataFrame(rows)


def right_when_all_wrong(
    evaluations: Sequence[Evaluation], examples: Sequence[Example], task: Task, method: str = "synthesis"
) -> Estimate:
    """Share of all questions on which no rollout is right and the reference is (the paper: about 1 %)."""
    hits = [
        not any(task.correct(a, example.gold) for a in group.answers)
        and bool(reference and task.correct(reference.answer, example.gold))
        for e in evaluations
        for group, reference, example in zip(e.groups, e.references[method], examples, strict=True)
    ]
    return wilson(sum(hits), len(hits))


def arm_table(
    before: Sequence[Evaluation], arms: Mapping[str, Sequence[Evaluation]], baselines: Mapping[str, str]
) -> pd.DataFrame:
    """One row an arm of training, over its evaluations after, one a seed, paired with `before`.

    Columns: method, accuracy (of one sample), low, high, n, seeds; difference, _low, _high, p, p_holm against one
    sample of the untrained policy; and where `baselines[arm]` names an estimator of `before`, its accuracy as
    `baseline` and one trained sample minus it as `over_baseline`, _low, _high, _p, _p_holm: what the same untrained
    model gets by paying the arm's estimator at test time.
    """
    rows: list[dict[str, object]] = []
    for arm, after in arms.items():
        single, base = by_question(after, "single"), by_question(before, "single")
        gain = over_questions_and_seeds(single - base)
        row: dict[str, object] = {
            "method": arm,
            **interval("accuracy", over_questions_and_seeds(single)),
            "n": single.shape[1],
            "seeds": len(single),
            "difference": gain.mean,
            "difference_low": gain.low,
            "difference_high": gain.high,
            "p": paired_difference(base.mean(axis=0), single.mean(axis=0)).p,
        }
        if arm in baselines:
            bought = by_question(before, baselines[arm])
            left = over_questions_and_seeds(single - bought)
            row |= {"baseline": bought.mean(), "over_baseline": left.mean}
            row |= {"over_baseline_low": left.low, "over_baseline_high": left.high}
            row["over_baseline_p"] = paired_difference(bought.mean(axis=0), single.mean(axis=0)).p
        rows.append(row)
    table = _adjusted(pd.DataFrame(rows), "p")
    return _adjusted(table, "over_baseline_p") if "over_baseline_p" in table else table


def arm_metrics(table: pd.DataFrame, before: Sequence[Evaluation], split: str = "heldout") -> dict[str, float]:
    """Flat metrics of `arm_table`: `<arm>_<split>_accuracy_before`, `_after`, `_difference`, `_low`, `_high`."""
    untrained = float(by_question(before, "single").mean())
    metrics: dict[str, float] = {
        f"{split}_questions": float(table["n"].iloc[0]),
        "seeds": float(table["seeds"].iloc[0]),
    }
    for row in table.itertuples():
        key = f"{row.method}_{split}_accuracy"
        metrics |= {f"{key}_before": untrained, f"{key}_after": row.accuracy, f"{key}_difference": row.difference}
        metrics |= {f"{key}_difference_low": row.difference_low, f"{key}_difference_high": row.difference_high}
    return metrics


def inference_metrics(methods: pd.DataFrame, versus: pd.DataFrame, parted: pd.DataFrame) -> dict[str, float]:
    """Flat metrics of the three tables: `<method>_accuracy`, its limits, `<method>_versus_majority`, departures."""
    metrics = {"heldout_questions": float(methods["n"].iloc[0]), "seeds": float(methods["seeds"].iloc[0])}
    for row in methods.itertuples():
        key = f"{row.method}_accuracy"
        metrics |= {key: row.accuracy, f"{key}_low": row.low, f"{key}_high": row.high}
        metrics |= {f"{row.method}_tokens": row.tokens, f"{row.method}_gflops": row.gflops}
    for row in versus.itertuples():
        key = f"{row.method}_versus_majority"
        metrics |= {key: row.difference, f"{key}_low": row.difference_low, f"{key}_high": row.difference_high}
        metrics |= {f"{key}_p_holm": row.p_holm}
    for row in parted.itertuples():
        metrics[f"synthesis_departs_from_{row.method}"] = row.disagreement
        if row.right_when_disagreeing_n:
            metrics[f"synthesis_right_departing_from_{row.method}"] = row.right_when_disagreeing
    return metrics


def gain_metrics(before: Evaluation, after: Evaluation) -> dict[str, float]:
    """`heldout_accuracy_before`, `_after`, `_difference`, `_low`, `_high`, `_p` of one sample, and the questions."""
    single = replace(before, scores={"single": before.scores["single"]})
    return comparison_metrics("heldout", single, after)


def findings(table: pd.DataFrame, baseline: str, column: str = "difference") -> str:
    """Which rows differ from the baseline, in words; who is undecided is said, and no winner claimed without evidence.

    table: columns method, n, seeds, `column`, `column`_low, _high, and p_holm (`column`_p_holm for other columns).
    """
    low, high = f"{column}_low", f"{column}_high"
    adjusted = "p_holm" if column == "difference" else f"{column}_p_holm"
    parts: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for _, row in table.dropna(subset=[column]).iterrows():
        decided = (row[low] > 0 or row[high] < 0) and row[adjusted] < 0.05
        kind = "undecided" if not decided else "better" if row[column] > 0 else "worse"
        parts[kind].append(f"{row.method} ({row[column]:+.3f} [{row[low]:.3f}, {row[high]:.3f}])")
    n, seeds = table["n"].iloc[0], table["seeds"].iloc[0]
    said = "; ".join(f"{kind}: {', '.join(found)}" for kind, found in parts.items() if found)
    return f"Against {baseline}, n = {n} questions, {seeds} seed{'s' if seeds > 1 else ''}: {said}."


def _adjusted(table: pd.DataFrame, p: str) -> pd.DataFrame:
    """With a column `<p>_holm`: the p-values of the column as one family; rows without one stay without."""
    family = table.dropna(subset=[p])
    return table.assign(**{f"{p}_holm": table["method"].map(holm(dict(zip(family["method"], family[p], strict=True))))})


def interval(name: str, estimate: Estimate) -> dict[str, float]:
    """The estimate as columns `name`, low, high; the limits of an accuracy are cut to [0, 1]."""
    low, high = (
        (max(0.0, estimate.low), min(1.0, estimate.high)) if name == "accuracy" else (estimate.low, estimate.high)
    )
    return {name: estimate.mean, "low": low, "high": high}


def _share(name: str, hits: int, n: int) -> dict[str, float | int | None]:
    if not n:
        return {name: None, f"{name}_low": None, f"{name}_high": None, f"{name}_n": 0}
    estimate = wilson(hits, n)
    return {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high, f"{name}_n": n}
