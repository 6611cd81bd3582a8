"""Executes one notebook by papermill as one run: a locked folder, a kernel, and what really became of both.

papermill's metadata calls every cell "completed" after a dead kernel or a timeout, so it is not asked: the status
comes from what it raised. `run_notebook` is one run by itself, with its copy in MLflow; `execute` is the run alone,
for the processes of a suite, whose copies the suite makes.

Ctrl-C, SIGTERM and SIGHUP go to the kernel, where training saves a checkpoint; a second one, or GRACE seconds, end it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import psutil

from cat_lib.files import append_line, read_lines, write_json
from cat_lib.runs import places
from cat_lib.runs.children import on_stop
from cat_lib.runs.folder import Run, RunError, now, open_run, read_config
from cat_lib.runs.mirror import mirrored
from cat_lib.runs.pages import write_page
from cat_lib.runs.parameters import ParameterError, resolve
from cat_lib.runs.tracking import new_run_id
from cat_lib.shown import masked, printed

GRACE = 25  # seconds from SIGTERM to the end of the kernel: Slurm kills after 30
STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_SYSTEM_EVERY = 10.0  # seconds


class _Terminated(BaseException):
    """SIGTERM, or a second Ctrl-C."""


def run_notebook(
    notebook: Path, given: Mapping[str, Any], run_id: str | None = None, typed: bool = True, runs: Path | None = None
) -> Path:
    """Execute `notebook` with `given` parameters; returns the run's folder under results/runs/<notebook>/.

    With the `run_id` of an earlier run it continues in that folder, where training resumes from its checkpoint;
    the parameters must be the same. Raises ParameterError, TrackingError or BusyError before a kernel starts, and
    RunError if the notebook did not run to its end.
    """
    parameters = resolve(notebook, given, typed)
    folder = (runs or places.RUNS) / notebook.stem / (run_id or new_run_id())
    require_same(folder, parameters)
    with mirrored(folder):
        execute(notebook, parameters, open_run(notebook.stem, parameters, folder))
    return folder


def require_same(folder: Path, parameters: Mapping[str, Any]) -> None:
    """Raises ParameterError, naming what differs, if this folder holds a run of another configuration."""
    if differing := differences(folder, parameters):
        shown = "; ".join(f"{k}: {before!r} there, {now!r} now" for k, (before, now) in differing.items())
        raise ParameterError(f"{folder} holds a run of another configuration ({shown}); choose another run id")


def differences(folder: Path, parameters: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Which parameters of the run in this folder differ from these: name to (there, now)."""
    here = json.loads(json.dumps(parameters))
    then = read_config(folder).get("given", here)
    return {k: (then.get(k), here.get(k)) for k in sorted({**then, **here}) if then.get(k) != here.get(k)}


def execute(notebook: Path, parameters: dict[str, Any], run: Run) -> None:
    """Execute `notebook` as an open run, and say in its folder how it ended. Raises RunError if not at its end."""
    lead(run, lambda: _papermill(notebook, parameters, run))


def lead(run: Run, work: Callable[[], tuple[str, str]]) -> None:
    """Work on an open run to its end, say in its folder how it ended, and leave it. `work` returns status and error.

    Raises RunError if that is not FINISHED, whatever the reason.
    """
    status, message, storage = "FAILED", "the run did not start", False
    try:
        status, message = work()
    except OSError as error:
        storage = error.errno in STORAGE
        message = f"could not write to {run.dir}: {error.strerror}" if storage else f"{type(error).__name__}: {error}"
    finally:
        try:
            write_page(run.dir, read_config(run.dir) | {"status": status, "error": masked(message)})
        finally:  # interrupted or not
            try:
                run.end(status, message)
            except OSError as error:  # then the exit code says it
                status = status if status == "KILLED" else "FAILED"
                storage, message = True, f"could not write to {run.dir}: {error.strerror}"
    if status != "FINISHED":
        raise RunError(message, status, run.dir, storage)


