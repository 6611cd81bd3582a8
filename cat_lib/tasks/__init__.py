"""Tasks by name, and the one way to make a group of rollouts, given or drawn."""

from __future__ import annotations

from collections.abc import Sequence

from cat_lib.schema import Completion, Example, Group, Lost, Model, Prompt, Sampling, Task
from cat_lib.tasks.arithmetic import Arithmetic
from cat_lib.tasks.formulate import FormulateTask
from cat_lib.tasks.formulate_files import load_problems
from cat_lib.tasks.healthbench import HUB, HealthTask, clinic, load_health
from cat_lib.tasks.math import HUB as MATH
from cat_lib.tasks.math import MathTask, load_math

NAMES = ("arithmetic", "formulate", *MATH, "clinic", "healthbench")


def load_task(name: str, data: str | None = None, transductive: bool = False, skip_bad_rows: bool = False) -> Task:
    """The task of that name. `data` is a hub id, a local file in the task's format, or the URL of one.

    `transductive` is for the math tasks: train on the questions that are scored, without their answers.
    `skip_bad_rows` leaves out rows that can't be used, and says how many, as does `Task.skipped`.

    Parts of HealthBench are Hard and Consensus: do not train on one and report on another.

    Raises ValueError if there is no such task or it would ignore what is given, and DataError for data that cannot be
    used.
    """
    check_source(name, data, transductive)
    if name in MATH:
        return load_math(name, data, transductive, skip_bad_rows)
    if name == "healthbench":
        return load_health(data or HUB, skip_bad_rows)
    if name == "formulate":
        return load_problems(data, skip_bad_rows) if data else FormulateTask()
    return Arithmetic() if name == "arithmetic" else clinic()


def sampling_of(name: str) -> Sampling:
    """How the rollouts of that task are drawn, known before its data is read."""
    if name in MATH:
        return MathTask.sampling
    return HealthTask.sampling if name == "healthbench" else load_task(name).sampling


def check_source(name: str, data: str | None, transductive: bool) -> None:
    """Raises ValueError if there is no such task, or it has no use for `data` or for transductive training."""
    if name not in NAMES:
        raise ValueError(f"task={name!r}: allowed is {', '.join(NAMES)}")
    if data and name in ("arithmetic", "clinic"):
        raise ValueError(
            f"data={data!r}: {name} reads no data; leave data out, or take {', '.join(MATH)} or healthbench"
        )
    if transductive and name not in MATH:
        raise ValueError(
            f"split='transductive': {name} keeps the questions that are scored apart; take split='heldout', or "
            f"{', '.join(MATH)}"
        )


def group_of(task: Task, id: str, question: str, rollouts: Sequence[Completion], prompt: Prompt = "") -> Group:
    """A group whose answers are what `task` extracts from its rollouts, with those that were lost to a limit."""
    found = [task.extract(rollout, question) for rollout in rollouts]
    answers = tuple(None if isinstance(answer, Lost) else answer for answer in found)
    lost = frozenset(i for i, answer in enumerate(found) if isinstance(answer, Lost))
    return Group(id, question, tuple(rollouts), answers, prompt, lost)


def sample_groups(model: Model, task: Task, examples: Sequence[Example], n: int, sampling: Sampling) -> list[Group]:
    """n rollouts of each question, with their extracted answers."""
    drawn = model.generate([e.prompt for e in examples], n, sampling) if examples else []
    return [group_of(task, e.id, e.question, own, e.prompt) for e, own in zip(examples, drawn, strict=True)]
