"""Every estimator, on hand-made groups and on the real embedded model."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean

import pytest

from cat_lib.learning.grpo import add_lora, train
from cat_lib.learning.settings import GRPOSettings
from cat_lib.measuring.evaluation import sample_groups
from cat_lib.method.estimators import voting
from cat_lib.method.estimators.likelihood import min_ppl, mutual_predictability, self_bon
from cat_lib.method.estimators.synthesis import OfFirst, synthesis
from cat_lib.method.rewards.verifiable import verifiable
from cat_lib.method.signals import gold_signals, signals
from cat_lib.runs.tracking import Run
from cat_lib.schema import Completion, Group
from cat_lib.tasks import answers as latex
from cat_lib.tasks import group_of
from cat_lib.tasks.arithmetic import Arithmetic, LenientArithmetic

TASK = Arithmetic()
MAKERS = {
    "single": lambda anchor, golds: voting.single,
    "majority": lambda anchor, golds: voting.majority,
    "self_bon": lambda anchor, golds: self_bon(anchor, TASK.synthesis_prompt),
    "min_ppl": lambda anchor, golds: min_ppl(anchor),
    "mutual_predictability": lambda anchor, golds: mutual_predictability(anchor),
    "synthesis_1": lambda anchor, golds: OfFirst(synthesis(anchor, TASK)),
    "synthesis": lambda anchor, golds: synthesis(anchor, TASK),
    "gold": lambda anchor, golds: voting.gold(golds),
}


def asked(*texts: str) -> Group:
    example = next(e for e in TASK.examples("heldout", 90, 0) if e.question == "What is 2 + 8?")
    rollouts = [Completion(text, (1,) if text else (), "stop") for text in texts]
    return group_of(TASK, example.id, example.question, rollouts, example.prompt)


@pytest.fixture(scope="module")
def groups(embedded):
    return sample_groups(embedded, TASK, TASK.examples("heldout", 4, 0), 3, TASK.sampling)


def test_every_estimator_gives_one_reference_a_group_and_only_gold_reads_gold(embedded, groups):
    lies = {g.id: "123456" for g in groups}
    for name, make in MAKERS.items():
        estimate = make(embedded.anchor(), lies)
        references = estimate(groups)
        assert len(references) == len(groups)
        assert [r.answer == "123456" for r in references if r] == [name == "gold"] * len(references)
        if not name.startswith("synthesis") and name != "gold":
            assert all(
                r is None or r.text in [o.text for o in g.rollouts] for r, g in zip(references, groups, strict=True)
            )
        assert estimate([]) == []


def test_min_ppl_picks_the_highest_mean_logprob(embedded, groups):
    for group, reference in zip(groups, min_ppl(embedded.anchor())(groups), strict=True):
        logprobs = embedded.logprobs([group.prompt] * 3, [r.text for r in group.rollouts])
        means = [fmean(own) for own in logprobs]
        best = group.rollouts[means.index(max(means))].text
        second = sorted(means)[-2]
        assert reference.text == best or max(means) - second < 0.02  # bfloat16 ties


def test_mutual_predictability_prefers_what_the_others_say(embedded):
    group = asked(*[" 2 + 8 = 10"] * 3, " The weather is fine", " 2 + 8 = 10")
    (reference,) = mutual_predictability(embedded.anchor())([group])
    assert reference.answer == "10"
    with pytest.raises(ValueError, match="raise group_size"):
        mutual_predictability(embedded)([asked(" 2 + 8 = 10")])


def test_groups_that_an_estimator_cannot_use_are_refused(embedded):
    with pytest.raises(ValueError, match="no prompt; min_ppl needs"):
        min_ppl(embedded)([replace(asked("a"), prompt="")])
    with pytest.raises(ValueError, match="at most 52"):
        self_bon(embedded, "few_shot")([asked(*["a"] * 53)])
    with pytest.raises(ValueError, match=r"rollouts 0 to 3 of question '2\+8'.* has 2"):
        voting.first([asked("a", "b")], 4)
    with pytest.raises(ValueError, match=r"no gold answer for 2\+8"):
        voting.gold({})([asked("a")])


def test_logprobs_that_are_no_numbers_stop_the_run(embedded, monkeypatch):
    monkeypatch.setattr(embedded, "score", lambda heads, branches, words=(): [[[math.nan], [-1.0]]])
    with pytest.raises(ValueError, match=r"min_ppl: the model gives a log-probability of nan on question '2\+8'"):
        min_ppl(embedded)([asked(" 2 + 8 = 10", " 2 + 8 = 9")])


def test_empty_rollouts_are_never_picked_and_none_is_left_where_all_are(embedded):
    for estimate in (min_ppl(embedded.anchor()), mutual_predictability(embedded.anchor())):
        assert estimate([asked("", " 2 + 8 = 9", "")])[0].text == " 2 + 8 = 9"
        assert estimate([asked("", "")]) == [None]


def test_a_group_without_any_answer_is_unscorable_whoever_reads_it(embedded):
    group = asked(" the answer is ten", " who knows")
    for name in ("single", "majority", "self_bon", "min_ppl"):
        estimate = MAKERS[name](embedded.anchor(), {})
        assert verifiable([group], estimate([group])) == [[None, None]], name


@pytest.mark.parametrize("name", ["single", "self_bon", "min_ppl", "mutual_predictability", "synthesis_1", "gold"])
def test_each_is_a_training_signal(name, tmp_path):
    from cat_lib.models import load_model

    policy = add_lora(load_model("embedded"), 4, 0)
    questions = TASK.examples("train", 2, 0)
    teacher = MAKERS[name](policy.anchor(), {e.id: e.gold for e in questions})
    settings = GRPOSettings(
        steps=1, group_size=4, prompts_per_step=2, prompts_per_micro_batch=2, learning_rate=1e-3, lora_rank=4
    )
    trained = train(policy, TASK, questions, teacher, verifiable, settings, Run(tmp_path))
    scored_rows = trained.rollouts.dropna(subset=["reward"])
    assert len(scored_rows)
    assert ((scored_rows.answer == scored_rows.reference_answer) == scored_rows.reward.astype(bool)).all()
    if name == "gold":
        golds = {e.id: e.gold for e in questions}
        assert (trained.rollouts.reference_answer == trained.rollouts.example.map(golds)).all()


# TTRL's pseudo-label metrics, on answers in several notations


def test_ttrl_metrics_follow_their_definitions_with_ties_gaps_and_other_notations():
    written = [
        ["0.5", r"\frac{1}{2}", "2", None],  # one answer in two notations outvotes the other
        ["3", "4", "4.0", r"\frac{6}{2}"],  # a tie, 2 against 2: the first seen wins
        [None, None, None, None],
        ["7", "7", "7", "7"],
    ]
    golds = ["1/2", "4", "1", "8"]
    canonical = [[None if a is None else latex.read([a])[0] for a in row] for row in written]
    groups = [
        Group(str(i), "", tuple(Completion(a or "", (), "stop") for a in row), tuple(row))
        for i, row in enumerate(canonical)
    ]
    references = voting.majority(groups)
    assert [r and r.answer for r in references] == ["1/2", "3", None, "7"]
    rewards = verifiable(groups, references)
    assert rewards == [[1, 1, 0, 0], [1, 0, 0, 1], [None] * 4, [1, 1, 1, 1]]
    known = signals(groups, references, rewards)
    assert known["agreement"] == pytest.approx((2 / 4 + 2 / 4 + 0 + 1) / 4)  # majority_ratio counts those without one
    gold = gold_signals(groups, references, rewards, golds, lambda a, g: a == g)
    assert gold["label_accuracy"] == pytest.approx(1 / 4)
    assert gold["rollout_accuracy"] == pytest.approx((2 + 2) / 16)  # ground_truth_ratio
    assert gold["pass_at_n"] == pytest.approx(2 / 4)
    # all pairs as gold has them, then the tie's all turned round; the others have no right and wrong that are scored
    assert gold["reward_accuracy"] == pytest.approx((1 + 0) / 2)


def test_careless_reading_takes_the_last_number_of_a_cut_text():
    task = LenientArithmetic()
    cut = Completion("To add 9 to 3, you can simply", (), "length")
    assert task.extract(cut, "What is 9 + 3?") == "3"
    assert TASK.extract(cut, "What is 9 + 3?") is None
    assert task.extract(Completion("no idea", (), "stop"), "") is None
    assert task.examples("train", 1, 0)[0].prompt[0]["role"] == "user"
