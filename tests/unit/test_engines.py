"""Which engines learn and draw: what engine=auto takes, what is kept of it, what is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import nbformat
import pytest
import torch

from cat_lib import models
from cat_lib.doctor import checks
from cat_lib.learning import canary, sampler
from cat_lib.learning.canary import learner
from cat_lib.models import ModelError, load_model, memory
from cat_lib.models.memory import Work, estimate
from cat_lib.runs import places
from cat_lib.runs.folder import read_config
from cat_lib.runs.parameters import Parameters, effective, resolve
from cat_lib.runs.tracking import Run
from cat_lib.suites import preflight
from cat_lib.train_entry import main


def parameters(**given) -> Parameters:
    values = {"model": "embedded", "engine": "auto", "thinking": False, "rollouts": "engine"} | given
    return Parameters(values, values)


@pytest.mark.parametrize(("kind", "bf16", "hidden"), [("AVX2", 0, True), ("AVX512", 1, False), ("DEFAULT", 0, False)])
def test_vllm_s_kernels_for_another_processor_are_hidden_from_unsloth_s_probe(monkeypatch, kind, bf16, hidden):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(bf16))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: kind)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delitem(sys.modules, "vllm._C", raising=False)
    with models._unprobed():
        assert ("vllm._C" in sys.modules) == hidden
        if hidden:
            with pytest.raises(ModuleNotFoundError, match="halted"):
                import_module("vllm._C")
    assert "vllm._C" not in sys.modules


def test_auto_is_transformers_where_there_is_no_gpu(tmp_path, capsys):
    p, run = parameters(), Run(tmp_path)
    model = learner(p, run)
    assert (model.engine, model.sampler) == ("transformers", None)
    assert (p.engine, p.rollouts) == ("transformers", "engine")
    assert "engine=auto: learns transformers, draws the same" in capsys.readouterr().out
    assert read_config(tmp_path)["tags"]["engines"] == "transformers engine"
    assert read_config(tmp_path)["parameters"]["engine"] == "transformers"


def test_auto_goes_on_without_what_fails_and_a_resumed_run_keeps_what_it_took(tmp_path, monkeypatch, capsys):
    asked = []

    def loading(name, engine, thinking, rollouts):
        asked.append((engine, rollouts))
        if engine == "unsloth":
            raise ModelError("no kernel for this card")
        return engine

    monkeypatch.setattr(canary, "load_model", loading)
    monkeypatch.setattr(canary, "gpus", lambda: ["a card"])
    monkeypatch.setattr(canary, "find_spec", lambda _: True)
    assert learner(parameters(), Run(tmp_path)) == "transformers"
    assert asked == [("unsloth", "vllm"), ("transformers", "engine")]
    assert "engine=auto: not unsloth, no kernel for this card" in capsys.readouterr().out
    assert learner(parameters(), Run(tmp_path)) == "transformers"
    assert asked[2:] == [("transformers", "engine")]
    Run(tmp_path).tag("engines", "unsloth vllm")
    with pytest.raises(ModelError, match="no kernel"):  # another engine would be another training
        learner(parameters(), Run(tmp_path))


def test_what_is_unknown_or_not_installed_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="rollouts='trl': allowed are engine, vllm"):
        load_model("embedded", rollouts="trl")
    monkeypatch.setitem(sys.modules, "unsloth", None)
    with pytest.raises(ModelError, match=r"engine=unsloth: Unsloth can't be used here .*`make engines` adds it"):
        load_model("embedded", "unsloth")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match=r"engine=unsloth_4bit: .*bitsandbytes.*`make engines` adds it"):
        load_model("embedded", "unsloth_4bit")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelError, match=r"engine=vllm: vLLM is not installed here .*`make engines` adds it"):
        load_model("embedded", rollouts="vllm")


def test_vllm_beside_a_learner_is_counted(monkeypatch):
    monkeypatch.setattr(memory, "machine", lambda: (64.0, "cpu", 2))
    alone, beside = (estimate("embedded", Work(True, 4, 8, 256, 512, vllm=drawn)) for drawn in (False, True))
    assert beside.weights == 2 * alone.weights
    assert beside.cache == alone.cache + memory.VLLM_CACHE


def test_four_bits_are_little_more_than_a_third_of_sixteen(monkeypatch):
    """Llama 3.1 8B so held is 5.3 GB: 7e9 weights of linear layers at 0.516 bytes, 1.05e9 of embeddings at 2."""
    monkeypatch.setattr(memory, "machine", lambda: (64.0, "cuda", 2))
    whole, packed = (estimate("meta-llama/Llama-3.1-8B", Work(True, 4, 8, 256, 512, four_bit=bits)) for bits in (0, 1))
    assert 5.3 < packed.weights < 5.7  # by its name alone, with a larger vocabulary's embeddings
    assert packed.weights < 0.4 * whole.weights
    assert packed[1:] == whole[1:]


def test_before_a_kernel_starts_it_is_known_what_four_bits_go_with(monkeypatch):
    notebook, asked = places.NOTEBOOKS / "07_ablations.ipynb", []
    monkeypatch.setattr(preflight, "require_memory", lambda model, work: asked.append((model, work.four_bit)))
    given = {"engine": "unsloth_4bit", "other_model": "Qwen/Qwen3-8B"}
    preflight.require(effective(notebook.stem, resolve(notebook, given)))
    assert set(asked) == {("embedded", True), ("Qwen/Qwen3-8B", False)}  # transformers loads the other
    with pytest.raises(ValueError, match="vLLM would draw from 16-bit ones"):
        preflight.check(effective(notebook.stem, resolve(notebook, given | {"rollouts": "vllm"})))


def test_several_processes_do_not_draw_by_one_engine(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for given in ("rollouts=vllm", "engine=auto"):
        assert main(["--run-id", "x", "-p", given, "-p", "preset=tiny"]) == 2
        assert "there are several processes; name engine, and take rollouts=engine" in capsys.readouterr().err


def test_doctor_says_which_of_the_paper_s_models_fit(monkeypatch):
    monkeypatch.setattr(memory, "machine", lambda: (40.0, "cuda", 2))
    said = next(c for c in checks() if c.name == "paper preset")
    assert said.good
    assert "Qwen3-4B fits" in said.found
    assert "Llama-3.1-8B does not" in said.found


def test_what_notebooks_import_leaves_unsloth_to_come_first():
    """It patches transformers, TRL and PEFT, so none may be there before a model is asked for."""
    cells = [
        cell.source
        for file in (places.ROOT / "notebooks").glob("*.ipynb")
        for cell in nbformat.read(file, as_version=4).cells
        if cell.cell_type == "code"
    ]
    lines = {
        line for cell in cells for line in cell.splitlines() if line.startswith(("from cat_lib", "import cat_lib"))
    }
    assert len(lines) > 20
    program = "\n".join(
        [*sorted(lines), "import sys", "print([m for m in ('transformers', 'trl', 'peft') if m in sys.modules])"]
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_vllm_sleeps_between_rewards_and_update_and_a_learner_has_its_context(embedded):
    said = list[str]()
    trainer = SimpleNamespace(_generate_and_score_completions=lambda rows: said.append("scored") or rows)
    drawing = SimpleNamespace(sleep=lambda: said.append("asleep"), context=100)
    sampler.drawn_elsewhere(trainer, drawing)
    assert trainer._generate_and_score_completions([1]) == [1]
    assert said == ["scored", "asleep"]
    assert replace(embedded, sampler=drawing).context == 100 < embedded.context
