"""TTRL, SCRL, certainty and the controls against their authors' formulas, written out slowly here."""

from __future__ import annotations

import ast
import json
import math
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import mean

import pytest
import torch

import cat_lib
from cat_lib.learning.trl import Signal
from cat_lib.method.controls import Random, format_only, gold_wrong_majority
from cat_lib.method.estimators.voting import first, gold, majority, none
from cat_lib.method.rewards import certainty
from cat_lib.method.rewards.scrl import SCRL
from cat_lib.method.rewards.verifiable import verifiable
from cat_lib.method.signals import flip_rate, gold_signals, signals
from cat_lib.models.passes import draw
from cat_lib.schema import Completion, Group, Sampling
from cat_lib.tasks import group_of
from cat_lib.tasks.math import MathTask

NOTATIONS = {
    "1/2": ["1/2", "0.5", r"\frac{1}{2}", r"\dfrac12"],
    "142": ["142", "142.0", "+142", r"142^\circ"],
    r"\sqrt{2}": [r"\sqrt{2}", r"\sqrt2", r"2^{1/2}"],
    "7": ["7", "7.0", "x=7"],
    "8": ["8"],
}


def rollout(entropy=1.0, text=""):
    return Completion(text, (1, 2), "stop", -0.5, entropy, 3.0)


def group(*answers, entropies=None, lost=(), id="q"):
    entropies = entropies or [1.0] * len(answers)
    return Group(id, "?", tuple(map(rollout, entropies)), answers, lost=frozenset(lost))


