"""The endpoint engine against a real server of the embedded model, and against one that misbehaves."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from misbehaving import SECRET, misbehaving

from cat_lib.method.judge import Judge
from cat_lib.models import endpoint
from cat_lib.models.cache import Cache
from cat_lib.models.embedded import checkpoint
from cat_lib.models.endpoint import KEY, EndpointError, EndpointModel
from cat_lib.schema import Completion, Sampling, Verdict
from small import cat_lib

pytestmark = pytest.mark.fault
SHORT = Sampling(8, temperature=0.0)


@pytest.fixture(scope="module")
def server():
    """`transformers serve` on loopback with the embedded model: its URL. Started here, stopped here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        for _ in range(240):
            assert process.poll() is None, "the server ended"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def test_a_real_server_gives_the_local_model_s_greedy_text_and_is_accounted(server, embedded):
    model = endpoint.parse(f"endpoint:{checkpoint()}@{server}", prices={str(checkpoint()): (2.0, 10.0)})
    prompts = [[{"role": "user", "content": f"Name a {thing}."}] for thing in ("colour", "river", "fruit")]
    remote = model.generate(prompts, 1, SHORT)
    local = embedded.generate(prompts, 1, SHORT)
    same = [a.text.strip() == b.text.strip() for (a,), (b,) in zip(remote, local, strict=True)]
    assert sum(same) >= 2  # both in bfloat16: a near-tie can fall either way
    cost = model.ledger.roles["judge"]
    assert cost.calls == 3
    assert cost.prompt_tokens == sum(len(embedded.encode(p)) for p in prompts)
    assert 3 <= cost.completion_tokens <= 24
    assert cost.usd == pytest.approx((2 * cost.prompt_tokens + 10 * cost.completion_tokens) / 1e6)


def test_a_real_server_judges_in_the_text_way_and_its_verdicts_are_kept(server, tmp_path):
    model, cache = endpoint.parse(f"endpoint:{checkpoint()}@{server}"), Cache(tmp_path / "j.db")
    judge = Judge(model, "text", cache=cache, attempts=2, sampling=Sampling(24, temperature=0.0))
    verdicts = judge([("Rest and drink plenty.", "Says to rest."), ("Rest.", "Recommends antibiotics.")])
    # a model this small seldom keeps to the form
    assert all(v.met is not None or v.cause.startswith(("malformed", "the reply was cut")) for v in verdicts)
    with cache._open() as db:
        kept = db.execute("SELECT count(*) FROM answers").fetchone()[0]
    assert kept == sum(v.met is not None for v in verdicts)


def test_the_command_shows_what_a_real_server_says(server, tmp_path):
    code, out = cat_lib(tmp_path, "check", "judge", f"endpoint:{checkpoint()}@{server}")
    assert code in (0, 2), out  # a model this small seldom keeps to the form
    assert "max_tokens=200, seed=0, temperature=0.0; prompt 'You c" in out
    assert '"usage"' in out
    assert "Traceback" not in out
    assert ("read     " in out) == (code == 0)
    assert ("no verdict: " in out) == (code == 2)


@pytest.mark.parametrize("trouble", [429, 503, "cut off", "no JSON", "a page", "no choice", "no message"])
def test_what_may_pass_is_tried_again(trouble):
    with misbehaving(trouble, trouble, "good") as (model, server):
        (answer,) = model.attempt(["Hello"], SHORT)
    assert isinstance(answer, Completion)
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    ("trouble", "cause", "requests"),
    [(429, "busy", 2), ("cut off", "unreachable", 2), ("no choice", "broken", 2), (401, "key", 1), (404, "refused", 1)],
)
def test_what_does_not_pass_is_an_error_with_its_cause_and_never_an_answer(trouble, cause, requests):
    with misbehaving(trouble, attempts=2) as (model, server):
        (answer,) = model.attempt(["Hello"], SHORT)
        assert isinstance(answer, EndpointError)
        assert answer.cause == cause
        assert len(server.seen) == requests
        with pytest.raises(EndpointError):
            model.generate(["Hello"], 1, SHORT)
        (verdict,) = Judge(model, "text")([("a", "b")])
    assert verdict.met is None
    assert verdict.cause.startswith(cause)


def test_the_pause_that_a_server_asks_for_is_kept():
    with misbehaving(429, "good") as (model, server):
        server.retry_after = "3"
        start = time.monotonic()
        (answer,) = model.attempt(["Hello"], SHORT)
        assert time.monotonic() - start >= 3
    assert isinstance(answer, Completion)


def test_a_wrong_key_is_named_by_its_variable_and_never_printed(monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    with misbehaving(401) as (model, server):
        (error,) = model.attempt(["Hello"], SHORT)
    assert server.seen[0]["key"] == f"Bearer {SECRET}"
    assert KEY in str(error)
    assert SECRET not in f"{error}{error!r}{error.__cause__}{error.__context__}{model!r}"


def test_a_server_that_is_down_is_named(monkeypatch):
    (error,) = EndpointModel("m", "http://127.0.0.1:9/v1", attempts=2).attempt(["Hello"], SHORT)
    assert error.cause == "unreachable"
    assert "http://127.0.0.1:9/v1" in str(error)


def test_a_slow_server_costs_its_deadline_and_the_others_keep_their_answers():
    with misbehaving(30.0, "good", deadline=1.0, concurrency=3) as (model, _):
        start = time.monotonic()
        answers = model.attempt(["a", "b", "c"], SHORT)
        assert time.monotonic() - start < 15
    assert sorted(a.cause if isinstance(a, EndpointError) else "good" for a in answers) == ["deadline", "good", "good"]


def test_requests_stay_under_the_cap():
    with misbehaving(0.2, concurrency=3) as (model, server):
        model.attempt([str(i) for i in range(12)], SHORT)
    assert len(server.seen) == 12
    assert 2 <= server.most <= 3
    assert len({r["seed"] for r in server.seen}) == 12


def test_it_works_where_an_event_loop_runs_as_in_jupyter():
    import asyncio

    async def cell(model):
        return Judge(model, "text")([("a", "b")])

    with misbehaving("good") as (model, _):
        assert asyncio.run(cell(model)) == [Verdict(True, reason="It does.")]
