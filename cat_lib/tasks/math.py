r"""Competition mathematics: MATH-500, AIME, AMC and GSM8K from the hub, and files in their formats.

A model answers in one `\boxed{...}`, or in several that say the same; answers and golds are canonical forms
(answers.py), so that a vote can count them. Rows are looked for under the key names that published datasets use
(see _KEYS).

Left out: which split of a dataset is which. A test set is read, and where `transductive` is off it is cut in half by a
hash of the question's text, so that no question stands on both sides, whatever its id or the file's order.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cat_lib.schema import Completion, Example, Message, Sampling
from cat_lib.shown import masked
from cat_lib.tasks.answers import boxes, canonical, read
from cat_lib.tasks.healthbench import read_jsonl
from cat_lib.tasks.rows import DataError, content_text, items, once, parse_json, settle_bad

HUB: dict[str, tuple[str, str | None, str]] = {  # id, configuration, split
    "math500": ("HuggingFaceH4/MATH-500", None, "test"),
    "aime24": ("HuggingFaceH4/aime_2024", None, "train"),
    "aime25": ("math-ai/aime25", None, "test"),
    "amc": ("AI-MO/aimo-validation-amc", None, "train"),
    "gsm8k": ("openai/gsm8k", "main", "test"),
}
SPLITS = ("train", "heldout")
INSTRUCTION = r"Reason step by step. Then give the final answer, and nothing else, once inside \boxed{}."
_KEYS = {
    "question": ("problem", "question", "prompt", "Problem", "Question"),
    "answer": ("answer", "Answer", "expected_answer", "target", "ground_truth", "solution", "Solution"),
    "id": ("unique_id", "id", "ID", "problem_id", "source_id", "url"),
    "level": ("level", "difficulty"),
    "subject": ("subject", "type"),
}
_BOXES = 8  # different boxes that are compared; each may take answers.LIMIT
Rows = list[tuple[str, dict[str, Any]]]  # ("file:line" or "id, row n", the row)


@dataclass(frozen=True)
class MathTask:
    """Questions with one checkable answer each."""

    name: str
    rows: Sequence[Example]
    transductive: bool = True
    skipped: int = 0  # rows of the file that could not be used
    synthesis_prompt: str = "reasoning"
    sampling: Sampling = Sampling(1536)  # noqa: RUF009  # frozen: safe to share
    verifiable = True

    def examples(self, split: str, n: int | None, seed: int) -> list[Example]:
        """n questions of a split, or all, in an order drawn from `seed`.

        Transductive (the set-up of the paper and of TTRL): both splits are all questions; no gold is trained on.
        Raises ValueError if the split is unknown, or has fewer than n questions.
        """
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: allowed are {', '.join(SPLITS)}")
        side = SPLITS.index(split)
        pool = sorted((e for e in self.rows if self.transductive or _half(e.question) == side), key=lambda e: e.id)
        if not 1 <= (len(pool) if n is None else n) <= len(pool):
            wanted = f"n={n}: the {split} split has {len(pool)} questions; "
            raise ValueError(wanted + (f"ask for 1 to {len(pool)}" if pool else "give more data, or transductive=True"))
        random.Random(seed).shuffle(pool)
        return pool[:n]

    def extract(self, completion: Completion, question: str) -> str | None:
        """The canonical form of the boxed answer; None: it has none, or several, or it can't be read, or was cut."""
        return _one_form(boxes(completion.text)) if completion.ended else None

    def correct(self, answer: str | None, gold: str) -> bool:
        """Whether an extracted answer is the gold answer; no answer is not."""
        return answer is not None and answer == gold


def load_math(name: str, data: str | None = None, transductive: bool = True, skip_bad_rows: bool = False) -> MathTask:
    """The task of that name (see HUB). `data`: another hub id, or a local .jsonl or .json file.

    `skip_bad_rows` leaves out rows that can't be used, and says how many.
    Raises ValueError for an unknown name, DataError naming rows that can't be used or why the data can't be had.
    """
    if name not in HUB:
        raise ValueError(f"task={name!r}: allowed is {', '.join(HUB)}")
    if data and "://" in data:
        raise DataError(
            f"data={masked(data)!r} is an address; a math task takes a hub id or a local file: fetch it first"
        )
    bad, read_rows = list[DataError](), list[tuple[str, dict[str, Any], str, str, str]]()
    rows = local_rows(Path(data), bad) if data and Path(data).suffix in (".json", ".jsonl") else _hub(name, data)
    if not rows and not bad:
        raise DataError(f"{data or name}: no rows; give a file with a question and an answer in each row")
    for where, row in rows:
        try:
            read_rows.append((where, row, *_read(row, where)))
        except DataError as error:
            bad.append(error)
    seen: dict[str, str] = {}
    examples = []
    forms = read([gold for *_, gold in read_rows])
    for (where, row, id, question, gold), form in zip(read_rows, forms, strict=True):
        if id in seen:
            bad.append(DataError(f"{where}: id {id!r} stands at {seen[id]} already; each question needs its own"))
        elif not isinstance(form, str):
            why = form.why if form else "nothing is left without its signs"
            bad.append(DataError(f"{where}: the answer {gold[:80]!r}: {why}; write it more simply"))
        else:
            seen[id] = where
            examples.append(_example(name, row, id, question, form))
    settle_bad(data or name, bad, len(examples), skip_bad_rows)
    return MathTask(name, examples, transductive, len(bad))


