"""Rubrics and the rewards made of them: hand-worked scores, proposals, failures, and what must not reach a reward."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest

from cat_lib.measuring.audit import ATTACKS
from cat_lib.measuring.scoring import clipped_mean, judged, score, score_metrics, tag_scores
from cat_lib.method.rewards import rubric as rules
from cat_lib.method.rewards.proposals import Proposer, parse_rubric, rubric_similarity, same_words
from cat_lib.method.rewards.rubric import JudgeError, LengthPenalty, RubricReward, share_met
from cat_lib.schema import Completion, Criterion, Example, Group, Reference, Rubric, Verdict

MET, UNMET, LOST = Verdict(True), Verdict(False), Verdict(None, "deadline")
WELL = "<rubric>" + "".join(f"<criterion>Says thing number {w}.</criterion>" for w in "abcde") + "</rubric>"


def group(*texts: str, id: str = "q1", question: str = "What helps a cold?", tokens: int = 3) -> Group:
    rollouts = tuple(Completion(t, (1,) * tokens, "stop") for t in texts)
    return Group(id, question, rollouts, (None,) * len(texts))


def rubric(*points: float, tags: tuple[str, ...] = ()) -> Rubric:
    return Rubric(tuple(Criterion(f"criterion {i}", p, tags) for i, p in enumerate(points)), "test")


class Anchor:
    """Replies from a list, in turn, and keeps what it was asked."""

    def __init__(self, *replies: str, finish: str = "stop") -> None:
        self.replies, self.finish, self.asked = list(replies), finish, []

    def generate(self, prompts, n, sampling):
        self.asked += [str(p) for p in prompts]
        return [[Completion(self.replies.pop(0), (), self.finish) for _ in range(n)] for _ in prompts]


# HealthBench's rule


@pytest.mark.parametrize(
    ("points", "met", "expected"),
    [
        ((7, 5, 10, -6), (1, 0, 1, 0), 17 / 22),
        ((7, 5, 10, -6), (1, 0, 1, 1), 11 / 22),  # a met negative subtracts and is not in the denominator
        ((5, -9), (0, 1), -9 / 5),  # below zero, and not clipped
        ((5, 5), (0, 0), 0.0),
        ((3, 4), (1, 1), 1.0),
        ((-3,), (1,), None),  # nothing positive to score by
    ],
)
def test_a_response_scores_points_met_over_positive_points(points, met, expected):
    verdicts = [Verdict(bool(m)) for m in met]
    assert score(rubric(*points).criteria, verdicts) == (None if expected is None else pytest.approx(expected))


def test_a_lost_verdict_is_no_score_and_never_an_unmet_criterion():
    assert score(rubric(5, 5).criteria, [MET, LOST]) is None


def test_tags_are_scored_over_their_own_criteria():
    criteria = (
        Criterion("a", 6, ("axis:x",)),
        Criterion("b", 2, ("axis:y", "axis:x")),
        Criterion("c", -4, ("axis:y",)),
    )
    example = Example("1", "q", "q", "", "t", Rubric(criteria, "physician"), ("theme:t",))
    scores = tag_scores(example, [MET, UNMET, MET])
    assert scores == {"score": pytest.approx(2 / 8), "theme:t": pytest.approx(2 / 8), "axis:x": 6 / 8, "axis:y": -2.0}


def test_only_the_mean_is_clipped():
    assert clipped_mean([-1.0, 1.0, 1.0]).value == pytest.approx(1 / 3)  # clipping each would give 2/3
    low = clipped_mean([-2.0, -1.0, 0.5])
    assert (low.value, low.low) == (0.0, 0.0)


def test_a_bootstrap_interval_covers_its_mean():
    rng = np.random.default_rng(0)
    covered = [(e := clipped_mean(rng.normal(0.5, 0.2, 40), seed=i)).low <= 0.5 <= e.high for i in range(200)]
    assert 0.88 <= fmean(covered) <= 0.99


def test_judged_groups_give_scores_by_question_and_sample_and_a_paired_difference():
    examples = [Example(str(i), "q", "q", "", "t", rubric(2, 2), ("theme:t",)) for i in range(4)]
    weak, strong = ([group(t, t, id=e.id) for e in examples] for t in ("nothing", "criterion 0"))

    def says(pairs):
        return [Verdict(c in r) for r, c in pairs]

    before, after = judged(examples, weak, says), judged(examples, strong, says)
    assert before.scores.tolist() == [[0.0, 0.0]] * 4
    assert after.scores.tolist() == [[0.5, 0.5]] * 4
    metrics = score_metrics(before, after)
    assert metrics["heldout_rubric_score_difference"] == 0.5
    assert after.by_tag().set_index("method").loc["theme:t", "n"] == 4
    lost = judged(examples, strong, lambda pairs: [LOST, *says(pairs)[1:]])  # and again when asked again
    assert lost.unscored == 1 / 8
    assert lost.per_question.tolist() == [0.5] * 4
    once = iter([True])
    passing = judged(examples, strong, lambda pairs: [LOST, *says(pairs)[1:]] if next(once, False) else says(pairs))
    assert passing.unscored == 0
    with pytest.raises(ValueError, match=r"fewer than 2 of 4 questions could be scored.*deadline"):
        judged(examples, strong, lambda pairs: [LOST] * len(pairs))


# proposals


@pytest.mark.parametrize(
    "text",
    [
        "no XML at all",
        "<rubric><criterion>cut off",
        "<rubric></criterion></rubric>",
        "<rubric><criterion></criterion></rubric>",
        "<rubric><criterion><b>nested</b></criterion></rubric>",
        "<rubric><item>other element</item></rubric>",
        '<rubric><criterion points="5">points where none are asked</criterion></rubric>',
        "<rubric><criterion>one</criterion></rubric><rubric><criterion>two</criterion></rubric>",
        '<!DOCTYPE r [<!ENTITY a "b">]><rubric><criterion>&a;</criterion><!-- x --></rubric>',
        "<rubric><criterion>" + "a" * 30_000 + "</criterion></rubric>",
        "<rubric>" + "<a>" * 5000 + "</rubric>",
    ],
)
def test_malformed_rubrics_are_refused(text):
    with pytest.raises(ValueError, match=r"\w"):
        parse_rubric(text)


def test_a_rubric_is_read_with_text_around_it_and_bare_ampersands():
    text = "Sure!\n```xml\n<rubric>\n<criterion>Rest &amp; fluids</criterion><criterion>A & B</criterion></rubric>\n```"
    assert [c.text for c in parse_rubric(text)] == ["Rest & fluids", "A & B"]


@pytest.mark.parametrize("points", ["0", "five", "1e9", "", "nan"])
def test_points_must_be_whole_numbers(points):
    with pytest.raises(ValueError, match="points"):
        parse_rubric(f'<rubric><criterion points="{points}">a</criterion></rubric>', points=True)


def test_points_and_pitfalls_are_read():
    text = '<rubric><criterion points="7">good</criterion><criterion points="-3">bad</criterion></rubric>'
    assert [c.points for c in parse_rubric(text, points=True)] == [7.0, -3.0]


def test_replies_are_pooled_until_there_are_enough_distinct_criteria():
    two = "<rubric><criterion>Names rest.</criterion><criterion>names REST</criterion></rubric>"
    anchor = Anchor(two, "garbage", WELL)
    (proposal,) = Proposer(anchor, attempts=3)(["a text"], "reference")
    assert len(proposal.rubric.criteria) == 6
    assert (proposal.malformed, proposal.duplicates) == (1, 1)


def test_a_failed_proposal_makes_the_group_unscorable_and_says_why():
    proposer = Proposer(Anchor(*["garbage"] * 3), attempts=3)
    (proposal,) = proposer(["a text"], "reference")
    assert proposal.rubric is None
    assert "0 distinct criteria after 3 attempts" in proposal.cause
    rule = RubricReward(lambda pairs: [MET] * len(pairs), lambda groups, references: [proposal])
    assert rule([group("a", "b")], [None]) == [[None, None]]


def test_a_cut_reply_is_malformed_even_if_it_parses():
    (proposal,) = Proposer(Anchor(WELL, finish="length"), attempts=1)(["a text"], "reference")
    assert proposal.rubric is None


def test_criteria_that_their_own_text_fails_are_dropped():
    text = '<rubric><criterion points="2">a x</criterion><criterion points="2">b y</criterion>'
    text += '<criterion points="2">c z</criterion><criterion points="-5">d w</criterion>'
    text += '<criterion points="-5">e v</criterion></rubric>'

    def says(pairs):
        return [LOST if c == "c z" else Verdict(c in ("a x", "e v")) for _, c in pairs]

    (proposal,) = Proposer(Anchor(text), judge=says, points=True, minimum=3)(["a text"], "reference")
    # b is not met; e is a pitfall that the text falls into; c's verdict is lost, which is no evidence against it
    assert [c.text for c in proposal.rubric.criteria] == ["a x", "c z", "d w"]
    assert proposal.unmet == 2


def five(*words: str) -> str:
    return "<rubric>" + "".join(f"<criterion>Says {w} thing.</criterion>" for w in words) + "</rubric>"


def test_criteria_are_counted_after_those_that_the_text_fails_are_dropped():
    asked = []

    def says(pairs):
        asked.extend(c for _, c in pairs)
        return [Verdict("unmet" not in c) for _, c in pairs]

    anchor = Anchor(five("a", "b", "c", "d", "unmet"), five("a", "e", "unmet"))
    (proposal,) = Proposer(anchor, judge=says, attempts=2)(["a text"], "reference")
    assert [c.text for c in proposal.rubric.criteria] == [f"Says {w} thing." for w in "abcde"]
    assert (proposal.unmet, proposal.duplicates) == (1, 2)  # what was dropped and comes again is a duplicate
    assert len(asked) == len(set(asked)) == 6
    (short,) = Proposer(Anchor(five("a", "b", "c", "d", "unmet")), judge=says, attempts=1)(["t"], "reference")
    assert short.rubric is None
    assert short.cause.startswith("4 distinct criteria that the text meets, and 1 that it does not, after 1 attempts")


def test_only_texts_that_still_lack_criteria_are_asked_again():
    def says(pairs):
        return [Verdict("unmet" not in c) for _, c in pairs]

    anchor = Anchor(five(*"abcde"), five("a", "b", "c", "d", "unmet"), five("e"))
    first, second = Proposer(anchor, judge=says, attempts=3)(["one", "two"], "reference")
    assert [len(p.rubric.criteria) for p in (first, second)] == [5, 5]
    assert len(anchor.asked) == 3


@pytest.mark.parametrize(
    "text", ["Says that oxygen <92% is an emergency", "Calls 3 < 5 true", "Limits salt to <= 5 g & sugar", "Gives a<2"]
)
def test_signs_in_a_criterion_cost_no_rubric(text):
    assert [c.text for c in parse_rubric(f"<rubric><criterion>{text}.</criterion></rubric>")] == [f"{text}."]


def test_similarity_of_rubrics():
    assert same_words("Says to rest.", "says TO rest") == 1.0
    a, b = rubric(1, 1), Rubric((Criterion("something else entirely"),), "test")
    assert rubric_similarity(a, a) == 1.0
    assert rubric_similarity(a, b) == 0.0


# sources: who writes the rubric, and what they may see


def test_the_paper_s_rubric_is_written_from_the_reference_without_the_question():
    anchor = Anchor(WELL)
    rubrics = rules.from_reference(Proposer(anchor))
    rubrics([group("rollout text")], [Reference("the reference text", None, "synthesis")])
    assert "the reference text" in anchor.asked[0]
    assert "What helps a cold?" not in anchor.asked[0]
    assert "rollout text" not in anchor.asked[0]


def test_the_controls_see_what_their_names_say(tmp_path):
    anchor = Anchor(WELL, WELL)
    proposer = Proposer(anchor)
    reference = [Reference("the reference text", None, "synthesis")]
    rules.from_question(proposer, tmp_path / "rubrics.jsonl")([group("rollout text")], reference)
    rules.from_rollout(proposer)([group("rollout text")], reference)
    assert "What helps a cold?" in anchor.asked[0]
    assert "rollout text" in anchor.asked[1]
    assert not any("the reference text" in prompt for prompt in anchor.asked)


def test_a_question_s_rubric_is_written_once(tmp_path):
    anchor = Anchor(WELL)
    rubrics = rules.from_question(Proposer(anchor), tmp_path / "rubrics.jsonl")
    first, again = (rubrics([group("a")], [None]) for _ in range(2))
    assert first == again
    assert len(anchor.asked) == 1


def test_a_question_whose_rubric_failed_stays_without_and_is_counted_once(tmp_path):
    anchor = Anchor("garbage")
    rubrics = rules.from_question(Proposer(anchor, attempts=1), tmp_path / "rubrics.jsonl")
    first, second = (rubrics([group("a")], [None])[0] for _ in range(2))
    assert (first.rubric, first.malformed, second.rubric, second.malformed) == (None, 1, None, 0)
    assert second.cause == first.cause
    assert len(anchor.asked) == 1


class Drawing:
    """Its reply hangs on the seed and on the place in the batch, as a real engine's does."""

    def __init__(self) -> None:
        self.calls = 0

    def generate(self, prompts, n, sampling):
        self.calls += 1
        draws = [random.Random(f"{sampling.seed} {place}") for place in range(len(prompts))]
        return [[Completion(five(*(f"{d.random()}" for _ in range(5))), (), "stop")] for d in draws]


