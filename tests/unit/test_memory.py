"""The arithmetic of memory, against measured peaks and hand-made sums. No model is loaded."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cat_lib import doctor
from cat_lib.learning import shared_prompt as trainer
from cat_lib.learning.settings import GRPOSettings
from cat_lib.models import ModelError, local, memory, passes
from cat_lib.models.memory import Work, estimate, require_memory, shape_of
from cat_lib.runs.parameters import presets

SMOKE = Work(train=True, prompts=4, group_size=8, prompt_tokens=60, new_tokens=16, lora_rank=16)
CLINIC = Work(train=True, prompts=4, group_size=4, prompt_tokens=227, new_tokens=64, lora_rank=16)
PAPER = Work(train=True, prompts=4, group_size=8, prompt_tokens=256, new_tokens=1536)
PRESETS = presets()["00_quickstart"]
MODEL = PRESETS["paper"]["model"]


@pytest.fixture
def machine(monkeypatch):
    """Set the machine: GB, "cpu" or "cuda", bytes per weight."""

    def set_to(gb: float, device: str = "cpu", size: int = 2) -> None:
        monkeypatch.setattr(memory, "machine", lambda: (gb, device, size))

    set_to(6.0)
    return set_to


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen3-4B-Instruct-2507", 4), ("HuggingFaceTB/SmolLM2-135M-Instruct", 0.135), ("o/Mixtral-8x7B-v0.1", 56),
        ("meta-llama/Llama-3.1-8B-Instruct", 8), ("google/gemma-3-4b-it", 4), ("Qwen/Qwen2.5-0.5B", 0.5),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", 30), ("o/Llama-3.1-8B-4bit", 8), ("01-ai/Yi-1.5-9B", 9),
    ],
)  # fmt: skip
def test_the_size_is_read_from_the_name(name, billions):
    shape = shape_of(name)
    assert shape is not None
    assert shape[0] == pytest.approx(billions * 1e9)


@pytest.mark.parametrize("name", ["microsoft/phi-4", "o/model-2507", "o/mini-4k-128k", "7b-owner/model", "o/x-0B"])
def test_an_unknown_size_is_not_refused_and_that_is_said(name, machine, capsys):
    machine(0.1)
    assert require_memory(name, PAPER) is None
    assert name in capsys.readouterr().out


def test_the_nearest_known_model_lends_its_shape():
    four, gemma = shape_of("Qwen/Qwen3-4B"), shape_of("google/gemma-3-4b-it")
    assert four is not None
    assert gemma is not None
    assert four[1:] == (36, 2560, 32 * 128, 8 * 128, 9728, 151_936)
    assert gemma[6] > four[6]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("dtype", "stored"), [("bfloat16", 2), ("float32", 4)])
def test_a_folder_is_read_from_its_config_and_weights(tmp_path, machine, nested, dtype, stored):
    sizes = {
        "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 96, "vocab_size": 500,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(({"text_config": sizes} if nested else sizes) | {"dtype": dtype}))
    assert shape_of(str(tmp_path)) is None  # no weights
    for part in (1, 2):
        (tmp_path / f"model-{part}.safetensors").write_bytes(b"0" * 1000 * stored)
    assert shape_of(str(tmp_path)) == (2000, 3, 64, 64, 32, 96, 500)
    work = Work(train=False, prompts=1, group_size=2, prompt_tokens=3, new_tokens=2)
    need = estimate(str(tmp_path), work)
    assert need is not None
    assert need.weights * memory.GB == pytest.approx(2 * 2000)
    assert need.cache * memory.GB == pytest.approx(2 * 32 * 3 * 2 * 10)  # keys and values, layers, bytes, positions


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"num_attention_heads": 0, "hidden_size": 4}', '{"text_config": 1}'])
def test_a_folder_without_a_usable_config_is_left_to_load_model(tmp_path, text):
    (tmp_path / "model.safetensors").write_bytes(b"0")
    (tmp_path / "config.json").write_text(text)
    assert shape_of(str(tmp_path)) is None


@pytest.mark.parametrize(("work", "measured"), [(SMOKE, 2.0), (CLINIC, 3.3)])
def test_the_estimate_stands_above_the_measured_peak_and_below_what_smoke_promises(work, measured, machine):
    """Measured: peak resident GB of a process that imports, samples, and trains one such micro-batch, on 1 core."""
    need = require_memory("embedded", work)
    assert need is not None
    assert measured < need.total < doctor.SMOKE_GB
    assert need.weights == pytest.approx(0.25, abs=0.01)


def test_the_smoke_presets_are_never_refused_where_doctor_says_that_they_run(machine):
    machine(float(doctor.SMOKE_GB), size=4)  # float32, the worst case
    settings = GRPOSettings.of(PRESETS["smoke"])
    assert require_memory("embedded", replace(SMOKE, prompts=settings.prompts_per_micro_batch)) is not None
    assert require_memory("embedded", replace(SMOKE, train=False, prompts=96)) is not None


def test_the_paper_preset_is_refused_on_a_cpu_and_the_error_names_the_parts(machine):
    machine(23.0)
    with pytest.raises(ModelError) as caught:
        require_memory(MODEL, PAPER)
    for words in (MODEL, "weights 7.5", "lora and optimizer 1.0", "cache", "activations", "logits", "23.0 GB of memory",
                  "embedded", "group_size"):  # fmt: skip
        assert words in str(caught.value)
    assert require_memory(MODEL, replace(PAPER, train=False)) is not None  # it can answer there


def test_on_a_large_gpu_the_micro_batch_that_fits_is_named(machine):
    machine(79.2, "cuda")
    lean = replace(PAPER, checkpointing=True)
    with pytest.raises(ModelError, match=r"79\.2 GB of GPU memory .* prompts_per_micro_batch=2 fits"):
        require_memory(MODEL, lean)
    assert require_memory(MODEL, replace(lean, prompts=2)) is not None
    with pytest.raises(ModelError, match="free: take a smaller model"):
        require_memory(MODEL, PAPER)


def test_checkpointing_keeps_each_layers_input_and_recomputes_one_layer(machine):
    machine(79.2, "cuda")
    full, lean = (estimate(MODEL, replace(PAPER, checkpointing=on)) for on in (False, True))
    assert full is not None
    assert lean is not None
    tokens = 32 * 1792
    inputs = 2 * 2560 * 36 * tokens / memory.GB
    assert lean.activations == pytest.approx(full.activations / 36 + inputs)
    assert lean.logits == full.logits == pytest.approx(12 * 151_936 * 32 * 1536 / memory.GB)


def test_a_prompt_counts_once_where_the_trainer_shares_it(machine):
    short = estimate("embedded", replace(SMOKE, prompt_tokens=100))
    long = estimate("embedded", replace(SMOKE, prompt_tokens=100, new_tokens=256))  # rows over LONGEST_ROW
    assert short is not None
    assert long is not None
    assert short.activations / long.activations == pytest.approx((4 * 100 + 32 * 16) / (32 * 356))


def test_the_numbers_taken_from_other_modules_are_theirs():
    assert local.LocalModel.batch_tokens == memory._POSITIONS
    assert (passes.MAX_ROWS, trainer.LONGEST_ROW) == (memory._ROWS, memory._SHARED)


def test_the_real_machine_answers():
    there, device, size = memory.machine()
    assert there > 0
    assert device in memory.LIBRARIES
    assert size in (2, 4)


def test_doctor_names_the_sizes_that_fit(machine):
    def found() -> tuple[str, str]:
        check = doctor._sizes()
        return check.state, check.found

    machine(1.0)
    assert found() == ("note", "answering: none; training: none")
    machine(79.2, "cuda")
    assert found() == ("ok", "answering: up to 32B; training: up to 14B")
