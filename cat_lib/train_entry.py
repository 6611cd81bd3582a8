"""The arms of notebook 06 trained by several processes, each with the whole model (DDP).

Started by accelerate as docs/suites_and_clusters.md shows; `python -m cat_lib.train_entry` is one process. It takes the
notebook's parameters and trains into the run's folder what the notebook would, which then finds the arms trained. The
first process holds the run, writes, and copies to MLflow; all need the results folder on one file system. The run ends
FINISHED, with the tag `stage` = `training`.

A step has the same rows and the same loss on any number of processes; what is sampled differs, as by another seed.
Ctrl-C saves a checkpoint after the step at hand; the launcher gives it 30 s, then the last regular one is gone on from.

Left out: FSDP and DeepSpeed (the rollout engine reads whole weights), and several machines' rendezvous (accelerate's).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cat_lib.learning.settings import GRPOSettings, cut
from cat_lib.models import ModelError
from cat_lib.models.memory import gpus
from cat_lib.runs import places
from cat_lib.runs.folder import BusyError, RunError, open_run
from cat_lib.runs.mirror import mirrored
from cat_lib.runs.parameters import Parameters, effective, resolve
from cat_lib.runs.runner import lead, require_same
from cat_lib.runs.store import TrackingError
from cat_lib.shown import masked
from cat_lib.suites import preflight

NOTEBOOK = "06_training_signals"
DDP = "notebooks/suites/accelerate_ddp.yaml"


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 0 trained, 1 failed, 2 refused before anything began, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m cat_lib.train_entry", description="Train the arms of notebook 06.")
    parser.add_argument("--run-id", required=True, help="Name of the run's folder; an earlier one is continued.")
    parser.add_argument("-p", action="append", default=[], metavar="NAME=VALUE", help="A parameter, repeatable.")
    parser.add_argument("--runs", type=Path, default=places.RUNS, help="The folder of all runs.")
    given = parser.parse_args(words)
    folder, first = given.runs.absolute() / NOTEBOOK / given.run_id, os.environ.get("RANK", "0") == "0"
    try:
        _check_launch()
        p = _parameters(given.p)
    except ValueError as error:
        if first:
            print(masked(error), file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # outside of training; inside, `Session.work`
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    world = PartialState(cpu=not gpus())  # joins the others; this process's GPU is the current one

    def train() -> tuple[str, str]:
        """Status and error, once the first process has told all others that it begins."""
        return ("REFUSED", "") if broadcast_object_list([not first])[0] else _trained(p, folder)

    if first:
        try:
            require_same(folder, p.given)
            here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            preflight.require_together([preflight.require(p)] * here, here, "--num_processes")
            with mirrored(folder):
                run = open_run(NOTEBOOK, p.given, folder, {"stage": "training"})
                print(f"run folder: {folder}", flush=True)
                lead(run, train)
            status = "FINISHED"
        except RunError as error:
            status = error.status
        except (ValueError, ModelError, TrackingError, BusyError) as error:
            print(masked(error), file=sys.stderr)
            (status,) = broadcast_object_list(["REFUSED"])
        if status != "REFUSED":
            print(f"{status}: {folder}", flush=True)
    else:
        status, _ = train()
    if status in ("FINISHED", "REFUSED"):
        world.destroy_process_group()  # left to the interpreter's end, its threads may abort the process
    return {"FINISHED": 0, "FAILED": 1, "REFUSED": 2, "KILLED": 130}[status]


def _check_launch() -> None:
    """Raises ValueError for a launch that this training can't be right under."""
    take = f"accelerate launch --config_file {DDP} ..."
    for name in ("FSDP", "DeepSpeed"):
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() in ("true", "1"):
            why = "which shards the weights, and the rollout engine reads whole ones"
            raise ValueError(f"launched under {name}, {why}: take DDP, {take}")
    if "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        why = "several processes were asked for, and accelerate launch --cpu starts one"
        raise ValueError(f"{why}: leave --cpu out, {take} runs on CPUs where there is no GPU")


def train_arms(p: Parameters, folder: Path) -> None:
    """Train each estimator and seed of a run of the notebook, as it does, without scoring them.

    What an arm is made of is the notebook's own: its cells tagged `setup` are executed here, by every process.
    """
    import nbformat

    from cat_lib.learning.grpo import add_lora, require_drawn, train

    os.environ["CAT_LIB_RUN_DIR"] = str(folder)  # the run is this program's, as under the runner
    notebook, made = places.NOTEBOOKS / f"{NOTEBOOK}.ipynb", dict(p.given)
    for cell in nbformat.read(notebook, as_version=4).cells:
        if "setup" in cell.metadata.get("tags", []):
            exec(compile(cell.source, notebook.name, "exec"), made)
    run, task = made["run"], made["task"]
    for name in p.estimators:
        estimator, rule = made["signals"][name]
        require_drawn(made["model"], estimator, rule, made["settings"], task.sampling)
    for seed in p.seeds:
        settings, train_set = replace(made["settings"], seed=seed), made["train_sets"][seed]
        for name in p.estimators:
            if run.writes:
                print(f"--- {name}, seed {seed}", flush=True)
            policy, part = add_lora(made["model"], p.lora_rank, seed), run.part(f"{name}_{seed}")
            estimator, rule = made["signals"][name]
            train(policy, task, train_set, estimator, rule, settings, part)


def _trained(p: Parameters, folder: Path) -> tuple[str, str]:
    try:
        train_arms(p, folder)
        return "FINISHED", ""
    except KeyboardInterrupt:
        return "KILLED", "interrupted"
    except Exception as error:  # whatever it was, the run says so
        traceback.print_exc()
        return "FAILED", f"{type(error).__name__}: {error}"
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from a launcher whose other process ended; it kills after 30 s


def _parameters(pairs: Sequence[str]) -> Parameters:
    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise ValueError(f"-p {wrong[0]}: give name=value")
    given = dict(pair.split("=", 1) for pair in pairs)
    p = effective(NOTEBOOK, resolve(places.NOTEBOOKS / f"{NOTEBOOK}.ipynb", given, typed=False))
    preflight.check(p)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and (p.rollouts == "vllm" or p.engine == "auto"):
        asked = f"engine={p.engine!r}, rollouts={p.rollouts!r}: there are several processes"
        raise ValueError(f"{asked}; name engine, and take rollouts=engine or a server's URL")
    cut(GRPOSettings.of(p), processes)
    return p


if __name__ == "__main__":
    sys.exit(main())
