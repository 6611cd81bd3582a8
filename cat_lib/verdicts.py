"""The verdict in a judge's reply, as models write it: never a guess, so two that differ are none.

Asked for is `<reason>...</reason><verdict>yes</verdict>`. Models think aloud before it, fence it, put it in bold, add a
sentence, or write `Verdict: no`. What they quote is not theirs: a verdict counts if it stands outside the reason, at
the start of a line or sentence, and nothing goes on after it in the same sentence.
"""

from __future__ import annotations

import re

from cat_lib.prompts import without_thinking
from cat_lib.schema import Verdict

_LONGEST = 4000  # characters of an answer that is read; what is asked for is far shorter
_BEGIN = r"(?:^|(?<=[.!?]))[\s*_`#-]{0,20}"  # of a line or a sentence
_LABEL = r"(?:my |the )?(?:final )?verdict[\s*_]{0,9}"
_WORD = r"[\s*_`'\":(\[]{0,9}(yes|no)[\s*_`'\".!)\]]{0,9}"
_TAGGED = re.compile(
    rf"{_BEGIN}(?:{_LABEL}[:=-][\s*_]{{0,9}})?<\s*verdict\s*>{_WORD}(?:<\s*/?\s*verdict\s*>|\Z)"
    r"(?=[\s*_.]{0,20}(?:\n|\Z|(?-i:[A-Z(<]))|\s*```\s*\Z)",
    re.IGNORECASE | re.MULTILINE,
)
_LABELLED = re.compile(rf"{_BEGIN}{_LABEL}(?:is\b|[:=\n-]){_WORD}(?:```\s*)?\Z", re.IGNORECASE | re.MULTILINE)
_REASON = re.compile(r"<\s*reason\s*>(.*)<\s*/\s*reason\s*>", re.IGNORECASE | re.DOTALL)
_UNOPENED = re.compile(r"\A(.*)<\s*/\s*reason\s*>", re.IGNORECASE | re.DOTALL)
# every verdict that is mentioned; [verdict] is what a response wrote
_MENTIONED = re.compile(
    r"<\s*verdict\s*>([^<]*)|(?<![<\[/])\bverdict(?: is\b|[\s*_`'\"]{0,8}[>:=-])[\s*_`'\"]{0,8}(yes|no)\b",
    re.IGNORECASE,
)


def read(reply: str) -> Verdict:
    """The verdict of a reply that the model ended itself. `met` is None, with the cause, where there is not one."""
    answer = without_thinking(reply)
    if not answer.strip():
        return Verdict(None, "an empty reply" if not reply.strip() else "only thinking, no answer")
    shown = repr(answer[:80])
    if len(answer) > _LONGEST:
        return Verdict(None, f"malformed reply of {len(answer)} characters: {shown}")
    reason = _REASON.search(answer) or _UNOPENED.search(answer)
    outside = f"{answer[: reason.start()]}\n{answer[reason.end() :]}" if reason else answer
    own = [m for m in _TAGGED.finditer(outside) if not _quoted(outside, m)] or list(_LABELLED.finditer(outside))
    said = {m[1].lower() for m in own}
    every = said | {(m[1] or m[2] or "").strip(" \t\n*_`'\".!:()[]").lower() for m in _MENTIONED.finditer(answer)} - {
        ""
    }
    if len(every) > 1:
        return Verdict(None, f"verdicts that differ: {shown}")
    if not said:
        return Verdict(None, f"malformed reply: {shown}")
    why = reason[1] if reason else outside[: own[0].start()]
    return Verdict(said == {"yes"}, reason=" ".join(why.split())[:2000] or None)


def _quoted(text: str, verdict: re.Match[str]) -> bool:
    """Whether it stands in a code block that more text follows: then the block shows something."""
    inside = text.count("```", 0, verdict.start(1)) % 2 == 1
    return inside and text[verdict.end() :].strip(" \n*_.") not in ("", "```")
