"""What docs/gpu.md records, on a CUDA machine, with whatever of the engines is installed: one JSON line a check.

    python benchmarks/gpu.py [MODEL [CHECK ...]]

MODEL (default: embedded) is trained for a few steps of 4 questions x 8 rollouts of the arithmetic task. A check says
what it lacked instead of failing. Checks: machine, step, resume, rollouts, synthesis; all without names.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch

from cat_lib.doctor import locked
from cat_lib.learning.grpo import Trained, add_lora, train
from cat_lib.learning.settings import GRPOSettings
from cat_lib.method.estimators.synthesis import synthesis
from cat_lib.method.estimators.voting import majority
from cat_lib.method.rewards.verifiable import verifiable
from cat_lib.models import load_model
from cat_lib.models.memory import gpus
from cat_lib.runs.tracking import Run
from cat_lib.schema import Estimator
from cat_lib.tasks.arithmetic import Arithmetic

Found = Iterator[dict[str, Any]]
WAYS = [(engine, rollouts) for rollouts in ("engine", "vllm") for engine in ("transformers", "unsloth")]
WAYS += [("unsloth_4bit", "engine")]
TASK = Arithmetic()
NAME = (sys.argv[1:] or ["embedded"])[0]


def opened(engine: str, rollouts: str) -> Any:
    """The model in these engines. Raises ImportError for one that is not installed."""
    for needed in {engine.removesuffix("_4bit"), rollouts} - {"transformers", "engine"}:
        if util.find_spec(needed) is None:
            raise ImportError(f"{needed} is not installed")
    return load_model(NAME, engine, rollouts=rollouts)


def trained(model: Any, steps: int, estimator: Estimator, folder: Path, save: int | None = None) -> Trained:
    settings = GRPOSettings(steps, 8, 4, 4, 1e-4, lora_rank=16, save_steps=save)
    policy = add_lora(model, 16, 0)
    return train(policy, TASK, TASK.examples("train", 16, 0), estimator, verifiable, settings, Run(folder))


def machine() -> Found:
    """Card and versions, and how they differ from the lock."""
    have = {d.name: d.version.split("+")[0] for d in metadata.distributions()}
    names = ("torch", "transformers", "trl", "peft", "unsloth", "vllm", "bitsandbytes")
    lock = locked("gpu")
    yield {name: f"{have.get(name, 'none')} (lock: {lock.get(name)})" for name in names} | {"card": gpus()}


def step() -> Found:
    """Seconds of a step, memory at its peak, and reward, by the engines that learn and draw: a process for each way."""
    for way in WAYS:
        done = subprocess.run([sys.executable, __file__, NAME, "way", *way], capture_output=True, text=True)
        found = [line for line in done.stdout.splitlines() if line.startswith('{"learns"')]
        said = (done.stderr.strip().splitlines() or ["no word"])[-1][:200]
        yield json.loads(found[-1]) if found else {"learns": way[0], "draws": way[1], "lacked": said}


def way(engine: str, rollouts: str) -> dict[str, Any]:
    """Four steps with these engines."""
    with tempfile.TemporaryDirectory() as folder:
        torch.cuda.reset_peak_memory_stats()
        history = trained(opened(engine, rollouts), 4, majority, Path(folder)).history
    found = {"learns": engine, "draws": rollouts, "seconds": round(history["step_time"][1:].median(), 2)}
    found |= {"peak_gb": round(torch.cuda.max_memory_allocated() / 2**30, 2)}
    names = [name for name in ("reward", "sampling_gap") if name in history]
    return found | {name: history[name].round(5).tolist() for name in names}


def resume() -> Found:
    """Two steps and two more against four: is the adapter the same?"""
    adapters = []
    for parts in ((2, 4), (4,)):
        with tempfile.TemporaryDirectory() as folder:
            for steps in parts:
                done = trained(opened("transformers", "engine"), steps, majority, Path(folder), save=2)
            adapters.append((done.adapter / "adapter_model.safetensors").read_bytes())
    yield {"same_adapter": adapters[0] == adapters[1]}


def rollouts() -> Found:
    """Tokens a second of vLLM inside a training against vLLM alone."""
    model = opened("transformers", "vllm")
    prompts = [e.prompt for e in TASK.examples("train", 16, 0)]
    rates = []
    for drawing in (model.sampler, add_lora(model, 16, 0)):
        drawing.generate(prompts, 8, TASK.sampling)
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            groups = drawing.generate(prompts, 8, TASK.sampling)
            taken.append(sum(len(c.token_ids) for g in groups for c in g) / (time.perf_counter() - start))
        rates.append(statistics.median(taken))
    yield {"bare": round(rates[0]), "inside": round(rates[1]), "ratio": round(rates[1] / rates[0], 2)}


def synthesis_() -> Found:
    """Seconds of a CaT step over those of the same step with a majority vote in the place of synthesis."""
    model, seconds = opened("transformers", "vllm" if util.find_spec("vllm") else "engine"), []
    for estimator in (synthesis(model.anchor(), TASK), majority):
        with tempfile.TemporaryDirectory() as folder:
            seconds.append(trained(model, 4, estimator, Path(folder)).history["step_time"][1:].median())
    yield {"cat": round(seconds[0], 2), "plain": round(seconds[1], 2), "ratio": round(seconds[0] / seconds[1], 2)}


CHECKS: dict[str, Callable[[], Found]] = {
    "machine": machine, "step": step, "resume": resume, "rollouts": rollouts, "synthesis": synthesis_
}  # fmt: skip

if __name__ == "__main__":
    if not gpus():
        sys.exit("no CUDA device: this benchmark is of GPUs")
    if sys.argv[2:3] == ["way"]:
        print(json.dumps(way(*sys.argv[3:])))
        sys.exit()
    if unknown := set(sys.argv[2:]) - set(CHECKS):
        sys.exit(f"unknown: {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    for name in sys.argv[2:] or CHECKS:
        try:
            for found in CHECKS[name]():
                print(json.dumps({"check": name, "model": NAME} | found), flush=True)
        except (ImportError, RuntimeError) as error:
            print(json.dumps({"check": name, "model": NAME, "lacked": str(error)[:200]}), flush=True)
