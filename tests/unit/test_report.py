"""Runs read from a real store, their tables by hand, and a file that shows hostile text without running it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from cat_lib import report, tracking
from cat_lib.mirror import import_run

HOSTILE = (
    "<script>alert(1)</script><img src=http://x/y onerror=alert(1)> [a](javascript:alert(1)) ![b](http://x/z) "
    "$\\frac$ \u202e"
)


def finished(store, name: str, parameters: dict, metrics: dict, status: str = "FINISHED", text: str = "a") -> None:
    folder = store / "runs" / "small" / name
    run = tracking.open_run("small", parameters, folder)
    run.metrics(metrics)
    run.table("rollouts", pd.DataFrame({"question": ["q"], "text": [text], "reference": ["r"], "reward": [1.0]}))
    run.end(status)
    tracking.release(folder)
    import_run(folder)


@pytest.fixture
def runs(store):
    """Two estimators with three seeds, one failed run, one repeated seed."""
    for estimator, scores in (("majority", [0.5, 0.6, 0.7]), ("synthesis", [0.6, 0.72, 0.84])):
        for seed, score in enumerate(scores):
            cost = {"policy_tokens": 100.0, "anchor_tokens": 10.0 * seed, "heldout_questions": 48.0}
            limits = {"score": score, "score_low": score - 0.1, "score_high": score + 0.1}
            finished(store, f"{estimator}{seed}", {"estimator": estimator, "seed": seed, "steps": 4}, limits | cost)
    finished(store, "again", {"estimator": "majority", "seed": 2, "steps": 4}, {"score": 0.8})
    finished(store, "bad", {"estimator": "majority", "seed": 3, "steps": 4}, {"score": 0.0}, "FAILED")
    return report.read_runs()


def test_a_table_has_seeds_intervals_and_costs_worked_by_hand(runs):
    assert len(runs) == 8
    assert report.usual_metric(runs) == "score"
    table = report.summary(report.configured(runs, "score"), "score").set_index("kind")
    assert list(table.index) == ["estimator=majority", "estimator=synthesis"]  # steps do not differ, seeds are no kind
    synthesis = table.loc["estimator=synthesis"]
    margin = 4.302653 * np.std([0.6, 0.72, 0.84], ddof=1) / np.sqrt(3)  # Student's quantile, 2 degrees of freedom
    assert (synthesis["mean"], synthesis["low"]) == (pytest.approx(0.72), pytest.approx(0.72 - margin))
    assert (synthesis["interval"], synthesis["n"], synthesis["seeds"]) == ("seeds", 48, "0, 1, 2")
    assert synthesis["tokens"] == 110
    assert table.loc["estimator=majority", "mean"] == pytest.approx((0.5 + 0.6 + 0.8) / 3)  # the newest of seed 2


def test_one_seed_has_its_own_interval_over_questions(runs):
    found = report.configured(runs[runs["tag.seed"] == "0"], "score")
    table = report.summary(found, "score")
    assert list(table["interval"]) == ["questions", "questions"]
    assert table["low"].tolist() == pytest.approx([0.4, 0.5])
    versus = report.paired(found)
    assert list(versus["verdict"]) == ["undecided"]
    assert "undecided (1 shared seeds)" in report.in_words(versus, "estimator=majority", "score")


def test_pairs_are_by_seed_and_decided_only_with_interval_and_p(runs):
    found = report.configured(runs[runs["name"] != "again"], "score")
    (row,) = report.paired(found).itertuples()
    differences = np.array([0.1, 0.12, 0.14])
    margin = 4.302653 * differences.std(ddof=1) / np.sqrt(3)
    assert (row.difference, row.low, row.n) == (pytest.approx(0.12), pytest.approx(0.12 - margin), 3)
    assert (row.verdict, row.p == row.p_holm) == ("higher", True)
    (reverse,) = report.paired(found, "estimator=synthesis").itertuples()
    assert (reverse.difference, reverse.verdict) == (pytest.approx(-0.12), "lower")
    (noisy,) = report.paired(report.configured(runs, "score")).itertuples()  # +0.1, +0.12, +0.04
    assert (noisy.low < 0 < noisy.high, noisy.verdict) == (True, "undecided")


def test_seeds_that_agree_show_no_spread_and_decide_nothing(store):
    for estimator, base in (("majority", 0.1), ("synthesis", 0.4)):
        for seed in range(3):  # 0.4 - 0.1 and 0.5 - 0.2 differ in the last digit, which is no spread
            finished(store, f"{estimator}{seed}", {"estimator": estimator, "seed": seed}, {"score": base + seed / 10})
    (row,) = report.paired(report.configured(report.read_runs(), "score")).itertuples()
    assert (row.difference, row.n, row.verdict, pd.isna(row.low)) == (pytest.approx(0.3), 3, "undecided", True)
    one = report.configured(report.read_runs("params.estimator = 'majority'"), "score").assign(value=1.0)
    assert report.summary(one, "score")["interval"].tolist() == ["none: seeds agree"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: report.read_runs("metrics.score >"), "filter='metrics.score >'"),
        (lambda r: report.read_runs("", ["smal"]), "no experiment 'smal'; did you mean 'small'"),
        (lambda r: report.read_runs("metrics.score > 99"), "no run in sqlite.*there are the experiments"),
        (lambda r: report.configured(r, "scor"), "metric='scor' is in no run; did you mean 'score'"),
        (lambda r: report.configured(r[r["name"] == "bad"], "score"), "no run that finished has it"),
        (lambda r: report.paired(report.configured(r, "score"), "estimator=gold"), "is no configuration"),
    ],
)
def test_what_cannot_be_compared_is_refused_and_says_what_is_there(runs, call, message):
    with pytest.raises(ValueError, match=message):
        call(runs)


def test_hostile_text_is_shown_and_neither_run_nor_loaded(store):
    for estimator in ("majority", HOSTILE):
        finished(store, f"run{len(estimator)}", {"estimator": estimator, "seed": 0}, {"score": 0.5}, text=HOSTILE)
    found = report.configured(report.read_runs(), "score")
    assert any(HOSTILE[:40] in kind for kind in found["kind"])
    rollouts, versus = report.examples(found, 3), report.paired(found)
    assert list(rollouts["text"]) == [HOSTILE] * 2
    axis = plt.figure().add_subplot()
    axis.set_title(report.label(found["kind"].iloc[-1]))  # a formula in it would raise when it is drawn
    words = report.in_words(versus, found["kind"].iloc[-1], "score")
    parts = [words, HOSTILE, report.summary(found, "score"), versus, rollouts, axis.figure]
    path = report.export(store / "report.html", HOSTILE, parts)
    text = path.read_text()
    page = BeautifulSoup(text, "html.parser")
    assert page.find_all(["script", "iframe", "object", "embed", "form", "base"]) == []
    assert [t for t in page.find_all(True) if any(a.startswith("on") for a in t.attrs)] == []
    for tag in page.find_all(["img", "link", "source", "audio", "video"]):
        assert (tag.get("src") or tag.get("href")).startswith("data:"), tag
    assert [a["href"] for a in page.find_all("a") if not a["href"].startswith("#")] == []
    assert "default-src 'none'" in page.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    assert "url(http" not in text
    assert "@import" not in text
    assert page.get_text().count("alert(1)</script>") >= 4  # there to be read
    assert len(text) < 2_000_000
