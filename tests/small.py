"""Notebooks that take a second, and suites of them, for tests of what runs notebooks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import nbformat

from cat_lib.runs.places import tracking_uri
from cat_lib.shown import masked

START = "from cat_lib.runs import tracking\nrun = tracking.start_run('{name}', {{'x': x, 'seed': seed}})"
END = "run.metrics({'score': x + seed / 10})\nrun.finish()"
# steps with a checkpoint each, written after the step is logged, as in training
STEPS = """
import json, time
path = run.dir / "checkpoint.json"
done = json.loads(path.read_text()) if path.exists() else []
for step in range(len(done) + 1, 9):
    time.sleep(0.15)
    done.append(x * step)
    run.step({"value": x * step}, step, 8)
    path.with_suffix(".new").write_text(json.dumps(done))
    path.with_suffix(".new").replace(path)
run.metrics({"sum": sum(done)})
"""


def write_notebook(path: Path, *cells: str) -> Path:
    """A notebook with the parameters x and seed that opens a run, executes `cells` and ends the run."""
    sources = (
        "# a number\nx: float = 1.0\n# a seed; at least 0\nseed: int = 0",
        START.format(name=path.stem),
        *cells,
        END,
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, path)
    return path


def start(results: Path, *words: object, **options: object) -> subprocess.Popen[str]:
    """`python -m cat_lib ...` with its results under another folder than the repository's."""
    script = (
        "import sys; from pathlib import Path; from cat_lib.runs import places; places.ROOT = Path(sys.argv.pop(1)); "
        "places.RUNS = places.ROOT / 'runs'; from cat_lib.__main__ import app; app()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, str(results), *map(str, words)], text=True, stdin=subprocess.DEVNULL,
        stdout=options.pop("stdout", subprocess.PIPE), stderr=subprocess.STDOUT, env=os.environ | {"COLUMNS": "200"},
        **options,
    )  # fmt: skip


def cat_lib(results: Path, *words: object, **options: object) -> tuple[int, str]:
    """The exit code and all output of a command of cat_lib's."""
    process = start(results, *words, **options)
    out, _ = process.communicate(timeout=300)
    return process.returncode, out


def configs(results: Path) -> list[dict]:
    """The config.json of every run."""
    return [json.loads(p.read_text()) for p in sorted((results / "runs").glob("*/*/config.json"))]


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def run_id_of(folder: Path) -> str:
    """The id that a run has in the store of the tracking URI, as its folder says."""
    return json.loads((folder / "mlflow.json").read_text())[masked(tracking_uri())]
