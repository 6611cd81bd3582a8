"""Servers of vLLM's on loopback: a judge that several runs share, and what draws for several training processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pandas as pd
import pytest
import torch

from cat_lib import train_entry
from cat_lib.learning.lora import add_lora
from cat_lib.learning.sampler import MOST_GAP, gap, samples_the_policy
from cat_lib.models import ModelError, endpoint, load_model
from cat_lib.models.embedded import checkpoint
from cat_lib.runs.folder import read_config
from cat_lib.runs.places import NOTEBOOKS, ROOT
from cat_lib.schema import Sampling
from cat_lib.tasks.arithmetic import Arithmetic
from small import free_port

pytest.importorskip("vllm", reason="vLLM is not installed: make engines")
# on a CPU: no graphs, and no prompt in two pieces, which its seeds do not survive
ON_CPU = ["--enforce-eager", "--max-model-len", "2048", "--max-num-batched-tokens", "16384"]


@contextmanager
def server(model, *words):
    """The URL of a server, and its process."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *words, *ON_CPU]
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        env=os.environ | quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 180
        while True:
            assert process.poll() is None
            assert time.monotonic() < deadline
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", process
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
def test_a_served_model_answers_as_the_model(embedded):
    """The line of docs/your_model_and_data.md by which several runs share a judge."""
    with server(checkpoint(), "--served-model-name", "judge") as (url, _):
        model = endpoint.parse(f"endpoint:judge@{url}")
        prompts = [[{"role": "user", "content": f"Name a {thing}."}] for thing in ("colour", "river", "fruit")]
        short = Sampling(8, temperature=0)
        both = zip(model.generate(prompts, 1, short), embedded.generate(prompts, 1, short), strict=True)
        assert sum(a.text.strip() == b.text.strip() for (a,), (b,) in both) >= 2  # a near-tie can fall either way
        assert model.ledger.roles["judge"].calls == 3


@pytest.mark.slow
def test_a_server_draws_for_two_processes_and_its_end_fails_the_run(two_layers, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with server(two_layers, "--config", str(NOTEBOOKS / "suites/vllm_server.yaml")) as (url, process):
        model = load_model(two_layers, rollouts=url)
        prompts = [e.prompt for e in Arithmetic().examples("train", 4, 0)]
        assert samples_the_policy(model, prompts)["moved"] > 0.5
        policy, drawn = add_lora(model, 4, 0), []
        for strength in (0.0, 0.3, 0.6):  # each policy in turn, and not the one before
            with torch.no_grad():
                for name, weight in policy.model.named_parameters():
                    if "lora_B" in name:
                        weight.copy_(strength * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
            drawn = [c for g in policy.generate(prompts, 2, Sampling(8, seed=3)) for c in g]
            rows = list(zip([p for p in prompts for _ in range(2)], drawn, strict=True))
            assert gap(policy, rows, 1.0)[0] < MOST_GAP
            assert not strength or gap(policy.anchor(), rows, 1.0)[0] > 2 * MOST_GAP
        with ThreadPoolExecutor(2) as pool:  # in one batch with a policy the base model stays the base model
            busy, rounds = pool.submit(policy.generate, prompts * 4, 2, Sampling(48, seed=4)), 0
            while not busy.done():
                rounds += 1
                rows = [
                    (p, c) for p, (c,) in zip(prompts, policy.anchor().generate(prompts, 1, Sampling(8)), strict=True)
                ]
                assert gap(policy.anchor(), rows, 1.0)[0] < MOST_GAP
            assert rounds
            assert len(busy.result()) == 16
        again = [c for g in policy.generate(prompts, 2, Sampling(8, seed=3)) for c in g]
        assert [c.token_ids for c in again] == [c.token_ids for c in drawn]
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / train_entry.DDP)]
        given = {"model": two_layers, "rollouts": url, "estimators": '["majority"]', "seeds": "[0]", "lesson": "false"}
        given |= {
            "steps": "2",
            "prompts_per_step": "2",
            "prompts_per_micro_batch": "2",
            "group_size": "4",
            "train_questions": "8",
            "questions": "8",
        }
        words = [word for name, value in given.items() for word in ("-p", f"{name}={value}")]
        command = ["-m", "cat_lib.train_entry", "--runs", str(tmp_path), "--run-id", "two", *words]
        done = subprocess.run([*launch, "--num_processes", "2", *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        arm = tmp_path / train_entry.NOTEBOOK / "two/majority_0"
        assert read_config(arm)["processes"] == 2
        assert pd.read_parquet(arm / "rollouts.parquet").groupby("step").size().to_dict() == {1: 8, 2: 8}
        steps = [json.loads(line)["metrics"] for line in (arm.parent / "metrics.jsonl").read_text().splitlines()]
        gaps = [found["majority_0/sampling_gap"] for found in steps if "majority_0/sampling_gap" in found]
        assert len(gaps) == 2
        assert max(gaps) < 0.1
        process.kill()
        process.wait()
        with pytest.raises(ModelError, match=r"127.0.0.1.*no connection; start the server"):
            policy.generate(prompts, 2, Sampling(8))
    ended = subprocess.run([sys.executable, *command, "-p", "seeds=[1]"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode != 0


@pytest.mark.parametrize(
    ("rollouts", "message"),
    [
        ("http://user:secret@127.0.0.1:8000/v1", "holds no user, password or query: set CAT_LIB_API_KEY"),
        ("127.0.0.1:8000", "allowed are engine, vllm, and a vLLM server by its URL"),
        ("http://127.0.0.1:1/v1", "no connection; start the server"),
    ],
)
def test_a_server_that_cannot_be_is_refused(two_layers, rollouts, message):
    with pytest.raises((ValueError, ModelError), match=message) as failed:
        load_model(two_layers, rollouts=rollouts)
    assert "secret" not in str(failed.value)
