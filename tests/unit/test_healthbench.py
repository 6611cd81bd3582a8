"""HealthBench's files and our own in its format: loading, splitting, refusing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cat_lib.schema import Example
from cat_lib.tasks import group_of, load_task
from cat_lib.tasks.clinic import clinic
from cat_lib.tasks.healthbench import DataError, HealthTask, fitting, load_rows, transcript

RUBRIC = {"criterion": "Says to rest.", "points": 5, "tags": ["axis:accuracy"]}
ROW = {"prompt_id": "p1", "prompt": [{"role": "user", "content": "I have a cold."}], "rubrics": [RUBRIC]}


def write(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((ROW, "{not json"), r"rows\.jsonl:2: no JSON"),
        ((ROW, "[1]"), r"rows\.jsonl:2: a list, where an object"),
        ((ROW, "", ROW), r"rows\.jsonl:3: prompt_id 'p1' stands on line 1 already"),
        (({"prompt_id": "p1"},), r"rows\.jsonl:1: no prompt, rubrics"),
        ((ROW | {"rubrics": [RUBRIC | {"points": -5}]},), "no criterion of 'p1' has positive points"),
        ((ROW | {"rubrics": []},), "positive points"),
        ((ROW | {"rubrics": [RUBRIC | {"points": "many"}]},), r"rows\.jsonl:1: malformed"),
        ((ROW | {"rubrics": [{"points": 1}]},), r"rows\.jsonl:1: malformed"),
        ((ROW | {"prompt": "I have a cold."},), r"rows\.jsonl:1: malformed"),
        ((ROW | {"example_tags": 5},), r"rows\.jsonl:1: malformed"),
        ((ROW | {"prompt": []},), "ends with the user's"),
        ((ROW | {"prompt": [{"role": "assistant", "content": "Hello."}]},), "ends with the user's"),
    ],
)
def test_a_bad_row_is_refused_with_file_and_line(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        load_rows(write(tmp_path, *rows))


@pytest.mark.parametrize("source", ["missing.jsonl", "http://127.0.0.1:9/none.jsonl"])
def test_a_file_that_cannot_be_had_says_what_to_give_instead(source):
    with pytest.raises(DataError, match="a local"):
        load_rows(source)


def test_a_row_is_read_whole(tmp_path):
    turns = [{"role": r, "content": f"{r} says"} for r in ("system", "user", "assistant", "user")]
    (example,) = load_rows(write(tmp_path, ROW | {"prompt": turns, "example_tags": ["theme:hedging", "other"]}))
    assert (example.id, example.level, example.tags) == ("p1", "hedging", ("theme:hedging", "other"))
    assert example.rubric.criteria[0].tags == ("axis:accuracy",)
    assert example.question.splitlines()[1:3] == ["Question: user says", "Answer: assistant says"]
    assert example.prompt == turns


def test_other_line_ends_inside_a_text_and_missing_tags_are_fine_and_broken_bytes_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = ROW | {"prompt": [{"role": "user", "content": "one\u2028two\u0085three"}], "example_tags": None}
    path.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert load_rows(path)[0].tags == ()
    path.write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(DataError, match=r"rows\.jsonl:1: no JSON"):
        load_rows(path)


def test_splits_are_seeded_disjoint_and_whole(tmp_path):
    rows = load_rows(write(tmp_path, *(ROW | {"prompt_id": f"p{i}"} for i in range(30))))
    task = HealthTask("healthbench", rows, heldout=10, validation=5)
    parts = {s: [e.id for e in task.examples(s, None, 0)] for s in ("train", "validation", "heldout")}
    assert {s: len(p) for s, p in parts.items()} == {"train": 15, "validation": 5, "heldout": 10}
    assert len(set().union(*parts.values())) == 30
    again = HealthTask("healthbench", rows[::-1], heldout=10, validation=5)
    assert [e.id for e in again.examples("heldout", None, 7)] == parts["heldout"]  # whatever the file's order or seed
    assert [e.id for e in task.examples("train", None, 1)] != parts["train"]
    with pytest.raises(ValueError, match="lower heldout and validation"):
        HealthTask("healthbench", rows).examples("train", 1, 0)
    with pytest.raises(ValueError, match="ask for 1 to 15"):
        task.examples("train", 16, 0)
    with pytest.raises(ValueError, match="allowed are train, validation, heldout"):
        task.examples("test", 1, 0)


def test_a_long_conversation_loses_its_oldest_turns_and_says_how_many(embedded):
    turns = [{"role": "system", "content": "Be kind."}]
    turns += [{"role": r, "content": f"{i} " + "word " * 1500} for i, r in enumerate(["user", "assistant"] * 4)]
    turns.append({"role": "user", "content": "the last question"})
    long, short = (Example(i, "q", p, "", "t") for i, p in (("long", turns), ("short", turns[-1:])))
    kept, cut = fitting([long, short], embedded, 512)
    assert set(cut) == {"long"}
    assert len(kept[0].prompt) == len(turns) - cut["long"]
    assert [kept[0].prompt[0], kept[0].prompt[-1]] == [turns[0], turns[-1]]
    assert kept[0].prompt[1]["role"] == "user"  # a template may want the user to open
    assert kept[0].question == transcript(kept[0].prompt)
    assert len(embedded.encode(kept[0].prompt)) <= embedded.context - 512
    assert kept[1] == short
    whole = Example("whole", "q", [{"role": "user", "content": "word " * 9000}], "", "t")
    with pytest.raises(ValueError, match=r"whole: its last turn takes \d+ tokens"):
        fitting([whole], embedded, 512)


def test_the_embedded_twin_is_what_it_says():
    rows = clinic().rows
    assert len(rows) >= 40
    assert {e.level for e in rows} == {"emergency_referrals", "context_seeking", "hedging", "communication"}
    assert all(5 <= len(e.rubric.criteria) <= 8 for e in rows)
    assert all(any(c.points < 0 for c in e.rubric.criteria) and e.rubric.possible > 0 for e in rows)
    assert all(len({c.text for c in e.rubric.criteria}) == len(e.rubric.criteria) for e in rows)
    assert sum(len(e.prompt) > 1 for e in rows) >= 10
    task = load_task("clinic")
    train, heldout = ({e.id for e in task.examples(s, None, 0)} for s in ("train", "heldout"))
    assert (len(train), len(heldout), train & heldout) == (24, 20, set())


def test_free_text_has_no_answer_and_prompts_of_the_small_model_end_where_it_goes_on():
    task = load_task("clinic")
    (example,) = task.examples("heldout", 1, 0)
    assert example.prompt.endswith("\nAnswer:")
    (row,) = (e for e in task.rows if e.id == example.id)
    assert transcript(row.prompt) + "\nAnswer:" in example.prompt
    assert not any(c.text in example.prompt for c in example.rubric.criteria)
    assert group_of(task, "1", "q", []).answers == ()
    assert not task.verifiable


def test_unknown_tasks_are_refused():
    with pytest.raises(ValueError, match=r"arithmetic, math500, .*, clinic, healthbench"):
        load_task("medicine")
