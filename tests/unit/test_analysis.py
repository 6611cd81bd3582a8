"""The tables of the experiments on hand-made evaluations, where every number can be counted."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from cat_lib import experiment
from cat_lib.experiment import Experiment
from cat_lib.measuring import analysis, experiment_plots, group_analysis, plots
from cat_lib.measuring import words as findings
from cat_lib.measuring.evaluation import Evaluation, Score
from cat_lib.method.estimators import voting
from cat_lib.models import ModelError, memory
from cat_lib.models.ledger import Cost
from cat_lib.runs import places
from cat_lib.runs.parameters import effective, presets
from cat_lib.schema import Completion, Example, Group, Reference
from cat_lib.tasks.arithmetic import Arithmetic

TASK = Arithmetic()
EXAMPLES = [Example(str(i), f"q{i}", "p", "1", "easy" if i < 2 else "hard") for i in range(4)]


def group(i: int, *answers: str | None) -> Group:
    return Group(str(i), f"q{i}", tuple(Completion(a or "", (), "stop") for a in answers), answers)


def evaluation(single, **methods) -> Evaluation:
    """`single`: rows of answers; methods: one answer a question. Gold is always "1"."""
    groups = [group(i, *row) for i, row in enumerate(single)]
    scores = {"single": Score(np.array([[a == "1" for a in row] for row in single], float), Cost(completion_tokens=8))}
    references = {}
    for name, given in methods.items():
        references[name] = [None if a is None else Reference(a, None if a == "-" else a, name) for a in given]
        scores[name] = Score(
            np.array([float(a == "1") for a in given]), Cost(completion_tokens=40, flops=4e9, seconds=2)
        )
    return Evaluation(groups, scores, references)


def first() -> Evaluation:
    return evaluation(
        [["1", "1"], ["1", "2"], ["2", "3"], [None, "2"]], majority=["1", "1", "2", "2"], synthesis=["1", "2", "1", "-"]
    )


def test_method_table_counts_accuracy_cost_and_what_has_no_answer():
    table = analysis.method_table([first()]).set_index("method")
    assert table.accuracy.to_dict() == {"single": 3 / 8, "majority": 0.5, "synthesis": 0.5}
    assert table.no_answer.to_dict() == {"single": 1 / 8, "majority": 0.0, "synthesis": 0.25}
    assert (table.n == 4).all()
    assert table.tokens["majority"] == 10
    assert table.gflops["majority"] == 1
    assert table.low.min() >= 0
    assert table.high.max() <= 1


def test_disagreements_count_departures_where_both_answer():
    table = analysis.disagreements([first()], EXAMPLES, TASK).set_index("method")
    row = table.loc["majority"]
    assert (row.disagreement_n, row.disagreement) == (3, pytest.approx(2 / 3))  # question 3: synthesis has no answer
    assert (row.right_when_disagreeing_n, row.right_when_disagreeing, row.other_right) == (2, 0.5, 0.5)
    silent = evaluation([["1", "2"]] * 4, majority=["1"] * 4, synthesis=[None, "-", None, "-"])
    parted = analysis.disagreements([silent], EXAMPLES, TASK)
    metrics = findings.inference_metrics(analysis.method_table([silent]), analysis.versus([silent], "majority"), parted)
    assert "synthesis_departs_from_majority" not in metrics
    assert all(np.isfinite(value) for value in metrics.values())
    assert findings.departure_words(parted, silent.scores["majority"].estimate).startswith("There was no question")
    parting = evaluation([["1", "2"]] * 4, majority=["1", "1", "1", "0"], synthesis=["1", "1", "1", EXAMPLES[3].gold])
    row = analysis.disagreements([parting, parting], EXAMPLES, TASK).set_index("method").loc["majority"]
    assert (row.right_when_disagreeing, row.right_when_disagreeing_n) == (1.0, 2)  # one question, on both seeds
    assert row.right_when_disagreeing_low == pytest.approx(0.2065, abs=1e-4)  # Wilson's for one of one
    alone = analysis.right_when_all_wrong([first()], EXAMPLES, TASK)
    assert (alone.mean, alone.n) == (0.25, 4)  # question 2


def test_versus_is_paired_and_adjusted_and_findings_claim_only_what_is_shown():
    rng = np.random.default_rng(0)
    n = 60
    base, better = rng.random(n) < 0.3, rng.random(n) < 0.9
    same = base.copy()
    same[:2] = ~same[:2]
    right = {"majority": base, "gold": better, "synthesis": same}
    answers = {k: ["1" if hit else "2" for hit in v] for k, v in right.items()}
    e = evaluation([["1", "2"]] * n, **answers)
    table = analysis.versus([e, e], "majority").set_index("method")
    assert table.difference["gold"] == pytest.approx(better.mean() - base.mean())
    assert table.beats["gold"]
    assert not table.beats["synthesis"]
    assert (table.p_holm >= table.p).all()
    assert table.mcnemar["gold"] < 0.001
    words = findings.findings(table.reset_index(), "majority vote")
    assert "gold (+" in words.split("undecided: ")[0]
    assert "undecided: " in words
    assert "synthesis" in words.split("undecided: ")[1]
    assert "60 questions, 2 seeds" in words


def test_levels_are_scored_apart():
    table = analysis.by_level([first()], EXAMPLES).set_index(["level", "method"])
    assert table.accuracy["easy", "majority"] == 1
    assert table.accuracy["hard", "majority"] == 0
    assert table.n["easy", "single"] == 2


def test_arms_are_compared_with_one_sample_and_with_their_own_estimator():
    before = [first()]
    after = evaluation([["1", "1"], ["1", "1"], ["1", "1"], ["2", "1"]])
    table = analysis.arm_table(before, {"synthesis": [after], "gold": [after]}, {"synthesis": "synthesis"})
    row = table.set_index("method").loc["synthesis"]
    assert row.accuracy == 7 / 8
    assert row.difference == pytest.approx(0.5)
    assert (row.baseline, row.over_baseline) == (0.5, pytest.approx(0.375))
    assert table.baseline.isna().tolist() == [False, True]
    metrics = findings.arm_metrics(table, before)
    assert metrics["gold_heldout_accuracy_before"] == 3 / 8
    assert metrics["gold_heldout_accuracy_difference"] == pytest.approx(0.5)
    assert "synthesis" in findings.findings(table, "its teacher", "over_baseline")
    gain = findings.gain_metrics(before[0], after)
    assert gain["heldout_accuracy_difference"] == pytest.approx(0.5)


def test_scaling_uses_disjoint_subsamples_of_the_same_rollouts():
    groups = [group(0, "1", "1", "2", "2"), group(1, "2", "1", "1", "1")]
    scores = group_analysis.scaling(groups, EXAMPLES[:2], TASK, {"majority": voting.majority}, [4, 1, 2], most=2)
    assert scores["majority", 1].tolist() == [[1, 1], [0, 1]]
    assert scores["majority", 2].tolist() == [[1, 0], [0, 1]]  # ties: the first seen
    assert scores["majority", 4].tolist() == [[1], [1]]
    assert scores["pass@k", 2][:, 0].tolist() == pytest.approx([1 - 1 / 6, 1])
    table = group_analysis.scaling_table(scores).set_index(["method", "size"])
    assert table.subsamples["majority", 2] == 2
    grown = group_analysis.growth(scores, middle=2)
    assert grown.step.tolist() == ["1 to 2", "2 to 4"]
    assert grown.difference.tolist() == pytest.approx([-0.25, 0.5])
    with pytest.raises(ValueError, match="has 4"):
        group_analysis.scaling(groups, EXAMPLES[:2], TASK, {}, [8], 1)
    with pytest.raises(ValueError, match="at least one size"):
        group_analysis.scaling(groups, EXAMPLES[:2], TASK, {}, [], 1)


def test_new_ability_is_what_a_second_draw_does_not_also_find():
    never = [group(i, "2", "3") for i in range(4)]
    lucky = [group(i, "1" if i < 2 else "2", "2") for i in range(4)]
    found = group_analysis.newly_solved(never, lucky, lucky, EXAMPLES, TASK)
    assert (found["again"].mean, found["after"].mean, found["beyond"].mean) == (0.5, 0.5, 0.0)
    assert group_analysis.newly_solved(lucky[:2], never[:2], never[:2], EXAMPLES[:2], TASK) == {}
    ends = group_analysis.pass_differences({"h": never}, {"h": lucky}, {"h": EXAMPLES}, TASK).set_index("kind")
    assert ends.difference.to_dict() == {"h, pass@1": 0.25, "h, pass@2": 0.5}
    words = findings.sharpening_words(ends.reset_index(), {f"h_{k}": v for k, v in found.items()})
    assert "beyond a second draw: 0.000 [-0.490, 0.490], n=4 (undecided)" in words
    passes = group_analysis.pass_table({"before": never, "after": lucky}, EXAMPLES, TASK)
    assert passes.set_index(["phase", "k"]).accuracy["after", 2] == 0.5


def test_departures_picks_and_agreement():
    e = first()
    apart = group_analysis.departures(e.references)
    assert apart.loc["majority", "synthesis"] == 0.75
    assert apart.loc["majority", "majority"] == 0
    shown = group_analysis.picks(e.groups[1], 1, e.references, "1", TASK).set_index("estimator")
    assert shown.right.to_dict() == {"majority": True, "synthesis": False}
    assert shown["rollouts with it"].to_dict() == {"majority": 1, "synthesis": 1}
    bins = group_analysis.by_agreement(e.groups, EXAMPLES, TASK).set_index("kind")
    assert bins.n.sum() == 4
    assert bins.accuracy["0.75 to 1"] == 1


def test_variants_are_paired_with_the_first():
    def fixed(*answers):
        return lambda groups: [Reference(a, a, "x") for a in answers]

    table = group_analysis.variants(
        first().groups, EXAMPLES, TASK, {"a": fixed("1", "1", "2", "2"), "b, told": fixed("1", "1", "1", "2")}
    )
    assert table.difference.tolist()[1] == 0.25
    assert "a (n = 4): b, told +0.250" in findings.said(table, "Prompt")
    assert "(undecided)" in findings.said(table, "Prompt")
    metrics = findings.variant_metrics("prompt", table)
    assert metrics["prompt_b_told_difference"] == 0.25
    assert "prompt_a_difference" not in metrics


def test_figures_take_the_tables_and_name_their_axes():
    e = first()
    methods = analysis.method_table([e])
    figure = plots.intervals(
        methods.rename(columns={"method": "kind"}),
        "accuracy",
        "accuracy",
        "t",
        paper={"majority": 0.81, "synthesis": (0.8, 0.9)},
    )
    assert len(figure.axes[0].lines) > 3
    line = pd.DataFrame({"k": [1, 2], "method": "a", "accuracy": 0.5, "low": 0.4, "high": 0.6})
    levels = experiment_plots.levels(analysis.by_level([e], EXAMPLES), "t").axes[0]
    assert [label.get_text() for label in levels.get_xticklabels()] == ["easy\n(n = 2)", "hard\n(n = 2)"]
    quality = experiment_plots.quality_against_cost(methods.assign(gflops=1.0, seconds=1.0), "t")
    labels = ["generated tokens a question", "model GFLOP a question", "seconds a question"]
    assert [axis.get_xlabel() for axis in quality.axes] == labels
    trained, bought = (
        experiment_plots.break_even(1e12, {"trained, single": 1e6, "majority": 1e7}, "FLOPs", "t").axes[0].lines
    )
    assert (trained.get_ydata()[0], bought.get_ydata()[0]) == (1e12 + 1e6, 1e7)  # only training has a fixed cost
    (curve,) = experiment_plots.curves(line, "k", "group size", "t").axes
    assert curve.lines[0].get_xydata().tolist() == [[1, 0.5], [2, 0.5]]
    assert curve.get_xlabel() == "group size"
    assert experiment_plots.matrix(group_analysis.departures(e.references), "t").axes[0].texts[1].get_text() == "0.75"


# opening a run


@pytest.fixture
def given(untracked, monkeypatch, tmp_path):
    monkeypatch.setattr(places, "RUNS", tmp_path)
    return {
        "preset": "smoke",
        "model": None,
        "task": None,
        "data": None,
        "split": None,
        "questions": None,
        "group_size": 8,
        "seeds": [0],
        "thinking": False,
        "skip_bad_rows": False,
        "temperature": None,
        "top_k": None,
        "top_p": None,
    }


def opened(notebook: str, given: dict) -> Experiment:
    return Experiment.open(notebook, effective(notebook, given))


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1], ["0"], [0.5]])
def test_seeds_that_make_no_run_are_refused(given, seeds):
    with pytest.raises(ValueError, match="give at least one whole number"):
        opened("04_inference_time", given | {"seeds": seeds})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimators": ["majorty"]}, "allowed are single, majority"),
        ({"teacher": "nobody"}, "allowed are single"),
        ({"sizes": [1, 64], "rollouts": 32, "estimators": ["majority"]}, "from 1 to rollouts=32"),
        ({"sizes": [8], "rollouts": 32, "estimators": ["majority"]}, "give two whole numbers"),
        ({"sizes": [1, 2], "rollouts": 32, "estimators": ["mutual_predictability"]}, "from 2 to"),
        ({"wordings": ["few_shot", "poem"]}, "look at .'poem'"),
        ({"samples": 32, "split": "transductive", "task": "aime24"}, "no held-out questions"),
        ({"split": "transductive"}, "split='transductive': arithmetic keeps"),
        ({"data": "my.jsonl"}, "data='my.jsonl': arithmetic reads no data"),
        ({"steps": 2, "train_questions": 4, "prompts_per_step": 8, "prompts_per_micro_batch": 4}, "fewer than"),
        ({"steps": 2, "prompts_per_step": 6, "prompts_per_micro_batch": 4}, "whole groups"),
    ],
)
def test_parameters_that_cannot_work_are_refused_before_a_model_is_loaded(given, monkeypatch, change, message):
    monkeypatch.setattr(experiment, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=message):
        opened("06_training_signals", given | change)


def test_a_paper_preset_that_does_not_fit_is_refused_before_anything_is_loaded(given, monkeypatch):
    monkeypatch.setattr(memory, "machine", lambda: (24.0, "cpu", 2))
    training = given | {"preset": "paper"} | dict.fromkeys(presets()["06_training_signals"]["paper"])
    with pytest.raises(ModelError, match=r"needs about \d+\.\d GB to train on"):
        opened("06_training_signals", training)


def test_a_task_without_checkable_answers_is_refused(given):
    with pytest.raises(ValueError, match="no answers that can be checked"):
        opened("04_inference_time", given | {"task": "clinic"})


def test_an_open_run_holds_the_resolved_parameters(given, tmp_path):
    x = opened("04_inference_time", given | {"questions": 4})
    assert x.p.model == "embedded"
    assert [e.id for e in x.heldout] == [e.id for e in TASK.examples("heldout", 4, 0)]
    config = json.loads((x.run.dir / "config.json").read_text())
    assert config["parameters"]["questions"] == 4
    low, again = (x.rollouts(2, seed, x.heldout[:1]) for seed in (5, 5))
    assert low == again
