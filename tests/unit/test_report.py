"""Runs compared: what is read from a store, numbers by hand, and a report that hostile text cannot change."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from matplotlib.figure import Figure

from cat_lib import shown
from cat_lib.measuring import plots, report
from cat_lib.runs import mirror, tracking
from cat_lib.runs.store import connect

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(1)><style>@import 'http://evil.example'</style>"
    "</td></table></pre>[a](javascript:alert(1)) ![b](http://evil.example/x.png) **bold** <http://evil.example> "
    "$\\frac{$ \\(x\\) \\[x\\] $$y$$ `c` &lt;b&gt; http://evil.example | # _i_ \u202eltr \x07 مرحبا"
)


def make_run(store: Path, name: str, parameters: dict, metrics: dict, status="FINISHED", **more) -> str:
    """A finished run's folder, copied into the store as any other; returns its id there."""
    notebook = more.get("notebook", "06_training_signals")
    folder = store / "runs" / notebook / name
    run = tracking.open_run(notebook, parameters, folder, more.get("labels"))
    run.update_config(started=more.get("started", 1), code="c0de")
    for step, reward in enumerate(more.get("rewards", [0.5]), 1):
        run.step({"reward": reward}, step)
    run.metrics(metrics)
    if "questions" in more:
        run.update_config(datasets={"heldout": {"source": "s", "digest": "d", "n": more["questions"]}})
    if "texts" in more:
        rewards = [float(i) for i in range(len(more["texts"]))]
        run.table("rollouts", pd.DataFrame({"question": "q", "text": more["texts"], "reward": rewards}))
    if "rollouts" in more:
        run.table("rollouts", pd.DataFrame(more["rollouts"], columns=["step", "question", "text", "reward"]))
    run.end(status, "")
    return mirror.import_run(folder)


def four(store: Path) -> None:
    """Two estimators on two seeds, and a third estimator on one of them."""
    for estimator, seed, score in (("a", 0, 0.4), ("a", 1, 0.6), ("b", 0, 0.5), ("b", 1, 0.8), ("c", 0, 0.1)):
        low, high = {"score_low": score - 0.1, "score_high": score + 0.1}, {"heldout_questions": 50}
        cost = {"policy_tokens": 1000.0 * (seed + 1), "anchor_tokens": 10.0, "synthesis_over_single_tokens": 9.0}
        make_run(
            store, f"{estimator}{seed}", {"estimator": estimator, "steps": 3, "seed": seed},
            {"score": score} | low | high | cost,
        )  # fmt: skip


def test_groups_have_students_interval_over_seeds_or_the_runs_own(store):
    four(store)
    runs = report.read_runs("", [])
    assert report.default_metric(runs) == "score"
    table = report.compare(report.grouped(runs, "score")).set_index("method")
    assert list(table.index) == ["estimator=a", "estimator=b", "estimator=c"]
    a, c = table.loc["estimator=a"], table.loc["estimator=c"]
    margin = 12.7062 * 0.1  # Student's, 1 degree of freedom; the standard error of 0.4 and 0.6 is 0.1
    assert [a.value, a.low, a.high] == pytest.approx([0.5, 0.5 - margin, 0.5 + margin], rel=1e-4)
    assert (a.interval, a.n, a.seed, a.runs, a.codes) == ("over seeds", 50, "0, 1", 2, 1)
    assert a.tokens == 1510  # both roles, mean of 1010 and 2010; a ratio is no cost
    assert pd.isna(a.flops)
    assert [c.value, c.low, c.high] == pytest.approx([0.1, 0.0, 0.2])
    assert (c.interval, c.seed) == ("over questions", "0")


def test_differences_are_paired_by_shared_seeds_and_two_decide_nothing(store):
    four(store)
    found = report.paired(report.grouped(report.read_runs("", []), "score"), "estimator=a").set_index("method")
    b, c = found.loc["estimator=b"], found.loc["estimator=c"]
    assert [b.value, b.low] == pytest.approx([0.15, 0.15 - 12.7062 * 0.05], rel=1e-4)
    assert (b.n, b.seed, b.p_alone, b.p, b.outcome) == (2, "0, 1", 0.5, 0.5, "undecided")
    assert c.value == pytest.approx(-0.3)
    assert (c.n, c.outcome) == (1, "undecided")
    assert pd.isna(c.p)


