"""The tables of the experiments on hand-made evaluations, where every number can be counted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cat_lib.learning.settings import GRPOSettings
from cat_lib.ledger import Cost, Ledger
from cat_lib.measuring import analysis, plots, tables, words
from cat_lib.measuring.evaluation import Evaluation, Score, comparison_metrics, evaluate, side_by_side
from cat_lib.method.estimators import voting
from cat_lib.method.estimators.synthesis import OfFirst
from cat_lib.models import ModelError, memory
from cat_lib.runs import places
from cat_lib.runs.parameters import ParameterError, effective, presets, resolve
from cat_lib.schema import Completion, Example, Group, Reference
from cat_lib.suites import preflight
from cat_lib.tasks import load_task
from cat_lib.tasks.arithmetic import Arithmetic

TASK = Arithmetic()
EXAMPLES = [Example(str(i), f"q{i}", "p", "1", "easy" if i < 2 else "hard") for i in range(4)]


def group(i: int, *answers: str | None) -> Group:
    return Group(str(i), f"q{i}", tuple(Completion(a or "", (), "stop") for a in answers), answers)


def evaluation(single, seed=0, **methods) -> Evaluation:
    """`single`: rows of answers; methods: one answer a question. Gold is always "1"."""
    groups = [group(i, *row) for i, row in enumerate(single)]
    scores = {"single": Score(np.array([[a == "1" for a in row] for row in single], float), Cost(completion_tokens=8))}
    references = {}
    for name, given in methods.items():
        references[name] = [None if a is None else Reference(a, None if a == "-" else a, name) for a in given]
        scores[name] = Score(
            np.array([float(a == "1") for a in given]), Cost(completion_tokens=40, flops=4e9, seconds=2)
        )
    levels = [e.level for e in EXAMPLES] if len(groups) == len(EXAMPLES) else []
    return Evaluation(groups, scores, references, levels, seed)


def first() -> Evaluation:
    return evaluation(
        [["1", "1"], ["1", "2"], ["2", "3"], [None, "2"]], majority=["1", "1", "2", "2"], synthesis=["1", "2", "1", "-"]
    )


def test_method_table_counts_accuracy_cost_and_what_has_no_answer():
    table = analysis.method_table([first()]).set_index("method")
    assert list(table.columns[:6]) == tables.COLUMNS[1:]
    assert table.value.to_dict() == {"single": 3 / 8, "majority": 0.5, "synthesis": 0.5}
    assert table.no_answer.to_dict() == {"single": 1 / 8, "majority": 0.0, "synthesis": 0.25}
    assert (table.n == 4).all()
    assert table.tokens["majority"] == 10
    assert table.gflops["majority"] == 1
    assert table.standard_error["majority"] == pytest.approx(np.sqrt(1 / 3) / 2)  # over questions
    won = evaluation([["1", "1"], ["2", "2"]] * 2, majority=["1", "2"] * 2)
    assert analysis.method_table([won]).standard_error.nunique() == 1  # not over samples
    with pytest.raises(ValueError, match="at least 2 questions"):
        analysis.method_table([evaluation([["1", "2"]], majority=["1"])])
    assert table.low.min() >= 0
    assert table.high.max() <= 1


def test_disagreements_count_departures_where_both_answer():
    table = analysis.disagreements([first()]).set_index(["method", "score"])
    parted = table.loc["majority", "disagreement"]
    assert (parted.n, parted.value) == (3, pytest.approx(2 / 3))  # question 3: synthesis has no answer
    right, other = table.loc["majority", "right_when_disagreeing"], table.loc["majority", "other_right"]
    assert (right.n, right.value, other.value) == (2, 0.5, 0.5)
    silent = evaluation([["1", "2"]] * 4, majority=["1"] * 4, synthesis=[None, "-", None, "-"])
    table = analysis.disagreements([silent])
    assert table.n.tolist() == [0, 0, 0]
    assert tables.flat(table, "{score}_{method}") == {}  # what was never seen is no number
    one = evaluation([["1", "2"]] * 4, majority=["1", "1", "1", "0"], synthesis=["1"] * 4)
    row = analysis.disagreements([one, one]).set_index("score").loc["right_when_disagreeing"]
    assert (row.value, row.n) == (1.0, 2)  # one question, on both seeds
    assert row.low == pytest.approx(0.2065, abs=1e-4)  # Wilson's for one of one
    alone = analysis.right_when_all_wrong([first()])
    assert (alone.value, alone.n) == (0.25, 4)  # question 2


def test_differences_are_paired_and_adjusted_and_findings_claim_only_what_is_shown():
    rng = np.random.default_rng(0)
    n = 60
    base, better = rng.random(n) < 0.3, rng.random(n) < 0.9
    same = base.copy()
    same[:2] = ~same[:2]
    right = {"majority": base, "gold": better, "synthesis": same}
    answers = {k: ["1" if hit else "2" for hit in v] for k, v in right.items()}
    frame = pd.concat([evaluation([["1", "2"]] * n, seed, **answers).outcomes for seed in (0, 1)])
    found = tables.compare(frame, "majority")
    table = found.set_index("method")
    assert table.value["gold"] == pytest.approx(better.mean() - base.mean())
    assert (table.outcome["gold"], table.outcome["synthesis"]) == ("above", "undecided")
    assert (table.p >= table.p_alone).all()
    assert (table.seed == "0, 1").all()
    said = words.findings(found, "majority vote")
    assert "gold (+" in said.split("undecided: ")[0]
    assert "synthesis" in said.split("undecided: ")[1]
    assert "60 questions, 2 seeds" in said
    whole = tables.one_family(found, found)  # twice the tests: each p is at least as large
    assert (whole.p[:3].to_numpy() >= found.p.to_numpy()).all()
    with pytest.raises(ValueError, match="no method 'vote' to compare; there are 'single', 'majority'"):
        tables.compare(frame, "vote")
    with pytest.raises(
        ValueError, match="the same questions and seeds: 60 questions, seeds 0, 1 of the baseline, 60 and"
    ):
        tables.compare(frame[(frame.method != "gold") | (frame.seed == 0)], "majority")
    with pytest.raises(ValueError, match="the same questions and seeds: 60 questions"):
        tables.compare(frame[(frame.method != "gold") | (frame.example != "7")], "majority")


def test_questions_that_one_side_could_not_score_are_left_out_of_the_pair():
    scores = {"a": [0.1, 0.2, np.nan, 0.4], "b": [0.2, np.nan, 0.3, 0.6], "c": [0.3, 0.3, 0.3, 0.3]}
    table = tables.compare(tables.outcomes(scores, list("wxyz")), "a").set_index("method")
    assert (table.n["b"], table.value["b"]) == (2, pytest.approx(0.15))
    assert table.n["c"] == 3


def test_answers_that_cannot_be_checked_are_not_scored():
    clinic = load_task("clinic")
    with pytest.raises(ValueError, match="task='clinic' has no answers that can be checked; take arithmetic or a"):
        evaluate(None, clinic, clinic.examples("heldout", 2, 0), 2, {}, 1)  # before the policy is asked anything


class Counting:
    """A policy that counts a token a rollout, and keeps the seeds it is given."""

    def __init__(self) -> None:
        self.ledger, self.seeds = Ledger(), set()

    def generate(self, prompts, n, sampling):
        self.seeds.add(sampling.seed)
        self.ledger.add("policy", completion_tokens=n * len(prompts))
        return [[Completion("1", (), "stop")] * n for _ in prompts]


def test_an_estimator_is_charged_the_rollouts_it_reads_whatever_its_name():
    policy, readers = Counting(), {"synthesis_1": voting.majority, "first": OfFirst(voting.majority)}
    found = evaluate(policy, TASK, EXAMPLES, 8, readers, seed=4)
    tokens = {method: score.cost.completion_tokens for method, score in found.scores.items()}
    assert tokens == {"single": 4, "greedy": 4, "synthesis_1": 32, "first": 4}
    assert (policy.seeds, set(found.outcomes.seed)) == ({5}, {4})  # drawn with the next seed, under its own


def test_answers_before_and_after_stand_side_by_side():
    before, after = evaluation([["0", "1"], ["0", "0"]]), evaluation([["1", "1"], ["0", "1"]])
    examples = [Example(g.id, g.question, g.question, "gold", "easy") for g in before.groups]
    table = side_by_side(examples, {"before": before, "after": after})
    assert list(table) == ["question", "before", "after", "gold", "before score", "after score"]
    assert table["before"].tolist() == [g.rollouts[0].text for g in before.groups]
    assert table[["before score", "after score"]].to_numpy().tolist() == [[0.5, 1.0], [0.0, 0.5]]


def test_levels_are_scored_apart():
    table = tables.summary(first().outcomes, ["level", "method"]).set_index(["level", "method"])
    assert table.value["easy", "majority"] == 1
    assert table.value["hard", "majority"] == 0
    assert table.n["easy", "single"] == 2


def test_arms_are_compared_with_one_sample_and_with_their_own_estimator():
    before = first()
    after = evaluation([["1", "1"], ["1", "1"], ["1", "1"], ["2", "1"]])
    arms = [after.outcomes.assign(method=f"trained on {name}") for name in ("synthesis", "gold")]
    frame = pd.concat([before.outcomes, *arms], ignore_index=True)
    gains = tables.compare(frame, {"trained on synthesis": "single", "trained on gold": "single"})
    assert gains.value.tolist() == pytest.approx([0.5, 0.5])
    left = tables.compare(frame, {"trained on synthesis": "synthesis"})
    assert left.value.tolist() == pytest.approx([0.375])
    assert left.p[0] == left.p_alone[0]  # a family of one
    assert tables.flat(gains, "{method}_difference")["trained_on_gold_difference"] == pytest.approx(0.5)
    assert "trained on synthesis" in words.findings(left, "its teacher")
    gain = comparison_metrics("heldout", before, after, ["single"])
    assert (gain["heldout_accuracy_before"], gain["heldout_accuracy_after"]) == (3 / 8, 7 / 8)
    assert gain["heldout_accuracy_difference"] == pytest.approx(0.5)


def test_scaling_uses_disjoint_subsamples_of_the_same_rollouts():
    groups = [group(0, "1", "1", "2", "2"), group(1, "2", "1", "1", "1")]
    frame = analysis.scaling(TASK, EXAMPLES[:2], groups, {"majority": voting.majority}, [4, 1, 2], most=2)
    by = frame.set_index(["method", "k", "example"]).value.sort_index()
    assert by["majority", 1].tolist() == [1, 0.5]
    assert by["majority", 2].tolist() == [0.5, 0.5]  # ties: the first seen
    assert by["majority", 4].tolist() == [1, 1]
    assert by["pass@k", 2].tolist() == pytest.approx([1 - 1 / 6, 1])
    table = tables.summary(frame, ["method", "k", "subsamples"]).set_index(["method", "k"])
    assert table.subsamples["majority", 2] == 2
    grown = analysis.growth(frame, middle=2)
    assert grown.step.tolist() == ["1 to 2", "2 to 4"]
    assert grown.value.tolist() == pytest.approx([-0.25, 0.5])
    assert (grown.p_alone <= grown.p).all()
    with pytest.raises(ValueError, match="growth needs two sizes"):
        analysis.growth(frame[frame.k == 2])
    with pytest.raises(ValueError, match="has 4"):
        analysis.scaling(TASK, EXAMPLES[:2], groups, {}, [8], 1)
    with pytest.raises(ValueError, match="at least one size"):
        analysis.scaling(TASK, EXAMPLES[:2], groups, {}, [], 1)


def test_new_ability_is_what_a_second_draw_does_not_also_find():
    never = [group(i, "2", "3") for i in range(4)]
    lucky = [group(i, "1" if i < 2 else "2", "2") for i in range(4)]
    found = analysis.newly_solved(TASK, EXAMPLES, never, lucky, lucky)
    assert (found["again"].value, found["after"].value, found["beyond"].value) == (0.5, 0.5, 0.0)
    assert analysis.newly_solved(TASK, EXAMPLES[:2], lucky[:2], never[:2], never[:2]) == {}
    said = words.finding(found["beyond"], "the trained policy", "a second draw")
    assert said.startswith("The trained policy is not told apart from a second draw: +0.000 [-0.490, 0.490], n = 4")
    phases = {"before": never, "after": lucky}
    frame = pd.concat([analysis.pass_outcomes(TASK, EXAMPLES, own, phase=phase) for phase, own in phases.items()])
    ends = tables.compare(frame, "before", "phase", ["k"])
    assert ends.value.tolist() == [0.25, 0.5]
    assert (ends.method == "pass@k").all()
    assert tables.summary(frame, ["phase", "k"]).set_index(["phase", "k"]).value["after", 2] == 0.5


def test_departures_and_agreement():
    e = first()
    apart = analysis.departures(e.references)
    assert apart.loc["majority", "synthesis"] == 0.75
    assert apart.loc["majority", "majority"] == 0
    bins = analysis.by_agreement(TASK, EXAMPLES, e.groups).set_index("method")
    assert bins.n.sum() == 4
    assert bins.value["0.75 to 1"] == 1


def test_readings_of_the_same_rollouts_are_paired_with_the_first():
    def fixed(*answers):
        return lambda groups: [Reference(a, a, "x") for a in answers]

    readers = {"a": fixed("1", "1", "2", "2"), "b, told": fixed("1", "1", "1", "2")}
    frame = analysis.readings(TASK, EXAMPLES, first().groups, readers)
    assert frame.groupby("method").value.mean().to_dict() == {"single": 3 / 8, "a": 0.5, "b, told": 0.75}
    found = tables.compare(frame, {"b, told": "a"})
    assert found.value.tolist() == [0.25]
    assert words.findings(found, "a").startswith("Against a, n = 4 questions, 1 seed: undecided: b, told (+0.250 [")
    assert tables.flat(found, "prompt_{method}_difference")["prompt_b_told_difference"] == 0.25
    assert tables.flat(found, "prompt_{method}", limits=False) == {"prompt_b_told": 0.25}


def test_figures_take_the_tables_and_name_their_axes():
    e = first()
    methods = analysis.method_table([e])
    figure = plots.intervals(methods, "accuracy", "t", paper={"majority": 0.81, "synthesis": (0.8, 0.9)})
    assert len(figure.axes[0].lines) > 3
    differences = plots.intervals(tables.compare(e.outcomes, "majority"), "minus majority", "t").axes[0]
    assert len(differences.lines) - len(plots.intervals(methods[1:]).axes[0].lines) == 1  # the line at zero
    line = pd.DataFrame({"k": [1, 2], "method": "a", "value": 0.5, "low": 0.4, "high": 0.6})
    levels = plots.levels(tables.summary(e.outcomes, ["level", "method"]), "t").axes[0]
    assert [label.get_text() for label in levels.get_xticklabels()] == ["easy\n(n = 2)", "hard\n(n = 2)"]
    quality = plots.quality_against_cost(methods.assign(gflops=1.0, seconds=1.0), "t")
    labels = ["generated tokens a question", "model GFLOP a question", "seconds a question"]
    assert [axis.get_xlabel() for axis in quality.axes] == labels
    trained, bought = plots.break_even(1e12, {"trained, single": 1e6, "majority": 1e7}, "FLOPs", "t").axes[0].lines
    assert (trained.get_ydata()[0], bought.get_ydata()[0]) == (1e12 + 1e6, 1e7)  # only training has a fixed cost
    (curve,) = plots.curves(line, "k", "group size", "t").axes
    assert curve.lines[0].get_xydata().tolist() == [[1, 0.5], [2, 0.5]]
    assert curve.get_xlabel() == "group size"
    assert plots.matrix(analysis.departures(e.references), "t").axes[0].texts[1].get_text() == "0.75"


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


def opened(notebook: str, given: dict) -> None:
    p = effective(notebook, given)
    if "steps" in p.values:
        GRPOSettings.of(p)
    preflight.require(p)


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1], ["0"], [0.5]])
def test_seeds_that_make_no_run_are_refused(given, seeds):
    with pytest.raises(ValueError, match="give at least one whole number"):
        opened("04_inference_time", given | {"seeds": seeds})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": [1, 64], "rollouts": 32, "estimators": ["majority"]}, "from 1 to rollouts=32"),
        ({"sizes": [8], "rollouts": 32, "estimators": ["majority"]}, "give two whole numbers"),
        ({"sizes": [1, 2], "rollouts": 32, "estimators": ["mutual_predictability"]}, "from 2 to"),
        ({"samples": 32, "split": "transductive", "task": "aime24"}, "no held-out questions"),
        ({"split": "transductive"}, "split='transductive': arithmetic keeps"),
        ({"data": "my.jsonl"}, "data='my.jsonl': arithmetic reads no data"),
        ({"steps": 2, "train_questions": 4, "prompts_per_step": 8, "prompts_per_micro_batch": 4}, "fewer than"),
        ({"steps": 2, "prompts_per_step": 6, "prompts_per_micro_batch": 4}, "whole groups"),
    ],
)
def test_parameters_that_cannot_work_are_refused_before_a_kernel(given, change, message):
    with pytest.raises(ValueError, match=message):
        opened("06_training_signals", given | change)


def test_a_paper_preset_that_does_not_fit_is_refused_before_anything_is_loaded(given, monkeypatch):
    monkeypatch.setattr(memory, "machine", lambda: (24.0, "cpu", 2))
    training = given | {"preset": "paper"} | dict.fromkeys(presets()["06_training_signals"]["paper"])
    with pytest.raises(ModelError, match=r"needs about \d+\.\d GB to train on"):
        opened("06_training_signals", training)


@pytest.mark.parametrize(
    ("notebook", "change", "message"),
    [
        ("04_inference_time", {"estimators": ["majorty"]}, "of single, majority, .*did you mean 'majority'"),
        ("04_inference_time", {"estimators": ["majority", "majority"]}, "each once"),
        ("04_inference_time", {"estimators": []}, "at least one"),
        ("08_compute", {"teacher": "nobody"}, "allowed is one of"),
        ("07_ablations", {"wordings": ["few_shot", "poem"]}, "poem"),
    ],
)
def test_names_that_cannot_be_used_are_refused(notebook, change, message):
    with pytest.raises(ParameterError, match=message):
        resolve(places.NOTEBOOKS / f"{notebook}.ipynb", change)


def test_what_became_of_each_question_is_told_by_how_often_it_is_right():
    """Never, half, three of four and always before; each fate once, and by the matrix."""
    rows = {"0": "2222", "1": "1122", "2": "1112", "3": "1111"}
    before = [group(i, *rows[str(i)]) for i in range(4)]
    after = [group(0, *"1222"), group(1, *"1112"), group(2, *"1222"), group(3, *"1111")]
    assert analysis.states(TASK, EXAMPLES, before).tolist() == analysis.STATES
    table = tables.summary(analysis.fates(TASK, EXAMPLES, before, after, "arm"), ["method", "fate"])
    assert table.fate.tolist() == analysis.FATES
    assert table.value.tolist() == [0.25] * 4
    assert table.n.tolist() == [4] * 4
    assert (table.low < 0.25).all()
    assert (table.high > 0.25).all()
    moved = analysis.transitions(TASK, EXAMPLES, before, after)
    assert moved.to_numpy().tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    lost = analysis.fates(TASK, EXAMPLES, before, [group(i, *"2222") for i in range(4)], "arm")
    assert lost.query("fate == 'corrupted'").value.tolist() == [0, 1, 1, 1]
    assert lost.query("fate == 'unchanged'").value.tolist() == [1, 0, 0, 0]


def test_the_lead_of_the_flip_rate_is_counted_in_steps():
    flips = [np.nan, 0.1, 0.1, 0.1, 0.5, 0.5, 0.5, 0.5]
    labels = [0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.4, 0.4]
    history = pd.DataFrame({"step": range(1, 9), "flip_rate": flips, "label_accuracy": labels})
    assert analysis.lead(history) == {"flip_rise": 5, "label_fall": 7, "lead": 2}
    assert analysis.lead(history.assign(label_accuracy=0.8)) == {"flip_rise": 5}
    assert analysis.lead(history.drop(columns="flip_rate")) == {"label_fall": 7}


def test_a_panel_that_lacks_an_arm_keeps_the_others_colours_and_the_legend_has_all():
    first = pd.DataFrame({"step": [1, 2], "agreement": [0.1, 0.2]})
    second = first.assign(label_accuracy=0.5)
    figure = plots.by_arm({"one": first, "two": second}, {k: k for k in ("label_accuracy", "agreement", "none")}, "t")
    of = [{line.get_label(): line.get_color() for line in axis.lines} for axis in figure.axes]
    assert [list(lines) for lines in of] == [["two"], ["one", "two"], []]
    assert of[0]["two"] == of[1]["two"] != of[1]["one"]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"one", "two"}
