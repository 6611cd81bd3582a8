"""Text as it may be shown: of data and models in a figure, in Markdown, on a page; secrets taken out of addresses."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import unquote

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
# to the last @ before a space: a password may hold / and @ itself. After :/// there is a path, and no host
_LOGIN = re.compile(r"(\w[\w+.-]*://)(?!/)\S*@")
# `rubric_tokens=600` and `max_new_tokens=8` are no secrets
_OPTION = re.compile(
    r"(?i)((?:[\w.-]*(?:pass|pwd|token(?!s|iz|_id)|secret|api[_-]?key|sslkey|credential|signature)[\w.-]*=|"
    r"(?<=[?&])(?:sig|auth|[\w-]*key)=|\b(?:password|passwd|secret|api[_-]?key|\w*access[_-]?token)['\"]?(?: = |: ?)))"
    r"('[^']*'|\"[^\"]*\"|[^\s&]+)|(\bBearer )(\S+)"
)
_ADDRESSES = ("MLFLOW_TRACKING_URI", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "CAT_LIB_API_KEY", "HF_TOKEN")


def visible(text: Any) -> str:
    """Text with control characters, and those that turn the direction of what follows, written out as \\u202e."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", str(text))


def escaped(text: Any) -> str:
    """Text for a markdown part: one line on which nothing is markup, a formula, a link or HTML."""
    return re.sub(r"[^\w\s]|_", lambda found: f"&#{ord(found[0])};", " ".join(visible(text).split()))


def plain(text: Any) -> str:
    """Text for a figure, in which matplotlib reads no formula."""
    return visible(text).replace("$", r"\$")


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 0:03:20."""
    return str(timedelta(seconds=round(seconds)))


def printed(text: str, most: int = 2000) -> str:
    """Text for a terminal, which obeys none of it: of a line of more than `most` characters there is the beginning."""
    return re.sub(f"([^\n]{{{most}}})([^\n]+)", lambda m: f"{m[1]} ... (and {len(m[2]):,} more)", visible(text))


def masked(text: object) -> str:
    """Text as it may be shown and written down: what stands before a host, and options like `password=`, are ***.

    What the environment's addresses and keys hold is taken out wherever it stands: a driver quotes parts of them.
    """
    shown = _OPTION.sub(lambda m: f"{m[1] or m[3]}***", _LOGIN.sub(r"\1***@", str(text)))
    for secret in sorted(set(_known()), key=len, reverse=True):
        shown = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", shown)
    return shown


def _known() -> Iterator[str]:
    yield from filter(None, map(os.environ.get, _SECRETS))
    for address in filter(None, map(os.environ.get, _ADDRESSES)):
        if login := re.match(r"(\w[\w+.-]*)://(?!/)(.*)@", address, re.DOTALL):
            user, _, password = login[2].partition(":")
            # of http a user may be a token; a database's is a name
            for secret in (password, user) if login[1].startswith("http") else (password,):
                parts = {p for s in (secret, unquote(secret)) for p in (s, *re.split(r"[/@:?#\s]", s))}
                yield from (part for part in parts if len(part) > 1)
        yield from (option[1] for option in _OPTION.findall(address) if option[1])
