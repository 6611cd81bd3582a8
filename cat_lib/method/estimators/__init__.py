"""Estimators by the names that parameter cells, metrics and plots use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from cat_lib.method.estimators import voting
from cat_lib.method.estimators.likelihood import min_ppl, mutual_predictability, self_bon
from cat_lib.method.estimators.synthesis import synthesis
from cat_lib.schema import Estimator, Group, Model, Reference, Task

NAMES = ("single", "majority", "self_bon", "min_ppl", "mutual_predictability", "synthesis_1", "synthesis", "gold")


class SynthesisTask(Task, Protocol):
    """A task that says which synthesis prompt its models can follow."""

    @property
    def synthesis_prompt(self) -> str: ...


def estimators(
    names: Sequence[str],
    anchor: Model,
    task: SynthesisTask,
    golds: Mapping[str, str] | None = None,
    include_question: bool = False,
    prompt: str | None = None,
) -> dict[str, Estimator]:
    """The estimators of these names. `prompt` is the synthesis prompt (a kind of `synthesis.KINDS`), or the task's.

    `synthesis_1` is synthesis of the first rollout alone. `gold` needs `golds`, answers by question id.
    Raises ValueError as `check_names`, and for `gold` without golds.
    """
    check_names(names)
    if "gold" in names and golds is None:
        raise ValueError("the estimator 'gold' reads labels: pass golds, or leave it out")
    kind = prompt or task.synthesis_prompt
    write = synthesis(anchor, task.extract, kind, task.sampling.max_new_tokens, include_question)
    every: dict[str, Estimator] = {
        "single": voting.single,
        "majority": voting.majority,
        "self_bon": self_bon(anchor, kind),
        "min_ppl": min_ppl(anchor),
        "mutual_predictability": mutual_predictability(anchor),
        "synthesis_1": _of_first(write),
        "synthesis": write,
        "gold": voting.gold(golds or {}),
    }
    return {name: every[name] for name in names}


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError for a name that is not in NAMES or stands twice, and for none."""
    wrong = [n for n in names if n not in NAMES or list(names).count(n) > 1]
    if wrong or not names:
        raise ValueError(
            f"estimators={list(names)}: allowed are {', '.join(NAMES)}, each once; look at {wrong or 'an empty list'}"
        )


def _of_first(write: Estimator) -> Estimator:
    def estimate(groups: Sequence[Group]) -> list[Reference | None]:
        return write(voting.first(groups, 1))

    return estimate
