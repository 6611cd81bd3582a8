"""Two policies on one set of weights: each is trained, generates and scores as if it were alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_policy

from cat_lib.learning.checkpoints import load_adapter, newest_checkpoint
from cat_lib.learning.grpo import add_lora, train
from cat_lib.learning.settings import GRPOSettings
from cat_lib.method.estimators.voting import majority
from cat_lib.models import ModelError
from cat_lib.models.endpoint import EndpointModel
from cat_lib.runs.tracking import Run
from cat_lib.schema import Sampling
from cat_lib.tasks.arithmetic import Arithmetic

TASK = Arithmetic()
PROMPTS = [e.prompt for e in TASK.examples("train", 3, 0)]


def adapter_of(policy):
    return {n: p.detach().clone() for n, p in policy.model.named_parameters() if "lora_" in n}


def said(model):
    return [[c.token_ids for c in group] for group in model.generate(PROMPTS, 2, Sampling(8, seed=1))]


def step(policy, folder):
    """One step of GRPO whose rewards have no meaning."""
    rewards = itertools.cycle([0.0, 1.0, 1.0, 0.0])

    def alternate(groups, references):
        return [[next(rewards) for _ in g.rollouts] for g in groups]

    settings = GRPOSettings(1, 4, 2, 2, learning_rate=1e-1, lora_rank=4)
    return train(policy, TASK, TASK.examples("train", 4, 0), majority, alternate, settings, Run(folder))


def test_training_one_policy_leaves_the_other_and_the_anchor_as_they_were(tmp_path, untracked):
    solver = tiny_policy()
    poser = add_lora(solver, 4, 1, "poser")
    anchor, before = solver.anchor(), adapter_of(poser)
    initial, scored = said(anchor), anchor.logprobs(PROMPTS, [" 12"] * 3)
    assert said(solver) == said(poser) == initial  # fresh adapters change nothing
    step(solver, tmp_path / "solver")
    assert all(torch.equal(p, before[n]) for n, p in adapter_of(poser).items())
    assert said(solver) != initial
    assert said(poser) == said(anchor) == said(poser.anchor()) == initial
    assert anchor.logprobs(PROMPTS, [" 12"] * 3) == scored != solver.logprobs(PROMPTS, [" 12"] * 3)
    step(poser, tmp_path / "poser")  # what the first had learnt does not come in its way
    assert said(poser) not in (initial, said(solver))
    assert said(anchor) == initial
    assert {"policy", "poser", "anchor"} <= solver.ledger.roles.keys()


def test_policies_have_one_set_of_weights_in_memory():
    solver = tiny_policy()
    poser, anchor = add_lora(solver, 4, 1, "poser"), solver.anchor()
    shared = {p.data_ptr() for p in anchor.model.parameters()}
    for policy in (solver, poser):
        own = {p.data_ptr() for n, p in policy.model.named_parameters() if "lora_" not in n}
        assert own == shared
    assert solver.parameters == poser.parameters == anchor.parameters
    assert solver.anchor().identity == poser.anchor().identity


def test_a_policy_is_found_by_its_name_and_a_new_one_takes_its_place():
    solver = tiny_policy()
    poser = add_lora(solver, 4, 1, "poser")
    assert solver.adapter("poser").model is poser.model
    assert (solver.anchor().adapter("poser").role, poser.adapter("policy").model) == ("poser", solver.model)
    again = add_lora(solver, 4, 2)
    assert poser.adapter("policy").model is again.model is not solver.model
    with pytest.raises(ModelError, match=r"adapter 'judge': 'tiny' has policy, poser; make it with add_lora"):
        solver.adapter("judge")


def test_checkpoints_of_each_policy_load_into_it_alone(tmp_path, untracked):
    solver = tiny_policy()
    poser = add_lora(solver, 4, 1, "poser")
    done = [step(policy, tmp_path / policy.role) for policy in (solver, poser)]
    names = [{*load_file(d.adapter / "adapter_model.safetensors")} for d in done]
    assert names[0] == names[1]
    assert not [p for d in done for p in d.adapter.iterdir() if p.is_dir()]
    trained = adapter_of(poser)
    fresh, kept = add_lora(solver, 4, 3, "poser"), adapter_of(solver)
    load_adapter(fresh.model, newest_checkpoint(tmp_path / "poser"))
    assert all(torch.equal(p, trained[n]) for n, p in adapter_of(fresh).items())
    assert all(torch.equal(p, kept[n]) for n, p in adapter_of(solver).items())
    assert said(fresh) == said(poser)


def test_a_model_behind_an_endpoint_refuses_by_name_what_a_server_does_not_have():
    model = EndpointModel("m", "http://127.0.0.1:1/v1")
    with pytest.raises(ModelError, match=r"endpoint:m@http://127.0.0.1:1/v1' can't be trained .* take a local model"):
        add_lora(model, 4, 0)
    refused = [
        lambda: model.context, lambda: model.encode("a"), lambda: model.decode([1]), lambda: model.split("a", "b"),
        lambda: model.logprobs(["a"], ["b"]), lambda: model.score([[1]], [["a"]]), lambda: model.adapter("policy"),
    ]  # fmt: skip
    for ask in refused:
        with pytest.raises(ModelError, match=r"^model='endpoint:m@\S+' (gives|has) no .*take a local model \(engine"):
            ask()
    assert (model.anchor().role, model.direct(), model.thinking, model.scores) == ("anchor", model, False, False)