def generated(count: int, seed: int) -> list[Group]:
    """Groups of 16 and 32 of all shapes: sure, split and scattered ones, ties, missing answers, equal entropies."""
    rng, groups = random.Random(seed), []
    for i in range(count):
        votes, kinds = rng.choice([16, 32]), rng.choice([1, 2, 3, 5, 9, 20])
        weights = [rng.choice([0.2, 1, 1, 4]) for _ in range(kinds)] + [rng.choice([0, 0, 1, 3])]
        answers = rng.choices([*map(str, range(kinds)), None], weights, k=votes)
        if i % 7 == 0:  # two of the same share
            answers = [str(j % 2) for j in range(votes // 2)] + answers[votes // 2 :]
        entropies = [rng.choice([0.25, 0.5]) if i % 5 == 0 else rng.random() * 2 for _ in answers]
        groups.append(group(*answers, entropies=entropies, id=str(i)))
    return groups


@cache
def written() -> list[Group]:
    """Groups of 16 whose rollouts write the same answers in other notations, or box none, read as the task reads."""
    rng, task, groups = random.Random(3), MathTask("math500", []), []
    for i in range(12):
        texts = [rng.choice(rng.choices(list(NOTATIONS.values()), [6, 2, 1, 1, 1])[0]) for _ in range(16)]
        rollouts = [rollout(rng.random(), rf"so \boxed{{{t}}}" if rng.random() > 0.1 else "I can't say") for t in texts]
        groups.append(group_of(task, f"written {i}", "q", rollouts))
    return groups


def by_hand(answers, entropies, selective=True, negatives=True, gate=True, dynamic=True):
    """SCRL by its equations, one rollout after the other: the positive, the negatives, the rewards."""
    tau_pos, tau_marg, tau_neg, lambda_h, n = 0.375, 0.125, 0.125, 0.1, len(answers)

    def p(a):
        return len([1 for other in answers if other == a]) / n

    def h(a):
        return mean(entropies[j] for j in range(n) if answers[j] == a)

    overall, positive = mean(entropies), None
    real = [a for i, a in enumerate(answers) if a is not None and a not in answers[:i]]
    if real:
        best = max(real, key=p)
        others = [p(a) for a in real if a != best]
        if not selective or (p(best) >= tau_pos and (not others or p(best) - max(others) > tau_marg)):
            positive = best
    negative = {a for a in real if a != positive and p(a) < tau_neg and (h(a) >= overall - 1e-12 or not gate)}
    negative = negative if negatives else set()
    rewards = []
    for a in answers:
        if a is None:
            rewards.append(-1.0)
        elif not dynamic:
            rewards.append(1.0 if a == positive else -1.0 if a in negative else 0.0)
        else:
            value = p(a) if a == positive else p(a) - tau_neg if a in negative else 0.0
            rewards.append(value - lambda_h * (h(a) - overall))
    return positive, negative, rewards


@pytest.mark.parametrize(
    ("off", "ours"),
    [
        ({}, {}),
        ({"selective": False}, {}),  # the majority is the estimator
        ({"negatives": False}, {"tau_neg": 0}),
        ({"gate": False}, {"gate": False}),
        ({"dynamic": False}, {"dynamic": False}),
    ],
)
def test_scrl_and_its_ablations_are_the_authors_formulas(off, ours):
    groups = [*generated(400, 1), *written()]
    seen = {"positive": 0, "abstained": 0, "negative": 0, "none": 0}
    for own in groups:
        entropies = [r.mean_entropy for r in own.rollouts]
        positive, negative, expected = by_hand(own.answers, entropies, **off)
        scrl = SCRL(**ours)
        references = scrl.estimate([own]) if "selective" not in off else majority([own])
        assert (references[0].answer if references[0] else None) == positive, own.answers
        (rewards,) = scrl([own], references)
        assert rewards == pytest.approx(expected, abs=1e-6), own.answers
        seen["positive"] += positive is not None
        seen["abstained"] += positive is None
        seen["negative"] += len(negative)
        seen["none"] += None in own.answers
    assert min(seen[k] for k in ("positive", "none", *([] if "selective" in off else ["abstained"]))) > 50, seen
    assert seen["negative"] > 100 or "negatives" in off


def test_other_notations_are_one_answer_and_no_box_is_none():
    answers = {a for g in written() for a in g.answers}
    assert None in answers
    assert len(answers) <= 1 + len(NOTATIONS)


def test_scrl_on_all_missing_all_different_and_all_the_same():
    scrl = SCRL()
    missing, same = group(*[None] * 16), group(*["5"] * 16)
    different = group(*map(str, range(16)), entropies=[0.5, 1.5] * 8)
    references = scrl.estimate([missing, different, same])
    assert [r and r.answer for r in references] == [None, None, "5"]
    rewards = scrl([missing, different, same], references)
    assert rewards[0] == [-1.0] * 16
    # one vote each: those of more than mean entropy are negative, all pay or earn by their entropy
    assert rewards[1] == pytest.approx([0.05, 1 / 16 - 0.125 - 0.05] * 8)
    assert rewards[2] == [1.0] * 16
    lost = group(*["5"] * 15, None, lost=[15])
    assert scrl([lost], scrl.estimate([lost]))[0][14:] == [pytest.approx(15 / 16), None]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tau_pos": 0.1}, "0 <= tau_neg <= tau_pos <= 1"),
        ({"tau_pos": 1.5}, r"tau_pos=1.5.*allowed is"),
        ({"tau_marg": -0.1}, "tau_marg"),
        ({"lambda_h": -1.0}, "lambda_h"),
    ],
)
def test_scrl_that_can_t_work_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        SCRL(**given)


def test_scrl_names_too_few_votes_and_unknown_entropies():
    with pytest.raises(ValueError, match=r"votes=8: .* no answer can be negative; take 9 votes or more, or tau_neg=0"):
        SCRL()([group(*"11112222")], [None])
    with pytest.raises(ValueError, match="16 rollouts, 15 of known entropy"):
        SCRL()([group(*"1" * 16, entropies=[None, *[1.0] * 15])], [None])
    assert SCRL(tau_neg=0)([group(*"11112222")], [None]) == [[0.0] * 8]


