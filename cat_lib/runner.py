"""Executes one notebook by papermill as one tracked run.

The runner owns the run: it makes folder and MLflow run, hands both to the kernel by environment variables, and
sets the final status from what really happened to the process. papermill's metadata calls every cell "completed"
after a dead kernel or a timeout, so it is not asked.

Ctrl-C goes to the kernel, where training saves a checkpoint; a second one, or SIGTERM, ends the kernel at once.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from cat_lib import tracking
from cat_lib.parameters import resolve


class RunError(RuntimeError):
    """A run that did not finish. `status` is FAILED or KILLED, `folder` holds what it left."""

    def __init__(self, message: str, status: str, folder: Path) -> None:
        super().__init__(message)
        self.status, self.folder = status, folder


class ConfigurationError(ValueError):
    """A results folder that belongs to another configuration."""


class _Terminated(BaseException):
    """SIGTERM, or a second Ctrl-C."""


def run_notebook(
    notebook: Path, given: Mapping[str, Any], run_id: str | None = None, typed: bool = True, runs: Path | None = None
) -> Path:
    """Execute `notebook` with `given` parameters; returns the run's folder under results/runs/<notebook>/.

    With the `run_id` of an earlier run it continues in that folder, where training resumes from its checkpoint;
    the parameters must be the same. Raises ParameterError, ConfigurationError or tracking.TrackingError before a
    kernel starts, and RunError if the notebook did not run to its end.
    """
    parameters = resolve(notebook, given, typed)
    folder = (runs or tracking.RUNS) / notebook.stem / (run_id or tracking.new_run_id())
    run = _open(notebook.stem, parameters, folder)
    status, message = "FAILED", "the run did not start"
    try:
        status, message = _execute(notebook, parameters, run)
    finally:
        _close(run, status)
    if status != "FINISHED":
        raise RunError(message, status, folder)
    return folder


def _open(name: str, parameters: dict[str, Any], folder: Path) -> tracking.Run:
    config = folder / "config.json"
    if not config.exists():
        return tracking.create_run(name, parameters, folder)
    known = json.loads(config.read_text())
    before = known.get("given", known["parameters"])
    differing = sorted(k for k in before.keys() | parameters.keys() if before.get(k) != parameters.get(k))
    if differing:
        shown = "; ".join(f"{k}: {before.get(k)!r} there, {parameters.get(k)!r} now" for k in differing)
        raise ConfigurationError(f"{folder} holds a run of another configuration ({shown}); choose another run id")
    return tracking.reopen_run(name, parameters, folder, known.get("mlflow_run_id", ""))


def _execute(notebook: Path, parameters: dict[str, Any], run: tracking.Run) -> tuple[str, str]:
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    print(f"run folder: {run.dir}", flush=True)
    logging.getLogger("papermill").setLevel(logging.ERROR)  # it calls annotated parameters unknown; ours are checked
    try:
        with _kernel_environment(run), _signals():
            papermill.execute_notebook(
                nbformat.read(notebook, as_version=4),
                str(run.dir / "executed.ipynb"),
                parameters=parameters,
                progress_bar=False,
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
            )
        return "FINISHED", ""
    except PapermillExecutionError as error:
        status = "KILLED" if error.ename == "KeyboardInterrupt" else "FAILED"
        return status, f"cell {error.cell_index} raised {error.ename}: {error.evalue}"
    except DeadKernelError:
        return "FAILED", "the kernel died (out of memory, or killed from outside); what it had logged is kept"
    except _Terminated:
        return "KILLED", "terminated"


def _close(run: tracking.Run, status: str) -> None:
    """Set the final status. The folder has it even where the tracking server is gone by now."""
    run.update_config(status=status)
    executed = run.dir / "executed.ipynb"
    if executed.exists():
        run.artifact(executed)
    if run.client:
        run.client.set_terminated(run.run_id, status)


@contextmanager
def _kernel_environment(run: tracking.Run) -> Iterator[None]:
    mine = {
        "CAT_LIB_RUN_DIR": str(run.dir),
        "CAT_LIB_RUN_ID": run.run_id,
        "MLFLOW_TRACKING_URI": tracking.tracking_uri(),
        "PYTHONWARNINGS": "ignore:IProgress not found",  # bars would flood the log; steps are printed
    }
    before = {key: os.environ.get(key) for key in mine}
    os.environ.update(mine)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextmanager
def _signals() -> Iterator[None]:
    interrupts = 0

    def interrupt(*_: object) -> None:
        nonlocal interrupts
        interrupts += 1
        kernels = psutil.Process().children()
        if interrupts > 1 or not kernels:
            raise _Terminated
        print("interrupting the notebook (again to end it at once)", flush=True)
        for kernel in kernels:
            kernel.send_signal(signal.SIGINT)

    def terminate(*_: object) -> None:
        raise _Terminated

    before = {s: signal.signal(s, h) for s, h in ((signal.SIGINT, interrupt), (signal.SIGTERM, terminate))}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
