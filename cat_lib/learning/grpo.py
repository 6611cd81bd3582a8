"""GRPO with LoRA through TRL: the only training loop.

`train` takes an estimator and a reward rule; which method of the field that makes is the caller's line. Its numbers
are in `settings.py`; the trainer's effective arguments are written beside the results.

Left out: evaluation during training (held-out questions are scored by `evaluation.py`, outside the loop that could
be fitted to them) and full-parameter training (the paper does not say that it uses LoRA for RL; we do).
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from cat_lib.learning.lora import add_lora as add_lora
from cat_lib.learning.record import Record
from cat_lib.learning.settings import GRPOSettings, grpo_arguments
from cat_lib.learning.trl import FACTS, Reward, Signal, group_reward
from cat_lib.ledger import Cost
from cat_lib.method.signals import GOLD_SIGNALS, RUBRIC_SIGNALS, SIGNALS
from cat_lib.runs.tracking import Run
from cat_lib.schema import Estimator, Example, RewardRule, Sampling, Task

if TYPE_CHECKING:
    from cat_lib.models.local import LocalModel


@dataclass(frozen=True)
class Trained:
    """What a training run leaves: its per-step history, every rollout, and the folder with the adapter."""

    history: pd.DataFrame  # one row a step; columns are the metrics of docs/metrics.md
    rollouts: pd.DataFrame  # one row a completion: step, question, text, answer, reference, reward
    adapter: Path
    warnings: list[str]
    spent: dict[str, Cost]  # by role, over all steps, those before a resume included

    def signal_metrics(self, window: int = 3) -> dict[str, float]:
        """Flat `<signal>_first` and `<signal>_last`: means over the first and last `window` steps, and `collapsed`."""
        numbers = {"collapsed": float(bool(self.warnings))}
        for name in (*SIGNALS, *GOLD_SIGNALS, *RUBRIC_SIGNALS):
            values = self.history[name].dropna() if name in self.history else pd.Series(dtype=float)
            if len(values):
                numbers |= {f"{name}_first": values[:window].mean(), f"{name}_last": values[-window:].mean()}
        return numbers


def train(
    policy: LocalModel,
    task: Task,
    examples: Sequence[Example],
    estimator: Estimator,
    rule: RewardRule,
    settings: GRPOSettings,
    run: Run,
    *,
    resume: bool = True,
) -> Trained:
    """Train `policy`'s adapter in place on its own rollouts.

    Estimator and rule may have `state()` and `load(state)`: what they know is kept in each checkpoint, as JSON, and
    restored by a resume. A rule may have `tables()` and `observe(step, folder)` (`record.py`).

    Writes `checkpoints/`, `adapter/` and `rollouts/step_*.parquet` into the run's folder and the effective trainer
    arguments into its `config.json`. With `resume`, continues from the folder's newest checkpoint, if there is one; if
    that is the last step, its adapter and history are loaded and nothing is trained again.
    Ctrl-C saves a checkpoint marked by `interrupted.json` and raises KeyboardInterrupt.
    Under `accelerate launch` every process calls this, on one file system; the first one writes (`train_entry.py`).
    Raises ValueError if the policy has no adapter, the examples are fewer than `prompts_per_step`, or the engine can't
    draw as many as vote or tell of a rollout what estimator or rule `needs`; and PolicyError if the engine that draws
    for it (`policy.sampler`) draws from other weights, now or at a step.
    """
    logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)  # what imports Ray is told of widgets otherwise
    from cat_lib.learning.session import GRPOSession, require_adapter

    require_adapter(policy)
    if len(examples) < settings.prompts_per_step:
        raise ValueError(
            f"{len(examples)} examples are fewer than prompts_per_step={settings.prompts_per_step}; "
            "add questions or lower prompts_per_step"
        )
    require_drawn(policy, estimator, rule, settings, task.sampling)
    if policy.sampler:
        from cat_lib.learning.sampler import samples_the_policy

        found = samples_the_policy(policy.anchor(), [e.prompt for e in examples[:4]])
        run.update_config(canary=found)
    run.dataset("training", examples, task.name)
    run.tag("reward_rule", getattr(rule, "__name__", type(rule).__name__))
    signal = Signal(estimator, rule)
    record = Record(task, examples, run, signal, settings.group_size)
    read = partial(policy.read, sampling=task.sampling)
    reward = group_reward(task, examples, signal, settings.group_size, read, record.on_step)
    trainer = _trainer(policy, task, examples, reward, settings, run)
    session = GRPOSession(trainer, policy, run, resume, signal)
    adapter = session.work(ended=trainer.state.global_step >= settings.steps)
    history = pd.DataFrame([h for h in trainer.state.log_history if "reward" in h])
    # a run in which no group had a reference, or both right and wrong rollouts
    for name in (*SIGNALS, *GOLD_SIGNALS) if task.verifiable else ():
        history[name] = history.get(name, math.nan)
    return Trained(history, record.tables(settings.steps), adapter, session.warnings, session.spending.total())


def require_drawn(
    policy: LocalModel, estimator: Estimator, rule: RewardRule, settings: GRPOSettings, sampling: Sampling
) -> None:
    """Raises ValueError where the engine that draws can't give the rollouts, or the facts of them, that are asked for.

    An estimator or rule names the facts (`FACTS`) that it can't do without in an attribute `needs`, and may have a
    method `require(votes)`, which refuses too few.
    """
    engine, whole = policy.engine, sampling.top_k == 0 and sampling.top_p == 1
    given: Sequence[str] = FACTS if policy.plainly else ()
    if policy.sampler:
        engine, given = "vllm", FACTS[:1] if whole else ()
    elif not policy.plainly and settings.drawn > settings.group_size:
        raise ValueError(
            f"votes={settings.drawn}: on a GPU {engine} draws the group_size={settings.group_size} rollouts that it "
            "trains on and no more; take engine=transformers, votes=None, or rollouts=vllm with engine=unsloth"
        )
    if sampling.tool and not policy.sampler and not policy.plainly:
        fit = "take engine=transformers, or rollouts=vllm with engine=unsloth"
        raise ValueError(f"on a GPU {engine} draws no rollouts that call a tool; {fit}")
    for part in (estimator, rule):
        if hasattr(part, "require"):
            part.require(settings.drawn)
        if missing := [fact for fact in getattr(part, "needs", ()) if fact not in given]:
            raise ValueError(
                f"{getattr(part, '__name__', type(part).__name__)} needs {', '.join(missing)} of each rollout, which "
                f"{engine} does not give{'' if whole or engine != 'vllm' else ' where top_k or top_p cut'}; take "
                "engine=transformers and rollouts=engine"
            )


def _trainer(
    policy: LocalModel, task: Task, examples: Sequence[Example], reward: Reward, settings: GRPOSettings, run: Run
) -> Any:
    """TRL's trainer with our rollouts and reward attached; Unsloth's patched one if the policy came from it."""
    import trl
    from datasets import Dataset

    from cat_lib.learning.checkpoints import exact
    from cat_lib.learning.sampler import drawn_elsewhere, rollouts
    from cat_lib.learning.shared_prompt import SharedPromptTrainer

    # an unscorable group is expected and counted; TRL would print its prompts each time
    logging.getLogger("trl.trainer.grpo_trainer").addFilter(lambda r: "functions returned None" not in r.getMessage())
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is "experimental"; the pin holds it still
    on_cpu, processes = policy.model.device.type == "cpu", int(os.environ.get("WORLD_SIZE", "1"))
    arguments = grpo_arguments(settings, task.sampling, run.dir / "checkpoints", on_cpu, processes, policy.thinking)
    stop_ids, own = policy.stop_ids(task.sampling.stop), policy.plainly
    voters = settings.drawn // settings.group_size - 1
    trainer = (SharedPromptTrainer if own else exact(trl.GRPOTrainer))(
        model=policy.model,
        args=trl.GRPOConfig(**arguments),
        reward_funcs=[reward],
        train_dataset=Dataset.from_list([{"prompt": e.prompt, "example_id": e.id} for e in examples]),
        processing_class=policy.tokenizer,
        rollout_func=rollouts(policy, task.sampling, settings.seed, voters) if own or policy.sampler else None,
    )
    if policy.sampler:
        drawn_elsewhere(trainer, policy.sampler)
    if "ref" in policy.model.peft_config:  # TRL's copy of the adapter: the reference is the model without one
        policy.model.delete_adapter("ref")
    trainer.eos_token_ids = sorted(stop_ids)  # or TRL's clipped_ratio counts our stops as cut
    return trainer