def asked_in(order: str, rubrics):
    return {id: rubrics([group("a", id=id, question=f"What of {id}?")], [None])[0].rubric for id in order}


def test_a_question_s_rubric_does_not_hang_on_its_place(tmp_path):
    alone = asked_in("wxyz", rules.from_question(Proposer(Drawing()), tmp_path / "alone"))
    backwards = asked_in("zyxw", rules.from_question(Proposer(Drawing()), tmp_path / "backwards"))
    groups = [group("a", id=id, question=f"What of {id}?") for id in "yzwxy"]
    together = rules.from_question(Proposer(Drawing()), tmp_path / "together")(groups, [None] * 5)
    assert alone == backwards == {g.id: p.rubric for g, p in zip(groups, together, strict=True)}
    assert len(set(alone.values())) == 4
    other = Proposer(Drawing(), sampling=replace(Proposer(Drawing()).sampling, seed=1))
    assert asked_in("w", rules.from_question(other, tmp_path / "other"))["w"] != alone["w"]


def test_rubrics_written_once_outlive_their_process_and_are_shared(tmp_path):
    path, engines = tmp_path / "arm" / "rubrics.jsonl", [Drawing() for _ in range(3)]
    first, beside, later = (rules.from_question(Proposer(e), path) for e in engines)
    written = asked_in("wx", first)
    assert asked_in("xy", beside)["x"] == written["x"]  # another process, at the same time
    with path.open("a") as file:
        file.write('{"example": "z", "crit')  # a process that died in the middle
    assert asked_in("wxyz", later) == asked_in("wxyz", first)
    assert [e.calls for e in engines] == [2, 1, 1]
    failing = rules.from_question(Proposer(Anchor("garbage"), attempts=1), path)
    failed = asked_in("v", failing)
    assert failed == asked_in("v", rules.from_question(Proposer(Drawing()), path)) == {"v": None}


