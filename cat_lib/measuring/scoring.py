"""HealthBench's scoring rule, and a policy's score by it (arXiv 2505.08775; openai/simple-evals).

One response scores points met over positive points; criteria with negative points subtract when met, so a score may be
below 0. Only the mean over examples is clipped to [0, 1]. Its interval is a bootstrap over examples, with the same
clip. A criterion's tags ("axis:accuracy") are scored over that tag's criteria alone, an example's ("theme:hedging")
over that tag's examples. A response that lost a verdict has no score: it is counted, and never scored as unmet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cat_lib.measuring.stats import Estimate, bootstrap, change, paired_difference
from cat_lib.measuring.tables import compare, outcomes, table
from cat_lib.method.rewards.rubric import share_met
from cat_lib.schema import Criterion, Example, Group, Judging, Rubric, Verdict


def score(criteria: Sequence[Criterion], verdicts: Sequence[Verdict]) -> float | None:
    """Points met over positive points; None if a verdict is missing or no criterion has positive points."""
    rubric = Rubric(tuple(criteria), "given")
    return share_met(rubric, verdicts, least=1.0) if rubric.possible else None


def tag_scores(example: Example, verdicts: Sequence[Verdict]) -> dict[str, float]:
    """ "score" and one entry a tag of the example and of its criteria; what has no score is left out."""
    criteria = example.rubric.criteria if example.rubric else ()
    judged = list(zip(criteria, verdicts, strict=True))
    parts = dict.fromkeys(("score", *example.tags), judged)
    parts |= {tag: [pair for pair in judged if tag in pair[0].tags] for c in criteria for tag in c.tags}
    found = {name: score([c for c, _ in part], [v for _, v in part]) for name, part in parts.items()}
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
    tags: pd.DataFrame  # example, sample, tag, score; the tag "score" is the response's own

    @property
    def per_question(self) -> np.ndarray:
        """(questions,) mean over scored samples; NaN where no sample could be scored."""
        return np.asarray(pd.DataFrame(self.scores).mean(axis=1), dtype=float)

    @property
    def unscored(self) -> float:
        """Share of responses that lost a verdict."""
        return float(np.isnan(self.scores).mean())

    @property
    def tokens(self) -> float:
        """Mean length of a response, in tokens that the policy wrote."""
        return float(np.mean([sum(r.mask) for g in self.groups for r in g.rollouts]))

    @property
    def estimate(self) -> Estimate:
        values = self.per_question
        return clipped_mean(values[~np.isnan(values)])

    @property
    def outcomes(self) -> pd.DataFrame:
        """One row a question: method "score", seed, example, value; NaN where no sample could be scored."""
        return outcomes({"score": self.per_question}, [g.id for g in self.groups])

    def by_tag(self) -> pd.DataFrame:
        """One row a theme and axis, its tag as method, n examples. A tag of one example has no interval, and no row."""
        tags = self.tags.query("tag != 'score'").groupby(["tag", "example"])["score"].mean().groupby("tag")
        return table({str(tag): clipped_mean(values) for tag, values in tags if len(values) > 1})


def judged(examples: Sequence[Example], groups: Sequence[Group], judge: Judging) -> RubricScore:
    """The score of given responses; all groups must have the same number of them.

    Lost verdicts are asked for again, twice at most: a response needs all of its own to be scored.
    Raises ValueError for an example without a rubric, or if fewer than 2 questions could be scored, with the causes.
    """
    rubrics = {e.id: e.rubric.criteria for e in examples if e.rubric}
    if missing := [e.id for e in examples if e.id not in rubrics]:
        raise ValueError(f"no rubric to score by: {', '.join(missing[:5])}")
    responses = [(e, i, r.text) for e, g in zip(examples, groups, strict=True) for i, r in enumerate(g.rollouts)]
    pairs = [(text, c.text) for e, _, text in responses for c in rubrics[e.id]]
    verdicts = judge(pairs)
    for _ in range(2):
        if lost := [i for i, v in enumerate(verdicts) if v.met is None]:
            for i, verdict in zip(lost, judge([pairs[i] for i in lost]), strict=True):
                verdicts[i] = verdict
    stream, rows = iter(verdicts), list[tuple[str, int, str, float]]()
    for e, i, _ in responses:
        found = tag_scores(e, [next(stream) for _ in rubrics[e.id]])
        rows += [(e.id, i, tag, value) for tag, value in found.items()]
    tags = pd.DataFrame(rows, columns=["example", "sample", "tag", "score"])
    scores = tags.query("tag == 'score'").pivot(index="example", columns="sample", values="score")
    if len(scores) < 2:
        causes = Counter(v.cause for v in verdicts if v.met is None).most_common(3)
        raise ValueError(f"fewer than 2 of {len(examples)} questions could be scored; lost verdicts: {causes}")
    scores = scores.reindex([e.id for e in examples], columns=range(len(groups[0].rollouts)))
    return RubricScore(list(groups), scores.to_numpy(float), tags)


def compare_arms(scores: Mapping[str, RubricScore], seed: int) -> pd.DataFrame:
    """Each policy minus the first, and the others minus the second: the column `against` says which; one family.

    `seed` is what all were trained with. Paired over the questions scored on both sides, as `tables.compare`.
    """
    frame = pd.concat([s.outcomes.assign(method=name) for name, s in scores.items()], ignore_index=True)
    first, second, *others = scores
    pairs = [(arm, first) for arm in (second, *others)] + [(arm, second) for arm in others]
    return compare(frame, pairs).assign(against=[base for _, base in pairs], seed=str(seed))


def score_metrics(before: RubricScore, after: RubricScore, split: str = "heldout") -> dict[str, float]:
    """Flat `<split>_rubric_score_*` and lengths of one comparison, over questions scored on both sides."""
    ids = [[group.id for group in score.groups] for score in (before, after)]
    if ids[0] != ids[1]:
        raise ValueError("the scores before and after are of different questions: score the same ones")
    scores = np.array([before.per_question, after.per_question])
    difference = paired_difference(*scores[:, np.isfinite(scores).all(axis=0)])
    return {f"{split}_questions": float(difference.n)} | {
        **change(f"{split}_rubric_score", before.estimate.value, after.estimate.value, difference),
        f"{split}_tokens_before": before.tokens,
        f"{split}_tokens_after": after.tokens,
        f"{split}_unscored_after": after.unscored,
    }
