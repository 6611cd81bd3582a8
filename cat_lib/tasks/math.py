r"""Competition mathematics: MATH-500, AIME, AMC and GSM8K from the hub, and files in their formats.

A model answers in one `\boxed{...}`, or in several that say the same; answers and golds are canonical forms
(answers.py), so that a vote can count them. Rows are looked for under the key names that published datasets use
(datasets.yaml).

Left out: which split of a dataset is which. A test set is read, and where `transductive` is off it is cut in half by a
hash of the question's text, so that no question stands on both sides, whatever its id or the file's order.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cat_lib.prompts import plain
from cat_lib.schema import Completion, Example, Lost, Message, Sampling
from cat_lib.tasks.answers import boxes, read
from cat_lib.tasks.likeness import ALIKE, likeness
from cat_lib.tasks.rows import DATASETS, Bad, DataError, Given, file_rows, local_file, settle, take, usable

HUB: dict[str, tuple[str, str | None, str]] = DATASETS["math"]  # id, configuration, split
INSTRUCTION = r"Reason step by step. Then give the final answer, and nothing else, once inside \boxed{}."
_ASKED = 12, 4_000  # characters of a question that was posed
_BOXES = 8  # different boxes that are compared; each may take answers.LIMIT


@dataclass(frozen=True)
class MathTask:
    """Questions with one checkable answer each."""

    name: str
    rows: Sequence[Example]
    transductive: bool = True
    skipped: Mapping[str, Any] = field(default_factory=dict)
    synthesis_prompt: str = "reasoning"
    sampling: Sampling = Sampling(1536)  # noqa: RUF009  # frozen: safe to share
    verifiable = True

    def examples(self, split: str, n: int | None, seed: int) -> list[Example]:
        """n questions of a split, or all, in an order drawn from `seed`.

        Transductive (the set-up of the paper and of TTRL): both splits are all questions; no gold is trained on.
        Raises ValueError if the split is unknown, or has fewer than n questions.
        """
        parts: dict[str, list[Example]] = {}
        for side, name in enumerate(("train", "heldout")):
            asked = [e for e in self.rows if self.transductive or _half(e.question) == side]
            parts[name] = sorted(asked, key=lambda e: e.id)
            random.Random(seed).shuffle(parts[name])
        return take(parts, split, n, "give more data, or transductive=True")

    def extract(self, completion: Completion, question: str) -> str | Lost | None:
        """The canonical form of the boxed answer, why it is lost, or None: it has none, or several, or was cut."""
        return _one_form(boxes(completion.text)) if completion.ended else None

    def correct(self, answer: str | None, gold: str) -> bool:
        """Whether an extracted answer is the gold answer; no answer is not."""
        return answer == gold

    def posed(self, text: str) -> Example | Lost | None:
        """What a generator wrote as a question to solve, its gold empty: nobody knows it. None: it asks nothing.

        Lost where it is alike (likeness.py) to a held-out question, so that it must not be trained on.
        """
        question = plain(text).strip()
        if not _ASKED[0] <= len(question) <= _ASKED[1]:
            return None
        scored = (e.question for e in self.rows if self.transductive or _half(e.question))
        if any(likeness(question, other) >= ALIKE for other in scored):
            return Lost("held out")
        prompt = [Message(role="user", content=f"{question}\n\n{INSTRUCTION}")]
        return Example(hashlib.sha256(question.encode()).hexdigest()[:12], question, prompt, "", "posed")


def load_math(name: str, data: str | None = None, transductive: bool = True, skip_bad_rows: bool = False) -> MathTask:
    """The task of that name (datasets.yaml). `data`: another hub id, or a .jsonl or .json file here or at a URL.

    `skip_bad_rows` leaves out rows that can't be used, and says how many.
    Raises ValueError for another name, DataError naming rows that can't be used or why the data can't be had.
    """
    if name not in HUB:
        raise ValueError(f"task={name!r}: allowed is {', '.join(HUB)}")
    here = data and ("://" in data or Path(data).suffix in (".json", ".jsonl"))
    rows, bad, found = file_rows(local_file(data)) if data and here else _hub(name, data), Bad(), []
    asked = usable(rows, _example, bad)
    for (where, example), form in zip(asked, read([e.gold for _, e in asked]), strict=True):
        if isinstance(form, str):
            found.append((where, replace(example, gold=form, level=example.level or name)))
        else:
            why = form.why if form else "nothing is left without its signs"
            bad.append(DataError(f"{where}: the answer {example.gold[:80]!r}: {why}; write it more simply"))
    examples, skipped = settle(data or name, found, bad, skip_bad_rows)
    return MathTask(name, examples, transductive, skipped)


def _hub(name: str, data: str | None) -> list[Given]:
    """The rows of a hub id's test split, or of its only one. Raises DataError if they can't be had."""
    source, config, split = HUB[name] if data is None else (data, None, "test")
    try:
        from datasets import load_dataset

        found = load_dataset(source, config)
        rows = found[split if split in found else next(iter(found))]
        return [Given(dict(row), f"{source}, row {number}") for number, row in enumerate(rows, 1)]
    except Exception as error:  # the hub raises a dozen unrelated types
        reason = f"{type(error).__name__}: {str(error).strip()[:200]}"
        raise DataError(f"{source}: can't be had from the hub ({reason}); give a local .jsonl or .json file") from None


def _example(row: Given) -> Example:
    """A row's question, its gold as written. Raises DataError, naming the key, if it asks nothing or has no answer."""
    found: dict[str, Given] = {}  # by kind, the first of its keys that holds something
    for kind, keys in DATASETS["math_keys"].items():
        full = [row[k] for k in keys if row[k].value not in (None, []) and str(row[k].value).strip()]
        if not full and kind in ("question", "answer"):
            there = [f"{k} is empty" for k in keys if k in row.value][:1] or [f"looked for {', '.join(keys)}"]
            has = ", ".join(map(str, row.value)) or "nothing"
            raise DataError(f"{row.where}: no {kind} ({there[0]}; the row has {has})")
        for given in full[:1]:
            if kind != "question" and (isinstance(given.value, bool) or not isinstance(given.value, str | int | float)):
                article = "an" if kind[0] in "ai" else "a"
                raise given.refused(f"is a {type(given.value).__name__}; {article} {kind} is text or a number")
            found[kind] = given
    question = (asked := found["question"]).value
    if isinstance(question, list):  # a chat: what the user asked last
        turns = [turn for turn in asked.entries() if turn["role"].value == "user"]
        question = replace(turns[-1]["content"], key=f"the user's content in {asked.key}").content() if turns else None
    if not isinstance(question, str):
        raise asked.refused("asks nothing; a question is text or a list of messages, one of them a user's")
    id, level, subject = (str(found[kind].value) if kind in found else "" for kind in ("id", "level", "subject"))
    number = re.fullmatch(r"(?:level\s*)?([0-9]+)", level.strip(), re.IGNORECASE)
    return Example(
        id or hashlib.sha256(question.encode()).hexdigest()[:12],
        question.strip(),
        [Message(role="user", content=f"{question.strip()}\n\n{INSTRUCTION}")],
        _gold(found["answer"]),
        f"level {number[1]}" if number else level.lower(),
        tags=(f"subject:{subject.lower()}",) if subject else (),
    )


def _gold(answer: Given) -> str:
    """The answer of a worked solution, or the text itself. Raises DataError if the solution has none."""
    gold = str(answer.value)
    if "####" in gold:  # GSM8K
        gold = gold.rpartition("####")[2].strip()
    elif r"\boxed" in gold or answer.key in ("solution", "Solution"):
        form = _one_form(boxes(gold))
        gold = form if isinstance(form, str) else ""
    if not gold:
        raise DataError(
            f"{answer.where}: no answer: {answer.value!r:.80} has no one \\boxed{{...}} and nothing after ####"
        )
    return gold


def _one_form(contents: Sequence[str]) -> str | Lost | None:
    """The canonical form of boxes that say the same, or None; or that one was lost."""
    different = list(dict.fromkeys(contents))
    forms = set(read(different)) if len(different) <= _BOXES else set()
    lost = [form for form in forms if isinstance(form, Lost)]
    return lost[0] if lost else forms.pop() if len(forms) == 1 else None


def _half(question: str) -> int:
    return hashlib.sha256(" ".join(question.casefold().split()).encode()).digest()[0] % 2
