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

from cat_lib.measuring.evaluation import Evaluation, compute_ratios
from cat_lib.measuring.stats import (
    Estimate,
    bootstrap,
    holm,
    mcnemar,
    over_questions_and_seeds,
    paired_difference,
    standard_error,
    wilson,
)
from cat_lib.schema import Example, Task


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
    adjusted p agree that it is better.
    """
    rows, base = [], by_question(evaluations, baseline)
    for method in (m for m in evaluations[0].scores if m != baseline):
        scores = by_question(evaluations, method)
        estimate = over_questions_and_seeds(scores - base, paired=True)
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
            }
        )
    table = adjusted(pd.DataFrame(rows), "method", "p")
    return table.assign(beats=(table["difference_low"] > 0) & (table["p_holm"] < 0.05))


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
    Intervals are bootstraps over questions, each with all its seeds; n counts the answers of all seeds.
    """
    rows = []
    for other in (m for m in evaluations[0].references if m not in (method, "gold")):
        both, parted, won, lost = (np.zeros((len(examples), len(evaluations))) for _ in range(4))
        for s, e in enumerate(evaluations):
            for i, (a, b) in enumerate(zip(e.references[method], e.references[other], strict=True)):
                if a and b and a.answer is not None and b.answer is not None:
                    both[i, s], parted[i, s] = 1, a.answer != b.answer
                    won[i, s] = parted[i, s] and task.correct(a.answer, examples[i].gold)
                    lost[i, s] = parted[i, s] and task.correct(b.answer, examples[i].gold)
        row: dict[str, object] = {"method": other, **_share("disagreement", parted, both)}
        row |= _share("right_when_disagreeing", won, parted)
        row["other_right"] = float(lost.sum() / parted.sum()) if parted.any() else None
        rows.append(row)
    return pd.DataFrame(rows)


def right_when_all_wrong(
    evaluations: Sequence[Evaluation], examples: Sequence[Example], task: Task, method: str = "synthesis"
) -> Estimate:
    """Share of all questions on which no rollout is right and the reference is (the paper: about 1 %)."""
    hits = [
        [
            not any(task.correct(a, example.gold) for a in group.answers)
            and bool(reference and task.correct(reference.answer, example.gold))
            for group, reference, example in zip(e.groups, e.references[method], examples, strict=True)
        ]
        for e in evaluations
    ]
    estimate = over_questions_and_seeds(np.array(hits, dtype=float))
    return replace(estimate, low=max(0.0, estimate.low))


def cost_ratios(before: Evaluation, after: Evaluation, methods: Sequence[str]) -> pd.DataFrame:
    """A question's cost by each method of `before` over one sample of `after`: index method; tokens, flops, seconds."""
    rows = {m: list(compute_ratios(after.scores["single"], before.scores[m]).values()) for m in methods}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["tokens", "flops", "seconds"])


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
        gain = over_questions_and_seeds(single - base, paired=True)
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
            left = over_questions_and_seeds(single - bought, paired=True)
            row |= {"baseline": bought.mean(), "over_baseline": left.mean}
            row |= {"over_baseline_low": left.low, "over_baseline_high": left.high}
            row["over_baseline_p"] = paired_difference(bought.mean(axis=0), single.mean(axis=0)).p
        rows.append(row)
    table = adjusted(pd.DataFrame(rows), "method", "p")
    return adjusted(table, "method", "over_baseline_p") if "over_baseline_p" in table else table


def adjusted(table: pd.DataFrame, by: str | list[str], p: str) -> pd.DataFrame:
    """With a column `<p>_holm`: the p-values of the column as one family; rows without one stay without."""
    names = table[by] if isinstance(by, str) else table[by].agg(" ".join, axis=1)
    known = table[p].notna()
    return table.assign(**{f"{p}_holm": names.map(holm(dict(zip(names[known], table.loc[known, p], strict=True))))})


def interval(name: str, estimate: Estimate) -> dict[str, float]:
    """The estimate as columns `name`, low, high; the limits of an accuracy are cut to [0, 1]."""
    low, high = (
        (max(0.0, estimate.low), min(1.0, estimate.high)) if name == "accuracy" else (estimate.low, estimate.high)
    )
    return {name: estimate.mean, "low": low, "high": high}


def _share(name: str, hits: np.ndarray, tried: np.ndarray) -> dict[str, float | int | None]:
    """hits and tried, (questions, seeds) of 0 and 1, as a share with its bootstrap limits over questions."""
    n, of_question, tries = int(tried.sum()), hits.sum(axis=1), tried.sum(axis=1)
    if n == 0:
        return {name: None, f"{name}_low": None, f"{name}_high": None, f"{name}_n": 0}

    def share(drawn: np.ndarray) -> float:
        return float(of_question[drawn].sum() / tries[drawn].sum()) if tries[drawn].any() else float("nan")

    estimate = bootstrap(len(tries), share)
    if of_question.sum() in (0, n):  # all or none: resampling shows no spread
        questions = int((tries > 0).sum())
        estimate = wilson(questions if of_question.any() else 0, questions)
    return {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high, f"{name}_n": n}
