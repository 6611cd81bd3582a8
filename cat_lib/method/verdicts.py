"""The verdict in a judge's reply, as models write it: never a guess, so two that differ are none.

Asked for is `<reason>...</reason><verdict>yes</verdict>`. Models think aloud before it, fence it, put it in bold, add a
sentence, or write `Verdict: no`. What they quote is not theirs: a verdict counts if it stands outside the reason, at
the start of a line or sentence, and nothing goes on after it in the same sentence.
"""

from __future__ import annotations

import re

from cat_lib.prompts import without_thinking
from cat_lib.schema import AnswerError, Completion, Verdict

FORM = r"<reason>[^<>\n]{1,300}</reason>\n<verdict>(yes|no)</verdict>"  # what is asked for, and nothing else
GRADES = FORM.replace("(yes|no)", "[012]")
_LONGEST = 4000  # characters of an answer that is read; what is asked for is far shorter
_BEGIN = r"(?:^|(?<=[.!?]))[\s*_`#-]{0,20}"  # of a line or a sentence
_LABEL = r"(?:my |the )?(?:final )?verdict[\s*_]{0,9}"
_LEAD = rf"(?:(?:{_LABEL}|(?:final )?answer[\s*_]{{0,9}}|conclusion[\s*_]{{0,9}})[:=-]|(?:therefore|thus|hence|so)\b,?)"
_WORD = r"[\s*_`'\":(\[]{0,9}(yes|no)\b[\s*_`'\".!)\]]{0,9}"
_TAGGED = re.compile(
    rf"{_BEGIN}(?:{_LEAD}[\s*_]{{0,9}})?<\s*verdict\s*>{_WORD}(?:<\s*/?\s*verdict\s*>|\Z)", re.IGNORECASE | re.MULTILINE
)
_LABELLED = re.compile(rf"{_BEGIN}{_LABEL}(?:is\b|[:=\n-]){_WORD}", re.IGNORECASE | re.MULTILINE)
_GRADE = re.compile(r"<\s*verdict\s*>([^<]*)<\s*/\s*verdict\s*>", re.IGNORECASE)
_REASON = re.compile(r"<\s*reason\s*>(.*?)<\s*/\s*reason\s*>", re.IGNORECASE | re.DOTALL)
_UNOPENED = re.compile(r"\A(.*)<\s*/\s*reason\s*>", re.IGNORECASE | re.DOTALL)
# every verdict that is mentioned; [verdict] is what a response wrote
_MENTIONED = re.compile(
    r"<\s*verdict\s*>([^<]*)|(?<![<\[/])\bverdict(?: is\b|[\s*_`'\"]{0,8}[>:=-])[\s*_`'\"]{0,8}(yes|no)\b",
    re.IGNORECASE,
)
_REPORTS = re.compile(r"(?::|\b(?:said|says|wrote|writes|reads|states|claims|example))\Z", re.IGNORECASE)
# after a verdict: it is taken back, or given once more in words that could be another's
_TURNS = re.compile(
    r"\b(?:actually|wait|correction|reflection|however|instead|overall|final(?:ly)?|second thought|unmet|not met|"
    r"ignor\w*|inject\w*|more information|revis\w*)\b|(?:\A|[\n.!?:])\W*(?:yes|no)\b(?! [a-z])",
    re.IGNORECASE,
)


def read(reply: Completion | AnswerError, graded: bool = False) -> Verdict:
    """The verdict of a reply that the model ended itself. `met` is None, with the cause, where there is not one.

    `graded`: the verdict is 0, 1 or 2, halved into `grade` as DR Tulu's judge has it, and nothing else.
    """
    if isinstance(reply, AnswerError):
        return Verdict(None, f"{reply.cause}: {reply}")
    answer = without_thinking(reply.text)
    silent = not answer.strip()
    if not reply.ended:
        advice = " while thinking: switch thinking off at its server, or give it more tokens" if silent else ""
        return Verdict(None, f"the reply was cut off{advice}")
    if silent:
        return Verdict(None, "only thinking, no answer" if reply.text.strip() else "an empty reply")
    shown = repr(answer[:80])
    if len(answer) > _LONGEST:
        return Verdict(None, f"malformed reply of {len(answer)} characters: {shown}")
    reason = _REASON.search(answer) or _UNOPENED.search(answer)
    outside = f"{answer[: reason.start()]}\n{answer[reason.end() :]}" if reason else answer
    if graded:
        points = {found.strip() for found in _GRADE.findall(outside)}
        if len(points) != 1 or not points <= {"0", "1", "2"}:
            return Verdict(None, f"no grade from 0 to 2: {shown}")
        why = reason[1].strip()[:2000] if reason else None
        return Verdict(points == {"2"}, reason=why, grade=int(points.pop()) / 2)
    own = [m for pattern in (_TAGGED, _LABELLED) for m in pattern.finditer(outside) if _given(outside, m)]
    said = {m[1].lower() for m in own}
    # what a reason mentions without tags is prose: "the verdict is no doubt close"
    mentioned = [m for m in _MENTIONED.finditer(answer) if m[1] is not None or not reason or m.start() >= reason.end(1)]
    words = {(m[1] or m[2] or "").strip(" \t\n*_`'\".!:()[]").lower() for m in mentioned}
    if len(said | words - {""}) > 1:
        return Verdict(None, f"verdicts that differ: {shown}")
    if not said:
        return Verdict(None, f"malformed reply: {shown}")
    why = reason[1] if reason else outside[: own[0].start()] or outside[own[0].end() :]
    return Verdict(said == {"yes"}, reason=" ".join(why.split()).lstrip(",;:*✅ ")[:2000] or None)


def _given(text: str, verdict: re.Match[str]) -> bool:
    """Whether it is the judge's own and stands: not shown in a code block, reported, continued or taken back."""
    before, after = text[: verdict.start(1)], text[verdict.end() :].strip(" \t\n*_`.,;:!)]\"'✅❌")
    if before.count("```") % 2 == 1 and after and not before.lstrip().startswith("```"):
        return False
    lead = text[: verdict.start()].rstrip(" \t\n*_`#-")
    if _REPORTS.search(lead) or _TURNS.search(after):
        return False
    return not after[:1].islower() or re.match(r"(?:since|because|as)\b", after) is not None
