"""What a busy neighbour costs, with and without the setting that `cat_lib` makes for OpenMP's waiting threads.

    python benchmarks/neighbour.py [NAME=VALUE [REPEATS]]

Two processes hold the embedded model, one as it would be without the setting, one with it; they work in turn, first
alone on the machine, then while a third process keeps one core busy. The work is 24 questions x 8 rollouts and the
gradient of one batch of them. NAME=VALUE tries another setting than the one that is made.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys

WORK = """
import sys, time
import torch
from cat_lib.models import load_model
from cat_lib.schema import Sampling
from cat_lib.tasks.arithmetic import Arithmetic

model = load_model("embedded")
prompts = [e.prompt for e in Arithmetic().examples("train", 24, 0)]
rows = torch.tensor([model.encode(p)[:56] for p in prompts[:8]])
for line in sys.stdin:
    start = time.perf_counter()
    model.generate(prompts, 8, Sampling(14, seed=int(line)))
    model.model(rows, labels=rows).loss.backward()
    model.model.zero_grad()
    print(time.perf_counter() - start, flush=True)
"""


def worker(setting: dict[str, str]) -> subprocess.Popen[str]:
    """A process that does the work once for each line it is sent, and answers with the seconds."""
    environment = os.environ | setting
    return subprocess.Popen(
        [sys.executable, "-c", WORK], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def seconds(process: subprocess.Popen[str], seed: int) -> float:
    """How long one round takes it."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{seed}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main() -> None:
    """Both sides in turn, alone and beside a busy core."""
    given = sys.argv[1] if len(sys.argv) > 1 else "GOMP_SPINCOUNT=500"
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    name, _, value = given.partition("=")
    # libgomp's own default, given by name: cat_lib leaves alone what is set
    sides = [worker({"GOMP_SPINCOUNT": "300000"}), worker({name: value})]
    ratios: dict[str, list[float]] = {}
    try:
        for place in ("alone", "beside"):
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if place == "beside" else None
            for round_ in range(repeats + 1):
                without, with_ = (seconds(side, round_) for side in sides)
                print(f"{place} {round_}: {without:.2f} s without, {with_:.2f} s with {given}", flush=True)
                if round_:
                    ratios.setdefault(place, []).append(without / with_)
            if busy:
                busy.kill()
    finally:
        for side in sides:
            side.kill()
    found = {place: {"ratio": statistics.median(r), "low": min(r), "high": max(r)} for place, r in ratios.items()}
    rounded = {place: {k: round(v, 2) for k, v in numbers.items()} for place, numbers in found.items()}
    what = f"seconds without over with {given}, beside a busy core; alone: the same without the neighbour"
    print(json.dumps(rounded["beside"] | {"repeats": repeats, "what": what, "alone": rounded["alone"]}))


if __name__ == "__main__":
    main()
