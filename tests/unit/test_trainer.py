"""The shared-prompt pass against TRL's own, and training that stops and goes on."""

from __future__ import annotations

import json
import shutil
import types
from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_policy
from transformers import LlamaConfig, LlamaForCausalLM
from trl import GRPOTrainer

from cat_lib.learning.checkpoints import newest_checkpoint
from cat_lib.learning.grpo import train
from cat_lib.learning.session import GRPOSession, Spending
from cat_lib.learning.settings import GRPOSettings, grpo_arguments
from cat_lib.learning.shared_prompt import SharedPromptTrainer, Tree
from cat_lib.ledger import Ledger
from cat_lib.method.estimators.voting import majority, none
from cat_lib.method.rewards.verifiable import verifiable
from cat_lib.models.local import LocalModel
from cat_lib.runs.folder import read_config
from cat_lib.runs.tracking import Run
from cat_lib.schema import Sampling
from cat_lib.tasks.arithmetic import Arithmetic


@pytest.fixture
def batch():
    """A left-padded batch: two prompts of unlike length with a common opening, three rollouts each."""
    prompts = [[5, 6, 7, 8], [5, 6, 9, 10, 11, 12]]
    tails = [[1, 2, 3], [4], [1, 2], [3, 3, 3], [2], [9, 8, 7]]
    rows = [(p, t) for p, ts in zip(prompts, (tails[:3], tails[3:]), strict=True) for t in ts]
    ids = torch.tensor([[0] * (6 - len(p)) + p + t + [0] * (3 - len(t)) for p, t in rows])
    mask = torch.tensor([[0] * (6 - len(p)) + [1] * len(p) + [1] * len(t) + [0] * (3 - len(t)) for p, t in rows])
    return ids, mask


