"""The verdict of each experiment: one paragraph written from its tables, and its flat metrics.

A difference is called one only if its interval leaves out zero and its p, adjusted for the table, is below 0.05; all
else is undecided, and is said to be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from cat_lib.measuring.analysis import by_question
from cat_lib.measuring.evaluation import Evaluation, comparison_metrics
from cat_lib.measuring.paper import paper_value
from cat_lib.measuring.stats import Estimate, decided, holm


def word(difference: float, low: float, high: float, p: float, up: str = "better", down: str = "worse") -> str:
    """`up` or `down` for a difference that is called one (`stats.decided`); p is the adjusted one."""
    return (up if difference > 0 else down) if decided(low, high, p) else "undecided"


def findings(table: pd.DataFrame, baseline: str, column: str = "difference") -> str:
    """Which rows differ from the baseline, in words; who is undecided is said, and no winner claimed without evidence.

    table: columns method, n, seeds, `column`, `column`_low, _high, and p_holm (`column`_p_holm for other columns).
    """
    low, high = f"{column}_low", f"{column}_high"
    adjusted = "p_holm" if column == "difference" else f"{column}_p_holm"
    parts: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for _, row in table.dropna(subset=[column]).iterrows():
        kind = word(row[column], row[low], row[high], row[adjusted])
        parts[kind].append(f"{row.method} ({row[column]:+.3f} [{row[low]:.3f}, {row[high]:.3f}])")
    n, seeds = table["n"].iloc[0], table["seeds"].iloc[0]
    said = "; ".join(f"{kind}: {', '.join(found)}" for kind, found in parts.items() if found)
    return f"Against {baseline}, n = {n} questions, {seeds} seed{'s' if seeds > 1 else ''}: {said}."


def rollout_words(table: pd.DataFrame, departures: pd.DataFrame) -> str:
    """`01`: what is there to gain, from the table of estimators and limits, and how far two estimators part."""
    scores, n = table.set_index("kind")["accuracy"], table["n"].iloc[0]
    one, any_ = scores["one sample"], scores["any of G (pass@G)"]
    return (
        f"One sample is right on {one:.2f} of {n} questions, some rollout on {any_:.2f}: a selector can gain at most "
        f"{any_ - one:.2f}. Two estimators differ on up to {departures.to_numpy().max():.2f} of the questions."
    )


def rollout_metrics(table: pd.DataFrame, departures: pd.DataFrame, agreement: Sequence[float]) -> dict[str, float]:
    """`01`: `<estimator>_accuracy`, `one_sample_accuracy`, `pass_at_g`, `agreement`, `largest_departure`."""
    names = {"one sample": "one_sample_accuracy", "any of G (pass@G)": "pass_at_g"}
    metrics = {names.get(r.kind, f"{r.kind}_accuracy"): float(r.accuracy) for r in table.itertuples()}
    metrics |= {"heldout_questions": float(table["n"].iloc[0]), "agreement": float(np.mean(agreement))}
    return metrics | {"largest_departure": float(departures.to_numpy().max())}


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
    names = {"synthesis_departs_from": "disagreement", "synthesis_right_departing_from": "right_when_disagreeing"}
    for _, row in parted.iterrows():
        for name, share in names.items():
            if row[f"{share}_n"]:
                ends = {end: row[f"{share}{end}"] for end in ("", "_low", "_high")}
                metrics |= {f"{name}_{row.method}{end}": float(value) for end, value in ends.items()}
    return metrics


def departure_words(parted: pd.DataFrame, alone: Estimate) -> str:
    """`04`: who is right where synthesis departs from the majority, and on how many questions it alone is right."""
    row = parted.set_index("method").loc["majority"] if len(parted) else None
    words = "There was no question on which synthesis departed from the majority and both had an answer. "
    if row is not None and row.right_when_disagreeing_n:
        words = (
            f"Where both have an answer, synthesis departs from the majority on {row.disagreement:.3f} of questions "
            f"and is right on {row.right_when_disagreeing:.2f} of those, the majority on {row.other_right:.2f}. "
        )
    return words + f"Right when every rollout is wrong: {alone}."


def scaling_metrics(table: pd.DataFrame, growth: pd.DataFrame) -> dict[str, float]:
    """`05`: `<method>_accuracy_<size>` and `<method>_growth_<a>_<b>` with its limits."""
    metrics = {f"{r.method}_accuracy_{r.size}".replace("@", "_at_"): float(r.accuracy) for r in table.itertuples()}
    for r in growth.itertuples():
        key = f"{r.method}_growth_{r.step.replace(' to ', '_')}"
        metrics |= {key: r.difference, f"{key}_low": r.difference_low, f"{key}_high": r.difference_high}
    return metrics | {"heldout_questions": float(table["n"].iloc[0])}


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


def said(table: pd.DataFrame, what: str) -> str:
    """One sentence on `variants`: which of them differ from the first, and that the others are undecided."""
    first, rest = table["kind"].iloc[0], table.dropna(subset=["difference"]) if "difference" in table else table[:0]
    if rest.empty:
        return f"{what}: only {first} was tried."
    each = _each(rest, "kind", "difference_low", "difference_high")
    return f"{what}, against {first} (n = {table['n'].iloc[0]}): {each}."


def temperature_words(table: pd.DataFrame) -> str:
    """How far each estimator stands above one sample, by temperature: what training could use."""
    rest = table.dropna(subset=["difference"]).assign(kind=lambda t: t["method"] + " at " + t["drawn"])
    return f"Against one sample, by temperature: {_each(rest, 'kind', 'difference_low', 'difference_high')}."


def temperature_metrics(table: pd.DataFrame) -> dict[str, float]:
    """`temperature_<t>_<method>_accuracy`, and `_over_single` for the estimators."""
    metrics: dict[str, float] = {}
    for row in table.itertuples():
        key = f"temperature_{row.drawn}_{row.method}"
        metrics[f"{key}_accuracy"] = row.accuracy
        if row.method != "single":
            metrics[f"{key}_over_single"] = row.difference
    return metrics


def _each(table: pd.DataFrame, name: str, low: str, high: str) -> str:
    parts = []
    for _, row in table.iterrows():
        judged = word(row["difference"], row[low], row[high], row["p_holm"], "above", "below")
        parts.append(f"{row[name]} {row['difference']:+.3f} [{row[low]:.3f}, {row[high]:.3f}] ({judged})")
    return ", ".join(parts)


def variant_metrics(part: str, table: pd.DataFrame) -> dict[str, float]:
    """Flat metrics of `variants`: `<part>_<kind>_accuracy`, and `_difference` with its limits where there is one."""
    metrics: dict[str, float] = {}
    for row in table.itertuples():
        key = f"{part}_{row.kind}".replace(" ", "_").replace(",", "")
        metrics[f"{key}_accuracy"] = row.accuracy
        if hasattr(row, "difference") and row.difference == row.difference:
            metrics |= {f"{key}_difference": row.difference, f"{key}_difference_low": row.difference_low}
            metrics |= {f"{key}_difference_high": row.difference_high}
    return metrics


def gain_metrics(before: Evaluation, after: Evaluation) -> dict[str, float]:
    """`heldout_accuracy_before`, `_after`, `_difference`, `_low`, `_high`, `_p` of one sample, and the questions."""
    single = replace(before, scores={"single": before.scores["single"]})
    return comparison_metrics("heldout", single, after)


def compute_words(teacher: str, ratios: pd.DataFrame, left: Estimate, questions: float) -> str:
    """`08`: what one trained sample saves against its teacher at test time, what it loses, and when it is paid back."""
    r = ratios.loc[teacher]
    judged = word(left.mean, left.low, left.high, 1.0 if left.p is None else left.p)
    paid = f"after {questions:.0f} questions" if questions > 0 else "never: a trained sample costs as much"
    return (
        f"Against {teacher} at test time, one trained sample needs {r.tokens:.1f} times fewer generated tokens, "
        f"{r.flops:.1f} times fewer FLOPs and {r.seconds:.1f} times fewer seconds (the paper: "
        f"{paper_value('test_compute_ratio'):g} times fewer generations). Its accuracy minus the teacher's: {left}"
        f" ({judged}). The training is paid back {paid}, in FLOPs."
    )


def compute_metrics(ratios: pd.DataFrame, left: Estimate, questions: float) -> dict[str, float]:
    """`08`: `<estimator>_over_trained_<unit>`, `trained_minus_teacher` with its limits, `break_even_questions`."""
    metrics = {f"{name}_over_trained_{unit}": float(v) for name, row in ratios.iterrows() for unit, v in row.items()}
    metrics |= {"trained_minus_teacher": left.mean, "trained_minus_teacher_low": left.low}
    return metrics | {"trained_minus_teacher_high": left.high, "break_even_questions": questions}


def sharpening_words(ends: pd.DataFrame, new: Mapping[str, Estimate]) -> str:
    """What the two ends of pass@k and the questions never solved before say, in words; undecided where they don't."""
    words = f"After against before training: {_each(ends, 'kind', 'low', 'high')}."
    beyond = {key.removesuffix("_beyond"): e for key, e in new.items() if key.endswith("_beyond")}
    if not beyond:
        return words + " Hardly a question was never solved before, so nothing new could be seen."
    p = holm({name: 1.0 if e.p is None else e.p for name, e in beyond.items()})
    for name, e in beyond.items():
        shown = word(e.mean, e.low, e.high, p[name], "more than luck", "less than luck")
        words += f" Of {e.n} {name} questions never solved before, beyond a second draw: {e} ({shown})."
    return words


def plateau_words(gaps: pd.DataFrame) -> str:
    """How far each estimator stands above one sample of the same policy, before and after training."""
    return f"Against one sample of the same policy (n = {gaps['n'].iloc[0]}): {_each(gaps, 'kind', 'low', 'high')}."


def sharpening_metrics(ends: pd.DataFrame, new: Mapping[str, Estimate], gaps: pd.DataFrame) -> dict[str, float]:
    """`09`: `<questions>_pass_at_<k>` differences with limits, `never_sampled_*`, `gap_*` of `plateau`."""
    metrics: dict[str, float] = {}
    for row in ends.itertuples():
        key = row.kind.replace(", ", "_").replace("@", "_at_")
        metrics |= {key: row.difference, f"{key}_low": row.low, f"{key}_high": row.high}
    metrics |= {f"never_sampled_{key}": e.mean for key, e in new.items()}
    return metrics | {f"gap_{r.kind.replace(', ', '_').replace(' ', '_')}": r.difference for r in gaps.itertuples()}
