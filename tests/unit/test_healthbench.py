"""HealthBench's files and our own in its format: loading, splitting, refusing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from codecs import BOM_UTF8
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cat_lib.measuring.audit import meta_evaluation_pairs
from cat_lib.schema import Example
from cat_lib.tasks import group_of, load_task
from cat_lib.tasks.healthbench import HealthTask, clinic, fitting, load_health, transcript
from cat_lib.tasks.rows import DataError

ROOT = Path(__file__).parents[2]
RUBRIC = {"criterion": "Says to rest.", "points": 5, "tags": ["axis:accuracy"]}
ROW = {"prompt_id": "p1", "prompt": [{"role": "user", "content": "I have a cold."}], "rubrics": [RUBRIC]}
PART = {"type": "text", "text": "I have a cold."}
VERL = {"data_source": "math", "prompt": ROW["prompt"], "reward_model": {"ground_truth": "2"}}


def write(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


def load_rows(source: object, **options: bool):
    return load_health(source, **options).rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((ROW, "{not json"), r"rows\.jsonl:2: no JSON"),
        ((ROW, "[1]"), r"rows\.jsonl:2: a list, where an object"),
        ((ROW, "", ROW), r"rows\.jsonl:3: id 'p1' stands at .*rows\.jsonl:1 already"),
        (({"prompt_id": "p1"},), r"rows\.jsonl:1: no prompt, rubrics"),
        ((ROW | {"rubrics": [RUBRIC | {"points": -5}]},), "no criterion of 'p1' has positive points"),
        ((ROW | {"rubrics": []},), "positive points"),
        (
            (ROW | {"rubrics": [RUBRIC | {"points": "5"}]},),
            r'jsonl:1: rubrics\[0\]\.points is text \("5"\), where a number',
        ),
        ((ROW | {"rubrics": [RUBRIC | {"points": True}]},), r"rubrics\[0\]\.points is true or false"),
        ((ROW | {"rubrics": [RUBRIC | {"points": 10**400}]},), r"rubrics\[0\]\.points is a number"),
        ((ROW | {"rubrics": [RUBRIC, {"points": 1}]},), r"jsonl:1: rubrics\[1\]\.criterion is null or missing"),
        ((ROW | {"rubrics": [RUBRIC | {"criterion": ["Rest."]}]},), r"rubrics\[0\]\.criterion is a list"),
        ((ROW | {"rubrics": [RUBRIC | {"criterion": " "}]},), r"rubrics\[0\]\.criterion is empty"),
        ((ROW | {"rubrics": [RUBRIC | {"tags": "axis:accuracy"}]},), r'tags is text \("axis:accuracy"\), where a list'),
        ((ROW | {"rubrics": {"0": RUBRIC}},), "rubrics is an object"),
        ((ROW | {"rubrics": [str(RUBRIC)]},), r"rubrics\[0\] is text"),
        ((ROW | {"example_tags": "theme:hedging"},), r"jsonl:1: example_tags is text"),
        ((ROW | {"example_tags": ["theme:hedging", None]},), r"example_tags\[1\] is null"),
        ((ROW | {"example_tags": False},), "example_tags is true or false"),
        ((ROW | {"prompt_id": 7},), r"prompt_id is a number \(7\), where text"),
        ((ROW | {"prompt": "I have a cold."},), r"jsonl:1: prompt is text .*, where a list of objects"),
        ((ROW | {"prompt": [{"role": "user", "content": None}]},), r"prompt\[0\]\.content is null or missing"),
        ((ROW | {"prompt": [{"role": "user", "content": 5}]},), r"prompt\[0\]\.content is a number"),
        ((ROW | {"prompt": [{"role": "user", "content": []}]},), r"prompt\[0\]\.content is empty"),
        (
            (ROW | {"prompt": [{"role": "user", "content": ["I have a cold."]}]},),
            r"content\[0\] is text .*, where a list of",
        ),
        (
            (ROW | {"prompt": [{"role": "user", "content": [PART, {"type": "image_url", "image_url": "x"}]}]},),
            r"prompt\[0\]\.content\[1\] has the type 'image_url', where only text",
        ),
        ((ROW | {"prompt": [{"role": "user", "content": [PART | {"text": None}]}]},), r"content\[0\]\.text is null"),
        (
            (ROW | {"prompt": [{"role": "tool", "content": "x"}]},),
            r"prompt\[0\]\.role is text .*allowed are system, user",
        ),
        ((VERL,), r"no prompt_id, rubrics; a row needs .*this has data_source, prompt, reward_model"),
        ((ROW | {"prompt": []},), "ends with the user's"),
        ((ROW | {"prompt": [{"role": "assistant", "content": "Hello."}]},), "ends with the user's"),
    ],
)
def test_a_bad_row_is_refused_with_file_and_line(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        load_rows(write(tmp_path, *rows))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps(ROW).replace("5", "NaN"), r"jsonl:2: rubrics\[0\]\.points is nan, where a finite number"),
        (json.dumps(ROW).replace("5", "1e999"), r"jsonl:2: rubrics\[0\]\.points is inf"),
        (json.dumps(ROW | {"extra": {"a": [1.0, float("-inf")]}}), r"jsonl:2: extra\.a\[1\] is -inf"),
        (
            json.dumps(ROW).replace("I have a cold", "\\ud83d"),
            r"jsonl:2: prompt\[0\]\.content holds half of a surrogate",
        ),
        ('{"prompt_id": "a", "prompt_id": "b"}', r"jsonl:2: no JSON \(the key 'prompt_id' stands twice"),
        ("[" * 100_000, r"jsonl:2: no JSON \(lists in lists"),
        ('{"prompt_id": ' + "[" * 700 + "]" * 700 + "}", r"jsonl:2: no JSON \(lists in lists"),
        ('{"": ' * 700 + "0" + "}" * 700, r"jsonl:2: no JSON \(lists in lists"),
        ("9" * 5000, r"jsonl:2: no JSON"),
    ],
)
def test_what_python_takes_for_json_and_the_standard_does_not_is_refused_with_line_and_key(tmp_path, line, message):
    with pytest.raises(DataError, match=message) as caught:
        load_rows(write(tmp_path, ROW, line))
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_a_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    line = json.dumps(ROW).encode()
    path.write_bytes(BOM_UTF8 + line + b"\r\n" + BOM_UTF8 + line.replace(b"p1", b"p2") + b"\n" + BOM_UTF8)
    assert [e.id for e in load_rows(path)] == ["p1", "p2"]  # two files, one put behind the other
    path.write_bytes(line.decode().encode("utf-16"))
    with pytest.raises(DataError, match="save the file as UTF-8"):
        load_rows(path)


def test_content_in_text_parts_is_that_text(tmp_path):
    parts = [PART, {"type": "text", "text": "What helps?"}]
    (example,) = load_rows(write(tmp_path, ROW | {"prompt": [{"role": "user", "content": parts}]}))
    assert example.question == example.prompt[0]["content"] == "I have a cold.\nWhat helps?"


def test_bad_rows_are_all_counted_and_left_out_only_where_that_is_asked_for(tmp_path, capsys):
    rows = [ROW | {"prompt_id": f"p{i}"} | ({"example_tags": "x"} if i % 2 else {}) for i in range(20)]
    path = write(tmp_path, *rows, "{", ROW | {"prompt_id": "p0"})
    with pytest.raises(DataError, match=r"12 of 22 rows can't be used: .*jsonl:2: .*; and 7 more .skip_bad_rows=True"):
        load_rows(path)
    task = load_task("healthbench", str(path), skip_bad_rows=True)
    assert [e.id for e in task.rows] == [f"p{i}" for i in range(0, 20, 2)]
    assert "skipped: 12 of 22 rows can't be used" in capsys.readouterr().out
    why = task.skipped.pop("why")
    assert task.skipped == {"source": str(path), "skipped": 12, "read": 10}
    assert len(why) == 12
    assert "jsonl:2: example_tags is text" in why[0]
    assert load_health(write(tmp_path, ROW)).skipped == {}
    with pytest.raises(DataError, match="1 of 1 rows can't be used"):  # nothing is left
        load_rows(write(tmp_path, "{"), skip_bad_rows=True)
    with pytest.raises(DataError, match="no rows"):
        load_rows(write(tmp_path, ""))


def test_a_run_that_leaves_rows_out_notes_them():
    sources = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("notebooks/*.ipynb")}
    skipping = [n for n, s in sources.items() if re.search(r"load_task\([^\n]*skip_bad_rows", s.replace("\\n", "\n"))]
    assert skipping
    assert [n for n in skipping if "run.update_config(skipped_rows=" not in sources[n]] == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"binary_labels": 5}, "binary_labels is 5, where a list"),
        ({"binary_labels": ["true"]}, "binary_labels is"),
        ({"completion": ["Rest."]}, "completion is a list"),
        ({"rubric": None}, "rubric is null"),
        ({"prompt_id": 5}, "prompt_id is a number"),
        ({"prompt_id": None, "prompt": "hello"}, "prompt is text"),
        ({"category": ["a"]}, "category is a list"),
    ],
)
def test_labelled_pairs_are_read_as_strictly(tmp_path, changed, message):
    pair = {"completion": "Rest.", "rubric": "Says to rest.", "binary_labels": [True, True, False], "prompt_id": "p1"}
    calibrating, auditing = meta_evaluation_pairs(write(tmp_path, pair))
    (read,) = calibrating + auditing
    assert (read.id, read.response, read.criterion, read.met) == ("p1", "Rest.", "Says to rest.", True)
    with pytest.raises(DataError, match=rf"jsonl:1: {message}"):
        meta_evaluation_pairs(write(tmp_path, pair | changed))


@pytest.mark.parametrize("source", ["missing.jsonl", "http://u:secret@127.0.0.1:9/none.jsonl"])
def test_a_file_that_cannot_be_had_says_what_to_give_instead(source):
    with pytest.raises(DataError, match="a local") as caught:
        load_rows(source)
    assert "secret" not in str(caught.value)


def test_a_hub_id_is_one_file_of_its_repository(tmp_path, monkeypatch):
    asked = []

    def download(*what, repo_type):
        asked.append((*what, repo_type))
        return str(write(tmp_path, ROW))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    for part in ("", ":hard"):
        assert [e.id for e in load_rows(f"openai/healthbench{part}")] == ["p1"]
    assert [(repository, kind) for repository, _, kind in asked] == [("openai/healthbench", "dataset")] * 2
    assert [file.partition("_")[0] for _, file, _ in asked] == ["2025-05-07-06-14-12", "hard"]
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: 1 / 0)
    with pytest.raises(DataError, match=r"openai/healthbench: the hub can't be reached \(ZeroDivisionError\); give a"):
        load_rows("openai/healthbench")


def test_what_an_address_holds_is_kept_in_the_cache_folder(tmp_path, monkeypatch):
    (tmp_path / "served").mkdir()
    write(tmp_path / "served", ROW)
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "served")
    monkeypatch.setenv("CAT_LIB_CACHE", str(tmp_path / "cache"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = f"http://127.0.0.1:{server.server_port}/rows.jsonl"
        first = load_rows(source)
        server.shutdown()
    assert [e.id for e in first] == ["p1"]
    assert len(list((tmp_path / "cache" / "data").iterdir())) == 1
    assert load_rows(source) == first  # nobody answers any more
    monkeypatch.setenv("CAT_LIB_CACHE", str(tmp_path / "other"))
    with pytest.raises(DataError, match="can't be fetched"):
        load_rows(source)


def test_two_processes_may_fetch_one_address_at_once(tmp_path, monkeypatch):
    (tmp_path / "served").mkdir()
    write(tmp_path / "served", ROW)
    handler, written = partial(SimpleHTTPRequestHandler, directory=tmp_path / "served"), Path.write_bytes
    monkeypatch.setenv("CAT_LIB_CACHE", str(tmp_path / "cache"))

    def overtaken(path, content):
        written(path, content)
        code = "import sys; from cat_lib.tasks.rows import local_file; local_file(sys.argv[1])"
        subprocess.run([sys.executable, "-c", code, source], check=True, cwd=ROOT)

    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = f"http://127.0.0.1:{server.server_port}/rows.jsonl"
        monkeypatch.setattr(Path, "write_bytes", overtaken)
        assert [e.id for e in load_rows(source)] == ["p1"]
        server.shutdown()
    assert [file.suffix for file in (tmp_path / "cache" / "data").iterdir()] == [".jsonl"]


def test_a_list_of_rows_is_read_as_lines_are(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"version": 1, "rows": [ROW, 5]}))
    with pytest.raises(DataError, match=r"1 of 2 rows can't be used: .*rows\.json, row 2: a int, where an object"):
        load_rows(path)
    assert load_rows(path, skip_bad_rows=True) == load_rows(write(tmp_path, ROW))


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


@pytest.mark.parametrize(("n", "heldout", "validation"), [(3, 2, 0), (5, 2, 0), (12, 2, 1), (100, 10, 10)])
def test_a_small_file_is_split_into_what_can_be_compared_and_what_is_trained_on(tmp_path, n, heldout, validation):
    path = write(tmp_path, *(ROW | {"prompt_id": f"p{i}"} for i in range(n)))
    task = load_task("healthbench", str(path))
    assert len(task.examples("heldout", None, 0)) == heldout
    assert len(task.examples("train", None, 0)) == n - heldout - validation
    with pytest.raises(ValueError, match=f"n=50: the heldout split has {heldout} questions; ask for 1 to {heldout}"):
        task.examples("heldout", 50, 0)
    if not validation:
        with pytest.raises(ValueError, match=f"the validation split of {n} questions is empty; give more data"):
            task.examples("validation", 1, 0)


def test_a_file_too_small_to_split_says_so(tmp_path):
    task = load_task("healthbench", str(write(tmp_path, ROW, ROW | {"prompt_id": "p2"})))
    with pytest.raises(ValueError, match=r"2 conversations can't give 2 held-out .*give 3 or more, or lower heldout"):
        task.examples("heldout", 1, 0)


@pytest.mark.parametrize(
    ("name", "data", "transductive", "message"),
    [
        ("arithmetic", "my.jsonl", False, "data='my.jsonl': arithmetic reads no data; leave data out, or take"),
        ("clinic", "my.jsonl", False, "data='my.jsonl': clinic reads no data"),
        ("arithmetic", None, True, "split='transductive': arithmetic .*take split='heldout'"),
        ("clinic", None, True, "split='transductive': clinic"),
        ("healthbench", "my.jsonl", True, "split='transductive': healthbench"),
    ],
)
def test_what_a_task_would_ignore_is_refused(name, data, transductive, message):
    with pytest.raises(ValueError, match=message):
        load_task(name, data, transductive)


def test_unknown_tasks_are_refused():
    with pytest.raises(ValueError, match=r"arithmetic, formulate, math500, .*, clinic, healthbench"):
        load_task("medicine")
