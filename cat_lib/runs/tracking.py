"""The run of a notebook's execution: the runner's, or one that JupyterLab's kernel makes and copies to MLflow itself.

Under the runner the folder exists already (`CAT_LIB_RUN_DIR`), and the runner says how it ended. By hand, `finish` or
the kernel's exit ends it.
"""

from __future__ import annotations

import atexit
import os
import time
import uuid
from pathlib import Path
from typing import Any

from cat_lib.runs import places
from cat_lib.runs.folder import Run as Run
from cat_lib.runs.folder import read_config as read_config
from cat_lib.runs.locks import BusyError as BusyError
from cat_lib.runs.locks import claim, held, open_run, release
from cat_lib.runs.places import ROOT as ROOT
from cat_lib.runs.places import tracking_uri as tracking_uri
from cat_lib.runs.provenance import environment as environment
from cat_lib.runs.store import TrackingError as TrackingError

_by_hand: list[Run] = []  # that this kernel owns


def start_run(notebook: str, given: dict[str, Any]) -> Run:
    """The run of this notebook execution: the runner's, or a new one when executed by hand.

    Raises TrackingError if the tracking server cannot be reached, BusyError if another kernel holds the run.
    """
    if there := os.environ.get("CAT_LIB_RUN_DIR"):
        if Path(there) not in held and os.environ.get("RANK", "0") == "0":
            claim(Path(there), "kernel.lock")
        return Run(Path(there))
    from cat_lib.runs.mirror import Mirror  # MLflow takes a second to import, and is not needed under the runner

    mirror = Mirror() if places.tracked() else None
    run = open_run(notebook, given, places.RUNS / notebook / new_run_id())
    _by_hand.append(run)
    if mirror:
        mirror.add(run.dir)

    def close() -> None:
        _by_hand.remove(run)
        release(run.dir)
        if mirror:
            mirror.end(run.dir)
            mirror.close()

    run.close = close
    atexit.register(run.finish, "KILLED")  # a kernel that is shut down before the last cell
    return run


def current() -> Run | None:
    """The run that is open in this process, if one is."""
    if there := os.environ.get("CAT_LIB_RUN_DIR"):
        return Run(Path(there))
    return _by_hand[-1] if _by_hand else None


def new_run_id() -> str:
    """Sortable by time and unique: 20261123-091500-1a2b3c."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
