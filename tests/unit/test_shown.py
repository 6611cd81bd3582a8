"""Text of data and models in figures and in Markdown."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from cat_lib.measuring import plots
from cat_lib.shown import escaped, plain

# one opening sign is no formula to matplotlib; two that enclose nonsense raise when the figure is drawn
COSTS = ["costs $5 and $\\frac", "$x_{$", "$$", "a\\$b$", "$\\undefined{$ 100 % _^", "\x07 \u202e$"]
MARKDOWN = [
    "# no title",
    "<img src=x onerror=alert(1)>",
    "[a](javascript:x)",
    "**b** _c_ `d`",
    "$x^2$ ~~e~~",
    "> q\n- r\n\n1. s",
]


def drawn(figure) -> list[str]:
    """What the figure shows, once it is rendered."""
    figure.savefig(io.BytesIO(), format="png")
    from matplotlib.text import Text

    return [t._preprocess_math(t.get_text())[0] for t in figure.findobj(Text)]


@pytest.mark.parametrize("text", COSTS)
def test_a_dollar_is_no_formula_in_any_figure(text):
    seen = plain(text).replace(r"\$", "$")
    verdicts = pd.DataFrame({"rollout": [0, 1], "criterion": [text] * 2, "points": [1.0, 1.0], "met": [True, None]})
    assert seen in " ".join(drawn(plots.verdict_matrix(verdicts, text)))
    answers = drawn(plots.answer_distribution(text, text, [text, None], ["1", text]))
    assert {f"{seen} (right)", f"{seen}  (2 rollouts each)"} <= set(answers)
    kinds = pd.DataFrame({"method": [text], "value": [0.5], "low": [0.4], "high": [0.6], "n": [9]})
    assert {f"{seen} (n = 9)", seen} <= set(drawn(plots.intervals(kinds, "share", text)))
    history = pd.DataFrame({"step": [1, 2], "reward": [0.1, 0.2]})
    assert seen in drawn(plots.by_arm({text: history}, {"reward": "reward"}, text))
    rows = pd.DataFrame({"level": text, "method": ["a", "b"], "value": 0.5, "low": 0.4, "high": 0.6, "n": 9})
    assert f"{seen}\n(n = 9)" in drawn(plots.levels(rows, text))


@pytest.mark.parametrize("text", MARKDOWN + COSTS)
def test_nothing_in_escaped_text_is_markup(text):
    tokens = MarkdownIt("commonmark", {"html": True}).enable("strikethrough").parse(f"> {escaped(text)}")
    kinds = [t.type for t in tokens]
    assert kinds == ["blockquote_open", "paragraph_open", "inline", "paragraph_close", "blockquote_close"]
    assert {t.type for t in tokens[2].children} <= {"text", "text_special"}
    assert "$" not in escaped(text)
