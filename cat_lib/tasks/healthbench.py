"""HealthBench: conversations about health with physicians' criteria (arXiv 2505.08775), and files in its format.

Rows come from the hub id, a URL or a local file: `prompt` (messages), `prompt_id`, `rubrics` (criterion, points, tags)
and `example_tags`. HealthBench Hard and Consensus are files of the same form. The paper holds out 500 of the 5,000
conversations and leaves open how; here the ids are sorted, shuffled with seed 0, and cut: held out, validation, train.

The criteria are gold. They are used to evaluate, and by the reward whose name says `physician`.
"""

from __future__ import annotations

import hashlib
import random
import urllib.request
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

import platformdirs

from cat_lib.masking import masked
from cat_lib.prompts import fill, one_line
from cat_lib.schema import Completion, Criterion, Example, Message, Model, Prompt, Rubric, Sampling
from cat_lib.tasks.rows import DataError as DataError
from cat_lib.tasks.rows import conversation, items, number, parse_json, settle_bad, tags, text

HUB = "openai/healthbench"
FILES = {
    "openai/healthbench": "2025-05-07-06-14-12_oss_eval.jsonl",
    "openai/healthbench:hard": "hard_2025-05-08-21-00-10.jsonl",
    "openai/healthbench:consensus": "consensus_2025-05-09-20-00-46.jsonl",
    "openai/healthbench:meta": "2025-05-07-06-14-12_oss_meta_eval.jsonl",
}
SPLITS = ("train", "validation", "heldout")


@dataclass(frozen=True)
class HealthTask:
    """Free-form answers to health questions. The prompt kinds say how models are asked (`references`, `judge`)."""

    name: str
    rows: Sequence[Example]
    heldout: int = 500  # (paper)
    validation: int = 500
    synthesis_prompt: str = "freeform"
    rubric_prompt: Literal["chat", "few_shot"] = "chat"
    judge_prompt: Literal["chat", "few_shot", "likelihood", "text"] = "chat"
    sampling: Sampling = Sampling(1024)  # noqa: RUF009  # (paper) 1024 tokens; frozen, so that sharing it is safe
    few_shot: str = ""  # name of a plain-text prompt for models too small for chat
    verifiable = False

    def examples(self, split: str, n: int | None, seed: int) -> list[Example]:
        """n questions of a split, or all; the order of train is drawn from `seed`, the others have one order.

        Raises ValueError if the split is unknown, or has fewer than n questions.
        """
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: allowed are {', '.join(SPLITS)}")
        kept = self.heldout + self.validation
        if len(self.rows) <= kept:
            raise ValueError(
                f"{len(self.rows)} conversations can't give {self.heldout} held-out and {self.validation} validation "
                f"questions and leave any to train on; give {kept + 1} or more, or lower heldout and validation"
            )
        order = sorted(self.rows, key=lambda e: e.id)
        random.Random(0).shuffle(order)
        parts = {"heldout": order[: self.heldout], "validation": order[self.heldout : kept], "train": order[kept:]}
        pool = parts[split]
        if split == "train":
            random.Random(seed).shuffle(pool)
        if not pool:
            raise ValueError(f"the {split} split of {len(self.rows)} conversations is empty; give more data")
        if n is not None and not 1 <= n <= len(pool):
            raise ValueError(f"n={n}: the {split} split has {len(pool)} questions; ask for 1 to {len(pool)}")
        return [self._asked(e) for e in pool[:n]]

    def _asked(self, example: Example) -> Example:
        if not self.few_shot:
            return example
        prompt = fill(self.few_shot, conversation=transcript(example.prompt))
        return replace(example, prompt=prompt)

    def extract(self, completion: Completion, question: str) -> str | None:
        """None: free text has no answer to extract."""
        return None

    def correct(self, answer: str | None, gold: str) -> bool:
        """False: nothing here is checked by equality."""
        return False


def load_rows(source: str | Path, skip_bad_rows: bool = False) -> list[Example]:
    """The conversations of a hub id (see FILES), a URL, or a local JSONL file; with `skip_bad_rows` those it can read.

    Raises DataError naming line and key of rows that cannot be used, or saying why the file cannot be had.
    """
    examples, bad = read_rows(source)
    settle_bad(source, bad, len(examples), skip_bad_rows)
    return examples


def read_rows(source: str | Path) -> tuple[list[Example], list[DataError]]:
    """The conversations of a file, and what is wrong with its other rows. Raises DataError if it can't be had."""
    seen: dict[str, str] = {}
    examples, bad = list[Example](), list[DataError]()
    for where, row in read_jsonl(source, bad):
        try:
            example = _example(row, where)
            if example.id in seen:
                raise DataError(f"{where}: prompt_id {example.id!r} stands on line {seen[example.id]} already")
        except DataError as error:
            bad.append(error)
            continue
        seen[example.id] = where.rsplit(":", 1)[1]
        examples.append(example)
    if not examples and not bad:
        raise DataError(f"{masked(source)}: no rows; give a file with a conversation on each line")
    return examples, bad


