"""Is what learns the policy that is sampled? A minute's training whose outcome is known, on a copy.

`sampler.samples_the_policy` asks the other half, and before every training whose sampler is not its learner.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from cat_lib.learning.grpo import add_lora, train
from cat_lib.learning.sampler import PolicyError
from cat_lib.learning.settings import GRPOSettings
from cat_lib.models.local import LocalModel
from cat_lib.runs.folder import Run
from cat_lib.schema import Group, Reference
from cat_lib.tasks.arithmetic import Arithmetic


def learns_the_policy(model: LocalModel) -> tuple[float, float]:
    """Mean length of rollouts, in tokens, before and after two steps whose reward is to be short.

    Raises PolicyError if they have not become shorter: what is learnt, or what samples, is another policy.
    """
    task = Arithmetic()
    task = replace(task, sampling=replace(task.sampling, stop=(), max_new_tokens=24))
    examples = task.examples("train", 16, 0)
    policy = add_lora(model, 8, 0, "canary")

    def length() -> float:
        groups = policy.generate([e.prompt for e in examples], 8, task.sampling)
        return fmean(len(c.token_ids) for group in groups for c in group)

    def none(groups: Sequence[Group]) -> list[Reference | None]:
        return [None] * len(groups)

    def short(groups: Sequence[Group], _: Sequence[Reference | None]) -> list[list[float | None]]:
        return [[-float(len(c.token_ids)) for c in group.rollouts] for group in groups]

    before = length()
    settings = GRPOSettings(2, 8, 16, 4, 1e-3, beta=0.0, lora_rank=8)
    with tempfile.TemporaryDirectory() as folder:
        train(policy, task, examples, none, short, settings, Run(Path(folder)))
    after = length()
    del model.policies["canary"]
    if not after < before:
        raise PolicyError(
            f"two steps for short answers took their mean length from {before:.1f} to {after:.1f} tokens: what learns "
            "is not what samples"
        )
    return before, after
