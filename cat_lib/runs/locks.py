"""Who works on a run: opening its folder, leaving it, and what became of one whose process is gone.

Who works on a folder holds a lock on a file in it. The operating system drops such a lock when its process is gone,
however it went: that, and no process number, tells a dead run from a living one. On a file system shared by machines
it works where flock does (Linux NFS, Lustre mounted with `flock`).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from cat_lib.files import Lock
from cat_lib.runs import places
from cat_lib.runs.folder import Run, now, read_config
from cat_lib.runs.provenance import code_version, environment

held: dict[Path, Lock] = {}  # by this process until it ends, or until `release`


class FinishedError(RuntimeError):
    """The run has finished already, and was asked for once."""


class BusyError(RuntimeError):
    """Another process works on this run."""


def open_run(
    notebook: str, parameters: dict[str, Any], folder: Path, labels: Mapping[str, str] | None = None, once: bool = False
) -> Run:
    """Lock the folder and make its config.json, or go on in a folder made earlier. `labels` become tags.

    Raises BusyError if another process works in it, and with `once` FinishedError if it has finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder, "run.lock")
    try:
        if once and read_config(folder).get("status") == "FINISHED":
            raise FinishedError(f"{folder} has finished")
        _end_kernel(folder)
    except BaseException:
        release(folder)
        raise
    run, known = Run(folder), read_config(folder)
    tags = known.get("tags", {})
    if "stage" in tags:  # of an earlier program, as `train_entry`; now the notebook goes on with it
        tags["stage"] = "notebook"
    tags |= {**(labels or {}), "host": socket.gethostname()}
    about: dict[str, Any] = {"tags": tags} | environment()
    if not known:
        code = tags.get("code") or code_version(places.NOTEBOOKS / f"{notebook}.ipynb")
        about |= {"notebook": notebook, "run": folder.name, "given": parameters, "parameters": parameters, "code": code}
        about["started"] = now()
    (folder / "metrics.json").unlink(missing_ok=True)  # of an earlier try, whose results may be half of them
    # in one write: the mirror reads the suite's name from the first that it sees
    run.update_config(**about, status="RUNNING", error="", ended=None, pid=os.getpid())
    return run


def settle(folder: Path, status: str, error: str) -> None:
    """Say how a run ended whose process could not: if nobody works on it any more, and it says that it runs."""
    lock = Lock(folder / "run.lock")
    if folder in held or not lock.acquire():
        return
    try:
        _end_kernel(folder)
        if read_config(folder).get("status") == "RUNNING":
            Run(folder).end(status, error)
    finally:
        lock.release()


def release(folder: Path) -> None:
    """Let another process work on this folder."""
    if folder in held:
        held.pop(folder).release()


def claim(folder: Path, name: str) -> None:
    """Hold the lock `name` of a folder. Raises BusyError, naming who has it."""
    lock = Lock(folder / name)
    for _ in range(20):  # who only looks whether it is free holds it for an instant
        if lock.acquire():
            break
        time.sleep(0.05)
    else:
        pid, host = lock.holder() or ("?", "?")
        raise BusyError(f"{folder} is in the hands of process {pid} on {host}; wait for it, or choose another run id")
    held[folder] = lock


def _end_kernel(folder: Path) -> None:
    """End a kernel whose runner was killed before it could do so: it would write into what another run now owns."""
    lock, deadline = Lock(folder / "kernel.lock"), time.monotonic() + 10
    while holder := lock.holder():
        pid, host = holder
        if host not in ("", socket.gethostname()) or time.monotonic() > deadline:
            raise BusyError(f"a kernel of {folder} still runs (process {pid} on {host}); end it, then start again")
        with suppress(psutil.NoSuchProcess):  # gone since
            process = psutil.Process(pid)
            if "ipykernel" in " ".join(process.cmdline()):  # and not one that has its number by now
                process.kill()
        time.sleep(0.1)
