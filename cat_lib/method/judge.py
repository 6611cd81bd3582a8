"""Verdicts: does a response meet a criterion? One function, whatever the judge is.

- `probability`: models whose logits are at hand. No text is generated: all criteria of a response are read off one
  pass over it (`Model.score`). Three prompts: `chat` and `few_shot` take the log-odds of yes against no;
  `likelihood` takes log p(criterion | response) - log p(criterion | no response), a mean over tokens, for models too
  small to answer a question about a text. `audit.calibrate` sets the threshold.
- `text`: any model. A one-sentence reason, then a verdict, read by `verdicts.read`; a malformed reply is asked again.
  `graded` is the same with a verdict of 0, 1 or 2, which is DR Tulu's (figure 12).

The response comes first and the criterion last, so that what the criteria share is computed once. A failed verdict
is None with its cause; it is never "not met". As in the paper (section 3.2.2) the judge does not see the question.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

from cat_lib.method.verdicts import FORM, GRADES, read
from cat_lib.models import open_model
from cat_lib.models.cache import Cache, key
from cat_lib.models.chat import fit
from cat_lib.prompts import ask, fence, one_line, plain, valid
from cat_lib.schema import AnswerError, Completion, Model, Prompt, Sampling, Verdict

Way = Literal["chat", "few_shot", "likelihood", "text", "graded"]
# Most characters of a response that are judged, and with a local model at most a quarter of its context in tokens. Of a
# longer one the first third and the last two thirds of that are shown, with [...] between.
LONGEST = 12_000
_HOLE = "\x00"  # stands for the criterion until the prompt is split there; `plain` takes it out of responses
_TAGS = re.compile(r"<(/?\s*(?:reason|verdict)\s*)>", re.IGNORECASE)  # of the reply, written by a response
_WORDS = ("yes", "Yes", "no", "No")


class _Asked(NamedTuple):
    """One pair as the judge is asked about it; `prompt` has a hole for the criterion where it is read off logits."""

    response: str
    criterion: str
    prompt: Prompt
    keys: tuple[str, ...]  # of the cache: one for each reply that may be asked for, or one for the score


@dataclass(frozen=True)
class Judge:
    """A judge; call it with (response, criterion) pairs, get one verdict each, in order.

    `prompt` "text" is the text way, "graded" the same in grades. `threshold` is what a probability score must exceed.
    Raises ValueError for an unknown prompt, or for a probability prompt with a model behind an endpoint.
    """

    model: Model
    prompt: Way = "chat"
    threshold: float = 0.0
    fenced: bool = True  # off only to measure what the fence is worth
    cache: Cache | None = None
    attempts: int = 3  # in the text way: replies asked for before a verdict is given up
    sampling: Sampling = Sampling(200, temperature=0.0)  # noqa: RUF009  # frozen: safe to share
    index: int = 0  # which of several independent verdicts on the same pair this is; part of the cache key

    def __post_init__(self) -> None:
        if self.prompt not in get_args(Way):
            raise ValueError(f"judge prompt {self.prompt!r}: allowed are {', '.join(get_args(Way))}")
        if not self.worded and not self.model.scores:
            raise ValueError(f"judge prompt {self.prompt!r} needs logits, which an endpoint does not give; take 'text'")

    @property
    def worded(self) -> bool:
        """Whether it writes its verdicts, and nothing is read off logits."""
        return self.prompt in ("text", "graded")

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        ledger, role, asked = self.model.ledger, self.model.role, self._asked(pairs)
        verdicts = self._known(asked.values())
        ledger.add(role, calls=0, cache_hits=len(verdicts))
        # pairs that come to the same are judged once
        pending = list({a.keys: a for a in asked.values() if a.keys not in verdicts}.values())
        for attempt in range(self.attempts):
            if not pending:
                break
            answers = self._replies(pending, attempt) if self.worded else self._scores(pending)
            verdicts |= {a.keys: self._verdict(answer) for a, answer in zip(pending, answers, strict=True)}
            # a malformed reply may come right; a score stays, and the endpoint has retried its own failures
            again = [a for a, answer in zip(pending, answers, strict=True) if isinstance(answer, Completion)]
            pending = [a for a in again if verdicts[a.keys].met is None]
        found = [verdicts[asked[pair].keys] for pair in pairs]
        ledger.add(role, calls=0, failures=sum(v.met is None for v in found))
        return found

    def request(self, response: str, criterion: str) -> Prompt:
        """What the judge is asked about one pair."""
        text = plain(response) if self.fenced else valid(response).replace(_HOLE, "")
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 3]} [...] {text[-2 * LONGEST // 3 :]}"
        if self.model.scores:
            (text,) = fit(self.model, [text], self.model.context // 4)
        if self.fenced and self.worded:
            text = _TAGS.sub(r"[\1]", text)  # a quoted verdict is none of the judge's
        if self.fenced:
            text = fence(text) if self.worded or self.prompt == "chat" else one_line(text)
        return ask(f"judge_{self.prompt}", response=text, criterion=one_line(criterion) or criterion)

    def _asked(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], _Asked]:
        about: dict[str, Any] = {"judge": f"{self.model.identity} {self.prompt}"}
        text, asked = self.worded, dict[tuple[str, str], _Asked]()
        heads = {} if text else {r: self.request(r, _HOLE) for r in dict.fromkeys(r for r, _ in pairs)}
        sampled = [asdict(self._draw(a)) for a in range(self.attempts)]
        # without form and tool, keys are as they were before there were any: first replies that were paid for stay
        draws = [
            {"sampling": {k: v for k, v in s.items() if k not in ("form", "tool") or v}, "index": [self.index, a]}
            for a, s in enumerate(sampled)
        ]
        for response, criterion in dict.fromkeys(pairs):
            about["prompt"] = prompt = self.request(response, criterion) if text else heads[response]
            ways = draws if text else [{"criterion": criterion, "index": self.index}]
            asked[response, criterion] = _Asked(response, criterion, prompt, tuple(key(**about, **way) for way in ways))
        return asked

    def _known(self, asked: Iterable[_Asked]) -> dict[tuple[str, ...], Verdict]:
        """The verdicts that the cache holds, by keys. An entry without one counts as absent, whatever it is."""
        kept = self.cache.get([k for a in asked for k in a.keys]) if self.cache else {}
        known = dict[tuple[str, ...], Verdict]()
        for a in asked:
            for entry in (kept[k] for k in a.keys if k in kept):
                match entry:
                    case float():
                        verdict = self._verdict(entry)
                    case [str(text), "stop"]:
                        verdict = self._verdict(Completion(text, (), "stop"))
                    case _:
                        continue
                if verdict.met is not None:
                    known.setdefault(a.keys, verdict)
        return known

    def _verdict(self, answer: Completion | AnswerError | float) -> Verdict:
        if not isinstance(answer, float):
            return read(answer, self.prompt == "graded")
        known = math.isfinite(answer)
        return Verdict(answer > self.threshold, score=answer) if known else Verdict(None, f"the score is {answer}")

    def _scores(self, asked: Sequence[_Asked]) -> list[float]:
        """Log-odds or log-likelihoods of all criteria of a response off one pass over it."""
        likelihood, pairs = self.prompt == "likelihood", [(a.response, a.criterion) for a in asked]
        anyway = [("-", criterion) for _, criterion in pairs if likelihood]  # how likely each criterion is anyway
        reader = self.model.direct() if self.prompt == "chat" else self.model  # a word is read where no thought is due
        prompts = {"-": self.request("-", _HOLE)} | {a.response: a.prompt for a in asked}
        rows, heads, branches = dict[str, list[str]](), [], []
        for response, criterion in dict.fromkeys([*pairs, *anyway]):
            rows.setdefault(response, []).append(criterion)
        for response, criteria in rows.items():
            head, after = reader.split(prompts[response], _HOLE)
            heads.append(head)
            branches.append([f" {one_line(c) or '-'}{after}" for c in criteria])
        words = () if likelihood else _WORDS if self.prompt == "chat" else [f" {word}" for word in _WORDS]
        found = iter([n for row in self.model.score(heads, branches, words) for n in row])
        logp = {(r, c): next(found) for r, criteria in rows.items() for c in criteria}
        scores = [logp[r, c][0] - logp["-", c][0] if likelihood else _log_odds(logp[r, c]) for r, c in pairs]
        if self.cache:
            self.cache.put({a.keys[0]: s for a, s in zip(asked, scores, strict=True) if math.isfinite(s)})
        return scores

    def _replies(self, asked: Sequence[_Asked], attempt: int) -> Sequence[Completion | AnswerError]:
        """One reply each. Those with a verdict are kept as they come: an interrupt loses nothing that was paid."""

        def keep(i: int, reply: Completion) -> None:
            if self.cache and self._verdict(reply).met is not None:
                self.cache.put({asked[i].keys[attempt]: [reply.text, reply.finish]})

        return self.model.attempt([a.prompt for a in asked], self._draw(attempt), keep)

    def _draw(self, attempt: int) -> Sampling:
        """How the n-th reply is drawn: a malformed one that was greedy would come again, so later ones are sampled.

        An engine that can hold a model to the form does so from then on.
        """
        temperature = self.sampling.temperature if attempt == 0 else max(0.7, self.sampling.temperature)
        form = GRADES if self.prompt == "graded" else FORM
        seed, form = self.sampling.seed + 1000 * self.index + attempt, form if attempt else ""
        return replace(self.sampling, temperature=temperature, seed=seed, form=form)


def _log_odds(logp: Sequence[float]) -> float:
    """log p(yes or Yes) - log p(no or No), of _WORDS in order."""
    yes, no = (max(part) + math.log(sum(math.exp(x - max(part)) for x in part)) for part in (logp[:2], logp[2:]))
    return yes - no


def open_judge_model(name: str, anchor: Model, **endpoint: Any) -> Model:
    """The judge that `name` says: "anchor" (the frozen initial model), `endpoint:MODEL@URL`, or a model's name.

    `endpoint` are an endpoint's settings. Its costs go to the anchor's ledger, under `judge`.
    """
    return anchor.anchor("judge") if name == "anchor" else open_model(name, "judge", anchor.ledger, **endpoint)
