"""Any OpenAI-compatible chat server as a model: `endpoint:MODEL@URL`, the key from `CAT_LIB_API_KEY`.

Requests run concurrently under a cap; each has a deadline that holds its retries too. What may pass (no connection,
a full queue, a rate limit, an answer cut off in the middle) is tried again with growing pauses; what will not
(a wrong key, an unknown model, a prompt that is too long) is not. A request that fails is an `EndpointError` with its
cause in its place in the list, never an empty answer. The key is never part of a message, a log or a run.

The client runs in a thread with an event loop of its own, so that it works in Jupyter and in TRL's reward functions.
Left out: log-probabilities (servers differ too much in what they return) and streaming.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cat_lib.ledger import Ledger, clock
from cat_lib.schema import Completion, Prompt, Sampling

KEY = "CAT_LIB_API_KEY"
PREFIX = "endpoint:"
_T = TypeVar("_T")
_STOPPED, _CUT = ("stop", "eos", "end_turn"), ("length", "max_tokens")


class EndpointError(RuntimeError):
    """A request that got no usable answer. `cause` is one of: unreachable, key, refused, busy, deadline, broken."""

    def __init__(self, cause: str, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.cause, self.wait = cause, wait  # wait: seconds the server asked for


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

    @classmethod
    def parse(cls, name: str, **settings: Any) -> EndpointModel:
        """The model that `endpoint:MODEL@URL` names. Raises ValueError for another form."""
        model, _, url = name.removeprefix(PREFIX).rpartition("@")
        if not name.startswith(PREFIX) or not model or not url.startswith(("http://", "https://")):
            raise ValueError(f"{name!r} is no endpoint; write endpoint:MODEL@http://HOST:PORT/v1")
        return cls(model, url, **settings)

    @property
    def identity(self) -> str:
        """What a cache of its answers is keyed by."""
        return f"{PREFIX}{self.model}@{self.url}"

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> list[list[Completion]]:
        """n completions of each prompt, all of them. Raises EndpointError, the first failure, if one is missing."""
        answers = self.attempt([p for p in prompts for _ in range(n)], sampling)
        for answer in answers:
            if isinstance(answer, EndpointError):
                raise answer
        whole = [a for a in answers if isinstance(a, Completion)]
        return [whole[i * n :][:n] for i in range(len(prompts))]

    def attempt(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion | EndpointError]:
        """One completion of each prompt, or the error that took its place. Seeds differ by position.

        Raises ValueError for sampling with `top_k`, which the API does not have.
        """
        if sampling.top_k:
            raise ValueError(
                f"top_k={sampling.top_k}: servers of this API have no such setting; take top_k=0 and top_p"
            )
        start = clock()
        answers = _in_thread(self._all(prompts, sampling))
        self.ledger.add(self.role, calls=0, prompt_tokens=0, completion_tokens=0, flops=0.0, seconds=clock() - start)
        return answers

    async def _all(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion | EndpointError]:
        from openai import AsyncOpenAI

        gate = asyncio.Semaphore(self.concurrency)
        key = os.environ.get(KEY) or "none"
        # tenacity retries; the client's own retries would not count against the deadline
        async with AsyncOpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=self.deadline) as client:

            async def one(prompt: Prompt, index: int) -> Completion | EndpointError:
                async with gate:
                    try:
                        async with asyncio.timeout(self.deadline):
                            return await self._retried(client, prompt, sampling, sampling.seed + index)
                    except TimeoutError:
                        return EndpointError("deadline", f"{self.url}: no answer within {self.deadline:g} s")
                    except EndpointError as error:
                        return error
                    except Exception as error:  # one odd answer must not cost the others theirs
                        return EndpointError("broken", f"{self.url}: unreadable answer ({type(error).__name__})")

            return list(await asyncio.gather(*(one(p, i) for i, p in enumerate(prompts))))

    async def _retried(self, client: Any, prompt: Prompt, sampling: Sampling, seed: int) -> Completion:
        from tenacity import (
            AsyncRetrying,
            RetryCallState,
            retry_if_exception,
            stop_after_attempt,
            wait_exponential,
            wait_random,
        )

        passing = retry_if_exception(lambda e: isinstance(e, EndpointError) and e.cause in _PASSING)
        backoff = wait_exponential(multiplier=0.5, max=20) + wait_random(0, 1)

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return max(backoff(state), error.wait if isinstance(error, EndpointError) else 0.0)

        async for attempt in AsyncRetrying(
            retry=passing, stop=stop_after_attempt(self.attempts), wait=wait, reraise=True
        ):
            with attempt:
                return await self._ask(client, prompt, sampling, seed)
        raise AssertionError("unreachable: tenacity returns or raises")

    async def _ask(self, client: Any, prompt: Prompt, sampling: Sampling, seed: int) -> Completion:
        import openai

        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        failed: EndpointError | None = None
        try:
            reply = await client.chat.completions.create(
                model=self.model,
                messages=messages,
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                stop=list(sampling.stop) or None,
                seed=seed,
            )
        except openai.OpenAIError as error:
            failed = _cause(error, self)
        except ValueError as error:  # a body cut off in the middle is no JSON
            failed = EndpointError("broken", f"{self.url}: the answer is no JSON ({type(error).__name__})")
        if failed is not None:
            raise failed  # outside the handlers: the client's exception holds the request with its key
        if not isinstance(reply, openai.types.chat.ChatCompletion):  # an HTML page gives a string
            raise EndpointError("broken", f"{self.url}: no chat completion; does the URL end in /v1?")
        if reply.usage is not None:
            self._bill(reply.usage.prompt_tokens, reply.usage.completion_tokens)
        choice = reply.choices[0] if reply.choices else None
        if (
            choice is None
            or choice.message is None
            or choice.message.content is None
            or choice.finish_reason not in (*_STOPPED, *_CUT)
        ):
            finish = choice.finish_reason if choice else "no choice"
            raise EndpointError("broken", f"{self.url}: an answer without text ({finish})")
        return Completion(choice.message.content, (), "stop" if choice.finish_reason in _STOPPED else "length")

    def _bill(self, prompt_tokens: int, completion_tokens: int) -> None:
        price_in, price_out = self.prices.get(self.model, (0.0, 0.0))
        self.ledger.add(
            self.role,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            flops=0.0,
            seconds=0.0,
            usd=(price_in * prompt_tokens + price_out * completion_tokens) / 1e6,
        )


_PASSING = ("unreachable", "busy", "broken")


def _cause(error: Exception, model: EndpointModel) -> EndpointError:
    """The client's exception as one of our causes, with what to do; nothing of the request is repeated."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return EndpointError("deadline", f"{model.url}: no answer within {model.deadline:g} s")
    if isinstance(error, openai.APIConnectionError):
        return EndpointError("unreachable", f"{model.url}: no connection; start the server or correct the URL")
    status = getattr(error, "status_code", None)
    if status in (401, 403):
        return EndpointError("key", f"{model.url}: the key in {KEY} is not accepted ({status})")
    if status in (408, 409, 429) or (status is not None and status >= 500):
        response = getattr(error, "response", None)
        asked = response.headers.get("retry-after", "") if response is not None else ""
        seconds = float(asked) if asked.isdigit() else 0.0
        return EndpointError("busy", f"{model.url}: overloaded or rate-limited ({status})", seconds)
    if status is None:
        return EndpointError("broken", f"{model.url}: unreadable answer ({type(error).__name__})")
    return EndpointError(
        "refused", f"{model.url}: refused ({status}); model {model.model!r}, or the prompt, is not taken"
    )


def _in_thread(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine in a thread of its own: the caller's may have a running event loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
