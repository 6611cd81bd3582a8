"""Any OpenAI-compatible chat server as a model: `endpoint:MODEL@URL`, the key from `CAT_LIB_API_KEY`.

Requests run concurrently under a cap; each has a deadline that holds its retries too. What may pass (no connection,
a full queue, a rate limit, an answer cut off in the middle) is tried again with growing pauses; what will not
(a wrong key, an unknown model, a prompt that is too long, a content filter) is not. A request that fails is an
`EndpointError` with its cause in its place in the list, never an empty answer. The key is never part of a message, a
log or a run. Fields at their default are not sent; one that the server refuses is left out for the rest of the
process, and said once. The client runs in a thread with an event loop of its own, so that it works in Jupyter and in
TRL's reward functions; an interrupt cancels what is in flight. `replies.py` reads what comes.

Left out: log-probabilities (servers differ too much in what they return) and streaming.
"""

from __future__ import annotations

import asyncio
import random
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn
from urllib.parse import urlsplit

from anyio.from_thread import start_blocking_portal

from cat_lib.ledger import Ledger, clock
from cat_lib.models import ModelError, replies
from cat_lib.models.replies import KEY, EndpointError
from cat_lib.schema import Completion, Keep, Prompt, Sampling

__all__ = ["KEY", "PREFIX", "EndpointError", "EndpointModel", "parse"]
PREFIX = "endpoint:"
# fields that a server refused, by model: the name that it takes instead, "" for none
_REFUSED: dict[str, dict[str, str]] = {}
_UNCOUNTED: set[str] = set()  # models whose server does not count tokens, and that were told of


def _lacks(what: str) -> Any:
    """A method that refuses, as all that a chat server does not have."""

    def refuse(self: EndpointModel, *asked: Any, **named: Any) -> NoReturn:
        wanted = what.format(*asked, *named.values())
        raise ModelError(f"model={self.name!r} {wanted}: take a local model (engine transformers)")

    return refuse


