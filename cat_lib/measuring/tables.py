"""One convention for every number with an interval: a row with the columns method, seed, value, low, high, n, p.

`outcomes` are the scores that numbers are made of, one row a question, method and seed; `summary` is a number for each
method, `compare` what each has beyond another one, paired by question. A seed draws new rollouts of the same questions,
so both vary (`stats.over_questions_and_seeds`). `seed` lists the seeds that a number is over, n counts its questions.
The differences of a table are one family of tests: `p` is Holm's, `p_alone` the test's own, and `outcome` (above,
below, undecided) is what `stats.decided` says of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from cat_lib.measuring.stats import Estimate, holm, over_questions_and_seeds, paired_difference

COLUMNS = ["method", "seed", "value", "low", "high", "n", "p"]


def table(estimates: Mapping[str, Estimate], seed: object = "", **about: Any) -> pd.DataFrame:
    """One row an estimate by its method, with the columns of `about` after the convention's."""
    rows = [{"method": method, "seed": str(seed), **asdict(e)} | about for method, e in estimates.items()]
    shown = pd.DataFrame(rows, columns=list(dict.fromkeys([*COLUMNS, *about])))
    return shown.astype(dict.fromkeys(("value", "low", "high", "p"), float))


def estimate(row: Mapping[str, Any]) -> Estimate:
    """A row of a table as the Estimate it holds."""
    p = None if pd.isna(row["p"]) else row["p"]
    return Estimate(row["value"], row["low"], row["high"], row["n"], p)


def outcomes(scores: Mapping[str, ArrayLike], examples: Sequence[str], seed: int = 0, **about: Any) -> pd.DataFrame:
    """One row a method and question: method, seed, example, value (samples averaged), and the columns of `about`.

    scores: of each method (questions,) or (questions, samples); examples: the ids of the questions.
    """
    means = [np.reshape(own, (len(examples), -1)).mean(axis=1) for own in scores.values()]
    methods = [method for method in scores for _ in examples]
    rows = {"method": methods, "seed": seed, "example": [*examples] * len(scores), "value": np.ravel(means)}
    return pd.DataFrame(rows | about)


def crossed(frame: pd.DataFrame) -> pd.DataFrame:
    """The outcomes of one method as (seeds, questions), in the order they stand in."""
    square = frame.pivot(index="seed", columns="example", values="value")
    return square.reindex(index=frame["seed"].unique(), columns=frame["example"].unique())


def summary(frame: pd.DataFrame, by: Sequence[str] = ("method",)) -> pd.DataFrame:
    """One row for each value of the columns `by`: the mean of its outcomes, which are shares, with limits in [0, 1]."""
    found = [table({}, **dict.fromkeys(by))]
    for key, part in frame.groupby(list(by), sort=False):
        scores, method = crossed(part), part["method"].iloc[0]
        e = over_questions_and_seeds(scores)
        e = replace(e, low=max(0.0, e.low), high=min(1.0, e.high))
        found.append(table({method: e}, _seeds(scores), **dict(zip(by, key, strict=True))))
    return pd.concat(found[1:] or found, ignore_index=True)


def compare(frame: pd.DataFrame, baseline: object, of: str = "method", within: Sequence[str] = ()) -> pd.DataFrame:
    """One row for each value of the column `of`: its outcomes minus the baseline's, paired by question and seed.

    baseline: one value of `of`, that all others are compared with, or the pairs of a value and its own baseline, as a
    mapping or a list. `within`: columns inside whose values pairs are made. All rows are one family. Questions that one
    side could not score (NaN) are left out of that pair.
    Raises ValueError if the two sides of a pair have not the same questions and seeds.
    """
    found = [table({}, **dict.fromkeys([of, *within]))]
    for key, part in frame.groupby(list(within), sort=False) if within else [((), frame)]:
        scores = {value: crossed(own) for value, own in part.groupby(of, sort=False)}
        pairs = list(baseline.items()) if isinstance(baseline, Mapping) else baseline
        for value, base in pairs if isinstance(pairs, list) else [(v, baseline) for v in scores if v != baseline]:
            if missing := {base, value} - scores.keys():
                raise ValueError(f"no {of} {missing.pop()!r} to compare; there are {', '.join(map(repr, scores))}")
            method = value if of == "method" else part["method"].iloc[0]
            difference = _paired(scores[base], scores[value])
            about = {of: value} | dict(zip(within, key, strict=True))
            found.append(table({method: difference}, _seeds(scores[base]), **about))
    return one_family(*found)


def one_family(*tables: pd.DataFrame) -> pd.DataFrame:
    """Tables of differences as one, with Holm's p over all its rows; a row without a p was not tested, and stays so."""
    whole = pd.concat([t for t in tables if len(t)] or tables, ignore_index=True)  # an empty one has no types
    alone = whole["p_alone" if "p_alone" in whole else "p"]
    tested = alone.dropna().to_dict()
    p = pd.Series(holm(tested) if tested else {}, dtype=float).reindex(whole.index)
    whole = whole.assign(p=p, p_alone=alone)
    return whole.assign(outcome=[estimate(row).outcome for row in whole.to_dict("records")])


def flat(of: pd.DataFrame, key: str, limits: bool = True) -> dict[str, float]:
    """A table as metrics of a run under `key` filled from the row, e.g. "{method}_accuracy": values, and their limits.

    `limits` false leaves these out.
    """
    metrics: dict[str, float] = {}
    for row in of.dropna(subset="value").to_dict("records"):
        name = key.format(**row).replace("@", "_at_").replace(", ", "_").replace(" ", "_")
        metrics |= estimate(row).flat(name) if limits else {name: row["value"]}
    return metrics


def _paired(base: pd.DataFrame, other: pd.DataFrame) -> Estimate:
    if list(base.index) != list(other.index) or set(base) != set(other):
        raise ValueError(
            f"paired scores need the same questions and seeds: {base.shape[1]} questions, seeds {_seeds(base)} of the "
            f"baseline, {other.shape[1]} and {_seeds(other)} beside it"
        )
    a, b = base.to_numpy(), other[base.columns].to_numpy()
    scored = np.isfinite(a + b).all(axis=0)
    a, b = a[:, scored], b[:, scored]
    p = paired_difference(a.mean(axis=0), b.mean(axis=0)).p  # of questions, their seeds averaged
    return replace(over_questions_and_seeds(b - a, paired=True), p=p)


def _seeds(scores: pd.DataFrame) -> str:
    return ", ".join(map(str, scores.index))