def test_tree_gives_the_logps_entropies_and_gradients_of_trl(batch):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    ids, mask = batch
    real = mask[:, -3:].bool()
    trainer = types.SimpleNamespace(temperature=0.7, model_kwarg_keys={"logits_to_keep"}, _entropy_bonus_enabled=False)
    # TRL leaves positions to the model, which counts padding; the tree must equal the unpadded row
    theirs, gradients = [], []
    for row, keep in zip(ids, mask.bool(), strict=True):
        one = row[keep][None]
        tail = int(keep[-3:].sum())
        theirs.append(
            GRPOTrainer._full_logits_logps(trainer, model, one, torch.ones_like(one), tail, compute_entropy=True)
        )
    torch.cat([t[0].flatten() for t in theirs]).sum().backward()
    gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad.clone())
    model.zero_grad()
    tree = Tree(ids, mask, 3)
    logps, entropies = tree.logps(model, 0.7)
    logps[real].sum().backward()
    gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad.clone())
    assert tree.length == 2 + 2 + 6 + 4 + 7  # common opening, rest, tails, rest, tails
    torch.testing.assert_close(logps[real], torch.cat([t[0].flatten() for t in theirs]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(entropies[real], torch.cat([t[1].flatten() for t in theirs]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


def test_every_argument_is_one_that_trl_knows(tmp_path):
    from trl import GRPOConfig

    task = Arithmetic()
    args = GRPOConfig(**grpo_arguments(GRPOSettings(), task.sampling, tmp_path, on_cpu=True))
    assert (args.loss_type, args.beta, args.num_generations, args.temperature) == ("grpo", 1e-3, 8, 1.0)
    assert args.generation_batch_size == 256
    assert args.epsilon_high == args.epsilon
    other = GRPOSettings(loss_type="dr_grpo")
    args = GRPOConfig(**grpo_arguments(other, task.sampling, tmp_path, on_cpu=True))
    assert (args.loss_type, args.scale_rewards) == ("dr_grpo", "none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 1}, "group_size=1"),
        ({"prompts_per_step": 6, "prompts_per_micro_batch": 4}, "can't hold whole groups; take 4"),
        ({"steps": 0}, "steps=0"),
        ({"votes": 4}, "votes=4: the first group_size=8 of them are trained on; allowed is a multiple of it, as 16"),
        ({"votes": 12}, "votes=12"),
        ({"loss_type": "ppo"}, "loss_type='ppo': allowed are grpo and dr_grpo"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        GRPOSettings(**change)


def test_settings_are_taken_from_parameters_by_name():
    given = {"steps": 3, "group_size": 4, "model": "embedded", "seed": 1}
    assert GRPOSettings.of(given, seed=2) == GRPOSettings(steps=3, group_size=4, seed=2)
    assert GRPOSettings.of(iter(given.items())) == GRPOSettings(steps=3, group_size=4, seed=1)


class Thirds(Arithmetic):
    """Answers that a policy of random weights gives too: 0, 1 or 2, by its tokens."""

    def extract(self, rollout, question):
        return str(sum(rollout.token_ids) % 3)


def _train(folder, steps, resume=False, estimator=majority, questions=8):
    task = Thirds()
    settings = GRPOSettings(
        steps=steps, group_size=4, prompts_per_step=2, prompts_per_micro_batch=2, learning_rate=1e-2, lora_rank=4,
        beta=0.1, save_steps=2,
    )  # fmt: skip
    examples = task.examples("train", questions, 0)
    return train(tiny_policy(), task, examples, estimator, verifiable, settings, Run(folder), resume=resume)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Runs that several tests begin with, each in a copy of its own: whole ones, and ones of half the steps."""
    made = {}

    def folder(tmp_path, steps, questions=8):
        if (steps, questions) not in made:
            there = tmp_path_factory.mktemp("run")
            made[steps, questions] = there, _train(there, steps, questions=questions)
        there, trained = made[steps, questions]
        return shutil.copytree(there, tmp_path / "run"), trained

    return folder


@pytest.mark.parametrize("questions", [8, 4])  # the resume is in the first epoch, and in the second
def test_resume_continues_the_same_curve(tmp_path, folders, questions):
    _, whole = folders(tmp_path / "whole", 4, questions)
    parts, _ = folders(tmp_path / "parts", 2, questions)
    resumed = _train(parts, 4, resume=True, questions=questions)
    assert list(resumed.history["step"]) == [1, 2, 3, 4]
    pd.testing.assert_frame_equal(resumed.rollouts, whole.rollouts)
    columns = ["reward", "agreement", "kl", "grad_norm"]
    pd.testing.assert_frame_equal(resumed.history[columns], whole.history[columns], rtol=1e-3)
    assert (whole.history[["agreement", "grad_norm"]] > 0).all(axis=None)
    assert whole.history["reward"].nunique() > 1
    assert whole.history["kl"].iloc[-1] > 0
    assert len(whole.rollouts) == 4 * 2 * 4
    # the costs of all steps, those before the resume included; seconds are this machine's
    counted = [{r: (c.calls, c.tokens, c.flops) for r, c in t.spent.items()} for t in (whole, resumed)]
    assert counted[0] == counted[1]


def test_a_finished_run_is_loaded_and_not_trained_further(tmp_path, folders):
    run, done = folders(tmp_path, 2)
    before = load_file(done.adapter / "adapter_model.safetensors")
    again = _train(run, 2, resume=True)
    assert list(again.history["step"]) == [1, 2]
    pd.testing.assert_frame_equal(again.rollouts, done.rollouts)
    after = load_file(again.adapter / "adapter_model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {r: c.tokens for r, c in again.spent.items()} == {r: c.tokens for r, c in done.spent.items()}
    assert sorted(p.name for p in done.adapter.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_training_anew_in_a_folder_leaves_nothing_of_the_earlier_one(tmp_path, folders):
    run, _ = folders(tmp_path, 4)
    old = load_file(run / "checkpoints/checkpoint-2/adapter_model.safetensors")
    _train(run, 2, estimator=lambda groups: [None] * len(groups))  # nothing is learnt
    new = load_file(newest_checkpoint(run) / "adapter_model.safetensors")
    assert newest_checkpoint(run).name == "checkpoint-2"
    assert any(not torch.equal(old[name], new[name]) for name in old)


def test_ctrl_c_leaves_a_checkpoint_that_training_resumes_from(tmp_path):
    calls, scheduled, saved = 0, dict[str, int](), tmp_path / "run/checkpoints/checkpoint-2"

    def interrupted(groups):
        nonlocal calls
        calls += 1
        if calls == 3:  # step 2 has just been saved as planned
            scheduled.update({p.name: p.stat().st_mtime_ns for p in saved.iterdir()})
            raise KeyboardInterrupt
        return majority(groups)

    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "run", 4, estimator=interrupted)
    assert (saved / "interrupted.json").exists()
    # a kill while it is written over would have torn the one that was whole
    assert scheduled == {p.name: p.stat().st_mtime_ns for p in saved.iterdir() if p.name != "interrupted.json"}
    resumed = _train(tmp_path / "run", 4, resume=True)
    assert list(resumed.history["step"]) == [1, 2, 3, 4]


def test_a_checkpoint_that_a_kill_tore_is_passed_over_and_written_anew(tmp_path, folders):
    run, _ = folders(tmp_path, 2)
    torn = run / "checkpoints/checkpoint-2"
    assert newest_checkpoint(run) == torn
    for part in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
        whole = (torn / part).read_bytes()
        (torn / part).write_bytes(whole[: len(whole) // 2])
        assert newest_checkpoint(run) is None, part
        (torn / part).unlink()
        assert newest_checkpoint(run) is None, part
        (torn / part).write_bytes(whole)
    assert newest_checkpoint(run) == torn
    (torn / part).write_text("{")
    (torn / "leftover").touch()
    resumed = _train(run, 2, resume=True)
    assert list(resumed.history["step"]) == [1, 2]
    assert newest_checkpoint(run) == torn
    assert not (torn / "leftover").exists()
    assert newest_checkpoint(tmp_path / "none") is None


class Counting:
    """A rule whose rewards hang on how many groups it has seen, and which notes what it sees of them."""

    def __init__(self, ends_at: int = 0) -> None:
        self.seen, self.ends_at, self.facts = 0, ends_at, list[tuple[float, float, tuple, tuple]]()

    def __call__(self, groups, references):
        self.seen += len(groups)
        if self.ends_at and self.seen >= self.ends_at:
            raise KeyboardInterrupt
        rollouts = [r for g in groups for r in g.rollouts]
        self.facts += [(r.mean_logprob, r.mean_entropy, r.foreign, r.mask) for r in rollouts]
        return [[float((self.seen * (i + 3)) % 5) for i in range(len(g.rollouts))] for g in groups]

    def state(self):
        return {"seen": self.seen}

    def load(self, state):
        self.seen = state["seen"]

    def tables(self):
        return {"counts": pd.DataFrame({"seen": [self.seen]})}

    def observe(self, step, folder):
        return {"groups_seen": float(self.seen), "noted": float((folder / "counts").is_dir())}


def _train_tiny(folder, rule, steps=4, **change):
    task = Arithmetic()
    settings = GRPOSettings(
        steps=steps, group_size=4, prompts_per_step=2, prompts_per_micro_batch=2, learning_rate=1e-2, lora_rank=4,
        save_steps=change.pop("save_steps", 2), votes=change.pop("votes", None),
        loss_type=change.pop("loss_type", "grpo"), beta=change.pop("beta", 1e-3),
    )  # fmt: skip
    return train(tiny_policy(), task, task.examples("train", 8, 0), none, rule, settings, Run(folder), **change)


def test_a_rule_sees_what_the_rollout_s_own_pass_knew(tmp_path, monkeypatch):
    generate = LocalModel.generate

    def with_foreign(self, prompts, n, sampling):
        groups = generate(self, prompts, n, sampling)
        return [[replace(c, foreign=((1, 3),)) for c in group] for group in groups]

    monkeypatch.setattr(LocalModel, "generate", with_foreign)
    seen = []
    masked = SharedPromptTrainer._generate_and_score_completions

    def spied(self, inputs):
        output = masked(self, inputs)
        seen.append((output["tool_mask"], output["completion_mask"]))
        return output

    monkeypatch.setattr(SharedPromptTrainer, "_generate_and_score_completions", spied)
    trained = _train_tiny(tmp_path, rule := Counting(), steps=1)
    assert len(rule.facts) == 8
    for logprob, entropy, foreign, mask in rule.facts:
        assert -20 < logprob < 0 < entropy < 20
        assert foreign == ((1, 3),)
        assert mask[:4] == (1, 0, 0, 1)[: len(mask)]
    ((tool_mask, completion_mask),) = seen
    assert not tool_mask[:, 1:3][completion_mask[:, 1:3].bool()].any()  # TRL gives them no gradient
    assert tool_mask[:, 0].all()
    assert trained.history["noted"].tolist() == [1.0]
    assert trained.history["reward_accuracy"].isna().all()  # no rollout is right, and there is nothing to order
    assert "reward_accuracy_last" not in trained.signal_metrics()
    assert pd.read_parquet(tmp_path / "counts.parquet")[["seen", "step"]].to_numpy().tolist() == [[2, 1]]


def test_an_interrupt_before_the_first_step_is_one_and_leaves_no_checkpoint(tmp_path, monkeypatch):
    def interrupted(self, *_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(GRPOTrainer, "create_optimizer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _train_tiny(tmp_path, Counting(), steps=1)
    assert not list(tmp_path.glob("checkpoints/checkpoint-*"))


def test_dr_grpo_divides_by_no_length_and_no_standard_deviation(tmp_path, monkeypatch):
    """Its loss restated (Liu et al., 2503.20783), where the policy is the one that drew and nothing holds it."""
    learnt, scored, generate = [], SharedPromptTrainer._generate_and_score_completions, LocalModel.generate

    def of_all_lengths(self, prompts, n, sampling):
        groups = generate(self, prompts, n, sampling)
        return [[replace(c, token_ids=c.token_ids[: 3 * i + 3]) for i, c in enumerate(group)] for group in groups]

    def spied(self, inputs):
        learnt.append(scored(self, inputs))
        return learnt[-1]

    monkeypatch.setattr(LocalModel, "generate", of_all_lengths)
    monkeypatch.setattr(SharedPromptTrainer, "_generate_and_score_completions", spied)
    trained = _train_tiny(tmp_path, Counting(), steps=1, loss_type="dr_grpo", beta=0.0)
    given = [[float((2 * (i + 3)) % 5) for i in range(4)]] * 2  # two groups were seen
    expected = [r - sum(group) / 4 for group in given for r in group]
    lengths = learnt[0]["completion_mask"].sum(1).tolist()
    assert learnt[0]["advantages"].tolist() == pytest.approx(expected, abs=1e-5)
    assert lengths == [3, 6, 9, 12] * 2
    loss = -sum(a * n for a, n in zip(expected, lengths, strict=True)) / (8 * Arithmetic().sampling.max_new_tokens)
    assert trained.history["loss"].tolist() == [pytest.approx(loss, abs=1e-4)]


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    return _train_tiny(tmp_path_factory.mktemp("whole"), Counting(), save_steps=50)


@pytest.mark.parametrize("ends_at", [0, 5])  # stopped after a step, or in the third, after the rule has counted
def test_a_resume_finds_the_state_of_the_rule(tmp_path, ends_at, counted):
    whole = counted
    assert whole.history["groups_seen"].tolist() == [2, 4, 6, 8]
    if ends_at:
        with pytest.raises(KeyboardInterrupt):
            _train_tiny(tmp_path / "parts", Counting(ends_at), save_steps=3)
        assert json.loads((tmp_path / "parts/checkpoints/checkpoint-2/signal.json").read_text()) == {
            "rule": {"seen": 4},
            "flips": dict.fromkeys(whole.rollouts.query("step <= 2")["example"].unique()),
        }
    else:
        _train_tiny(tmp_path / "parts", Counting(), steps=2)
    resumed = _train_tiny(tmp_path / "parts", Counting())
    pd.testing.assert_frame_equal(resumed.rollouts, whole.rollouts)
    assert resumed.history["groups_seen"].tolist() == whole.history["groups_seen"].tolist()
    ended = Counting()
    _train_tiny(tmp_path / "parts", ended)
    assert ended.seen == 8  # loaded and not trained, with the state of the last step


def test_a_checkpoint_without_the_state_that_a_rule_keeps_is_refused(tmp_path):
    _train_tiny(tmp_path, lambda groups, _: [[1.0, 0.0, 0.0, 1.0] for _ in groups], steps=2)
    with pytest.raises(ValueError, match=r"checkpoint-2 has no signal.json.*resume=False"):
        _train_tiny(tmp_path, Counting())


def test_more_rollouts_vote_than_are_trained_on(tmp_path, monkeypatch):
    """Of 12 votes a question TRL trains on the first 4, with the rewards that the rule gave these; all are kept."""
    given = []

    class Alternating:
        needs = ("mean_entropy",)

        def __call__(self, groups, references):
            given.append([[r.mean_entropy for r in g.rollouts] for g in groups])
            return [[float(i % 3) for i in range(len(g.rollouts))] for g in groups]

    learnt = []
    scored = SharedPromptTrainer._generate_and_score_completions

    def spied(self, inputs):
        learnt.append(scored(self, inputs))
        return learnt[-1]

    monkeypatch.setattr(SharedPromptTrainer, "_generate_and_score_completions", spied)
    trained = _train_tiny(tmp_path, Alternating(), steps=1, votes=12)
    assert [[len(g) for g in step] for step in given] == [[12, 12]]
    assert all(entropy > 0 for entropy in given[0][0])
    table = trained.rollouts
    assert len(table) == 24
    assert table.groupby("example")["trained"].apply(list).tolist() == [[True] * 4 + [False] * 8] * 2
    assert table["text"].nunique() > 12  # each is a draw of its own
    rows = zip(learnt[0]["completion_ids"], learnt[0]["completion_mask"], strict=True)
    ids = [row[mask.bool()].tolist() for row, mask in rows]
    said = [tiny_policy().read("", tiny_policy().decode(i), i, Sampling(1, stop=("\n",))).text for i in ids]
    assert said == table[table["trained"]]["text"].tolist()
    assert trained.history["reward"].tolist() == [pytest.approx((0 + 1 + 2 + 0) / 4)]
    assert {"trained_zero_variance", "trained_rollout_tokens", "trained_pass_at_n"} <= set(trained.history)
    tokens = 24 * trained.history["rollout_tokens"].iloc[0]
    assert trained.spent["policy"].completion_tokens == pytest.approx(tokens)  # the votes are paid for


class Unable:
    """A rule that needs what an engine may not give."""

    needs = ("mean_logprob", "mean_entropy")

    def require(self, votes):
        if votes == 12:
            raise ValueError("12 votes are odd")

    def __call__(self, groups, references):
        raise AssertionError


@pytest.mark.parametrize(
    ("engine", "change", "message"),
    [
        ("vllm", {}, "Unable needs mean_entropy of each rollout, which vllm does not give; take engine=transformers"),
        ("unsloth", {}, "Unable needs mean_logprob, mean_entropy of each rollout, which unsloth does not give"),
        ("unsloth", {"votes": 8}, "votes=8: on a GPU unsloth draws the group_size=4 rollouts"),
        ("transformers", {"votes": 12}, "12 votes are odd"),
    ],
)
def test_what_the_engine_that_draws_can_t_give_is_refused_before_training(tmp_path, engine, change, message):
    policy, task = tiny_policy(), Arithmetic()
    settings = GRPOSettings(group_size=4, prompts_per_step=2, prompts_per_micro_batch=2, **change)
    if engine == "vllm":
        policy = replace(policy, sampler=object())
    elif engine == "unsloth":
        elsewhere = types.SimpleNamespace(device=torch.device("cuda"), disable_adapter=None)  # what is asked of it here
        policy = replace(policy, engine="unsloth", model=elsewhere)
    with pytest.raises(ValueError, match=message):
        train(policy, task, task.examples("train", 4, 0), none, Unable(), settings, Run(tmp_path))


def test_costs_go_on_from_the_step_that_is_resumed_and_not_from_later_ones(tmp_path):
    ledger = Ledger()
    first = Spending(ledger, tmp_path, -1)
    for step in (1, 2, 3):
        ledger.add("policy", prompt_tokens=10, completion_tokens=0, flops=1.0, seconds=1.0)
        first.keep(step)
    with (tmp_path / "spent.jsonl").open("a") as file:
        file.write('{"step": 4, "sp')  # killed while it noted
    resumed = Spending(Ledger(), tmp_path, 2)
    assert resumed.total()["policy"].tokens == 20
    resumed.keep(3)
    assert Spending(Ledger(), tmp_path, 3).total()["policy"].tokens == 20
    assert Spending(Ledger(), tmp_path, -1).total() == {}


@pytest.mark.parametrize(("checkpointing", "passes"), [(False, 4), (True, 6)])
def test_an_update_costs_a_second_forward_pass_where_activations_are_not_kept(checkpointing, passes, tmp_path):
    policy = tiny_policy()
    args = types.SimpleNamespace(world_size=1, process_index=0, gradient_checkpointing=checkpointing)
    session = GRPOSession(trainer := _stub(args), policy, Run(tmp_path), False)
    state = types.SimpleNamespace(num_input_tokens_seen=0, global_step=1)
    session.on_step_begin(args, state, None)
    trainer.computed[:] = 100, 10  # tokens with gradient, and of the reference pass
    session.on_step_end(args, state, None)
    assert policy.ledger.roles["update"].flops == policy.parameters * (passes * 100 + 2 * 10)


def _stub(args):
    """What a session needs of a trainer that it does not run."""
    state, ignore = types.SimpleNamespace(global_step=0, log_history=[]), lambda callback: None
    return types.SimpleNamespace(args=args, state=state, remove_callback=ignore, add_callback=ignore)


@pytest.mark.filterwarnings("error")
def test_a_collapse_is_told_once_and_tagged_also_where_the_run_was_resumed(tmp_path):
    policy, run = types.SimpleNamespace(ledger=Ledger()), Run(tmp_path)
    session = GRPOSession(_stub(None), policy, run, False)
    state = types.SimpleNamespace(global_step=0, max_steps=9, log_history=[])

    def log(session):
        state.global_step += 1
        agreement, dependence = 0.4 + 0.05 * state.global_step, 2.0 - 0.2 * state.global_step
        logs = {"reward": 1.0, "agreement": agreement, "answer_dependence": dependence}
        state.log_history.append(logs | {"step": state.global_step})
        session.on_log(None, state, None, logs)

    for _ in range(5):
        log(session)
    with pytest.warns(UserWarning, match="step 6: collapse: agreement rose from 0.50 to 0.65"):
        log(session)
    log(session)  # and not again, or the warning would be an error
    assert len(session.warnings) == 1
    assert read_config(tmp_path)["tags"]["collapse"] == session.warnings[0]
    trainer = _stub(None)
    trainer.state.log_history = list(state.log_history)
    resumed = GRPOSession(trainer, policy, run, True)
    assert resumed.warnings == session.warnings
    log(resumed)
    assert resumed.warnings == session.warnings


def test_a_policy_without_adapter_is_refused(tmp_path):
    with pytest.raises(ValueError, match="add_lora"):
        train(tiny_policy().anchor(), Arithmetic(), [], majority, verifiable, GRPOSettings(), Run(tmp_path))
