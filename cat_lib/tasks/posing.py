"""Posing problems as a task (*Learning to Pose Problems*, arXiv 2511.09907): a seed in, a plan and one question out.

The prompt has the seed and its difficulty, which is the solver's self-consistency on it, and one of the paper's three
rules: harder above 0.7, easier below 0.3, as hard between. Before the question a plan is asked for in words. It stands
between <plan> tags where the paper has <think>: what stands between those, an engine takes out of every answer. Where
the solver's task is plain text, so is this: one line, after worked ones.

What is read is strict: of an answer that ended, exactly one question, which the solver's task reads in its turn
(`posed`) and refuses where it is held out. Text that speaks to who solves or judges it is no question. Left out: pairs
from multi-part questions, of which the paper makes its cold start; `cold_start` reads them from a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from cat_lib.prompts import ask
from cat_lib.schema import Completion, Example, Lost, Prompt, Reference, Sampling, Task
from cat_lib.tasks.rows import Given, file_rows, local_file, take, usable

BANDS = (0.3, 0.7)  # of self-consistency: an easier question is asked for below, a harder one above
REFUSED = ("cut", "unreadable", "several", "addressed", "foreign")  # why an answer has no question
_LONGEST = 20_000  # characters of an answer that are read
_MARK = "New question:"  # of the plain form
_FORM = re.compile(r"<plan>.*</plan>.*<question>.*</question>.*", re.DOTALL)  # the paper's, with its <think> as <plan>
_ADDRESSED = re.compile(
    r"\\boxed|</?(?:think|plan|question|system|user|assistant)|<\||\b(?:ignore|disregard|forget) (?:all|any|the|your|"
    r"previous|these)\b|\b(?:system|assistant|user) ?:|\b(?:answer|reply|respond) (?:only|always|exactly|with)\b|"
    r"\b(?:the|your|correct) answer (?:is|should be|must be)\b|\b(?:judge|grader|reward|instructions?)\b",
    re.IGNORECASE,
)


class Posable(Task, Protocol):
    """A task whose questions can be posed: it knows one from its text, and guards those that it holds out."""

    def posed(self, text: str) -> Example | Lost | None: ...


@dataclass(frozen=True)
class Written:
    """What a generator wrote: its plan, whether all stands in the form asked for, and the question, or why none."""

    plan: str
    formed: bool
    question: Example | Lost | None  # Lost: one that must not be trained on
    why: str = ""  # of REFUSED, or the reason of the solver's task


@dataclass(frozen=True)
class Posing:
    """The generator's task: seeds are questions of `of` that `difficulty` knows, its answers are questions."""

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
        """All seeds, asked as the generator is; they have no gold."""
        return self._asked(self.of.rows)

    def examples(self, split: str, n: int | None, seed: int) -> list[Example]:
        """n seeds, or all, in an order drawn from `seed`: training questions of the solver's task ("train") alone."""
        return take({"train": self._asked(self.of.examples("train", None, seed))}, split, n)

    def extract(self, completion: Completion, question: str) -> str | Lost | None:
        """The question that was posed, as the solver is asked it; Lost where it is held out, None: there is none."""
        found = self.read(completion).question
        return found.question if isinstance(found, Example) else found

    def correct(self, answer: str | None, gold: str) -> bool:
        """No question is the right one."""
        return False

    def read(self, completion: Completion) -> Written:
        """What stands in an answer of a generator."""
        text = completion.text.strip()
        if not completion.ended or len(text) > _LONGEST:
            return Written("", False, None, "cut")
        if plain_form(self.of):
            plan, mark, question = text.partition(_MARK) if self.plan else ("", "", text)
            formed, marks = bool(plan.strip()) or not self.plan, text.count(_MARK) + (not self.plan)
        else:
            before, mark, rest = text.partition("<question>")
            question, closed, _ = rest.partition("</question>")
            plan = before.partition("<plan>")[2].partition("</plan>")[0]
            formed = bool(_FORM.fullmatch(text)) or not (self.plan or not closed)
            marks = text.count("<question>") if closed else 0
        if marks != 1 or not question.strip():
            return Written(plan.strip(), False, None, "several" if marks > 1 else "unreadable")
        found = None if _ADDRESSED.search(question) else self.of.posed(question.strip())
        why = "addressed" if _ADDRESSED.search(question) else "foreign"
        why = "" if isinstance(found, Example) else found.why if found else why
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
    """How questions are drawn for a task: one line of plain text, or a chat of 4096 tokens (paper). Defaults: paper."""
    if plain_form(of):
        return Sampling(40, temperature, top_p=top_p, stop=("\n",))
    return Sampling(4096, temperature, top_p=top_p)


def cold_start(path: str | Path, of: Posable, plan: bool = True) -> tuple[Posing, list[Example], list[Reference]]:
    """What a generator is fine-tuned on first (`sft.finetune`): its task, seeds as it is asked them, what it is to write.

    A file's rows have `seed`, `difficulty` (the solver's self-consistency, 0 to 1), `plan` and `question`. Raises
    DataError, naming row and key, for one that can't be used: also where seed or question are held out by the task.
    """

    def asked(given: Given) -> Example:
        found = of.posed(given.text())
        if isinstance(found, Example) and not _ADDRESSED.search(given.text()):
            return found
        why = f"may not be trained on ({found.why})" if isinstance(found, Lost) else f"is no question of {of.name}"
        raise given.refused(f"{given.text()[:80]!r} {why}")

    def make(row: Given) -> tuple[Example, float, str]:
        if not 0 <= (difficulty := row["difficulty"].number()) <= 1:
            raise row["difficulty"].refused(f"is {difficulty:g}; allowed is 0 to 1")
        seed, words, question = asked(row["seed"]), " ".join(row["plan"].text().split()), asked(row["question"])
        shown = f"{words} {_MARK} {{}}" if plain_form(of) else f"<plan>{words}</plan>\n<question>{{}}</question>"
        bare = "{}" if plain_form(of) else "<question>{}</question>"
        return seed, difficulty, (shown if plan else bare).replace("{}", question.question)

    rows = [made for _, made in usable(file_rows(local_file(path)), make)]
    task = Posing(of, {seed.id: difficulty for seed, difficulty, _ in rows}, drawn(of), plan)
    seeds = [replace(seed, prompt=task.prompt(seed.question, a), gold="") for seed, a, _ in rows]
    return task, seeds, [Reference(text, None, "cold_start") for *_, text in rows]
