"""Mathematical answers, read and compared, and the tasks that ask for them."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from cat_lib import answers
from cat_lib.answers import boxed, canonical, equal
from cat_lib.schema import Completion, Message
from cat_lib.tasks.healthbench import DataError
from cat_lib.tasks.math import INSTRUCTION, MathTask, load_math

# each line: ways to write one answer; no two lines are equal
SAME = [
    [r"\frac{1}{2}", "0.5", "1/2", r"\dfrac12", ".5", r"\tfrac{1}{2}", "2/4", r"\frac{ 1 }{ 2 }", "0.50"],
    ["142", "142.0", "+142", r"$142$", r"\(142\)", "142.", r"142^\circ", r"142\text{ cm}", "142 cm", r"\$142", "142 °"],
    ["1000", "1,000", r"1{,}000", r"1\,000", r"1,\!000", "1 000", r"10^3", "1e3", r"1 \times 10^{3}", "x = 1000"],
    ["-3/4", r"-\frac{3}{4}", r"\frac{-3}{4}", "-0.75", r"−\frac34"],
    ["1/3", r"0.\overline{3}", r"\frac{2}{6}"],
    ["0.333333", "333333/1000000"],
    ["50", r"50\%", "50%", r"50\text{ percent}"],
    ["5/2", r"2\frac{1}{2}", "2.5"],
    [r"2\sqrt{2}", r"\sqrt{8}", r"\sqrt8", r"\frac{4}{\sqrt{2}}", r"2 \cdot \sqrt 2"],
    [r"1+\sqrt{2}", r"\sqrt{3+2\sqrt{2}}", r"\frac{1}{\sqrt2-1}", r"\sqrt 2 + 1"],
    ["x+1", "1+x", "X + 1", r"\frac{x^2-1}{x-1}", "y = x+1", "f(x) = 1 + x"],
    ["x^2-1", "(x-1)(x+1)", "-1 + x^2"],
    [r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)", r"(3, \frac{1}{2}\pi)", r"(r,\theta) = (3, \pi/2)"],
    ["(1,2)", "( 1, 2 )", r"1 < x < 2", r"\left(1, \frac42\right)", r"x \in (1,2)"],
    ["(2,1)"],
    ["(1,2]", "1 < x \\le 2"],
    ["1, 2", r"\{1,2\}", "2,1", r"1 \text{ and } 2", r"x=1 \text{ or } x=2"],
    [r"(-\infty,2]\cup[4,\infty)", r"x \le 2 \text{ or } x \ge 4"],
    [r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}"],
    ["6-5i", "-5i + 6", r"\frac{12-10i}{2}"],
    ["2x + 3y = 6", "4x+6y-12=0", "6 = 3y + 2x"],
    ["x=1, y=2", "y=2, x=1"],
    ["x=2, y=1"],
    ["x > y", "y < x"],
    [r"x + y \ge 3", r"3 \le y + x"],
    ["a = b = 3/7"],
    [r"\begin{pmatrix} 1 \\ 1/2 \end{pmatrix}", r"\begin{bmatrix} 1 \\ 0.5 \end{bmatrix}"],
    [r"\cot x", r"\frac{\cos x}{\sin x}", r"\frac{1}{\tan x}"],
    [r"3\ln 2", r"\ln 8"],
    ["6\\pi", "6π", "6 pi", r"6\pi\text{ square inches}"],
    ["52_8", "52_{8}"],
    ["52"],
    ["3t"],
    ["3", r"\log_2 8", r"\sqrt{9}", "3.0"],
    [r"\text{east}", "East", r"\textbf{EAST}"],
    ["seat"],
    [r"\text{May}"],
    [r"\text{Amy}"],
    [r"\text{no solution}", "No  solution"],
    [r"\text{(B)}", "B", "(B)", r"\mathrm{b}"],
    ["11:30"],
    ["3:2", "1.5"],
]
FLAT = [(text, line) for line, texts in enumerate(SAME) for text in texts]
HOSTILE = [
    "9^{9^{9^9}}",
    r"\sqrt[9^9]{9^{9^9}}",
    "{" * 10_000 + "x" + "}" * 10_000,
    "{" * 400 + "x" + "}" * 400,
    "1e999999999",
    "9" * 100_000,
    "((9!)!)!",
    r"\binom{10^9}{5*10^8}",
]


def test_equal_answers_have_one_canonical_form_and_others_another():
    forms = canonical([text for text, _ in FLAT])
    lines: dict[str | None, set[int]] = {}
    for (_, line), form in zip(FLAT, forms, strict=True):
        lines.setdefault(form, set()).add(line)
    assert None not in lines
    split = {t: f for (t, line), f in zip(FLAT, forms, strict=True) if f != canonical(SAME[line][:1])[0]}
    assert not split
    assert not [found for found in lines.values() if len(found) > 1]
    assert canonical([str(f) for f in forms]) == forms  # a form is its own


def test_canonical_forms_are_what_the_documentation_says():
    texts = ["1,234.50", r"\sqrt{8}", r"\text{ East }", "", "  ", r"\frac{1}{0}", "x +"]
    assert canonical(texts) == ["2469/2", r"2 \sqrt{2}", "east", None, None, r"\frac{1}{0}", "x +"]


def test_equality_keeps_apart_what_math_verify_mixes_up():
    apart = [("(-2,1)", "-2, 1"), ("-2, 1", "(-2,1)"), ("0", "5x-7y+4=0"), ("x=1, y=2", "1, 2")]
    assert equal(apart) == [False] * 4
    assert equal([("x=1, x=2", "2, 1"), ("(1,2)", "1<x<2"), ("1<x<2", "(1,2)"), ("x>3", "3<x")]) == [True] * 4


def test_equality_follows_math_verify_with_decimals_to_six_places():
    pairs = [("142.0", "142"), ("0.333333", "1/3"), ("1/3", "0.333334"), (r"\sqrt{4}", "2"), ("52_8", "52")]
    assert equal(pairs) == [True, True, False, True, False]
    assert equal([("5", "x=5"), (r"\frac{\sqrt3}{3}", r"1/\sqrt{3}")]) == [True] * 2
    assert equal([("", ""), ("$$", "$$"), ("east", "seat")]) == [False] * 3


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed {5} and again \boxed{ 5 }", "5"),
        (r"\boxed{5} or \boxed{6}", None),
        (r"put it in \boxed{}: \boxed{7}", "7"),
        (r"\boxed{\left\{ 1, 2 \right.}", r"\left\{ 1, 2 \right."),
        (r"\boxed{\boxed{8}}", "8"),
        (r"\boxed{9", None),
        ("the answer is 5", None),
        (r"\fbox{5}", None),
        (r"\boxed{" + "1" * 1_001 + "}", None),
        (r"\boxed{" + "1" * 1_000 + "}", "1" * 1_000),
        (r"\boxed{1}" + " " * 100_000 + r"\boxed{2}", "2"),
    ],
)
def test_exactly_one_box_is_read(text, content):
    assert boxed(text) == content


def test_reading_boxes_takes_linear_time():
    start = time.monotonic()
    for text in (r"\boxed{" * 100_000, r"\boxed{}" * 12_000, "{" * 100_000, r"\boxed" + " " * 99_000):
        assert boxed(text) is None
    assert time.monotonic() - start < 2


def test_hostile_answers_cost_their_limit_and_leave_the_others_right():
    canonical([r"\sqrt{3}"])
    before, start = answers.lost(), time.monotonic()
    mixed = [text for hostile in HOSTILE for text in (hostile, rf"\sqrt{{{4 * len(hostile)}}} + x - x")]
    forms = canonical(mixed)
    assert time.monotonic() - start < len(HOSTILE) * (answers.LIMIT + 2)
    assert forms[1::2] == canonical([rf"\sqrt{{{4 * len(h)}}}" for h in HOSTILE])
    missing = [text for text, form in zip(mixed, forms, strict=True) if form is None]
    assert set(missing) <= set(HOSTILE)
    assert HOSTILE[0] in missing
    assert answers.lost() - before == len(missing)
    assert equal([("8^{8^{8^8}}", "1"), (r"\sqrt{16}", "4")]) == [None, True]


def test_what_is_too_large_is_lost_whether_or_not_it_is_too_slow():
    before = answers.lost()
    assert canonical([r"9^{9^5}", r"9^{9^9}", "(x+1)^{99}"]) == [None, None, None]
    assert answers.lost() - before == 3
    assert canonical([r"9^{9^5}", r"9^{3}"]) == [None, "729"]
    assert answers.lost() - before == 4  # a loss is not remembered


def test_threads_share_the_workers():
    found: dict[int, list[str | None]] = {}

    def ask(number: int) -> None:
        found[number] = canonical([rf"\sqrt{{{(number + 2) ** 2 * k}}}" for k in (2, 3, 5)])

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [rf"{n + 2} \sqrt{{{k}}}" for k in (2, 3, 5)] for n in range(6)}


def test_a_worker_that_was_killed_is_replaced():
    canonical([r"\sqrt{5}"])
    for worker in answers._workers.values():
        worker.kill()
        worker.wait()
    assert canonical([r"\sqrt{12}", r"\sqrt{20}"]) == [r"2 \sqrt{3}", r"2 \sqrt{5}"]


def write(folder: Path, *rows: object, name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return str(path)


def said(text: str, finish: str = "stop") -> Completion:
    return Completion(text, (), finish)  # type: ignore[arg-type]


ROW = {"problem": "What is 1 + 1?", "answer": "2", "unique_id": "a"}


def test_golds_are_accepted_against_themselves_and_rejected_against_the_next(tmp_path):
    golds = [line[0] for line in SAME]
    rows = [{"problem": f"Question {i}?", "answer": gold, "unique_id": str(i)} for i, gold in enumerate(golds)]
    task = load_math("math500", write(tmp_path, *rows))
    assert len(golds) >= 40
    given = [task.extract(said(rf"Thus \boxed{{{gold}}}."), "q") for gold in golds]
    forms = [e.gold for e in task.rows]
    assert all(task.correct(answer, form) for answer, form in zip(given, forms, strict=True))
    wrong = [(a, g) for a, g in zip(given, forms[1:] + forms[:1], strict=True) if task.correct(a, g)]
    assert not wrong


def test_a_cut_or_unclear_completion_has_no_answer():
    task = MathTask("math500", [])
    assert task.extract(said(r"\boxed{\frac{6}{3}}"), "q") == "2"
    assert task.extract(said(r"\boxed{2}", finish="length"), "q") is None
    assert task.extract(said(r"\boxed{2} or \boxed{3}"), "q") is None
    assert task.extract(said("The answer is 2."), "q") is None
    assert task.extract(said(r"\boxed{7^{7^{7^7}}}"), "q") is None
    assert not task.correct(None, "2")


def test_rows_of_the_known_formats_are_read(tmp_path):
    rows = [
        ROW | {"level": 3, "subject": "Number Theory"},
        {"Problem": "B?", "Answer": 142.0, "ID": "2024-I-1", "Solution": "long"},
        {"question": "C?", "answer": "She has 3 * 6 = <<3*6=18>>18.\n#### 1,018"},
        {"prompt": [{"role": "user", "content": c} for c in ("Hi", "D?")], "solution": r"\boxed{x+1}", "id": 0},
        {"problem": "E?", "expected_answer": "5", "url": "u", "level": "Level 5", "type": "Algebra", "answer": None},
        {"problem": "F?", "answer": "6", "difficulty": "Hard", "id": 7},
    ]
    task = load_math("amc", write(tmp_path, *rows))
    assert [e.question for e in task.rows] == [ROW["problem"], "B?", "C?", "D?", "E?", "F?"]
    assert [e.gold for e in task.rows] == ["2", "142", "1018", "x + 1", "5", "6"]
    assert [e.level for e in task.rows] == ["level 3", "amc", "amc", "amc", "level 5", "hard"]
    assert task.rows[0].tags == ("subject:number theory",)
    assert [e.id for e in task.rows if e.question != "C?"] == ["a", "2024-I-1", "0", "u", "7"]
    assert len(task.rows[2].id) == 12  # of a hash of the question
    assert task.rows[1].prompt == [Message(role="user", content=f"B?\n\n{INSTRUCTION}")]
    whole = load_math("amc", write(tmp_path, {"version": 1, "data": rows}, name="rows.json"))
    assert whole.rows == task.rows == load_math("amc", write(tmp_path, rows, name="list.json")).rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((ROW, "{not json"), r"rows\.jsonl:2: no JSON"),
        ((ROW, "[1]"), r"rows\.jsonl:2: a list, where an object"),
        ((ROW, ROW), r"rows\.jsonl:2: id 'a' stands at .*rows\.jsonl:1 already"),
        (({"problem": "A?", "answer": "1"},) * 2, r"rows\.jsonl:2: id '[0-9a-f]{12}' stands at .*:1 already"),
        ((ROW | {"problem": " "},), r"rows\.jsonl:1: no question \(problem is empty"),
        ((ROW | {"answer": ""},), r"rows\.jsonl:1: no answer \(answer is empty"),
        (({"frage": "A?", "answer": "1"},), r"no question \(looked for problem, .*; the row has frage, answer\)"),
        (({"problem": "A?", "antwort": "1"},), r"no answer \(looked for answer, .*; the row has problem, antwort\)"),
        ((ROW | {"answer": True},), "an answer is text or a number"),
        ((ROW | {"answer": ["1"]},), "an answer is text or a number"),
        ((ROW | {"answer": "so it is ####"},), "nothing after ####"),
        (({"problem": "A?", "solution": "It is 5."},), r"no one \\boxed"),
        ((ROW | {"answer": "6^{6^{6^6}}"},), "can't be read in time"),
        ((ROW | {"problem": [{"role": "assistant", "content": "Hi"}]},), "text or a list of messages"),
        (("",), "no rows"),
    ],
)
def test_a_bad_row_is_refused_with_file_and_line(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        load_math("math500", write(tmp_path, *rows))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("[\n{]", r"rows\.json:2: no JSON"),
        ('{"a": [], "b": []}', "2 lists of rows"),
        ("5", "0 lists of rows"),
        ("[5]", "row 1: a int"),
    ],
)
def test_a_bad_json_file_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        load_math("math500", write(tmp_path, text, name="rows.json"))


def test_data_that_cannot_be_had_says_what_to_give_instead():
    with pytest.raises(DataError, match=r"no file none\.jsonl; give a local"):
        load_math("math500", "none.jsonl")
    with pytest.raises(ValueError, match="allowed is math500, aime24, aime25, amc, gsm8k"):
        load_math("math")


def test_splits_are_everything_or_disjoint_halves(tmp_path):
    rows = [{"problem": f"What is {i // 2}?", "answer": str(i), "id": i} for i in range(60)]  # each question twice
    path = write(tmp_path, *rows)
    task = load_math("aime24", path)
    train, heldout = (task.examples(s, None, 0) for s in ("train", "heldout"))
    assert len(train) == 60
    assert train == heldout  # transductive
    assert [e.id for e in task.examples("train", 5, 1)] != [e.id for e in train[:5]]
    assert task.examples("train", 5, 0) == train[:5]
    task = load_math("aime24", path, transductive=False)
    train, heldout = ({e.question for e in task.examples(s, None, 3)} for s in ("train", "heldout"))
    assert len(train | heldout) == 30
    assert len(train) * len(heldout) > 0
    assert not train & heldout
    turned = load_math("aime24", write(tmp_path, *rows[::-1]), transductive=False)
    assert turned.examples("heldout", 3, 0) == task.examples("heldout", 3, 0)  # whatever the file's order
    with pytest.raises(ValueError, match="ask for 1 to"):
        task.examples("train", 61, 0)
    with pytest.raises(ValueError, match="allowed are train, heldout"):
        task.examples("test", 1, 0)
