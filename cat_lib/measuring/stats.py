"""Intervals, paired tests, families of tests and power, over scipy and statsmodels.

The unit is the question: several samples of one are not independent. Where several seeds were trained, the seed is
a second unit (`over_questions_and_seeds`) or the only one (`over_seeds`).
Left out until it is needed: power over seeds (`detectable` is for one run), more than two crossed units.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from statsmodels.stats import contingency_tables, multitest
from statsmodels.stats import power as sm_power

_LEVEL = 0.95
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Estimate:
    """A number over n units with the limits of its 95 % interval; `p` where it is a paired difference."""

    value: float
    low: float
    high: float
    n: int
    p: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}], n={self.n}"

    def flat(self, key: str) -> dict[str, float]:
        """As metrics of a run: the value under `key`, and its limits."""
        return {key: self.value, f"{key}_low": self.low, f"{key}_high": self.high}

    @property
    def outcome(self) -> str:
        """ "above" or "below" for a difference that is `decided`, else "undecided"."""
        return ("above" if self.value > 0 else "below") if decided(self.low, self.high, self.p) else "undecided"


def decided(low: float, high: float, p: float | None) -> bool:
    """The one rule: a difference is called one if its interval leaves out zero and its Holm-adjusted p is below 0.05.

    Of a single comparison the adjusted p is p itself. What is NaN or was not tested decides nothing.
    """
    return (low > 0 or high < 0) and p is not None and p < 0.05


def change(key: str, before: float, after: float, difference: Estimate) -> dict[str, float]:
    """As metrics of a run: `<key>_before`, `_after`, and `_difference` with `_low`, `_high` and `_p`."""
    p = 1.0 if difference.p is None else difference.p
    ends = {f"{key}_before": float(before), f"{key}_after": float(after)}
    return ends | difference.flat(f"{key}_difference") | {f"{key}_difference_p": p}


def mean_interval(scores: ArrayLike) -> Estimate:
    """Mean of one score a question, with Student's interval; of one 0/1 outcome a question, with Wilson's.

    scores: (n,) or (n, samples), which is averaged first. Of outcomes near 0 or 1 Student's interval leaves [0, 1] and
    covers too little (86 % for 96 questions at 0.95, computed; Wilson's 94 %), and says that 20 of 20 is certain.
    Differences of outcomes are no outcomes, even if all are 0 or 1: `paired_difference`.
    Raises ValueError for fewer than 2 questions or a value that is not finite.
    """
    values = _per_question(scores)
    return wilson(int(values.sum()), len(values)) if np.isin(values, (0, 1)).all() else _student(values)


def _student(values: np.ndarray) -> Estimate:
    n, mean = len(values), float(values.mean())
    if np.ptp(values) == 0 and mean in (-1, 0, 1):  # each question was won, or lost, or none: no spread to measure
        most = wilson(0, n).high  # the share that may be otherwise elsewhere, in either direction
        return Estimate(mean, max(mean - most, -1.0), min(mean + most, 1.0), n)
    margin = float(stats.t.ppf((1 + _LEVEL) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Estimate(mean, mean - margin, mean + margin, n)


def wilson(successes: int, n: int) -> Estimate:
    """Share of successes among n independent trials, with Wilson's score interval (Wilson 1927; scipy).

    Raises ValueError if n is below 1 or successes is not within 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes={successes}, n={n}: allowed is n of 1 or more and 0 <= successes <= n")
    limits = stats.binomtest(successes, n).proportion_ci(_LEVEL, "wilson")
    return Estimate(successes / n, float(limits.low), float(limits.high), n)


def pass_at_k(correct: ArrayLike, k: int) -> np.ndarray:
    """Chance that one of k samples is right, question by question: 1 - C(n-c, k) / C(n, k), unbiased.

    correct: (questions, n) of 0/1, c of the n right. Returns (questions,), for `mean_interval`.
    Raises ValueError for k outside 1..n, another shape, or a value that is not 0/1. Source: Chen et al. 2021, eq. 1.
    """
    values = _outcomes(correct, "correct")
    if values.ndim != 2:
        raise ValueError(f"correct has shape {values.shape}; needed is (questions, samples)")
    n = values.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k={k}: allowed is 1 to {n}, the samples of a question; draw more samples for a larger k")
    # k drawn of n without replacement, c of them right: the binomials themselves would overflow
    return np.asarray(stats.hypergeom.sf(0, n, values.sum(axis=1), k), dtype=float)


def paired_difference(before: ArrayLike, after: ArrayLike, seed: int = 0) -> Estimate:
    """Mean of after - before over the same questions: Student's interval and the sign-flip permutation test.

    before, after: (n,) or (n, samples), averaged per question first.
    Raises ValueError if the numbers of questions differ, or as `mean_interval`.
    """
    a, b = _per_question(before), _per_question(after)
    if len(a) != len(b):
        raise ValueError(f"paired scores need the same questions: {len(a)} before and {len(b)} after")
    differences = b - a
    if not differences.any():
        return replace(_student(differences), p=1.0)
    test = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(seed)
    )
    return replace(_student(differences), p=float(test.pvalue))


