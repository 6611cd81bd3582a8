"""The contamination probe: how questions are cut and redrawn, a model that has seen them, and one that has not."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from cat_lib.__main__ import app
from cat_lib.measuring.contamination import completed, halves, probe, redrawn
from cat_lib.schema import Completion, Sampling
from cat_lib.tasks import load_task
from cat_lib.tasks.math import MathTask

TEXT = "A train leaves at 10 and  another\nat 10:45; the first makes 60 km an hour. When do they meet?"


def test_a_question_is_cut_after_six_tenths_of_its_words():
    head, rest = halves(TEXT)
    assert head + rest == TEXT
    assert (len(head.split()), len(rest.split())) == (12, 8)
    assert halves("What is 4 + 7?") == ("What is 4", " + 7?")
    assert halves("two words") == ("two", " words")
    assert halves("word") is None
    assert halves(" ") is None


def test_redrawn_numbers_are_others_of_as_many_digits_the_same_where_they_were_the_same():
    other = redrawn(TEXT)
    assert other == redrawn(TEXT)  # drawn by the text: the same in every run
    was, now = ([int(n) for n in re.findall("[0-9]+", text)] for text in (TEXT, other))
    assert [len(str(n)) for n in now] == [len(str(n)) for n in was]
    assert all(a != b for a, b in zip(was, now, strict=True))
    assert now[0] == now[1]  # 10 and 10
    assert halves(other)[0].split()[:4] == ["A", "train", "leaves", "at"]
    assert redrawn("no number at all") is None
    for digit in "0123456789":
        assert all(redrawn(f"{digit} {word}").split()[0] not in (digit, "0") for word in "abcdefghij")


def test_a_completion_is_exact_by_words_and_a_run_has_no_gaps():
    assert completed(" + 7?\nA: 11", " + 7?") == (1.0, 1.0)
    assert completed("+ 70?", " + 7?") == (0.0, 0.5)
    assert completed("", " + 7?") == (0.0, 0.0)
    assert completed("so x a b c d", "a b c d e") == (0.0, 0.8)
    assert completed("a x b x c", "a b c") == (0.0, 1 / 3)


NAMES = ("Tom", "Ann", "Bob", "Eve", "Max", "Zoe")
ROWS = [{"problem": f"{name} has {i} apples and gives 3 away; how many are left?", "answer": i - 3}
        for i, name in enumerate(NAMES, 5)]  # fmt: skip


class Knowing:
    """A model that goes on with the texts that it has seen and knows their answers; of others it knows nothing."""

    def __init__(self, seen):
        self.seen, self.asked = {e.question: e.gold for e in seen}, []

    def encode(self, text):
        return text.split()

    def generate(self, prompts, n, sampling):
        assert (n, sampling.temperature) == (1, 0.0)
        self.asked.append((prompts, sampling))
        return [[Completion(self.says(prompt), (1,), "stop")] for prompt in prompts]

    def says(self, prompt):
        head = prompt if isinstance(prompt, str) else prompt[0]["content"].partition("\n\n")[0]
        for text, gold in self.seen.items():
            if text.startswith(head):
                return f"{text[len(head) :]} It is" if head == prompt else f"\\boxed{{{gold}}}"
        return "how many or what"


def test_memory_is_told_from_what_can_be_guessed(tmp_path):
    """Of six questions four were seen: their rests come whole, their answers too, and nothing of redrawn texts."""
    task = load_task("math500", str(write(tmp_path, *ROWS)))
    last = replace(task.rows[-1], question="Two words", prompt="Two words")  # no number to redraw: no control
    examples = [*task.rows[:-1], last]
    model = Knowing(examples[:4])
    shares, beyond = probe(model, task, examples)
    found = {(r.measure, r.method): (round(r.value, 3), r.n) for r in shares.itertuples()}
    guessed = 2 / 5  # "how many" of "how many are left?" and its first word
    assert found == {
        ("exact_completion", "given"): (0.667, 6), ("exact_completion", "redrawn"): (0.0, 5),
        ("longest_run", "given"): (round((4 + guessed) / 6, 3), 6), ("longest_run", "redrawn"): (guessed, 5),
        ("partial_answer", "given"): (0.667, 6),
    }  # fmt: skip
    exact = shares.iloc[0]
    assert [exact.low, exact.high] == pytest.approx([0.300, 0.903], abs=1e-3)  # Wilson's of 4 in 6
    assert dict(zip(beyond.measure, beyond.value.round(3), strict=True)) == {
        "exact_completion": 0.8, "longest_run": 0.48,
    }  # fmt: skip
    heads, partial = model.asked[0][0], model.asked[2][0]
    assert heads[0] == "Tom has 5 apples and gives 3"
    assert partial[0][0]["content"].startswith("Tom has 5 apples and gives 3\n\n")
    with pytest.raises(ValueError, match="'x': its prompt does not hold it as it stands"):
        probe(model, task, [*examples, replace(last, id="x", prompt="Others")])


def write(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def check(folder, *rows, more=()):
    given = ["--model", "embedded", "--data", str(write(folder, *rows)), *more]
    result = CliRunner().invoke(app, ["check", "contamination", *given])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_embedded_model_on_a_file_of_two(tmp_path, monkeypatch, embedded):
    monkeypatch.setattr("cat_lib.check.load_model", lambda name: embedded)
    monkeypatch.setattr(MathTask, "sampling", Sampling(8))
    code, out = check(tmp_path, *ROWS[:2])
    assert code == 0
    words = [line.split() for line in out.replace("│", " ").splitlines()]
    shown = {(line[0], line[1]): line[2:] for line in words if line[-1:] == ["2"]}
    given = [(measure, text) for measure in ("exact_completion", "longest_run") for text in ("given", "redrawn")]
    assert list(shown) == [given[0], given[2], given[1], given[3], ("partial_answer", "given")]
    assert shown["partial_answer", "given"][:2] == ["0.000", "0.000"]
    assert "Against the same questions with their numbers redrawn, n = 2 questions, 1 seed: undecided" in out


@pytest.mark.parametrize(
    ("rows", "more", "said"),
    [
        (ROWS[:1], (), "1 of 1 questions have words and a number to redraw; at least 2 are needed"),
        ([{"problem": "How many?", "answer": 3}, ROWS[0]], (), "1 of 2 questions have words and a number"),
        ([], (), "no rows"),
        ([{"problem": "What is 2 + 2?"}], (), "no answer"),
        (ROWS, ("--task", "arithmetic"), "arithmetic reads no data"),
        (ROWS, ("--task", "poetry"), "task='poetry': allowed is"),
        (ROWS, ("--task", "clinic", "--data", ""), "'clinic' has no answers that can be checked"),
    ],
)
def test_what_cannot_be_probed_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch, rows, more, said):
    monkeypatch.setattr("cat_lib.check.load_model", lambda name: pytest.fail("loaded"))
    code, out = check(tmp_path, *rows, more=more)
    assert code == 2
    assert said in " ".join(out.split())
