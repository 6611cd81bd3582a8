"""Posing problems as a task (*Learning to Pose Problems*, arXiv 2511.09907): a seed in, a plan and one question out.

The prompt has the seed, its difficulty, which is the solver's self-consistency on it, and one of the paper's rules:
harder above 0.7, easier below 0.3, as hard between. A plan in words comes before the question. It stands between <plan>
tags where the paper has <think>: what stands between those an engine takes out of every answer. Where the solver's task
is plain text with worked examples, so is this, on one line.

What is read is strict: of an answer that ended, exactly one question, which the solver's task (`posed`) reads in its
turn and refuses where it is held out. Text that speaks to who solves or judges it is no question.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, Protocol

from cat_lib.prompts import ask
from cat_lib.schema import Completion, Example, Lost, Model, Prompt, Reference, Sampling, Task
from cat_lib.tasks.rows import DataError, Given, file_rows, local_file, take, usable

BANDS = (0.3, 0.7)  # of self-consistency: below, an easier question is asked for, above, a harder one
_LONGEST = 20_000  # characters of an answer that are read
_MARK = "New question:"  # of the plain form
_FORM = re.compile(r"<plan>.*</plan>.*<question>.*</question>.*", re.DOTALL)  # the paper's, less the word
_ADDRESSED = re.compile(
    r"\\boxed|</?(?:think|plan|question|system|user|assistant)|<\||\b(?:system|assistant|user) ?:|"
    r"\b(?:ignore|disregard|forget) (?:all|any|the|your|previous|these)\b|\b(?:answer|reply|respond) (?:only|always|"
    r"exactly|with)\b|\b(?:the|your|correct) answer (?:is|should|must)\b|\b(?:judge|grader|reward|instructions?)\b",
    re.IGNORECASE,
)


class Posable(Task, Protocol):
    """A task that knows a question of its kind from the text, and guards those that it holds out."""

    def posed(self, text: str) -> Example | Lost | None: ...


@dataclass(frozen=True)
class Written:
    """What a generator wrote. `why` says why there is no question: `formed` is whether all stands as asked for."""

    plan: str
    formed: bool
    question: Example | Lost | None = None  # Lost: it must not be trained on
    why: str = ""


@dataclass(frozen=True)
class Posing:
    """The generator's task: its seeds are questions of `of` that `difficulty` knows, its answers are questions."""

    of: Posable
    difficulty: Mapping[str, float]  # of a seed, by its id: the solver's self-consistency, 0 to 1
    sampling: Sampling
    plan: bool = True
    name = "posing"
    verifiable = False  # no question is the right one
    synthesis_prompt = "freeform"
    skipped: ClassVar[Mapping[str, Any]] = {}

    @property
    def rows(self) -> list[Example]:
        """All seeds, as the generator is asked them; they have no gold."""
        return self._asked(self.of.rows)

    def examples(self, split: str, n: int | None, seed: int) -> list[Example]:
        """n seeds, or all, in an order drawn from `seed`, of the solver's training questions: the only split."""
        return take({"train": self._asked(self.of.examples("train", None, seed))}, split, n)

    def extract(self, completion: Completion, question: str) -> str | Lost | None:
        """The question, as the solver's task writes it; Lost where it is held out, None where there is none."""
        found = self.read(completion).question
        return found.question if isinstance(found, Example) else found

    def correct(self, answer: str | None, gold: str) -> bool:
        """No question is the right one."""
        return False

    def read(self, completion: Completion) -> Written:
        """What stands in an answer of a generator."""
        text = completion.text.strip()
        if not completion.ended or len(text) > _LONGEST:
            return Written("", False, why="cut")
        if plain_form(self.of):
            plan, _, question = text.partition(_MARK) if self.plan else ("", "", text)
            marks, formed = text.count(_MARK) + (not self.plan), not self.plan or bool(plan.strip())
        else:
            before, _, rest = text.partition("<question>")
            question, closed, _ = rest.partition("</question>")
            plan = before.partition("<plan>")[2].partition("</plan>")[0]
            marks, formed = text.count("<question>") * bool(closed), not self.plan or bool(_FORM.fullmatch(text))
        if marks != 1 or not question.strip():
            return Written(plan.strip(), False, why="several" if marks > 1 else "unreadable")
        if _ADDRESSED.search(question):
            return Written(plan.strip(), formed, why="addressed")
        found = self.of.posed(question.strip())
        why = "foreign" if found is None else found.why if isinstance(found, Lost) else ""
        return Written(plan.strip(), formed, found, why)

    def prompt(self, seed: str, difficulty: float) -> Prompt:
        """What the generator is asked for a seed of that difficulty."""
        rule = "easier" if difficulty < BANDS[0] else "harder" if difficulty > BANDS[1] else "as hard"
        form = "pose_few_shot" if plain_form(self.of) else "pose_chat"
        return ask(form, question=seed, difficulty=f"{difficulty:.2f}", rule=rule, plan=self.plan)

    def _asked(self, seeds: Sequence[Example]) -> list[Example]:
        known = [(e, self.difficulty[e.id]) for e in seeds if e.id in self.difficulty]
        return [replace(e, prompt=self.prompt(e.question, a), gold="") for e, a in known]


