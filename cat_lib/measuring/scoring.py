"""HealthBench's scoring rule, and a policy's score by it (arXiv 2505.08775; openai/simple-evals).

One response scores points met over positive points; criteria with negative points subtract when met, so a score may be
below 0. Only the mean over examples is clipped to [0, 1]. Its interval is a bootstrap over examples, with the same
clip. A criterion's tags ("axis:accuracy") are scored over that tag's criteria alone, an example's ("theme:hedging")
over that tag's examples. A response that lost a verdict has no score: it is counted, and never scored as unmet.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cat_lib.measuring.stats import Estimate, bootstrap, one_family, paired_difference
from cat_lib.schema import Criterion, Example, Group, Judging, Model, Sampling, Task, Verdict
from cat_lib.tasks import group_of


def score(criteria: Sequence[Criterion], verdicts: Sequence[Verdict]) -> float | None:
    """Points met over positive points; None if a verdict is missing or no criterion has positive points."""
    possible = sum(c.points for c in criteria if c.points > 0)
    if not possible or any(v.met is None for v in verdicts):
        return None
    return sum(c.points for c, v in zip(criteria, verdicts, strict=True) if v.met) / possible


def tag_scores(example: Example, verdicts: Sequence[Verdict]) -> dict[str, float]:
    """ "score" and one entry a tag of the example and of its criteria; what has no score is left out."""
    criteria = example.rubric.criteria if example.rubric else ()
    by_tag: dict[str, list[int]] = defaultdict(list)
    for i, criterion in enumerate(criteria):
        for tag in set(criterion.tags):
            by_tag[tag].append(i)
    found = {name: score(criteria, verdicts) for name in ("score", *example.tags)}
    found |= {tag: score([criteria[i] for i in at], [verdicts[i] for i in at]) for tag, at in by_tag.items()}
    return {name: value for name, value in found.items() if value is not None}


def clipped_mean(scores: Sequence[float] | np.ndarray, seed: int = 0) -> Estimate:
    """Mean over examples clipped to [0, 1], with the 95 % bootstrap interval of that clipped mean.

    Raises ValueError for fewer than 2 examples.
    """
    values = np.asarray(scores, dtype=float)
    return bootstrap(len(values), lambda index: float(np.clip(values[index].mean(), 0, 1)), seed)


@dataclass(frozen=True)
class RubricScore:
    """A policy's responses to questions with expert rubrics, judged."""

    groups: list[Group]
    scores: np.ndarray  # (questions, samples), NaN where a verdict is missing
    verdicts: pd.DataFrame  # example, sample, criterion, points, met, score, cause, reason
    tags: pd.DataFrame  # example, sample, tag, score

    @property
    def per_question(self) -> np.ndarray:
        """(questions,) mean over scored samples; NaN where no sample could be scored."""
        known = ~np.isnan(self.scores)
        total = np.where(known, self.scores, 0.0).sum(1)
        return np.where(known.any(1), total / np.maximum(known.sum(1), 1), np.nan)

    @property
    def unscored(self) -> float:
        """Share of responses that lost a verdict."""
        return float(np.isnan(self.scores).mean())

    @property
    def tokens(self) -> float:
        """Mean length of a response."""
        return float(np.mean([len(r.token_ids) for g in self.groups for r in g.rollouts]))

    @property
    def estimate(self) -> Estimate:
        values = self.per_question
        return clipped_mean(values[~np.isnan(values)])

    def by_tag(self) -> pd.DataFrame:
        """One row a theme and axis: tag, score, low, high, n examples. A tag of one example has no interval."""
        rows = []
        for tag, part in self.tags.groupby("tag"):
            values = part.groupby("example")["score"].mean()
            if len(values) > 1:
                e = clipped_mean(values)
                rows.append({"tag": tag, "score": e.mean, "low": e.low, "high": e.high, "n": e.n})
        return pd.DataFrame(rows, columns=["tag", "score", "low", "high", "n"])


def evaluate_rubrics(
    policy: Model, task: Task, examples: Sequence[Example], judge: Judging, samples: int, sampling: Sampling
) -> RubricScore:
    """Answer each question `samples` times and judge every answer by its expert rubric.

    Raises ValueError for an example without one.
    """
    if missing := [e.id for e in examples if e.rubric is None]:
        raise ValueError(f"no rubric to score by: {', '.join(missing[:5])}")
    replies = policy.generate([e.prompt for e in examples], samples, sampling)
    groups = [group_of(task, e.id, e.question, r) for e, r in zip(examples, replies, strict=True)]
    return judged(examples, groups, judge)


