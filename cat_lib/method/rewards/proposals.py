"""Rubrics that the anchor writes: `Rub = {r_1..r_n} ~ pi_0(. | p_rub, s)` (section 3.2.2 of the paper).

A reply is one XML element, parsed strictly; only the signs & and < in a criterion are read as themselves. Criteria that
repeat another one, and those that the text they were written from does not meet itself, are dropped and counted; while
too few are left, more are asked for, a bounded number of times. A proposal that fails is None with its cause.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Literal

import pandas as pd

from cat_lib.prompts import ask, plain
from cat_lib.schema import AnswerError, Completion, Criterion, Judging, Model, Prompt, Rubric, Sampling

_LONGEST = 20_000  # characters of a proposal that are parsed
_BLOCK = re.compile(r"<rubric>.*?</rubric>", re.DOTALL)
# models write these bare, as in "oxygen <92%"; read as themselves
_AMPERSAND = re.compile(r"&(?!(?:amp|lt|gt|quot|apos);)")
_LESS = re.compile(r"<(?=[^\w/!?]|\d)")
NEAR = 0.7  # share of common words from which two criteria count as one


def parse_rubric(text: str, points: bool = False) -> list[Criterion]:
    """The criteria of the one `<rubric>` element in `text`; what stands around it is ignored.

    Raises ValueError if there is not exactly one, it is no well-formed XML, or it holds anything but non-empty
    `<criterion>` elements, with a non-zero number in `points` where `points` is asked for.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"the proposal has {len(text)} characters; at most {_LONGEST} are read")
    blocks = _BLOCK.findall(text)
    if len(blocks) != 1 or "<!" in blocks[0]:  # a declaration could define entities that expand without end
        raise ValueError(f"{len(blocks)} <rubric> elements without declarations; exactly 1 is allowed")
    try:
        root = ElementTree.fromstring(_LESS.sub("&lt;", _AMPERSAND.sub("&amp;", blocks[0])))
    except ElementTree.ParseError as error:
        raise ValueError(f"no well-formed XML: {error}") from None
    criteria = []
    for child in root:
        words = " ".join((child.text or "").split())
        allowed = {"points"} if points else set()
        if child.tag != "criterion" or len(child) or not words or set(child.attrib) != allowed:
            raise ValueError(f"<{child.tag}> with {sorted(child.attrib)} is no criterion of this rubric")
        worth = float(child.get("points", "1")) if re.fullmatch(r"-?\d{1,3}", child.get("points", "1")) else 0.0
        if not worth:
            raise ValueError(f"points={child.get('points')!r}: allowed is a whole number that is not 0")
        criteria.append(Criterion(words, worth))
    return criteria


def read_rubric(prompt: Prompt, reply: Completion | AnswerError, points: bool) -> list[Criterion]:
    """The criteria of a reply. Raises ValueError, with the cause, if it failed or was cut, or as `parse_rubric`."""
    if isinstance(reply, AnswerError) or not reply.ended:
        raise ValueError(getattr(reply, "cause", "the reply was cut off"))
    opened = prompt[prompt.rindex("<rubric>") :] if isinstance(prompt, str) else ""  # plain text ends inside it
    return parse_rubric(opened + reply.text, points)


@dataclass(frozen=True)
class Proposal:
    """What came of asking for a rubric: the rubric, or None and the cause; and what was dropped on the way."""

    rubric: Rubric | None
    text: str = ""  # what it was written from
    malformed: int = 0  # replies that could not be parsed
    duplicates: int = 0  # criteria that said what another one says
    unmet: int = 0  # criteria that the text they were written from does not meet
    cause: str | None = None

    @property
    def summary(self) -> str:
        """What was dropped and what is left, on one line."""
        kept = f"{len(self.rubric.criteria)} criteria kept" if self.rubric else f"no rubric: {self.cause}"
        return (
            f"{kept}; malformed replies {self.malformed}, duplicates {self.duplicates}, criteria that the text "
            f"itself does not meet {self.unmet}"
        )


@dataclass
class _Draft:
    """A rubric on its way: what has been proposed from a text so far."""

    text: str
    seen: list[Criterion] = field(default_factory=list)  # distinct ones
    kept: list[Criterion] = field(default_factory=list)  # those that the text meets
    malformed: int = 0
    duplicates: int = 0


