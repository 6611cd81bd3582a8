"""Replies in the styles of many models, half of them hostile or broken: read right, or no verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cat_lib.method import verdicts
from cat_lib.schema import Completion

REPLIES = [json.loads(line) for line in Path(__file__).parents[1].joinpath("data/judge_replies.jsonl").open()]


def read(reply, finish="stop"):
    return verdicts.read(Completion(reply, (), finish))


@pytest.mark.parametrize("row", REPLIES, ids=[row["reply"][:40] for row in REPLIES])
def test_a_reply_is_read_as_models_write_it_and_never_guessed(row):
    verdict = read(row["reply"], row["finish"])
    assert verdict.met is row["met"]
    if row["met"] is None:
        assert row["cause"] in verdict.cause
        assert len(verdict.cause) < 250
    else:
        assert verdict.cause is None


def test_there_are_enough_of_both_kinds():
    assert len(REPLIES) >= 60
    assert 0.4 < sum(row["met"] is None for row in REPLIES) / len(REPLIES) < 0.6


@pytest.mark.parametrize("sign", ["<", ">", "<=", "->", "<92%", "<b>bold</b>", "a < b > c", "</p>", "<reasonable>"])
@pytest.mark.parametrize(("word", "met"), [("yes", True), ("no", False)])
def test_signs_in_a_reason_cost_no_verdict(sign, word, met):
    verdict = read(f"<reason>Oxygen is {sign} at rest.</reason>\n<verdict>{word}</verdict>")
    assert (verdict.met, verdict.reason) == (met, f"Oxygen is {sign} at rest.")


def test_reasons_are_kept_on_one_line():
    assert read("Sure.\n<reason>a\nb</reason>\n<verdict>yes</verdict>").reason == "a b"
    assert read("It rests.\nVerdict: yes").reason == "It rests."
    assert read("<verdict>yes</verdict>").reason is None


@pytest.mark.parametrize(
    "piece", ["\n", "<verdict>", ". ", "verdict ", "```", "<reason>", "<", "*", "verdict:", "</reason>", "\n- _`#"]
)
def test_hostile_length_is_no_verdict(piece):
    assert read(piece * (4000 // len(piece))).met is None
    assert read(piece * 100_000).met is None