def test_ttrl_s_metrics_before_and_after_the_subsample_are_theirs():
    """`ttrl_utils.py` by prompt, then the mean over prompts: all votes, and the first half, with one label for both."""
    groups, rng = generated(300, 2), random.Random(0)
    golds = [rng.choice([*filter(None, g.answers), "other"]) for g in groups]
    references = majority(groups)
    for kept in (None, 8):
        label, hit, ratio, voted, truth, passed = [], [], [], [], [], []
        for own, right in zip(groups, golds, strict=True):
            valid = [a for a in own.answers if a is not None]
            vote = max(dict.fromkeys(valid), key=valid.count) if valid else "None"
            seen = own.answers[:kept]
            estimated, true = [float(a == vote) for a in seen], [float(a == right) for a in seen]
            label.append(float(vote == right))
            hit.append(mean(float(e == t) for e, t in zip(estimated, true, strict=True)))
            ratio.append(valid.count(vote) / len(own.answers))
            voted.append(mean(estimated))
            truth.append(mean(true))
            passed.append(float(sum(true) >= 1))
        rewards = [own[:kept] for own in verifiable(groups, references)]
        shown = first(groups, kept) if kept else groups
        found = gold_signals(shown, references, rewards, golds, lambda a, g: a == g)
        assert found["label_accuracy"] == pytest.approx(mean(label), abs=1e-6)
        assert found["reward_hit_rate"] == pytest.approx(mean(hit) if kept else weighted(hit, groups), abs=1e-6)
        assert found["rollout_accuracy"] == pytest.approx(mean(truth) if kept else weighted(truth, groups), abs=1e-6)
        assert found["pass_at_n"] == pytest.approx(mean(passed), abs=1e-6)
        flat = [r or 0.0 for own in rewards for r in own]
        assert mean(flat) == pytest.approx(mean(voted) if kept else weighted(voted, groups), abs=1e-6)
        if not kept:
            assert signals(groups, references, rewards)["agreement"] == pytest.approx(mean(ratio), abs=1e-6)


def weighted(shares, groups):
    """Of groups of unlike size, the mean over rollouts, as ours is; in a training all have one size."""
    sizes = [len(g.answers) for g in groups]
    return sum(s * n for s, n in zip(shares, sizes, strict=True)) / sum(sizes)


def test_certainty_is_its_formulas_on_tiny_logits():
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * 3
    tokens, *told = draw(logits, Sampling(1, 0.7, top_k=3), torch.rand(6, generator=torch.Generator().manual_seed(1)))
    means = [float(part.mean()) for part in told]
    made = Completion("", tuple(tokens.tolist()), "stop", *means)
    scaled = [[float(x) / 0.7 for x in row] for row in logits]
    probs = [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in scaled]
    chosen = [row[t] for row, t in zip(probs, tokens.tolist(), strict=True)]
    expected = {
        "self_certainty": mean(math.log(sum(map(math.exp, row))) - mean(row) for row in scaled),
        "token_entropy": mean(sum(p * math.log(p) for p in row) for row in probs),
        "trajectory_entropy": mean(map(math.log, chosen)),
        "probability": math.prod(chosen),
    }
    # KL(uniform || p), which is the same but for log V
    kl = mean(sum(math.log(1 / 5 / p) / 5 for p in row) for row in probs)
    assert expected["self_certainty"] == pytest.approx(kl + math.log(5))
    one = [Group("q", "?", (made,), (None,))]
    for name, value in expected.items():
        assert getattr(certainty, name)(one, none(one)) == [[pytest.approx(value, abs=1e-6)]], name
    unknown = [Group("q", "?", (replace(made, self_certainty=None),), ("1",))]
    with pytest.raises(ValueError, match="'q' comes without self_certainty"):
        certainty.self_certainty(unknown, none(unknown))