def _papermill(notebook: Path, parameters: dict[str, Any], run: Run) -> tuple[str, str]:
    import nbformat
    import papermill
    from jupyter_client.kernelspec import find_kernel_specs
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    print(f"run folder: {run.dir}", flush=True)
    logging.getLogger("papermill").setLevel(logging.ERROR)  # it calls annotated parameters unknown; ours are checked
    content, started = nbformat.read(notebook, as_version=4), time.time()
    kernel = content.metadata.get("kernelspec", {}).get("name", "python3")
    if kernel not in find_kernel_specs():  # the name is of its author's machine
        print(f"no kernel {kernel!r} here: executed by this Python", flush=True)
        kernel = "python3"

    def begun(cell: Any, cell_index: int) -> None:
        progress = {"cell": cell_index + 1, "cells": len(content.cells) + 1, "started": started}  # + 1: parameters
        write_json(run.dir / "progress.json", progress)

    # bars would flood the log; steps are printed
    env = {"CAT_LIB_RUN_DIR": str(run.dir), "PYTHONWARNINGS": "ignore:IProgress not found", "TQDM_DISABLE": "1"}
    stops: list[int] = []
    try:
        with patch.dict(os.environ, env), _interruptible(stops), _system_metrics(run.dir), TemporaryDirectory() as at:
            # sockets that only this user can open; a path to one has 107 bytes at most
            ipc = {"transport": "ipc", "ip": f"{at}/kernel"} if len(at) < 90 else {}
            papermill.execute_notebook(
                content,
                str(run.dir / "executed.ipynb"),
                parameters=parameters,
                kernel_name=kernel,
                language="python",
                progress_bar=False,
                stdout_file=SimpleNamespace(write=lambda text: print(printed(text), end=""), flush=sys.stdout.flush),
                stderr_file=SimpleNamespace(write=lambda text: sys.stderr.write(printed(text)), flush=sys.stderr.flush),
                on_cell_start=begun,
                config=Config(KernelManager=ipc),
            )
        return "FINISHED", ""
    except PapermillExecutionError as error:
        status = "KILLED" if error.ename == "KeyboardInterrupt" else "FAILED"
        return status, f"cell {error.cell_index} raised {error.ename}: {error.evalue}"
    except (RuntimeError, _Terminated) as error:
        if stops:
            return "KILLED", "terminated"
        if isinstance(error, DeadKernelError):
            return "FAILED", "the kernel died (out of memory, a crash, or an outside kill); what it had logged is kept"
        return "FAILED", f"the kernel did not start: {error}"


@contextmanager
def _interruptible(stops: list[int]) -> Iterator[None]:
    """Take Ctrl-C, SIGTERM and SIGHUP, and note each in `stops`."""

    def stop(number: int) -> None:
        stops.append(number)
        kernels = psutil.Process().children()
        if len(stops) > 1 or not kernels:
            raise _Terminated
        with suppress(OSError):  # the terminal may be what is gone
            print("interrupting the notebook (again to end it at once)", flush=True)
        for kernel in kernels:
            kernel.send_signal(signal.SIGINT)
        if number != signal.SIGINT:
            signal.alarm(GRACE)

    with on_stop(stop, signal.SIGALRM):
        try:
            yield
        finally:
            signal.alarm(0)


@contextmanager
def _system_metrics(folder: Path) -> Iterator[None]:
    """What this run's processes use, under MLflow's names, every 10 s: other runs' share is not counted."""
    stop = threading.Event()

    def sample() -> None:
        path, me = folder / "system.jsonl", psutil.Process()
        step = sum(1 for _ in read_lines(path))
        while not stop.wait(_SYSTEM_EVERY):
            ours = {me.pid, *(p.pid for p in me.children(recursive=True))}
            cpu = memory = 0.0
            for process in psutil.process_iter():  # the same objects each time: load is since the last look
                if process.pid in ours:
                    with suppress(psutil.Error):  # it has ended since
                        cpu += process.cpu_percent()
                        memory += process.memory_info().rss / 1e6
            used = {"cpu_utilization_percentage": cpu, "system_memory_usage_megabytes": memory} | _gpu(ours)
            entry = {f"system/{k}": round(v, 1) for k, v in used.items()}
            try:
                append_line(path, {"time": now(), "step": step, "metrics": entry})
            except OSError:
                return  # a full disk ends the run elsewhere, with its reason
            step += 1

    thread = threading.Thread(target=sample, name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _gpu(pids: set[int]) -> dict[str, float]:
    """GPU memory of these processes and the load of their GPUs; nothing where there is no NVIDIA driver library."""
    try:
        import pynvml

        pynvml.nvmlInit()
        used: dict[str, float] = {}
        for i in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(i)
            mine = [p for p in pynvml.nvmlDeviceGetComputeRunningProcesses(device) if p.pid in pids]
            if mine:
                used[f"gpu_{i}_memory_usage_megabytes"] = sum((p.usedGpuMemory or 0) / 1e6 for p in mine)
                used[f"gpu_{i}_utilization_percentage"] = float(pynvml.nvmlDeviceGetUtilizationRates(device).gpu)
        return used
    except Exception:  # NVML's own errors have a type only where it is installed
        return {}
