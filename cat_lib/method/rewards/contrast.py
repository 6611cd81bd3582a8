"""Criteria that tell a question's rollouts apart, written by a model that compares them.

As DR Tulu has it (arXiv 2511.19399, figure 10): positive ones (+1) and faults (-1), at most five, none that repeats or
mirrors a known one; an empty list is a finding. Ours besides: a criterion that quotes a rollout is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cat_lib.method.rewards.proposals import NEAR, read_rubric, same_words
from cat_lib.models.chat import fitted
from cat_lib.prompts import ask
from cat_lib.schema import Completion, Criterion, Group, Model, Prompt, Sampling

_QUOTED, _WORD = 8, re.compile(r"\w+")  # words that make a quotation
_TURN = re.compile(r"\b(?:not|never|without|avoids?|fails?|does|do|doesn't|don't|to|that|the)\b|s\b", re.IGNORECASE)


@dataclass(frozen=True)
class Contrasted:
    """What came of a group: its new criteria, perhaps none, or None and the cause."""

    criteria: tuple[Criterion, ...] | None
    cause: str | None = None


Contrast = Callable[[Sequence[Group], Sequence[Sequence[Criterion]], int], list[Contrasted]]


def new(found: Sequence[Criterion], known: Sequence[Criterion], rollouts: Sequence[Completion]) -> list[Criterion]:
    """Of `found` what no known criterion says, or denies, and no rollout has word for word."""
    kept, texts = list[Criterion](), [" ".join(_WORD.findall(r.text.casefold())) for r in rollouts]
    for criterion in found:
        bare, words = _TURN.sub(" ", criterion.text), _WORD.findall(criterion.text.casefold())
        runs = [" ".join(words[i : i + _QUOTED]) for i in range(len(words) - _QUOTED + 1)]
        near = any(same_words(bare, _TURN.sub(" ", old.text)) >= NEAR for old in (*known, *kept))
        if not near and not any(run in text for run in runs for text in texts):
            kept.append(criterion)
    return kept


@dataclass(frozen=True)
class Writer:
    """Asks `anchor` for the criteria of each group, all of a call in one batch, `attempts` times at most."""

    anchor: Model
    prompt: Literal["chat", "few_shot"] = "chat"
    most: int = 5
    attempts: int = 2
    sampling: Sampling = Sampling(600, temperature=0.7, top_p=0.95)  # noqa: RUF009  # frozen: safe to share

    def __call__(self, groups: Sequence[Group], known: Sequence[Sequence[Criterion]], seed: int) -> list[Contrasted]:
        """One finding a group; `known` are its criteria in use, `seed` is this call's."""
        stop = ("###",) if self.prompt == "few_shot" else self.sampling.stop
        found = {i: Contrasted(None) for i in range(len(groups))}
        for attempt in range(self.attempts):
            pending = [i for i, f in found.items() if f.criteria is None]
            prompts = [self._asked(groups[i], known[i]) for i in pending]
            sampling = replace(self.sampling, seed=self.attempts * seed + attempt, stop=stop)
            for i, prompt, reply in zip(pending, prompts, self.anchor.attempt(prompts, sampling), strict=True):
                try:
                    criteria = read_rubric(prompt, reply, points=True)
                    if len(criteria) > self.most or any(abs(c.points) != 1 for c in criteria):
                        raise ValueError(f"{len(criteria)} criteria; allowed are {self.most}, of points 1 and -1")
                    found[i] = Contrasted(tuple(new(criteria, known[i], groups[i].rollouts)))
                except ValueError as error:
                    found[i] = Contrasted(None, str(error))
        return list(found.values())

    def _asked(self, group: Group, known: Sequence[Criterion]) -> Prompt:
        name, texts = f"rubric_contrast_{self.prompt}", [r.text for r in group.rollouts]
        about = {"question": group.question, "known": [c.text for c in known], "most": self.most}
        if not self.anchor.scores:
            return ask(name, rollouts=[text[:4_000] for text in texts], **about)  # it does not say what fits
        return fitted(self.anchor, self.sampling.max_new_tokens, name, texts, **about)