def test_expert_criteria_reach_a_reward_only_through_the_rule_named_physician(tmp_path):
    secret = Example("q1", "What helps a cold?", "p", "", "t", Rubric((Criterion("EXPERT ONLY"),), "physician"))
    seen: list[str] = []

    def says(pairs):
        seen.extend(f"{r} {c}" for r, c in pairs)
        return [MET] * len(pairs)

    anchor = Anchor(*[WELL] * 3)
    proposer = Proposer(anchor, judge=says)
    reference = [Reference("the reference text", None, "synthesis")]
    asking = rules.from_question(proposer, tmp_path / "rubrics.jsonl")
    blind = (rules.from_reference(proposer), asking, rules.from_rollout(proposer))
    for rubrics in (*blind, rules.equivalence()):
        RubricReward(says, rubrics)([group("a", "b")], reference)
    assert not any("EXPERT ONLY" in text for text in seen + anchor.asked)
    RubricReward(says, rules.physician([secret]))([group("a", "b")], [None])
    assert any("EXPERT ONLY" in text for text in seen)


# rewards


def test_a_reward_is_the_share_of_criteria_met():
    assert share_met(rubric(1, 1, 1, 1, 1), [MET, MET, UNMET, MET, MET]) == pytest.approx(0.8)  # the paper's example
    assert share_met(rubric(8, 2, -5), [MET, UNMET, MET]) == pytest.approx(0.3)


