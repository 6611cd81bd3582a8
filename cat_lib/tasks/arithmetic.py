"""Short arithmetic in four levels: the embedded model's task, small enough to learn from on two CPU cores.

A fifth level, on demand, is beyond that model. Questions that a generator poses are read as its own (`posed`).

Prompts are plain text: two solved questions and a third (the engine computes the shared opening once). The same as a
chat was measured too: a sample is right more often (0.67 against 0.51 at temperature 1), but prompts are half as long
again and the rollouts agree so much that there is little to learn from them. An answer is one equation that restates
the question: an equation about other numbers is no answer, or every rollout could agree on `1 + 1 = 2`.

Training and held-out questions are disjoint by operands: the unordered pair decides, whatever the operation, so
neither `7 + 4` nor `4 x 7` can leak `4 + 7`. Pairs used in worked examples belong to neither side.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, ClassVar

from cat_lib.schema import Completion, Example, Lost, Sampling
from cat_lib.tasks.rows import take

SOLVED = (("4 + 3", "7"), ("6 x 8", "48"))
_WORKED_PAIRS = {(3, 4), (6, 8), (3, 5), (6, 7), (30, 80)}  # in SOLVED and in prompts/synthesis_few_shot.txt
_EQUATION = re.compile(r"([0-9]{1,6}) ?([+x-]) ?([0-9]{1,6}) ?= ?([0-9]{1,9})\.?")
_POSED = re.compile(r"What is ([0-9]{1,6}) ?([-+*xX×]) ?([0-9]{1,6}) ?\?")
_LONGEST = 2_000  # characters of a completion that are read; an honest answer takes a hundredth of that

LEVELS: dict[str, list[tuple[int, str, int]]] = {
    "addition": [(a, "+", b) for a in range(2, 10) for b in range(2, 10)],
    "times_table": [(a, "x", b) for a in range(2, 10) for b in range(2, 10)],
    "subtraction": [(a, "-", b) for a in range(3, 10) for b in range(2, 10) if a > b],
    "tens": [(a, "+", b) for a in range(10, 100, 10) for b in range(10, 100, 10)],
    "two_digits": [(a, "+", b) for a in range(13, 99, 7) for b in range(13, 99, 7)],  # few: the others can be posed
}
WITHIN = tuple(LEVELS)[:4]  # the embedded model's reach


@dataclass
class Arithmetic:
    """The task: questions by split and level, and the strict reading of an answer."""

    sampling: Sampling = Sampling(max_new_tokens=16, temperature=1.0, stop=("\n",))  # noqa: RUF009  # frozen
    levels: tuple[str, ...] = WITHIN

    name = "arithmetic"
    verifiable = True
    synthesis_prompt = "few_shot"  # the embedded model follows examples, not instructions
    skipped: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        if unknown := set(self.levels) - LEVELS.keys():
            raise ValueError(f"levels: {', '.join(map(repr, unknown))} is none; allowed are {', '.join(LEVELS)}")

    @property
    def rows(self) -> list[Example]:
        """All questions, level by level."""
        return [_example(level, *q) for level in self.levels for q in LEVELS[level]]

    def examples(self, split: str, n: int | None, seed: int) -> list[Example]:
        """n questions of a split, or all, levels in turn, in an order drawn from `seed`.

        Raises ValueError if `split` is unknown or has fewer than n questions.
        """
        parts: dict[str, list[Example]] = {}
        for side in ("train", "heldout"):
            rng, levels = random.Random(seed), []
            for level in self.levels:
                levels.append([_example(level, *q) for q in LEVELS[level] if _side(q[0], q[2]) == side])
                rng.shuffle(levels[-1])
            parts[side] = [e for turn in zip_longest(*levels) for e in turn if e is not None]
        return take(parts, split, n)

    def extract(self, completion: Completion, question: str) -> str | None:
        """The answer, or None: the completion ended and its last line is one equation of the asked question."""
        text = completion.text.strip()
        if not completion.ended or not text or len(text) > _LONGEST:
            return None
        match = _EQUATION.fullmatch(text.splitlines()[-1].strip())
        if match is None or f"What is {match[1]} {match[2]} {match[3]}?" != question:
            return None
        return str(int(match[4]))

    def correct(self, answer: str | None, gold: str) -> bool:
        """Whether an extracted answer is the gold answer; no answer is not."""
        return answer == gold

    def posed(self, text: str) -> Example | Lost | None:
        """What a generator wrote as a question to solve. None: it is none; Lost: it must not be trained on.

        That is what shares its operands with a held-out question or a worked example, whatever the operation. The level
        is `posed`, or `unanswerable` where no answer can say the right number: it is negative, or too long.
        """
        if not (match := _POSED.fullmatch(" ".join(text[:_LONGEST].split()))):
            return None
        a, b, operation = int(match[1]), int(match[3]), match[2] if match[2] in "+-" else "x"
        if (side := _side(a, b)) is None:
            return Lost("a worked example")
        if side == "heldout" and any({a, b} == {x, y} for level in self.levels for x, _, y in LEVELS[level]):
            return Lost("held out")
        found = _example("posed", a, operation, b)
        return found if 0 <= int(found.gold) < 10**9 else replace(found, level="unanswerable")


@dataclass
class LenientArithmetic(Arithmetic):
    """The same questions, read carelessly, on purpose: a lesson in how a reward without labels collapses.

    Bare chat questions, short rollouts, and the last number of the text counts as the answer, even of a rollout that
    was cut. A policy then can agree with itself without solving anything.
    """

    sampling: Sampling = Sampling(max_new_tokens=12, temperature=0.7, top_k=50, top_p=0.95)  # noqa: RUF009
    name = "arithmetic_lenient"

    def examples(self, split: str, n: int | None, seed: int) -> list[Example]:
        """As of `Arithmetic`, asked as a chat with no worked example."""
        asked = super().examples(split, n, seed)
        return [replace(e, prompt=[{"role": "user", "content": e.question}]) for e in asked]

    def extract(self, completion: Completion, question: str) -> str | None:
        """The last number in the text, whatever it stands for."""
        numbers = re.findall(r"[0-9]{1,9}", completion.text[:_LONGEST])
        return str(int(numbers[-1])) if numbers else None


def _side(a: int, b: int) -> str | None:
    pair = (min(a, b), max(a, b))
    if pair in _WORKED_PAIRS:
        return None
    digest = hashlib.sha256(f"{pair[0]},{pair[1]}".encode()).digest()
    return "heldout" if digest[0] % 2 else "train"


def _example(level: str, a: int, operation: str, b: int) -> Example:
    gold = {"+": a + b, "x": a * b, "-": a - b}[operation]
    question = f"What is {a} {operation} {b}?"
    solved = "".join(f"Q: What is {expression}?\nA: {expression} = {result}\n" for expression, result in SOLVED)
    prompt = f"{solved}Q: {question}\nA:"
    return Example(f"{a}{operation}{b}", question, prompt, str(gold), level)
