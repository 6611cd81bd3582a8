"""HealthBench: conversations about health with physicians' criteria (arXiv 2505.08775), files in its format, a twin.

Rows come from the hub id, a URL or a local file: `prompt` (messages), `prompt_id`, `rubrics` (criterion, points, tags)
and `example_tags`; a `question` (text) may stand for `prompt`. HealthBench Hard and Consensus are files of the same
form. The paper holds out 500 of the 5,000 conversations and leaves open how; here the ids are sorted, shuffled with
seed 0, and cut: held out, validation, train.

The criteria are gold. They are used to evaluate, and by the reward whose name says `physician`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cat_lib.prompts import fill, one_line
from cat_lib.schema import Completion, Criterion, Example, Message, Model, Prompt, Rubric, Sampling
from cat_lib.tasks.rows import DATASETS, Bad, DataError, Given, file_rows, local_file, settle, take, usable

CLINIC = Path(__file__).with_name("clinic.jsonl")
AUDIT = Path(__file__).with_name("clinic_audit.jsonl")
HUB = "openai/healthbench"
FILES: dict[str, str] = DATASETS["healthbench"]  # by hub id


@dataclass(frozen=True)
class HealthTask:
    """Free-form answers to health questions. The prompt kinds say how models are asked (`references`, `judge`)."""

    name: str
    rows: Sequence[Example]
    heldout: int = 500  # (paper)
    validation: int = 500
    synthesis_prompt: str = "freeform"
    rubric_prompt: Literal["chat", "few_shot"] = "chat"
    judge_prompt: Literal["chat", "few_shot", "likelihood", "text", "graded"] = "chat"
    sampling: Sampling = Sampling(1024)  # noqa: RUF009  # (paper) 1024 tokens; frozen, so that sharing it is safe
    few_shot: str = ""  # name of a plain-text prompt for models too small for chat
    skipped: Mapping[str, Any] = field(default_factory=dict)
    verifiable = False

    def examples(self, split: str, n: int | None, seed: int) -> list[Example]:
        """n questions of a split, or all; the order of train is drawn from `seed`, the others have one order.

        Raises ValueError if the split is unknown, or has fewer than n questions.
        """
        kept = self.heldout + self.validation
        if len(self.rows) <= kept:
            raise ValueError(
                f"{len(self.rows)} conversations can't give {self.heldout} held-out and {self.validation} validation "
                f"questions and leave any to train on; give {kept + 1} or more, or lower heldout and validation"
            )
        order = sorted(self.rows, key=lambda e: e.id)
        random.Random(0).shuffle(order)
        train = order[kept:]
        random.Random(seed).shuffle(train)
        parts = {"train": train, "validation": order[self.heldout : kept], "heldout": order[: self.heldout]}
        asked = take(parts, split, n)
        if not self.few_shot:
            return asked
        return [replace(e, prompt=fill(self.few_shot, conversation=transcript(e.prompt))) for e in asked]

    def extract(self, completion: Completion, question: str) -> str | None:
        """None: free text has no answer to extract."""
        return None

    def correct(self, answer: str | None, gold: str) -> bool:
        """False: nothing here is checked by equality."""
        return False


def load_health(source: str | Path = HUB, skip_bad_rows: bool = False) -> HealthTask:
    """The task of a hub id (datasets.yaml), a URL, or a local file; with `skip_bad_rows` of the rows that can be used.

    A tenth of the conversations is held out, at least two, and a tenth kept for validation, at most 500 each.
    Raises DataError naming place and key of rows that cannot be used, or saying why the file cannot be had.
    """
    bad = Bad()
    kept, skipped = settle(source, usable(file_rows(local_file(source, FILES)), _example, bad), bad, skip_bad_rows)
    tenth = min(500, len(kept) // 10)  # the paper's 500 of HealthBench's 5,000
    return HealthTask("healthbench", kept, max(2, tenth), tenth, skipped=skipped)


def clinic() -> HealthTask:
    """HealthBench's embedded twin: 44 short health conversations with 267 criteria of our own, in its format.

    Four themes (emergencies, missing context, hedging, communication), 24 conversations to train on and 20 held out.
    The guidance is general and made for testing software; it has not been reviewed by a physician, and what a small
    model answers here is often wrong. AUDIT holds one response to each conversation, mixed on purpose (some of its
    advice is bad), with six known verdicts: stated or paraphrased by the response, absent from it, or negated.

    Prompts are plain text with two answered questions: the embedded model follows examples rather than instructions.
    """
    task = replace(load_health(CLINIC), name="clinic", heldout=20, validation=0, few_shot="clinic_few_shot")
    return replace(
        task,
        sampling=Sampling(64, temperature=0.8, top_k=50, top_p=0.95, stop=("\n",)),
        synthesis_prompt="few_shot_freeform",
        rubric_prompt="few_shot",
        judge_prompt="likelihood",
    )


def fitting(examples: Sequence[Example], model: Model, max_new_tokens: int) -> tuple[list[Example], dict[str, int]]:
    """The examples with conversations cut to the model's context, and how many turns each cut one lost.

    The oldest turns go first, and with them what no longer answers anything; system messages and the last user turn
    stay. The `question` that rubrics are written from is cut alike.
    Raises ValueError naming an example whose last turn alone does not fit.
    """
    room, cut, kept = model.context - max_new_tokens, dict[str, int](), []
    for example in examples:
        turns = [] if isinstance(example.prompt, str) else example.prompt.copy()
        start = next((i for i, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
        told = start > 0 and _question(turns[1:]) == example.question  # what a task puts first is no part of a question
        while (taken := len(model.encode(turns or example.prompt))) > room:
            if len(turns) <= start + 1:
                raise ValueError(
                    f"{example.id}: its last turn takes {taken} tokens, and {room} are left beside "
                    f"max_new_tokens={max_new_tokens}; lower that, or take a model with a longer context"
                )
            gone = 2 if turns[start + 1]["role"] == "assistant" else 1  # templates want the user to open
            del turns[start : start + gone]
            cut[example.id] = cut.get(example.id, 0) + gone
        kept.append(replace(example, prompt=turns, question=_question(turns[told:])) if example.id in cut else example)
    return kept, cut


def transcript(prompt: Prompt) -> str:
    """A conversation as plain text, one line a turn."""
    if isinstance(prompt, str):
        return prompt
    names = {"user": "Question", "assistant": "Answer", "system": "Note"}
    return "\n".join(f"{names[m['role']]}: {one_line(m['content'])}" for m in prompt)


def _example(row: Given) -> Example:
    if "question" in row.value and "prompt" not in row.value:  # other benchmarks' rubrics, of one question each
        turn = {"role": "user", "content": row["question"].text()}
        row = replace(row, value=row.value | {"prompt": [turn]})
    if missing := [k for k in ("prompt", "prompt_id", "rubrics") if k not in row.value]:
        raise DataError(
            f"{row.where}: no {', '.join(missing)}; a row needs prompt, prompt_id and rubrics, and this has "
            f"{', '.join(row.value)[:200] or 'nothing'}"
        )
    prompt, id = row["prompt"].conversation(), row["prompt_id"].text()
    criteria = [
        Criterion(c["criterion"].text(), c["points"].number(), c["tags"].texts()) for c in row["rubrics"].entries()
    ]
    labels, rubric = row["example_tags"].texts(), Rubric(tuple(criteria), "physician")
    if rubric.possible <= 0:
        raise DataError(f"{row.where}: no criterion of {id!r} has positive points, so nothing can be scored")
    theme = next((t.removeprefix("theme:") for t in labels if t.startswith("theme:")), "none")
    return Example(id, _question(prompt), prompt, "", theme, rubric, labels)


def _question(prompt: list[Message]) -> str:
    return prompt[0]["content"] if len(prompt) == 1 else transcript(prompt)