def over_seeds(differences: Sequence[float]) -> Estimate:
    """Mean of one number a seed, with Student's interval over seeds: wide for three, and honest about it."""
    values = _per_question(differences)  # of any metric: what is known of shares does not hold
    return _student(values) if values.any() else Estimate(0.0, 0.0, 0.0, len(values))


def over_questions_and_seeds(scores: ArrayLike, paired: bool = False) -> Estimate:
    """Mean with a 95 % interval for new questions AND new seeds: both are random, and crossed.

    scores: (seeds, questions), one score each (samples averaged before), the same questions in every row; for a
    paired comparison pass after - before, and `paired`. `n` of the result is the number of questions.
    One seed falls back to `mean_interval` over questions: that interval then says nothing about other seeds. So do
    scores that are all equal, as neither unit then shows a spread; differences of 0 get Wilson's limit on both sides.

    Two-way layout without replication: the variance of the mean is (MS_q + MS_s - MS_qs) / (Q S). A negative
    variance component counts as 0 (MS_q and MS_s are taken as at least MS_qs), which can only widen the interval.
    The quantile is the mean of Student's with Q - 1 and S - 1 degrees of freedom, weighted by MS_q and MS_s (Cochran
    1964). Satterthwaite's degrees of freedom were tried first: they swing with the few seeds and covered 92.3 % at
    worst with 3 seeds, 87.6 % with 2.

    Measured coverage, normal scores, 20 and 100 questions, residual variance 0.1, 1 and 5 times that of questions,
    the seeds' part of the variance of the mean 0 to 100 times the rest (40,000 draws each): 94.0-100 % with 2 seeds,
    94.6-99.7 % with 3, 94.8-98.0 % with 5. It is conservative (above 97 %) where few seeds differ little. Seeds from
    a flat (uniform) distribution are covered less, as by any Student's interval: 92.0 % with 3, 92.9 % with 5.
    Raises ValueError for no seeds, rows of unequal length, fewer than 2 questions, or a value that is not finite.
    """
    try:
        values = np.asarray(scores, dtype=float)
    except ValueError as error:
        raise ValueError(
            f"scores are ragged or no numbers ({error}); give one row a seed, each with the same questions"
        ) from error
    if values.shape[:1] == (0,):
        raise ValueError("seeds is empty; give at least one, e.g. seeds=[0]")
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError(f"scores have shape {values.shape}; needed is (seeds, questions) with at least 2 questions")
    if not np.isfinite(values).all():
        seed, question = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(
            f"scores[{seed}, {question}] (seed, question) is {values[seed, question]}; "
            "score it, or leave that question out of every seed"
        )
    s, q = values.shape
    by_question, by_seed, mean = values.mean(axis=0), values.mean(axis=1, keepdims=True), float(values.mean())
    if s == 1 or np.ptp(values) == 0:
        return _student(by_question) if paired else mean_interval(by_question)
    ms_rest = float(((values - by_question - by_seed + mean) ** 2).sum()) / ((q - 1) * (s - 1))
    ms_question = max(s * float(by_question.var(ddof=1)), ms_rest)
    ms_seed = max(q * float(by_seed.var(ddof=1)), ms_rest)
    t_question, t_seed = stats.t.ppf((1 + _LEVEL) / 2, [q - 1, s - 1])
    quantile = (ms_question * t_question + ms_seed * t_seed) / (ms_question + ms_seed)
    margin = float(quantile * np.sqrt((ms_question + ms_seed - ms_rest) / (q * s)))
    return Estimate(mean, mean - margin, mean + margin, q)


