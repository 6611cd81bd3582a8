"""The one seam to TRL: flat lists of completions in, whole groups to estimator and rule, one number a row out.

TRL calls a reward function with the rows of one process, `num_generations` consecutive rows a prompt. It does not
promise that a group is whole, so the rows of all processes are gathered first, and each process scores its share of the
groups. A signal with state would come apart if each process showed it other groups, and what the others had seen would
be lost; so the first process alone is shown all groups of a step, in their order, as if there were no other, and hands
its state on. What is logged is that of the whole step on every process. Synthesis happens here and not in
`rollout_func`, so that it also works where Unsloth or vLLM make the rollouts; what the rollout's own pass knew of it
then stays None. Where more rollouts vote than are trained on (TTRL), the others come with the rows of their group, are
scored with it, and end here.

Left out: async rewards. Collectives from another thread would hang, and the anchor is local.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cat_lib.method.signals import Rewards
from cat_lib.schema import Completion, Estimator, Example, Group, Prompt, Reference, RewardRule, Task
from cat_lib.tasks import group_of

# of a rollout, which TRL hands from rollout_func to the reward
FACTS = ("mean_logprob", "mean_entropy", "self_certainty", "foreign")
# example id, completion text, completion token ids, facts, and further rollouts that only vote
Row = tuple[str, str, list[int], dict[str, Any], Sequence[Completion]]
Read = Callable[[Prompt, str, list[int]], Completion]  # prompt, text and token ids to what the policy said
Reward = Callable[..., list[float | None]]  # as TRL calls it
OnStep = Callable[[int, list[Group], list[Reference | None], Rewards], dict[str, float]]


class Signal:
    """An estimator and a reward rule, with the state that either may keep (`state()` and `load(state)`)."""

    def __init__(self, estimator: Estimator, rule: RewardRule) -> None:
        self.estimator, self.rule = estimator, rule
        parts: dict[str, Any] = {"estimator": estimator, "rule": rule}
        self.keepers = {name: part for name, part in parts.items() if hasattr(part, "state")}
        self.majorities: dict[str, str | None] = {}  # of questions seen; each process is shown all groups
        self.scored = 0  # groups of the last call in this process; the rule has observed nothing where it is 0

    def __call__(self, groups: list[Group]) -> tuple[list[Reference | None], Rewards]:
        self.scored = len(groups)
        references = self.estimator(groups) if groups else []
        return references, self.rule(groups, references) if groups else []

    def state(self) -> dict[str, Any]:
        """What estimator and rule would need to go on from here."""
        return {name: part.state() for name, part in self.keepers.items()} | {"flips": dict(self.majorities)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        for name, part in self.keepers.items():
            part.load(state[name])
        self.majorities = dict(state.get("flips", {}))


def group_reward(
    task: Task, examples: Sequence[Example], signal: Signal, group_size: int, read: Read, on_step: OnStep
) -> Reward:
    """A TRL reward function made of an estimator and a reward rule: one reward a row, None where unscorable.

    It raises ValueError if a group cannot be made whole. `on_step(step, groups, references, rewards)` sees each
    finished batch, that of all processes on each of them, and returns metrics to log; what it does with gold answers
    comes after the rewards are fixed.
    """
    asked = {e.id: (e.question, e.prompt) for e in examples}

    def group(chunk: Sequence[Row]) -> Group:
        id = chunk[0][0]
        question, prompt = asked[id]
        rollouts = [replace(read(prompt, text, ids), **facts) for _, text, ids, facts, _ in chunk]
        rollouts += [voter for *_, voters in chunk for voter in voters]
        return group_of(task, id, question, rollouts, prompt)

    def reward(  # its name is TRL's metric key
        completions: list[Any],
        completion_ids: list[list[int]],
        example_id: list[str],
        trainer_state: Any,
        log_metric: Callable[[str, float], None],
        **columns: Any,
    ) -> list[float | None]:
        from accelerate import PartialState
        from accelerate.utils import broadcast_object_list, gather_object

        world, local = PartialState(), len(completions)
        rank, processes = world.process_index, world.num_processes
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        facts = [{name: columns[name][i] for name in FACTS if name in columns} for i in range(local)]
        others = columns.get("untrained", [()] * local)
        # each process holds one contiguous slice of the step's rows, in the order of their ranks, and scores one
        rows: list[Row] = gather_object(list(zip(example_id, texts, completion_ids, facts, others, strict=True)))
        chunks = whole_groups(rows, group_size)
        alone = processes > 1 and bool(signal.keepers)
        # the first process, which writes, has a group as long as there is one; where it is alone, all of them
        ends = [len(chunks) if alone and r else -(-len(chunks) * r // processes) for r in range(processes + 1)]
        own = [group(chunk) for chunk in chunks[ends[rank] : ends[rank + 1]]]
        scored = gather_object(list(zip(own, *signal(own), strict=True)))
        if alone:
            signal.load(broadcast_object_list([signal.state()])[0])
        groups, references, rewards = map(list, zip(*scored, strict=True))
        for name, value in on_step(trainer_state.global_step + 1, groups, references, rewards).items():
            log_metric(name, value)
        flat = [r for scores in rewards for r in scores[:group_size]]
        return flat[rank * local :][:local]

    return reward


def whole_groups(rows: Sequence[Row], size: int) -> list[Sequence[Row]]:
    """Consecutive chunks of `size` rows, each of one question.

    Raises ValueError if the rows are no multiple of `size` or a chunk holds more than one question.
    """
    if len(rows) % size:
        raise ValueError(
            f"{len(rows)} rows do not make whole groups of {size}: make the number of rows in a step, over all "
            "processes, a multiple of group_size"
        )
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    for i, chunk in enumerate(chunks):
        ids = sorted({row[0] for row in chunk})
        if len(ids) != 1:
            raise ValueError(
                f"rows {i * size} to {i * size + size - 1} mix the questions {', '.join(ids[:4])}; each chunk of "
                f"group_size={size} rows must be one question, in the order TRL's sampler gives"
            )
    return chunks
