"""Formulations are read as HiGHS reads them, or refused with a reason; and what solving them gives."""

from __future__ import annotations

import json
import math
import random
import re
import sys
from pathlib import Path
from typing import Any

import highspy
import pytest

from cat_lib.schema import Lost
from cat_lib.tasks import solver_worker, solvers
from cat_lib.tasks.formulate import LEVELS, worlds
from cat_lib.tasks.formulation import FormulationError, read
from cat_lib.tasks.solvers import MISSING, Outcome, equal, same_models, solve
from cat_lib.tasks.workers import Pool

LP = """maximize
 obj: 3 x + 2.5 y - z + 4
subject to
 flour: 2 x + y <= 10 \\ a comment
 -x + 3 * y >= -6
 both: x + y
  + z = 7
bounds
 1 <= x <= 4
 z free
 y >= 0.5
general
 x
end
"""
NLP: dict[str, Any] = {
    "sense": "min",
    "variables": {"x": {"low": 0.5, "high": 5}, "y": {"low": None, "high": 4}, "n": {"high": 3, "integer": True}},
    "objective": ["+", ["^", ["-", "x", 2], 2], ["exp", "y"], ["/", "n", 2], ["*", -1, ["log", "x"]]],
    "rows": [
        {"left": ["*", "x", ["-", "y"]], "sign": "<=", "right": 1},
        {"name": "sum", "left": {"x": 1, "n": 2}, "sign": ">=", "right": 3.5},
        {"left": ["sqrt", "x"], "sign": "<=", "right": 2},
    ],
}


