"""Intervals cover what they claim, tests reject as often as they claim, and small cases equal hand-worked values."""

from __future__ import annotations

from fractions import Fraction
from math import comb
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import special
from scipy import stats as scipy_stats

from cat_lib.measuring import stats
from cat_lib.measuring.audit import attack_words
from cat_lib.measuring.scoring import RubricScore, compare_arms
from cat_lib.measuring.stats import (
    Estimate,
    bootstrap,
    detectable,
    holm,
    mcnemar,
    mean_interval,
    over_questions_and_seeds,
    over_seeds,
    paired_difference,
    pass_at_k,
    wilson,
)
from cat_lib.measuring.tables import one_family, table
from cat_lib.measuring.words import finding, findings
from cat_lib.schema import Group

DRAWS = 2000  # the coverage of a 95 % interval is then known to 0.5 %, a quarter of what is allowed


def covered(estimates: list[Estimate], truth: float) -> float:
    return float(np.mean([e.low <= truth <= e.high for e in estimates]))


def crossed(rng, seeds: int, questions: int, residual: float, seed_part: float) -> np.ndarray:
    """Scores (seeds, questions) around 0; `seed_part`: the seeds' variance of the mean over that of all the rest."""
    seed_variance = seed_part * (1 / questions + residual / (questions * seeds)) * seeds
    return (
        rng.normal(size=questions)
        + rng.normal(0, np.sqrt(seed_variance), (seeds, 1))
        + rng.normal(0, np.sqrt(residual), (seeds, questions))
    )


# coverage


@pytest.mark.parametrize("kind", ["coin", "skewed"])
def test_mean_interval_covers(kind):
    rng = np.random.default_rng(0)
    # skewed: most questions are nearly always failed, a few nearly always solved
    draw, truth = {
        "coin": (lambda: rng.binomial(1, 0.5, (100, 8)), 0.5),
        "skewed": (lambda: rng.binomial(8, rng.beta(0.2, 0.8, 100)) / 8, 0.2),
    }[kind]
    assert 0.93 <= covered([mean_interval(draw()) for _ in range(DRAWS)], truth) <= 0.97


@pytest.mark.parametrize(("n", "share"), [(48, 0.86), (48, 0.95), (96, 0.9), (96, 0.05), (200, 0.95)])
def test_mean_interval_covers_outcomes_near_their_ends_and_stays_between_them(n, share):
    counts = np.arange(n + 1)
    draws = [np.random.default_rng(0).permutation(np.arange(n) < count) for count in counts]
    estimates = [mean_interval(draw) for draw in draws]
    inside = [e.low <= share <= e.high for e in estimates]
    # over all counts: no simulation, no Monte-Carlo error
    assert 0.93 <= float(scipy_stats.binom.pmf(counts, n, share) @ inside) <= 0.98
    assert all(0 <= e.low <= e.value <= e.high <= 1 for e in estimates)
    assert [e.value for e in estimates] == [d.mean() for d in draws]
    assert [over_questions_and_seeds([draw]) for draw in draws[::9]] == estimates[::9]


def test_differences_that_happen_to_be_outcomes_are_not_taken_for_them():
    """Three won and none lost are no evidence: Wilson's interval of 3 of 20 would leave out zero."""
    before, after = np.zeros(20), np.array([1] * 3 + [0] * 17)
    for estimate in (paired_difference(before, after), over_questions_and_seeds([after - before], paired=True)):
        assert estimate.low < 0 < estimate.high
    assert mean_interval(after).low > 0
    assert over_seeds([0.0, 1.0, 1.0]).low < 0


@pytest.mark.parametrize(("n", "share"), [(20, 0.5), (96, 0.57), (100, 0.1), (500, 0.95)])
def test_wilson_covers(n, share):
    counts = np.arange(n + 1)
    inside = [(e := wilson(int(c), n)).low <= share <= e.high for c in counts]
    # summed over all counts: no simulation, no Monte-Carlo error
    assert 0.93 <= float(scipy_stats.binom.pmf(counts, n, share) @ inside) <= 0.97


def test_bootstrap_covers():
    rng = np.random.default_rng(0)
    estimates = []
    for seed in range(1500):
        scores = rng.normal(size=100)
        estimates.append(
            bootstrap(100, lambda drawn, scores=scores: scores.take(drawn).sum() / 100, seed, resamples=400)
        )
    assert 0.93 <= covered(estimates, 0.0) <= 0.97


def test_paired_difference_covers(monkeypatch):
    # the permutation test gives p only, and 2,000 of them take a minute
    monkeypatch.setattr(stats.stats, "permutation_test", lambda *_, **__: SimpleNamespace(pvalue=1.0))
    rng = np.random.default_rng(0)
    estimates = []
    for _ in range(DRAWS):
        ability = rng.beta(2, 2, 60)
        before, after = rng.binomial(1, ability, (8, 60)).T, rng.binomial(1, 0.9 * ability + 0.1, (8, 60)).T
        estimates.append(paired_difference(before, after))
    assert 0.93 <= covered(estimates, 0.05) <= 0.97


