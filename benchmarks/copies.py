"""What a copy of a run to MLflow costs, with its traces and without.

    python benchmarks/copies.py FOLDER [REPEATS]

Copies one run's folder, as results/runs/00_quickstart/<run>, into an empty SQLite store each time, in turn without
traces and with 20. With the same command at two commits, copies before and after a change of what is copied compare.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from cat_lib.runs import mirror, places
from cat_lib.runs.store import connect


def seconds(folder: Path, groups: int) -> float:
    """Of one copy; making the store is not counted."""
    with tempfile.TemporaryDirectory() as name:
        places.ROOT, run = Path(name), Path(name) / folder.parent.name / folder.name
        shutil.copytree(folder, run)
        (run / "mlflow.json").unlink(missing_ok=True)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{name}/mlflow.db"
        if hasattr(mirror, "traces"):
            mirror.traces.TRACES = groups
        client = connect()
        start = time.perf_counter()
        mirror.copy(run, client)
        return time.perf_counter() - start


if __name__ == "__main__":
    folder, repeats = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 5
    rows = []
    for round_ in range(repeats + 1):  # the first, in which libraries are imported, is not counted
        rows.append([seconds(folder, groups) for groups in (0, 20)])
        print(f"round {round_}: without traces {rows[-1][0]:.2f} s, with 20 {rows[-1][1]:.2f} s", flush=True)
    plain, traced = zip(*rows[1:], strict=True)
    ratios = [b / a for a, b in rows[1:]]
    result = {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    result |= {"plain_seconds": statistics.median(plain), "traced_seconds": statistics.median(traced)}
    what = "seconds of a copy with 20 traces over without"
    print(json.dumps({k: round(v, 3) for k, v in result.items()} | {"repeats": repeats, "what": what}))
