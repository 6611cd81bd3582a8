"""The numbers of a training run: the settings of GRPO, and what TRL is given for them.

Defaults of `GRPOSettings` are the paper's (v1, appendix E) where it states them. Everything TRL or Unsloth would choose
silently is set here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from cat_lib.schema import Sampling, Task

AnyTask = TypeVar("AnyTask", bound=Task)

# Temperature, top-k and top-p of the paper's models (v1, table 3), by what a model's name or its config's type holds.
SAMPLING = {
    r"gemma-?3(?!n)": (1.0, 64, 0.95),
    r"qwen-?3(?!\.)": (0.7, 20, 0.8),
    r"llama-?3\.1": (0.7, 50, 0.9),
}


def draw_as(task: AnyTask, p: dict[str, Any]) -> AnyTask:
    """The task with its rollouts drawn as the parameters `p` say, else as the paper draws this model's, else as before.

    `response_tokens`, where `p` has it, is the most tokens of a rollout; None: as before. What takes effect is written
    into `p`. Raises ValueError for a temperature, top_k or top_p that can't draw.
    """
    names = ("temperature", "top_k", "top_p")
    try:
        kind = json.loads((Path(p["model"]) / "config.json").read_text()).get("model_type", "")
    except (OSError, ValueError, AttributeError):
        kind = ""  # a hub id, or a folder of which load_model says what is wrong
    family = next((f for f in SAMPLING if re.search(f, f"{p['model']} {kind}".lower())), "")
    usual = SAMPLING.get(family) or [getattr(task.sampling, name) for name in names]
    chosen = {name: value if p[name] is None else p[name] for name, value in zip(names, usual, strict=True)}
    if not (chosen["temperature"] > 0 and chosen["top_k"] >= 0 and 0 < chosen["top_p"] <= 1):
        raise ValueError(
            f"{', '.join(f'{k}={v}' for k, v in chosen.items())}: allowed are a temperature above 0, top_k from 0 "
            "(off) and top_p above 0 and up to 1 (off)"
        )
    p |= chosen
    longest = task.sampling.max_new_tokens
    if "response_tokens" in p:
        longest = p["response_tokens"] = p["response_tokens"] or longest
    return replace(task, sampling=replace(task.sampling, max_new_tokens=longest, **chosen))


@dataclass(frozen=True)
class GRPOSettings:
    """One GRPO run. Numbers marked (paper) are stated there; the others it leaves open."""

    steps: int = 1000  # (paper) maximum
    group_size: int = 8  # (paper) rollouts per prompt
    prompts_per_step: int = 32  # (paper) global batch 256, read as sequences: 32 prompts x 8 rollouts
    prompts_per_micro_batch: int = 4  # bounds memory; the gradient is that of the whole step
    learning_rate: float = 5e-7  # (paper) constant, no warm-up, AdamW
    beta: float = 1e-3  # (paper) KL to the initial policy
    epsilon: float = 0.2  # clip of the probability ratio
    loss_type: str = "grpo"  # (paper); or dr_grpo, which divides by no length and no standard deviation (2503.20783)
    lora_rank: int = 32  # (paper) for SFT; RL's is not stated
    save_steps: int | None = None  # None: 50, or a quarter of a shorter run
    seed: int = 0
    votes: int | None = None  # rollouts that the signal sees, of which the first group_size are trained on; None: those

    @classmethod
    def of(cls, parameters: Mapping[str, Any] | Iterable[tuple[str, Any]], **changed: Any) -> GRPOSettings:
        """The settings among a notebook's parameters, a mapping or pairs; names are the same. `changed` ones win."""
        given = dict(parameters) | changed
        return cls(**{f.name: given[f.name] for f in fields(cls) if f.name in given})

    @property
    def drawn(self) -> int:
        """Rollouts a question, those included that only vote."""
        return self.group_size if self.votes is None else self.votes

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(
                f"group_size={self.group_size}: GRPO compares rollouts of one prompt; allowed is 2 or more"
            )
        if self.loss_type not in ("grpo", "dr_grpo"):
            raise ValueError(f"loss_type={self.loss_type!r}: allowed are grpo and dr_grpo")
        if self.drawn < self.group_size or self.drawn % self.group_size:
            raise ValueError(
                f"votes={self.votes}: the first group_size={self.group_size} of them are trained on; allowed is a "
                f"multiple of it, as {2 * self.group_size}, or None"
            )
        if self.prompts_per_step % self.prompts_per_micro_batch:
            raise ValueError(
                f"prompts_per_step={self.prompts_per_step} is no multiple of prompts_per_micro_batch="
                f"{self.prompts_per_micro_batch}: a batch that can't hold whole groups; "
                f"take {self.prompts_per_micro_batch * max(1, self.prompts_per_step // self.prompts_per_micro_batch)}"
            )
        for name in ("steps", "prompts_per_step", "prompts_per_micro_batch", "lora_rank", "save_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: allowed is 1 or more")


