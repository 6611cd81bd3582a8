"""The run of a notebook's execution: the runner's, or one that JupyterLab's kernel makes and copies to MLflow itself.

Under the runner the folder exists already (`CAT_LIB_RUN_DIR`), and the runner says how it ended. By hand, `finish` or
the kernel's exit ends it.
"""

from __future__ import annotations

import atexit
import os
import socket
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cat_lib.files import Lock
from cat_lib.runs import places
from cat_lib.runs.folder import Run as Run
from cat_lib.runs.folder import claim, open_run
from cat_lib.runs.mirror import mirrored
from cat_lib.runs.places import ROOT as ROOT
from cat_lib.runs.provenance import environment as environment


def start_run(notebook: str, given: dict[str, Any]) -> Run:
    """The run of this notebook execution: the runner's, or a new one when executed by hand.

    Raises TrackingError if the tracking server cannot be reached, BusyError if another kernel holds the run.
    """
    if there := os.environ.get("CAT_LIB_RUN_DIR"):
        run = Run(Path(there))
        kernel = Lock(run.dir / "kernel.lock")
        if run.writes and kernel.holder() != (os.getpid(), socket.gethostname()):  # else the cell is executed again
            claim(kernel)
        return run
    folder, copied = places.RUNS / notebook / new_run_id(), ExitStack()
    copied.enter_context(mirrored(folder))
    run = open_run(notebook, given, folder)
    run.close = copied.close
    atexit.register(run.finish, "KILLED")  # a kernel that is shut down before the last cell
    return run


def new_run_id() -> str:
    """Sortable by time and unique: 20261123-091500-1a2b3c."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
