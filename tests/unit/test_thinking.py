"""What a reasoning model thinks before it answers is no part of its answer."""

from __future__ import annotations

import pytest

from cat_lib.prompts import without_thinking


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>so 7</think>It is 7.", "It is 7."),
        ("\n<think>\n\n</think>\n\n\\boxed{7}", "\\boxed{7}"),  # an empty block, where thinking is switched off
        ("<THINK>a\nb</Think> c ", "c "),
        ("<thinking>a</thinking>b", "b"),
        ("<think>a</think>\n<think>b</think> c", "c"),
        ("<think>never closed, \\boxed{7}", ""),
        ("<think>", ""),
        ("the template opened it</think>\nc", "c"),
        ("<think>the tag </think> is odd</think>c", "c"),  # the thought quotes its own end
        ("a</think>b</think>c", "c"),
        ("</think>", ""),
        ("[THINK]so 7[/THINK]It is 7.", "It is 7."),
        ("<thought>so 7</thought>\nIt is 7.", "It is 7."),
        ("Sure. <think>so 7</think> It is 7.", "Sure. It is 7."),
        ("It is 7. <think>or is it", "It is 7. "),
        # what is no thinking keeps every character
        ("  plain \n", "  plain \n"),
        ("", ""),
        ("5 < 7 and 7 > 5", "5 < 7 and 7 > 5"),
        ("I think > you <thinker>", "I think > you <thinker>"),
    ],
)
def test_only_the_answer_is_left(text, answer):
    assert without_thinking(text) == answer


@pytest.mark.parametrize("text", ["<think>" * 40_000, "<think></think>" * 20_000, " " * 300_000, "</think" * 40_000])
def test_long_text_takes_no_more_than_its_length(text):
    assert without_thinking(text) in ("", text)
