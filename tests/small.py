"""Notebooks that take a second, suites of them, and a run that took none, for tests of what runs and shows them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd

from cat_lib.files import append_line
from cat_lib.runs.folder import open_run, read_config
from cat_lib.runs.pages import write_page
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


def write_training(folder: Path, text: str = "= 4", steps: int = 3, groups: int = 4, seed: int = 0) -> Path:
    """The folder of a run of 00_quickstart as it has ended: `text` stands wherever a model's does, one verdict is lost.

    Each step has `groups` questions of two rollouts. No model and no kernel made it.
    """
    chosen = {"estimator": "synthesis", "preset": "smoke", "steps": steps, "seed": seed}
    run = open_run("00_quickstart", chosen, folder)
    cost = {"prompt_tokens": 80, "completion_tokens": 16, "seconds": 0.25, "usd": 0.002}
    rows, verdicts, rubrics = [], [], []
    for step in range(1, steps + 1):
        run.step({"agreement": step / 10, "reward": 0.5, "clip_ratio/low_mean": 0.0, "loss": 0.1}, step, steps)
        spent = {
            role: {k: step * groups * v for k, v in cost.items()} for role in ("policy", "anchor", "judge", "update")
        }
        append_line(folder / "spent.jsonl", {"step": step, "spent": spent})
        for example in (f"q{i}" for i in range(groups)):
            about = {"step": step, "example": example}
            rows += [
                {"question": f"{example}? {text}", "text": text, "answer": "4", "reference": text, "reward": float(i),
                 "rollout": i, "finish": "stop", "reference_answer": "4"} | about for i in (0, 1)
            ]  # fmt: skip
            rubrics.append({"criterion": text, "points": 1.0, "text": text, "cause": None} | about)
            lost = (step, example) == (2, "q1")
            verdict = {"criterion": text, "points": 1.0, "met": None if lost else True, "score": 0.5, "reason": text}
            verdicts += [{"rollout": i, "cause": "no verdict" if lost else None} | verdict | about for i in (0, 1)]
    for name, table in {"rollouts": rows, "rubrics": rubrics, "verdicts": verdicts}.items():
        run.table(name, pd.DataFrame(table))
    run.table("heldout", pd.DataFrame({"question": ["q0", "q1"], "before": text, "after": f"{text}!", "gold": "4"}))
    run.metrics({"heldout_accuracy_after": 0.5 + seed / 10, "policy_tokens": 96.0, "agreement_last": 0.3})
    figure, axes = plt.subplots(figsize=(3, 2))
    axes.plot([0, 1], [0.4, 0.5])
    run.figure("accuracy", figure)
    plt.close(figure)
    frame = pd.DataFrame({"text": [text]})
    new, out = nbformat.v4, nbformat.v4.new_output
    cells = [
        new.new_markdown_cell("# A title\n\n**The question.** Does $G$ help?\n\n$$R_i = \\mathbb{1}[a_i < s]$$"),
        new.new_markdown_cell("## After\n\nOpen circles before, filled after."),
        new.new_code_cell('run.figure("accuracy", figure)', metadata={"tags": ["result"]}),
        new.new_code_cell("print(text)", outputs=[out("stream", text=text + "\n")]),
        new.new_code_cell("frame", outputs=[out("execute_result", {"text/html": frame.to_html(), "text/plain": "x"})]),
        # as no cell of ours does: a frame whose text is not escaped, and Markdown of a model
        new.new_code_cell("raw", outputs=[out("execute_result", {"text/html": frame.to_html(escape=False)})]),
        new.new_code_cell("said", outputs=[out("display_data", {"text/markdown": text})]),
        new.new_markdown_cell("## Verdict"),
        new.new_code_cell("1", outputs=[out("display_data", {"text/markdown": f"**Not shown by seed {seed}.**"})]),
    ]
    nbformat.write(new.new_notebook(cells=cells), folder / "executed.ipynb")
    write_page(folder, read_config(folder) | {"status": "FINISHED"})
    run.end("FINISHED")
    return folder
