"""The one seam to TRL: flat lists of completions in, whole groups to estimator and rule, one number a row out.

TRL calls a reward function with the rows of one process, `num_generations` consecutive rows a prompt. It does not
promise that a group is whole: where the rows of a process are no multiple of the group size, the groups are
gathered from all processes first, and each process scores its share. What is logged is that of the whole step on
every process. Synthesis happens here and not in `rollout_func`, so that it also works where
Unsloth or vLLM make the rollouts.

Left out: async rewards. Collectives from another thread would hang, and the anchor is local.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cat_lib.schema import Completion, Estimator, Example, Group, Prompt, Reference, RewardRule, Task
from cat_lib.tasks import group_of

Row = tuple[str, str, list[int]]  # example id, completion text, completion token ids
Read = Callable[[Prompt, str, list[int]], Completion]  # prompt, text and token ids to what the policy said
OnStep = Callable[[int, list[Group], list[Reference | None], list[list[float | None]]], dict[str, float]]


class GroupReward:
    """A TRL reward function made of an estimator and a reward rule.

    `on_step(step, groups, references, rewards)` sees each finished batch, that of all processes on each of them, and
    returns metrics to log; what it does with gold answers comes after the rewards are fixed.
    """

    __name__ = "reward"  # TRL's metric key

    def __init__(
        self,
        task: Task,
        examples: Sequence[Example],
        estimator: Estimator,
        rule: RewardRule,
        group_size: int,
        read: Read,
        on_step: OnStep,
    ) -> None:
        self.asked: Mapping[str, tuple[str, Prompt]] = {e.id: (e.question, e.prompt) for e in examples}
        self.task, self.estimator, self.rule = task, estimator, rule
        self.group_size, self.read, self.on_step = group_size, read, on_step

    def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]],
        example_id: list[str],
        trainer_state: Any,
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float | None]:
        """One reward a row, None where unscorable. Raises ValueError if a group cannot be made whole."""
        from accelerate import PartialState
        from accelerate.utils import gather_object

        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        rows: list[Row] = list(zip(example_id, texts, completion_ids, strict=True))
        world, local = PartialState(), len(rows)
        split = world.num_processes > 1 and local % self.group_size != 0
        if split:
            rows = gather_object(rows)  # rank order is row order: each process holds one contiguous slice
        groups = whole_groups(rows, self.group_size, self._group)
        if split:
            numbers = range(world.process_index, len(groups), world.num_processes)
            groups = [groups[i] for i in numbers]
        else:
            numbers = range(world.process_index * len(groups), (world.process_index + 1) * len(groups))
        scored = list(zip(numbers, groups, *self._score(groups), strict=True))
        scored = sorted(gather_object(scored), key=lambda item: item[0])  # one process: as it is
        groups, references, rewards = [s[1] for s in scored], [s[2] for s in scored], [s[3] for s in scored]
        for name, value in self.on_step(trainer_state.global_step + 1, groups, references, rewards).items():
            log_metric(name, value)
        flat = [r for group in rewards for r in group]
        return flat[world.process_index * local :][:local]

    def _score(self, groups: list[Group]) -> tuple[list[Reference | None], list[list[float | None]]]:
        if not groups:
            return [], []
        references = self.estimator(groups)
        return references, self.rule(groups, references)

    def _group(self, id: str, chunk: Sequence[Row]) -> Group:
        question, prompt = self.asked[id]
        rollouts = [self.read(prompt, text, ids) for _, text, ids in chunk]
        return group_of(self.task, id, question, rollouts, prompt)


def whole_groups(rows: Sequence[Row], size: int, make: Callable[[str, Sequence[Row]], Group]) -> list[Group]:
    """Consecutive chunks of `size` rows as groups.

    Raises ValueError if the rows are no multiple of `size` or a chunk holds more than one question.
    """
    if len(rows) % size:
        raise ValueError(
            f"{len(rows)} rows do not make whole groups of {size}: make the number of rows in a step, over all "
            "processes, a multiple of group_size"
        )
    groups = []
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        ids = sorted({row[0] for row in chunk})
        if len(ids) != 1:
            raise ValueError(
                f"rows {start} to {start + size - 1} mix the questions {', '.join(ids[:4])}; each chunk of "
                f"group_size={size} rows must be one question, in the order TRL's sampler gives"
            )
        groups.append(make(ids[0], chunk))
    return groups