def test_too_few_verdicts_are_no_reward():
    assert share_met(rubric(1, 1, 1, 1), [MET, LOST, LOST, LOST]) is None
    assert share_met(rubric(1, 1, 1, 1), [LOST] * 4) is None


def test_with_30_percent_of_verdicts_lost_the_rewards_stay_unbiased_and_none_is_scored_0():
    rng = random.Random(0)
    scale, truth = rubric(8, 5, 3, 1, -6), [MET, UNMET, MET, MET, MET]
    full = share_met(scale, truth)
    drawn = [share_met(scale, [LOST if rng.random() < 0.3 else v for v in truth]) for _ in range(20_000)]
    known = [r for r in drawn if r is not None]
    error = np.std(known) / np.sqrt(len(known))
    assert abs(fmean(known) - full) < 4 * error
    assert error < 0.005
    assert drawn.count(0.0) == 0  # every subset of at least three verdicts has points here
    # the same losses scored as "not met" would have been far off
    assert (
        abs(fmean(share_met(scale, [UNMET if rng.random() < 0.3 else v for v in truth]) for _ in range(2000)) - full)
        > 0.05
    )


def test_above_the_stated_share_of_failures_it_stops_with_the_causes():
    rule = RubricReward(lambda pairs: [MET, *[LOST] * (len(pairs) - 1)], lambda g, r: [rules.Proposal(rubric(1, 1))])
    with pytest.raises(JudgeError, match=r"3 of 4 verdicts failed.*3 x deadline"):
        rule([group("a", "b")], [None])