def put(body: str, objective: str = "x", rest: str = "") -> str:
    return f"max\n obj: {objective}\nst\n c: {body}\n{rest}end\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (put("x <= 4", "x + 2 (x + y)"), r"line 2: '\+ 2 \(x \+ y\)' does not begin with a term"),
        (put("x/2 <= 4"), "line 4: 'x/2 ' does not begin"),
        (put("x.1 <= 4"), "line 4: 'x.1 ' does not begin"),
        (put("3 + x <= 4"), "line 4: left of a sign stand variables alone"),
        (put("3 <= 4"), "line 4: left of a sign stand variables alone"),
        (put("<= 4"), "line 4: '' does not begin"),
        (put("x + X <= 4"), "line 4: X differs from x by case alone"),
        (put("x <= 1e30"), "line 4: 1e30 is no number from 1e-09 to 1e"),
        (put("x <= inf"), "line 4: .* is no sum of variables"),
        (put("1e-12 x <= 4"), "line 4: 1e-12 is no number"),
        (put("x <= 1,000"), "line 4: .* is no sum"),
        (put("0x10 x <= 4"), "line 4: '0x10 x ' does not begin"),
        (put("x + x <= 4"), "line 4: x stands twice in one sum"),
        (put("x <= 4\n c: x <= 3"), "line 5: c can't be a name here"),
        (put("x <= 4\n min: x >= 3"), "line 5: min can't be a name here"),
        (put("x <= 4\nst\n x <= 3"), "line 5: 'st' stands twice"),
        (put("x <= 4\n 2 x"), "line 5: '2 x' is no sum"),
        (put("free <= 4"), "line 4: free is a word of the format"),
        (put("x <= 4", rest="bounds\n z <= 3\n"), "line 6: z stands in no row and not in the objective"),
        (put("x <= 4", rest="bounds\n x <= 3\n x <= 2\n"), "line 7: 2 can't be the high end of x"),
        (put("x <= 4", rest="bounds\n x <= 3\nbinary\n x\n"), "line 8: x has a type or bounds already"),
        (put("x <= 4", rest="binary\n x\nbounds\n x <= 3\n"), "line 6: x has a type or bounds already"),
        (put("x <= 4", rest="bounds\n x >= inf\n"), "line 6: inf can't be the low end of x"),
        (put("x <= 4", rest="bounds\n x >= 2 x <= 3\n"), "line 6: .* is no bound"),
        (put("x <= 4", rest="semi\n x\n"), "line 5: 'semi x' is no sum"),
        (put("x <= 4", "[ x ^ 2 ] / 2"), "line 2: .* does not begin"),
        (put("x <= 4").replace("end", "end\nmore"), "line 6: 'more' can't stand here"),
        (put("x <= 4").replace("end\n", ""), "end is missing"),
        ("st\n x <= 4\nmax\n x\nend", "line 1: 'st' stands twice, or not where it should"),
        ("max\n 3\nst\n x <= 4\nend", "line 2: the objective has no variable"),
        ("max\n x\nst\nend", "line 4: st is missing, or nothing stands under it"),
        ("max: x\nst\n x <= 4\nend", "line 1: 'max: x' can't stand here"),
        (put("\u0661 x <= 4"), "line 4: .* plain ASCII"),
        (put("x <= 4\x00"), "line 4: .* plain ASCII"),
        ("import os", "line 1: 'import os' can't stand here"),
        ("", "line 1: min is missing"),
        ("x" * 20_001, "it has 20,001 characters; at most 20,000"),
        ("max\n x\nst\n" + "x <= 1\n" * 1_001 + "end", "at most 1,000 rows"),
        ("max\n" + " + ".join(f"x{i}" for i in range(1_001)) + "\nst\nx1 <= 1\nend", "is one of over 1,000"),
    ],
)
def test_what_highs_would_misread_is_refused_with_line_and_reason(text, reason):
    with pytest.raises(FormulationError, match=reason):
        read(text)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"objective": ["eval", "x"]}, "objective is no operation: allowed are"),
        ({"objective": ["__import__", "os"]}, "objective is no operation"),
        ({"objective": ["^", "x", "y"]}, "has an exponent that is no number"),
        ({"objective": ["^", "x", 11]}, "has an exponent that is no number"),
        ({"objective": {"z": 1}}, "objective is text .*; allowed are x, y, n"),
        ({"objective": "z"}, "objective is text"),
        ({"objective": True}, "objective is true or false"),
        ({"objective": 1e-12}, "the smallest number but 0 is"),
        ({"objective": []}, "is no operation"),
        ({"objective": ["+"]}, "is no operation"),
        ({"more": 1}, "allowed are sense, objective, variables, rows"),
        ({"sense": "most"}, "sense is text .*; allowed are min, max"),
        ({"variables": {}}, "has no variable, or over 1,000"),
        (
            {"variables": {}, "objective": {"z": 1}, "rows": [{"left": {"z": 1}, "sign": "<=", "right": 1}]},
            "no variable",
        ),
        ({"variables": {f"x{i}": {} for i in range(1_001)}}, "has no variable, or over 1,000"),
        ({"variables": {"x": {}, "X": {}}}, "differs from another by case alone"),
        ({"variables": {"x y": {}}}, "is no name"),
        ({"variables": {"x": {"lower": 1}}}, "allowed are low, high, integer"),
        ({"variables": {"x": {"integer": 1}}}, "integer is a number"),
        ({"rows": [{"left": "x", "sign": "<", "right": 1}]}, "allowed are <=, >=, ="),
        ({"rows": [{"left": "x", "sign": "<=", "right": "y"}]}, "where a number is needed"),
    ],
)
def test_a_json_form_with_anything_else_in_it_is_refused(change, reason):
    with pytest.raises(FormulationError, match=reason):
        read(json.dumps(NLP | change))


def test_json_that_is_none_or_too_deep_is_refused():
    deep = '["-",' * 60 + '"x"' + "]" * 60
    for text in ("{", '{"sense": "min", "sense": "max"}', '{"sense": NaN}', "{" + "[" * 9_000, '{"\ud800": 1}'):
        with pytest.raises(FormulationError):
            read(text)
    with pytest.raises(FormulationError, match=r"is no operation: .*at most 50 in one another"):
        read(json.dumps(NLP | {"objective": json.loads(deep)}))


