"""A LoRA adapter added to the weights that it was trained on, tensor by tensor, without the model in memory.

W' = W + (alpha / r) B A (Hu et al., 2021, arXiv 2106.09685, section 4.1), computed in float32. What an adapter may
hold besides (DoRA, ranks by layer, trained biases or whole modules) is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from cat_lib.models import ModelError, as_model_error

Adapter = dict[str, tuple[torch.Tensor, torch.Tensor]]  # name of a weight -> scaled B (out, r) and A (r, in), float32
_PLAIN = {"peft_type": "LORA", "bias": "none", "use_rslora": False, "use_dora": False, "fan_in_fan_out": False}
_PREFIX = "base_model.model."
_EMPTY = ("modules_to_save", "rank_pattern", "alpha_pattern", "trainable_token_indices", "layer_replication")


def read_adapter(folder: Path) -> Adapter:
    """The adapter in `folder`, as PEFT saves it. Raises ModelError if it is none, or more than plain LoRA."""
    with as_model_error(f"{folder} holds no LoRA adapter: "):
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
        scale = config["lora_alpha"] / config["r"]
    odd = {key: config[key] for key, plain in _PLAIN.items() if config.get(key, plain) != plain}
    odd |= {key: config[key] for key in _EMPTY if config.get(key)}
    names = sorted({name.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for name in tensors})
    keys = {name: [f"{_PREFIX}{name}.lora_{part}.weight" for part in "BA"] for name in names}
    if odd or not names or set(tensors) != {key for pair in keys.values() for key in pair}:
        told = ", ".join(f"{key}={value!r:.60}" for key, value in odd.items()) or "no LoRA pairs, or more than those"
        raise ModelError(f"the adapter in {folder} has {told}; allowed is plain LoRA, as add_lora makes it")
    pairs = {name: [tensors[key].float() for key in pair] for name, pair in keys.items()}
    return {f"{name}.weight": (scale * b, a) for name, (b, a) in pairs.items()}


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each weight in a model's folder, by name."""
    found = dict[str, tuple[int, ...]]()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as saved:
            found |= {name: tuple(saved.get_slice(name).get_shape()) for name in saved.keys()}  # noqa: SIM118
    return found


def require_fit(folder: Path, adapter: Adapter) -> None:
    """Raises ModelError if the adapter is not for the model in the folder: a weight that it lacks, another shape."""
    known = shapes(folder)
    for name, (b, a) in adapter.items():
        if known.get(name) != (len(b), a.shape[1]):
            here = f"there it is {known[name]}" if name in known else "there is none"
            said = f"the adapter is for {name} {(len(b), a.shape[1])}, and in {folder} {here}"
            raise ModelError(f"{said}: another model's, or of weights that transformers renames as it loads them")


def merged(folder: Path, adapter: Adapter, exact: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of all weights in a model's folder, as they are saved; if `exact`, adapted ones in float32."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as saved:
            for name in saved.keys():  # noqa: SIM118  # no dict
                tensor = saved.get_tensor(name)
                if name in adapter:
                    b, a = adapter[name]
                    sum_ = tensor.float() + b @ a
                    tensor = sum_ if exact else sum_.to(tensor.dtype)
                yield name, tensor