def plain_form(of: Task) -> bool:
    """Whether the solver's task is plain text with worked examples, as for models that follow no instruction."""
    return of.synthesis_prompt.startswith("few_shot")


def drawn(of: Task, temperature: float = 1.0, top_p: float = 0.95) -> Sampling:
    """How questions are drawn: one line of plain text, or a chat. Length and defaults are the paper's."""
    plain = plain_form(of)
    return Sampling(40 if plain else 4096, temperature, top_p=top_p, stop=("\n",) if plain else ())


def multi_part(
    path: str | Path, of: Posable, writer: Model, difficulty: Callable[[list[Example]], Mapping[str, float]], out: Path
) -> int:
    """Write what `cold_start` reads to `out`: the paper's pairs, made of questions in several parts. Returns how many.

    A file's rows have a `stem` and `parts`, in their order: stem and part are one question, and a later part is posed
    from an earlier. `writer`, a reasoning model, tells the plan that leads from one to the other. `difficulty` measures
    the seeds (`seed_difficulty` of a solver). Left out is a pair with a question that is none of the task's, or held
    out, that speaks to its reader, whose seed has no difficulty, or whose plan failed. Raises DataError for a row that
    can't be used, or if no pair is left.
    """

    def make(row: Given) -> list[Example | None]:
        stem, parts = row["stem"].text(), row["parts"].texts()
        if len(parts) < 2:
            raise row["parts"].refused(f"is {row['parts'].shown}, where two or more are needed")
        texts = [f"{stem.strip()} {part.strip()}" for part in parts]
        found = [None if _ADDRESSED.search(text) else of.posed(text) for text in texts]
        return [one if isinstance(one, Example) else None for one in found]

    rows = usable(file_rows(local_file(path)), make)
    pairs = [(a, b) for _, own in rows for a, b in combinations(own, 2) if a and b and a.id != b.id]
    known = difficulty(list({a.id: a for a, _ in pairs}.values())) if pairs else {}
    asked = [ask("pose_plan_chat", first=a.question, second=b.question) for a, b in pairs]
    plans = writer.attempt(asked, Sampling(1000, temperature=0.7))
    kept = [
        {"seed": a.question, "difficulty": known[a.id], "plan": plan.text.strip(), "question": b.question}
        for (a, b), plan in zip(pairs, plans, strict=True)
        if a.id in known and isinstance(plan, Completion) and plan.ended and plan.text.strip()
    ]
    if not kept:
        raise DataError(f"{path}: none of its {len(pairs)} pairs of parts can be used as questions of {of.name}")
    out.write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")
    return len(kept)


def cold_start(path: str | Path, of: Posable, plan: bool = True) -> tuple[Posing, list[Example], list[Reference]]:
    """What a generator is fine-tuned on first (`sft.finetune`): its task, seeds as they are put to it, and its answers.

    A file's rows have `seed`, `difficulty` (the solver's self-consistency, 0 to 1), `plan` and `question`. Raises
    DataError, naming row and key, for one that can't be used, as where its seed or question are held out.
    """

    def question(given: Given) -> Example:
        found = None if _ADDRESSED.search(given.text()) else of.posed(given.text())
        if isinstance(found, Example):
            return found
        why = f"may not be trained on: {found.why}" if found else f"is no question of {of.name}"
        raise given.refused(f"{given.text()[:80]!r} {why}")

    def make(row: Given) -> tuple[Example, float, str]:
        if not 0 <= (difficulty := row["difficulty"].number()) <= 1:
            raise row["difficulty"].refused(f"is {difficulty:g}; allowed is 0 to 1")
        words, new = " ".join(row["plan"].text().split()), question(row["question"]).question
        if plain_form(of):
            return question(row["seed"]), difficulty, f"{words} {_MARK} {new}" if plan else new
        return question(row["seed"]), difficulty, f"<plan>{words}</plan>\n" * plan + f"<question>{new}</question>"

    rows = [made for _, made in usable(file_rows(local_file(path)), make)]
    task = Posing(of, {seed.id: difficulty for seed, difficulty, _ in rows}, drawn(of), plan)
    seeds = [replace(seed, prompt=task.prompt(seed.question, a), gold="") for seed, a, _ in rows]
    return task, seeds, [Reference(text, None, "cold_start") for *_, text in rows]
