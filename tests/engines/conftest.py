"""The embedded model in float32, as transformers' and as vLLM's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cat_lib import models
from cat_lib.models import load_model


@pytest.fixture(scope="session")
def ours():
    model = load_model("embedded")
    return replace(model, model=model.model.float())


@pytest.fixture(scope="session")
def theirs():
    pytest.importorskip("vllm", reason="vLLM is not installed: make engines")
    from cat_lib.models import vllm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "preferred_dtype", lambda: torch.float32)
        model = vllm.load("embedded")
    yield model
    model.close()
