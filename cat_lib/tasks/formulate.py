"""Word problems to optimization models (AutoOR, arXiv 2604.16804), by construction: no word without its number.

A problem is drawn as numbers; one template makes its model of them, another its words (problems.yaml), and it is kept
if both hold these numbers and the model has an optimum. Training and held-out problems differ in names, phrasings and
numbers. An answer is the optimum's value (solvers.Outcome); what a model writes is read, never run.

Prompts are plain text with three worked problems of the same level, which the embedded model can follow. With a
scaffold they also show the form of each right model, its numbers left out: for a level that starts at zero (appendix
D.3 of the paper, whose scaffold is its solver's syntax with the constraints mapped to it). `retold` has a language
model write the words anew from the right model, and checks them. Left out: the paper's clarifying questions.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined, Template

from cat_lib.files import append_line, read_lines
from cat_lib.schema import Completion, Example, Group, Judging, Lost, Model, Sampling
from cat_lib.tasks import solvers
from cat_lib.tasks.formulation import Tree, read
from cat_lib.tasks.rows import take

_DATA = yaml.safe_load(Path(__file__).with_name("problems.yaml").read_text("utf-8"))
LEVELS: dict[str, Any] = _DATA["levels"]
LADDER = ("one_product", "two_products", "total_and_bound", "two_resources")  # where the embedded model can begin
SIDES = ("worked", "train", "heldout")
_NUMBERS = re.compile(r"(?<![\w.])[0-9][0-9.]*")  # of a model; names have none
_SIGNS = re.compile(r"[<>=+*^{}]")  # of a model, in no template's words
_LONGEST = 400  # tokens of a problem's words
CHECKS = (  # the paper's five, of a problem in words and its model
    "Every number of the model stands in the problem, said of the same thing.",
    "The problem states every constraint of the model, and no other.",
    "The problem asks for what the model minimizes or maximizes.",
    "What depends on what, and by which factor, is the same in the problem and in the model.",
    "The problem contradicts itself nowhere, and says all that solving it needs.",
)
_SAID = re.compile(r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?")
_MODEL, _WORDS = (  # 1500 in a model is 1,500 in words
    Environment(undefined=StrictUndefined, finalize=lambda v, form=form: v if isinstance(v, str) else format(v, form))
    for form in ("g", ",g")
)


@dataclass(frozen=True)
class World:
    """A problem: the numbers that were drawn, in words and as a model, and what the model comes to."""

    numbers: tuple[float, ...]
    words: str
    formulation: str
    outcome: solvers.Outcome


@dataclass(frozen=True)
class FormulateTask:
    """Word problems of some levels, `each` of them to train on and half as many held out.

    `sampling` has tokens enough for LADDER; a model of 12 variables takes 400, one of pumps 700.
    """

    levels: tuple[str, ...] = LADDER
    each: int = 100
    scaffold: bool = False  # prompts show the right model's form: gold, but for its numbers
    sampling: Sampling = Sampling(70, temperature=0.7, top_p=0.95, stop=("end",))  # noqa: RUF009  # frozen
    given: tuple[Example, ...] = ()  # problems of a file, all of them held out
    skipped: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""  # what is known of a file's labels
    name = "formulate"
    verifiable = True
    synthesis_prompt = "few_shot_model"

    @property
    def rows(self) -> list[Example]:
        """All problems, level by level. Raises ValueError for an unknown level, RuntimeError if SCIP is missing."""
        return [*self.given, *(example for example, _ in self._pairs())]

    @property
    def gold_models(self) -> dict[str, str]:
        """The right model of each problem, by its id; as gold as `Example.gold`."""
        return {example.id: model for example, model in self._pairs()}

    def examples(self, split: str, n: int | None, seed: int) -> list[Example]:
        """n problems of a split, or all, in an order drawn from `seed`. Raises ValueError if there are fewer."""
        parts = {side: [e for e, _ in self._pairs() if e.id.startswith(side)] for side in SIDES[1:]}
        parts["heldout"] += self.given
        for part in parts.values():
            random.Random(seed).shuffle(part)
        return take(parts, split, n)

    def extract(self, completion: Completion, question: str) -> str | Lost | None:
        """The value of the model's optimum, `infeasible` or `unbounded`; None: what was written is no model."""
        if (text := written(completion)) is None:
            return None
        (outcome,) = solvers.solve([text])
        return outcome if isinstance(outcome, Lost) else outcome.answer

    def correct(self, answer: str | None, gold: str) -> bool:
        """Whether the value is right to 2 decimals, or within 2 % for problems that are not linear."""
        return solvers.equal(answer, gold)

    def right_models(self, groups: Sequence[Group]) -> list[list[bool | None]]:
        """Which rollouts wrote their problem's right model: the same optimum, and at other prices too. None at a limit.

        Stricter than `correct`, for a wrong model may have the right value by luck (`solvers.same_models`). It reads
        gold models, and is for evaluation, and for whether a level can be trained on.
        """
        golds = self.gold_models
        texts = [[written(rollout) or "" for rollout in group.rollouts] for group in groups]
        found = iter(solvers.same_models([(t, golds[g.id]) for g, own in zip(groups, texts, strict=True) for t in own]))
        return [[next(found) for _ in own] for own in texts]

    def retold(
        self, model: Model, examples: Sequence[Example], path: Path, judge: Judging | None = None
    ) -> list[Example]:
        """The problems in words that a model wrote back from their right models (AutoOR's back-translation).

        It is shown three worked problems. Its words are taken where they say each number once and every variable's
        name, without a sign of a model: one that repeats the right model would put it into the prompt. What passes is
        put to the judge, if there is one, which has to find all `CHECKS` met; without it a number said of the wrong
        thing is not found out. Elsewhere the template's words stay, so the share of new ones is the yield. All it wrote
        is kept in `path`, with the checks that failed, and read instead of asking again.
        """
        golds = self.gold_models
        known = {line["id"]: "" if line.get("failed") else line["text"] for _, line in read_lines(path)}
        new = [e for e in examples if e.id not in known]
        shown = [f"{self._worked(e.level)}Model:\n{golds[e.id]}\nProblem:" for e in new]
        drawn = replace(self.sampling, max_new_tokens=_LONGEST, stop=("\n",))
        for example, (said,) in zip(new, model.generate(shown, 1, drawn), strict=True):
            text, failed, gold = said.text.strip() if said.ended else "", list[str](), golds[example.id]
            if judge and _in_words(example, text, gold) is not example:
                verdicts = judge([(f"Problem:\n{text}\n\nModel:\n{gold}", check) for check in CHECKS])
                failed = [check for check, verdict in zip(CHECKS, verdicts, strict=True) if not verdict.met]
            known[example.id] = "" if failed else text
            append_line(path, {"id": example.id, "text": text, "failed": failed})
        return [_in_words(e, known[e.id], golds[e.id]) for e in examples]

    def _worked(self, level: str) -> str:
        return "".join(f"Model:\n{w.formulation}\nProblem: {w.words}\n\n" for w in worlds(level, "worked", 3))

    def _pairs(self) -> Iterator[tuple[Example, str]]:
        for level in self.levels:
            worked = [(self._asked(w), w.formulation.removesuffix("\nend")) for w in worlds(level, "worked", 3)]
            before = "".join(f"{asked}{model}\nend\n\n" for asked, model in worked)
            for side, size in (("train", self.each), ("heldout", -(-self.each // 2))):
                for i, w in enumerate(worlds(level, side, size)):
                    id, prompt = f"{side}-{level}-{i}", f"{before}{self._asked(w)}"
                    yield Example(id, w.words, prompt, w.outcome.answer or "", level), w.formulation

    def _asked(self, world: World) -> str:
        form = " ".join(_NUMBERS.sub("?", world.formulation.removesuffix("end")).split())
        return f"Problem: {world.words}\n" + (f"Form: {form}\n" if self.scaffold else "")


def _in_words(example: Example, words: str, model: str) -> Example:
    """The example in these words, if they say what its own say."""
    numbers = [float(number.replace(",", "")) for number in _SAID.findall(example.question)]
    names = {part for name in read(model).variables for part in name.lower().split("_")}
    if not agree(numbers, words, model) or any(name not in words.lower() for name in names) or _SIGNS.search(words):
        return example
    before, _, after = str(example.prompt).rpartition(example.question)
    return replace(example, question=words, prompt=f"{before}{words}{after}")


def written(completion: Completion) -> str | None:
    """The model that a completion wrote, in its last fence or alone, whole where sampling stopped at `end`.

    None if the completion was cut.
    """
    text = completion.text.strip()
    if text.endswith("```") and text.count("```") > 1:
        text = text.split("```")[-2].partition("\n")[2].strip()
    return (text if text.endswith(("}", "end")) else f"{text}\nend") if completion.ended else None


@cache
def worlds(level: str, side: str, n: int) -> tuple[World, ...]:
    """The first n problems of a level for a side, one of SIDES: always the same.

    Raises ValueError for an unknown level, RuntimeError if a template is at fault or SCIP is missing.
    """
    if level not in LEVELS:
        raise ValueError(f"level {level!r}: allowed are {', '.join(LEVELS)}")
    kept, drawn = dict[tuple[float, ...], World](), _drawn(level, side)
    while len(kept) < n:
        some = list(islice(drawn, n))
        for (numbers, words, model), outcome in zip(some, solvers.solve([model for *_, model in some]), strict=True):
            if isinstance(outcome, Lost) or outcome.status == "malformed" or not agree(numbers, words, model):
                raise RuntimeError(f"{level}: {getattr(outcome, 'why', '') or f'{words} and {model} differ'}")
            if outcome.status == "optimal":
                kept.setdefault(numbers, World(numbers, words, model, outcome))
    return tuple(kept.values())[:n]


def _drawn(level: str, side: str) -> Iterator[tuple[tuple[float, ...], str, str]]:
    """Numbers that belong to a side, with words and a model of them, without end."""
    family, sizes = _DATA["families"][LEVELS[level]["family"]], LEVELS[level]["sizes"]
    pool = "heldout" if side == "heldout" else "train"
    for attempt in count():
        rng, numbers = random.Random(f"{level} {side} {attempt}"), list[float]()
        names = {kind: rng.sample(_DATA["names"][kind][pool], rng.randint(*size)) for kind, size in sizes.items()}
        world = names | {key: _table(draw["of"], draw, names, rng, numbers) for key, draw in family["numbers"].items()}
        if hashlib.sha256(repr(numbers).encode()).digest()[0] % len(SIDES) == SIDES.index(side):
            words, model = _filled(_WORDS, rng.choice(family[pool]), world), _filled(_MODEL, family["model"], world)
            yield tuple(numbers), " ".join(words.split()), model


def _table(
    of: Sequence[str], draw: Mapping[str, Any], names: Mapping[str, list[str]], rng: random.Random, numbers: list[float]
) -> Any:
    """A number, also put at the end of `numbers`, or a table of them for each name of the sets that it is of."""
    if of:
        return {name: _table(of[1:], draw, names, rng, numbers) for name in names[of[0]]}
    numbers.append(rng.randint(*draw["range"]) * draw.get("times", 1))
    return numbers[-1]


def agree(numbers: Sequence[float], words: str, formulation: str) -> bool:
    """Whether the words say these numbers, each of them once, and the model has no others, but for 0 and 1."""
    of = read(formulation)
    sides = [of.objective, *(left for left, _, _ in of.rows)]
    bounds = [end for v in of.variables.values() if not v.integer or v.high != 1 for end in (v.low, v.high)]
    held = {*chain.from_iterable(e.terms.values() for e in sides), *(right for *_, right in of.rows), *bounds}
    held |= {number for e in sides if e.tree is not None for number in _leaves(e.tree)}
    said = [float(number.replace(",", "")) for number in _SAID.findall(words)]
    return sorted(said) == sorted(numbers) and {abs(h) for h in held} - {0, 1, float("inf")} == {*numbers} - {0, 1}


def _leaves(tree: Tree) -> list[float]:
    if isinstance(tree, tuple):
        return [number for part in tree[1 : 2 if tree[0] == "^" else None] for number in _leaves(part)]
    return [tree] if isinstance(tree, float) else []


def _filled(how: Environment, template: str, world: Mapping[str, Any]) -> str:
    text = _compiled(how, template).render(world)
    return "\n".join(line for line in text.split("\n") if line.strip())


@cache
def _compiled(how: Environment, template: str) -> Template:
    return how.from_string(_DATA["macros"] + template)
