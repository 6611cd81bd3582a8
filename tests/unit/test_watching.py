"""A run as it is watched and read: lines of steps, what it found, its adapter as a model, and asked a question."""

from __future__ import annotations

import json
import shutil

import nbformat
import pytest
import typer

from cat_lib.__main__ import chat
from cat_lib.learning.lora import add_lora
from cat_lib.runs import mirror, places, tracking
from cat_lib.runs import store as store_
from cat_lib.shown import printed
from cat_lib.suites.progress import found

HOSTILE = "<script>alert(1)</script> \x1b[2J **b** \u202eltr"


def test_text_for_a_terminal_is_obeyed_by_none_and_cut_by_lines():
    assert printed("a\tb\n\x1b[2J\u202e\r\n") == "a\tb\n\\u001b[2J\\u202e\\u000d\n"
    assert printed(f"x\n{'y' * 100_000}\nz") == f"x\n{'y' * 2000} ... (and 98,000 more)\nz"


SESSION = """
from pathlib import Path
from types import SimpleNamespace as S
from cat_lib.learning.session import GRPOSession
from cat_lib.ledger import Ledger
from cat_lib.runs.folder import Run

def train(folder, steps, of):
    state, ignore = S(global_step=0, log_history=[], max_steps=of), lambda callback: None
    trainer = S(args=None, state=state, remove_callback=ignore, add_callback=ignore)
    session = GRPOSession(trainer, S(ledger=Ledger()), Run(Path(folder)), False)
    session.began -= 30  # seconds
    for state.global_step in steps:
        logs = {"reward": state.global_step / 4 - 1, "label_accuracy": 0.5, "loss": 1.0}
        state.log_history.append(logs | {"step": state.global_step})
        session.on_log(None, state, None, logs)
"""


def check_lines(text: str) -> None:
    lines = text.splitlines()
    assert [line[:9] for line in lines] == ["step 3/11", "step 4/11", "step 5/11"]
    assert lines[-1].startswith("step 5/11  reward 0.25  label_accuracy 0.50  elapsed 0:00:3")
    assert "remaining 0:01:0" in lines[-1]  # six more, at ten seconds each


def test_each_step_is_a_line_with_the_time_that_is_left(tmp_path, capsys):
    names = {}
    exec(SESSION, names)
    names["train"](tmp_path, (3, 4, 5), 11)  # after two steps of an earlier try
    check_lines(capsys.readouterr().out)


@pytest.mark.slow
def test_a_notebook_by_hand_has_one_figure_and_one_line_and_by_papermill_lines(tmp_path):
    from nbclient import NotebookClient

    train = f"train({str(tmp_path)!r}, (3, 4, 5), 11)"
    by_papermill = f"import os\nos.environ['CAT_LIB_RUN_DIR'] = {str(tmp_path)!r}\n{train}"
    cells = [nbformat.v4.new_code_cell(text) for text in (SESSION, train, by_papermill)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    figure, line = cells[1].outputs
    assert len(figure["data"]["image/png"]) > 1000
    assert line["data"]["text/plain"].startswith("step 5/11  reward 0.25  label_accuracy 0.50  elapsed 0:00:3")
    check_lines("".join(output["text"] for output in cells[2].outputs))


def test_what_a_run_found_is_its_verdict_its_scores_and_where_its_figures_are(tmp_path):
    assert found(tmp_path) == []
    shown = [nbformat.v4.new_output("display_data", {"text/markdown": text}) for text in ("**Yes. It is.**", HOSTILE)]
    cells = [nbformat.v4.new_markdown_cell("## Verdict\n\nHow it is read."), nbformat.v4.new_code_cell(outputs=shown)]
    earlier = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", {"text/markdown": "not this"})])
    nbformat.write(nbformat.v4.new_notebook(cells=[earlier, *cells]), tmp_path / "executed.ipynb")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "accuracy.png").touch()
    known = {"heldout_accuracy_before": 0.5, "heldout_accuracy_after": 0.625, "heldout_accuracy_difference": 0.125}
    (tmp_path / "metrics.json").write_text(json.dumps(known | {"tokens_before": 3, "seeds": 1}))
    lines = found(tmp_path)
    assert lines[:2] == ["Yes. It is.", r"<script>alert(1)</script> \u001b[2J b \u202eltr"]
    assert lines[2].split() == ["before", "after", "difference", "low", "high"]
    assert [line.split() for line in lines[3:5]] == [
        ["heldout_accuracy", "0.500", "0.625", "0.125"],
        ["tokens", "3.000"],
    ]
    assert lines[5:] == [f"figures: {tmp_path / 'figures'} (accuracy)"]


