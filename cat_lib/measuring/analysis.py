"""What experiments ask of evaluations and groups of rollouts, as outcomes and tables of `measuring.tables`.

Gold answers are read here, after the fact; nothing feeds a reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from cat_lib.ledger import Cost
from cat_lib.measuring.evaluation import Evaluation, graded
from cat_lib.measuring.stats import Estimate, bootstrap, over_questions_and_seeds, paired_difference, pass_at_k, wilson
from cat_lib.measuring.tables import compare, crossed, outcomes, summary, table
from cat_lib.method.estimators import voting
from cat_lib.schema import Estimator, Example, Group, Reference, Task

STATES = ["never", "sometimes", "mostly", "always"]
FATES = ["learned", "sharpened", "corrupted", "unchanged"]


def method_table(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """One row a method, over the evaluations of one policy, one a seed: the share of questions it answers right.

    More columns: standard_error (over questions, the bar that the paper prints: plus or minus one covers about 68 %),
    no_answer (share of references without a readable answer, or of samples), and a question's cost: tokens (generated),
    gflops, seconds.
    """
    frame = pd.concat([e.outcomes for e in evaluations])
    rows = []
    for method, part in frame.groupby("method", sort=False):
        scores, cost = crossed(part), sum((e.scores[method].cost for e in evaluations), Cost())
        kept = method == "single" or method in evaluations[0].references  # not the greedy answers
        no_answer = pd.isna(_answers(evaluations, method)).mean() if kept else None
        row = {"standard_error": scores.mean().sem(), "no_answer": no_answer}
        spent = {"tokens": cost.completion_tokens, "gflops": cost.flops / 1e9, "seconds": cost.seconds}
        rows.append(row | {unit: of_all / scores.size for unit, of_all in spent.items()})
    return pd.concat([summary(frame), pd.DataFrame(rows)], axis=1)


def _answers(evaluations: Sequence[Evaluation], method: str) -> np.ndarray:
    """An estimator's answers, (questions, seeds); None is none. Of `single` those of all rollouts, (seeds, ...)."""
    if method == "single":
        return np.array([[g.answers for g in e.groups] for e in evaluations], object)
    return np.array([[r and r.answer for r in e.references[method]] for e in evaluations], object).T


def disagreements(evaluations: Sequence[Evaluation], method: str = "synthesis") -> pd.DataFrame:
    """How often `method` departs from each other estimator, and who is right then (table 1 of the paper).

    Over the questions of all seeds, those where both have an answer. Three rows an estimator, by the column `score`:
    disagreement (share of them), right_when_disagreeing (of those), and other_right (the other's share of the same).
    Intervals are bootstraps over questions, each with all its seeds; n counts the answers of all seeds.
    """
    tables, ours = [], _answers(evaluations, method)
    for other in (m for m in evaluations[0].references if m not in (method, "gold")):
        theirs = _answers(evaluations, other)
        both = pd.notna(ours) & pd.notna(theirs)
        parted = both & (ours != theirs)
        won, lost = (parted * np.array([e.scores[m].correct for e in evaluations]).T for m in (method, other))
        shares = ("disagreement", parted, both), ("right_when_disagreeing", won, parted), ("other_right", lost, parted)
        tables += [table({other: _share(hits, tried)}, score=name) for name, hits, tried in shares]
    return pd.concat(tables, ignore_index=True)


def _share(hits: np.ndarray, tried: np.ndarray) -> Estimate:
    """hits and tried, (questions, seeds) of 0 and 1, as a share with its bootstrap limits over questions."""
    n, of_question, tries = int(tried.sum()), hits.sum(axis=1), tried.sum(axis=1)
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    if of_question.sum() in (0, n):  # all or none: resampling shows no spread
        questions = int((tries > 0).sum())
        return replace(wilson(questions if of_question.any() else 0, questions), n=n)

    def share(drawn: np.ndarray) -> float:
        return float(of_question[drawn].sum() / tries[drawn].sum()) if tries[drawn].any() else float("nan")

    return replace(bootstrap(len(tries), share), n=n)


