"""Has a model seen these questions? What it makes of their first 60 %, beside the same texts with other numbers.

Source: arXiv 2507.10532, partial-prompt completion rate and partial-prompt answer accuracy (there Qwen2.5-Math-7B
completes 54.6 % of MATH-500 and answers 53.6 % of it so, Llama-3.1-8B 3.8 and 2.4 %).

The control is a question with its numbers redrawn: its wording, length and form are the same, so that whatever can be
guessed of them can be guessed of both, and what the model has on the published text alone is memory. Questions made
anew, as by the paper's generator, differ from a benchmark's in all of these.

Left out: ROUGE-L, in whose place stands the longest common run, for it has no gaps that chance could fill; and answers
to redrawn questions, whose right answer nobody knows.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher

import pandas as pd

from cat_lib.measuring.evaluation import graded
from cat_lib.measuring.tables import compare, outcomes, summary
from cat_lib.schema import Example, Model, Prompt, Sampling, Task
from cat_lib.tasks import sample_groups

SHARE = 0.6  # of a question's words that are shown
GIVEN, REDRAWN = "given", "redrawn"
_ROOM = 8  # tokens more than the longest rest has: other words may take more


def halves(question: str) -> tuple[str, str] | None:
    """The first 60 % of a question's words, at least one, as they stand, and the rest; None for a single word."""
    words = list(re.finditer(r"\S+", question))
    if len(words) < 2:
        return None
    end = words[max(1, int(SHARE * len(words))) - 1].end()
    return question[:end], question[end:]


def redrawn(question: str) -> str | None:
    """The question with each number another one of as many digits, drawn by its text; None if it has no number.

    A number that stands there twice becomes the same both times, so that what the text repeats it still repeats.
    """
    rng, new = random.Random(question), dict[str, str]()
    for number in dict.fromkeys(re.findall(r"[0-9]+", question)):
        digits = [rng.choice("123456789"), *rng.choices("0123456789", k=len(number) - 1)]
        last = digits[-1] if digits != [*number] else str(int(digits[-1]) % 9 + 1)
        new[number] = "".join([*digits[:-1], last])
    return re.sub(r"[0-9]+", lambda found: new[found[0]], question) if new else None


def completed(text: str, rest: str) -> tuple[float, float]:
    """Whether a text begins with all the words of the rest, and the longest run of them in it, over all of them."""
    wrote, wanted = text.split(), rest.split()
    run = SequenceMatcher(None, wrote, wanted, autojunk=False).find_longest_match().size
    return float(wrote[: len(wanted)] == wanted), run / len(wanted)


def require(task: Task, examples: Sequence[Example]) -> list[Example]:
    """The questions that can be cut in two.

    Raises ValueError for a task without answers that can be checked, or with fewer than 2 questions that have a number.
    """
    if not task.verifiable:
        raise ValueError(f"task={task.name!r} has no answers that can be checked; take arithmetic or a math task")
    asked = [e for e in examples if halves(e.question)]
    if (n := sum(redrawn(e.question) is not None for e in asked)) < 2:
        raise ValueError(f"{n} of {len(examples)} questions have words and a number to redraw; at least 2 are needed")
    return asked


def probe(model: Model, task: Task, examples: Sequence[Example]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Shares by measure and text (given, redrawn), as `tables.summary`; and given minus redrawn, as `tables.compare`.

    Measures: exact_completion and longest_run, of the bare words continued greedily, as the source does it;
    partial_answer, the right answer to the task's own prompt with the first 60 % in the question's place. The source
    asks without a template; this is asked as the accuracies are that it stands beside. It has no control: much of some
    questions can be guessed from 60 %.
    Shares of questions have Wilson's interval, mean runs Student's. A question of one word is left out, and one without
    numbers has no control. Raises ValueError as `require`, or if a prompt does not hold its question.
    """
    asked, found = require(task, examples), []
    ids = [e.id for e in asked]
    for name, own in ((GIVEN, [e.question for e in asked]), (REDRAWN, [redrawn(e.question) for e in asked])):
        parts = {id: cut for id, text in zip(ids, own, strict=True) if text and (cut := halves(text))}
        most = max(len(model.encode(rest)) for _, rest in parts.values()) + _ROOM
        written = model.generate([head for head, _ in parts.values()], 1, Sampling(most, temperature=0.0))
        texts = {id: completion.text for id, (completion,) in zip(parts, written, strict=True)}
        scores = [completed(texts[id], parts[id][1]) if id in parts else (math.nan, math.nan) for id in ids]
        for measure, values in zip(("exact_completion", "longest_run"), zip(*scores, strict=True), strict=True):
            found.append(outcomes({name: values}, ids, measure=measure))
    completions = pd.concat(found, ignore_index=True)
    partial = [replace(e, prompt=_cut(e)) for e in asked]
    groups = sample_groups(model, task, partial, 1, replace(task.sampling, temperature=0.0))
    answers = outcomes({GIVEN: graded(task, asked, groups)}, ids, measure="partial_answer")
    shares = summary(pd.concat([completions.dropna(), answers], ignore_index=True), ["measure", "method"])
    return shares, compare(completions, REDRAWN, within=["measure"])


def _cut(example: Example) -> Prompt:
    """The example's prompt with the first 60 % of its question in the question's place."""
    head, rest = halves(example.question) or (example.question, "")
    whole, part, prompt = json.dumps(head + rest)[1:-1], json.dumps(head)[1:-1], json.dumps(example.prompt)
    if whole not in prompt:
        raise ValueError(f"question {example.id!r}: its prompt does not hold it as it stands, so no part can be asked")
    cut: Prompt = json.loads(prompt.replace(whole, part))
    return cut
