"""Any OpenAI-compatible chat server as a model: `endpoint:MODEL@URL`, the key from `CAT_LIB_API_KEY`.

Requests run concurrently under a cap; each has a deadline that holds its retries too. What may pass (no connection,
a full queue, a rate limit, an answer cut off in the middle) is tried again with growing pauses; what will not
(a wrong key, an unknown model, a prompt that is too long, a content filter) is not. A request that fails is an
`EndpointError` with its cause in its place in the list, never an empty answer. The key is never part of a message, a
log or a run. Fields at their default are not sent; one that the server refuses is left out for the rest of the
process, and said once.

The client runs in a thread with an event loop of its own, so that it works in Jupyter and in TRL's reward functions;
an interrupt cancels what is in flight. `replies.py` reads what comes.
Left out: log-probabilities (servers differ too much in what they return) and streaming.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import warnings
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from cat_lib.ledger import Ledger, clock
from cat_lib.models import ModelError, replies
from cat_lib.models.replies import KEY, EndpointError
from cat_lib.schema import Completion, Keep, Prompt, Sampling

__all__ = ["KEY", "PREFIX", "EndpointError", "EndpointModel", "parse"]
PREFIX = "endpoint:"
_T = TypeVar("_T")
_GRACE = 1.5  # seconds that an interrupt waits for cancelled requests to close
# fields that a server refused, by model: the name that it takes instead, "" for none
_REFUSED: dict[str, dict[str, str]] = {}
_UNCOUNTED: set[str] = set()  # models whose server does not count tokens, and that were told of


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
    heard: Callable[[Mapping[str, Any], str], None] | None = None  # told of each request's fields and the body back
    thinking = scores = False  # whether it thinks is set at its server

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

    def _lacks(self, what: str) -> NoReturn:
        raise ModelError(f"model={self.name!r} {what}: take a local model (engine transformers)")

    def _tokens(self, *_: Any, **__: Any) -> NoReturn:
        self._lacks("gives no tokens and does not say how many fit")

    def _logprobs(self, *_: Any, **__: Any) -> NoReturn:
        self._lacks("gives no log-probabilities of a given text")

    def adapter(self, name: str) -> NoReturn:
        """Refused, as all that a chat server does not have."""
        self._lacks(f"has no adapter {name!r}")

    context, encode, decode, split = property(_tokens), _tokens, _tokens, _tokens
    logprobs, score = _logprobs, _logprobs

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
        Raises ValueError for sampling with `top_k`, which the API does not have.
        """
        if sampling.top_k:
            raise ValueError(
                f"top_k={sampling.top_k}: servers of this API have no such setting; take top_k=0 and top_p"
            )
        start = clock()
        try:
            return _in_thread(self._all(prompts, sampling, keep))
        finally:
            self.ledger.add(self.role, calls=0, seconds=clock() - start)

    async def _all(
        self, prompts: Sequence[Prompt], sampling: Sampling, keep: Keep | None
    ) -> list[Completion | EndpointError]:
        from openai import AsyncOpenAI

        try:
            secret = replies.key()
            # the client's own retries would not count against the deadline
            client = AsyncOpenAI(base_url=self.url, api_key=secret, max_retries=0, timeout=self.deadline)
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
                        answer = await self._retried(client, secret, prompt, sampling, sampling.seed + index)
                except TimeoutError:
                    return EndpointError("deadline", f"{self.url}: no answer within {self.deadline:g} s")
                except EndpointError as error:
                    if error.wait > self.deadline:
                        shut.append(error)
                    return error
                except Exception as error:  # one odd answer must not cost the others theirs
                    return EndpointError("broken", f"{self.url}: unreadable answer ({type(error).__name__})")
                if keep:
                    keep(index, answer)
                return answer

        async with client:
            return list(await asyncio.gather(*(one(p, i) for i, p in enumerate(prompts))))

    async def _retried(self, client: Any, secret: str, prompt: Prompt, sampling: Sampling, seed: int) -> Completion:
        """Ask until there is an answer, or a failure that asking again within the deadline will not mend."""
        end, tried = clock() + self.deadline, 0
        while True:
            tried, late = tried + 1, ""
            try:
                return await self._ask(client, secret, prompt, sampling, seed)
            except EndpointError as error:
                failed = error
            pause = max(min(20.0, 0.5 * 2.0 ** (tried - 1)) + random.random(), failed.wait)
            if failed.wait and clock() + pause > end:
                late = f"; it asks to wait {failed.wait:.0f} s, of the deadline {end - clock():.0f} s are left"
            if late or failed.cause not in replies.PASSING or tried >= self.attempts or clock() + pause > end:
                said = replies.masked(f"{self.url}: {failed}{late}", secret)
                raise EndpointError(failed.cause, said, failed.wait, failed.said)
            await asyncio.sleep(pause)

    async def _ask(self, client: Any, secret: str, prompt: Prompt, sampling: Sampling, seed: int) -> Completion:
        """One answer, asked again without what the server refuses."""
        known = self.refuses
        without = dict(known)
        fields = self._fields(prompt, sampling, seed)
        while True:
            sent = {without.get(k, k): v for k, v in fields.items() if without.get(k, k)}
            try:
                body = await self._post(client, secret, sent)
                break
            except EndpointError as error:
                name = replies.unwanted(error.said, sent) if error.cause == "refused" else None
                if name is None:
                    raise
                without[name] = "max_completion_tokens" if name == "max_tokens" else ""
        if without.items() - self.refuses.items():
            names = ", ".join(f"{k} (sent as {v})" if v else k for k, v in without.items() if k not in known)
            _REFUSED.setdefault(self.identity, {}).update(without)
            warnings.warn(f"{self.identity} refuses {names}; left out, it is at the server's default", stacklevel=2)
        self._bill(body)
        return replies.completion(body, sampling.max_new_tokens)

    def _fields(self, prompt: Prompt, sampling: Sampling, seed: int) -> dict[str, Any]:
        """What is asked: no field at its default, since servers refuse fields that they do not know."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        fields = {"model": self.model, "messages": messages, "max_tokens": sampling.max_new_tokens, "seed": seed}
        chosen = {"temperature": sampling.temperature, "top_p": sampling.top_p, "stop": list(sampling.stop)}
        return fields | {k: v for k, v in chosen.items() if v not in (1.0, [])}

    async def _post(self, client: Any, secret: str, fields: Mapping[str, Any]) -> object:
        """The JSON that came. Raises EndpointError, outside the handlers: the client's error holds the key."""
        import openai

        text, failed = "", None
        try:
            text = (await client.chat.completions.with_raw_response.create(**fields)).http_response.text
        except openai.APITimeoutError:
            failed = EndpointError("deadline", f"no answer within {self.deadline:g} s")
        except openai.APIConnectionError as error:
            failed = replies.disconnected(error)
        except openai.APIStatusError as error:
            text, headers = error.response.text, error.response.headers
            failed = replies.refused(error.status_code, _json(text), headers, secret)
        if self.heard:
            self.heard(fields, replies.masked(text, secret))
        if failed is None and not isinstance(_json(text), dict):
            failed = EndpointError("broken", "no chat completion; does the URL end in /v1?")
        if failed is not None:
            raise failed
        return _json(text)

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
    try:
        usable = found is not None and urlsplit(found[2]).hostname and urlsplit(found[2]).port != 0
    except ValueError:  # a port that is no number, half an address
        usable = False
    if found is None or not usable:
        raise ValueError(f"'{name.partition('@')[0]}@...' is no endpoint; {form}")
    return EndpointModel(found[1], found[2], **settings)


def _json(text: str) -> object:
    """The JSON in a body, or the text where it holds none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _in_thread(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine in a thread of its own: the caller's may have a running event loop. An interrupt cancels it."""
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
    loop = runner.get_loop()

    def run() -> _T:
        with runner:
            return runner.run(work)

    pool = ThreadPoolExecutor(1)
    done = pool.submit(run)
    try:
        return done.result()
    except BaseException:
        with suppress(RuntimeError):  # the loop is closed: it failed by itself
            loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        wait([done], _GRACE)
        raise
    finally:
        pool.shutdown(wait=False)
