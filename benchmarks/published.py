"""Regenerates results/published/<notebook>/: metrics, tables and figures of the experiments at smoke size.

    python benchmarks/published.py [NOTEBOOK ...]

Runs of this commit's notebooks that are there already (run id `published`) are not repeated: remove
results/runs/<notebook>/published to run one anew. Prints each run's seconds.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import pandas as pd

from cat_lib.runs.parameters import presets
from cat_lib.runs.places import ROOT, RUNS
from cat_lib.runs.runner import run_notebook

NOTEBOOKS = [name for name in presets() if not name.startswith(("00", "02", "03"))]  # these have results of their own
LARGE = {"rollouts"}  # one row a rollout: kept with the run, too large to publish


def publish(notebook: str) -> float | None:
    """Run the notebook, if need be, and copy what it left; returns the seconds of a run made now."""
    folder, seconds = RUNS / notebook / "published", None
    config = folder / "config.json"
    if not config.exists() or json.loads(config.read_text())["status"] != "FINISHED":
        shutil.rmtree(folder, ignore_errors=True)
        start = time.perf_counter()
        run_notebook(ROOT / "notebooks" / f"{notebook}.ipynb", {}, folder.name)
        seconds = time.perf_counter() - start
    target = ROOT / "results" / "published" / notebook
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder / "figures", target)
    for file in ("metrics.json", "executed.html"):
        if (folder / file).exists():
            shutil.copy(folder / file, target)
    for table in sorted(folder.glob("*.parquet")):
        if table.stem not in LARGE:
            pd.read_parquet(table).round(6).to_csv(target / f"{table.stem}.csv", index=False)
    size = sum(p.stat().st_size for p in target.iterdir())
    print(f"{notebook}: {size // 1000} kB in {Path(*target.parts[-3:])}", flush=True)
    return seconds


if __name__ == "__main__":
    took = {name: publish(name) for name in sys.argv[1:] or NOTEBOOKS}
    for name, seconds in took.items():
        print(f"{name}  {'not run again' if seconds is None else f'{seconds:.0f} s'}")
