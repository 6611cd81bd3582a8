"""Verdicts: does a response meet a criterion? One function, whatever the judge is.

- `probability`: models whose logits are at hand. No text is generated: all criteria of a response are read off one
  pass over it (`Model.score`). Three prompts: `chat` and `few_shot` take the log-odds of yes against no;
  `likelihood` takes log p(criterion | response) - log p(criterion | no response), a mean over tokens, for models too
  small to answer a question about a text. `audit.calibrate` sets the threshold.
- `text`: any model. A one-sentence reason, then a verdict, read by `verdicts.read`; a malformed reply is asked again.

The response comes first and the criterion last, so that what the criteria share is computed once. A failed verdict
is None with its cause; it is never "not met". As in the paper (section 3.2.2) the judge does not see the question.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from cat_lib.method.verdicts import read
from cat_lib.models import open_model
from cat_lib.models.cache import Cache, key
from cat_lib.models.fitting import fit
from cat_lib.prompts import fence, fill, one_line, plain, valid, without_thinking
from cat_lib.schema import AnswerError, Completion, Model, Prompt, Sampling, Verdict

PROMPTS = ("chat", "few_shot", "likelihood", "text")
# Most characters of a response that are judged, and with a local model at most a quarter of its context in tokens. Of a
# longer one the first third and the last two thirds of that are shown, with [...] between.
LONGEST = 12_000
_HOLE = "\x00"  # stands for the criterion until the prompt is split there; `plain` takes it out of responses
_TAGS = re.compile(r"<(/?\s*(?:reason|verdict)\s*)>", re.IGNORECASE)  # of the reply, written by a response
_YES, _NO = ("yes", "Yes"), ("no", "No")


@dataclass(frozen=True)
class Judge:
    """A judge; call it with (response, criterion) pairs, get one verdict each, in order.

    `prompt` is one of PROMPTS; "text" is the text way. `threshold` is what a probability score must exceed.
    Raises ValueError for an unknown prompt, or for a probability prompt with a model behind an endpoint.
    """

    model: Model
    prompt: Literal["chat", "few_shot", "likelihood", "text"] = "chat"
    threshold: float = 0.0
    fenced: bool = True  # off only to measure what the fence is worth
    cache: Cache | None = None
    attempts: int = 3  # in the text way: replies asked for before a verdict is given up
    sampling: Sampling = Sampling(200, temperature=0.0)  # noqa: RUF009  # frozen: safe to share
    index: int = 0  # which of several independent verdicts on the same pair this is; part of the cache key

    def __post_init__(self) -> None:
        if self.prompt not in PROMPTS:
            raise ValueError(f"judge prompt {self.prompt!r}: allowed are {', '.join(PROMPTS)}")
        if self.prompt != "text" and not self.model.scores:
            raise ValueError(f"judge prompt {self.prompt!r} needs logits, which an endpoint does not give; take 'text'")

    @property
    def identity(self) -> str:
        """Model and prompt, for tables and for the record of a run."""
        return f"{self.model.identity} {self.prompt}"

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        if self.prompt == "text":
            return self._by_text(pairs)
        scores = self._scores(list(dict.fromkeys(pairs)))
        found = [scores[pair] for pair in pairs]
        lost = sum(not math.isfinite(s) for s in found)
        self.model.ledger.count(self.model.role, failures=lost)
        return [
            Verdict(s > self.threshold, score=s) if math.isfinite(s) else Verdict(None, f"the score is {s}")
            for s in found
        ]

    def request(self, response: str, criterion: str) -> Prompt:
        """What the judge is asked about one pair."""
        text = plain(response) if self.fenced else valid(response).replace(_HOLE, "")
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 3]} [...] {text[-2 * LONGEST // 3 :]}"
        if self.model.scores:
            (text,) = fit(self.model, [text], self.model.context // 4)
        if self.fenced:
            text = (
                _TAGS.sub(r"[\1]", text) if self.prompt == "text" else text
            )  # a quoted verdict is none of the judge's
            text = fence(text) if self.prompt in ("chat", "text") else one_line(text)
        filled = fill(f"judge_{self.prompt}", response=text, criterion=one_line(criterion) or criterion)
        return filled if self.prompt in ("few_shot", "likelihood") else [{"role": "user", "content": filled}]

    def _scores(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], float]:
        identity, known = self.identity, dict[str, float]()
        prompts = {response: self.request(response, _HOLE) for response, _ in pairs}
        keys = {(r, c): key(judge=identity, prompt=prompts[r], criterion=c, index=self.index) for r, c in pairs}
        if self.cache:
            kept = self.cache.get(list(keys.values()))
            known = {k: s for k, s in kept.items() if isinstance(s, float) and math.isfinite(s)}
            self.model.ledger.count(self.model.role, cache_hits=len(known))
        missing: dict[str, list[str]] = {}
        for response, criterion in pairs:
            if keys[response, criterion] not in known:
                missing.setdefault(response, []).append(criterion)
        if missing:
            fresh = self._score(missing)
            known |= {keys[pair]: score for pair, score in fresh.items()}
            if self.cache:
                self.cache.put({keys[pair]: score for pair, score in fresh.items() if math.isfinite(score)})
        return {pair: known[keys[pair]] for pair in pairs}

    def _score(self, missing: dict[str, list[str]]) -> dict[tuple[str, str], float]:
        rows = dict(missing)
        if self.prompt == "likelihood":  # how likely each criterion is anyway
            rows["-"] = list(dict.fromkeys([*rows.get("-", []), *(c for cs in missing.values() for c in cs)]))
        heads, branches = [], []
        for response, criteria in rows.items():
            head, after = self._split(response)
            heads.append(head)
            branches.append([f" {one_line(c) or '-'}{after}" for c in criteria])
        words = (
            ()
            if self.prompt == "likelihood"
            else tuple(("" if self.prompt == "chat" else " ") + w for w in (*_YES, *_NO))
        )
        scored = self.model.score(heads, branches, words)
        found = {
            (r, c): _log_odds(numbers) if words else numbers[0]
            for (r, cs), row in zip(rows.items(), scored, strict=True)
            for c, numbers in zip(cs, row, strict=True)
        }
        if words:
            return found
        return {(r, c): found[r, c] - found["-", c] for r, cs in missing.items() for c in cs}

    def _split(self, response: str) -> tuple[list[int], str]:
        """The tokens before the criterion, and the text after it up to where the answer stands."""
        request = self.request(response, _HOLE)
        return (self.model if isinstance(request, str) else self.model.direct()).split(request, _HOLE)

    def _by_text(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        requests = [self.request(*pair) for pair in pairs]
        prompts = {self._key(p, 0): p for p in requests}  # each once
        verdicts = self._known(prompts)
        self.model.ledger.count(self.model.role, cache_hits=len(verdicts))
        pending = [k for k in prompts if k not in verdicts]
        for attempt in range(self.attempts):
            if not pending:
                break
            replies = self._ask([prompts[k] for k in pending], attempt)
            verdicts |= {k: parse(reply) for k, reply in zip(pending, replies, strict=True)}
            # a malformed reply may come right; the endpoint has retried its own failures
            again = [k for k, r in zip(pending, replies, strict=True) if isinstance(r, Completion)]
            pending = [k for k in again if verdicts[k].met is None]
        found = [verdicts[self._key(p, 0)] for p in requests]
        self.model.ledger.count(self.model.role, failures=sum(v.met is None for v in found))
        return found

    def _draw(self, attempt: int) -> Sampling:
        """How the n-th reply is drawn: a greedy one that was malformed would come again, so later ones are sampled."""
        temperature = self.sampling.temperature if attempt == 0 else max(0.7, self.sampling.temperature)
        return replace(self.sampling, temperature=temperature, seed=self.sampling.seed + 1000 * self.index + attempt)

    def _key(self, prompt: Prompt, attempt: int) -> str:
        drawn = asdict(self._draw(attempt))
        return key(judge=self.identity, prompt=prompt, sampling=drawn, index=[self.index, attempt])

    def _known(self, prompts: dict[str, Prompt]) -> dict[str, Verdict]:
        """The verdicts that the cache holds. An entry that gives none counts as absent, whatever it is."""
        if not self.cache:
            return {}
        places = {self._key(p, a): first for first, p in prompts.items() for a in range(self.attempts)}
        known = dict[str, Verdict]()
        for place, entry in self.cache.get(list(places)).items():
            match entry:
                case [str(text), "stop"] if (verdict := parse(Completion(text, (), "stop"))).met is not None:
                    known.setdefault(places[place], verdict)
        return known

    def _ask(self, prompts: Sequence[Prompt], attempt: int) -> Sequence[Completion | AnswerError]:
        """One reply each. Those with a verdict are kept as they come: an interrupt loses nothing that was paid."""

        def keep(i: int, reply: Completion) -> None:
            if self.cache and parse(reply).met is not None:
                self.cache.put({self._key(prompts[i], attempt): [reply.text, reply.finish]})

        return self.model.attempt(prompts, self._draw(attempt), keep)


def parse(reply: Completion | AnswerError) -> Verdict:
    """The verdict in a reply of the text way, or None with the cause: never a guess."""
    if not isinstance(reply, Completion):
        return Verdict(None, f"{reply.cause}: {reply}")
    if reply.ended:
        return read(reply.text)
    thinking = not without_thinking(reply.text).strip()
    advice = " while thinking: switch thinking off at its server, or give it more tokens" if thinking else ""
    return Verdict(None, f"the reply was cut off{advice}")


def _log_odds(logp: Sequence[float]) -> float:
    """log p(yes or Yes) - log p(no or No)."""
    half = len(logp) // 2
    yes, no = (max(part) + math.log(sum(math.exp(x - max(part)) for x in part)) for part in (logp[:half], logp[half:]))
    return yes - no


def open_judge_model(name: str, anchor: Model, **endpoint: Any) -> Model:
    """The judge that `name` says: "anchor" (the frozen initial model), `endpoint:MODEL@URL`, or a model's name.

    `endpoint` are an endpoint's settings. Its costs go to the anchor's ledger, under `judge`.
    """
    return anchor.anchor("judge") if name == "anchor" else open_model(name, "judge", anchor.ledger, **endpoint)
