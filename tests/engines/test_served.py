"""The line of docs/your_model_and_data.md by which several runs share a judge: vLLM's server on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request

import pytest

from cat_lib.models import endpoint
from cat_lib.models.embedded import checkpoint
from cat_lib.schema import Sampling
from small import free_port

pytest.importorskip("vllm", reason="vLLM is not installed: make engines")


@pytest.mark.slow
def test_a_served_model_answers_as_the_model(embedded):
    port, name = free_port(), ["--served-model-name", "judge", "--enforce-eager", "--max-model-len", "4096"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint())]
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1"}
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), *name],
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
        model = endpoint.parse(f"endpoint:judge@http://127.0.0.1:{port}/v1")
        prompts = [[{"role": "user", "content": f"Name a {thing}."}] for thing in ("colour", "river", "fruit")]
        short = Sampling(8, temperature=0)
        both = zip(model.generate(prompts, 1, short), embedded.generate(prompts, 1, short), strict=True)
        assert sum(a.text.strip() == b.text.strip() for (a,), (b,) in both) >= 2  # a near-tie can fall either way
        assert model.ledger.roles["judge"].calls == 3
    finally:
        process.terminate()
        process.wait(60)
