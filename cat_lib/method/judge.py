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
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from cat_lib.method.verdicts import read
from cat_lib.models import open_model
from cat_lib.models.cache import Cache, key
from cat_lib.models.chat import fit
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
class _Asked:
    """One pair as the judge is asked about it; `prompt` has a hole for the criterion where it is read off logits."""

    response: str
    criterion: str
    prompt: Prompt
    keys: tuple[str, ...]  # of the cache: one for each reply that may be asked for, or one for the score


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
        asked = self._asked(pairs)
        found = self._known(asked.values())
        self.model.ledger.count(self.model.role, cache_hits=len(found))
        if missing := [a for a in asked.values() if a.keys[0] not in found]:
            found |= self._by_text(missing) if self.prompt == "text" else self._by_score(missing)
        verdicts = [found[asked[pair].keys[0]] for pair in pairs]
        self.model.ledger.count(self.model.role, failures=sum(v.met is None for v in verdicts))
        return verdicts

    def request(self, response: str, criterion: str) -> Prompt:
        """What the judge is asked about one pair."""
        text = plain(response) if self.fenced else valid(response).replace(_HOLE, "")
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 3]} [...] {text[-2 * LONGEST // 3 :]}"
        if self.model.scores:
            (text,) = fit(self.model, [text], self.model.context // 4)
        if self.fenced and self.prompt == "text":
            text = _TAGS.sub(r"[\1]", text)  # a quoted verdict is none of the judge's
        if self.fenced:
            text = fence(text) if self.prompt in ("chat", "text") else one_line(text)
        filled = fill(f"judge_{self.prompt}", response=text, criterion=one_line(criterion) or criterion)
        return filled if self.prompt in ("few_shot", "likelihood") else [{"role": "user", "content": filled}]

    def _asked(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], _Asked]:
        identity, text = self.identity, self.prompt == "text"
        heads = {r: self.request(r, _HOLE) for r in (() if text else dict.fromkeys(r for r, _ in pairs))}
        draws = [{"sampling": asdict(self._draw(a)), "index": [self.index, a]} for a in range(self.attempts)]
        asked = {}
        for response, criterion in dict.fromkeys(pairs):
            prompt = self.request(response, criterion) if text else heads[response]
            ways: list[dict[str, Any]] = draws if text else [{"criterion": criterion, "index": self.index}]
            keys = tuple(key(judge=identity, prompt=prompt, **way) for way in ways)
            asked[response, criterion] = _Asked(response, criterion, prompt, keys)
        return asked

    def _known(self, asked: Iterable[_Asked]) -> dict[str, Verdict]:
        """The verdicts that the cache holds, by first key. An entry without one counts as absent, whatever it is."""
        places = {k: a.keys[0] for a in asked for k in a.keys}
        kept = self.cache.get(list(places)) if self.cache else {}
        known = dict[str, Verdict]()
        for place in (p for p in places if p in kept):
            match kept[place]:
                case float(score) if math.isfinite(score):
                    known.setdefault(places[place], self._verdict(score))
                case [str(text), "stop"] if (verdict := parse(Completion(text, (), "stop"))).met is not None:
                    known.setdefault(places[place], verdict)
        return known

    def _keep(self, entries: dict[str, Any]) -> None:
        if self.cache and entries:
            self.cache.put(entries)

    def _verdict(self, score: float) -> Verdict:
        known = math.isfinite(score)
        return Verdict(score > self.threshold, score=score) if known else Verdict(None, f"the score is {score}")

    def _by_score(self, missing: Sequence[_Asked]) -> dict[str, Verdict]:
        rows, prompts = dict[str, list[str]](), {a.response: a.prompt for a in missing}
        for a in missing:
            rows.setdefault(a.response, []).append(a.criterion)
        likelihood = self.prompt == "likelihood"
        if likelihood:  # how likely each criterion is anyway
            rows["-"] = list(dict.fromkeys([*rows.get("-", []), *(c for cs in rows.values() for c in cs)]))
            prompts["-"] = self.request("-", _HOLE)
        heads, branches = [], []
        for response, criteria in rows.items():
            head, after = self._split(prompts[response])
            heads.append(head)
            branches.append([f" {one_line(c) or '-'}{after}" for c in criteria])
        space = "" if self.prompt == "chat" else " "
        words = () if likelihood else tuple(space + w for w in (*_YES, *_NO))
        scored = self.model.score(heads, branches, words)
        read = {
            (r, c): _log_odds(numbers) if words else numbers[0]
            for (r, cs), row in zip(rows.items(), scored, strict=True)
            for c, numbers in zip(cs, row, strict=True)
        }
        firsts = {(a.response, a.criterion): a.keys[0] for a in missing}
        found = {
            firsts[r, c]: score - (read["-", c] if likelihood else 0.0)
            for (r, c), score in read.items()
            if (r, c) in firsts
        }
        self._keep({first: score for first, score in found.items() if math.isfinite(score)})
        return {first: self._verdict(score) for first, score in found.items()}

    def _split(self, request: Prompt) -> tuple[list[int], str]:
        """The tokens before the criterion, and the text after it up to where the answer stands."""
        return (self.model if isinstance(request, str) else self.model.direct()).split(request, _HOLE)

    def _by_text(self, missing: Sequence[_Asked]) -> dict[str, Verdict]:
        verdicts = dict[str, Verdict]()
        pending = list({a.keys[0]: a for a in missing}.values())  # pairs that come to the same are judged once
        for attempt in range(self.attempts):
            if not pending:
                break
            replies = self._ask(pending, attempt)
            verdicts |= {a.keys[0]: parse(reply) for a, reply in zip(pending, replies, strict=True)}
            # a malformed reply may come right; the endpoint has retried its own failures
            again = [a for a, reply in zip(pending, replies, strict=True) if isinstance(reply, Completion)]
            pending = [a for a in again if verdicts[a.keys[0]].met is None]
        return verdicts

    def _draw(self, attempt: int) -> Sampling:
        """How the n-th reply is drawn: a greedy one that was malformed would come again, so later ones are sampled."""
        temperature = self.sampling.temperature if attempt == 0 else max(0.7, self.sampling.temperature)
        return replace(self.sampling, temperature=temperature, seed=self.sampling.seed + 1000 * self.index + attempt)

    def _ask(self, asked: Sequence[_Asked], attempt: int) -> Sequence[Completion | AnswerError]:
        """One reply each. Those with a verdict are kept as they come: an interrupt loses nothing that was paid."""

        def keep(i: int, reply: Completion) -> None:
            if parse(reply).met is not None:
                self._keep({asked[i].keys[attempt]: [reply.text, reply.finish]})

        return self.model.attempt([a.prompt for a in asked], self._draw(attempt), keep)


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