@dataclass
class EndpointModel:
    """A model behind a server. Prices are dollars per million prompt and completion tokens."""

    model: str
    url: str
    role: str = "judge"
    concurrency: int = 8
    deadline: float = 120.0  # seconds for one request with all its retries
    attempts: int = 8  # with their pauses, most of a minute: what a limit by the minute takes
    prices: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    heard: Callable[[Mapping[str, Any], str], object] | None = None  # told of each request's fields and the body back
    thinking = scores = False  # whether it thinks is set at its server

    encode = decode = split = _lacks("gives no tokens and does not say how many fit")
    context = property(encode)
    logprobs = score = _lacks("gives no log-probabilities of a given text")
    adapter = _lacks("has no adapter {!r}")

    @property
    def name(self) -> str:
        """As `parse` reads it, and what a cache of its answers is keyed by."""
        return f"{PREFIX}{self.model}@{self.url}"

    identity = name

    @property
    def refuses(self) -> dict[str, str]:
        """Fields that the server has refused in this process, with the name that it takes instead, or ""."""
        return dict(_REFUSED.get(self.identity, {}))

    def anchor(self, role: str = "anchor") -> EndpointModel:
        """Itself in another role: nothing trains it."""
        return replace(self, role=role)

    def direct(self) -> EndpointModel:
        """Itself: whether it thinks is set at its server."""
        return self

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> list[list[Completion]]:
        """n completions of each prompt, all of them. Raises EndpointError, the first failure, if one is missing."""
        whole: list[Completion] = []
        for answer in self.attempt([p for p in prompts for _ in range(n)], sampling):
            if isinstance(answer, EndpointError):
                raise answer
            whole.append(answer)
        return [whole[i * n :][:n] for i in range(len(prompts))]

    def attempt(
        self, prompts: Sequence[Prompt], sampling: Sampling, keep: Keep | None = None
    ) -> list[Completion | EndpointError]:
        """One completion of each prompt, or the error that took its place. Seeds differ by position.

        `keep` is called with each answer as it comes, from another thread. Ctrl-C ends what is in flight.
        Raises ValueError for sampling with `top_k`, which the API does not have, or a tool.
        """
        if sampling.tool:
            raise ValueError("an endpoint draws no rollouts that call a tool; take engine=transformers")
        if sampling.top_k:
            raise ValueError(f"top_k={sampling.top_k}: servers of this API lack that setting; take top_k=0 and top_p")
        start = clock()
        try:
            with start_blocking_portal() as portal:
                return portal.call(self._all, prompts, sampling, keep)
        finally:
            self.ledger.add(self.role, calls=0, seconds=clock() - start)

    async def _all(
        self, prompts: Sequence[Prompt], sampling: Sampling, keep: Keep | None
    ) -> list[Completion | EndpointError]:
        from openai import AsyncOpenAI

        try:
            # the client's own retries would not count against the deadline, which is kept here
            client = AsyncOpenAI(base_url=self.url, api_key=replies.key(), max_retries=0, timeout=None)
        except EndpointError as error:
            return [error] * len(prompts)
        except Exception as error:  # what the client makes of a proxy or certificate that can't be used
            names = replies.environment() or "proxies and certificates"
            said = f"{self.url}: can't be asked with this environment ({type(error).__name__}); see to {names}"
            return [EndpointError("environment", said)] * len(prompts)
        gate, shut = asyncio.Semaphore(self.concurrency), list[EndpointError]()

        async def one(prompt: Prompt, index: int) -> Completion | EndpointError:
            async with gate:
                if shut:  # a limit that outlasts the deadline holds for those who have not asked yet
                    return shut[0]
                try:
                    async with asyncio.timeout(self.deadline):
                        answer = await self._ask(client, self._fields(prompt, sampling, sampling.seed + index))
                except TimeoutError:
                    return EndpointError("deadline", f"{self.url}: no answer within {self.deadline:g} s")
                except EndpointError as error:  # made anew: its context is the client's error, which holds the key
                    failed = EndpointError(error.cause, f"{self.url}: {error}")
                    if error.wait > self.deadline:
                        shut.append(failed)
                    return failed
                except Exception as error:  # one odd answer must not cost the others theirs
                    return EndpointError("broken", f"{self.url}: unreadable answer ({type(error).__name__})")
                if keep:
                    keep(index, answer)
                return answer

        async with client:
            return list(await asyncio.gather(*(one(p, i) for i, p in enumerate(prompts))))

    def _fields(self, prompt: Prompt, sampling: Sampling, seed: int) -> dict[str, Any]:
        """What is asked: no field at its default, since servers refuse fields that they do not know."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        fields = {"model": self.model, "messages": messages, "max_tokens": sampling.max_new_tokens, "seed": seed}
        chosen = {"temperature": sampling.temperature, "top_p": sampling.top_p, "stop": list(sampling.stop)}
        return fields | {k: v for k, v in chosen.items() if v not in (1.0, [])}

    async def _ask(self, client: Any, fields: Mapping[str, Any]) -> Completion:
        """Ask, without what the server refuses, until there is an answer, or a failure that time will not mend."""
        end, tried, without = clock() + self.deadline, 0, self.refuses
        while True:
            sent = {without.get(k, k): v for k, v in fields.items() if without.get(k, k)}
            try:
                body = await self._post(client, sent)
                self._remember(without)
                self._bill(body)
                return replies.completion(body, fields["max_tokens"])
            except EndpointError as error:
                failed = error
            if failed.cause == "refused" and (name := replies.unwanted(failed.said, sent)):
                without[name] = "max_completion_tokens" if name == "max_tokens" else ""
                continue
            pause = max(min(20.0, 0.5 * 2.0**tried) + random.random(), failed.wait)
            tried, late = tried + 1, clock() + pause > end
            if failed.cause not in replies.PASSING or tried >= self.attempts or late:
                asks = f"; it asks to wait {failed.wait:.0f} s, of the deadline {end - clock():.0f} s are left"
                raise EndpointError(failed.cause, f"{failed}{asks if late and failed.wait else ''}", failed.wait)
            await asyncio.sleep(pause)

    async def _post(self, client: Any, fields: Mapping[str, Any]) -> object:
        """The JSON object that came. Raises EndpointError for anything else."""
        import openai

        text, failed = "", None
        try:
            text = (await client.chat.completions.with_raw_response.create(**fields)).http_response.text
        except openai.APIConnectionError as error:
            failed = replies.disconnected(error)
        except openai.APIStatusError as error:
            text = error.response.text
            failed = replies.refused(error.status_code, replies.parsed(text), error.response.headers)
        if self.heard:
            self.heard(fields, replies.masked(text))
        body = replies.parsed(text)
        if failed or not isinstance(body, dict):
            raise failed or EndpointError("broken", "no chat completion; does the URL end in /v1?")
        return body

    def _remember(self, without: Mapping[str, str]) -> None:
        """That the server answers without these fields, which is said once."""
        if new := {k: v for k, v in without.items() if k not in self.refuses}:
            _REFUSED.setdefault(self.identity, {}).update(new)
            names = ", ".join(f"{k} (sent as {v})" if v else k for k, v in new.items())
            warnings.warn(f"{self.identity} refuses {names}; left out, it is at the server's default", stacklevel=2)

    def _bill(self, body: object) -> None:
        """Add a call to the ledger. What the server did not count is not made up, and said once."""
        counted = replies.tokens(body)
        if None in counted and self.identity not in _UNCOUNTED:
            _UNCOUNTED.add(self.identity)
            warnings.warn(f"{self.identity} does not count all tokens: its cost is more than shown", stacklevel=2)
        (asked, answered), prices = (n or 0 for n in counted), self.prices.get(self.model, (0.0, 0.0))
        usd = (prices[0] * asked + prices[1] * answered) / 1e6
        self.ledger.add(self.role, prompt_tokens=asked, completion_tokens=answered, usd=usd)


def parse(name: str, **settings: Any) -> EndpointModel:
    """The model that `endpoint:MODEL@URL` names. Raises ValueError for another form, or a URL with a password."""
    found, form = re.fullmatch(rf"{PREFIX}(.+?)@(https?://\S+)", name), "write endpoint:MODEL@http://HOST:PORT/v1"
    if re.search("[@?]", name.partition("://")[2]):  # not shown: it may hold the key
        raise ValueError(f"the URL of an endpoint holds no user, password or query: set {KEY} to the key, and {form}")
    with suppress(ValueError):  # a port that is no number, half an address
        if found and urlsplit(found[2]).hostname and urlsplit(found[2]).port != 0:
            return EndpointModel(found[1], found[2], **settings)
    raise ValueError(f"'{name.partition('@')[0]}@...' is no endpoint; {form}")