@pytest.mark.parametrize("piece", ["1", "x\n", "x +\n", "- ", "(", "a:", "1e", "x <= ", " \t", "<", "1*", "[", '"x",'])
def test_a_long_text_of_one_piece_is_refused_within_the_limit(piece):
    long = piece * (19_000 // len(piece))
    texts = [
        long,
        f"max\n{long}",
        f"max\n x\nst\n{long}",
        put(long),
        put("x <= 3", rest=f"bounds\n{long}\n"),
        "{" + long,
    ]
    texts += [put("x <= 3", rest=f"general\n{long}\n"), '{"objective": [' + long]
    assert {o.status for o in solve(texts) if isinstance(o, Outcome)} <= {"malformed", "optimal"}
    assert not any(isinstance(o, Lost) for o in solve(texts))


class HighsReader:
    """HiGHS's own reading of a text, by its file reader: the second reading."""

    def __init__(self, folder: Path) -> None:
        self.path, self.highs = folder / "m.lp", highspy.Highs()
        self.highs.silent()

    def read(self, text: str) -> dict[str, Any] | None:
        self.path.write_text(text)
        if self.highs.readModel(str(self.path)) != highspy.HighsStatus.kOk:
            return None
        lp = self.highs.getLp()
        types = lp.integrality_ or [highspy.HighsVarType.kContinuous] * lp.num_col_
        rows: list[dict[str, float]] = [{} for _ in range(lp.num_row_)]
        a = lp.a_matrix_
        assert a.format_ == highspy.MatrixFormat.kColwise
        for column, name in enumerate(lp.col_names_):
            for k in range(a.start_[column], a.start_[column + 1]):
                rows[a.index_[k]][name] = a.value_[k]
        low, high = list(lp.col_lower_), list(lp.col_upper_)
        return {
            "max": lp.sense_ == highspy.ObjSense.kMaximize,
            "offset": lp.offset_,
            "costs": dict(zip(lp.col_names_, lp.col_cost_, strict=True)),
            "variables": {
                name: (low[i], high[i], types[i] == highspy.HighsVarType.kInteger)
                for i, name in enumerate(lp.col_names_)
            },
            "rows": list(zip(rows, lp.row_lower_, lp.row_upper_, strict=True)),
        }

    def solve(self) -> tuple[str, float]:
        """Of the text read last; "either" where it can't say."""
        self.highs.setOptionValue("mip_rel_gap", 0.0)
        self.highs.run()
        return self.highs.getModelStatus().name[1:].lower(), self.highs.getInfo().objective_function_value


def ours(text: str) -> dict[str, Any]:
    """Our reading of a text in the same form. Raises FormulationError."""
    of = read(text)
    return {
        "max": of.maximize,
        "offset": of.objective.constant,
        "costs": {name: of.objective.terms.get(name, 0.0) for name in of.variables},
        "variables": {name: (v.low, v.high, v.integer) for name, v in of.variables.items()},
        "rows": [
            (
                {name: value for name, value in left.terms.items() if value},
                -math.inf if sign == "<=" else right,
                math.inf if sign == ">=" else right,
            )
            for left, sign, right in of.rows
        ],
    }


@pytest.fixture
def highs(tmp_path):
    return HighsReader(tmp_path)


def test_a_valid_text_is_read_as_highs_reads_it(highs):
    texts = [LP, put("x <= 4"), "Minimum x\nst c: x => 4\nEND", "max\nx\ns.t.\nx < 4\nbounds\nx = 3\nend"]
    texts += [w.formulation for level in LEVELS if level != "pumps" for w in worlds(level, "train", 6)]
    for text in texts:
        assert highs.read(text) == ours(text)


HOSTILE = [*"()/*^e-+<:.\\\n\t\r\x00\u00b2X", "[ x ^ 2 ] / 2", "1e30", ">=", "0x1", " free", "-inf", "nan", "1,5"]
HOSTILE += ["st", "end", "bounds", "binary", "semi", "sos", "\nbounds\n", " e 3 ", "- -", "3 3"]


def fuzzed(rng: random.Random, texts: list[str]) -> str:
    """A text with one to three changes, which may be faults: pieces lost, doubled, moved from another, or hostile."""
    text = rng.choice(texts)
    for _ in range(rng.randint(1, 3)):
        by = rng.choice(["", "\n", " "])
        pieces, others = ((list(t) if not by else t.split(by)) for t in (text, rng.choice(texts)))
        at = rng.randrange(len(pieces))
        new = rng.choice([[], [pieces[at]] * 2, [rng.choice(others)], [rng.choice(others), pieces[at]]])
        if rng.random() < 0.4:
            new = [rng.choice(HOSTILE), pieces[at]]
        text = by.join([*pieces[:at], *new, *pieces[at + 1 :]]) or "x"
    return text.swapcase() if rng.random() < 0.05 else text


@pytest.mark.parametrize("n", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_fuzzed_text_is_refused_or_read_and_solved_as_highs_does(highs, n):
    rng = random.Random(n)
    texts = [LP, put("2 x + y <= 4", "x + 3 y", "bounds\n y >= -2\nbinary\n x\n")]
    texts += [w.formulation for level in LEVELS if level != "pumps" for w in worlds(level, "train", 3)]
    made = [fuzzed(rng, texts) for _ in range(n)]
    accepted, expected = [], []
    for text in made:
        try:
            reading = ours(text)
        except FormulationError:
            continue
        assert highs.read(text) == reading, text
        accepted.append(text)
        expected.append(highs.solve())
    assert n * 0.1 < len(accepted) < n * 0.9
    for text, (status, value), outcome in zip(accepted, expected, solve(accepted), strict=True):
        assert isinstance(outcome, Outcome), text
        either = {"unbounded", "infeasible"} if status == "unboundedorinfeasible" else {status}
        assert outcome.status in either, text
        assert status != "optimal" or outcome.objective == pytest.approx(value, rel=1e-6, abs=1e-6), text
    refused = solve([text for text in made if text not in set(accepted)][:100])
    assert all(isinstance(o, Outcome) and o.status == "malformed" and o.why for o in refused)


def worth(tree: Any, values: dict[str, float]) -> float:
    """An expression of the JSON form at a point, by Python's arithmetic: the second reading of it."""
    if isinstance(tree, dict):
        return sum(value * values[name] for name, value in tree.items())
    if not isinstance(tree, list):
        return values[tree] if isinstance(tree, str) else tree
    of = [worth(part, values) for part in tree[1:]]
    two = {"-": lambda a, b=None: -a if b is None else a - b, "/": lambda a, b: a / b, "^": lambda a, b: a**b}
    one = {"sqrt": math.sqrt, "exp": math.exp, "log": math.log, "+": lambda *a: sum(a), "*": lambda *a: math.prod(a)}
    return (two | one)[tree[0]](*of)


def test_a_tree_is_solved_as_it_reads():
    texts = [json.dumps(NLP), *(w.formulation for w in worlds("pumps", "train", 6))]
    rng = random.Random(0)
    grid = [{"x": rng.uniform(0.5, 4), "y": rng.uniform(-2, 4), "n": float(rng.randint(0, 3))} for _ in range(20_000)]
    for text, outcome in zip(texts, solve(texts), strict=True):
        of = json.loads(text)
        assert isinstance(outcome, Outcome)
        assert outcome.status == "optimal"
        assert outcome.nonlinear
        assert worth(of["objective"], outcome.values) == pytest.approx(outcome.objective, rel=1e-4)
        for row in of["rows"]:
            left = worth(row["left"], outcome.values)
            assert left <= row["right"] + 1e-4 if row["sign"] == "<=" else left >= row["right"] - 1e-4
        if "pumps" not in text:  # no point of many is better
            allowed = [
                p for p in grid if all((worth(r["left"], p) <= r["right"]) == (r["sign"] == "<=") for r in of["rows"])
            ]
            assert len(allowed) > 100
            assert min(worth(of["objective"], p) for p in allowed) > outcome.objective - 1e-6


def squares(rng: random.Random) -> dict[str, Any]:
    """A convex program: weighted squares of sums of three variables, and linear rows that one point meets."""
    names, point = "xyz", {name: rng.uniform(-3, 3) for name in "xyz"}
    sums = [{name: rng.uniform(-2, 2) for name in names} for _ in range(rng.randint(1, 4))]
    parts = [["*", rng.uniform(0.1, 3), ["^", ["+", *(["*", v, n] for n, v in s.items()), 1.5], 2]] for s in sums]
    rows = [{"left": {n: rng.uniform(-2, 2) for n in names}, "sign": "<="} for _ in range(3)]
    rows = [row | {"right": worth(row["left"], point) + rng.random()} for row in rows]
    tree = ["+", *parts, ["/", ["*", "x", 3], 2], ["-", "y"], 4.0]
    sense = rng.choice(["min", "max"])
    known = {n: {"low": -5.0, "high": 5.0} for n in names}
    return {"sense": sense, "objective": tree if sense == "min" else ["-", tree], "variables": known, "rows": rows}


def test_highs_solves_what_is_quadratic_and_convex_as_scip_does(monkeypatch):
    highspy.Highs.resetGlobalScheduler(True)  # another test's has more threads, which a worker's never has
    rng = random.Random(0)
    for _ in range(150):
        text = json.dumps(of := squares(rng))
        by_scip = solver_worker._by_scip(read(text))
        with monkeypatch.context() as without:
            without.delattr(solver_worker, "pyscipopt")
            found = json.loads(solver_worker.reply(text))
        assert found["status"] == by_scip["status"] == "optimal"
        assert found["nonlinear"]
        assert found["objective"] == pytest.approx(by_scip["objective"], rel=1e-4, abs=1e-4)
        assert worth(of["objective"], found["values"]) == pytest.approx(found["objective"], rel=1e-6, abs=1e-6)


def test_what_is_not_convex_or_has_integers_is_left_to_scip(monkeypatch):
    known = {"x": {"low": 0, "high": 4}, "y": {"low": 0, "high": 4}}
    of = {"sense": "max", "objective": ["*", "x", "y"], "variables": known, "rows": []}
    whole = of | {"sense": "min", "objective": ["^", ["-", "x", 1.4], 2], "variables": {"x": {"integer": True}}}
    flat = of | {"objective": ["+", ["*", 2, "x"], ["-", ["*", "x", "y"], ["*", "y", "x"]]]}
    assert [o.objective for o in solve([json.dumps(each) for each in (of, whole, flat)])] == pytest.approx(
        [16, 0.16, 8], abs=1e-4
    )
    monkeypatch.delattr(solver_worker, "pyscipopt")
    said = [json.loads(solver_worker.reply(json.dumps(each)))["status"] for each in (of, whole, flat)]
    assert said == [MISSING, MISSING, "optimal"]


@pytest.mark.parametrize("n", [100, pytest.param(1_000, marks=pytest.mark.slow)])
def test_a_fuzzed_json_form_is_refused_or_solved_as_it_reads(n):
    rng, pieces, texts = random.Random(n), re.findall(r'"[^"]*"|[0-9.]+|.', json.dumps(NLP)), list[str]()
    numbers = [i for i, piece in enumerate(pieces) if piece[0].isdigit()]
    others = ['"x"', '"n"', '"+"', '"^"', '"sin"', '"exp"', "null", "true", "NaN", "[", "}", ","]
    for _ in range(n):
        of = pieces.copy()
        of[rng.choice(numbers)] = rng.choice(["0", "1", "-3", "2.5", "40", "1e400"])
        if rng.random() < 0.5:
            of[rng.randrange(len(of))] = rng.choice(others)
        texts.append("".join(of))
    found = solve(texts)
    assert sum(isinstance(o, Lost) for o in found) <= n / 20
    optimal = [(json.loads(t), o) for t, o in zip(texts, found, strict=True) if getattr(o, "status", "") == "optimal"]
    assert n / 20 < len(optimal) < n * 0.9
    for of, outcome in optimal:
        assert worth(of["objective"], outcome.values) == pytest.approx(outcome.objective, rel=1e-3, abs=1e-3)
        for row in of["rows"]:
            left, right = worth(row["left"], outcome.values), row["right"]
            assert left <= right + 1e-3 if row["sign"] == "<=" else left >= right - 1e-3


def test_each_outcome_has_its_own_word():
    texts = [
        "max\nx\nst\ny <= 3\nend",
        put("x <= 3\n x >= 4"),
        "hello",
        put("x + y <= 3", "x + y"),
        put("x <= 3", "2 x + 1"),
    ]
    texts += [put("y - x <= 3", "x", "general\n x\n y\n"), "max\nx\nst\nx <= 1\nbounds\nx >= 3\nx <= 2\nend"]
    unbounded, infeasible, malformed, several, one, whole, crossed = solve(texts)
    assert [o.answer for o in (unbounded, infeasible, malformed, several, one)] == [
        "unbounded",
        "infeasible",
        None,
        "3",
        "7",
    ]
    assert (whole.answer, crossed.answer) == ("unbounded", "infeasible")
    assert (several.unique, one.unique, dict(one.values)) == (False, True, {"x": 3.0})
    assert malformed.why.startswith("line 1: 'hello' can't stand here")
    nothing = {"variables": {"x": {"low": None}}, "objective": ["exp", "x"], "rows": []}
    trees = [
        {"sense": "max"},
        {"sense": "min", "objective": ["/", 1, 0]},
        {"sense": "min", "rows": [{"left": 3, "sign": "<=", "right": 2}]},
        {"sense": "min", "rows": [{"left": ["*", "x", "x"], "sign": "<=", "right": -2}]},
    ]
    said = solve([json.dumps(nothing | tree) for tree in trees])
    assert [o.status for o in said] == ["unbounded", "malformed", "malformed", "infeasible"]


def limited(monkeypatch, before: str, seconds: float) -> None:
    """Workers of this test's own."""
    code = f"{before}; from cat_lib.tasks import solver_worker as w; w.serve(w.reply, '', {seconds}, w.MEMORY, w.REPLY)"
    pool = Pool([sys.executable, "-c", code], "solve formulations", solvers._LIMIT, solvers._LIMIT)
    monkeypatch.setattr(solvers, "_pool", pool)


def test_what_takes_too_long_is_lost_and_the_rest_is_not(monkeypatch):
    limited(monkeypatch, "pass", 0.3)
    rng = random.Random(0)  # market split: few rows, and no solver is done soon
    rows = [[rng.randint(0, 99) for _ in range(50)] for _ in range(6)]
    split = "\n".join(" + ".join(f"{a} x{i}" for i, a in enumerate(row)) + f" = {sum(row) // 2}" for row in rows)
    hard = f"min\nx0\nst\n{split}\nbinary\n{' '.join(f'x{i}' for i in range(50))}\nend"
    lost, found = solve([hard, put("x <= 3")])
    assert isinstance(lost, Lost)
    assert lost.why == "the solver's limit: over 4 s or 4 GiB"
    assert found.answer == "3"
    assert same_models([(hard, hard)]) == [None]


def test_a_missing_solver_is_named_with_what_installs_it(monkeypatch):
    limited(monkeypatch, "import sys; sys.modules['pyscipopt'] = None", 4)
    lost, found = solve([json.dumps(NLP), put("x <= 3")])
    pin = next(
        line for line in (Path(__file__).parents[2] / "requirements-dev.txt").read_text().split() if "scip" in line
    )
    assert lost == Lost(f"SCIP solves what is not linear, and is not installed: pip install {pin}")
    assert found.answer == "3"
    with pytest.raises(RuntimeError, match="pumps: SCIP solves what is not linear"):
        worlds.__wrapped__("pumps", "train", 1)


def test_models_are_the_same_if_no_prices_tell_them_apart():
    right = put("2 x + 3 y <= 12\n d: x + y <= 5", "3 x + 4 y")
    renamed = right.replace("x +", "pies +").replace("y", "cakes").replace("max", "max")
    cases = {
        right: True,
        renamed: True,
        right.replace("2 x + 3 y <= 12", "4 x + 6 y <= 24"): True,
        right.replace("3 x + 4 y", "4 y + 3 x"): True,
        put("2 x + 3 y <= 12", "3 x + 4 y"): False,  # another value
        right.replace("x + y <= 5", "x <= 3"): False,  # the same value, by luck
        right.replace("3 x + 4 y", "3 x + 4 y + 0 z"): True,  # by name, what is more is auxiliary
        put("2 x + 3 y <= 12\n d: x + y <= 5\n z - 3 x - 4 y = 0", "z"): True,
        put("2 x + 3 y <= 12\n d: x + y <= 5\n z - 3 x - 4 y = 0", "z").replace("y", "c"): False,
        put("2 x + 3 y - z <= 12\n d: x + y <= 5", "3 x + 4 y - 2 z"): False,  # what is short can be bought, at a price
        right.replace("3 x + 4 y", "3 x").replace(" + y <= 5", " <= 5"): False,  # less than all
        "no model": False,
    }
    assert solve([right])[0].answer == solve([right.replace("x + y <= 5", "x <= 3")])[0].answer == "17"
    assert same_models([(other, right) for other in cases]) == list(cases.values())
    tree = json.dumps(NLP)
    assert same_models([(tree, tree), (tree, tree.replace("3.5", "4.5"))]) == [True, False]
    loose = {"sense": "max", "variables": {"x": {}, "y": {}}, "objective": ["+", ["*", 3, "x"], ["*", 4, "y"]]}
    loose["rows"] = [
        {"left": {"x": 2, "y": 3}, "sign": "<=", "right": 12.1},
        {"left": {"x": 1, "y": 1}, "sign": "<=", "right": 5},
    ]
    assert same_models([(json.dumps(loose), right)]) == [False]  # 17.1 is within 2 %, and the right model is linear


def test_answers_are_equal_to_two_decimals_or_two_percent():
    assert [equal(a, "12.5") for a in ("12.504", "12.51", "12.5", "infeasible", None)] == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert [equal(a, "~12.5") for a in ("12.7", "~12.7", "12.8")] == [True, True, False]
    assert equal("12.7", "12.5") is False
    assert equal("infeasible", "infeasible")
    assert not equal("3", "unbounded")