def judged(examples: Sequence[Example], groups: Sequence[Group], judge: Judging) -> RubricScore:
    """The score of given responses; all groups must have the same number of them.

    Lost verdicts are asked for again, twice at most: a response needs all of its own to be scored.
    Raises ValueError if fewer than 2 questions could be scored, with the causes.
    """
    jobs = [
        (e, i, r.text, c)
        for e, g in zip(examples, groups, strict=True)
        for i, r in enumerate(g.rollouts)
        for c in (e.rubric.criteria if e.rubric else ())
    ]
    verdicts = judge([(text, c.text) for _, _, text, c in jobs])
    for _ in range(2):
        if lost := [i for i, v in enumerate(verdicts) if v.met is None]:
            for i, verdict in zip(lost, judge([(jobs[i][2], jobs[i][3].text) for i in lost]), strict=True):
                verdicts[i] = verdict
    stream, scores, tags = iter(verdicts), list[list[float]](), list[dict[str, object]]()
    for e, g in zip(examples, groups, strict=True):
        row = []
        for i in range(len(g.rollouts)):
            found = tag_scores(e, [next(stream) for _ in (e.rubric.criteria if e.rubric else ())])
            row.append(found.pop("score", np.nan))
            tags += [{"example": e.id, "sample": i, "tag": t, "score": s} for t, s in found.items()]
        scores.append(row)
    table = pd.DataFrame(
        {"example": e.id, "sample": i, "criterion": c.text, "points": c.points, "met": v.met, "score": v.score}
        | {"cause": v.cause, "reason": v.reason}
        for (e, i, _, c), v in zip(jobs, verdicts, strict=True)
    )
    if (np.isfinite(scores).any(axis=1)).sum() < 2:
        causes = Counter(v.cause for v in verdicts if v.met is None).most_common(3)
        raise ValueError(f"fewer than 2 of {len(examples)} questions could be scored; lost verdicts: {causes}")
    columns = ["example", "sample", "tag", "score"]
    return RubricScore(list(groups), np.array(scores), table, pd.DataFrame(tags, columns=columns))


def arm_table(before: RubricScore, after: Mapping[str, RubricScore]) -> pd.DataFrame:
    """Score and length of the untrained policy and of each arm: kind, score, low, high, n, tokens, unscored."""
    rows = [
        {"kind": kind, "score": s.estimate.mean, "low": s.estimate.low, "high": s.estimate.high}
        | {"n": s.estimate.n, "tokens": s.tokens, "unscored": s.unscored}
        for kind, s in (("untrained", before), *after.items())
    ]
    return pd.DataFrame(rows)


def versus(base: RubricScore, others: Mapping[str, RubricScore]) -> dict[str, Estimate]:
    """Each other minus base, paired over the questions scored on both sides."""
    found = {}
    for name, other in others.items():
        both = ~np.isnan(base.per_question) & ~np.isnan(other.per_question)
        found[name] = paired_difference(base.per_question[both], other.per_question[both])
    return found


def compare(before: RubricScore, after: Mapping[str, RubricScore]) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """Each arm minus the untrained policy, and each other arm minus the first: one family of tests, p adjusted."""
    first, *others = after
    gains, rivals = versus(before, after), versus(after[first], {arm: after[arm] for arm in others})
    family = iter(one_family([*gains.values(), *rivals.values()]))
    return {arm: next(family) for arm in gains}, {arm: next(family) for arm in rivals}


def in_words(differences: Mapping[str, Estimate], base: str) -> str:
    """One line a comparison of `compare`; a winner only where `Estimate.conclusive` says so."""
    lines = []
    for name, d in differences.items():
        how = ("above" if d.mean > 0 else "below") if d.conclusive else "not told apart from"
        p = f"; sign-flip p after Holm = {d.p:.3f}" if d.p is not None else ""
        lines.append(f"- **{name}** is {how} {base}: {d}{p}")
    return "\n".join(lines)


def score_metrics(before: RubricScore, after: RubricScore, split: str = "heldout") -> dict[str, float]:
    """Flat `<split>_rubric_score_*` and lengths of one comparison, over questions scored on both sides."""
    d = versus(before, {"after": after})["after"]
    key = f"{split}_rubric_score"
    return {
        f"{split}_questions": float(d.n),
        f"{key}_before": before.estimate.mean,
        f"{key}_after": after.estimate.mean,
        f"{key}_difference": d.mean,
        f"{key}_difference_low": d.low,
        f"{key}_difference_high": d.high,
        f"{key}_difference_p": float(d.p if d.p is not None else 1.0),
        f"{split}_tokens_before": before.tokens,
        f"{split}_tokens_after": after.tokens,
        f"{split}_unscored_after": after.unscored,
    }


def arm_metrics(gains: Mapping[str, Estimate], split: str = "heldout") -> dict[str, float]:
    """Flat `<arm>_<split>_rubric_score_difference`, `_low`, `_high` of each arm against the untrained policy."""
    numbers = dict[str, float]()
    for arm, d in gains.items():
        key = f"{arm.replace('-', '_').replace(' ', '_')}_{split}_rubric_score_difference"
        numbers |= {key: d.mean, f"{key}_low": d.low, f"{key}_high": d.high}
    return numbers
