"""An adapter made into what other programs load: whole, and answering as the adapter does, or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from tiny import tiny_policy
from typer.testing import CliRunner

from cat_lib.__main__ import app
from cat_lib.learning.grpo import add_lora
from cat_lib.models import ModelError, export, load_model, merging
from cat_lib.tasks.arithmetic import Arithmetic


@pytest.fixture
def adapter(embedded, tmp_path):
    """An adapter of the embedded model that changes what it says, in a run's folder."""
    policy = add_lora(replace(embedded, policies={}), 4, 0)
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    policy.model.save_pretrained(tmp_path / "run" / "adapter")
    (tmp_path / "run" / "config.json").write_text(json.dumps({"parameters": {"model": "embedded"}}))
    return tmp_path / "run" / "adapter", policy


def test_the_merged_folder_answers_as_the_adapter(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_SHARD", 100 * 2**20)
    (folder, policy), out = adapter, tmp_path / "merged"
    result = CliRunner().invoke(app, ["export", str(folder), str(out)])
    assert result.exit_code == 0, result.output
    assert "greedy answers are the adapter's own" in result.output
    assert len(list(out.glob("*.safetensors"))) > 1
    loaded, prompts = load_model(str(out)), [e.prompt for e in Arithmetic().examples("train", 4, 0)]
    texts = ["12", "7 apples", "no", "2 + 2 = 4"]
    mine, its, base = (m.logprobs(prompts, texts) for m in (policy, loaded, policy.anchor()))
    flat = [[x for row in part for x in row] for part in (mine, its, base)]
    apart = [fmean(abs(x - y) for x, y in zip(flat[0], other, strict=True)) for other in flat[1:]]
    assert apart[0] < apart[1] / 5, apart  # 16 bits
    again = CliRunner().invoke(app, ["export", str(folder), str(out)])
    assert again.exit_code == 2
    assert "exists: take another name" in again.output


def test_the_adapter_s_folder_is_peft_s(adapter, tmp_path):
    said = export.export(adapter[0], tmp_path / "out", "adapter", "embedded")
    assert said == "PEFT's folder, as it was saved"
    copied, saved = (folder / "adapter_model.safetensors" for folder in (tmp_path / "out", adapter[0]))
    assert copied.read_bytes() == saved.read_bytes()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_what_answers_otherwise_is_not_kept(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "merged", lambda folder, _, exact: merging.merged(folder, {}, exact))
    with pytest.raises(ModelError, match=r"answers otherwise than the adapter: \d of 8 .* allowed is 0.1; not kept"):
        export.export(adapter[0], tmp_path / "out", "merged", "embedded")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_what_can_t_be_exported_is_refused(tmp_path, monkeypatch):
    tiny_policy().model.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"the adapter is for .* another model's"):
        export.export(tmp_path / "other", tmp_path / "out", "merged", "embedded")
    with pytest.raises(ModelError, match="holds no LoRA adapter"):
        export.export(tmp_path, tmp_path / "out", "merged", "embedded")
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    with pytest.raises(ModelError, match=r"convert_hf_to_gguf.py, which is not here: clone llama.cpp"):
        export.export(tmp_path, tmp_path / "out", "gguf", "embedded")
    result = CliRunner().invoke(app, ["export", str(tmp_path / "other"), str(tmp_path / "out")])
    assert (result.exit_code, "name it by --model" in result.output) == (2, True)
    config = json.loads((tmp_path / "other" / "adapter_config.json").read_text())
    for change in ({"use_dora": True}, {"rank_pattern": {"q_proj": 2}}, {"peft_type": "IA3"}):
        (tmp_path / "other" / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelError, match=f"has {next(iter(change))}=.* allowed is plain LoRA"):
            merging.read_adapter(tmp_path / "other")


def test_a_converter_that_fails_leaves_nothing(adapter, tmp_path, monkeypatch):
    (tmp_path / "convert_hf_to_gguf.py").write_text("raise SystemExit('no such architecture')")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    with pytest.raises(ModelError, match=r"convert_hf_to_gguf.py failed: no such architecture; kind=merged"):
        export.export(adapter[0], tmp_path / "out", "gguf", "embedded")
    assert not (tmp_path / "out").exists()
