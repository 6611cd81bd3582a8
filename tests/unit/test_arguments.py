"""Every field of TRL's configs is decided, so that a release with a new default fails here and changes no result."""

from __future__ import annotations

from dataclasses import fields
from importlib import resources
from pathlib import Path

import pytest
import yaml
from trl import GRPOConfig, SFTConfig

from cat_lib.schema import Sampling
from cat_lib.settings import GRPOSettings, grpo_arguments
from cat_lib.sft import SFTSettings, sft_arguments

FILE = yaml.safe_load(resources.files("cat_lib").joinpath("trainer_arguments.yaml").read_text())
ARGUMENTS = {
    "grpo": (GRPOConfig, lambda folder: grpo_arguments(GRPOSettings(), Sampling(8), folder, on_cpu=True)),
    "sft": (SFTConfig, lambda folder: sft_arguments(SFTSettings(), folder, rows=64, on_cpu=True)),
}


@pytest.mark.parametrize("trainer", ARGUMENTS)
def test_each_field_has_one_place(trainer):
    kind, _ = ARGUMENTS[trainer]
    groups = [g for part in ("both", trainer) for g in FILE["decided"][part]]
    assert all(len(g["reason"]) > 20 for g in groups)
    placed = [name for g in groups for name in g["set"]]
    placed += [n for place in ("by_run", "no_result") for part in ("both", trainer) for n in FILE[place][part]]
    assert sorted(placed) == sorted(f.name for f in fields(kind)), "a field nobody decided, or one that is gone"


@pytest.mark.parametrize("trainer", ARGUMENTS)
def test_what_is_decided_is_what_trl_gets(trainer, tmp_path: Path):
    kind, arguments = ARGUMENTS[trainer]
    given = arguments(tmp_path)
    by_run = {n for part in ("both", trainer) for n in FILE["by_run"][part]}
    groups = [g["set"] for part in ("both", trainer) for g in FILE["decided"][part]]
    assert set(given) >= by_run | {name for g in groups for name in g}
    config = kind(**given)
    kept = {"deepspeed", "fsdp", "fsdp_config", "accelerator_config", "generation_batch_size", "model_init_kwargs"}
    for group in groups:
        for name in group.keys() - kept:  # TRL fills these in from nothing
            value = getattr(config, name)
            assert getattr(value, "value", value) == group[name], name
