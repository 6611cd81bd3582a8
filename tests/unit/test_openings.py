"""What the opening cells of the experiments refuse before a model is loaded, executed as by hand in JupyterLab."""

from __future__ import annotations

import json
from typing import Any

import nbformat
import pytest

from cat_lib.models import ModelError, memory
from cat_lib.runs import places
from cat_lib.tasks.arithmetic import Arithmetic

NOTEBOOKS = [
    "01_rollouts_and_references",
    "04_inference_time",
    "05_scaling_rollouts",
    "06_training_signals",
    "07_ablations",
    "08_compute",
    "09_sharpening",
]


class ReachedError(Exception):
    """A model would have been loaded now."""


@pytest.fixture
def opened(tmp_path, monkeypatch, untracked):
    """The names of a notebook whose cells are executed up to the opening one, with some parameters."""
    monkeypatch.setattr(places, "RUNS", tmp_path)

    def load(*_: object, **__: object) -> None:
        raise ReachedError

    def execute(notebook: str, **given: Any) -> dict[str, Any]:
        cells = nbformat.read(places.NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells
        imports, parameters, opening = [c.source for c in cells if c.cell_type == "code"][:3]
        names: dict[str, Any] = {}
        exec(imports, names)
        exec(parameters, names)
        names |= {"preset": "tiny", "load_model": load, "learner": load} | given
        with pytest.raises(ReachedError):
            exec(opening, names)
        names["run"].finish("KILLED")
        return names

    return execute


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_an_open_run_holds_the_parameters_that_take_effect_and_what_is_scored(notebook, opened, tmp_path):
    names = opened(notebook, questions=9)
    assert (names["p"].model, names["p"].temperature) == ("embedded", names["task"].sampling.temperature)
    assert names["heldout"] == Arithmetic().examples("heldout", 9, 0)
    (folder,) = (tmp_path / notebook).iterdir()
    config = json.loads((folder / "config.json").read_text())
    assert config["parameters"] == names["p"].values
    assert config["parameters"]["questions"] == 9
    assert (config["datasets"]["heldout"]["n"], config["skipped_rows"]) == (9, {})


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_task_without_checkable_answers_is_refused(notebook, opened):
    with pytest.raises(ValueError, match="task='clinic': allowed is one of arithmetic"):
        opened(notebook, task="clinic")


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_what_a_task_would_ignore_is_refused(notebook, opened):
    with pytest.raises(ValueError, match="split='transductive': arithmetic keeps"):
        opened(notebook, split="transductive")
    with pytest.raises(ValueError, match=r"data='my\.jsonl': arithmetic reads no data"):
        opened(notebook, data="my.jsonl")


@pytest.mark.parametrize(
    ("notebook", "given", "message"),
    [
        ("01_rollouts_and_references", {"estimators": ["majorty"]}, "each once, of single, majority.*mean 'majority'"),
        ("04_inference_time", {"estimators": ["majority", "majority"]}, "allowed is at least one, each once"),
        ("05_scaling_rollouts", {"estimators": []}, "allowed is at least one, each once"),
        *(("04_inference_time", {"seeds": s}, "give at least one whole number") for s in ([], [1, 1], [-1], ["0"])),
        ("05_scaling_rollouts", {"sizes": [1, 64], "rollouts": 32}, "from 1 to rollouts=32"),
        ("05_scaling_rollouts", {"sizes": [4]}, "give two whole numbers"),
        ("05_scaling_rollouts", {"sizes": [1, 2], "estimators": ["mutual_predictability"]}, "from 2 to"),
        ("07_ablations", {"wordings": ["few_shot", "poem"]}, "each once, of reasoning, .*few_shot_freeform"),
        ("07_ablations", {"train_questions": 4, "prompts_per_step": 8}, "fewer than"),
        ("07_ablations", {"prompts_per_step": 6, "prompts_per_micro_batch": 4}, "whole groups"),
        ("09_sharpening", {"teacher": "nobody"}, "allowed is one of synthesis, majority"),
        ("09_sharpening", {"split": "transductive", "task": "aime24"}, "no held-out questions"),
        ("09_sharpening", {"train_questions": 100_000}, "100000"),
        ("09_sharpening", {"top_p": 0.0}, "top_p above 0"),
        ("06_training_signals", {"estimators": ["gold_wrong"]}, "mean 'gold_wrong_majority'"),
        ("11_when_consensus_lies", {"signals": ["ttlr"]}, "mean 'ttrl'"),
        ("13_formalize_and_solve", {"phases": ["one_product", "two_resource"]}, "mean 'two_resources'"),
        ("13_formalize_and_solve", {"signals": ["gold"]}, "each once, of the rows of signals|allowed is at least one"),
        ("13_formalize_and_solve", {"turns": 0}, "allowed is 1 or more"),
        ("13_formalize_and_solve", {"data": "none.csv"}, "no file none.csv"),
        ("14_posing_problems", {"rewards": ["inversion"]}, "each once, of inversion_boundary, boundary"),
        ("14_posing_problems", {"arms": ["seed"]}, "mean 'seeds'"),
        ("14_posing_problems", {"levels": ["poems"]}, "levels: 'poems' is none; allowed are addition"),
        ("14_posing_problems", {"train_questions": 3}, "allowed is 4 or more"),
        ("14_posing_problems", {"cold_start": "none.jsonl"}, "no file none.jsonl"),
        ("14_posing_problems", {"seeds": []}, "give at least one whole number"),
        ("11_when_consensus_lies", {"votes": 10}, "votes=10: the first group_size=4 of them are trained on"),
        ("11_when_consensus_lies", {"votes": 6}, "votes=6: allowed is 9 or more"),
        ("11_when_consensus_lies", {"levels": ["poems"]}, r"is empty; levels=\['poems'\]: the task has none of these"),
    ],
)
def test_parameters_that_cannot_work_are_refused_before_a_model_is_loaded(notebook, given, message, opened):
    with pytest.raises(ValueError, match=message):
        opened(notebook, **given)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_paper_preset_that_does_not_fit_is_refused_before_anything_is_loaded(notebook, opened, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "machine", lambda: (4.0, "cpu", 2))
    with pytest.raises(ModelError, match=r"needs about \d+\.\d GB to"):
        opened(notebook, preset="paper")
    assert not list(tmp_path.iterdir())
