"""Tasks by name, and the one way to make a group of rollouts."""

from __future__ import annotations

from collections.abc import Sequence

from cat_lib.schema import Completion, Group, Task
from cat_lib.tasks.arithmetic import Arithmetic
from cat_lib.tasks.clinic import clinic
from cat_lib.tasks.healthbench import HUB, HealthTask, load_rows

NAMES = ("arithmetic", "clinic", "healthbench")


def load_task(name: str, data: str | None = None) -> Arithmetic | HealthTask:
    """The task of that name. `data` is HealthBench's hub id, a URL or a local file in its format.

    A tenth of its conversations is held out, a tenth kept for validation, at most 500 each. Hard and Consensus are
    parts of the full file: do not train on one and report on another.

    Raises ValueError if there is no such task, and DataError for data that cannot be used.
    """
    if name == "arithmetic":
        return Arithmetic()
    if name == "clinic":
        return clinic()
    if name == "healthbench":
        rows = load_rows(data or HUB)
        tenth = min(500, len(rows) // 10)  # the paper's 500 of HealthBench's 5,000
        return HealthTask(name, rows, heldout=tenth, validation=tenth)
    raise ValueError(f"task={name!r}: allowed is {', '.join(NAMES)}")


def group_of(task: Task, id: str, question: str, rollouts: Sequence[Completion]) -> Group:
    """A group whose answers are what `task` extracts from its rollouts."""
    return Group(id, question, tuple(rollouts), tuple(task.extract(r, question) for r in rollouts))
