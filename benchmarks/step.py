"""A CaT step against a plain TRL GRPO step on the same rollouts: 16 questions x 8 rollouts, one optimizer step.

    python benchmarks/step.py

Both sides draw the same rollouts with the same engine. The plain side takes the gold answer as reward and TRL's own
update; the CaT side adds the anchor's synthesis and uses the shared-prompt update. The ratio is plain over CaT.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import trl
from datasets import Dataset

from cat_lib.learning.grpo import add_lora, train
from cat_lib.learning.sampler import rollouts
from cat_lib.learning.settings import GRPOSettings, grpo_arguments
from cat_lib.method.estimators.synthesis import synthesis
from cat_lib.method.rewards.verifiable import verifiable
from cat_lib.models import load_model
from cat_lib.runs.tracking import Run
from cat_lib.schema import Completion
from cat_lib.tasks.arithmetic import Arithmetic
from common import compare

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
task = Arithmetic()
examples = task.examples("train", 16, 0)
by_question = {e.question: e for e in examples}
folder = Path(tempfile.mkdtemp())


def settings(seed: int) -> GRPOSettings:
    return GRPOSettings(steps=1, prompts_per_step=16, learning_rate=1e-4, lora_rank=16, seed=seed)


def gold(completions: list[str], question: list[str], **_: object) -> list[float]:
    """A plain verifiable reward."""
    answers = [task.extract(Completion(c, (), "stop"), q) for c, q in zip(completions, question, strict=True)]
    return [float(a == by_question[q].gold) for a, q in zip(answers, question, strict=True)]


def plain(seed: int) -> None:
    """Stock GRPOTrainer."""
    policy = add_lora(load_model("embedded"), 16, seed)
    arguments = grpo_arguments(settings(seed), task.sampling, folder / "plain", on_cpu=True)
    trl.GRPOTrainer(
        model=policy.model,
        args=trl.GRPOConfig(**arguments | {"save_strategy": "no"}),
        reward_funcs=[gold],
        train_dataset=Dataset.from_list([{"prompt": e.prompt, "question": e.question} for e in examples]),
        processing_class=policy.tokenizer,
        rollout_func=rollouts(policy, task.sampling, seed),
    ).train()


def cat(seed: int) -> None:
    """The same through cat_lib: synthesis by the anchor, shared-prompt update, records kept."""
    policy = add_lora(load_model("embedded"), 16, seed)
    estimator = synthesis(policy.anchor(), task)
    train(policy, task, examples, estimator, verifiable, settings(seed), Run(folder / f"cat{seed}"))


compare(
    plain, cat, repeats=2, what="seconds of a plain TRL step over seconds of a CaT step (above 0.77 is at most 1.3 x)"
)
