"""Where a suite's runs execute: here, on a Ray cluster, or by Slurm. The same process everywhere: entry.py.

An executor starts a run and gives a job to ask how it went; it knows nothing of suites. Machines share the results
folder and an environment with cat_lib in it. Ray and submitit are imported when asked for; submitit writes job files
with pickle into the suite's own folder and reads back what it wrote itself.

Left out: moving files between machines, starting clusters.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import psutil


class ExecutorError(RuntimeError):
    """A cluster that can't be used."""


class Job(Protocol):
    """One started run, as submitit's jobs are."""

    def done(self) -> bool:
        """Whether it has ended."""

    def result(self) -> int:
        """Its exit code, negative for a signal; raises what its executor knows instead (`outcome` reads it)."""

    def cancel(self) -> Any:
        """Ask it to save and end; a second time, end it at once where that can be done."""


class Executor(Protocol):
    """Starts runs; `jobs` at once at most."""

    jobs: int

    def start(self, spec: str, log: Path) -> Job:
        """Start a run, its output added to `log`. Raises ExecutorError, if it takes none now."""


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


class Process:
    """The process of one run, the head of a process group of its own."""

    def __init__(self, spec: str, log: Path, environment: Mapping[str, str]) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cat_lib.suites.entry", spec],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **environment, "CAT_LIB_PARENT": str(os.getpid())},
            )
        self._cancelled = False

    def done(self) -> bool:
        return self._process.poll() is not None

    def result(self) -> int:
        return self._process.wait()

    def cancel(self) -> None:
        """Ctrl-C; again, the end of all its processes. A kernel has a session of its own and is found by descent."""
        hard, self._cancelled = self._cancelled, True
        try:
            if not hard:
                self._process.send_signal(signal.SIGINT)
                return
            tree = psutil.Process(self._process.pid).children(recursive=True)
            os.killpg(self._process.pid, signal.SIGKILL)
            for child in tree:
                child.kill()
        except (ProcessLookupError, psutil.NoSuchProcess):
            return


def wait_for(spec: str, log: str, cores: int) -> int:
    """Run an entry to its end, in a process of a cluster; that process's own end is the run's too."""
    process = Process(spec, Path(log), {"OMP_NUM_THREADS": str(cores)})
    while True:
        try:
            while not process.done():
                time.sleep(0.1)
            return process.result()
        except KeyboardInterrupt:  # how Ray cancels
            process.cancel()


class Local:
    """Processes on this machine. Each gets a GPU of its own where there are any, else its share of the cores."""

    def __init__(self, jobs: int | None) -> None:
        gpus = _gpus()
        self.jobs = jobs or len(gpus) or 1
        if gpus and self.jobs > len(gpus):
            raise ExecutorError(
                f"--jobs {self.jobs}: there are {len(gpus)} GPUs, one a job; allowed are 1 to {len(gpus)}"
            )
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if self.jobs > cores:
            raise ExecutorError(f"--jobs {self.jobs}: this machine has {cores} cores; allowed are 1 to {cores}")
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // self.jobs)))}
        self._slots = [threads | ({"CUDA_VISIBLE_DEVICES": gpus[i]} if gpus else {}) for i in range(self.jobs)]
        self._taken: dict[int, Process] = {}

    def start(self, spec: str, log: Path) -> Job:
        """Start in a slot that is free."""
        slot = next(i for i in range(self.jobs) if i not in self._taken or self._taken[i].done())
        environment = self._slots[slot] | {"UNSLOTH_COMPILE_LOCATION": str(log.parent / "unsloth")}
        self._taken[slot] = Process(spec, log, environment)
        return self._taken[slot]


