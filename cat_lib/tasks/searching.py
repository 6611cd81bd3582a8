"""Rollouts that search: the tool by which a policy looks something up while it answers, and trajectories to begin with.

A rollout is lines: `search: words`, then what was found, one `[id] text` a line, and last `answer: ...`, whose claims
cite by `[id]`. What is found is put behind the query's line, and is no work of the policy's: it bears no gradient,
neither here nor in fine-tuning. A passage is one line that opens with its id, so that none can look like a query or an
answer, and no bracket in it opens a tag. Left out: the tool-call formats of chat models; all write the form above,
which their prompt shows; and thoughts, in which nothing may be looked up (`Speaker.fitting` refuses).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from cat_lib.prompts import fill
from cat_lib.schema import Example, Message, Reference
from cat_lib.tasks.healthbench import HealthTask
from cat_lib.tasks.rows import DataError, Given, file_rows, local_file, usable
from cat_lib.tasks.search import Search

QUERY = re.compile(r"^ *search: *(\S.*)$", re.MULTILINE | re.IGNORECASE)
_ANSWER = re.compile(r"^ *answer: *(\S[\s\S]*)\Z", re.MULTILINE | re.IGNORECASE)
_LONGEST = 20_000  # characters of a rollout that are read
_FOUND = {True: 1, False: 3}  # passages a query: more in the few-shot form, and small models go on to make them up
_PASSAGE = 160  # tokens that are reckoned for one; what a dense one takes more is the answer's loss
_NOTHING = "(nothing found)"
_OPENS = re.compile(r"[<\[](?=[/|\w])")  # a tag of thoughts, tools or chats, or what looks like an id


def parts(text: str) -> tuple[list[str], str | None]:
    """The queries of a rollout, and its answer, None where it has none."""
    answer = _ANSWER.search(text[:_LONGEST])
    before = text[: answer.start()] if answer else text[:_LONGEST]
    return QUERY.findall(before), answer[1].strip() if answer else None


@dataclass(frozen=True)
class SearchTool:
    """Puts what `search` finds behind the first `most` queries. Where `plain`, any other line ends the rollout."""

    search: Search
    most: int
    plain: bool

    @property
    def found(self) -> int:
        """Passages a query, at most."""
        return _FOUND[self.plain]

    def __call__(self, text: str) -> str | None:
        queries, answer = parts(text)
        asks = QUERY.fullmatch(text.rstrip().rpartition("\n")[2])
        if answer is None and asks and len(queries) <= self.most:
            hits = self.search(asks[1], self.found)
            lines = [f"[{p.id}] {_OPENS.sub(lambda opens: f'{opens[0]} ', p.text)}\n" for p in hits]
            return "".join(lines) or f"{_NOTHING}\n"
        return None if self.plain else ""

    def pieces(self, text: str) -> list[tuple[str, bool]]:
        """Found were the lines below a query that open with an id, up to the answer."""
        lines, asked, answered = list[tuple[str, bool]](), False, False
        for line in re.split(r"(?<=\n)", text):
            answered = answered or bool(_ANSWER.match(line))
            found = asked and not answered and line.startswith(("[", _NOTHING))
            lines.append((line, not found))
            asked = found or bool(QUERY.match(line))
        return [("".join(line for line, _ in same), own) for own, same in groupby(lines, lambda piece: piece[1])]


def searching(task: HealthTask, search: Search, most: int = 3) -> HealthTask:
    """The task with rollouts that may search `most` times: in a few-shot form, or as a system turn asks for."""
    tool = SearchTool(search, most, bool(task.few_shot))
    longest = task.sampling.max_new_tokens + room(most, tool.plain)
    drawn = replace(task.sampling, max_new_tokens=longest, stop=("\n",), tool=tool)
    if task.few_shot:
        return replace(task, name=f"{task.name}_search", few_shot="search_few_shot", sampling=drawn)
    turn: Message = {"role": "system", "content": fill("search_chat", most=most)}
    rows = [e if isinstance(e.prompt, str) else replace(e, prompt=[turn, *e.prompt]) for e in task.rows]
    return replace(task, name=f"{task.name}_search", rows=rows, sampling=drawn)


def room(most: int, plain: bool) -> int:
    """Tokens that are reckoned for what `most` searches find."""
    return most * _FOUND[plain] * _PASSAGE


def trajectories(path: str | Path, task: HealthTask) -> tuple[list[Example], list[Reference]]:
    """What a policy of `searching`'s task is fine-tuned on first (`sft.finetune`): training questions, and rollouts.

    A file's rows have `prompt_id`, of a training question, and `trajectory`, in the form above. Raises DataError,
    naming row and key, for one that can't be used.
    """
    known = {e.id: e for e in task.examples("train", None, 0)}

    def make(row: Given) -> tuple[Example, Reference]:
        id, text = row["prompt_id"].text(), row["trajectory"].text()
        if id not in known:
            raise row["prompt_id"].refused(f"is {id[:80]!r}, which is no training question of {task.name}")
        if parts(text)[1] is None:
            raise row["trajectory"].refused("has no line that begins with `answer:`")
        if task.few_shot and "\n" in (parts(text)[1] or ""):
            raise row["trajectory"].refused("goes on behind the line of its answer, which here is the last")
        return known[id], Reference(text, None, "trajectory")

    if not (made := [pair for _, pair in usable(file_rows(local_file(path)), make)]):
        raise DataError(f"{path}: there is no trajectory in it")
    return [e for e, _ in made], [r for _, r in made]
