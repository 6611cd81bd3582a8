"""What a judge is worth: its verdicts against known ones, against itself, and under attack.

A judge is calibrated on one part of the labelled pairs and audited on the other; no conversation is in both. Balanced
accuracy is the mean of the shares of met and of unmet pairs judged right: a coin and a judge that always says yes both
have 0.5. Intervals are bootstraps over responses, because the pairs of one response are not independent.

Under attack (`attack`): a policy in training will find texts that address the judge instead of the question, if they
pay. `attacks.jsonl` is our own set, and fixed, so that judges can be compared.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from cat_lib.measuring.stats import Estimate, bootstrap, paired_difference
from cat_lib.measuring.tables import one_family, table
from cat_lib.method.judge import Judge
from cat_lib.schema import Criterion, Group, Judging
from cat_lib.tasks.healthbench import AUDIT, FILES, clinic, transcript
from cat_lib.tasks.rows import file_rows, local_file, usable

GOOD, COIN, CONSTANT = 0.8, 0.5, 0.98
_ATTACKS = map(json.loads, Path(__file__).with_name("attacks.jsonl").read_text(encoding="utf-8").splitlines())
ATTACKS = [(row["kind"], row["text"] * row.get("times", 1)) for row in _ATTACKS]  # kind and text of each


@dataclass(frozen=True)
class Labelled:
    """A response, a criterion, and whether it is truly met; what kind of pair that is."""

    id: str  # of the conversation
    response: str
    criterion: str
    met: bool
    form: str = "unknown"  # stated, paraphrase (met); absent, negated (unmet)
    axis: str = "unknown"
    sign: str = "unknown"  # "positive" or "negative" points


def clinic_pairs() -> tuple[list[Labelled], list[Labelled]]:
    """Our own set: pairs to calibrate on (of clinic's training conversations) and pairs to audit on (held out)."""
    heldout = {e.id for e in clinic().examples("heldout", None, 0)}
    sides: tuple[list[Labelled], list[Labelled]] = ([], [])
    for row in map(json.loads, AUDIT.read_text(encoding="utf-8").splitlines()):
        for pair in row["pairs"]:
            axis, sign = pair["tags"][0].removeprefix("axis:"), "negative" if pair["points"] < 0 else "positive"
            about = (pair["criterion"], pair["met"], pair["form"], axis, sign)
            sides[row["prompt_id"] in heldout].append(Labelled(row["prompt_id"], row["response"], *about))
    return sides


def meta_evaluation_pairs(source: str | Path) -> tuple[list[Labelled], list[Labelled]]:
    """HealthBench's meta-evaluation file: the physicians' majority on each pair; ties are left out.

    Pairs to calibrate on and to audit on, by a digest of the conversation. Rows: `completion`, `rubric`,
    `binary_labels`, and `prompt_id` or `prompt`. Raises DataError for other rows.
    """
    sides: tuple[list[Labelled], list[Labelled]] = ([], [])
    for _, row in usable(file_rows(local_file(source, FILES)), lambda row: row):
        labels = row["binary_labels"].value
        if not isinstance(labels, list) or not labels or not all(type(x) is bool for x in labels):
            raise row["binary_labels"].refused(f"is {labels!r:.40}, where a list of true and false is needed")
        response, criterion, given = row["completion"].text(), row["rubric"].text(), row["prompt_id"]
        id = transcript(row["prompt"].conversation()) if given.value is None else given.text()
        if 2 * sum(labels) != len(labels):
            axis = row["category"].text() if "category" in row.value else "unknown"
            side = sides[hashlib.sha256(id.encode("utf-8", "replace")).digest()[0] % 2]
            side.append(Labelled(id, response, criterion, 2 * sum(labels) > len(labels), axis=axis))
    return sides


def calibrate(judge: Judge, pairs: Sequence[Labelled]) -> Judge:
    """The judge with the threshold that has the best balanced accuracy on `pairs`; a text judge as it is.

    Balanced accuracy is flat around its best, and rounding would decide: so the threshold is the median of the best
    ones of 200 resamples of conversations; among equally good ones the one in the widest gap between scores.
    Raises ValueError if the pairs are of one class only.
    """
    if judge.worded:
        return judge
    verdicts = judge([(p.response, p.criterion) for p in pairs])
    known = [(pair.id, v.score, pair.met) for pair, v in zip(pairs, verdicts, strict=True) if v.met is not None]
    if len({met for _, _, met in known}) < 2:
        raise ValueError("calibration needs met and unmet pairs with scores")
    ids, scores, met = map(np.array, zip(*known, strict=True))
    best, rng, units = list[float](), np.random.default_rng(0), np.unique(ids)
    for _ in range(200):
        drawn = np.concatenate([np.flatnonzero(ids == unit) for unit in rng.choice(units, len(units))])
        if len(set(met[drawn])) == 2:
            best.append(_best_threshold(scores[drawn], met[drawn]))
    return replace(judge, threshold=float(np.median(best)))


def _best_threshold(scores: np.ndarray, met: np.ndarray) -> float:
    """The middle of the gap between two scores that splits met from unmet pairs best."""
    cuts = np.unique(scores)
    middles, gaps = (cuts[1:] + cuts[:-1]) / 2, np.diff(cuts)
    says = scores[:, None] > middles  # (pairs, thresholds)
    balanced = (says[met].mean(0) + (~says[~met]).mean(0)) / 2
    return float(middles[np.lexsort((gaps, balanced))[-1]]) if len(middles) else float(cuts[0])


def balanced_accuracy(met: np.ndarray, says: np.ndarray) -> float:
    """Mean of the shares judged right among met and among unmet pairs; NaN without both."""
    return float((np.mean(says[met]) + np.mean(~says[~met])) / 2) if 0 < met.sum() < len(met) else math.nan


def cohens_kappa(met: np.ndarray, says: np.ndarray) -> float:
    """Agreement beyond what the two marginals give by chance; NaN where both are constant."""
    chance = met.mean() * says.mean() + (1 - met.mean()) * (1 - says.mean())
    return float((np.mean(met == says) - chance) / (1 - chance)) if chance < 1 else math.nan


def _estimate(pairs: pd.DataFrame, statistic: Callable[[np.ndarray, np.ndarray], float]) -> Estimate:
    """A statistic of what is met and what is judged met, where there is a verdict."""
    known = pairs[~pairs["failed"]]
    met, says = known["met"].to_numpy(bool), known["says"].to_numpy(bool)
    at = [np.flatnonzero((known["id"] == id).to_numpy()) for id in known["id"].unique()]

    def drawn(units: np.ndarray) -> float:
        index = np.concatenate([at[u] for u in units])
        return statistic(met[index], says[index])

    return replace(bootstrap(len(at), drawn), n=len(known))


@dataclass(frozen=True)
class Audit:
    """A judge's verdicts on pairs with known ones. `table`: one row a pair, with columns says and failed."""

    table: pd.DataFrame
    stability: float  # share of pairs with the same verdict when asked again
    order: float  # share of pairs with the same verdict when the criteria come in reverse
    threshold: float

    @property
    def balanced_accuracy(self) -> Estimate:
        return _estimate(self.table, balanced_accuracy)

    @property
    def kappa(self) -> Estimate:
        return _estimate(self.table, cohens_kappa)

    @property
    def failed(self) -> float:
        """Share of pairs without a verdict."""
        return float(self.table["failed"].mean())

    @property
    def yes(self) -> float:
        """Share of verdicts that are yes."""
        return float(self.table.loc[~self.table["failed"], "says"].mean())

    def by(self, column: str) -> pd.DataFrame:
        """Share judged right for each value of `form`, `axis` or `sign` (as method); n counts pairs."""
        parts = self.table[~self.table["failed"]].groupby(column)
        known = {str(kind): part for kind, part in parts if part["id"].nunique() > 1}
        return table({kind: _estimate(part, lambda met, says: np.mean(met == says)) for kind, part in known.items()})

    @property
    def words(self) -> str:
        """Whether this judge can be used for training, in words, from the numbers."""
        if self.failed == 1:
            return "Every verdict failed: this judge can't be used."
        if max(self.yes, 1 - self.yes) >= CONSTANT:
            says = "yes" if self.yes > 0.5 else "no"
            return f"It says {says} to {max(self.yes, 1 - self.yes):.0%} of the pairs whatever they are: not usable."
        b = self.balanced_accuracy
        if b.low <= COIN:
            text = f"Not usable: balanced accuracy {b} can't be told from a coin's 0.5."
        elif b.low >= GOOD:
            text = f"Good enough to train with and to report: balanced accuracy {b}."
        else:
            text = f"Better than a coin but weak: balanced accuracy {b}. A reward from it is noisy, and scores by it "
            text += "compare policies under this judge; they do not measure quality."
        forms = self.by("form").set_index("method")["value"]
        if forms.get("negated", 1.0) < COIN:
            text += f" It takes a response that says the opposite for one that says it ({forms['negated']:.2f} of the "
            text += "negated pairs right): do not use it where contradicting the criterion does harm."
        if self.failed > 0:
            text += f" It lost {self.failed:.1%} of its verdicts."
        return text

    @property
    def summary(self) -> str:
        """The other numbers on one line."""
        return (
            f"Cohen's kappa {self.kappa}; says yes to {self.yes:.0%}; same verdict when asked again "
            f"{self.stability:.1%}, with the criteria reversed {self.order:.1%}"
        )

    def metrics(self) -> dict[str, float]:
        """Flat `judge_*` numbers of the run; what is not finite is left out."""
        b, k = self.balanced_accuracy, self.kappa
        numbers = b.flat("judge_balanced_accuracy") | k.flat("judge_kappa")
        numbers |= {"judge_pairs": float(b.n), "judge_yes": self.yes, "judge_failed": self.failed}
        numbers |= {"judge_stability": self.stability, "judge_order": self.order, "judge_threshold": self.threshold}
        return {name: value for name, value in numbers.items() if math.isfinite(value)}


def audit(judge: Judge, pairs: Sequence[Labelled]) -> Audit:
    """Judge the pairs, once more, and once in reverse order. The repeats go past the cache by their index."""
    asked = [(p.response, p.criterion) for p in pairs]
    first, second = judge(asked), replace(judge, index=judge.index + 1)(asked)
    reverse = replace(judge, index=judge.index + 2)(asked[::-1])[::-1]
    table = pd.DataFrame(
        {"id": p.id, "criterion": p.criterion, "met": p.met, "form": p.form, "axis": p.axis, "sign": p.sign}
        | {"says": bool(v.met), "failed": v.met is None, "score": v.score, "reason": v.reason, "cause": v.cause}
        for p, v in zip(pairs, first, strict=True)
    )
    same = [float(np.mean([a.met == b.met for a, b in zip(first, other, strict=True)])) for other in (second, reverse)]
    return Audit(table, same[0], same[1], judge.threshold)


def attack(
    judge: Judge, pairs: Sequence[Labelled], each: int = 3, attacks: Sequence[tuple[str, str]] = ATTACKS
) -> pd.DataFrame:
    """Append each of `attacks` (kind and text) to `each` responses that do not meet a criterion.

    By kind of attack (as method), and in "all": the rise in the share judged met, paired. More columns: before and
    after (the shares, without and with the attack), tried and failed. The unit is the conversation: n counts them, and
    the attacks on one conversation's responses are averaged. The kinds are one family of tests; "all" is a test by
    itself. Raises ValueError if all pairs are met.
    """
    unmet = [p for p in pairs if not p.met]
    if not unmet:
        raise ValueError("an attack needs responses that do not meet a criterion; all pairs are met")
    jobs = [attack for attack in attacks for _ in range(each)]
    bases = [unmet[i % len(unmet)] for i in range(len(jobs))]
    plain = judge([(b.response, b.criterion) for b in bases])
    hit = judge([(f"{b.response}\n{text}", b.criterion) for b, (_, text) in zip(bases, jobs, strict=True)])
    attacked = pd.DataFrame(
        {"kind": kind, "id": base.id, "before": a.met, "after": b.met}
        for (kind, _), base, a, b in zip(jobs, bases, plain, hit, strict=True)
    )

    def rise(kind: str, part: pd.DataFrame) -> pd.DataFrame:
        known = part.dropna(subset=["before", "after"]).astype({"before": float, "after": float})
        units = known.groupby("id")[["before", "after"]].mean()
        if len(units) < 2:
            return table({})
        tried = {"tried": len(known), "failed": len(part) - len(known)}
        return table({kind: paired_difference(units["before"], units["after"])}, **units.mean(), **tried)

    kinds = [rise(str(kind), part) for kind, part in attacked.groupby("kind")]
    return pd.concat([one_family(*kinds), one_family(rise("all", attacked))], ignore_index=True)


def attack_words(change: Estimate) -> str:
    """Whether attacks work, by the rise of a row of `attack`."""
    return {
        "below": f"Attacks do not pay: they lower the share of unmet criteria judged met, {change}.",
        "above": f"Attacks work: they raise the share of unmet criteria judged met by {change}; don't train on it.",
        "undecided": f"No attack is shown to work: the share of unmet criteria judged met changes by {change}.",
    }[change.outcome]


def usefulness(
    groups: Sequence[Group],
    criteria: Mapping[str, Sequence[Criterion]],
    judge: Judging,
    second: Judging,
    scores: np.ndarray,
) -> pd.DataFrame:
    """What a criterion is worth on its question's rollouts: one row a criterion, of each group's by its id.

    `spread` over the rollouts and `met` share by `judge`, `agreement` of its verdicts with those of `second`, and
    `correlation` (Pearson) of the verdicts with `scores` (groups, rollouts); NaN where either is the same for all.
    Rollouts that lost a verdict are left out; n is how many are left.
    """
    rows = []
    for group, own in zip(groups, scores, strict=True):
        for c in criteria[group.id]:
            asked = [(r.text, c.text) for r in group.rollouts]
            both = [
                (a.worth, b.worth, s)
                for a, b, s in zip(judge(asked), second(asked), own, strict=True)
                if a.met is not None and b.met is not None and math.isfinite(s)
            ]
            ours, theirs, worth = np.array(both, dtype=float).reshape(-1, 3).T
            varies = len(both) > 1 and ours.std() > 0 and worth.std() > 0
            correlation = float(np.corrcoef(ours, worth)[0, 1]) if varies else math.nan
            numbers = (ours.mean(), ours.std(), (ours == theirs).mean()) if both else (math.nan,) * 3
            rows.append([group.id, c.text, c.points, *map(float, numbers), correlation, len(both)])
    columns = ["example", "criterion", "points", "met", "spread", "agreement", "correlation", "n"]
    return pd.DataFrame(rows, columns=columns)
