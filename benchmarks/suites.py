"""What running a notebook through a suite costs, and what a second job gains.

    python benchmarks/suites.py [REPEATS]

Side by side, in turn: N trivial notebooks by nbclient in one warm process (the bare kernel), by `python -m cat_lib
suite` one after the other, and the same suite with two jobs. The overhead of a suite is its seconds a notebook less
the bare kernel's. For the gain, each notebook works for a second without numerical libraries, as far as one core goes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

N = 8
TRIVIAL = "from cat_lib.runs import tracking\nrun = tracking.start_run('small', {'x': x, 'seed': seed})\nrun.finish()"
WORK = "import time\nend = time.process_time() + 4\nwhile time.process_time() < end:\n    sum(range(1000))\n"


def write(folder: Path, work: str) -> None:
    """A notebook, and a suite of N runs of it."""
    sources = ("# a number\nx: int = 1\n# a seed\nseed: int = 0", work + TRIVIAL)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, folder / "small.ipynb")
    (folder / "s.yaml").write_text(f"entries: [{{notebook: small.ipynb, seeds: {list(range(N))}}}]")


def suite(jobs: int, work: str) -> float:
    """Seconds of a suite in an empty results folder with a store that exists."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, work)
        script = (
            "import sys; from pathlib import Path; from cat_lib.runs import places; "
            "places.ROOT = Path(sys.argv.pop(1)); places.RUNS = places.ROOT / 'runs'; "
            "from cat_lib.__main__ import app; app()"
        )
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "OMP_NUM_THREADS": "1"}
        make = "from cat_lib.runs.store import connect; connect()"
        subprocess.run([sys.executable, "-c", make], check=True, env=environment, capture_output=True)
        start = time.perf_counter()
        words = [sys.executable, "-c", script, name, "suite", str(folder / "s.yaml"), "--jobs", str(jobs)]
        subprocess.run(words, check=True, env=environment, capture_output=True)
        return time.perf_counter() - start


def bare() -> float:
    """Seconds of the same notebooks, each in a kernel of its own, without runs, suite or store."""
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), "")
        start = time.perf_counter()
        for _ in range(N):
            notebook = nbformat.read(Path(name) / "small.ipynb", as_version=4)
            os.environ["CAT_LIB_RUN_DIR"] = name
            NotebookClient(notebook).execute()
        return time.perf_counter() - start


if __name__ == "__main__":
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    overheads, ratios = [], []
    for _ in range(repeats):
        kernel, through = bare() / N, suite(1, "") / N
        overheads.append(through - kernel)
        one, two = suite(1, WORK), suite(2, WORK)
        ratios.append(one / two)
        print(
            f"bare kernel {kernel:.2f} s, suite {through:.2f} s a notebook; one job {one:.1f} s, two {two:.1f} s",
            flush=True,
        )
    low, high = min(overheads), max(overheads)
    print(f"overhead: {statistics.median(overheads):.2f} s a notebook ({low:.2f} to {high:.2f}, {repeats} repeats)")
    result = {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    what = "seconds of a suite with one job over two jobs"
    print(json.dumps({k: round(v, 2) for k, v in result.items()} | {"repeats": repeats, "what": what}))
