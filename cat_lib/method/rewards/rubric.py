"""Rubric rewards, for answers that no program can check (section 3.2.2 of the paper).

`R_i = (1/n) sum_j 1[judge(o_i, r_j) = yes]`: the share of criteria that a rollout meets, by points where the rubric
has points. The paper's rubric comes from the pseudo-reference; the other sources here are its baselines: the
question, one rollout, physicians, and the one criterion "means the same" (model-as-judge).

Where rollouts lost some verdicts, the known ones stand for all (`share_met`); a failure is never scored as 0.
Physicians' criteria reach a reward through `physician` and no other way.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Literal

import pandas as pd

from cat_lib.files import append_line, read_lines
from cat_lib.method.rewards.proposals import Proposal, Proposer, rubric_table
from cat_lib.prompts import one_line
from cat_lib.schema import Completion, Criterion, Example, Group, Judging, Reference, Rubric, Verdict
from cat_lib.tasks.search import LONGEST, Search

# a judge of whose last so many verdicts at least this share are alike is reported
_WINDOW, _CONSTANT = 200, 0.98
_COLUMNS = ["example", "rollout", "criterion", "points", "met", "grade", "score", "cause", "reason"]


class JudgeError(RuntimeError):
    """So many verdicts failed that training on the rest would say little."""


Rubrics = Callable[[Sequence[Group], Sequence[Reference | None]], list[Proposal]]


def from_reference(proposer: Proposer) -> Rubrics:
    """The paper's: criteria from the pseudo-reference alone, never from the question."""
    return lambda groups, references: proposer([r.text if r else None for r in references], "reference")


def from_rollout(proposer: Proposer) -> Rubrics:
    """Control: criteria from the group's first rollout, without synthesis."""
    return lambda groups, references: proposer([g.rollouts[0].text for g in groups], "reference")


def from_search(proposer: Proposer, search: Search, path: Path, passages: int = 10) -> Rubrics:
    """DR Tulu's persistent rubrics: criteria from the passages that search finds for the question; kept as the next."""

    def found(question: str) -> str | None:
        return "\n".join(p.text for p in search(question[-LONGEST:], passages)) or None

    return from_question(proposer, path, found)


def from_question(proposer: Proposer, path: Path, source: Callable[[str], str | None] | None = None) -> Rubrics:
    """Control: criteria from the question alone (later version of the paper, A.2), or from what `source` makes of it.

    A question's rubric is written once, by a draw that hangs on the question's id and not on its place in a batch. It
    is kept in `path`, where a resume and other processes find it. One that failed stays failed: its draw is the same.
    """

    def write(group: Group) -> Proposal:
        digest = hashlib.sha256(f"{proposer.sampling.seed} {group.id}".encode("utf-8", "surrogatepass")).digest()
        drawn = replace(proposer.sampling, seed=int.from_bytes(digest[:4]) >> 1)
        text = source(group.question) if source else group.question
        (proposal,) = replace(proposer, sampling=drawn)([text], "reference" if source else "question")
        kept = [[c.text, c.points] for c in proposal.rubric.criteria] if proposal.rubric else []
        path.parent.mkdir(parents=True, exist_ok=True)
        append_line(path, {"example": group.id, "text": proposal.text, "criteria": kept, "cause": proposal.cause})
        return proposal

    def rubrics(groups: Sequence[Group], references: Sequence[Reference | None]) -> list[Proposal]:
        known = dict[str, Proposal]()
        for _, line in read_lines(path):
            criteria = tuple(Criterion(text, points) for text, points in line["criteria"])
            rubric = Rubric(criteria, "reference" if source else "question") if criteria else None
            known.setdefault(line["example"], Proposal(rubric, line["text"], cause=line["cause"]))
        for group in groups:
            known[group.id] = known.get(group.id) or write(group)
        return [known[g.id] for g in groups]

    return rubrics


def physician(examples: Sequence[Example]) -> Rubrics:
    """Upper bound: the experts' own criteria, points and negatives included. This is gold; its name says so."""
    known = {e.id: Proposal(e.rubric, cause=None if e.rubric else "no physician rubric") for e in examples}
    return lambda groups, references: [known[g.id] for g in groups]


def equivalence() -> Rubrics:
    """Model-as-judge: one criterion, that the rollout means the same as the pseudo-reference."""

    def one(reference: Reference | None) -> Proposal:
        if reference is None or not reference.text.strip():
            return Proposal(None, cause="no reference")
        text = f'Says in substance the same as this: "{one_line(reference.text)}"'
        return Proposal(Rubric((Criterion(text),), "equivalence"), reference.text)

    return lambda groups, references: [one(r) for r in references]


@dataclass(frozen=True)
class LengthPenalty:
    """The paper's -1 for responses of more than 750 tokens. It does not say whether the -1 is added to the reward
    or replaces it; `reading` is one of "added", "replacing"."""

    limit: int = 750
    amount: float = -1.0
    reading: Literal["added", "replacing"] = "added"

    def __call__(self, reward: float | None, tokens: int) -> float | None:
        if reward is None or tokens <= self.limit:
            return reward
        return reward + self.amount if self.reading == "added" else self.amount


