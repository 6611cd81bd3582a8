"""Rewards of rollouts that search and cite (DR Tulu, arXiv 2511.19399, appendix D.5); `weighted.py` has their sum.

What a rollout looks like stands in `tasks/searching.py`. What a query found is looked up again, not read from the
rollout, which could have made it up. A rollout without an answer has a rubric and a citation reward of 0: a fact about
it. A lost verdict is none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from cat_lib.schema import Group, Judging, Reference
from cat_lib.tasks.search import Search
from cat_lib.tasks.searching import parts

Rewards = list[list[float | None]]
MOST_QUERIES, NEEDED = 3, "Makes a claim of fact that needs a source."
_CITED, _SENTENCE = re.compile(r"\[([\w./-]{1,80})\]"), re.compile(r"(?<=[.!?])\s+(?!\[)|(?<=\])\s+(?=[A-Z])")


def searched(groups: Sequence[Group], references: Sequence[Reference | None]) -> Rewards:
    """min(queries / 3, 1)."""
    return [[min(len(parts(r.text)[0]) / MOST_QUERIES, 1.0) for r in g.rollouts] for g in groups]


def formatted(groups: Sequence[Group], references: Sequence[Reference | None]) -> Rewards:
    """0.5 for an answer, 0.3 for a citation in it, 0.2 for a query."""

    def one(text: str) -> float:
        queries, answer = parts(text)
        return 0.5 * (answer is not None) + 0.3 * bool(_CITED.search(answer or "")) + 0.2 * bool(queries)

    return [[one(r.text) for r in g.rollouts] for g in groups]


@dataclass(frozen=True)
class Cited:
    """0.6 F1 + 0.4 of the citations that name something found, over the claims (sentences) of an answer.

    A claim that cites has as recall how far the judge finds it in all that it cites, and as precision the share of its
    citations that it is found in; one that cites nothing has the precision 1, and the recall 0 if it needs a source.
    What the second share is was not found stated; this reading is ours.
    """

    judge: Judging
    search: Search
    found: int = 3  # passages a query
    most: int = MOST_QUERIES  # that were answered

    def __call__(self, groups: Sequence[Group], references: Sequence[Reference | None]) -> Rewards:
        return [[self._one(r.text) for r in g.rollouts] for g in groups]

    def _one(self, text: str) -> float | None:
        queries, answer = parts(text)
        if answer is None:
            return 0.0
        known = {p.id: p.text for q in queries[: self.most] for p in self.search(q, self.found)}
        recall, precision, cited = list[float](), list[float](), _CITED.findall(answer)
        for claim in filter(None, map(str.strip, _SENTENCE.split(answer))):
            ids, bare = list(dict.fromkeys(_CITED.findall(claim))), " ".join(_CITED.sub("", claim).split())
            shown = [known[id] for id in ids if id in known]
            pairs = [(" ".join(shown), bare), *((one, bare) for one in shown)] if shown else []
            verdicts = self.judge(pairs if ids else [(bare, NEEDED)]) if shown or not ids else []
            if any(v.met is None for v in verdicts):
                continue
            recall.append((verdicts[0].worth if verdicts else 0.0) if ids else 1 - verdicts[0].worth)
            precision.append(sum(v.worth for v in verdicts[1:]) / len(ids) if ids else 1.0)
        if not recall:
            return None
        r, p = fmean(recall), fmean(precision)
        return 0.6 * (2 * p * r / (p + r) if p + r else 0.0) + 0.4 * fmean([id in known for id in cited] or [0.0])