def test_random_rewards_are_a_coin_that_a_resume_tosses_on():
    groups = [group(*"12345678", id=str(i)) for i in range(100)]
    coin = Random(0.25, seed=1)
    before = coin(groups, none(groups))
    assert mean(r for own in before for r in own) == pytest.approx(0.25, abs=0.05)
    state = coin.state()
    after, resumed = coin(groups, none(groups)), Random(0.25, seed=1)
    resumed.load(state)
    assert resumed(groups, none(groups)) == after != before
    with pytest.raises(ValueError, match=r"p=1: allowed is above 0 and below 1"):
        Random(1)


def test_the_other_controls_are_what_their_names_say():
    groups = [group("1", "2", "2", "1", "2", None, lost=[5]), group("1", "1", None), group(None, id="none")]
    groups = [replace(g, id=str(i)) for i, g in enumerate(groups)]
    assert format_only(groups, none(groups)) == [[1, 1, 1, 1, 1, None], [1, 1, 0], [0]]
    golds = {"0": "2", "1": "1", "2": "4"}
    wrong = gold_wrong_majority(golds, lambda a, g: a == g)(groups)
    assert [r and (r.answer, r.estimator) for r in wrong] == [("1", "gold_wrong_majority"), None, None]
    wrong = gold_wrong_majority({**golds, "0": "9"}, lambda a, g: a == g)(groups)
    assert wrong[0].answer == "2"
    with pytest.raises(ValueError, match="no gold answer for 2"):
        gold_wrong_majority({"0": "2", "1": "1"}, lambda a, g: a == g)(groups)


def test_only_what_is_named_after_gold_answers_reads_them():
    """Every signal of this file, under right and under wrong golds: the rewards of all others are the same."""
    groups = generated(40, 5)
    groups = [g for g in groups if len(g.answers) == 16]
    for g in groups:
        assert not any("gold" in field for field in g.__dataclass_fields__)
    scrl = SCRL()
    right = {g.id: next(filter(None, g.answers), "1") for g in groups}
    lies = dict.fromkeys(right, "123456")

    def rewarded(golds):
        rows = {
            "majority": (majority, verifiable),
            "scrl": (scrl.estimate, scrl),
            "random": (none, Random()),
            "format_only": (none, format_only),
            "gold": (gold(golds), verifiable),
            "gold_wrong_majority": (gold_wrong_majority(golds, lambda a, g: a == g), verifiable),
        } | {name: (none, rule) for name, rule in vars(certainty).items() if isinstance(rule, certainty.Certainty)}
        assert len(rows) == 10
        return {name: rule(groups, estimate(groups)) for name, (estimate, rule) in rows.items()}

    first_, second = rewarded(right), rewarded(lies)
    assert {name for name in first_ if first_[name] != second[name]} == {"gold", "gold_wrong_majority"}


def test_no_function_of_the_method_names_a_gold_answer_without_saying_so():
    found = set()
    for file in sorted((Path(cat_lib.__file__).parent / "method").rglob("*.py")):
        for part in ast.parse(file.read_text()).body:
            names = {str(getattr(node, kind, "")) for node in ast.walk(part) for kind in ("id", "arg", "attr")}
            reads = any("gold" in name for name in names)
            if reads and isinstance(part, ast.FunctionDef | ast.ClassDef) and "gold" not in part.name:
                found.add((file.name, part.name))
    assert found == set()


def test_the_flip_rate_is_of_questions_seen_before_and_reads_no_label():
    signal = Signal(none, verifiable)
    assert flip_rate([group(*"112", id="a"), group(*"333", id="b")], signal.majorities) == {}
    seen = [group(*"122", id="a"), group(*"33", id="b"), group("1", id="c")]
    assert flip_rate(seen, signal.majorities) == {"flip_rate": 0.5}
    later = Signal(none, verifiable)
    later.load(json.loads(json.dumps(signal.state())))
    assert flip_rate([group(None, id="b")], later.majorities) == {"flip_rate": 1.0}  # from an answer to none
    assert flip_rate([group("1", id="d")], later.majorities) == {}
