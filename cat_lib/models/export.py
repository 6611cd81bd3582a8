"""A trained adapter made into what other programs load, and held to the adapter's own answers before it is called done.

`adapter` is PEFT's folder as it is, `merged` a model's folder with the adapter added to its weights, in their dtype,
`gguf` that by llama.cpp's own converter, which this machine must have: what is checked is the folder it is made from.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch

from cat_lib.models import ModelError, load_model, saved
from cat_lib.models.local import LocalModel
from cat_lib.models.merging import merged, read_adapter, require_fit
from cat_lib.schema import Prompt, Sampling

MOST_GAP = 0.1  # nats a token, mean: what rounding the sum of weights and adapter to 16 bits may cost
_SHARD = 5 * 2**30  # bytes of a file, as the hub has them
_ASKED = (
    "What is 7 + 5?", "Name three primary colours.", "Why is the sky blue?", "Say 'good morning' in French.",
    "Write one sentence about the sea.", "What is 12 x 3?", "Who wrote Hamlet?", "List two even numbers.",
)  # fmt: skip


def export(adapter: Path, out: Path, kind: Literal["adapter", "merged", "gguf"], name: str) -> str:
    """Write the adapter of the model `name` to `out`, and say how near its answers are to the adapter's own.

    Raises ModelError, and leaves no `out`, for an adapter that does not fit the model, a converter that is missing or
    fails, and answers that differ by more than `MOST_GAP`; ValueError for an `out` that exists.
    """
    if out.exists():
        raise ValueError(f"{out} exists: take another name, or remove it")
    converter = _converter() if kind == "gguf" else None
    base = saved(name)
    require_fit(base, read_adapter(adapter))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as place:
        made = Path(place) / "made"
        if kind == "adapter":
            made.mkdir()
            for part in ("adapter_config.json", "adapter_model.safetensors"):
                shutil.copy2(adapter / part, made)
            said = "PEFT's folder, as it was saved"
        else:
            _merge(base, adapter, made)
            said = _compare(name, adapter, made)
        if converter:
            file = Path(place) / "model.gguf"
            command = [sys.executable, str(converter), str(made), "--outfile", str(file), "--outtype", "bf16"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode or not file.exists():
                last = (done.stderr.strip().splitlines() or ["no word"])[-1][:200]
                raise ModelError(f"{converter.name} failed: {last}; kind=merged gives it the folder to convert by hand")
            made = file
        made.rename(out)
    return said


def _merge(base: Path, adapter: Path, made: Path) -> None:
    """A copy of the model's folder, its weights in the dtype that they had, in files of about `_SHARD`."""
    from safetensors.torch import save_file

    made.mkdir()
    for file in base.iterdir():
        if file.is_file() and file.suffix in (".json", ".txt", ".model", ".jinja") and ".index." not in file.name:
            shutil.copy2(file, made)
    part, places, total = dict[str, torch.Tensor](), dict[str, str](), 0
    for name, tensor in merged(base, read_adapter(adapter), exact=False):
        number = total // _SHARD
        total += tensor.nbytes
        places[name] = f"model-{number + 1:05}.safetensors"
        part[name] = tensor
        if total // _SHARD > number:
            save_file(part, made / places[name], {"format": "pt"})
            part.clear()
    if part:
        save_file(part, made / places[name], {"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (made / "model.safetensors.index.json").write_text(json.dumps(index))


def _compare(name: str, adapter: Path, made: Path) -> str:
    """How near what was made answers to the adapter. Raises ModelError if it is not near enough."""
    from peft import PeftModel

    base, other = load_model(name), load_model(str(made))
    assert isinstance(base, LocalModel)
    learnt = replace(base, model=PeftModel.from_pretrained(base.model, adapter).eval(), initial=base.model)
    prompts: list[Prompt] = [[{"role": "user", "content": text}] for text in _ASKED]
    texts, others = ([c.text for (c,) in m.generate(prompts, 1, Sampling(32, temperature=0))] for m in (learnt, other))
    scored = [text or "-" for text in texts]  # one that says nothing has no tokens
    pairs = zip(learnt.logprobs(prompts, scored), other.logprobs(prompts, scored), strict=True)
    apart = fmean(abs(x - y) for a, b in pairs for x, y in zip(a, b, strict=True))
    same = sum(a == b for a, b in zip(texts, others, strict=True))
    said = f"{same} of {len(texts)} greedy answers are the adapter's own, {apart:.4f} nats a token apart"
    if not apart <= MOST_GAP:  # nor NaN
        raise ModelError(f"what was made answers otherwise than the adapter: {said}, allowed is {MOST_GAP}; not kept")
    return said


def _converter() -> Path:
    """llama.cpp's convert_hf_to_gguf.py. Raises ModelError if it is not here."""
    places = [os.environ.get("LLAMA_CPP", ""), *os.environ.get("PATH", "").split(os.pathsep)]
    for place in filter(None, places):
        if (file := Path(place) / "convert_hf_to_gguf.py").is_file():
            return file
    advice = "clone llama.cpp and set LLAMA_CPP to its folder, or take kind=merged"
    raise ModelError(f"kind='gguf' needs llama.cpp's convert_hf_to_gguf.py, which is not here: {advice}")