def cut(settings: GRPOSettings, processes: int) -> tuple[int, int]:
    """Rows of a micro-batch on each of `processes`, and how many make a step: the same rows, and gradient, as one's.

    Whole groups a process where the prompts of a step divide by the processes; else groups are split. All micro-batches
    have as many rows, or the loss, a mean over sequences, would weigh them unlike. Raises ValueError for a step that
    can't be cut.
    """
    prompts, size, most = settings.prompts_per_step, settings.group_size, settings.prompts_per_micro_batch
    share, over = divmod(prompts * size, processes)
    if over:
        fits = [n for n in range(1, processes) if prompts * size % n == 0]
        whole = math.lcm(processes, most)
        raise ValueError(
            f"prompts_per_step={prompts} x group_size={size} rows can't be cut over {processes} processes; take "
            f"{fits[-1]} processes, or prompts_per_step={-(-prompts // whole) * whole}"
        )
    unit = size if share % size == 0 else 1
    rows = max(n for n in range(unit, min(share, most * size) + 1, unit) if share % n == 0)
    return rows, share // rows


def arguments(
    trainer: Literal["grpo", "sft"], output_dir: Path, on_cpu: bool, learning_rate: float, seed: int
) -> dict[str, Any]:
    """What TRL's config is given for either trainer: the same in every run, from trainer_arguments.yaml with the
    reasons, and what the run's folder, its machine and its settings say.
    """
    decided = yaml.safe_load(Path(__file__).with_name("trainer_arguments.yaml").read_text("utf-8"))["decided"]
    return {name: value for group in (*decided["both"], *decided[trainer]) for name, value in group["set"].items()} | {
        "output_dir": str(output_dir),
        "learning_rate": learning_rate,
        "gradient_checkpointing": not on_cpu,  # without it, the activations of 8 x 1536 tokens at 4B pass 80 GB
        "bf16": not on_cpu,
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "seed": seed,
        "data_seed": seed,
    }


def grpo_arguments(
    settings: GRPOSettings,
    sampling: Sampling,
    output_dir: Path,
    on_cpu: bool,
    processes: int = 1,
    thinking: bool = False,
) -> dict[str, Any]:
    """Keyword arguments for `trl.GRPOConfig`: what is decided once, and what this run's settings and machine say."""
    rows, micro_steps = cut(settings, processes)
    return arguments("grpo", output_dir, on_cpu, settings.learning_rate, settings.seed) | {
        "max_steps": settings.steps,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": micro_steps,
        "steps_per_generation": micro_steps,
        "num_generations": settings.group_size,
        "max_completion_length": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "vllm_importance_sampling_correction": sampling.top_k == 0 and sampling.top_p == 1,  # else there is no ratio
        "chat_template_kwargs": {"enable_thinking": thinking},
        "loss_type": settings.loss_type,
        "scale_rewards": "none" if settings.loss_type == "dr_grpo" else "group",
        "beta": settings.beta,
        "epsilon": settings.epsilon,
        "epsilon_high": settings.epsilon,
        "save_steps": settings.save_steps or min(50, -(-settings.steps // 4)),
    }
