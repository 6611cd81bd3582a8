"""The command that shows how answers are read: `python -m cat_lib check answers`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cat_lib.__main__ import app

ROWS = [
    {"gold": "3/4", "answer": "0.75", "id": 7, "notes": ["a"]},
    {"gold": "[0, 2)", "answer": r"\boxed{[0,2)}"},
    {"gold": r"\frac{1}{2003!}", "answer": "$4$"},
    {"gold": 5, "answer": ""},
    {"gold": "6", "answer": "6^{6^{6^6}}"},
    {"gold": "6", "answer": "9"},
]


def check(file: Path, *options: str):
    return CliRunner().invoke(app, ["check", "answers", str(file), *options], env={"COLUMNS": "200"})


def write(folder: Path, *rows: object) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_each_row_is_shown_with_both_forms_and_whether_they_are_equal(tmp_path):
    file = write(tmp_path, *ROWS)
    found = check(file, "--json")
    assert found.exit_code == 0
    rows = json.loads(found.stdout)
    assert rows[0] == {
        "gold": "3/4",
        "answer": "0.75",
        "gold_form": "3/4",
        "answer_form": "3/4",
        "equal": True,
        "id": 7,
        "notes": ["a"],
    }
    forms = [(row["gold_form"], row["answer_form"], row["equal"]) for row in rows[1:]]
    assert forms == [
        ("[0, 2)", "[0, 2)", True),
        (None, "4", None),
        ("5", None, False),
        ("6", None, None),
        ("6", "9", False),
    ]
    shown = check(file)
    assert shown.exit_code == 0
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert r"│ [0, 2) │ \boxed{[0,2)} │ [0, 2) │ [0, 2) │ equal │" in lines
    assert "│ 6 │ 9 │ 6 │ 9 │ not equal │" in lines
    assert sum("lost" in line for line in lines) == 2
    assert "its exact form has over 1,000 characters" in shown.stdout


def test_what_a_terminal_would_obey_is_written_out(tmp_path):
    found = check(write(tmp_path, {"gold": "1", "answer": "\x1b[2J1"}))
    assert r"\u001b[2J1" in found.stdout
    assert "\x1b" not in found.stdout


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"gold": "1"}, "pairs.jsonl:2: no answer (the row has gold)"),
        ({"gold": None, "answer": "1"}, "pairs.jsonl:2: gold is a NoneType, where text or a number"),
        ({"gold": "1", "answer": ["1"]}, "pairs.jsonl:2: answer is a list, where text or a number"),
        ({"gold": "1", "answer": "1", "equal": True}, "pairs.jsonl:2: the key equal is what this command writes"),
        (["1", "1", True], "pairs.jsonl:2: a list, where an object is needed"),
        ('{"gold": NaN, "answer": "1"}', "pairs.jsonl:2: gold is nan"),
        ("{", "pairs.jsonl:2: no JSON"),
    ],
)
def test_a_bad_row_is_one_line_with_what_is_needed(tmp_path, row, message):
    found = check(write(tmp_path, ROWS[0], row), "--json")
    assert (found.exit_code, found.stdout) == (2, "")
    (line,) = found.stderr.splitlines()
    assert message in line
    assert line.endswith('a row is an object like {"gold": "1/2", "answer": "0.5"}')


def test_a_file_without_rows_and_many_bad_rows_are_refused_briefly(tmp_path):
    assert "no rows" in check(write(tmp_path, "")).stderr
    assert "no file" in check(tmp_path / "none.jsonl").stderr
    found = check(write(tmp_path, *[{"gold": 1}] * 50))
    assert found.exit_code == 2
    assert len(found.stderr.splitlines()) == 21
    assert found.stderr.splitlines()[-1].endswith("and 30 more rows that can't be used")
