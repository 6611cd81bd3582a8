"""Tasks by name, and the one way to make a group of rollouts."""

from __future__ import annotations

from collections.abc import Sequence

from cat_lib.schema import Completion, Group, Prompt, Sampling, Task
from cat_lib.tasks.answers import lost
from cat_lib.tasks.arithmetic import Arithmetic
from cat_lib.tasks.clinic import clinic
from cat_lib.tasks.healthbench import HUB, HealthTask, load_rows
from cat_lib.tasks.math import HUB as MATH
from cat_lib.tasks.math import MathTask, load_math

_HEALTH = "healthbench"
NAMES = ("arithmetic", *MATH, "clinic", _HEALTH)


def load_task(
    name: str, data: str | None = None, transductive: bool = False, skip_bad_rows: bool = False
) -> Arithmetic | MathTask | HealthTask:
    """The task of that name. `data` is a hub id or a local file in the task's format, for HealthBench also a URL.

    `transductive` is for the math tasks: train on the questions that are scored, without their answers.
    `skip_bad_rows` leaves out rows that can't be used, and says how many.

    A tenth of HealthBench's conversations is held out, at least two, and a tenth kept for validation, at most 500
    each. Hard and Consensus are parts of the full file: do not train on one and report on another.

    Raises ValueError if there is no such task or it would ignore what is given, and DataError for data that cannot be
    used.
    """
    check_source(name, data, transductive)
    if name == "arithmetic":
        return Arithmetic()
    if name in MATH:
        return load_math(name, data, transductive, skip_bad_rows)
    if name == "clinic":
        return clinic()
    rows = load_rows(data or HUB, skip_bad_rows)
    tenth = min(500, len(rows) // 10)  # the paper's 500 of HealthBench's 5,000
    return HealthTask(name, rows, heldout=max(2, tenth), validation=tenth)


def check_source(name: str, data: str | None, transductive: bool) -> None:
    """Raises ValueError if there is no such task, or it has no use for `data` or for transductive training."""
    if name not in NAMES:
        raise ValueError(f"task={name!r}: allowed is {', '.join(NAMES)}")
    if data and name in ("arithmetic", "clinic"):
        raise ValueError(f"data={data!r}: {name} reads no data; leave data out, or take {', '.join(MATH)} or {_HEALTH}")
    if transductive and name not in MATH:
        raise ValueError(
            f"split='transductive': {name} keeps the questions that are scored apart; take split='heldout', or "
            f"{', '.join(MATH)}"
        )


def group_of(task: Task, id: str, question: str, rollouts: Sequence[Completion], prompt: Prompt = "") -> Group:
    """A group whose answers are what `task` extracts from its rollouts, with those that were lost to a limit."""
    answers, gone = list[str | None](), set[int]()
    for i, rollout in enumerate(rollouts):
        before = lost()
        answers.append(task.extract(rollout, question))
        if answers[i] is None and lost() > before:
            gone.add(i)
    return Group(id, question, tuple(rollouts), tuple(answers), prompt, frozenset(gone))


def sampling_of(name: str) -> Sampling:
    """How the task of that name draws its rollouts, before its data is read."""
    if name in MATH:
        return MathTask.sampling
    return {"arithmetic": Arithmetic.sampling, "clinic": clinic().sampling}.get(name, HealthTask.sampling)
