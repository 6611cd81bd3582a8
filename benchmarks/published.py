"""Regenerates results/published/<notebook>/: metrics, tables and figures of the experiments at smoke size.

    python benchmarks/published.py [NOTEBOOK ...] [SUITE.yaml ...]

Runs of this commit's notebooks that are there already (run id `published`) are not repeated: remove
results/runs/<notebook>/published to run one anew. Of a suite, which is not run here, each finished entry goes to
results/published/<suite>/<entry>. Prints each run's seconds.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from pathlib import Path

import pandas as pd

from cat_lib.files import read_lines
from cat_lib.method.signals import GOLD_SIGNALS, SIGNALS
from cat_lib.runs.parameters import presets
from cat_lib.runs.places import ROOT, RUNS
from cat_lib.runs.runner import run_notebook
from cat_lib.suites.suite import load_suite

LARGE = {"rollouts"}  # one row a rollout: kept with the run, too large to publish
WATCHED = ("entropy", "flip_rate", "answer_dependence")


def publish(notebook: str) -> float | None:
    """Run the notebook, if need be, and copy what it left; returns the seconds of a run made now."""
    folder, seconds = RUNS / notebook / "published", None
    config = folder / "config.json"
    if not config.exists() or json.loads(config.read_text())["status"] != "FINISHED":
        shutil.rmtree(folder, ignore_errors=True)
        start = time.perf_counter()
        run_notebook(ROOT / "notebooks" / f"{notebook}.ipynb", {}, folder.name)
        seconds = time.perf_counter() - start
    keep(folder, notebook)
    return seconds


def keep(folder: Path, name: str) -> None:
    """Copy what a run left to results/published under that name."""
    target = ROOT / "results" / "published" / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder / "figures", target)
    for file in ("metrics.json", "executed.html"):
        if (folder / file).exists() and (file != "executed.html" or "/" not in name):  # of a suite no pages, for size
            shutil.copy(folder / file, target)
    for table in sorted(folder.glob("*.parquet")):
        if table.stem not in LARGE:
            pd.read_parquet(table).round(6).to_csv(target / f"{table.stem}.csv", index=False)
    lines = [{"step": line["step"]} | line["metrics"] for _, line in read_lines(folder / "metrics.jsonl")]
    steps = pd.DataFrame(lines, columns=None if lines else ["step"]).groupby("step").first()
    kept = [name for name in steps if name.rpartition("/")[2] in (*SIGNALS, *GOLD_SIGNALS, *WATCHED)]
    if kept:
        steps[kept].round(6).to_csv(target / "steps.csv")
    size = sum(p.stat().st_size for p in target.iterdir())
    print(f"{name}: {size // 1000} kB in {target.relative_to(ROOT)}", flush=True)


def publish_suite(file: Path) -> None:
    """Keep each finished entry; says of the others that they are not. Raises SuiteError for a file that is none."""
    suite = load_suite(file)
    for entry in suite.entries:
        if entry.status == "FINISHED":
            keep(entry.folder, f"{suite.name}/{re.sub(r'[^a-z0-9_]+', '_', entry.name.lower())}")
        else:
            print(f"{entry.name}: {entry.status}, not published")


if __name__ == "__main__":
    names = sys.argv[1:] or list(presets())
    for name in (name for name in names if name.endswith(".yaml")):
        publish_suite(Path(name))
    took = {name: publish(name) for name in names if not name.endswith(".yaml")}
    for name, seconds in took.items():
        print(f"{name}  {'not run again' if seconds is None else f'{seconds:.0f} s'}")
