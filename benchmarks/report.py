"""Seconds, size and memory of the report (notebook 10) over many runs.

    python benchmarks/report.py [RUNS ...]

Writes that many small runs (groups of five seeds, with 12 steps, a score, costs and rollouts of 400 characters) into an
empty SQLite store, and executes 10_compare over it as a user does. Memory is the peak of all processes of the
notebook together, by system.jsonl.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from cat_lib.runs import mirror, places, tracking
from cat_lib.runs.runner import run_notebook

STEPS, QUESTIONS, SEEDS = 12, 8, 5


def make(root: Path, runs: int) -> None:
    """That many finished runs, copied to the store; groups differ in their learning rate."""
    rng = random.Random(0)
    for i in range(runs):
        group, seed = divmod(i, SEEDS)
        folder = root / "runs" / "06_training_signals" / f"run{i}"
        run = tracking.open_run("06_training_signals", {"learning_rate": 1e-5 * (group + 1), "seed": seed}, folder)
        score = 0.4 + 0.002 * group + rng.gauss(0, 0.02)
        for step in range(1, STEPS + 1):
            run.step({"reward": score * step / STEPS, "agreement": 0.5, "entropy": 1 / step}, step, STEPS)
        rows = [
            {"step": step, "question": f"question {q}", "text": f"run {i}. " + "words " * 66, "reference": "4"}
            | {"answer": "4", "reward": float(rng.random() < score), "rollout": g}
            for step in (1, STEPS)
            for q in range(QUESTIONS)
            for g in range(4)
        ]
        run.table("rollouts", pd.DataFrame(rows))
        run.metrics({"heldout_score": score, "heldout_score_low": score - 0.1, "heldout_score_high": score + 0.1})
        run.metrics({"policy_tokens": 1e4, "update_flops": 2e12, "heldout_questions": 96.0})
        run.end("FINISHED")
        mirror.import_run(folder)


if __name__ == "__main__":
    for runs in [int(n) for n in sys.argv[1:]] or [50, 500]:
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            places.ROOT, places.RUNS = root, root / "runs"
            os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{root}/mlflow.db"
            os.environ["CAT_LIB_TRACES"] = "0"
            make(root, runs)
            start = time.perf_counter()
            folder = run_notebook(Path(__file__).parents[1] / "notebooks/10_compare.ipynb", {}, runs=root / "runs")
            seconds = time.perf_counter() - start
            size = (folder / "report.html").stat().st_size
            lines = (folder / "system.jsonl").read_text().splitlines()
            memory = max(json.loads(line)["metrics"]["system/system_memory_usage_megabytes"] for line in lines)
            found = {"runs": runs, "seconds": round(seconds, 1), "page_mb": round(size / 1e6, 2), "memory_mb": memory}
            print(json.dumps(found), flush=True)