@pytest.mark.parametrize(
    ("seeds", "questions", "residual", "seed_part", "highest"),
    [
        (3, 100, 0.1, 0, 0.97),
        (3, 100, 0.1, 10, 0.97),
        (3, 50, 1, 3, 0.97),
        (5, 100, 1, 0.3, 0.97),
        (5, 100, 1, 10, 0.97),
        (5, 20, 5, 3, 0.97),
        # stated as conservative: two seeds, or much noise and seeds that differ little
        (2, 100, 0.1, 10, 1.0),
        (3, 100, 5, 0, 1.0),
    ],
)
def test_over_questions_and_seeds_covers(seeds, questions, residual, seed_part, highest):
    rng = np.random.default_rng(0)
    estimates = [over_questions_and_seeds(crossed(rng, seeds, questions, residual, seed_part)) for _ in range(DRAWS)]
    assert 0.93 <= covered(estimates, 0.0) <= highest


@pytest.mark.parametrize(
    ("seeds", "gains", "lowest"),
    [
        (3, "normal", 0.93),
        (5, "normal", 0.93),
        # stated: Student's quantile is too small for a few seeds from a flat distribution
        (3, "flat", 0.90),
        (5, "flat", 0.91),
    ],
)
def test_over_questions_and_seeds_covers_differences_of_shares(seeds, gains, lowest):
    rng = np.random.default_rng(0)
    estimates = []
    for _ in range(DRAWS):
        ability = 0.1 + 0.7 * rng.beta(2, 2, 96)
        # what training gave differs by seed, 0.1 on average
        gain = rng.normal(0.1, 0.03, (seeds, 1)) if gains == "normal" else rng.uniform(0, 0.2, (seeds, 1))
        before = rng.binomial(8, ability, (seeds, 96)) / 8
        after = rng.binomial(8, np.clip(ability + gain, 0, 1)) / 8
        estimates.append(over_questions_and_seeds(after - before))
    assert lowest <= covered(estimates, 0.1) <= 0.98


def test_an_interval_over_questions_alone_misses_the_seeds():
    rng = np.random.default_rng(0)
    estimates = [mean_interval(crossed(rng, 3, 100, 0.1, 10).T) for _ in range(1000)]
    assert covered(estimates, 0.0) < 0.6


# over questions and seeds


def test_crossed_interval_equals_the_hand_worked_one():
    # seed means 3, 5; question means 2, 4, 6; residuals are 0 but for +-1 in the outer questions
    scores = [[0, 3, 6], [4, 5, 6]]
    # MS_q = 2 * 4 = 8, MS_s = 3 * 2 = 6, MS_qs = 4 / 2 = 2; variance (8 + 6 - 2) / 6 = 2
    t_question, t_seed = 4.3027, 12.7062
    margin = (8 * t_question + 6 * t_seed) / 14 * np.sqrt(2)
    estimate = over_questions_and_seeds(scores)
    assert (estimate.value, estimate.n) == (4, 3)
    assert estimate.high - 4 == pytest.approx(margin, rel=1e-4)
    assert 4 - estimate.low == pytest.approx(margin, rel=1e-4)


def test_seeds_that_agree_exactly_add_nothing():
    once = np.random.default_rng(0).uniform(size=30)
    assert str(over_questions_and_seeds(np.tile(once, (3, 1)))) == str(mean_interval(once))


def test_a_negative_component_counts_as_zero():
    # every seed has the same mean, so MS_s = 0 is below MS_qs and the seeds' component is negative
    scores = np.array([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0], [0.5, 0.5, 0.5, 0.5]])
    estimate = over_questions_and_seeds(scores)
    rest = np.var(scores) * 12 / 6  # MS_qs, as both means are flat
    assert estimate.high - estimate.value == pytest.approx((3.1824 + 4.3027) / 2 * np.sqrt(rest / 12), rel=1e-4)


def test_one_seed_and_equal_scores_fall_back_to_questions():
    once = np.random.default_rng(0).uniform(size=30)
    assert over_questions_and_seeds([once]) == mean_interval(once)
    assert over_questions_and_seeds(np.ones((3, 20))) == wilson(20, 20)
    assert over_questions_and_seeds(np.zeros((3, 20))) == wilson(0, 20)  # shares, and nothing was tested


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], r"seeds is empty; give at least one, e\.g\. seeds=\[0\]"),
        (np.empty((0, 5)), "seeds is empty"),
        ([[1, 0, 1], [1, 0]], "ragged.*one row a seed"),
        ([1, 0, 1], r"shape \(3,\); needed is \(seeds, questions\)"),
        ([[1], [0]], "at least 2 questions"),
        ([[1, 0, 1], [1, float("nan"), 1]], r"scores\[1, 1\] \(seed, question\) is nan"),
        ([[1, 0, float("inf")]], r"scores\[0, 2\]"),
    ],
)
def test_scores_that_are_no_table_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        over_questions_and_seeds(bad)


