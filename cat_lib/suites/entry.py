"""One run of a suite, as a process of its own: `python -m cat_lib.suites.entry '{"notebook": ..., "folder": ...}'`.

It ends with its parent: a run that outlived a killed suite would hold cores and memory that the next start shares out
again. Its copy in MLflow is the suite's work. The exit code says how it went where its folder can't.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from cat_lib.runs.folder import BusyError, FinishedError, RunError, open_run
from cat_lib.runs.provenance import code_version
from cat_lib.runs.runner import execute
from cat_lib.shown import masked

FINISHED, FAILED, KILLED, STORAGE, BUSY, CHANGED = 0, 1, 130, 74, 75, 76


def main(spec: dict[str, Any]) -> int:
    """Execute one entry; returns its exit code."""
    spare_grammar()
    threading.Thread(target=_end_with, args=(int(os.environ["CAT_LIB_PARENT"]),), daemon=True).start()
    notebook = Path(spec["notebook"])
    if code_version(notebook) != spec["labels"]["code"]:
        print("the code has changed since the suite started; start the suite again", flush=True)
        return CHANGED
    try:
        run = open_run(notebook.stem, spec["parameters"], Path(spec["folder"]), spec["labels"], once=True)
        execute(notebook, spec["parameters"], run)
    except FinishedError:  # by another process that had it in its queue
        return FINISHED
    except BusyError as error:
        print(masked(error), flush=True)
        return BUSY
    except RunError as error:
        print(f"{error.status}: {masked(error)}", flush=True)
        return STORAGE if error.storage else KILLED if error.status == "KILLED" else FAILED
    return FINISHED


def spare_grammar() -> None:
    """For processes of our own, before nbformat is imported: go without a package that checks IRIs.

    jsonschema imports it where it is installed, and it compiles its grammar then: 0.7 s, and no IRI is checked here.
    """
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # None: as if it were not there


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    code = STORAGE
    try:
        code = main(json.loads(sys.argv[1]))
        sys.stdout.flush()
    except OSError as problem:
        sys.stderr.write(f"{problem}\n")
    os._exit(code)  # a full disk would fail the interpreter's own flush and change the code