@dataclass(frozen=True)
class Proposer:
    """Asks `anchor` for rubrics, all of a call in one batch, `attempts` times at most.

    Criteria of all well-formed replies are pooled until `minimum` distinct ones are kept; `replies` are asked for at
    once, which is quicker where one is seldom enough. `judge`, where given, drops criteria that the source text
    fails, before they are counted. Prompts "few_shot" are for models too small to follow instructions.
    """

    anchor: Model
    prompt: Literal["chat", "few_shot"] = "chat"
    judge: Judging | None = None
    points: bool = False
    minimum: int = 5  # (paper) at least 5 criteria
    attempts: int = 3
    replies: int = 1
    sampling: Sampling = Sampling(600, temperature=0.7, top_p=0.95)  # noqa: RUF009  # frozen: safe to share

    def __call__(self, texts: Sequence[str | None], kind: Literal["reference", "question"]) -> list[Proposal]:
        """One proposal a text; None stands for a text that could not be had."""
        drafts = [_Draft(text or "") for text in texts]
        judge = self.judge if kind == "reference" else None  # a question meets no criteria
        stop = ("###",) if self.prompt == "few_shot" else self.sampling.stop
        for attempt in range(self.attempts):
            pending = [d for d in drafts if d.text and len(d.kept) < self.minimum]
            if not pending:
                break
            about = {"minimum": self.minimum, "points": self.points}
            prompts = [ask(f"rubric_{kind}_{self.prompt}", text=d.text, **about) for d in pending]
            form = self._form() if attempt and self.prompt == "chat" else ""  # it has been malformed, or too short
            sampling = replace(self.sampling, seed=self.sampling.seed + attempt, stop=stop, form=form)
            answers = self.anchor.generate(prompts, self.replies, sampling)
            fresh = list[tuple[_Draft, Criterion]]()
            for draft, prompt, replies in zip(pending, prompts, answers, strict=True):
                for reply in replies:
                    criteria = list[Criterion]()  # none if it was cut or is malformed
                    with suppress(ValueError):
                        criteria = read_rubric(prompt, reply, self.points)
                    draft.malformed += not criteria
                    for criterion in criteria:
                        known = any(same_words(criterion.text, old.text) >= NEAR for old in draft.seen)
                        draft.duplicates += known
                        if not known:
                            draft.seen.append(criterion)
                            fresh.append((draft, criterion))
            verdicts = judge([(draft.text, c.text) for draft, c in fresh]) if judge else [None] * len(fresh)
            for (draft, criterion), verdict in zip(fresh, verdicts, strict=True):
                if verdict is None or verdict.met is not (criterion.points < 0):  # a pitfall is failed by meeting it
                    draft.kept.append(criterion)
        return [self._proposal(draft, kind) for draft in drafts]

    def _form(self) -> str:
        """What is asked for and nothing else, as a regular expression."""
        points = ' points="-?(10|[1-9])"' if self.points else ""
        return rf"<rubric>\n(<criterion{points}>[^<>\n]{{1,200}}</criterion>\n){{{self.minimum},20}}</rubric>"

    def _proposal(self, draft: _Draft, kind: str) -> Proposal:
        rubric, unmet, cause = Rubric(tuple(draft.kept), kind), len(draft.seen) - len(draft.kept), None
        if not draft.text:
            cause = "no text to write a rubric from"
        elif len(draft.kept) < self.minimum:
            own = f" that the text meets, and {unmet} that it does not," if unmet else ""
            cause = (
                f"{len(draft.kept)} distinct criteria{own} after {self.attempts} attempts; {self.minimum} are needed"
            )
        elif rubric.possible <= 0:
            cause = "no criterion with positive points is left"
        return Proposal(None if cause else rubric, draft.text, draft.malformed, draft.duplicates, unmet, cause)


def rubric_table(proposals: Mapping[str, Proposal]) -> pd.DataFrame:
    """One row a criterion, and one for a group that has none, with the text the rubric was written from."""
    return pd.DataFrame(
        {
            "example": id,
            "source": proposal.rubric and proposal.rubric.source,
            "criterion": criterion and criterion.text,
            "points": criterion and criterion.points,
            "text": plain(proposal.text),
            "cause": proposal.cause,
        }
        for id, proposal in proposals.items()
        for criterion in (proposal.rubric.criteria if proposal.rubric else (None,))
    )


def same_words(a: str, b: str) -> float:
    """Words that two criteria share, over all their words (Jaccard), case and punctuation aside."""
    left, right = (set(re.findall(r"\w+", text.casefold())) for text in (a, b))
    return len(left & right) / max(1, len(left | right))


def drift(first: Sequence[Proposal], again: Sequence[Proposal], after: Sequence[Proposal]) -> dict[str, float]:
    """Whether rubrics of the same questions changed more than by chance, over questions where all three succeeded.

    `rubric_similarity_chance`: two draws before training; `rubric_similarity_after`: before and after it.
    """
    drawn = [[p.rubric for p in three if p.rubric] for three in zip(first, again, after, strict=True)]
    known = [three for three in drawn if len(three) == 3]
    similar = {
        "rubric_similarity_chance": [rubric_similarity(a, b) for a, b, _ in known],
        "rubric_similarity_after": [rubric_similarity(a, c) for a, _, c in known],
    }
    return {k: fmean(v) for k, v in similar.items() if v} | {"rubric_drift_questions": float(len(known))}


def rubric_similarity(a: Rubric, b: Rubric) -> float:
    """How much of two rubrics says the same: mean over the criteria of both of the nearest one's `same_words`."""
    sides = ((a, b), (b, a))
    return fmean(max(same_words(c.text, d.text) for d in other.criteria) for one, other in sides for c in one.criteria)