def mcnemar(before: ArrayLike, after: ArrayLike) -> float:
    """Exact two-sided p of McNemar's test: did as many questions turn right as turned wrong?

    before, after: (n,) of 0/1, one outcome a question (for shares of several samples use `paired_difference`).
    Raises ValueError for a value that is not 0/1, or if the shapes differ or are not (n,) with n of 1 or more.
    """
    a, b = _outcomes(before, "before"), _outcomes(after, "after")
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"need one outcome a question, the same questions: shapes {a.shape} before, {b.shape} after")
    table = [[int(((a == x) & (b == y)).sum()) for y in (0, 1)] for x in (0, 1)]
    return float(contingency_tables.mcnemar(table, exact=True).pvalue)


def holm(p: Mapping[Name, float]) -> dict[Name, float]:
    """Holm's adjusted p of every test of a family (Holm 1979; statsmodels): below 0.05 holds for all at once.

    p: name -> unadjusted p; give every test that was run, not the promising ones.
    Raises ValueError for an empty family, or a p that is NaN or outside 0..1, with its name.
    """
    if not p:
        raise ValueError("the family of tests is empty; give at least one p, e.g. {'accuracy': 0.03}")
    for name, value in p.items():
        if not 0 <= value <= 1:  # NaN as well
            raise ValueError(f"p of {name!r} is {value}: allowed is 0 to 1; rerun that test or take it out by name")
    adjusted = multitest.multipletests(list(p.values()), method="holm")[1]
    return dict(zip(p, map(float, adjusted), strict=True))


def detectable(n: int, spread: float, power: float = 0.8) -> float:
    """Smallest mean paired difference over n questions that a two-sided 5 % paired t-test finds with that power.

    spread: standard deviation of the per-question differences, in units of the score (say from a pilot). For 0/1
    outcomes that differ on a share of the questions take sqrt(share), its upper limit: the exact McNemar test then
    finds the result with 78-84 % instead of 80 % (computed, n 50 to 500, share 0.1 to 0.5), and a result above the
    share itself cannot occur, so n is too small. It is about questions: whether another seed would show the
    difference is not in it. Source: statsmodels TTestPower.
    Raises ValueError for n below 5, a spread that is not positive and finite, or a power not within 0.05..1.
    """
    if n < 5:  # below it the solver does not converge for every power
        raise ValueError(f"n={n}: allowed is 5 questions or more")
    if not 0 < spread < np.inf:
        raise ValueError(f"spread={spread}: allowed is a positive number, the deviation of the paired differences")
    if not 1 - _LEVEL < power < 1:
        raise ValueError(f"power={power}: allowed is above {1 - _LEVEL:.2f} and below 1, e.g. 0.8")
    return float(sm_power.TTestPower().solve_power(nobs=n, alpha=1 - _LEVEL, power=power)) * spread


def bootstrap(n: int, statistic: Callable[[np.ndarray], float], seed: int = 0, resamples: int = 2000) -> Estimate:
    """A statistic of n units with its 95 % percentile bootstrap interval.

    `statistic` takes the indices (n,) of the units drawn; a resample on which it is NaN is left out.
    Raises ValueError for fewer than 2 units.
    """
    if n < 2:
        raise ValueError(f"a bootstrap over {n} units says nothing; at least 2 are needed")
    drawn = np.random.default_rng(seed).integers(0, n, (resamples, n))
    low, high = np.nanpercentile([*map(statistic, drawn)], [100 * (1 - _LEVEL) / 2, 100 * (1 + _LEVEL) / 2])
    return Estimate(statistic(np.arange(n)), float(low), float(high), n)


def _per_question(scores: ArrayLike) -> np.ndarray:
    values = np.asarray(scores, dtype=float)
    values = values.mean(axis=1) if values.ndim == 2 else values
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"need finite scores of at least 2 questions, got shape {np.shape(scores)}")
    return values


def _outcomes(values: ArrayLike, name: str) -> np.ndarray:
    outcomes = np.asarray(values, dtype=float)
    wrong = outcomes[~np.isin(outcomes, (0, 1))]
    if wrong.size:
        raise ValueError(f"{name} holds {wrong[0]}: allowed is 0 or 1 (or False, True); grade each answer first")
    return outcomes.astype(int)