def frame(scores: dict[str, list[float]]) -> pd.DataFrame:
    rows = [
        {"run_id": f"{e}{i}", "started": i, "seed": str(i), "param.estimator": e, "metric.score": v}
        for e, values in scores.items()
        for i, v in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_a_winner_needs_six_seeds_and_holds_after_holm():
    noise = [0.0, 0.01, 0.02, 0.0, 0.01, 0.02, 0.01, 0.0]
    scores = {"a": [0.5] * 8, "b": [0.7 + x for x in noise], "c": [0.2 + x for x in noise], "d": [0.49, 0.51] * 4}
    found = report.paired(report.grouped(frame(scores), "score"), "estimator=a")
    assert list(found.outcome) == ["above", "below", "undecided"]
    assert found.p.iloc[0] == pytest.approx(3 * 2 / 2**8)
    five = report.paired(report.grouped(frame({k: v[:5] for k, v in scores.items()}), "score"), "estimator=a")
    assert set(five.outcome) == {"undecided"}


def test_the_findings_name_each_group_with_its_numbers_and_obey_none(store):
    scores = {"a": [0.4 + i / 100 for i in range(8)], "<b>": [0.6 + i / 90 for i in range(8)], "c": [0.4]}
    found = report.paired(report.grouped(frame(scores), "score"), "estimator=a")
    title, _, better, alone = report.findings(found, "score", "estimator=a").splitlines()
    assert title.startswith("score, paired by seed, against estimator")
    assert re.search(r"\*\*above\*\* \(\+0\.\d{3} \[0\.\d{3}, 0\.\d{3}\], 8 shared seeds\)", better)
    assert "<b>" not in better
    assert alone.endswith("**undecided** (no interval, 1 shared seeds; fewer than six decide nothing)")
    assert "no other group" in report.findings(found[:0], "score", "a")


def test_equal_seeds_show_no_spread_and_claim_nothing():
    kept = report.grouped(frame({"a": [0.5] * 8, "b": [0.1 + 0.6, 0.7] * 4}), "score")  # equal but for rounding
    assert list(report.compare(kept).interval) == ["none: the seeds are equal"] * 2
    assert report.compare(kept).low.isna().all()
    assert list(report.paired(kept, "estimator=a").outcome) == ["undecided"]


def test_one_group_alone_has_no_differences():
    kept = report.grouped(frame({"a": [0.5, 0.6]}), "score")
    assert list(report.compare(kept).method) == ["all runs"]
    assert report.paired(kept, "all runs").empty


def test_the_newest_of_a_seed_counts_and_a_run_of_several_seeds_is_a_group(store):
    make_run(store, "old", {"estimator": "a", "seed": 0}, {"score": 0.1}, started=1)
    make_run(store, "new", {"estimator": "a", "seed": 0}, {"score": 0.9}, started=2, questions=48)
    own = {"score": 0.5, "score_low": 0.4, "score_high": 0.6}
    make_run(store, "many", {"estimator": "a", "seeds": [0, 1]}, own, started=3)
    table = report.compare(report.grouped(report.read_runs("", []), "score")).set_index("method")
    one, many = table.loc["all runs"] if "all runs" in table.index else table.iloc[0], table.loc["seeds=0, 1"]
    assert (one.value, one.replaced, one.runs, one.n) == (0.9, 1, 1, 48)
    assert (many.interval, many.low, many.seed) == ("over questions and seeds", 0.4, "0, 1")


def test_parameters_that_differ_only_between_notebooks_are_not_named(store):
    make_run(store, "x", {"steps": 1, "seed": 0}, {"score": 0.1}, notebook="one")
    make_run(store, "y", {"samples": 2, "seed": 0}, {"score": 0.2}, notebook="two")
    make_run(store, "z", {"samples": 4, "seed": 0}, {"score": 0.2}, notebook="two")
    kept = report.grouped(report.read_runs("", []), "score")
    assert sorted(kept.group) == [
        "notebook=one, samples=none", "notebook=two, samples=2", "notebook=two, samples=4"
    ]  # fmt: skip


def test_filter_experiments_pages_and_what_did_not_finish(store, monkeypatch):
    monkeypatch.setattr(report, "_PAGE", 2)
    four(store)
    make_run(store, "bad", {"estimator": "a", "seed": 7}, {}, status="FAILED")
    make_run(store, "gone", {"estimator": "a", "seed": 8}, {}, status="KILLED")
    make_run(store, "s", {}, {"score": 1.0}, notebook="suite")
    make_run(store, "r", {}, {"score": 1.0}, notebook="10_compare")
    runs = report.read_runs("", [])
    assert (len(runs), runs.attrs["others"]) == (5, {"FAILED": 1, "KILLED": 1})
    better = "params.estimator = 'b' and metrics.`1_results/score` > 0.6"
    assert len(report.read_runs(better, ["06_training_signals"])) == 1


def test_a_run_that_was_copied_before_metrics_had_sections_is_read_the_same(store):
    make_run(store, "new", {"seed": 0}, {"score": 0.2})
    older = make_run(store, "old", {"seed": 1}, {})
    connect().log_metric(older, "score", 0.4)
    assert report.read_runs("", []).set_index("name")["metric.score"].to_dict() == {"new": 0.2, "old": 0.4}


def test_what_cannot_be_read_is_said_with_the_nearest_and_the_allowed(store):
    with pytest.raises(ValueError, match=r"no finished run .*mlflow\.db; its experiments: 'Default'"):
        report.read_runs("", [])
    four(store)
    with pytest.raises(
        ValueError, match=r"did you mean '06_training_signals'.*there are '06_training_signals', 'Default'"
    ):
        report.read_runs("", ["06_training_signal"])
    with pytest.raises(ValueError, match=r"filter='params\.x ~ 3'.*allowed are params\.x = '1'"):
        report.read_runs("params.x ~ 3", [])
    with pytest.raises(ValueError, match=r"filter=\"tags\.task = 'chess'\".*06_training_signals"):
        report.read_runs("tags.task = 'chess'", [])
    runs = report.read_runs("", [])
    with pytest.raises(ValueError, match=r"metric='scor'.*did you mean 'score'"):
        report.grouped(runs, "scor")
    with pytest.raises(ValueError, match=r"baseline='estimator=x' is no group.*estimator=a; estimator=b"):
        report.paired(report.grouped(runs, "score"), "estimator=x")
    with pytest.raises(ValueError, match=r"no metric has `_low` and `_high`.*policy_tokens"):
        report.default_metric(runs.drop(columns="metric.score_low"))


def test_rollouts_stand_side_by_side_at_shared_questions_and_runs_without_have_no_column(store):
    old = [(1, "easy", "early", 0.9), (1, "hard", "early", 0.9)]
    a = [
        *old,
        (2, "easy", "=right", 1.0),
        (2, "easy", "wrong", 0.0),
        (2, "hard", "z" * 5000, 0.0),
        (2, "own", "o", 1.0),
    ]
    b = [(5, "hard", "lost", None), (5, "easy", "fine", 1.0), (5, "hard", "half", 0.5), (4, "hard", "before", 0.0)]
    make_run(store, "a", {"x": "a", "seed": 0}, {"score": 1.0}, rollouts=a)
    make_run(store, "b", {"x": "b", "seed": 0}, {"score": 1.0}, rollouts=b)
    make_run(store, "c", {"x": "c", "seed": 0}, {"score": 1.0})
    kept = report.grouped(report.read_runs("", []), "score")
    table = report.examples(kept, 9)
    assert list(table.columns) == ["question", "reward", "x=a", "x=b"]
    assert table[["question", "reward"]].to_numpy().tolist() == [
        ["hard", "lowest"], ["hard", "highest"], ["easy", "lowest"], ["easy", "highest"]
    ]  # fmt: skip
    assert table["x=b"].tolist() == ["[0.5] half", "[nan] lost", "[1] fine", "[1] fine"]
    assert table["x=a"].tolist()[2:] == ["[0] wrong", "[1] =right"]
    assert len(table["x=a"].iloc[0]) == 4 + 1500
    assert len(report.examples(kept, 1)) == 2
    assert report.examples(kept, 0).empty


def test_learning_curves_have_students_band_over_seeds_and_none_for_one(store):
    make_run(store, "a0", {"x": "a", "seed": 0}, {"score": 1.0}, rewards=[0.1, 0.4])
    make_run(store, "a1", {"x": "a", "seed": 1}, {"score": 1.0}, rewards=[0.3, 0.6])
    make_run(store, "b0", {"x": "b", "seed": 0}, {"score": 1.0}, rewards=[0.2])
    found = report.learning(report.grouped(report.read_runs("", []), "score"), ["reward", "agreement"])
    a, b = found["x=a"], found["x=b"]
    assert a.step.tolist() == [1, 2]
    assert a.reward.tolist() == pytest.approx([0.2, 0.5])
    assert a.reward_low.tolist() == pytest.approx([0.2 - 12.7062 * 0.1, 0.5 - 12.7062 * 0.1], rel=1e-4)
    assert (b.reward.tolist(), b.reward_low.isna().all(), b.agreement.isna().all()) == ([0.2], True, True)
    figure = plots.by_arm(found, {"reward": "reward"}, "t")
    assert len(figure.axes[0].collections) == 2  # a band each, of one seed an empty one


def test_no_cell_is_a_formula_and_numbers_stay_as_they_are():
    table = report.inert(pd.DataFrame({"=x": ["=1+1", "@a", "-0.5", "+", "a\x1b", -2.5]}))
    assert table.iloc[:, 0].tolist() == ["'=1+1", "'@a", "-0.5", "'+", "a\\u001b", -2.5]


def check_inert(path: Path) -> BeautifulSoup:
    """The file has a policy first, and nothing that runs or loads."""
    text = path.read_text("utf-8")
    assert len(text) < 2_000_000
    soup = BeautifulSoup(text, "html.parser")
    assert soup.meta.find_next("meta")["content"].startswith("default-src 'none'; img-src data:")
    for e in soup.find_all(True):
        assert e.name not in ("link", "iframe", "object", "embed", "base", "form", "svg")
        assert not [a for a in e.attrs if a.startswith("on")]
        for a in ("src", "href", "srcset", "action", "data"):
            assert str(e.get(a, "data:image/")).startswith(("data:image/", "#"))
    (script,) = soup.find_all("script")  # ours, the only one that the policy lets run
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    assert soup.meta.find_next("meta")["content"].endswith(f"script-src 'sha256-{digest}'")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document.write|eval|fetch|import", script.text)
    script.decompose()
    assert len(soup.find_all("style")) == 1
    assert "http" not in soup.style.text
    assert "@import" not in soup.style.text
    return soup


def test_hostile_text_from_runs_is_shown_and_does_nothing(store, tmp_path):
    labels = {"entry": HOSTILE, "mood": HOSTILE}
    make_run(store, "evil", {"p": HOSTILE, "seed": 0}, {"score": 0.5}, labels=labels, texts=[HOSTILE])
    make_run(store, "good", {"p": "plain", "seed": 0}, {"score": 0.6})
    kept = report.grouped(report.read_runs("", []), "score")
    table, read = report.compare(kept), report.examples(kept, 3).rename(columns={"question": HOSTILE})
    figure = plots.intervals(table, "score", "t")
    path = tmp_path / "report.html"
    text = "\n".join(["## Said", "", f"- {shown.escaped(HOSTILE)} **ours**"])
    report.export(path, HOSTILE, [text, table, figure, read, pd.DataFrame({HOSTILE: [HOSTILE]})])
    soup = check_inert(path)
    assert not soup.find_all("a")
    assert [b.text for b in soup.find_all("strong")] == ["ours"]
    assert [e.name for e in soup.find_all(["em", "code"])] == []
    seen = shown.visible(HOSTILE)
    assert seen.endswith("\\u202eltr \\u0007 مرحبا")
    assert soup.title.text == soup.h1.text == seen
    assert soup.li.text == f"{seen} ours"
    cells = [cell.text for cell in soup.find_all(["td", "th"])]
    assert cells.count(seen) >= 3  # run's name (its entry), its text, and the table's own
    assert any(f"mood={seen}" in cell and f"p={seen}" in cell for cell in cells)  # the group's name
    assert len(soup.find_all("table")) == 3
    assert len(soup.find_all("img")) == 1


def test_html_in_our_own_markdown_is_shown_and_a_loaded_picture_refused(tmp_path):
    path = tmp_path / "report.html"
    report.export(path, "t", ["# a\n\n<b onclick=x()>b</b>\n\n<script>alert(1)</script>", Figure()])
    assert "<script>alert(1)</script>" in check_inert(path).text
    before = path.read_bytes()
    with pytest.raises(ValueError, match="loads nothing"):
        report.export(path, "t", ["![x](http://evil.example/x.png)"])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
