"""Word problems that are right by construction, and the rewards of models that are written for them."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cat_lib.method.estimators import voting
from cat_lib.method.estimators.objectives import objectives
from cat_lib.method.rewards.solved import gold_solution, gold_staged, objective
from cat_lib.prompts import fill
from cat_lib.schema import Completion, Lost
from cat_lib.tasks import formulate, group_of, load_task, solver_worker
from cat_lib.tasks.formulate import LADDER, LEVELS, FormulateTask, agree, worlds
from cat_lib.tasks.formulation import read
from cat_lib.tasks.rows import DataError
from cat_lib.tasks.solvers import near, same_models, solve

TASK = FormulateTask(each=6)
RIGHT = "max\n obj: 3 x + 4 y\nst\n a: 2 x + 3 y <= 12\n b: x + y <= 5\n"  # 17 at x = 3, y = 2
LUCKY = RIGHT.replace("x + y <= 5", "x <= 3")
WRONG = RIGHT.replace("<= 12", "<= 6")
INFEASIBLE = RIGHT.replace("<= 5", "<= -5")


def rollout(text: str, finish: str = "stop") -> Completion:
    return Completion(text, (), finish)


def group(*texts: str | Completion):
    return group_of(TASK, "q", "?", [rollout(t) if isinstance(t, str) else t for t in texts])


@pytest.mark.parametrize("each", [6, pytest.param(28, marks=pytest.mark.slow)])  # of 12 levels and 3 sides: 1,008
def test_words_world_model_and_both_solvers_agree(each):
    for level in LEVELS:
        for side in formulate.SIDES:
            for world in worlds(level, side, each):
                of = read(world.formulation)
                assert agree(world.numbers, world.words, world.formulation)
                assert all(
                    name.rpartition("_")[2].split("_")[0] in world.words.lower()
                    for name in of.variables
                    if name != "mixed"
                )
                assert of.nonlinear == (level == "pumps")
                if not of.nonlinear:
                    found = solver_worker._by_scip(of)
                    assert near(found["objective"], world.outcome.objective)
                    assert not world.outcome.unique or found["values"] == pytest.approx(world.outcome.values, abs=1e-4)


def test_sides_share_no_numbers_and_no_phrasing_and_are_always_the_same():
    for level in LEVELS:
        numbers = [{w.numbers for w in worlds(level, side, 8)} for side in formulate.SIDES]
        assert [len(n) for n in numbers] == [8, 8, 8]
        assert len(set().union(*numbers)) == 24
        family = formulate._DATA["families"][LEVELS[level]["family"]]
        assert not {*family["train"]} & {*family["heldout"]}
        assert worlds.__wrapped__(level, "train", 3) == worlds(level, "train", 8)[:3]
    assert all(not {*pool["train"]} & {*pool["heldout"]} for pool in formulate._DATA["names"].values())
    assert not [n for pool in formulate._DATA["names"].values() for side in pool.values() for n in side if "end" in n]
    sizes = {len(read(w.formulation).variables) for w in worlds("products", "train", 40)}
    assert {4, 12} <= sizes <= set(range(4, 13))


@pytest.mark.parametrize(
    ("words", "model", "right"),
    [
        (
            "Each earns 1,500 and takes 2.5 kg; 35% of 90 are there.",
            "max\n 1500 x\nst\n 2.5 x <= 35\n x <= 90\nend",
            True,
        ),
        (
            "Each earns 1,500 and takes 2.5 kg; 35% of 80 are there.",
            "max\n 1500 x\nst\n 2.5 x <= 35\n x <= 90\nend",
            False,
        ),
        ("Each earns 1,500 and takes 2.5 kg of 90.", "max\n 1500 x\nst\n 2.5 x <= 35\n x <= 90\nend", False),
        (
            "Each earns 1,500 and takes 2.5 kg; 35% of 90 are there.",
            "max\n 1500 x\nst\n 2.5 x <= 35\n x <= 91\nend",
            False,
        ),
        ("Each earns 1,500 and takes 2.5 kg; 35% of 90 are there.", "max\n 1500 x\nst\n 2.5 x <= 35\nend", False),
    ],
)
def test_the_check_finds_a_number_that_words_or_model_lack(words, model, right):
    assert agree((1500, 2.5, 35, 90), words, model) is right


def test_a_faulty_template_is_named(monkeypatch):
    monkeypatch.setitem(formulate._DATA["families"]["limits"], "train", ["There is room for {{ total }}."])
    with pytest.raises(RuntimeError, match=r"(?s)total_and_bound: There is room for .* differ"):
        worlds.__wrapped__("total_and_bound", "train", 1)
    with pytest.raises(ValueError, match="level 'three_products': allowed are one_product, "):
        FormulateTask(("three_products",)).examples("train", 1, 0)


def test_the_task_asks_with_worked_problems_and_reads_what_is_written():
    assert load_task("formulate").name == "formulate"
    examples, golds = TASK.examples("train", None, 0), TASK.gold_models
    assert {e.level for e in examples} == {*LADDER}
    assert len(examples) == 24
    assert {e.id for e in TASK.rows} == {*golds}
    assert not {e.question for e in examples} & {e.question for e in TASK.examples("heldout", None, 0)}
    assert TASK.examples("train", 5, 1) != TASK.examples("train", 5, 0) == examples[:5]
    for e in examples:
        assert e.prompt.count("Problem: ") == 4
        assert e.prompt.endswith(f"\nend\n\nProblem: {e.question}\n")
        text = golds[e.id].partition("end")[0]
        assert TASK.correct(TASK.extract(rollout(text), e.question), e.gold)
        assert TASK.extract(rollout(text, "length"), e.question) is None
        assert golds[e.id] not in e.prompt
    pumps = FormulateTask(("pumps",), each=2).examples("heldout", 1, 0)[0]
    assert "~" in pumps.gold
    assert pumps.prompt.count("}\nend\n") == 3


SIRL = """{"en_question": "Each ring earns 3 ... most?", "en_answer": "1,500"}
{"en_question": "Which is best?", "en_answer": "No Best Solution"}
{"en_question": "How many?", "en_answer": [1, 2]}
{"en_question": "How far?", "en_answer": 12.5, "difficulty": "Hard", "id": 3}
"""


def test_rows_of_other_peoples_files_are_read_and_those_without_one_answer_counted(tmp_path, capsys):
    (file := tmp_path / "NL4OPT.jsonl").write_text(SIRL)
    with pytest.raises(
        DataError, match=r"2 of 4 rows can't be used: .*:2: en_answer is text .*No Best.*:3: en_answer is a list"
    ):
        load_task("formulate", str(file))
    task = load_task("formulate", str(file), skip_bad_rows=True)
    assert "NL4OPT.jsonl: at least 26 % of the original labels are wrong" in capsys.readouterr().out
    assert [(e.gold, e.level) for e in task.rows] == [("1500.000000", ""), ("12.500000", "Hard")]
    assert (task.skipped["skipped"], task.skipped["read"]) == (2, 2)
    asked = task.examples("heldout", None, 0)
    assert "Each ring earns 3 ... most?" in next(e.prompt[0]["content"] for e in asked if e.gold == "1500.000000")
    fenced = "Let x be rings.\n```lp\nmax\n 3 x\nst\n x <= 500\nend\n```"
    assert task.correct(task.extract(rollout(fenced), ""), "1500.000000")
    with pytest.raises(ValueError, match="the train split"):
        task.examples("train", 1, 0)


def test_a_csv_is_read_with_its_lines_and_quotes(tmp_path):
    (file := tmp_path / "mamo.csv").write_bytes(
        '\ufeffproblem_class,question,answer\r\nLP,"Two\nlines, and so",17\r\n'.encode()
    )
    (example,) = load_task("formulate", str(file)).rows
    assert (example.question, example.gold, example.level) == ("Two\nlines, and so", "17.000000", "LP")
    file.write_bytes(b'question,answer\n"open,17\n')
    with pytest.raises(DataError, match="no CSV in UTF-8"):
        load_task("formulate", str(file))
    file.write_bytes(b"question,answer\nHow many?\n")
    with pytest.raises(DataError, match="row 1: answer is null or missing, where one number"):
        load_task("formulate", str(file))


def test_a_csv_of_an_address_is_read_as_one_and_what_is_known_of_its_labels_goes_with_it(tmp_path, monkeypatch, capfd):
    (tmp_path / "IndustryOR.csv").write_text("question,answer\nHow many?,17\n")
    monkeypatch.setenv("CAT_LIB_CACHE", str(tmp_path / "cache"))
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        task = load_task("formulate", f"http://127.0.0.1:{server.server_port}/IndustryOR.csv")
        server.shutdown()
    assert [e.gold for e in task.rows] == ["17.000000"]
    assert "IndustryOR.csv: at least 54 % of the original labels are wrong" in task.about
    assert task.about in capfd.readouterr().out
    assert not FormulateTask().about


def test_the_chat_prompt_shows_models_that_can_be_read():
    shown = fill("formulate_chat", problem="p")
    lp, json_ = shown.split("```")[1].strip(), shown[shown.index('{"sense') : shown.index(". End with")]
    assert [o.answer for o in solve([lp, json_])] == ["71.6", "~6"]


def test_objective_rewards_the_value_of_the_majority_and_not_what_is_infeasible():
    groups = [group(RIGHT, LUCKY, WRONG, "no model", INFEASIBLE, rollout(RIGHT, "length"))]
    groups.append(group(INFEASIBLE, INFEASIBLE, RIGHT))
    assert groups[0].answers == ("17", "17", "9", None, "infeasible", None)
    references = objectives(groups)
    assert [r and (r.answer, r.text, r.estimator) for r in references] == [("17", RIGHT, "objectives"), None]
    assert objective(groups, references) == [[1, 1, 0, 0, 0, 0], [None] * 3]
    near = RIGHT.replace("3 x", "3.001 x")  # 17.003
    assert objective([close := group(WRONG, near, RIGHT)], objectives([close])) == [[0, 1, 1]]
    lost = replace(groups[0], answers=(None, *groups[0].answers[1:]), lost=frozenset({0}))
    assert objective([lost], voting.gold({"q": "17"})([lost])) == [[None, 1, 0, 0, 0, 0]]


def test_gold_solution_asks_for_the_decision_variables_where_there_is_one_solution():
    one, several = f"{RIGHT}end", "max\n x + y\nst\n x + y <= 5\nend"
    other = "max\n a\nst\n a <= 17\n"  # the right value, of another model
    assert gold_solution({"q": one})([group(RIGHT, LUCKY, other, WRONG, "no")], [None]) == [[1, 1, 0, 0, 0]]
    assert gold_solution({"q": several})([group("max\n a\nst\n a <= 5\n", WRONG)], [None]) == [[1, 0]]


def test_an_auxiliary_variable_is_not_asked_for_and_one_more_is_allowed():
    for level in LEVELS:
        (world,) = worlds(level, "train", 1)
        left_out = set(world.outcome.values) - set(world.outcome.named(world.words).values)
        assert left_out == ({"mixed"} if level == "blending" else set())
    world = next(w for w in worlds("blending", "train", 8) if w.outcome.unique and len(w.outcome.values) == 4)
    amount, goods = int(world.outcome.values["mixed"]), [n for n in world.outcome.values if n != "mixed"]
    total, *_ = (line for line in world.formulation.splitlines() if line.startswith(" mix: "))
    want = re.search(r"- ([0-9]+) mixed >= 0", world.formulation)
    without = world.formulation.replace(f"{total}\n", "").replace("amount: mixed", f"amount: {' + '.join(goods)}")
    without = without.replace(want[0], f">= {int(want[1]) * amount}").removesuffix("end")
    more = world.formulation.removesuffix("end").replace("st\n", f"st\n {goods[0]} + {goods[1]} - both = 0\n")
    wrong = without.replace(f">= {int(want[1]) * amount}", f">= {int(want[1]) * amount + 900}")
    (example,) = (e for e in FormulateTask(("blending",)).rows if e.question == world.words)
    asked = group_of(TASK, "q", example.question, [rollout(t) for t in (without, more, wrong)])
    assert "mixed" not in without
    assert gold_solution({"q": world.formulation})([asked], [None]) == [[1, 1, 0]]
    assert gold_staged({"q": world.formulation}, 2)([asked], [None]) == [[3, 3, 1]]


def test_the_staged_rule_is_sirls():
    rollouts = [RIGHT, "max\n a + b\nst\n a <= 3\n b = 14\n", WRONG, INFEASIBLE, "no model", rollout(RIGHT, "length")]
    first, second = (gold_staged({"q": f"{RIGHT}end"}, stage)([group(*rollouts)], [None]) for stage in (1, 2))
    assert first == [[3, 3, 2, 1, 0.5, 0]]
    assert second == [[3, 2.5, 1, 0, 0, 0]]  # x = 3 is hit, y = 2 is not
    with pytest.raises(ValueError, match="stage=3: allowed is 1"):
        gold_staged({}, 3)


def test_a_lucky_value_is_no_right_model():
    assert [same_models([(f"{text}end", f"{RIGHT}end")]) for text in (RIGHT, LUCKY, WRONG)] == [
        [True],
        [False],
        [False],
    ]


def test_no_label_reaches_the_majority():
    """Wrong golds on every example change no reward."""
    examples = TASK.examples("train", 4, 0)
    lies = [replace(e, gold="123456") for e in examples]
    texts = [RIGHT, WRONG, RIGHT, TASK.gold_models[examples[0].id].removesuffix("end")]
    rewards = []
    for asked in (examples, lies):
        groups = [group_of(TASK, e.id, e.question, [rollout(t) for t in texts], e.prompt) for e in asked]
        rewards.append(objective(groups, objectives(groups)))
    assert rewards[0] == rewards[1] == [[1, 0, 1, 0]] * 4


def test_the_synthesis_prompt_shows_models_that_are_right_and_attempts_in_a_line():
    shown = fill(f"synthesis_{TASK.synthesis_prompt}", question="Two\nlines", rollouts=[RIGHT, "x"])
    worked = [f"{part.partition('end')[0]}end" for part in shown.split("reconciling the attempts:\n")[1:]]
    assert [o.answer for o in solve(worked)] == ["46.5", "168.6667"]
    assert f"Problem: Two lines\nAttempts:\n1. {' '.join(RIGHT.split())}\n2. x\nBest model" in shown
    assert "Problem" not in fill(f"synthesis_{TASK.synthesis_prompt}", question="", rollouts=["x"])


def test_a_limit_is_unscorable(monkeypatch):
    monkeypatch.setattr(formulate.solvers, "solve", lambda texts: [Lost("slow")] * len(texts))
    found = group(RIGHT)
    assert (found.answers, found.lost) == ((None,), frozenset({0}))