def right_when_all_wrong(evaluations: Sequence[Evaluation], method: str = "synthesis") -> Estimate:
    """Share of all questions on which no rollout is right and the reference is (the paper: about 1 %)."""
    none_right = [~e.scores["single"].correct.any(axis=1) for e in evaluations]
    hits = [none * e.scores[method].correct for none, e in zip(none_right, evaluations, strict=True)]
    estimate = over_questions_and_seeds(hits)
    return replace(estimate, low=max(0.0, estimate.low))


def by_agreement(task: Task, examples: Sequence[Example], groups: Sequence[Group]) -> pd.DataFrame:
    """How often the majority is right, by how large it is: one row a range of its share of the group."""
    shares = np.array([voting.agreement(g.answers) for g in groups])
    right = graded(task, examples, voting.majority(groups))[:, 0]
    stops = [0, 0.25, 0.5, 0.75, 1]
    ranges = pd.cut(shares, stops, labels=[f"{a} to {b}" for a, b in pairwise(stops)], include_lowest=True)
    parts = pd.Series(right).groupby(ranges, observed=True)
    return table({str(name): wilson(int(part.sum()), len(part)) for name, part in parts})


def departures(references: Mapping[str, Sequence[Reference | None]]) -> pd.DataFrame:
    """Share of questions on which two estimators give different answers (none counts as an answer): a square table."""
    answers = {name: [r and r.answer for r in found] for name, found in references.items()}
    return pd.DataFrame(
        {a: {b: fmean(x != y for x, y in zip(answers[a], answers[b], strict=True)) for b in answers} for a in answers}
    )


def readings(
    task: Task, examples: Sequence[Example], groups: Sequence[Group], estimators: Mapping[str, Estimator], **about: Any
) -> pd.DataFrame:
    """Outcomes of the same rollouts, read in several ways; `single` is the mean over the rollouts themselves."""
    scores = {"single": graded(task, examples, groups)}
    scores |= {name: graded(task, examples, estimator(groups)) for name, estimator in estimators.items()}
    return outcomes(scores, [e.id for e in examples], **about)


