"""Tasks by name, and the one way to make a group of rollouts."""

from __future__ import annotations

from collections.abc import Sequence

from cat_lib.schema import Completion, Group, Task
from cat_lib.tasks.arithmetic import Arithmetic

NAMES = ("arithmetic",)


def load_task(name: str) -> Arithmetic:
    """The task of that name. Raises ValueError if there is none."""
    if name not in NAMES:
        raise ValueError(f"task={name!r}: allowed is {', '.join(NAMES)}")
    return Arithmetic()


def group_of(task: Task, id: str, question: str, rollouts: Sequence[Completion]) -> Group:
    """A group whose answers are what `task` extracts from its rollouts."""
    return Group(id, question, tuple(rollouts), tuple(task.extract(r, question) for r in rollouts))
