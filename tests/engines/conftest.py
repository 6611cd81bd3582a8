"""A model in float32, as transformers' and as vLLM's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from cat_lib import models
from cat_lib.models import load_model


@contextmanager
def both(name: str) -> Iterator:
    """The two engines of one model, vLLM's closed at the end."""
    pytest.importorskip("vllm", reason="vLLM is not installed: make engines")
    from cat_lib.models import vllm

    model = load_model(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "preferred_dtype", lambda: torch.float32)
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # GB: two test processes may each have an engine
        other = vllm.load(name)
    yield replace(model, model=model.model.float()), other
    other.close()


@pytest.fixture(scope="module")
def engines():
    """Of the embedded model."""
    with both("embedded") as pair:
        yield pair


@pytest.fixture(scope="module")
def small_engines(two_layers):
    """Of its first two layers: its answers are noise."""
    with both(two_layers) as pair:
        yield pair