def read_jsonl(source: str | Path, bad: list[DataError] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", object) of each line that is not empty; a BOM at its beginning is none of it.

    Raises DataError for a line that is no JSON object (see `parse_json`), or puts it into `bad`, where that is given.
    """
    path = _local(str(source))
    for place, line in enumerate(path.read_bytes().split(b"\n"), 1):  # a text may hold other kinds of line end
        if not line.removeprefix(BOM_UTF8).strip():
            continue
        where = f"{path}:{place}"
        try:
            row = parse_json(line, where)
            if not isinstance(row, dict):
                raise DataError(f"{where}: a {type(row).__name__}, where an object is needed")
        except DataError as error:
            if bad is None:
                raise
            bad.append(error)
            continue
        yield where, row


def fitting(examples: Sequence[Example], model: Model, max_new_tokens: int) -> tuple[list[Example], dict[str, int]]:
    """The examples with conversations cut to the model's context, and how many turns each cut one lost.

    The oldest turns go first, and with them what no longer answers anything; a system message and the last user turn
    stay. The `question` that rubrics are written from is cut alike.
    Raises ValueError naming an example whose last turn alone does not fit.
    """
    room, cut, kept = model.context - max_new_tokens, dict[str, int](), []
    for example in examples:
        prompt = example.prompt
        while len(model.encode(prompt)) > room:
            start = 1 if not isinstance(prompt, str) and prompt[0]["role"] == "system" else 0
            if isinstance(prompt, str) or len(prompt) <= start + 1:
                raise ValueError(
                    f"{example.id}: its last turn takes {len(model.encode(prompt))} tokens, and {room} are left "
                    f"beside max_new_tokens={max_new_tokens}; lower that, or take a model with a longer context"
                )
            gone = 2 if prompt[start + 1]["role"] == "assistant" else 1  # templates want the user to open
            prompt = prompt[:start] + prompt[start + gone :]
            cut[example.id] = cut.get(example.id, 0) + gone
        if example.id in cut and not isinstance(prompt, str):
            example = replace(example, prompt=prompt, question=_question(prompt))
        kept.append(example)
    return kept, cut


def transcript(prompt: Prompt) -> str:
    """A conversation as plain text, one line a turn."""
    if isinstance(prompt, str):
        return prompt
    names = {"user": "Question", "assistant": "Answer", "system": "Note"}
    return "\n".join(f"{names[m['role']]}: {one_line(m['content'])}" for m in prompt)


def _example(row: dict[str, Any], where: str) -> Example:
    if missing := [k for k in ("prompt", "prompt_id", "rubrics") if k not in row]:
        there = ", ".join(row) or "nothing"
        raise DataError(
            f"{where}: no {', '.join(missing)}; a row needs prompt, prompt_id and rubrics, and this has {there[:200]}"
        )
    prompt, id = conversation(row["prompt"], "prompt", where), text(row["prompt_id"], "prompt_id", where)
    criteria = tuple(
        Criterion(
            text(c.get("criterion"), f"rubrics[{i}].criterion", where),
            number(c.get("points"), f"rubrics[{i}].points", where),
            tags(c.get("tags"), f"rubrics[{i}].tags", where),
        )
        for i, c in enumerate(items(row["rubrics"], "rubrics", where, dict))
    )
    labels = tags(row.get("example_tags"), "example_tags", where)
    rubric = Rubric(criteria, "physician")
    if rubric.possible <= 0:
        raise DataError(f"{where}: no criterion of {id!r} has positive points, so nothing can be scored")
    theme = next((t.removeprefix("theme:") for t in labels if t.startswith("theme:")), "none")
    return Example(id, _question(prompt), prompt, "", theme, rubric, labels)


def _question(prompt: list[Message]) -> str:
    return prompt[0]["content"] if len(prompt) == 1 else transcript(prompt)


def _local(source: str) -> Path:
    """The file that `source` names, fetched once into the cache folder where it is not local."""
    if source in FILES:
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(HUB, FILES[source], repo_type="dataset"))
        except Exception as error:  # the hub raises a dozen unrelated types
            raise DataError(f"{source}: the hub can't be reached ({type(error).__name__}); give a local file") from None
    if source.startswith(("http://", "https://")):
        name = f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.jsonl"
        path = Path(platformdirs.user_cache_dir("cat_lib")) / "data" / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            try:
                with urllib.request.urlopen(source, timeout=60) as reply:
                    partial.write_bytes(reply.read())
            except (OSError, HTTPException) as error:
                raise DataError(f"{masked(source)} can't be fetched ({masked(error)}); give a local file") from None
            partial.replace(path)
        return path
    if not Path(source).is_file():
        raise DataError(f"no file {source}; give a local JSONL file, a URL, or one of {', '.join(FILES)}")
    return Path(source)