@pytest.fixture
def trained(store, two_layers):
    """A run's folder with the adapter of a policy, its weights not zero, beside PEFT's `ref` and a part's adapter."""
    import torch

    from cat_lib.models import load_model

    policy = add_lora(load_model(two_layers), 2, 0)
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.5)
    folder = store / "runs" / "00_quickstart" / "one=1"
    run = tracking.open_run("00_quickstart", {"model": two_layers, "task": "arithmetic"}, folder)
    policy.model.save_pretrained(folder / "adapter")
    (folder / "adapter" / "ref").mkdir()
    (folder / "adapter" / "ref" / "adapter_config.json").write_text("{}")
    run.metrics({"heldout_accuracy_after": 0.5})
    run.end("FINISHED")
    return folder


def test_an_adapter_is_one_model_in_the_store_however_often_it_is_copied(trained):
    (trained / "arm").mkdir()
    (trained / "adapter").rename(trained / "arm" / "adapter")
    (trained / "metrics.json").write_text(json.dumps({"arm_score": 0.25, "heldout_accuracy_after": 0.5}))
    run_id, client = mirror.import_run(trained), store_.connect()
    client.update_run(run_id, status="RUNNING")  # as one whose copy was cut off at its end
    mirror.import_run(trained)
    (model,) = client.search_logged_models([client.get_run(run_id).info.experiment_id])
    assert (model.name, model.status, model.source_run_id) == ("arm_one_1", "READY", run_id)
    assert model.params["base"] == json.loads((trained / "config.json").read_text())["parameters"]["model"]
    assert [(m.key.rpartition("/")[2], m.value) for m in model.metrics] == [("arm_score", 0.25)]
    there = {p.name for p in (places.ROOT / "results" / "mlartifacts" / "models").glob("*/artifacts/*")}
    assert there == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert "PeftModel.from_pretrained(base" in model.tags["mlflow.note.content"]
    assert client.list_artifacts(run_id, "arm") == []
    assert (
        len(client.get_metric_history(run_id, next(k for k in client.get_run(run_id).data.metrics if "arm" in k))) == 1
    )


def test_a_question_is_answered_with_and_without_the_adapter(trained, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    chat(str(trained), "What is 7 + 8?")
    head, *rows = capsys.readouterr().out.splitlines()
    without, with_it = (cell.strip() for cell in next(r for r in rows if r.startswith("│")).strip("│").split("│"))
    assert head.strip() == "What is 7 + 8?"
    assert without != with_it
    told = iter(["What is 7 + 8?", HOSTILE])
    monkeypatch.setattr("builtins.input", lambda _: next(told, ""))
    chat("one=1", "")
    out = capsys.readouterr().out
    assert [without in out, with_it in out, "\x1b" in out] == [True, True, False]


def test_a_run_that_cannot_answer_is_refused(trained, two_layers, capsys):
    def refused(run, reason):
        with pytest.raises(typer.Exit):
            chat(run, "?")
        assert reason in capsys.readouterr().err

    refused("one=2", "no run 'one=2'; did you mean 'one=1'?")
    config = json.loads((trained / "config.json").read_text())
    (trained / "config.json").write_text(json.dumps(config | {"parameters": {"model": "/gone"}}))
    refused(str(trained), "model='/gone' is no folder here and no hub id")
    (trained / "config.json").unlink()
    refused(str(trained), "names a model")
    shutil.copytree(trained / "adapter", trained / "arm" / "adapter")
    refused(str(trained), "has 2 adapters, and one is asked")
    shutil.rmtree(trained / "adapter")
    shutil.rmtree(trained / "arm")
    refused(str(trained), "has 0 adapters, and one is asked")