def test_a_judge_that_always_says_the_same_is_flagged():
    rule = RubricReward(lambda pairs: [MET] * len(pairs), lambda g, r: [rules.Proposal(rubric(*[1] * 50))])
    with pytest.warns(UserWarning, match="the judge said yes to 100% of its last 200 pairs"):
        rule([group("a", "b", "c", "d")], [None])


@pytest.mark.parametrize(("reading", "expected"), [("added", -0.2), ("replacing", -1.0)])
def test_length_penalty_in_both_readings(reading, expected):
    penalty = LengthPenalty(reading=reading)
    assert penalty(0.8, 751) == pytest.approx(expected)
    assert penalty(0.8, 750) == 0.8
    assert penalty(None, 2000) is None


def test_the_penalty_counts_tokens_of_the_rollout():
    proposal = rules.Proposal(rubric(1))
    rule = RubricReward(lambda pairs: [MET] * len(pairs), lambda g, r: [proposal], LengthPenalty(limit=5))
    assert rule([group("a", tokens=6)], [None]) == [[0.0]]
    assert rule([group("a", tokens=5)], [None]) == [[1.0]]


def test_model_as_judge_asks_for_the_same_meaning_as_the_reference():
    asked = []

    def says(pairs):
        asked.extend(pairs)
        return [Verdict(r == "b") for r, _ in pairs]

    rule = RubricReward(says, rules.equivalence())
    assert rule([group("a", "b")], [Reference("the reference\ntext", None, "synthesis")]) == [[0.0, 1.0]]
    assert all('"the reference text"' in c for _, c in asked)
    assert rule([group("a", "b")], [None]) == [[None, None]]


def test_what_was_judged_is_told_with_its_metrics(tmp_path):
    proposal = replace(rules.Proposal(rubric(1, 1)), duplicates=2)
    rule = RubricReward(lambda pairs: [Verdict(r == "b") for r, _ in pairs], lambda g, r: [proposal])
    rule([group("a", "b", "b", "b")], [None])
    metrics = rule.observe(3, tmp_path)
    assert metrics["met_share"] == 0.75
    assert metrics["verdict_agreement"] == 0.75
    assert (metrics["rubric_duplicates"], metrics["rubric_missing"], metrics["verdict_failed"]) == (2.0, 0.0, 0.0)
    assert {name: len(table) for name, table in rule.tables().items()} == {"verdicts": 8, "rubrics": 2}


def test_hostile_text_never_makes_a_rubric_by_accident():
    taken = []
    for text in (t for _, t in ATTACKS):
        try:
            taken.append(parse_rubric(text))
        except ValueError:
            continue
    assert [[c.text for c in criteria] for criteria in taken] == [["met"]]  # the one that is a well-formed rubric
