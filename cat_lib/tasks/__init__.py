"""Tasks by name, and the one way to make a group of rollouts."""

from __future__ import annotations

from collections.abc import Sequence

from cat_lib.schema import Completion, Group, Prompt, Task
from cat_lib.tasks.arithmetic import Arithmetic
from cat_lib.tasks.clinic import clinic
from cat_lib.tasks.healthbench import HUB, HealthTask, load_rows
from cat_lib.tasks.math import HUB as MATH
from cat_lib.tasks.math import MathTask, load_math

NAMES = ("arithmetic", *MATH, "clinic", "healthbench")


def load_task(name: str, data: str | None = None, transductive: bool = False) -> Arithmetic | MathTask | HealthTask:
    """The task of that name. `data` is a hub id or a local file in the task's format, for HealthBench also a URL.

    `transductive` is for the math tasks: train on the questions that are scored, without their answers.

    A tenth of its conversations is held out, a tenth kept for validation, at most 500 each. Hard and Consensus are
    parts of the full file: do not train on one and report on another.

    Raises ValueError if there is no such task, and DataError for data that cannot be used.
    """
    if name == "arithmetic":
        return Arithmetic()
    if name in MATH:
        return load_math(name, data, transductive)
    if name == "clinic":
        return clinic()
    if name == "healthbench":
        rows = load_rows(data or HUB)
        tenth = min(500, len(rows) // 10)  # the paper's 500 of HealthBench's 5,000
        return HealthTask(name, rows, heldout=tenth, validation=tenth)
    raise ValueError(f"task={name!r}: allowed is {', '.join(NAMES)}")


def group_of(task: Task, id: str, question: str, rollouts: Sequence[Completion], prompt: Prompt = "") -> Group:
    """A group whose answers are what `task` extracts from its rollouts."""
    return Group(id, question, tuple(rollouts), tuple(task.extract(r, question) for r in rollouts), prompt)