def test_over_seeds_is_students_over_seeds():
    estimate = over_seeds([0.1, 0.2, 0.3])
    assert estimate.high - estimate.value == pytest.approx(4.3027 * 0.1 / np.sqrt(3), rel=1e-4)


# one share, one error bar


def test_wilson_equals_the_published_example():
    estimate = wilson(81, 263)  # Newcombe 1998, table I
    assert (round(estimate.low, 4), round(estimate.high, 4), estimate.n) == (0.2553, 0.3662, 263)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match=f"successes={successes}, n={n}: allowed is"):
        wilson(successes, n)


# paired tests


def test_permutation_p_is_uniform_when_nothing_changed():
    rng = np.random.default_rng(0)
    p = [paired_difference(np.zeros(14), rng.standard_t(4, 14), seed).p for seed in range(400)]
    assert scipy_stats.kstest(p, "uniform").pvalue > 0.05
    assert 0.03 <= np.mean(np.array(p) <= 0.05) <= 0.07


def test_mcnemar_equals_the_hand_worked_value():
    before, after = [0] * 6 + [1] + [1, 1, 0], [1] * 6 + [0] + [1, 1, 0]
    # 6 turned right and 1 wrong: 2 * (C(7,0) + C(7,1)) / 2^7
    assert mcnemar(before, after) == pytest.approx(0.125)
    assert mcnemar(np.array(after, dtype=bool), np.array(before, dtype=bool)) == pytest.approx(0.125)
    assert mcnemar([0, 1], [0, 1]) == 1.0


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([0, 0.5], [0, 1], r"before holds 0\.5: allowed is 0 or 1"),
        ([0, 1], [0, float("nan")], "after holds nan"),
        ([0, 1], [0, 1, 1], r"shapes \(2,\) before, \(3,\) after"),
        ([[0, 1]], [[0, 1]], "one outcome a question"),
        ([], [], "one outcome a question"),
    ],
)
def test_mcnemar_refuses_what_is_no_outcome(before, after, message):
    with pytest.raises(ValueError, match=message):
        mcnemar(before, after)


# families


def test_holm_equals_the_hand_worked_values():
    # in order 0.01 * 4, 0.02 * 3, then 0.03 * 2 is not below the one before, 0.5
    adjusted = holm({"c": 0.03, "a": 0.01, "d": 0.5, "b": 0.02})
    assert list(adjusted) == ["c", "a", "d", "b"]
    assert adjusted == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.5})
    assert holm({"one": 0.03}) == {"one": 0.03}


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ({}, "family of tests is empty"),
        ({"good": 0.1, "broken": float("nan")}, "p of 'broken' is nan: allowed is 0 to 1"),
        ({"percent": 5.0}, r"p of 'percent' is 5\.0"),
    ],
)
def test_holm_refuses_by_name(family, message):
    with pytest.raises(ValueError, match=message):
        holm(family)


# pass@k


def test_pass_at_k_equals_the_hand_worked_values():
    correct = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]]
    assert pass_at_k(correct, 1) == pytest.approx([1 / 4, 1 / 2, 0, 3 / 4])
    assert pass_at_k(correct, 2) == pytest.approx([1 - 3 / 6, 1 - 1 / 6, 0, 1])
    assert pass_at_k(correct, 4) == pytest.approx([1, 1, 0, 1])


def test_pass_at_k_is_stable_where_binomials_overflow():
    n, k = 2000, 700
    correct = np.arange(n) < np.array([[0], [1], [3], [n]])
    exact = [float(1 - Fraction(comb(n - c, k), comb(n, k))) for c in (0, 1, 3, n)]
    assert pass_at_k(correct, k) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(
    ("correct", "k", "message"),
    [
        ([[1, 0]], 3, "k=3: allowed is 1 to 2"),
        ([[1, 0]], 0, "k=0: allowed is 1 to 2"),
        ([[1, 0.5]], 1, r"correct holds 0\.5"),
        ([1, 0], 1, r"shape \(2,\); needed is \(questions, samples\)"),
    ],
)
def test_pass_at_k_refuses(correct, k, message):
    with pytest.raises(ValueError, match=message):
        pass_at_k(correct, k)


# power


