"""What can be known of a run before a kernel starts: parameters that can't work together, a model too large."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from cat_lib.models import ModelError, require_sampler
from cat_lib.models.memory import Work, machine, require_memory
from cat_lib.runs import places
from cat_lib.runs.parameters import Parameters, effective, presets
from cat_lib.suites.suite import Entry, SuiteError
from cat_lib.tasks import check_source, sampling_of
from cat_lib.tasks.searching import room

_PROMPT_TOKENS = 256  # of a question, for the memory estimate, which comes before there is a tokenizer


def require(p: Parameters, here: bool = True) -> float | None:
    """GB of memory that a run with these parameters needs here at most.

    None where we can't know: a model that we know nothing of, or a run on other machines than this one (not `here`).
    Raises ValueError for parameters that can't work together, ModelError for a model that this machine can't hold.
    """
    check(p)
    if not here:
        return None
    v = p.values
    new_tokens = v.get("response_tokens") or sampling_of(p.task).max_new_tokens
    if searches := "dr_tulu" in v.get("arms", ()):
        new_tokens += room(p.searches, p.task == "clinic")
    counts = (v.get(key) for key in ("group_size", "votes", "samples", "rollouts"))
    largest = max((n for n in counts if isinstance(n, int)), default=1)
    drawn = "vllm" in (v.get("engine"), v.get("rollouts"))
    if searches and p.engine.startswith("unsloth") and p.rollouts == "engine" and machine()[1] == "cuda":
        fit = "take engine=transformers, or rollouts=vllm with engine=unsloth"
        raise ValueError(f"on a GPU {p.engine} draws no rollouts that search (the arm dr_tulu); {fit}")
    answer = Work(False, 1, largest, _PROMPT_TOKENS, new_tokens, vllm=drawn, four_bit=v.get("engine") == "unsloth_4bit")
    most = [(p.model, answer)]
    if other := v.get("other_model"):
        most.append((other, replace(answer, vllm=False, four_bit=False)))
    if "steps" in v:
        gpu = machine()[1] == "cuda"
        step = replace(answer, train=True, group_size=p.group_size, checkpointing=gpu, lora_rank=p.lora_rank)
        most.append((p.model, replace(step, prompts=p.prompts_per_micro_batch)))
    needed = [require_memory(model, work) for model, work in most]
    return max((need.total for need in needed if need), default=None)


def check(p: Parameters) -> None:
    """Raises ValueError for parameters that can't work together; a notebook has some of these."""
    v = p.values
    if isinstance(draws := v.get("rollouts"), str):
        require_sampler(draws, v.get("engine", ""))
    check_source(p.task, v.get("data"), v.get("split") == "transductive")
    seeds = v.get("seeds", [v.get("seed", 0)])
    if not seeds or len(set(seeds)) < len(seeds) or not all(type(s) is int and s >= 0 for s in seeds):
        raise ValueError(f"seeds={seeds}: give at least one whole number from 0, each once, e.g. seeds=[0]")
    if "sizes" in v:
        least = 2 if "mutual_predictability" in p.estimators else 1
        if len(set(p.sizes)) < 2 or not all(type(s) is int and least <= s <= p.rollouts for s in p.sizes):
            span = f"from {least} to rollouts={p.rollouts} (mutual predictability needs groups of 2)"
            raise ValueError(f"sizes={p.sizes}: give two whole numbers or more {span}")
    if "train_questions" in v and p.train_questions < p.prompts_per_step:
        few = f"train_questions={p.train_questions} are fewer than prompts_per_step={p.prompts_per_step}"
        raise ValueError(f"{few}; raise the first or lower the second")
    if "samples" in v and p.split == "transductive":
        raise ValueError("split='transductive' leaves no held-out questions to compare with; take split='heldout'")


def check_all(entries: Sequence[Entry], here: bool, settings: Callable[[Any], Any]) -> dict[str, float | None]:
    """GB that each entry needs, by name, as `require`; None too for a notebook that is not ours.

    `settings` makes a training's settings of parameters and refuses what these can't be. Raises SuiteError with all
    that can't work.
    """
    need, wrong = dict[str, float | None](), dict[str, list[str]]()
    for entry in entries:
        notebook, need[entry.name] = entry.notebook, None
        if notebook.parent != places.NOTEBOOKS or notebook.stem not in presets():
            continue
        try:
            p = effective(notebook.stem, entry.parameters)
            if "steps" in p.values:
                settings(p.values)
            need[entry.name] = require(p, here)
        except (ValueError, ModelError) as error:
            wrong.setdefault(str(error), []).append(entry.name)
    if wrong:
        raise SuiteError("\n".join(f"{', '.join(names)}: {message}" for message, names in wrong.items()))
    return need


def require_together(gigabytes: Sequence[float | None], jobs: int, option: str = "--jobs") -> None:
    """Raises ModelError if the `jobs` largest of these runs can't be in this machine's memory at once.

    `option` is what says how many. On GPUs each run has one of its own, and the check of each is enough.
    """
    largest = sorted((g for g in gigabytes if g is not None), reverse=True)
    if not largest:
        return
    there, device, _ = machine()
    if device == "cuda" or sum(largest[:jobs]) <= there:
        return
    fit = next(n for n in range(jobs - 1, -1, -1) if sum(largest[:n]) <= there)
    need = f"{jobs} at once need {sum(largest[:jobs]):.1f} GB of memory at most, and {there:.1f} GB are free"
    raise ModelError(f"{need}: {option} {fit or 1}")
