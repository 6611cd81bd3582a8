"""What a chat server says, read: completions, tokens, and the causes of what went wrong. Nothing here asks anything.

A body is JSON of any shape: servers of this API differ, and no shape may raise anything but an `EndpointError`.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

from cat_lib.prompts import one_line, without_thinking
from cat_lib.schema import AnswerError, Completion

KEY = "CAT_LIB_API_KEY"
PASSING = ("unreachable", "busy", "broken")  # causes that may be gone a moment later
_CUT = ("length", "max_tokens", "max_output_tokens", "model_length")
_FILTERED = ("content_filter", "refusal", "safety", "recitation", "blocklist", "prohibited_content")
_THINKING = ("thinking", "redacted_thinking", "reasoning")  # parts of a message
_ENVIRONMENT = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
_SAID = 300  # characters of a server's own words that are repeated


class EndpointError(AnswerError):
    """A request that got no usable answer.

    `cause` is one of: unreachable, key, environment, refused, content filter, busy, deadline, broken. `wait` are the
    seconds that the server asked for, `said` its own words. The key is masked in its message.
    """

    def __init__(self, cause: str, message: str, wait: float = 0.0, said: str = "") -> None:
        super().__init__(masked(message))
        self.cause, self.wait, self.said = cause, wait, said


def key() -> str:
    """The key, or "none" for servers that want none. Raises EndpointError for what no header can hold."""
    found = os.environ.get(KEY, "").strip()
    if odd := re.search("[^!-~]", found):
        wrong = f"character {odd.end()} of {len(found)} is U+{ord(odd[0]):04X}"
        raise EndpointError("key", f"{KEY} is no key: {wrong}; set it again without quotes, spaces or line breaks")
    return found or "none"


def masked(text: str) -> str:
    """The text without the key, nor a piece of it from its start."""
    secret = os.environ.get(KEY, "").strip()
    rest = r"[^\s\"'\\]*" if len(secret) >= 8 else ""
    return text if secret in ("", "none") else re.sub(re.escape(secret[:8]) + rest, "***", text)


def parsed(text: str) -> object:
    """The JSON in a body, or the text where it holds none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def completion(body: object, most: int) -> Completion:
    """The answer in a body, without its thinking; `most` tokens were allowed. Raises EndpointError if there is none."""
    message, finish = at(body, "choices", 0, "message"), at(body, "choices", 0, "finish_reason")
    word, refusal = (said if isinstance(said, str) else "" for said in (finish, at(message, "refusal")))
    word = word.lower()
    if word in _FILTERED or refusal:
        why = one_line(refusal)[:_SAID] or word
        raise EndpointError("content filter", f"the server's filter gave no answer ({why})")
    spent = tokens(body)[1]
    # servers that don't say how an answer ended still count its tokens
    cut = word in _CUT or (word in ("", "unknown") and spent is not None and spent >= most)
    content = at(message, "content")
    parts = content if isinstance(content, list) else [content] if isinstance(content, str) else []
    texts = [p if isinstance(p, str) else at(p, "text") for p in parts if at(p, "type") not in _THINKING]
    readable = bool(texts) and all(isinstance(text, str) for text in texts)
    if not readable and not cut:
        raise EndpointError("broken", f"an answer without text ({sentence(at(body, 'error')) or finish})")
    return Completion(without_thinking("".join(texts) if readable else ""), (), "length" if cut else "stop")


def tokens(body: object) -> tuple[int | None, int | None]:
    """Prompt and completion tokens that a body counts; None for what it does not say."""
    counts = (at(body, "usage", f"{name}_tokens") for name in ("prompt", "completion", "total"))
    prompt, answer, total = (n if type(n) is int and n >= 0 else None for n in counts)
    if total is not None and prompt is None and answer is not None:
        prompt = max(0, total - answer)
    elif total is not None and answer is None and prompt is not None:
        answer = max(0, total - prompt)
    return prompt, answer


def refused(status: int, body: object, headers: Mapping[str, str]) -> EndpointError:
    """The cause of an HTTP status that is no answer, with the server's own words."""
    said = sentence(body)
    words = f" ({status}): {said}" if said else f" ({status})"
    code, field = (at(body, "error", name) or at(body, name) or "" for name in ("code", "param"))
    raw = f"{code} {said}"
    if status in (400, 403, 422, 451) and re.search(r"content.?(?:filter|policy|management)|moderation", raw, re.I):
        return EndpointError("content filter", f"the server's filter refuses it{words}", said=said)
    if status in (401, 403):
        return EndpointError("key", f"the key in {KEY} is not accepted{words}", said=said)
    if "insufficient_quota" not in raw and (status in (408, 409, 425, 429) or status >= 500):
        what = "rate limit" if status == 429 else "overloaded"
        return EndpointError("busy", what + words, _pause(headers), said)
    return EndpointError("refused", f"the model or the prompt is not taken{words}", said=f"{field} {said}")


def disconnected(error: BaseException) -> EndpointError:
    """Why there was no connection. Of the environment only names are shown: a proxy's URL may hold a password."""
    cause: BaseException | None = error
    for _ in range(20):  # what it came from, which may lead in a circle
        if isinstance(cause, ssl.SSLCertVerificationError):
            advice = "set SSL_CERT_FILE to a file with its authority"
            return EndpointError("environment", f"its certificate is not accepted ({cause.verify_message}); {advice}")
        cause = cause and (cause.__cause__ or cause.__context__)
    through = f", or see to {names}, which the environment sets" if (names := environment()) else ""
    return EndpointError("unreachable", f"no connection; start the server or correct the URL{through}")


def environment() -> str:
    """The variables for proxies and certificates that are set, by name."""
    return ", ".join(n for n in _ENVIRONMENT if os.environ.get(n) or os.environ.get(n.lower()))


def unwanted(said: str, sent: Collection[str]) -> str | None:
    """Which of the fields that an answer can do without a refusal names; of temperature and top_p, the second."""
    about = r"(?i)unsupport|not support|unknown|unrecogni|unexpected|extra|permitted|not allowed|both|deprecat"
    if not re.search(about, said):
        return None  # it complains about a value, not about the field
    optional = (f for f in ("seed", "stop", "top_p", "temperature", "max_tokens") if f in sent)
    return next((f for f in optional if re.search(rf"(?<!\w){f}(?!\w)", said)), None)


def sentence(body: object) -> str:
    """A server's own words: one line, bounded, the key masked."""
    places = (at(body, "error", "message"), at(body, "message"), at(body, "detail"), at(body, "error"), body)
    words = next((words for words in places if words and isinstance(words, str)), json.dumps(body) if body else "")
    return one_line(masked(words))[:_SAID]


def at(value: Any, *path: str | int) -> Any:
    """What lies at a path in a JSON value, None where it leads nowhere."""
    with suppress(TypeError, KeyError, IndexError):
        for step in path:
            value = value[step]
        return value
    return None


def _pause(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait: a number, or the date of RFC 9110."""
    asked = headers.get("retry-after", "")
    with suppress(TypeError, ValueError, OverflowError):
        number = re.fullmatch(r"[\d.]{1,9}", asked)
        return max(0.0, float(asked) if number else parsedate_to_datetime(asked).timestamp() - time.time())
    return 0.0
