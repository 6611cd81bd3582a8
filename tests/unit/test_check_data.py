"""`python -m cat_lib check data`: what is read, what is refused, and what fits a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cat_lib.__main__ import app

RUBRIC = {"criterion": "Says to rest.", "points": 5, "tags": ["axis:accuracy"]}


def row(i: int, **changes: object) -> str:
    prompt = [{"role": "user", "content": "I have a cold."}]
    return json.dumps({"prompt_id": f"p{i}", "prompt": prompt, "rubrics": [RUBRIC]} | changes)


def check(folder: Path, *rows: str, task: str = "healthbench", more: tuple[str, ...] = ()) -> tuple[int, str]:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(rows))
    result = CliRunner().invoke(app, ["check", "data", str(path), "--task", task, *more])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def test_a_file_without_fault_is_counted(tmp_path):
    assert check(tmp_path, *map(row, range(5))) == (0, "rows read: 5, refused: 0\n")
    code, out = check(tmp_path, row(1), row(2))
    assert (code, out.splitlines()[0]) == (0, "rows read: 2, refused: 0")
    assert "not enough to split: 2 conversations can't give 2 held-out" in out
    maths = [json.dumps({"problem": f"What is {i} + 1?", "answer": str(i + 1)}) for i in range(4)]
    assert check(tmp_path, *maths, task="math500") == (0, "rows read: 4, refused: 0\n")


def test_each_refused_row_is_named_once_and_the_list_is_bounded(tmp_path):
    bad = [row(100 + i, example_tags="\x1b[2Jtheme") for i in range(30)]
    code, out = check(tmp_path, *map(row, range(5)), "{", row(9, rubrics=[RUBRIC | {"points": None}]), *bad)
    assert code == 1
    first, *named, more = out.splitlines()
    assert first == "rows read: 5, refused: 32; skip_bad_rows=True leaves those out"
    assert len(named) == 20
    assert "rows.jsonl:6: no JSON" in named[0]
    assert "rows.jsonl:7: rubrics[0].points is null or missing, where a number is needed" in named[1]
    assert "rows.jsonl:8: example_tags is text" in named[2]
    assert more == "  and 12 more"
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("rows", "task", "message"),
    [
        (("{", "["), "healthbench", "2 of 2 rows can't be used: "),
        ((), "healthbench", "no rows"),
        ((row(1),), "arithmetic", "arithmetic reads no data"),
        ((row(1),), "poetry", "task='poetry': allowed is"),
    ],
)
def test_a_file_that_cannot_be_used_at_all_says_why(tmp_path, rows, task, message):
    code, out = check(tmp_path, *rows, task=task)
    assert (code, message in out) == (2, True), out


def test_prompts_are_measured_against_a_models_context(tmp_path, embedded):
    long = [{"role": "user", "content": "word " * 9000}]
    code, out = check(tmp_path, *map(row, range(5)), row(5, prompt=long), more=("--model", "embedded"))
    n = len(embedded.encode([{"role": "user", "content": "I have a cold."}]))
    assert code == 0
    assert f"prompts of {n} to {len(embedded.encode(long))} tokens, median {n}; embedded has {embedded.context}" in out
    assert "1 of 6 do not fit" in out
    code, out = check(tmp_path, *map(row, range(5)), more=("--model", "./nowhere"))
    assert (code, "is no folder here and no hub id" in out) == (2, True)
    assert len(out.splitlines()) == 2
    code, out = check(tmp_path, *map(row, range(5)), more=("--model", str(tmp_path)))
    assert (code, f"can't load the tokenizer of the folder {tmp_path}: " in out) == (2, True)
    assert len(out.splitlines()) == 2