def share_met(
    rubric: Rubric, verdicts: Sequence[Verdict], least: float = 0.5, whole: float | None = None
) -> float | None:
    """Points met over positive points, or over `whole`; None if fewer than the share `least` of verdicts are known.

    Over n criteria of which m have a verdict: `(n / m) * sum of met points / positive points`. If failures strike at
    random this has the mean of the full score, whatever the points; with all verdicts known it is the full score.
    """
    known = [(c, v) for c, v in zip(rubric.criteria, verdicts, strict=True) if v.met is not None]
    if not known or len(known) < least * len(verdicts):
        return None
    return len(verdicts) / len(known) * sum(c.points * v.worth for c, v in known) / (whole or rubric.possible)


@dataclass
class RubricReward:
    """A reward rule: rubrics from `rubrics`, verdicts from `judge`, one number a rollout.

    A group without a rubric, and a rollout with too few verdicts, are unscorable. Raises JudgeError when more than
    `max_failed` of a call's verdicts failed. `tables` and `observe` say what was judged, for the record of a training.
    """

    judge: Judging
    rubrics: Rubrics
    penalty: LengthPenalty = LengthPenalty(amount=0.0)  # frozen: safe to share
    max_failed: float = 0.5
    share: Callable[[Rubric, Sequence[Verdict]], float | None] = share_met
    table: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=_COLUMNS))  # the last call's verdicts
    proposals: dict[str, Proposal] = field(default_factory=dict)  # of the last call, by group id
    _last: deque[bool] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    _warned: bool = False

    def __call__(self, groups: Sequence[Group], references: Sequence[Reference | None]) -> list[list[float | None]]:
        proposals = self.rubrics(groups, references)
        self.proposals = {g.id: p for g, p in zip(groups, proposals, strict=True)}
        asked = [(g, p.rubric.criteria if p.rubric else ()) for g, p in zip(groups, proposals, strict=True)]
        jobs = [(g, i, c) for g, criteria in asked for i in range(len(g.rollouts)) for c in criteria]
        verdicts = self.judge([(g.rollouts[i].text, c.text) for g, i, c in jobs])
        rows = [
            {"example": g.id, "rollout": i, "criterion": c.text, "points": c.points} | asdict(v)
            for (g, i, c), v in zip(jobs, verdicts, strict=True)
        ]
        self.table = pd.DataFrame(rows, columns=_COLUMNS)
        self._check(verdicts)
        known = iter(verdicts)

        def reward(rollout: Completion, rubric: Rubric | None) -> float | None:
            share = self.share(rubric, [next(known) for _ in rubric.criteria]) if rubric else None
            return self.penalty(share, len(rollout.token_ids))

        return [[reward(r, p.rubric) for r in g.rollouts] for g, p in zip(groups, proposals, strict=True)]

    def _check(self, verdicts: Sequence[Verdict]) -> None:
        causes = Counter(v.cause for v in verdicts if v.met is None)
        if verdicts and causes.total() > self.max_failed * len(verdicts):
            most = "; ".join(f"{n} x {cause}" for cause, n in causes.most_common(3))
            raise JudgeError(
                f"{causes.total()} of {len(verdicts)} verdicts failed, more than max_failed={self.max_failed}: {most}"
            )
        self._last.extend(v.met for v in verdicts if v.met is not None)
        yes = fmean(self._last) if self._last else 0.5
        if len(self._last) == _WINDOW and max(yes, 1 - yes) >= _CONSTANT and not self._warned:
            self._warned, says = True, "yes" if yes > 0.5 else "no"
            warnings.warn(f"the judge said {says} to {max(yes, 1 - yes):.0%} of its last {_WINDOW} pairs", stacklevel=3)

    def spreads(self, id: str) -> dict[str, float]:
        """Of a group of the last call, by criterion: the population's deviation over its known verdicts, 2 or more."""
        known = self.table[self.table["example"] == id].dropna(subset=["met"])
        worth = known["grade"].fillna(known["met"]).astype(float)
        parts = worth.groupby(known["criterion"], sort=False)
        return {str(criterion): pstdev(part) for criterion, part in parts if len(part) > 1}

    def tables(self) -> dict[str, pd.DataFrame]:
        """The last call's verdicts and rubrics."""
        return {"verdicts": self.table, "rubrics": rubric_table(self.proposals)}

    def observe(self, step: int, folder: Path) -> dict[str, float]:
        """What the last call's judging looked like; formulas in docs/metrics.md. A share of nothing is left out."""
        proposals, known = self.proposals.values(), self.table.dropna(subset=["met"])
        met = known["met"].astype(float)
        shares = met.groupby([known["example"], known["criterion"]]).mean()
        means = {
            "rubric_missing": [p.rubric is None for p in proposals],
            "rubric_criteria": [len(p.rubric.criteria) for p in proposals if p.rubric],
            "met_share": met,
            "verdict_agreement": shares.where(shares > 0.5, 1 - shares),
            "verdict_failed": self.table["met"].isna(),
        }
        dropped = ("malformed", "duplicates", "unmet")
        sums = {f"rubric_{what}": float(sum(getattr(p, what) for p in proposals)) for what in dropped}
        return {k: fmean(v) for k, v in means.items() if len(v)} | sums
