"""Intervals and paired tests, over scipy. The unit is the question: several samples of one are not independent.

Left out until it is needed: families of tests, power.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over n units with the limits of its 95 % interval; `p` where it is a paired difference."""

    mean: float
    low: float
    high: float
    n: int
    p: float | None = None

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}], n={self.n}"

    @property
    def conclusive(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def mean_interval(scores: ArrayLike) -> Estimate:
    """Mean of one score a question, with Student's interval.

    scores: (n,) or (n, samples), which is averaged first. Scores that are all equal have no spread to measure: a
    share of successes then gets Wilson's interval, so that 20 of 20 is not reported as certain.
    Raises ValueError for fewer than 2 questions or a value that is not finite.
    """
    values = _per_question(scores)
    n, mean = len(values), float(values.mean())
    if np.ptp(values) == 0 and mean in (0.0, 1.0):
        wilson = stats.binomtest(round(mean * n), n).proportion_ci(_LEVEL, "wilson")
        return Estimate(mean, float(wilson.low), float(wilson.high), n)
    margin = float(stats.t.ppf((1 + _LEVEL) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Estimate(mean, mean - margin, mean + margin, n)


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
        return Estimate(0.0, 0.0, 0.0, len(a), 1.0)
    estimate = mean_interval(differences)
    test = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(seed)
    )
    return Estimate(estimate.mean, estimate.low, estimate.high, estimate.n, float(test.pvalue))


def over_seeds(differences: Sequence[float]) -> Estimate:
    """Mean of one number a seed, with Student's interval over seeds: wide for three, and honest about it."""
    return mean_interval(np.asarray(differences, dtype=float))


def bootstrap(n: int, statistic: Callable[[np.ndarray], float], seed: int = 0, resamples: int = 2000) -> Estimate:
    """A statistic of n units with its 95 % percentile bootstrap interval.

    `statistic` takes the indices (n,) of the units drawn; a resample on which it is NaN is left out.
    Raises ValueError for fewer than 2 units.
    """
    if n < 2:
        raise ValueError(f"a bootstrap over {n} units says nothing; at least 2 are needed")
    rng = np.random.default_rng(seed)
    values = np.array([statistic(rng.integers(0, n, n)) for _ in range(resamples)])
    low, high = np.nanpercentile(values, [100 * (1 - _LEVEL) / 2, 100 * (1 + _LEVEL) / 2])
    return Estimate(statistic(np.arange(n)), float(low), float(high), n)


def _per_question(scores: ArrayLike) -> np.ndarray:
    values = np.asarray(scores, dtype=float)
    values = values.mean(axis=1) if values.ndim == 2 else values
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"need finite scores of at least 2 questions, got shape {np.shape(scores)}")
    return values