@pytest.mark.parametrize(("n", "spread", "power"), [(60, 0.4, 0.8), (20, 2.0, 0.8), (500, 0.3, 0.5)])
def test_detectable_is_found_with_that_power(n, spread, power):
    effect = detectable(n, spread, power)
    draws = np.random.default_rng(0).normal(effect, spread, (8000, n))
    found = scipy_stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
    assert power - 0.02 <= found.mean() <= power + 0.02


@pytest.mark.parametrize("power", [0.1, 0.5, 0.8, 0.95, 0.999])
@pytest.mark.parametrize("n", [5, 8, 30, 1000])
def test_detectable_inverts_the_power_of_the_noncentral_t(n, power):
    shift, limit = detectable(n, 1.0, power) * np.sqrt(n), scipy_stats.t.ppf(0.975, n - 1)
    assert scipy_stats.nct.sf(limit, n - 1, shift) + scipy_stats.nct.cdf(-limit, n - 1, shift) == pytest.approx(
        power, abs=1e-3
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 0.5), "n=4: allowed is 5"),
        ((50, 0.0), r"spread=0\.0: allowed is a positive"),
        ((50, float("nan")), "spread=nan"),
        ((50, 0.5, 1.0), r"power=1\.0: allowed is above 0\.05 and below 1"),
        ((50, 0.5, 80), "power=80"),
    ],
)
def test_detectable_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        detectable(*arguments)


def test_one_rule_says_what_is_decided():
    for low, high, p, called in ((0.1, 0.2, 0.04, True), (0.1, 0.2, 0.06, False), (-0.1, 0.2, 0.01, False)):
        difference = Estimate(0.15, low, high, 9, p)
        assert (difference.outcome == "above") is called
        assert difference.outcome in ("above", "undecided")
        assert finding(difference, "a", "b").startswith("A is above b" if called else "A is not told apart from b")
        rows = one_family(table({"a": difference}))
        assert rows.outcome.tolist() == [difference.outcome]
        assert f"{difference.outcome}: a (+0.150 [" in findings(rows, "b")
        assert attack_words(difference).startswith("Attacks work") is called
    assert Estimate(0.15, 0.1, 0.2, 9).outcome == "undecided"  # nothing was tested
    three = table({str(p): Estimate(0, 0, 0, 9, p) for p in (0.04, 0.01, 0.03)})
    assert one_family(three).p.tolist() == [0.06, 0.03, 0.06]
    assert one_family(three[:1]).p.tolist() == [0.04]  # of one, Holm's is p itself
    assert one_family(table({})).empty
    untested = one_family(three, table({"none": Estimate(0.15, 0.1, 0.2, 9)}))
    assert (untested.p[3:].isna().all(), untested.outcome[3], untested.p[0]) == (True, "undecided", 0.06)


def test_arms_that_changed_nothing_are_called_better_or_worse_in_few_runs(monkeypatch):
    """Four arms and seven comparisons, as in the notebook on rubrics; without a family some arm is, in a quarter."""

    def student(samples, *_, **__):
        t = samples[0].mean() / samples[0].std(ddof=1) * np.sqrt(40)
        return SimpleNamespace(pvalue=2 * special.stdtr(39, -abs(t)))

    monkeypatch.setattr("gc.collect", lambda *_: 0)  # statsmodels calls it for each family: nine tenths of the time
    monkeypatch.setattr(stats.stats, "permutation_test", student)  # 9,999 permutations a test would take minutes
    rng, called, alone = np.random.default_rng(0), 0, 0

    groups = [Group(str(i), "q", (), ()) for i in range(40)]

    def scored() -> RubricScore:
        return RubricScore(groups, rng.normal(0.4, 0.2, (40, 1)), pd.DataFrame())

    for _ in range(300):
        arms = compare_arms({"untrained": scored()} | {arm: scored() for arm in "abcd"}, 7)
        assert arms[["method", "against"]].agg(" ".join, axis=1).tolist() == [
            *("a untrained", "b untrained", "c untrained", "d untrained"), *("b a", "c a", "d a")
        ]  # fmt: skip
        called += (arms.outcome != "undecided").any()
        alone += any(stats.decided(row.low, row.high, row.p_alone) for row in arms.itertuples())
    assert set(arms.seed) == {"7"}
    assert called / 300 <= 0.07
    assert alone / 300 >= 0.18


def test_no_spread_is_no_certainty():
    same = paired_difference([1, 0, 1, 0], [1, 0, 1, 0])
    assert (same.value, same.p) == (0.0, 1.0)
    assert same.low == -same.high < -0.4  # Wilson's limit for 0 of 4
    assert same.outcome == "undecided"
    both = over_questions_and_seeds(np.zeros((3, 4)), paired=True)
    assert (both.low, both.high) == (same.low, same.high)
    lost, won = paired_difference([1] * 4, [0] * 4), paired_difference([0] * 4, [1] * 4)
    assert (lost.low, lost.high) == (-won.high, -won.low)
    assert lost.high > -0.6
