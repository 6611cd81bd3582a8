"""Phases of a curriculum: what stands in their prompts, when training goes on to the next, and a resume across them."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_policy

from cat_lib.learning.curriculum import Curriculum, Phase
from cat_lib.learning.grpo import train
from cat_lib.learning.settings import GRPOSettings
from cat_lib.method.estimators.voting import none
from cat_lib.runs.tracking import Run
from cat_lib.schema import Completion, Sampling, Verdict
from cat_lib.tasks.formulate import CHECKS, FormulateTask

PHASES = [Phase("two_products", True), Phase("two_products"), Phase("two_resources")]
TASK = FormulateTask(each=6, sampling=Sampling(6, temperature=0.7, stop=("end",)))
COURSE = Curriculum(PHASES, TASK, questions=4, k=2)


class Says:
    """A policy that answers each prompt with one text of `told`, in turn."""

    def __init__(self, *told: str) -> None:
        self.told = itertools.cycle(told)

    def generate(self, prompts, n, sampling):
        return [[Completion(next(self.told), (1,), "stop") for _ in range(n)] for _ in prompts]


def test_a_scaffold_shows_the_form_of_each_model_and_not_one_of_its_numbers():
    plain, shown = COURSE.examples(1), COURSE.examples(0)
    assert [(e.id, e.question, e.gold) for e in plain] == [(e.id, e.question, e.gold) for e in shown]
    for e in shown:
        *_, asked = e.prompt.split("Problem: ")
        form = asked.removeprefix(f"{e.question}\n")
        names = [word for word in TASK.gold_models[e.id].split() if word.isalpha() and word != "end"]
        assert form.startswith("Form: max obj: ? ")
        assert form.endswith(" <= ?\n")
        assert [word for word in form.split() if word.isalpha()] == names
        assert not any(sign.isdigit() for sign in form)
        assert e.prompt.count("\nForm: ") == 4
    assert not any("Form: " in e.prompt for e in plain)
    json_form = FormulateTask(("pumps",), each=2, scaffold=True).examples("train", 1, 0)[0].prompt.split("Form: ")[-1]
    assert '"integer": true' in json_form
    assert '"high": ?' in json_form
    assert [phase.name for phase in PHASES] == ["two_products_scaffold", "two_products", "two_resources"]
    with pytest.raises(ValueError, match="n=4: the train split has 2 questions"):
        replace(COURSE, task=replace(TASK, each=2)).examples(0)


def test_problems_are_told_anew_where_the_words_say_what_the_model_says(tmp_path):
    own, path = COURSE.examples(1), tmp_path / "retold.jsonl"
    same = [f"Once more. {e.question}" for e in own]
    name = next(word for word in TASK.gold_models[own[2].id].split() if word.isalpha() and word in own[2].question)
    model = " ".join(TASK.gold_models[own[3].id].split())  # says each number once, and every name
    texts = [same[0], f"{same[1]} For 7.", same[2].replace(name, "things"), model]
    course = replace(COURSE, phases=[Phase("two_products", True), Phase("two_products")])
    (scaffold, told), share = course.problems(Says(*texts), path)
    assert share == 1 / 4
    assert [e.question for e in told] == [same[0], *(e.question for e in own[1:])]
    assert told[0].prompt == own[0].prompt.replace(own[0].question, same[0])
    assert [e.question for e in scaffold] == [e.question for e in told]  # written once, for both
    assert [(e.id, e.gold) for e in told] == [(e.id, e.gold) for e in own]
    again, _ = course.problems(Says("asked again"), path)
    assert again == [scaffold, told]
    assert course.problems(None, path) == ([COURSE.examples(0), own], 0.0)


def test_words_that_a_judge_finds_wrong_are_not_taken(tmp_path):
    own, path, asked = COURSE.examples(1), tmp_path / "retold.jsonl", []
    same = [f"Once more. {e.question}" for e in own[:3]]

    def judge(pairs):
        asked.append(pairs)
        return [Verdict(met) for met in ([True] * 5, [True] * 4 + [False], [None] + [True] * 4)[len(asked) - 1]]

    course = replace(COURSE, phases=[Phase("two_products")])
    ((told,), share) = course.problems(Says(*same, "no problem"), path, judge)
    assert share == 1 / 4
    assert [e.question for e in told] == [same[0], *(e.question for e in own[1:])]
    assert len(asked) == 3  # what fails the check of its numbers is not shown
    assert [check for _, check in asked[0]] == list(CHECKS)
    assert asked[0][0][0] == f"Problem:\n{same[0]}\n\nModel:\n{TASK.gold_models[own[0].id]}"
    assert [json.loads(line)["failed"] for line in path.read_text().splitlines()] == [[], [CHECKS[4]], [CHECKS[0]], []]
    assert course.problems(Says("asked again"), path, None)[0] == [told]


def test_a_phase_is_left_when_the_next_one_has_a_right_model_and_not_for_a_lucky_value(tmp_path):
    hard = COURSE.examples(2)
    lucky = [f"max\n a\nst\n a <= {e.gold}\n" for e in hard]
    right = TASK.gold_models | replace(TASK, levels=("two_resources",)).gold_models
    one = [right[e.id].removesuffix("end") for e in hard]
    arm = Run(tmp_path)
    assert COURSE.advance(1, Says("no model"), arm, 1, 0) == 1
    assert COURSE.advance(1, Says(*(text for text in lucky for _ in range(2))), arm, 2, 0) == 1
    texts = [text for pair in zip(lucky, [one[0], *lucky[1:]], strict=True) for text in pair]
    assert COURSE.advance(1, Says(*texts), arm, 3, 0) == 2
    assert COURSE.advance(2, None, arm, 4, 0) == 2  # the last: nothing is drawn
    lines = [json.loads(line) for line in (tmp_path / "curriculum.jsonl").read_text().splitlines()]
    shares = [(line.get("pass_at_k"), line.get("value_pass_at_k"), line["moved"]) for line in lines]
    assert shares == [(0, 0, 0), (0, 1, 0), (0.25, 1, 1), (None, None, 0)]
    assert [line["phase"] for line in lines] == [1, 1, 1, 2]
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["metrics"]["moved"]) for line in logged] == [(1, 0), (2, 0), (3, 1), (4, 0)]
    # what is known is not drawn again
    assert [COURSE.advance(at, None, arm, turn, 0) for turn, at in ((1, 1), (2, 1), (3, 1), (4, 2))] == [1, 1, 2, 2]


def course_of(folder, rule, monkeypatch):
    """Three turns, as in the notebook's cell, of a policy whose every rollout counts as a right model."""
    monkeypatch.setattr(FormulateTask, "right_models", lambda self, groups: [[True] * len(g.rollouts) for g in groups])
    policy, at, run, names = tiny_policy(), 0, Run(folder), []
    settings = GRPOSettings(2, 2, 2, 2, 1e-2, lora_rank=4, beta=0.1, save_steps=1)
    for turn in range(1, 4):
        how, part = replace(settings, seed=turn), run.part(f"arm_{turn}")
        names.append(COURSE.phases[at].name)
        trained = train(policy, COURSE.asked(at), COURSE.examples(at), none, rule, how, part)
        at = COURSE.advance(at, policy, run.part("arm"), turn, turn)
    return names, load_file(trained.adapter / "adapter_model.safetensors"), trained.history["reward"].tolist()


def test_a_resume_across_phases_ends_as_the_undisturbed_run(tmp_path, monkeypatch):
    def by_tokens(groups, _):
        return [[float(sum(r.token_ids) % 3) for r in group.rollouts] for group in groups]

    whole = course_of(tmp_path / "whole", by_tokens, monkeypatch)
    calls = []

    def killed(groups, references):
        calls.append(1)
        if len(calls) == 4:  # in the second step of the second phase
            raise KeyboardInterrupt
        return by_tokens(groups, references)

    with pytest.raises(KeyboardInterrupt):
        course_of(tmp_path / "again", killed, monkeypatch)
    again = course_of(tmp_path / "again", by_tokens, monkeypatch)
    assert again[0] == whole[0] == [phase.name for phase in PHASES]
    assert again[2] == whole[2]
    assert all(torch.equal(again[1][name], value) for name, value in whole[1].items())
    lines = [(tmp_path / folder / "arm" / "curriculum.jsonl").read_text() for folder in ("whole", "again")]
    assert lines[0] == lines[1]