class Ray:
    """Tasks on a Ray cluster that exists. Raises ExecutorError if it does not answer."""

    def __init__(self, jobs: int | None, address: str, cpus: int, gpus: float) -> None:
        _require("ray")
        host, colon, port = address.removeprefix("ray://").rpartition(":")
        if colon:
            try:
                socket.create_connection((host, int(port)), timeout=5).close()
            except (OSError, ValueError) as error:
                raise ExecutorError(
                    f"no Ray cluster answers at {address} ({error}); start one: ray start --head, or name another with "
                    "--address"
                ) from None
        import ray

        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        except Exception as error:  # Ray raises several kinds, by what is wrong with the address
            text = " ".join(str(error).split())[:200]
            raise ExecutorError(f"no Ray cluster at {address} ({text}); start one: ray start --head") from error
        there = ray.cluster_resources()
        if cpus > there.get("CPU", 0) or gpus > there.get("GPU", 0):
            raise ExecutorError(
                f"--cpus {cpus} --gpus {gpus:g}: the cluster has {there.get('CPU', 0):g} CPUs and "
                f"{there.get('GPU', 0):g} GPUs in all; no run would ever start"
            )
        self.jobs, self.cpus = jobs or 10_000, cpus
        self._task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(wait_for)

    def start(self, spec: str, log: Path) -> Job:
        """Queue a task; Ray starts it when its resources are free."""
        return _Task(self._task.remote(spec, str(log), self.cpus))


class _Task:
    """Ray's future, whose own `cancel` would leave the task running."""

    def __init__(self, reference: Any) -> None:
        self._reference, self._cancelled = reference, False
        future = reference.future()
        self.done, self.result = future.done, future.result

    def cancel(self) -> None:
        import ray

        ray.cancel(self._reference, force=self._cancelled)
        self._cancelled = True


class Slurm:
    """Jobs by submitit. `options` are sbatch's, as {"partition": "gpu", "time": 600}; cluster="local" is for tests."""

    def __init__(
        self, jobs: int | None, folder: Path, cpus: int, gpus: float, options: Mapping[str, str], cluster: str = "slurm"
    ) -> None:
        _require("submitit")
        import submitit

        try:
            self._executor = submitit.AutoExecutor(folder, cluster=cluster, slurm_max_num_timeout=20)
            if gpus != int(gpus):
                raise ValueError(f"--gpus {gpus:g}: Slurm gives whole GPUs")
            named = {f"slurm_{k}": int(v) if v.isdigit() else v for k, v in options.items() if cluster == "slurm"}
            minutes = int(named.pop("slurm_time", 24 * 60))
            about = {"name": "cat_lib", "timeout_min": minutes, "cpus_per_task": cpus, "gpus_per_node": int(gpus)}
            self._executor.update_parameters(**about, **named)
        except (RuntimeError, ValueError, NameError) as error:
            raise ExecutorError(f"Slurm can't be used: {error}") from error
        self.jobs, self.cpus = jobs or 10_000, cpus

    def start(self, spec: str, log: Path) -> Job:
        """Submit a job; pre-empted or out of time it is queued again, and goes on from its checkpoint."""
        try:
            job: Job = self._executor.submit(Requeued(), spec, str(log), self.cpus)
        except RuntimeError as error:  # sbatch refused
            raise ExecutorError(f"Slurm did not take it: {_last(error)}") from error
        return job


class Requeued:
    """What a Slurm job calls: the run, and the same again when Slurm takes the machine away."""

    def __call__(self, spec: str, log: str, cores: int) -> int:
        return wait_for(spec, log, cores)

    def checkpoint(self, *arguments: Any) -> Any:
        """Called by submitit before a time-out or a pre-emption."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


def _last(error: Exception) -> str:
    """The last line of an error that holds another machine's traceback."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]


def _require(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise ExecutorError(f"{package} is not installed: pip install -r requirements-cluster.txt -c locks/cpu.txt")


def _gpus() -> list[str]:
    """Ids of the GPUs that this process may use; torch, seconds to import, is asked only where there is a driver."""
    if not Path("/dev/nvidiactl").exists():
        return []
    from cat_lib.models.memory import gpus

    there, named = gpus(), os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",") if there and named else [str(i) for i in range(len(there))]
