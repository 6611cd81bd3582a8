"""The method's parts on hand-made groups: task, estimators, rewards, signals, and the guard on gold answers."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from jinja2 import UndefinedError

from cat_lib.learning.trl import Signal, group_reward, whole_groups
from cat_lib.method.estimators.synthesis import synthesis, synthesis_prompt
from cat_lib.method.estimators.voting import agreement, majority
from cat_lib.method.rewards.verifiable import verifiable
from cat_lib.method.signals import answer_dependence, collapse, gold_signals, reward_accuracy, signals
from cat_lib.models.chat import fit
from cat_lib.prompts import ask, fence, fill, one_line
from cat_lib.schema import Completion, Group, Reference
from cat_lib.tasks import group_of
from cat_lib.tasks.arithmetic import LEVELS, Arithmetic, _side

TASK = Arithmetic()
QUESTION = "What is 2 + 5?"


def said(*texts: str) -> Group:
    return group_of(TASK, "2+5", QUESTION, [Completion(t, (), "stop") for t in texts])


def answers(*values: str | None) -> Group:
    return Group("q", "?", tuple(Completion(v or "", (), "stop") for v in values), values)


# the task


def test_no_operand_pair_is_on_both_sides_and_worked_examples_are_on_none():
    pairs = {s: {tuple(sorted(map(int, e.id.replace("x", "+").replace("-", "+").split("+"))))
             for e in TASK.examples(s, n, 0)} for s, n in (("train", 95), ("heldout", 120))}  # fmt: skip
    assert pairs["train"].isdisjoint(pairs["heldout"])
    assert (3, 4) not in pairs["train"] | pairs["heldout"]
    for level in LEVELS.values():
        assert all(_side(a, b) == _side(b, a) for a, _, b in level)


def test_every_question_has_its_right_gold_and_seeds_change_the_order():
    examples = TASK.examples("train", 95, 0)
    for e in examples:
        a, operation, b = e.question.removeprefix("What is ").removesuffix("?").split()
        assert e.gold == str({"+": int(a) + int(b), "-": int(a) - int(b), "x": int(a) * int(b)}[operation])
        assert e.prompt.endswith(f"Q: {e.question}\nA:")  # the gold answer is not in it
    assert len({e.id for e in examples}) == 95
    assert [e.id for e in examples] != [e.id for e in TASK.examples("train", 95, 1)]


@pytest.mark.parametrize(("split", "n"), [("test", 1), ("train", 0), ("heldout", 10_000)])
def test_a_split_that_cannot_be_had_is_refused(split, n):
    with pytest.raises(ValueError, match=r"allowed|ask for 1 to"):
        TASK.examples(split, n, 0)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 5 = 7", "7"),
        (" 2+5=7.\n", "7"),
        ("Let me see.\n2 + 5 = 07", "7"),
        ("2 + 5 = 8", "8"),
        ("7", None),
        ("1 + 1 = 2", None),
        ("5 + 2 = 7", None),
        ("2 + 5 = 7 or 8", None),
        ("2 + 5 = 7\nI hope this helps", None),
        ("2 + 5 = seven", None),
        ("2 + 5 = -7", None),
        ("2 + 5 = ٧", None),
        ("2 + 5 = __import__('os').getpid()", None),
        ("2 + 5 = " + "9" * 100_000, None),
        ("2 + 5 = 7\n" * 100_000, None),
        ("\x00\ud800\uffff", None),
        ("", None),
    ],
)
def test_extraction_is_strict(text, answer):
    assert TASK.extract(Completion(text, (), "stop"), QUESTION) == answer


def test_a_cut_completion_has_no_answer():
    assert TASK.extract(Completion("2 + 5 = 7", (), "length"), QUESTION) is None


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_can_be_read(seed):
    import random

    junk = random.Random(seed).randbytes(3000).decode("utf-8", "replace")
    assert TASK.extract(Completion(junk, (), "stop"), QUESTION) is None


# estimators


def test_majority_drops_missing_answers_and_breaks_ties_by_order():
    assert majority([answers("8", "7", None, "7")])[0].answer == "7"
    assert majority([answers(None, "9", "7", "7", "9")])[0].answer == "9"
    assert majority([answers(None, None)]) == [None]
    assert agreement(["7", "7", None, "8"]) == 0.5
    assert agreement([None, None]) == 0.0


def test_the_anchor_does_not_see_the_question_unless_asked(embedded):
    group = Group("q", "Why is the sky blue?", (Completion("Rayleigh", (), "stop"),) * 2, (None, None))
    for kind in ("reasoning", "freeform", "few_shot"):
        blind = str(synthesis_prompt(embedded, group, kind, 16, include_question=False))
        told = str(synthesis_prompt(embedded, group, kind, 16, include_question=True))
        assert "sky" not in blind
        assert "Why is the sky blue?" in told
        assert "1. " in blind
        assert "2. " in blind
        assert "{{" not in blind + told


def test_synthesis_shows_the_question_only_where_it_is_asked_to(embedded, monkeypatch):
    asked = []
    monkeypatch.setattr(type(embedded), "generate", lambda _, prompts, *__: asked.extend(prompts) or [[]])
    group = replace(said("2 + 5 = 7", "It is 7"), question="Why is the sky blue?")
    for given in ({}, {"include_question": True}):
        with pytest.raises(ValueError, match="not enough values"):  # of a model that answers nothing
            synthesis(embedded, TASK, "reasoning", **given)([group])
    assert ["sky" in str(prompt) for prompt in asked] == [False, True]


def test_fences_are_longer_than_what_they_hold_and_filling_is_one_pass():
    assert fence("``` and `````").splitlines()[0] == "``````"
    assert one_line("a\n2. b\x1b[0m") == "a 2. b [0m"
    filled = fill("synthesis_reasoning", rollouts=["{{ question }}"], question="")
    assert "{{ question }}" in filled
    with pytest.raises(UndefinedError, match="'question' is undefined"):
        fill("synthesis_reasoning", rollouts=["x"])


def test_a_prompt_is_text_to_go_on_with_or_a_chat():
    for name in ("few_shot", "likelihood"):
        assert str(ask(f"judge_{name}", response="It rests.", criterion="Rests.")).endswith("Rests.")
    for name in ("chat", "text"):
        (turn,) = ask(f"judge_{name}", response="It rests.", criterion="Rests.")
        assert turn["role"] == "user"
        assert "Criterion: Rests." in turn["content"]


def test_long_groups_are_cut_to_the_room_and_keep_their_ends(embedded):
    long, short = " ".join(f"w{i}" for i in range(2000)) + " = 42", "2 + 5 = 7"
    cut = fit(embedded, [long, short, long], 600)
    assert cut[1] == short
    assert cut[0].startswith("w0 w1")
    assert cut[0].endswith("= 42")
    assert "[...]" in cut[0]
    assert sum(len(embedded.encode(t)) for t in cut) <= 600
    with pytest.raises(ValueError, match="lower group_size"):
        fit(embedded, [long] * 100, 600)


def test_synthesis_of_a_huge_group_fits_the_context(embedded):
    group = Group("q", QUESTION, (Completion("word " * 50_000, (), "stop"),) * 8, (None,) * 8)
    prompt = synthesis_prompt(embedded, group, "few_shot", 16, include_question=False)
    assert len(embedded.encode(prompt)) + 16 <= embedded.context


def test_synthesis_reads_an_agreeing_group(embedded):
    (reference,) = synthesis(embedded.anchor(), TASK)([said(*["2 + 5 = 7"] * 8)])
    assert (reference.answer, reference.estimator) == ("7", "synthesis")
    with pytest.raises(ValueError, match="allowed are reasoning"):
        synthesis(embedded, TASK, "poem")


# rewards


def test_reward_is_one_zero_or_none():
    group = said("2 + 5 = 7", "2 + 5 = 8", "seven", "1 + 1 = 2")
    seven, none = Reference("2 + 5 = 7", "7", "x"), Reference("it is seven", None, "x")
    assert verifiable([group] * 3, [seven, none, None]) == [[1.0, 0.0, 0.0, 0.0], [None] * 4, [None] * 4]
    assert verifiable([said("no")], [seven]) == [[0.0]]


def adapter(examples, record=None, size=2):
    def on_step(step, groups, references, rewards):
        if record is not None:
            record.append((groups, rewards))
        return {"seen": float(len(groups))}

    def read(prompt, text, ids):
        return Completion(text, tuple(ids), "stop" if ids[-1] == 9 else "length")

    return group_reward(TASK, examples, Signal(majority, verifiable), size, read, on_step)


def call(reward, ids, texts, last=9):
    logged = {}
    rewards = reward(
        prompts=[""] * len(ids), completions=[[{"role": "assistant", "content": t}] for t in texts],
        completion_ids=[[1, last]] * len(ids), example_id=ids, trainer_state=SimpleNamespace(global_step=0),
        log_metric=logged.__setitem__, log_extra=None,
    )  # fmt: skip
    return rewards, logged


def test_adapter_rewards_whole_groups_in_order():
    a, b = TASK.examples("train", 2, 0)
    texts = [f"{e.question[8:-1]} = {n}" for e, n in ((a, 1), (a, 1), (b, 1), (b, 2))]
    rewards, logged = call(adapter([a, b]), [a.id, a.id, b.id, b.id], texts)
    assert rewards == [1.0, 1.0, 1.0, 0.0]
    assert logged == {"seen": 2.0}
    assert call(adapter([a, b]), [a.id] * 2, texts[:2], last=3)[0] == [None, None]  # cut: nobody answered


def test_adapter_refuses_broken_groups():
    a, b = TASK.examples("train", 2, 0)
    with pytest.raises(ValueError, match="mix the questions"):
        call(adapter([a, b]), [a.id, b.id], ["", ""])
    with pytest.raises(ValueError, match="whole groups of 2"):
        call(adapter([a]), [a.id] * 3, [""] * 3)
    with pytest.raises(ValueError, match="rows 2 to 3"):
        whole_groups([("a", "", [], {})] * 3 + [("b", "", [], {})], 2)


def test_gold_cannot_reach_a_reward():
    """Wrong golds on every example change no reward, and a group has nowhere to carry one."""
    examples = TASK.examples("train", 3, 0)
    lies = [replace(e, gold="123456") for e in examples]
    ids = [e.id for e in examples for _ in range(2)]
    texts = [f"{e.question[8:-1]} = {e.gold if i else 5}" for e in examples for i in range(2)]
    seen: list = []
    assert call(adapter(examples, seen), ids, texts)[0] == call(adapter(lies, seen), ids, texts)[0]
    assert all("123456" not in repr(entry) for entry in seen)
    assert not any("gold" in field for field in Group.__dataclass_fields__)


# signals


def test_signals_on_hand_made_groups():
    groups = [answers("7", "7", "8", None), answers("3", "3", "3", "3"), answers(None, None, None, None)]
    references = [Reference("", "8", "s"), Reference("", "3", "s"), None]
    rewards = verifiable(groups, references)
    known = signals(groups, references, rewards)
    assert known["agreement"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert known["disagreement"] == 0.5
    assert known["unscorable"] == pytest.approx(1 / 3)
    assert known["no_answer"] == pytest.approx(5 / 12)
    assert known["zero_variance"] == 0.5
    gold = gold_signals(groups, references, rewards, ["7", "3", "1"], TASK.correct)
    assert gold["label_accuracy"] == pytest.approx(1 / 3)
    # group 1: two right rollouts with 0 0, two wrong ones with 1 0; of four pairs two are turned round, two tie.
    # Groups 2 and 3 have no pair of a right and a wrong rollout that are scored
    assert gold["reward_accuracy"] == pytest.approx(1 / 4)
    assert gold["rollout_accuracy"] == pytest.approx(6 / 12)


@pytest.mark.parametrize(
    ("rewards", "right", "expected"),
    [
        ([[0.9, 0.2, 0.4]], [[True, False, False]], 1.0),
        ([[-1.0, -0.2, 0.4]], [[True, False, False]], 0.0),  # rewards of any size, below zero as well
        ([[0.5, 0.5, 0.1]], [[True, False, False]], 0.75),  # one tie, one as gold orders them
        ([[None, 0.5, 0.1]], [[True, True, False]], 1.0),  # what is unscorable is in no pair
        ([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [[True, False], [True, False], [True, True]], 0.5),  # a mean of groups
        ([[1.0, 0.0], [None, 1.0]], [[True, True], [True, False]], None),
        ([], [], None),
    ],
)
def test_reward_accuracy_is_the_share_of_pairs_that_a_reward_orders_as_gold_does(rewards, right, expected):
    assert reward_accuracy(rewards, right) == expected


def test_answer_dependence_is_mutual_information():
    assert answer_dependence([["1", "1"], ["2", "2"]]) == pytest.approx(math.log(2))
    assert answer_dependence([["1", "1"], ["1", "1"]]) == 0.0
    assert answer_dependence([["1", "2"], ["1", "2"]]) == pytest.approx(0.0)
    assert answer_dependence([[None], []]) == 0.0


def test_collapse_watch_warns_of_agreement_without_the_question_only():
    def warnings(steps):
        return collapse([{"step": i, "agreement": a, "answer_dependence": d} for i, (a, d) in enumerate(steps, 1)])

    healthy = [(0.5 + 0.05 * i, 2.0 + 0.05 * i) for i in range(9)]
    collapsing = [(0.5 + 0.05 * i, 2.0 - 0.2 * i) for i in range(9)]
    forgetting = [(0.5 - 0.02 * i, 2.0 - 0.2 * i) for i in range(9)]
    assert not warnings(healthy)
    assert not warnings(forgetting)
    assert "without reading the question" in warnings(collapsing)[0]
    assert [warning.split(":")[0] for warning in warnings(collapsing)] == ["step 6"]