def _example(name: str, row: dict[str, Any], id: str, question: str, form: str) -> Example:
    level, subject = _value(row, "level"), _value(row, "subject")
    number = re.fullmatch(r"(?:level\s*)?([0-9]+)", str(level).strip(), re.IGNORECASE)
    return Example(
        id,
        question,
        [Message(role="user", content=f"{question}\n\n{INSTRUCTION}")],
        form,
        name if level is None else f"level {number[1]}" if number else str(level).lower(),
        tags=() if subject is None else (f"subject:{str(subject).lower()}",),
    )


def local_rows(path: Path, bad: list[DataError]) -> Rows:
    """The rows of a .jsonl or .json file; what is no row goes to `bad`. Raises DataError if it is no such file."""
    if not path.is_file():
        raise DataError(f"no file {path}; give a local .jsonl or .json file or a hub id")
    if path.suffix == ".jsonl":
        return list(read_jsonl(path, bad))
    try:
        found = json.loads(path.read_bytes().decode("utf-8-sig") or "[]", object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: no JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no JSON ({error})") from None
    lists = [found] if isinstance(found, list) else []
    if isinstance(found, dict):
        lists = [v for v in found.values() if isinstance(v, list)]
    if len(lists) != 1:
        raise DataError(f"{path}: {len(lists)} lists of rows, where one is needed: a list, or an object with one list")
    rows: Rows = []
    for number, row in enumerate(lists[0], 1):
        where = f"{path}, row {number}"
        try:
            if not isinstance(row, dict):
                raise DataError(f"{where}: a {type(row).__name__}, where an object is needed")
            rows.append((where, parse_json(json.dumps(row).encode(), where)))
        except DataError as error:
            bad.append(error)
    return rows


def _hub(name: str, data: str | None) -> Rows:
    """The rows of a hub id's test split, or of its only one. Raises DataError if they can't be had."""
    source, config, split = HUB[name] if data is None else (data, None, "test")
    try:
        from datasets import load_dataset

        found = load_dataset(source, config)
        rows = found[split if split in found else next(iter(found))]
        return [(f"{source}, row {number}", dict(row)) for number, row in enumerate(rows, 1)]
    except Exception as error:  # the hub raises a dozen unrelated types
        reason = f"{type(error).__name__}: {str(error).strip()[:200]}"
        raise DataError(f"{source}: can't be had from the hub ({reason}); give a local .jsonl or .json file") from None


def _read(row: dict[str, Any], where: str) -> tuple[str, str, str]:
    """Id, question and gold source of a row. Raises DataError, naming the key, if there is no question or no answer."""
    for kind in ("question", "answer"):
        if _find(row, kind) is None:
            there = [k for k in _KEYS[kind] if k in row]
            missing = f"{there[0]} is empty" if there else f"looked for {', '.join(_KEYS[kind])}"
            raise DataError(f"{where}: no {kind} ({missing}; the row has {', '.join(map(str, row)) or 'nothing'})")
    for kind in ("answer", "id", "level", "subject"):
        key, value = _find(row, kind) or ("", "")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            article = "an" if kind[0] in "ai" else "a"
            raise DataError(f"{where}: {key} is a {type(value).__name__}; {article} {kind} is text or a number")
    key, question = _find(row, "question") or ("", None)
    if isinstance(question, list):  # a chat: what the user asked last
        turns = [t for t in items(question, key, where, dict) if t.get("role") == "user"]
        question = content_text(turns[-1].get("content"), f"the user's content in {key}", where) if turns else None
    if not isinstance(question, str):
        raise DataError(f"{where}: {key} asks nothing; a question is text or a list of messages, one of them a user's")
    _, answer = _find(row, "answer") or ("", "")
    gold = str(answer)
    if "####" in gold:  # GSM8K
        gold = gold.rpartition("####")[2].strip()
    elif r"\boxed" in gold or not any(k in row for k in _KEYS["answer"][:-2]):  # a worked solution
        gold = _one_form(boxes(gold)) or ""
    if not gold:
        raise DataError(f"{where}: no answer: {answer!r:.80} has no one \\boxed{{...}} and nothing after ####")
    id = _value(row, "id")
    return hashlib.sha256(question.encode()).hexdigest()[:12] if id is None else str(id), question.strip(), gold


def _find(row: dict[str, Any], kind: str) -> tuple[str, Any] | None:
    """The first key of that kind whose value is there and not empty, and the value, or None."""
    values = ((k, row[k]) for k in _KEYS[kind] if k in row)
    return next(((k, v) for k, v in values if v is not None and str(v).strip() and v != []), None)


def _value(row: dict[str, Any], kind: str) -> Any:
    return (_find(row, kind) or (None, None))[1]


def _one_form(contents: Sequence[str]) -> str | None:
    """The canonical form of boxes that say the same, or None."""
    different = list(dict.fromkeys(contents))
    forms = set(canonical(different)) if len(different) <= _BOXES else set()
    return forms.pop() if len(forms) == 1 else None


def _half(question: str) -> int:
    return hashlib.sha256(" ".join(question.casefold().split()).encode()).digest()[0] % 2
