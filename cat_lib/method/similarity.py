"""A second judge, of another kind: a criterion is met if some sentence of the response is like it.

By embeddings (`models/sentences.py`), so a policy trained on a language model's verdicts has not been rewarded by it.
It sees neither negation nor what is asked. `audit.calibrate` sets the threshold, as of any judge with scores.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cat_lib.models.sentences import alike
from cat_lib.prompts import plain
from cat_lib.schema import Verdict

_SENTENCE, _LONGEST = re.compile(r"(?<=[.!?])\s+|\n"), 12_000


@dataclass(frozen=True)
class SimilarityJudge:
    """Call it with (response, criterion) pairs, as `judge.Judge`. Raises ModelError if the wheel is missing."""

    threshold: float = 0.5
    index: int = 0  # it always says the same
    worded = False
    prompt = "similarity"

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        parts = {r: [s for s in _SENTENCE.split(plain(r)[:_LONGEST]) if s.strip()] or ["-"] for r, _ in pairs}
        sentences = list(dict.fromkeys(s for own in parts.values() for s in own))
        criteria = list(dict.fromkeys(plain(c) for _, c in pairs))
        cosines = dict(zip(criteria, alike(criteria, sentences), strict=True))
        place = {s: i for i, s in enumerate(sentences)}
        scores = [max(cosines[plain(c)][place[s]] for s in parts[r]) for r, c in pairs]
        return [Verdict(score > self.threshold, score=score) for score in scores]