def scaling(
    task: Task,
    examples: Sequence[Example],
    groups: Sequence[Group],
    estimators: Mapping[str, Estimator],
    sizes: Sequence[int],
    most: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Outcomes by group size `k`, averaged over at most `most` disjoint subsamples of the same rollouts.

    `pass@k`, the unbiased share of groups of that size with a right rollout, is the limit of any voting.
    Raises ValueError for no size and for one that a group does not have, before anything is computed.
    """
    sizes = sorted(set(sizes))
    if not sizes or most < 1:
        raise ValueError(f"sizes={sizes}, subsamples={most}: give at least one size, and 1 subsample or more")
    voting.first(groups, sizes[-1])
    right, ids, frames = graded(task, examples, groups), [e.id for e in examples], []
    for k in sizes:
        starts = range(0, min(most, right.shape[1] // k) * k, k)
        parts = [voting.first(groups, k, start) for start in starts]
        scores = {
            name: np.hstack([graded(task, examples, estimator(part)) for part in parts])
            for name, estimator in estimators.items()
        }
        frames.append(outcomes(scores, ids, seed, k=k, subsamples=len(parts)))
        frames.append(outcomes({"pass@k": pass_at_k(right, k)}, ids, seed, k=k, subsamples=1))
    return pd.concat(frames, ignore_index=True)


def growth(frame: pd.DataFrame, middle: int = 8) -> pd.DataFrame:
    """What larger groups bring by the outcomes of `scaling`: smallest size to `middle`, and from there to the largest.

    The column `step` names the two sizes, as in "8 to 32". Raises ValueError for fewer than two sizes.
    """
    sizes = sorted(frame["k"].unique())
    stops = sorted({sizes[0], sizes[-1], *(s for s in sizes if s == middle)})
    if len(stops) < 2:
        raise ValueError(f"sizes={sizes}: growth needs two sizes or more")
    read = frame[frame["method"] != "pass@k"]
    steps = {large: small for small, large in pairwise(stops)}
    grown = compare(read, steps, "k", ["method"]).sort_values("k", kind="stable", ignore_index=True)
    return grown.assign(step=[f"{steps[k]} to {k}" for k in grown["k"]])


def pass_outcomes(task: Task, examples: Sequence[Example], groups: Sequence[Group], **about: Any) -> pd.DataFrame:
    """Outcomes of pass@k for k = 1, 2, 4 ... and the group size; the column `k` says which."""
    right, ids = graded(task, examples, groups), [e.id for e in examples]
    ks = sorted({right.shape[1], *(2**i for i in range(right.shape[1].bit_length()))})
    return pd.concat([outcomes({"pass@k": pass_at_k(right, k)}, ids, k=k, **about) for k in ks], ignore_index=True)


def states(task: Task, examples: Sequence[Example], groups: Sequence[Group]) -> np.ndarray:
    """How often each question is answered right, (questions,) of STATES: mostly is more than half of its rollouts."""
    share = graded(task, examples, groups).mean(axis=1)
    return np.select([share == 0, share <= 0.5, share < 1], STATES[:3], STATES[3])


def transitions(
    task: Task, examples: Sequence[Example], before: Sequence[Group], after: Sequence[Group]
) -> pd.DataFrame:
    """Questions by their state before (rows) and after (columns): the matrix that `fates` sums up."""
    was, now = (states(task, examples, groups) for groups in (before, after))
    return pd.crosstab(was, now).reindex(index=STATES, columns=STATES, fill_value=0).rename_axis("before", axis=0)


def fates(
    task: Task, examples: Sequence[Example], before: Sequence[Group], after: Sequence[Group], method: str, seed: int = 0
) -> pd.DataFrame:
    """Outcomes of what became of each question, 1 for its own and 0 for the others; the column `fate` says which.

    learned: never right before, and sometimes or more after; sharpened: right before, and now in a higher state;
    corrupted: in a lower one; unchanged. Chance moves questions too, both ways: compare with a second draw of the
    untrained policy in the place of `after`.
    """
    was, now = (np.array([STATES.index(s) for s in states(task, examples, g)]) for g in (before, after))
    kinds = np.select([(was == 0) & (now > 0), now > was, now < was], FATES[:3], FATES[3])
    ids = [e.id for e in examples]
    return pd.concat([outcomes({method: kinds == fate}, ids, seed, fate=fate) for fate in FATES], ignore_index=True)


def lead(history: pd.DataFrame, by: float = 0.1, window: int = 3) -> dict[str, float]:
    """By how many steps the flip rate, which needs no label, says before label_accuracy falls that it will.

    `flip_rise`: the first step at which the mean flip rate of the last `window` logged steps is more than `by` above
    its lowest before; `label_fall`: the same of label_accuracy over those labelled, below its highest; `lead`: the
    second less the first. What did not happen is left out.
    """
    steps = {}
    history = history.reindex(columns=["step", "flip_rate", "label_accuracy", "labelled"])
    history["label_accuracy"] /= history["labelled"].fillna(1.0)
    for key, column, side in (("flip_rise", "flip_rate", 1), ("label_fall", "label_accuracy", -1)):
        known = history.reindex(columns=["step", column]).dropna()
        mean = side * known[column].rolling(window).mean()
        if (moved := mean > mean.cummin() + by).any():
            steps[key] = float(known["step"][moved].iloc[0])
    return steps | ({"lead": steps["label_fall"] - steps["flip_rise"]} if len(steps) == 2 else {})


def newly_solved(
    task: Task, examples: Sequence[Example], before: Sequence[Group], again: Sequence[Group], after: Sequence[Group]
) -> dict[str, Estimate]:
    """Of the questions that `before` never solved: the share that `after` solves at least once, and that `again` does.

    `again` are as many fresh rollouts of the untrained policy. Rare successes appear in any second draw, so new
    ability is what `after` has beyond `again`: `beyond` is that paired difference. Empty where nothing was unsolved.
    """
    solved = np.array([graded(task, examples, groups).max(axis=1) for groups in (before, again, after)])
    second, trained = solved[1:, solved[0] == 0]
    if len(second) < 2:
        return {}
    shares = {name: wilson(int(own.sum()), len(own)) for name, own in (("again", second), ("after", trained))}
    return shares | {"beyond": paired_difference(second, trained)}
