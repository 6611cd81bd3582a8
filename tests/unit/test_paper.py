"""The table of published numbers: well-formed, and as hand-copied from the papers."""

from __future__ import annotations

import pytest

from cat_lib.measuring.paper import paper_value, paper_values

COLUMNS = [
    "key",
    "claim",
    "dataset",
    "model",
    "method",
    "metric",
    "value",
    "low",
    "high",
    "unit",
    "source",
    "version",
    "section",
    "status",
    "note",
]


@pytest.fixture(scope="module")
def table():
    return paper_values()


def test_columns_keys_and_words(table):
    assert list(table.columns) == COLUMNS
    assert table.key.is_unique
    assert table.key.str.fullmatch(r"[a-z][a-z0-9_]*").all()
    assert set(table.status) == {"stated", "range", "conflicting", "unknown"}
    assert set(table.unit) <= {"share", "points", "x", "count", "tokens", "steps", ""}
    assert (table.claim != "").all()
    assert (table.note[table.status == "conflicting"] != "").all()


def test_every_row_names_its_source(table):
    assert set(table.source) == {"arXiv 2509.14234", "arXiv 2504.16084", "arXiv 2603.19880", "OpenReview ISHsdUmdpn"}
    assert set(table.version[table.source.isin(["arXiv 2509.14234", "OpenReview ISHsdUmdpn"])]) == {
        "v1",
        "later",
        "both",
    }
    assert (table.section[table.status != "unknown"] != "").all()


def test_numbers_fit_their_status(table):
    numbers = table[["value", "low", "high"]]
    assert (numbers.dtypes == "float64").all()
    assert numbers[table.status == "unknown"].isna().all(axis=None)
    assert table.value[table.status == "stated"].notna().all()
    assert table.low[table.status == "range"].notna().all()
    assert (table.low.notna() == table.high.notna()).all()
    assert (table.value.notna() + table.low.notna() == (table.status != "unknown")).all()  # one or the other


def test_shares_are_shares_and_ranges_are_ordered(table):
    shares = table.loc[table.unit == "share", ["value", "low", "high"]].stack().dropna()
    assert shares.between(0, 1).all()
    ranges = table.dropna(subset="low")
    assert (ranges.low < ranges.high).all()


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("synthesis_math500_gain", 0.27), ("cat_rl_math500_gain", 0.33), ("cat_rl_healthbench_gain", 0.30),
        ("test_compute_ratio", 9), ("qwen3_math500_single", 0.79), ("qwen3_math500_majority_of_8", 0.81),
        ("qwen3_math500_synthesis_of_8", 0.85), ("disagreement_majority_v1", 0.14),
        ("disagreement_majority_table", (0.05, 0.07)), ("disagreement_majority_text", (0.05, 0.15)),
        ("right_when_disagreeing_majority", (0.82, 0.86)), ("llama_healthbench_cat_rl", 0.38),
        ("llama_healthbench_cat_sft", 0.28), ("learning_rate", 5e-7), ("kl_coefficient", 1e-3),
        ("length_penalty", -1), ("gemma3_top_k", 64), ("question_in_synthesis_prompt", 0.004),
        ("ttrl_qwen25_math_15b_math500_before", 0.327), ("ttrl_qwen25_math_15b_math500_after", 0.730),
        ("ttrl_qwen25_math_7b_aime24_after", 0.402), ("ttrl_qwen3_8b_gpqa_before", 0.481),
        ("scrl_qwen25_3b_aime25_scrl", 0.084), ("scrl_qwen25_math_7b_math500_ttrl", 0.857),
        ("clip_epsilon", None), ("seeds", None), ("heldout_maths", None), ("measured_compute", None),
    ],
)  # fmt: skip
def test_values_by_name(key, expected):
    assert paper_value(key) == expected


def test_ttrl_has_a_before_for_every_after(table):
    keys = set(table.key[table.key.str.startswith("ttrl_") & (table.status == "stated")])
    after = {key for key in keys if key.endswith("_after")}
    assert len(after) == 6 * 4
    assert keys == after | {key.removesuffix("_after") + "_before" for key in after}


def test_an_unknown_key_is_answered_with_the_nearest():
    with pytest.raises(KeyError, match="qwen3_math500_single"):
        paper_value("qwen_math500_single")
