"""Training on two real processes: the same rewards, advantages and gradient as one, and one run to show for it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from cat_lib import train_entry
from cat_lib.files import read_lines
from cat_lib.learning.settings import GRPOSettings, cut
from cat_lib.runs.folder import read_config
from cat_lib.runs.places import ROOT
from cat_lib.runs.runner import differences
from cat_lib.suites import preflight

pytestmark = pytest.mark.fault

# Two steps on rollouts that depend on their row in the whole step alone, in each case. argv: folder, cases
FIXED = """
import json, sys
from pathlib import Path
import torch
from accelerate import PartialState
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, TrainerCallback
import cat_lib.learning.sampler, cat_lib.learning.shared_prompt, cat_lib.learning.grpo
from cat_lib.models.embedded import checkpoint
from cat_lib.models.local import LocalModel
from cat_lib.method.estimators.voting import majority
from cat_lib.method.rewards.buffer import Buffer
from cat_lib.method.rewards.contrast import Contrasted
from cat_lib.method.rewards.evolving import Evolving
from cat_lib.method.rewards.proposals import Proposal
from cat_lib.method.rewards.verifiable import verifiable
from cat_lib.schema import Criterion, Rubric, Verdict
from cat_lib.tasks.arithmetic import Arithmetic
from cat_lib.runs.tracking import Run
from cat_lib.learning.settings import GRPOSettings
from cat_lib.learning.grpo import add_lora, train

state = PartialState(cpu=True)
tokenizer = AutoTokenizer.from_pretrained(checkpoint())
tokenizer.padding_side = "left"
task = Arithmetic()
whole = cat_lib.learning.shared_prompt.SharedPromptTrainer._generate_and_score_completions
make = cat_lib.learning.grpo._trainer

def judge(pairs):
    return [Verdict(sum(map(ord, response + criterion)) % 3 == 0) for response, criterion in pairs]

def first(groups, references):
    return [Proposal(Rubric((Criterion("is short"), Criterion("is even")), "given"))] * len(groups)

def contrast(groups, known, seed):  # what it finds hangs on the call and on the rollouts
    return [Contrasted((Criterion(f"{seed} like {g.rollouts[seed].text}"), Criterion("wordy", -1.0))) for g in groups]

def case(folder, prompts, micro, rule):
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, eos_token_id=tokenizer.eos_token_id))
    policy = add_lora(LocalModel(model, tokenizer=tokenizer, name="tiny"), 4, 0)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:  # at 0, the other half of the adapter would have no gradient
            torch.nn.init.normal_(parameter, std=0.05)
    examples = task.examples("train", prompts, 0)
    asked = {e.prompt: e.question[8:-1] for e in examples}

    def fixed(policy, sampling, seed, voters):
        newline = tokenizer("\\n").input_ids
        def rollout(prompts, trainer):
            start = trainer.accelerator.process_index * len(prompts)
            ids = [tokenizer(f" {asked[p]} = {(7 * (start + i) ** 2 + trainer.state.global_step) % 3 * 95}").input_ids
                   + newline for i, p in enumerate(prompts)]
            return {"prompt_ids": [policy.encode(p) for p in prompts], "completion_ids": ids, "logprobs": None}
        return rollout

    seen, gradients = [], []

    def spied(self, inputs):
        output = whole(self, inputs)
        for example, ids, advantage in zip(inputs, output["completion_ids"].tolist(), output["advantages"].tolist()):
            ids = [i for i in ids if i != tokenizer.pad_token_id]
            seen.append([self.state.global_step, example["example_id"], ids, advantage])
        return output

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **_):
            for name, parameter in policy.model.named_parameters():
                if parameter.grad is not None:
                    gradients.append(parameter.grad.norm().item())

    def made(*args):
        trainer = make(*args)
        trainer.add_callback(Gradients())
        return trainer

    cat_lib.learning.sampler.rollouts = fixed
    cat_lib.learning.shared_prompt.SharedPromptTrainer._generate_and_score_completions = spied
    cat_lib.learning.grpo._trainer = made
    rule = Evolving(judge, first, contrast, Buffer(keep=2)) if rule == "evolving" else verifiable
    settings = GRPOSettings(steps=2, group_size=4, prompts_per_step=prompts, prompts_per_micro_batch=micro,
                            learning_rate=1e-2, beta=0.1, lora_rank=4)
    trained = train(policy, task, examples, majority, rule, settings, Run(folder))
    spent = {role: [cost.tokens, cost.flops] for role, cost in trained.spent.items()}
    out = {"state": rule.state() if rule != verifiable else None, "seen": seen, "gradients": gradients, "spent": spent}
    out = out | {"history": trained.history.to_dict("list")}
    (folder / f"out.{state.process_index}.json").write_text(json.dumps(out))

