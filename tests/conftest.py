"""Shared fixtures: the embedded model once a session, and a tracking store of the test's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import cat_lib  # noqa: F401  # before torch: it says how threads wait

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def pytest_collection_modifyitems(items):
    """The longest first: begun last, it would leave the other of two processes with nothing to do."""
    items.sort(key=lambda item: (item.get_closest_marker("longest") is None, item.get_closest_marker("slow") is None))


@pytest.fixture(scope="session")
def embedded():
    """The real embedded model; converted into the cache at its first use."""
    from cat_lib.models import load_model

    return load_model("embedded")


@pytest.fixture(scope="session")
def two_layers(tmp_path_factory):
    """A folder with the embedded model's first two layers of thirty: quick, and its answers are noise."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cat_lib.models.embedded import checkpoint

    folder = str(tmp_path_factory.mktemp("two_layers"))
    model = AutoModelForCausalLM.from_pretrained(checkpoint(), dtype="auto")
    model.model.layers, model.config.num_hidden_layers = model.model.layers[:2], 2
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint()).save_pretrained(folder)
    return folder


@pytest.fixture
def untracked(monkeypatch):
    monkeypatch.setenv("CAT_LIB_TRACKING", "off")


@pytest.fixture
def store(tmp_path: Path, monkeypatch):
    """An empty MLflow store, and results under the test's folder."""
    from cat_lib.runs import places

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setattr(places, "ROOT", tmp_path)
    monkeypatch.setattr(places, "RUNS", tmp_path / "runs")
    return tmp_path
