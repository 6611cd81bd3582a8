"""The arms of notebook 06 trained by several processes, each with the whole model (DDP).

    accelerate launch --config_file notebooks/suites/accelerate_ddp.yaml --num_processes 4 \
        -m cat_lib.train_entry --run-id NAME -p name=value ...
    python -m cat_lib run notebooks/06_training_signals.ipynb --run-id NAME -p name=value ...

The first command takes the notebook's parameters and trains into the run's folder what the notebook would; the second,
with the same parameters, finds the arms trained, scores them and draws. `python -m cat_lib.train_entry` is one process.
The first process holds the run, writes, and copies to MLflow; all need the results folder on one file system. The run
ends FINISHED, with the tag `stage` = `training`.

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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cat_lib.runs import tracking
from cat_lib.runs.parameters import resolve, with_preset
from cat_lib.shown import masked

NOTEBOOK = "06_training_signals"
DDP = "notebooks/suites/accelerate_ddp.yaml"
_SHARDED = {"FSDP": "ACCELERATE_USE_FSDP", "DeepSpeed": "ACCELERATE_USE_DEEPSPEED"}


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 0 trained, 1 failed, 2 refused before anything began, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m cat_lib.train_entry", description="Train the arms of notebook 06.")
    parser.add_argument("--run-id", required=True, help="Name of the run's folder; an earlier one is continued.")
    parser.add_argument("-p", action="append", default=[], metavar="NAME=VALUE", help="A parameter, repeatable.")
    parser.add_argument("--runs", type=Path, default=tracking.RUNS, help="The folder of all runs.")
    given = parser.parse_args(words)
    first = os.environ.get("RANK", "0") == "0"
    try:
        check_launch(os.environ)
        parameters = _parameters(given.p)
    except ValueError as error:
        if first:
            print(masked(error), file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # outside of training; inside, `callbacks.Together`
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    world = PartialState(cpu=not torch.cuda.is_available())  # joins the others; this process's GPU is the current one
    folder, mirrors, refused = given.runs.absolute() / NOTEBOOK / given.run_id, None, [""]
    if first:
        try:
            mirrors = _begin(folder, parameters)
        except (ValueError, tracking.TrackingError, tracking.BusyError) as error:
            refused = [masked(error)]
            print(refused[0], file=sys.stderr)
    if broadcast_object_list(refused)[0]:
        world.destroy_process_group()
        return 2
    status, message = "FAILED", "training did not start"
    try:
        train_arms(parameters, folder)
        status, message = "FINISHED", ""
    except KeyboardInterrupt:
        status, message = "KILLED", "interrupted"
    except Exception as error:  # whatever it was, the run says so
        message = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from a launcher whose other process ended; it kills after 30 s
        if first:
            _end(folder, mirrors, status, message)
    if status == "FINISHED":
        world.destroy_process_group()  # left to the interpreter's end, its threads may abort the process
    return {"FINISHED": 0, "FAILED": 1, "KILLED": 130}[status]


def check_launch(environment: Mapping[str, str]) -> None:
    """Raises ValueError for a launch that this training can't be right under."""
    for name, variable in _SHARDED.items():
        if environment.get(variable, "false").lower() in ("true", "1"):
            raise ValueError(
                f"launched under {name}, which shards the weights, and the rollout engine reads whole ones: take DDP, "
                f"accelerate launch --config_file {DDP} ..."
            )
    if "MASTER_PORT" in environment and "WORLD_SIZE" not in environment:
        raise ValueError(
            "several processes were asked for, and accelerate launch --cpu starts one: leave --cpu out, "
            f"accelerate launch --config_file {DDP} ... runs on CPUs where there is no GPU"
        )


def train_arms(parameters: Mapping[str, Any], folder: Path) -> None:
    """Train each estimator and seed of a run of the notebook, as `Experiment.grpo` does, without scoring them."""
    from cat_lib.experiment import Experiment

    os.environ["CAT_LIB_RUN_DIR"] = str(folder)  # the run is this program's, as under the runner
    x = Experiment.open(NOTEBOOK, parameters)
    for seed in x.p["seeds"]:
        for name in x.p["estimators"]:
            if x.run.writes:
                print(f"--- {name}, seed {seed}", flush=True)
            x.train(name, seed)


def _parameters(pairs: Sequence[str]) -> dict[str, Any]:
    from cat_lib.experiment import PRESETS, check
    from cat_lib.learning.settings import GRPOSettings, cut

    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise ValueError(f"-p {wrong[0]}: give name=value")
    given = dict(pair.split("=", 1) for pair in pairs)
    parameters = resolve(tracking.NOTEBOOKS / f"{NOTEBOOK}.ipynb", given, typed=False)
    effective = with_preset(PRESETS[NOTEBOOK], parameters)
    check(effective)
    cut(GRPOSettings.of(effective), int(os.environ.get("WORLD_SIZE", "1")))
    return parameters


def _begin(folder: Path, parameters: dict[str, Any]) -> Any:
    """Lock and open the run; returns what copies it to MLflow, or None where tracking is off."""
    from cat_lib.models import ModelError
    from cat_lib.runs.runner import require_same
    from cat_lib.suites.preflight import preflight, require_together

    require_same(folder, parameters)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        need = preflight(tracking.NOTEBOOKS / f"{NOTEBOOK}.ipynb", parameters, here=True)
        require_together([need] * here, here, "--num_processes")
    except ModelError as error:
        raise ValueError(str(error)) from error
    mirrors = None
    if os.environ.get("CAT_LIB_TRACKING") != "off":
        from cat_lib.runs.mirror import Mirrors

        mirrors = Mirrors()
    try:
        tracking.open_run(NOTEBOOK, parameters, folder)
    except BaseException:
        if mirrors:
            mirrors.close()
        raise
    if mirrors:
        mirrors.add(folder)
    print(f"run folder: {folder}", flush=True)
    return mirrors


def _end(folder: Path, mirrors: Any, status: str, message: str) -> None:
    run = tracking.Run(folder)
    run.tag("stage", "training")
    run.end(status, message)
    if mirrors:
        mirrors.end(folder)
        mirrors.close()
    tracking.release(folder)
    print(f"{status}: {folder}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
