"""Every field of TRL's configs is decided, so that a release with a new default fails here and changes no result."""

from __future__ import annotations

from dataclasses import fields
from importlib import resources
from pathlib import Path

import pytest
import yaml
from trl import GRPOConfig, SFTConfig

from cat_lib.learning.settings import GRPOSettings, draw_as, grpo_arguments
from cat_lib.learning.sft import SFTSettings, sft_arguments
from cat_lib.schema import Sampling
from cat_lib.tasks.arithmetic import Arithmetic
from cat_lib.tasks.healthbench import clinic

FILE = yaml.safe_load(resources.files("cat_lib.learning").joinpath("trainer_arguments.yaml").read_text())
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


NONE = {"temperature": None, "top_k": None, "top_p": None}


@pytest.mark.parametrize(
    ("model", "drawn"),
    [
        ("google/gemma-3-4b-it", (1.0, 64, 0.95)),
        ("Qwen/Qwen3-4B", (0.7, 20, 0.8)),
        ("./models/Llama-3.1-8B-Instruct", (0.7, 50, 0.9)),
        ("unsloth/Meta-Llama-3.1-8B-Instruct", (0.7, 50, 0.9)),
        ("/hub/models--google--gemma-3-4b-it/snapshots/abc", (1.0, 64, 0.95)),
        ("./gemma3-4b", (1.0, 64, 0.95)),
        ("Qwen/Qwen3.5-4B", (1.0, 0, 1.0)),
        ("meta-llama/Llama-2-7b-chat-hf", (1.0, 0, 1.0)),
        ("embedded", (1.0, 0, 1.0)),
    ],
)
def test_a_model_is_sampled_as_the_paper_samples_it(model, drawn):
    p = {"model": model} | NONE
    sampling = draw_as(Arithmetic(), p).sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == drawn
    assert (p["temperature"], p["top_k"], p["top_p"]) == drawn  # what the run records
    assert (sampling.max_new_tokens, sampling.stop) == (16, ("\n",))
    assert Arithmetic().sampling.top_k == 0


def test_a_folder_of_any_name_is_known_by_its_config(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gemma3"}')
    assert draw_as(Arithmetic(), {"model": str(tmp_path)} | NONE).sampling.top_k == 64


def test_what_a_user_says_of_sampling_wins():
    p = {"model": "Qwen/Qwen3-4B"} | NONE | {"temperature": 1.2, "top_k": 0}
    sampling = draw_as(clinic(), p).sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (1.2, 0, 0.8)


@pytest.mark.parametrize(("given", "longest"), [(16, 16), (None, 64)])
def test_responses_are_as_long_as_a_user_says_or_the_task(given, longest):
    p = {"model": "embedded", "response_tokens": given} | NONE
    assert draw_as(clinic(), p).sampling.max_new_tokens == p["response_tokens"] == longest


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_a_sampling_that_cannot_draw_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)) + "=.*allowed are"):
        draw_as(Arithmetic(), {"model": "embedded"} | NONE | wrong)
