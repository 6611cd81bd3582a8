"""Mathematical answers, read and compared, and the tasks that ask for them."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from cat_lib.measuring.evaluation import Evaluation
from cat_lib.method.estimators.synthesis import synthesis
from cat_lib.method.estimators.voting import first, majority
from cat_lib.method.rewards.verifiable import verifiable
from cat_lib.method.signals import signals
from cat_lib.schema import Completion, Lost, Message, Reference
from cat_lib.tasks import answers, group_of, load_task
from cat_lib.tasks.answer_text import quantity
from cat_lib.tasks.answers import boxes, equal, read
from cat_lib.tasks.math import INSTRUCTION, MathTask, load_math
from cat_lib.tasks.rows import DataError

# each line: ways to write one answer; no two lines are equal
SAME = [
    [r"\frac{1}{2}", "0.5", "1/2", r"\dfrac12", ".5", r"\tfrac{1}{2}", "2/4", r"\frac{ 1 }{ 2 }", "0.50"],
    ["142", "142.0", "+142", r"$142$", r"\(142\)", "142.", r"142^\circ", r"142\text{ cm}", "142 cm", r"\$142", "142 °"],
    ["1000", "1,000", r"1{,}000", r"1\,000", r"1,\!000", "1 000", r"10^3", "1e3", r"1 \times 10^{3}", "x = 1000"],
    ["-3/4", r"-\frac{3}{4}", r"\frac{-3}{4}", "-0.75", r"−\frac34"],
    ["1/3", r"0.\overline{3}", r"\frac{2}{6}", "0.333333", "333333/1000000", "0.33333333333"],
    ["0.33333", "33333/100000"],
    ["0.333334"],
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
    # thousands, mixed numbers, signs
    [
        "12345678",
        r"12,\! 345,\! 678",
        r"12,\!345,\!678",
        r"12{,}345{,}678",
        "12 345 678",
        r"12,\,345,\,678",
        "12,\u2009345,\u2009678",
    ],
    ["7005", r"7,\! 005", "7,005", r"\$7,\!005", r"7,\!005\text{ m}", "7{,} 005"],
    [r"\{0, 222\}", "0, 222", "222, 0"],
    [r"\{0, 22\}", "0,22", "22,0"],
    ["(0,222)", "(0, 222)"],
    ["0.222", "111/500", "0,222", r"0,222\text{ m}"],
    ["23/5", "4 3/5", r"4\frac35", r"4 \frac{3}{5}", r"4\ 3/5", "4⅗", "4.6", "x = 4 3/5"],
    ["-23/5", "-4 3/5", r"-4\frac{3}{5}", "−4⅗"],
    ["4000/3", "1 333 1/3", "1,333 1/3", r"1333\frac{1}{3}"],
    ["5x/2", r"2\frac12 x", "2.5x", r"\frac{5x}{2}", "2½x"],
    ["4 7/5"],
    ["3 1/0"],
    [
        "45",
        r"45\ ",
        r"45\,",
        "45.",
        r"45\textnormal{ apples}",
        r"45\text{ apples}",
        "45 apples",
        r"\textsf{45}",
        "€45",
        "45 per hour",
    ],
    [
        "37",
        r"37\%",
        r"37\%\text{ off}",
        "37 % profit",
        r"37 \% \text{ of the class}",
        "37 pct",
        "37 percent",
        r"37\text{ percent}",
    ],
    ["9:05 am", r"9:05\text{ a.m.}", "9:05 AM", r"9:05 \text{am}", r"9:05\, \mathrm{a.m.}"],
    ["9:05 pm", r"9:05\text{ p.m.}"],
    ["9:05"],
    # decimals
    ["2/7", "0.285714", "0.2857143", r"0.\overline{285714}"],
    ["0.285715"],
    ["0.28571"],
    ["13/12", "1.083333", "1.0833333333", "1 1/12"],
    [r"\sqrt{11}", "3.316625", "3.3166248", r"\sqrt{44}/2"],
    [r"\frac{\pi}{3}", "1.047198", "1.0471975512", "π/3", "pi/3"],
    ["1.0472"],
    [r"\frac{\sqrt{5}}{7}", "0.31943828", "√5/7"],
    ["1/64", "0.015625"],
    ["0.0000003", r"3 \times 10^{-7}", "3e-7"],
    ["0.0000004"],
    [r"6.02 \times 10^{-23}"],
    [r"6.62 \times 10^{-34}"],
    [r"\frac{1}{2^{88}}"],
    [r"\frac{1}{2^{89}}"],
    [r"3 \cdot 10^{-8}"],
    # left sides
    [
        "61",
        "PQ = 61",
        r"\angle PQR = 61^\circ",
        r"m\angle P = 61",
        r"\text{Area} = 61",
        "[PQRS] = 61",
        r"P(X > 1) = 61",
        r"|PQ| = 61",
        r"\overline{PQ} = 61",
        "PQ = RS = 61",
        "a_3 = 61",
        r"\triangle PQR = 61",
        "60 + 1 = 61",
        "x = 60+1 = 61",
    ],
    [
        "5 - 4t",
        "g^{-1}(t) = 5 - 4t",
        "g^{-1}(t) = -4t+5",
        "-4t+5",
        "g'(t) = 5-4t",
        "y' = 5-4t",
        r"\frac{dy}{dt} = 5 - 4t",
    ],
    ["5:7", r"S_{ABC} : S = 5:7", "a:b = 5:7", r"\frac{AB}{CD} = 5/7", "AB/CD = 5:7", "5/7"],
    ["2:5:7", "a:b:c = 2:5:7", "4:10:14"],
    ["2:7:5"],
    ["KL = MN"],
    ["KL=3, MN=8"],
    ["x + z = 61"],
    ["xy = 6", "2yx = 12"],
    [r"\sqrt{10}", r"\sqrt10", "√10", "3.162278"],
    ["A and B", r"\text{A and B}", "A, B"],
    # lines and curves
    ["y = 4x - 9", "4x - y = 9", "8x - 2y - 18 = 0", "4x-9", r"y - 3 = 4(x-3)"],
    [r"y = \frac{x^2}{6} - 1", r"x^2 = 6y + 6", r"\frac16 x^2 - 1"],
    [r"\frac{x^2}{5} + \frac{y^2}{2} = 1", "2x^2 + 5y^2 = 10"],
    ["z = 2x + 3y", "2x + 3y - z = 0"],
    # matrices
    [
        r"\begin{pmatrix} 2 \\ 3 \end{pmatrix}",
        r"\frac12\begin{pmatrix}4\\6\end{pmatrix}",
        r"2\begin{bmatrix}1\\1.5\end{bmatrix}",
        r"\begin{pmatrix}1\\1\end{pmatrix}+\begin{pmatrix}1\\2\end{pmatrix}",
        r"\begin{pmatrix}2&0\\0&3\end{pmatrix}\begin{pmatrix}1\\1\end{pmatrix}",
        r"v = \begin{pmatrix}2\\3\end{pmatrix}",
    ],
    [r"\begin{pmatrix} 2 & 3 \end{pmatrix}"],
    [r"\begin{pmatrix}1&2\\0&1\end{pmatrix}^2", r"\begin{pmatrix}1&4\\0&1\end{pmatrix}"],
    [r"\begin{pmatrix}1\\2\end{pmatrix}+t\begin{pmatrix}3\\4\end{pmatrix}", r"\begin{pmatrix}3t+1\\2+4t\end{pmatrix}"],
    # signs of Unicode, and plain source
    ["x^3 - 2x^2", "x³ − 2x²", "x**3 - 2*x**2", "x^2(x-2)", "x²·(x−2)"],
    ["a_1 + a_2", "a₁ + a₂", "a_2+a_1"],
    [r"x \ge -4", "x ≥ −4", "x >= -4", r"[-4, \infty)", "[−4, ∞)", "[-4, oo)"],
    [r"(-\infty, -2) \cup (2, \infty)", "(−∞, −2) ∪ (2, ∞)"],
    [r"\frac{3}{8}", "⅜", "0.375"],
    [r"3 \pm \sqrt{7}", "3 ± √7", r"3 + \sqrt7, 3 - \sqrt7"],
    [r"\sqrt{x+3}", "√(x+3)", "sqrt(x+3)", r"\sqrt(x + 3)"],
    [r"\sqrt[3]{10}", "∛10", "∛(10)"],
    [r"4\cos\left(\frac{\pi t}{3}\right) - 2", "4*cos(pi*t/3)-2", r"4 cos(pi t/3) - 2", "4cos(πt/3) − 2"],
    [r"\frac{\ln x}{2}", "ln(x)/2", r"\frac12 \ln x"],
    [r"e^{2x}", "exp(2*x)", "e^(2x)", "e**(2*x)"],
    [r"\arctan(2)", "arctan(2)", "atan(2)", r"\tan^{-1}(2)"],
    [r"2\theta + 1", "2θ+1", "2*theta + 1"],
    [r"\sin x", "sin x", "sin(x)"],
    [r"\text{Alpha}", "alpha", "α"],
    ["Beta Centauri"],
    ["5 dollars and 25 cents", r"5\text{ dollars and }25\text{ cents}"],
    ["(x-2)(x+5) = 0"],
    ["z = 3 or z = 8", r"z = 3 \text{ or } z = 8", "3, 8", r"\{8,3\}"],
    ["0 < g(x) < 4", "(0,4)", "0 < x < 4"],
    ["1 + 3i", "3i+1"],
    [r"\emptyset", "∅"],
    [r"\mathbb{R}", "ℝ", r"(-\infty,\infty)", r"x \in \mathbb{R}"],
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
    forms = read([text for text, _ in FLAT])
    lines: dict[str | None, set[int]] = {}
    for (_, line), form in zip(FLAT, forms, strict=True):
        lines.setdefault(form, set()).add(line)
    assert all(isinstance(form, str) for form in forms)
    split = {t: f for (t, line), f in zip(FLAT, forms, strict=True) if f != read(SAME[line][:1])[0]}
    assert not split
    assert not [found for found in lines.values() if len(found) > 1]
    assert read([str(f) for f in forms]) == forms  # a form is its own


def test_canonical_forms_are_what_the_documentation_says():
    texts = ["1,234.50", r"\sqrt{8}", r"\text{ East }", "", "  ", r"\frac{1}{0}", "x +"]
    assert read(texts) == ["2469/2", r"2 \sqrt{2}", "east", None, None, r"\frac{1}{0}", "x +"]


def test_evaluation_reward_and_vote_see_one_equality():
    task, lines = MathTask("math500", []), [line for line in SAME if len(line) > 1]
    assert len(lines) > 70
    groups = [
        group_of(
            task, str(i), "q", [said(rf"So \boxed{{{text}}}") for text in [*line[1:], SAME[SAME.index(line) - 1][0]]]
        )
        for i, line in enumerate(lines)
    ]
    golds = [form or "" for form in read([line[0] for line in lines])]
    expected = [[1.0] * (len(line) - 1) + [0.0] for line in lines]
    references = [Reference("", gold, "gold") for gold in golds]
    assert verifiable(groups, references) == expected
    right = [[float(task.correct(a, gold)) for a in group.answers] for group, gold in zip(groups, golds, strict=True)]
    assert right == expected
    votes = zip(majority(groups), groups, golds, strict=True)
    assert all(vote.answer == gold for vote, group, gold in votes if len(group.answers) > 2)


def test_equality_keeps_apart_what_math_verify_mixes_up():
    apart = [("(-2,1)", "-2, 1"), ("-2, 1", "(-2,1)"), ("0", "5x-7y+4=0"), ("x=1, y=2", "1, 2")]
    assert equal(apart) == [False] * 4
    assert equal([("x=1, x=2", "2, 1"), ("(1,2)", "1<x<2"), ("1<x<2", "(1,2)"), ("x>3", "3<x")]) == [True] * 4


def test_a_small_number_is_not_nothing_and_a_decimal_is_not_what_it_does_not_round():
    apart = [("9.2e-30", "1.1e-22"), ("4 \\cdot 10^{-8}", "0"), ("0.0000004", "0.0000005"), ("1/2^{97}", "1/2^{96}")]
    apart += [("0.333333", "0.333334"), ("2/3", "0.666666"), ("2/3", "0.66667"), ("1/2", "0.500001"), ("1", "0.999999")]
    apart += [
        (r"\sqrt{2}", "1.4142"),
        (r"\pi", "3.14159"),
        (r"\pi", "22/7"),
        (r"\pi", "355/113"),
        ("0.123456", "0.1234561"),
    ]
    assert equal(apart) == [False] * len(apart)


def test_what_is_not_mathematics_keeps_its_text_and_no_letters_are_shuffled():
    apart = [
        ("11/10 4/9", "11/126"),
        ("4 7/5", "27/5"),
        ("3 1/0", "3"),
        ("foo(x) + 5", "oof(x) + 5"),
        ("9:05 am", "9:05 pm"),
    ]
    apart += [
        ("KL=3, MN=8", "3, 8"),
        ("x + z = 61", "61"),
        ("0,222", "222"),
        (r"\frac{dy}{dx} = 2x", "0"),
        ("2:5:7", "2:7:5"),
    ]
    assert equal(apart) == [False] * len(apart)
    assert read(["The answer is unknown + 5", "4 7/5"]) == ["the answer is unknown + 5", "4 7/5"]


def test_an_answer_around_a_box_or_signs_is_its_content():
    assert read([r"\boxed{\frac{6}{4}}", r"$\boxed{3}$ or so", "$1.5$", r"\(1.5\)"])[0::2] == ["3/2", "3/2"]
    assert read([r"$\boxed{7}$", r"  \boxed{7}."]) == ["7", "7"]


def test_equality_is_that_of_forms():
    pairs = [("142.0", "142"), ("0.333333", "1/3"), ("1/3", "0.333334"), (r"\sqrt{4}", "2"), ("52_8", "52")]
    assert equal(pairs) == [True, True, False, True, False]
    assert equal([("5", "x=5"), (r"\frac{\sqrt3}{3}", r"1/\sqrt{3}")]) == [True] * 2
    assert equal([("", ""), ("$$", "$$"), ("east", "seat")]) == [False] * 3


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        (r"so \boxed{\frac{1}{2}}.", [r"\frac{1}{2}"]),
        (r"\boxed {5} and again \boxed{ 5 }", ["5", "5"]),
        (r"\boxed{5} or \boxed{6}", ["5", "6"]),
        (r"put it in \boxed{}: \boxed{7}", ["7"]),
        (r"\boxed{\left\{ 1, 2 \right.}", [r"\left\{ 1, 2 \right."]),
        (r"\boxed{\boxed{8}}", ["8"]),
        (r"\boxed{8} and \boxed{9", []),
        ("the answer is 5", []),
        (r"\fbox{5}", []),
        (r"\boxed{" + "1" * 1_001 + "}", []),
        (r"\boxed{" + "1" * 1_000 + "}", ["1" * 1_000]),
        (r"\boxed{1}" + " " * 100_000 + r"\boxed{2}", ["2"]),
    ],
)
def test_boxes_are_read_in_order_or_none_if_one_is_broken(text, contents):
    assert boxes(text) == contents


def test_reading_boxes_takes_linear_time():
    start = time.monotonic()
    for text in (r"\boxed{" * 100_000, r"\boxed{}" * 12_000, "{" * 100_000, r"\boxed" + " " * 99_000):
        assert boxes(text) == []
    assert time.monotonic() - start < 2


def test_hostile_answers_cost_their_limit_and_leave_the_others_right():
    read([r"\sqrt{3}"])
    start = time.monotonic()
    mixed = [text for hostile in HOSTILE for text in (hostile, rf"\sqrt{{{4 * len(hostile)}}} + x - x")]
    forms = answers.read(mixed)
    assert time.monotonic() - start < len(HOSTILE) * (answers.LIMIT + 2)
    assert forms[1::2] == read([rf"\sqrt{{{4 * len(h)}}}" for h in HOSTILE])
    missing = [text for text, form in zip(mixed, forms, strict=True) if isinstance(form, Lost)]
    assert set(missing) <= set(HOSTILE)
    assert HOSTILE[0] in missing
    assert None not in forms
    assert equal([("8^{8^{8^8}}", "1"), (r"\sqrt{16}", "4")]) == [None, True]


def test_what_is_too_large_is_lost_whether_or_not_it_is_too_slow():
    first = answers.read([r"9^{9^5}", r"9^{9^9}", "(x+1)^{99}"])
    assert [isinstance(form, Lost) for form in first] == [True] * 3
    again = answers.read([r"9^{9^5}", r"9^{3}"])
    assert (isinstance(again[0], Lost), again[1]) == (True, "729")  # each time it is asked for


def test_threads_share_the_workers():
    found: dict[int, list[str | None]] = {}

    def ask(number: int) -> None:
        found[number] = read([rf"\sqrt{{{(number + 2) ** 2 * k}}}" for k in (2, 3, 5)])

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [rf"{n + 2} \sqrt{{{k}}}" for k in (2, 3, 5)] for n in range(6)}


def test_a_worker_that_was_killed_is_replaced():
    read([r"\sqrt{5}"])
    for worker in answers._pool.workers.values():
        worker.kill()
        worker.wait()
    assert read([r"\sqrt{12}", r"\sqrt{20}"]) == [r"2 \sqrt{3}", r"2 \sqrt{5}"]


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
    assert task.extract(said(r"\boxed{\frac12} = \boxed{0.5}, \boxed{2/4}"), "q") == "1/2"
    assert task.extract(said(" ".join(rf"\boxed{{{k}/{2 * k}}}" for k in range(1, 9))), "q") == "1/2"
    assert task.extract(said(" ".join(rf"\boxed{{{k}/{2 * k}}}" for k in range(1, 10))), "q") is None  # too many
    assert task.extract(said("The answer is 2."), "q") is None
    assert isinstance(task.extract(said(r"\boxed{7^{7^{7^7}}}"), "q"), Lost)
    assert not task.correct(None, "2")


def test_a_lost_answer_has_no_reward_and_is_counted():
    task, hostile = MathTask("math500", []), r"\boxed{8^{8^{8^8}}}"
    texts = [
        r"\boxed{6}",
        hostile,
        "It is six.",
        r"\boxed{7}",
        rf"\boxed{{6}}, no: {hostile}",
        r"\boxed{\frac{1}{999!}}",
    ]
    group = group_of(task, "1", "q", [said(text) for text in texts])
    assert group.answers == ("6", None, None, "7", None, None)
    assert group.lost == {1, 4, 5}
    rewards = verifiable([group], [Reference("", "6", "gold")])
    assert rewards == [[1.0, None, 0.0, 0.0, None, None]]
    known = signals([group], [Reference("", "6", "gold")], rewards)
    assert (known["answer_lost"], known["no_answer"], known["unscorable"]) == (3 / 6, 1 / 6, 3 / 6)
    assert first([group], 2, start=1)[0].lost == {0}
    assert Evaluation([group], {}, {}).answer_lost == 3 / 6
    assert not task.correct(group.answers[1], "6")


class Writer:
    """An anchor that writes one text."""

    context = 10_000

    def __init__(self, text, finish="stop"):
        self.written = said(text, finish)

    def encode(self, prompt):
        return [0]

    def generate(self, prompts, n, sampling):
        return [[self.written] for _ in prompts]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"Attempts say \boxed{7} and \boxed{\frac{3}{9}}. Final answer: \boxed{1/3}", "1/3"),
        (r"\boxed{5} is wrong, and \boxed{7} is, so \boxed{5}", "5"),
        (r"All of them say \boxed{4}.", "4"),
        (r"Not \boxed{4}; put it in \boxed{}", "4"),
        (r"First \boxed{4}, then \boxed{5", None),
        ("None is right.", None),
    ],
)
def test_a_synthesis_that_quotes_boxes_answers_in_its_last(text, answer):
    task = MathTask("math500", [])
    group = group_of(task, "1", "q", [said(r"\boxed{7}"), said(r"\boxed{5}")])
    (reference,) = synthesis(Writer(text), task)([group])
    assert (reference.answer, reference.text) == (answer, text)
    (cut,) = synthesis(Writer(text, "length"), task)([group])
    assert cut.answer is None


def test_a_synthesis_whose_answer_is_lost_has_none():
    task = MathTask("math500", [])
    group = group_of(task, "1", "q", [said(r"\boxed{7}")])
    (reference,) = synthesis(Writer(r"\boxed{7^{7^{7^7}}}"), task, "reasoning")([group])
    assert reference.answer is None
    assert verifiable([group], [reference]) == [[None]]


def test_bad_rows_are_named_together_or_skipped_and_counted(tmp_path, capsys):
    good = [{"problem": f"{i}?", "answer": f"{i}/7", "id": i} for i in range(40)]
    bad = [
        {"problem": "P?", "answer": r"\frac{7}{1998!}", "id": "p"},
        {"problem": "Q?", "answer": "7^{7^{7^7}}", "id": "q"},
        {"problem": "R?", "answer": "5", "id": "r", "difficulty": [3]},
        {"problem": "S?", "answer": "5", "id": 3},
        "{",
        '{"problem": "T?", "answer": NaN, "id": "t"}',
        {"problem": "U?", "reward_model": {"ground_truth": "5"}},
        {"problem": "V?", "answer": "$$", "id": "v"},
    ]
    path = write(tmp_path, *good[:20], *bad, *good[20:])
    with pytest.raises(DataError, match=r"8 of 48 rows can't be used: .*; and 3 more \(skip_bad_rows=True") as caught:
        load_math("math500", path)
    assert "\n" not in str(caught.value)
    assert [e.id for e in load_task("math500", path, skip_bad_rows=True).rows] == [str(i) for i in range(40)]
    assert "skipped: 8 of 48 rows" in capsys.readouterr().out
    reasons = {
        0: "its exact form has over 1,000 characters",
        1: "can't be read in time",
        2: "difficulty is a list; a level is text or a number",
        3: "id '3' stands at",
        4: "no JSON",
        5: "answer is nan",
        6: r"no answer \(looked for answer, .*; the row has problem, reward_model\)",
        7: "nothing is left without its signs",
    }
    for i, reason in reasons.items():
        with pytest.raises(DataError, match=rf"1 of 6 rows can't be used: .*rows\.jsonl:6: .*{reason}"):
            load_math("math500", write(tmp_path, *good[:5], bad[i]))


def test_numbers_that_are_none_are_refused_by_row_and_key_and_a_bom_is_no_text(tmp_path):
    a, b, c = ({"problem": f"{name}?", "answer": name} for name in "ABC")
    rows = json.dumps([a | {"level": float("inf")}, b | {"answer": 5.5}, c]).replace("5.5", "1e999")
    with pytest.raises(DataError, match=r"row 1: level is inf, .*row 2: answer is inf"):
        load_math("math500", write(tmp_path, rows, name="rows.json"))
    assert [e.gold for e in load_math("math500", str(tmp_path / "rows.json"), skip_bad_rows=True).rows] == ["c"]
    for name, text in {"bom.jsonl": json.dumps(ROW), "bom.json": json.dumps([ROW])}.items():
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert load_math("math500", str(tmp_path / name)).rows[0].gold == "2"


def test_rows_of_the_hub_are_read_as_strictly_as_those_of_files(monkeypatch):
    rows = [{"problem": "A?", "answer": 5, "id": 1}, {"problem": "B?", "answer": float("nan"), "id": 2}]
    monkeypatch.setattr("datasets.load_dataset", lambda *_: {"train": rows})
    with pytest.raises(DataError, match=r"1 of 2 rows can't be used: me/mine, row 2: answer is nan, where a finite"):
        load_math("math500", "me/mine")
    assert [(e.id, e.gold, e.level) for e in load_math("math500", "me/mine", skip_bad_rows=True).rows] == [
        ("1", "5", "math500")
    ]


def test_questions_of_chats_are_text_parts_or_refused(tmp_path):
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "user", "content": [{"type": "text", "text": "What is 2 + 3?"}]},
    ]
    assert load_math("amc", write(tmp_path, {"prompt": turns, "answer": "5"})).rows[0].question == "What is 2 + 3?"
    turns[1]["content"] = None
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the user's content in prompt is null"):
        load_math("amc", write(tmp_path, {"prompt": turns, "answer": "5"}))


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
        ("[\n{]", r"rows\.json: no JSON .*line 2"),
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
    with pytest.raises(
        ValueError, match="allowed is arithmetic, formulate, math500, aime24, aime25, amc, gsm8k, clinic"
    ):
        load_task("math")


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


def test_a_long_row_of_names_is_read_in_linear_time():
    assert quantity("A:" * 400 + "B") == "A:" * 400 + "B"  # would take longer than anyone lives


@pytest.mark.parametrize("word", ["thirds", "halves", "million", r"\text{ million}", "dozen", "squared", "thousandths"])
def test_a_word_that_changes_a_number_is_no_unit(word):
    with_word, with_unit, bare = read([f"2 {word}", "2 months", "2"])
    assert with_word != bare == with_unit
