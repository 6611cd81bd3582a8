"""The first table of docs/results.md: the quickstart with the synthesis teacher over 3 seeds, and once with majority.

    python benchmarks/quickstart_seeds.py

Runs that are there already are not repeated. Writes results/published/quickstart_seeds.csv and the accuracy figure
of seed 0, and prints the table. The interval over seeds is Student's over 3 differences; the pooled one is over
held-out questions, the same for every seed, each averaged over the seeds.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd

from cat_lib.measuring import plots
from cat_lib.measuring.stats import over_seeds, paired_difference
from cat_lib.runs.places import ROOT, RUNS
from cat_lib.runs.runner import run_notebook

SEEDS = {"synthesis": (0, 1, 2), "majority": (0,)}
published = ROOT / "results" / "published"
published.mkdir(parents=True, exist_ok=True)
rows, summary = [], []
for teacher, seeds in SEEDS.items():
    scores = {"before": [], "after": []}
    for seed in seeds:
        folder = RUNS / "00_quickstart" / f"{teacher}-seed{seed}"
        config = folder / "config.json"
        if not config.exists() or json.loads(config.read_text())["status"] != "FINISHED":
            run_notebook(ROOT / "notebooks/00_quickstart.ipynb", {"estimator": teacher, "seed": seed}, folder.name)
        metrics = json.loads((folder / "metrics.json").read_text())
        rows.append({"teacher": teacher, "seed": seed} | metrics)
        table = pd.read_parquet(folder / "evaluation.parquet")
        for phase, values in scores.items():
            part = table[(table.method == "single") & (table.phase == phase)]
            values.append(part.set_index("example")["value"].sort_index())
    before, after = (np.array(scores[phase]) for phase in ("before", "after"))
    pooled = paired_difference(before.T, after.T)
    spread = over_seeds((after - before).mean(axis=1)) if len(seeds) > 1 else "one seed"
    summary.append((teacher, before.mean(), after.mean(), spread, pooled))
keys = ["teacher", "seed"] + [
    f"heldout_accuracy_{part}" for part in ("before", "after", "difference", "difference_low", "difference_high")
] + [f"heldout_{m}_accuracy_{phase}" for m in ("greedy", "majority", "synthesis") for phase in ("before", "after")] + [
    "label_accuracy_first", "label_accuracy_last", "synthesis_over_single_tokens", "synthesis_over_single_flops",
    "synthesis_over_single_seconds",
]  # fmt: skip
table = pd.DataFrame(rows)[keys].round(4)
table.to_csv(published / "quickstart_seeds.csv", index=False)
source = RUNS / "00_quickstart" / "synthesis-seed0"
shutil.copy(source / "figures" / "signal.png", published / "quickstart_signal.png")
figure = plots.accuracy(pd.read_parquet(source / "scores.parquet"), group_size=8)
figure.savefig(published / "quickstart_accuracy.png", dpi=110, bbox_inches="tight")
print(table.to_string(index=False))
for teacher, before, after, spread, pooled in summary:
    print(f"{teacher}: {before:.3f} -> {after:.3f}; over seeds {spread}; over questions {pooled}, p = {pooled.p:.4f}")
