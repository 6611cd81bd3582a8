"""Text of data and models, as it may be shown: in a figure, in Markdown, on a page."""

from __future__ import annotations

import re
from typing import Any

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def visible(text: Any) -> str:
    """Text with control characters, and those that turn the direction of what follows, written out as \\u202e."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", str(text))


def escaped(text: Any) -> str:
    """Text for a markdown part: one line on which nothing is markup, a formula, a link or HTML."""
    return re.sub(r"[^\w\s]|_", lambda found: f"&#{ord(found[0])};", " ".join(visible(text).split()))


def plain(text: Any) -> str:
    """Text for a figure, in which matplotlib reads no formula."""
    return visible(text).replace("$", r"\$")