for name, given in json.loads(sys.argv[2]).items():
    case(Path(sys.argv[1]) / name, *given)
state.destroy_process_group()
"""
CASES = {
    "split groups": (3, 3, "verifiable"),
    "whole groups": (4, 4, "verifiable"),
    "a rubric that evolves": (4, 4, "evolving"),
}


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """All cases by one process and by two, under `<processes>/<case>`."""
    folder = tmp_path_factory.mktemp("trained")
    script = folder / "fixed.py"
    script.write_text(FIXED)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_port()), "WORLD_SIZE": "2"}
    worlds = {"1": [{}], "2": [place | {"RANK": r, "LOCAL_RANK": r} for r in "01"]}
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder / world), json.dumps(CASES)],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | rank,
        )
        for world, ranks in worlds.items()
        for rank in ranks
    ]
    assert [process.wait(240) for process in started] == [0, 0, 0]
    return folder


def _result(folder: Path, world: int) -> tuple[list, dict, pd.DataFrame, dict[str, torch.Tensor]]:
    outs = [json.loads((folder / f"out.{r}.json").read_text()) for r in range(world)]
    seen = sorted((s for out in outs for s in out["seen"]), key=lambda s: s[0])  # stable: rank order is row order
    rollouts = pd.read_parquet(folder / "rollouts.parquet")
    return seen, outs[0], rollouts, load_file(folder / "adapter/adapter_model.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_does(trained, case):
    prompts, _, rule = CASES[case]
    (seen1, one, rollouts1, adapter1), (seen2, two, rollouts2, adapter2) = (
        _result(trained / str(w) / case, w) for w in (1, 2)
    )
    states = [json.loads(path.read_text())["state"] for path in trained.glob(f"*/{case}/out.*.json")]
    assert states == [states[0]] * 3  # the same on all processes
    if rule == "evolving":
        assert states[0]["calls"] == 2
        kept = [c for q in states[0]["questions"].values() for c in q["active"] + q["retired"]]
        assert len(states[0]["questions"]) == prompts
        assert {c["text"][:6] for c in kept} >= {"0 like", "1 like"}
    assert [s[:3] for s in seen1] == [s[:3] for s in seen2]  # the same rows, in the same order
    assert len(seen1) == 2 * prompts * 4
    advantages = [torch.tensor([s[3] for s in seen]) for seen in (seen1, seen2)]
    assert advantages[0].abs().sum() > 1
    torch.testing.assert_close(advantages[0], advantages[1], rtol=0, atol=0)
    pd.testing.assert_frame_equal(rollouts1, rollouts2)  # each row once, with its reference and reward
    assert min(one["gradients"]) > 0
    assert two["gradients"] == pytest.approx(one["gradients"], rel=1e-3)
    apart = torch.cat([(adapter2[name] - value).abs().flatten() for name, value in adapter1.items()])
    assert apart.quantile(0.99) < 1e-4
    assert apart.max() < 1e-3  # of two steps of 1e-2 each: Adam makes as much of a gradient that is all rounding
    logged = [pd.DataFrame(out["history"]).drop(columns=["step_time"]) for out in (one, two)]
    pd.testing.assert_frame_equal(*(t.select_dtypes("number") for t in logged), rtol=1e-3, atol=1e-5)
    assert two["spent"]["update"][0] == one["spent"]["update"][0]


def test_a_step_is_cut_into_the_same_rows():
    settings = GRPOSettings(group_size=4, prompts_per_step=8, prompts_per_micro_batch=4)
    assert [cut(settings, n) for n in (1, 2, 4, 8)] == [(16, 2), (16, 1), (8, 1), (4, 1)]
    assert cut(settings, 16) == (2, 1)  # half a group each
    assert cut(GRPOSettings(group_size=4, prompts_per_step=3, prompts_per_micro_batch=1), 2) == (3, 2)
    with pytest.raises(ValueError, match="can't be cut over 3 processes; take 2 processes, or prompts_per_step=12"):
        cut(settings, 3)


# one group a step, split over both
PARAMETERS = ["steps=3", "prompts_per_step=1", "group_size=8", "prompts_per_micro_batch=1", "train_questions=8",
              "questions=8", 'estimators=["majority"]', "seeds=[0]", "lesson=false"]  # fmt: skip


def _words(folder: Path) -> list[str]:
    pairs = [word for pair in PARAMETERS for word in ("-p", pair)]
    return ["--runs", str(folder / "runs"), "--run-id", "two", *pairs]


def _launch(folder: Path) -> subprocess.Popen[str]:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / train_entry.DDP)]
    command = [*launch, "--num_processes", "2", "-m", "cat_lib.train_entry", *_words(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_accelerate_launches_one_run_on_two_processes_that_a_sigterm_ends_and_the_same_command_goes_on(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    launched = _launch(tmp_path)
    for line in launched.stdout:
        if line.startswith("step 1/3"):
            launched.terminate()
            break
    printed, _ = launched.communicate(timeout=100)
    assert launched.returncode != 0
    folder = tmp_path / "runs" / train_entry.NOTEBOOK / "two"
    arm = folder / "majority_0"
    assert read_config(folder)["status"] == "KILLED", printed
    saved = arm / "checkpoints/checkpoint-2"
    assert json.loads((saved / "interrupted.json").read_text()) == {"step": 2, "of": 3}
    before = _update_calls(arm, 2)
    launched = _launch(tmp_path)
    printed, _ = launched.communicate(timeout=180)
    assert (launched.returncode, printed.count("step 3/3"), printed.count("step 2/3")) == (0, 1, 0), printed
    assert (before, _update_calls(arm, 3)) == (4, 6)  # of both processes
    rollouts, config = pd.read_parquet(arm / "rollouts.parquet"), read_config(folder)
    assert rollouts.groupby("step").size().to_dict() == {1: 8, 2: 8, 3: 8}
    assert not rollouts.duplicated(["step", "example", "rollout"]).any()
    halves = [list(g.text[:4]) != list(g.text[4:]) for _, g in rollouts.groupby("step")]
    assert any(halves)  # the second process does not sample what the first did
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    assert (arm / "adapter/adapter_model.safetensors").exists()
    assert (config["status"], config["tags"]["stage"], read_config(arm)["processes"]) == ("FINISHED", "training", 2)
    assert not differences(folder, train_entry._parameters(PARAMETERS).given)  # the notebook goes on in this folder
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "2_signal/majority_0/reward")] == [1, 2, 3]


def _update_calls(arm, step):
    return [e["spent"]["update"]["calls"] for _, e in read_lines(arm / "spent.jsonl") if e["step"] == step][-1]


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("ACCELERATE_USE_FSDP", "launched under FSDP, .*accelerate_ddp.yaml"),
        ("ACCELERATE_USE_DEEPSPEED", "launched under DeepSpeed, .*accelerate_ddp.yaml"),
        ("MASTER_PORT", "leave --cpu out"),
    ],
)
def test_launches_that_cannot_be_right_are_refused(tmp_path, monkeypatch, capsys, variable, message):
    for name in ("WORLD_SIZE", "RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "true")
    assert train_entry.main(_words(tmp_path)) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "runs").exists()


def test_processes_that_do_not_fit_in_memory_together_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(preflight, "machine", lambda: (6.0, "cpu", ""))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert train_entry.main(_words(tmp_path)) == 2
    assert re.search(r"8 at once need .* and 6.0 GB are free: --num_processes [1-4]$", capsys.readouterr().err.strip())
    assert not (tmp_path / "runs").exists()
