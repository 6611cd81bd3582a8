"""Where a suite's runs execute: here, on a Ray cluster, or by Slurm. The same process everywhere: entry.py.

An executor starts a run and gives a job to ask how it went; it knows nothing of suites. Machines share the results
folder and an environment with cat_lib in it. Ray and submitit are imported when asked for; submitit writes job files
with pickle into the suite's own folder and reads back what it wrote itself.

Left out: moving files between machines, starting clusters.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_ALL = 10_000  # jobs: the cluster has a queue of its own


class ExecutorError(RuntimeError):
    """A cluster that can't be used."""


@dataclass(frozen=True)
class Job:
    """One started run."""

    done: Callable[[], bool]
    result: Callable[[], int]  # its exit code, negative for a signal; raises what its executor knows instead
    cancel: Callable[[bool], object]  # ask it to save and end; with True, end it at once where that can be done


@dataclass(frozen=True)
class Executor:
    """Where runs are started, `jobs` at once at most."""

    name: str
    jobs: int
    start: Callable[[str, Path], Job]  # by a spec, its output added to a log; ExecutorError if it takes none now


def outcome(job: Job) -> tuple[int, str]:
    """The exit code of a job that is done, and the reason of a failure that the run itself could not write down."""
    try:
        return int(job.result()), ""
    except Exception as error:  # Ray's and submitit's, which may not be installed
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "TaskCancelledError" in kinds:
            return 130, ""
        if kinds & {"RayTaskError", "FailedJobError"}:  # the task itself could not start the run
            return 1, _last(error)
        return -signal.SIGKILL, ""  # the worker or its machine is gone


def process(spec: str, log: Path, environment: Mapping[str, str]) -> Job:
    """Start the process of one run, the head of a process group of its own."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        run = subprocess.Popen(
            [sys.executable, "-m", "cat_lib.suites.entry", spec],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **environment, "CAT_LIB_PARENT": str(os.getpid())},
        )

    def cancel(hard: bool) -> None:
        """Ctrl-C, or the end of all its processes. A kernel has a session of its own and is found by descent."""
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if not hard:
                run.send_signal(signal.SIGINT)
                return
            tree = psutil.Process(run.pid).children(recursive=True)
            os.killpg(run.pid, signal.SIGKILL)
            for child in tree:
                child.kill()

    return Job(lambda: run.poll() is not None, run.wait, cancel)


def wait_for(spec: str, log: str, cores: int) -> int:
    """Run an entry to its end, in a process of a cluster; that process's own end is the run's too."""
    run = process(spec, Path(log), {"OMP_NUM_THREADS": str(cores)})
    hard = False
    while True:
        try:
            while not run.done():
                time.sleep(0.1)
            return run.result()
        except KeyboardInterrupt:  # how Ray cancels
            run.cancel(hard)
            hard = True


def local(jobs: int | None) -> Executor:
    """Processes on this machine. Each gets a GPU of its own where there are any, else its share of the cores."""
    gpus = _gpus()
    most = jobs or len(gpus) or 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for there, what in ((len(gpus) or most, "GPUs, one a job"), (cores, "cores")):
        if most > there:
            raise ExecutorError(f"--jobs {most}: this machine has {there} {what}; allowed are 1 to {there}")
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // most)))
    slots = dict[int, Job]()

    def start(spec: str, log: Path) -> Job:
        slot = next(i for i in range(most) if i not in slots or slots[i].done())
        environment = {"OMP_NUM_THREADS": threads, "UNSLOTH_COMPILE_LOCATION": str(log.parent / "unsloth")}
        slots[slot] = process(spec, log, environment | ({"CUDA_VISIBLE_DEVICES": gpus[slot]} if gpus else {}))
        return slots[slot]

    return Executor("local", most, start)


def ray(jobs: int | None, address: str, cpus: int, gpus: float) -> Executor:
    """Tasks on a Ray cluster that exists, which starts each when its resources are free."""
    package = _installed("ray")
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        if colon:  # Ray itself would ask for a minute
            socket.create_connection((host, int(port)), timeout=5).close()
        package.init(address=address, logging_level="ERROR", log_to_driver=False)
    except Exception as error:  # Ray raises several kinds, by what is wrong with the address
        text = " ".join(str(error).split())[:200]
        advice = "start one: ray start --head, or name another with --address"
        raise ExecutorError(f"no Ray cluster answers at {address} ({text}); {advice}") from error
    there = {"CPU": 0, "GPU": 0} | package.cluster_resources()
    if cpus > there["CPU"] or gpus > there["GPU"]:
        found = f"{there['CPU']:g} CPUs and {there['GPU']:g} GPUs in all"
        raise ExecutorError(f"--cpus {cpus} --gpus {gpus:g}: the cluster has {found}; no run would ever start")
    remote = package.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(wait_for)

    def start(spec: str, log: Path) -> Job:
        task = remote.remote(spec, str(log), cpus)
        future = task.future()  # whose own `cancel` would leave the task running
        return Job(future.done, future.result, lambda hard: package.cancel(task, force=hard))

    return Executor("ray", jobs or _ALL, start)


def slurm(
    jobs: int | None, folder: Path, cpus: int, gpus: float, options: Mapping[str, str], cluster: str = "slurm"
) -> Executor:
    """Jobs by submitit. `options` are sbatch's, as {"partition": "gpu", "time": 600}; cluster="local" is for tests.

    A job that is pre-empted or out of time is queued again, and goes on from its checkpoint.
    """
    submitit = _installed("submitit")
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster, slurm_max_num_timeout=20)
        if gpus != int(gpus):
            raise ValueError(f"--gpus {gpus:g}: Slurm gives whole GPUs")
        named = {f"slurm_{k}": int(v) if v.isdigit() else v for k, v in options.items()}
        minutes = int(named.pop("slurm_time", 24 * 60))
        about = {"name": "cat_lib", "timeout_min": minutes, "cpus_per_task": cpus, "gpus_per_node": int(gpus)}
        executor.update_parameters(**about, **named)
    except (RuntimeError, ValueError, NameError) as error:
        raise ExecutorError(f"Slurm can't be used: {error}") from error

    def start(spec: str, log: Path) -> Job:
        try:
            job = executor.submit(wait_for, spec, str(log), cpus)
        except RuntimeError as error:  # sbatch refused
            raise ExecutorError(f"Slurm did not take it: {_last(error)}") from error
        return Job(job.done, job.result, lambda _: job.cancel())  # Slurm itself ends it after a while

    return Executor("slurm", jobs or _ALL, start)


def _requeued(*arguments: Any) -> Any:
    """Called by submitit before a time-out or a pre-emption: the same run again."""
    return _installed("submitit").helpers.DelayedSubmission(wait_for, *arguments)


wait_for.checkpoint = _requeued  # type: ignore[attr-defined]  # submitit looks for it there


def _last(error: Exception) -> str:
    """The last line of an error that holds another machine's traceback."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]


def _installed(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError:
        advice = "pip install -r requirements-cluster.txt -c locks/cpu.txt"
        raise ExecutorError(f"{package} is not installed: {advice}") from None


def _gpus() -> list[str]:
    """Ids of the GPUs that this process may use; torch, seconds to import, is asked only where there is a driver."""
    if not Path("/dev/nvidiactl").exists():
        return []
    from cat_lib.models.memory import gpus

    there, named = gpus(), os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",") if there and named else [str(i) for i in range(len(there))]
