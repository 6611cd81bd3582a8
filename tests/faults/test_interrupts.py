"""Real processes killed or interrupted while a judge answers: nothing paid is lost, nothing is waited for."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from misbehaving import good, misbehaving

from cat_lib.method.judge import Judge
from cat_lib.models.cache import Cache
from cat_lib.models.endpoint import EndpointModel

pytestmark = pytest.mark.fault
HUNG = 60.0  # seconds; far above what a test waits for
PATIENCE = 5.0  # an interrupt is to take 2 s on an idle machine

JUDGING = """
import sys
from pathlib import Path
from cat_lib.models.cache import Cache
from cat_lib.method.judge import Judge
from cat_lib.models.endpoint import EndpointModel
url, cache, pairs, at_once = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
judge = Judge(EndpointModel("m", url, concurrency=at_once), "text", cache=Cache(cache))
judge([(f"response {i}", "Says to rest.") for i in range(pairs)])
"""

# trained on experts' criteria by a judge behind the endpoint
TRAINING = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.append(sys.argv[3])
from cat_lib.method.judge import Judge
from cat_lib.models.endpoint import EndpointModel
from cat_lib.method.estimators.voting import none
from cat_lib.method.rewards.rubric import RubricReward, physician
from cat_lib.learning.settings import GRPOSettings
from cat_lib.tasks import load_task
from cat_lib.runs.tracking import Run
from cat_lib.learning.grpo import train
from tiny import tiny_policy
task = load_task("clinic")
task = replace(task, sampling=replace(task.sampling, max_new_tokens=8))
examples = task.examples("train", None, 0)
rule = RubricReward(Judge(EndpointModel("m", sys.argv[1]), "text"), physician(examples), max_failed=1.0)
settings = GRPOSettings(steps=4, group_size=2, prompts_per_step=2, prompts_per_micro_batch=2, learning_rate=1e-4,
                        lora_rank=4, save_steps=50)
train(tiny_policy(), task, examples, none, rule, settings, Run(Path(sys.argv[2])))
"""


def start(script: str, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, *map(str, words)], text=True, stderr=subprocess.PIPE)


def until(what, process, seconds=120):
    end = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.stderr.read()[-2000:]
        assert time.monotonic() < end
        time.sleep(0.02)


def interrupt(process) -> float:
    """Seconds from a real SIGINT to the process's end."""
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.wait(HUNG - 5)
    return time.monotonic() - began


def hanging_after(answers: int):
    """A script that answers so many requests and lets the rest hang."""
    return [*["good"] * answers, HUNG]


def test_a_kill_after_n_answers_leaves_n_in_the_cache_and_they_are_not_paid_again(tmp_path):
    path = tmp_path / "judge.db"
    with misbehaving(*hanging_after(41)) as (model, server):
        process = start(JUDGING, model.url, path, 200, 4)
        until(lambda: len(server.seen) == 45, process)  # four hang, so 41 are answered and kept
        process.kill()
        process.wait(30)
        server.script = ["good"]
        verdicts = Judge(EndpointModel("m", model.url), "text", cache=Cache(path))(
            [(f"response {i}", "Says to rest.") for i in range(200)]
        )
        assert [v.met for v in verdicts] == [True] * 200
        assert len(server.seen) == 45 + 200 - 41


def test_an_interrupt_ends_requests_that_hang_and_keeps_what_was_answered(tmp_path):
    path = tmp_path / "judge.db"
    with misbehaving(*hanging_after(5)) as (model, server):
        process = start(JUDGING, model.url, path, 30, 12)
        until(lambda: len(server.seen) == 17, process)
        took = interrupt(process)
        assert process.returncode == -signal.SIGINT  # by KeyboardInterrupt, as Python ends
        assert "KeyboardInterrupt" in process.stderr.read()
        assert took < PATIENCE
        with Cache(path)._open() as db:
            assert db.execute("SELECT count(*) FROM answers").fetchone() == (5,)


def test_an_interrupt_ends_the_pauses_between_tries(tmp_path):
    with misbehaving(429) as (model, server):
        server.retry_after = "50"
        process = start(JUDGING, model.url, tmp_path / "judge.db", 12, 12)
        until(lambda: len(server.seen) == 12, process)
        assert interrupt(process) < PATIENCE


def test_a_training_step_that_is_interrupted_while_the_judge_hangs_leaves_its_checkpoint(tmp_path):
    first = tmp_path / "rollouts" / "step_00001_rank0.parquet"
    with misbehaving(lambda request: HUNG if first.exists() else (200, good())) as (model, server):
        process = start(TRAINING, model.url, tmp_path, Path(__file__).parents[1])
        until(lambda: first.exists() and server.now >= 8, process)
        assert interrupt(process) < 20  # the runner kills after 25
        (saved,) = (tmp_path / "checkpoints").glob("checkpoint-*")
        assert json.loads((saved / "interrupted.json").read_text()) == {"step": 1, "of": 4}
        assert json.loads((saved / "trainer_state.json").read_text())["global_step"] == 1
        server.script = [(200, good())]
        process = start(TRAINING, model.url, tmp_path, Path(__file__).parents[1])
        assert process.wait(200) == 0, process.stderr.read()[-2000:]
    assert len(list(Path(tmp_path, "rollouts").glob("step_*.parquet"))) == 4
