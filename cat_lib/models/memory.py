"""Can this machine hold a model at work? Arithmetic before anything is downloaded or loaded; 1 GB is 2**30 bytes.

It leans to too much: a run refused costs a line, one killed its work. What a token keeps for the backward pass was
measured on CPUs (for GPUs under CPU autocast): with gated feed-forward layers and LoRA it is 1.5 to 2.6 times the
34 bytes x hidden x layers of Korthikanti et al. (2022, arXiv 2205.05198), so it is counted by widths here.

Left out: attention's quadratic part (not stored), scoring given texts, the limits of containers (psutil sees the host),
several GPUs (a run uses one).
"""

from __future__ import annotations

import json
import math
import re
from collections import namedtuple
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import psutil
import yaml

from cat_lib.models import ModelError, preferred_dtype

GB = 2**30
VLLM_CACHE = 2  # GB of keys and values that vLLM sets aside on a CPU
LIBRARIES = {"cpu": 1.5, "cuda": 0.5}  # GB: what a notebook imports (measured); CUDA context and workspaces
_KEPT = {("cpu", 2): 5.5, ("cpu", 4): 6.0, ("cuda", 2): 4.25, ("cuda", 4): 6.0}  # bytes a width, by bytes a weight
_LOGIT = {"cpu": 15, "cuda": 12}  # bytes in an update: 15 measured on CPUs; TRL's GPU kernel keeps fewer copies
_NF4 = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # bytes of a 4-bit weight and its doubly quantized scales (QLoRA, 3)
_POSITIONS, _ROWS, _SHARED = 16_384, 256, 4096  # LocalModel.batch_tokens, passes.MAX_ROWS, shared_prompt.LONGEST_ROW

# `query` and `key` are a model's heads times the width of one
Shape = namedtuple("Shape", "parameters layers hidden query key inner vocabulary")
KNOWN = [Shape(*row) for row in yaml.safe_load((Path(__file__).parent / "shapes.yaml").read_text())]


@dataclass(frozen=True)
class Work:
    """What is held at once: `prompts` of a micro-batch in training, else of one call, and their rollouts."""

    train: bool
    prompts: int
    group_size: int
    prompt_tokens: int
    new_tokens: int
    checkpointing: bool = False
    lora_rank: int = 32
    vllm: bool = False  # it draws, in training beside the engine that learns, each with its own weights
    four_bit: bool = False  # the linear layers' weights, but for the output's


class Memory(NamedTuple):
    """GB needed, by what needs it."""

    weights: float
    lora_and_optimizer: float
    cache: float  # keys and values
    activations: float
    logits: float
    libraries: float

    @property
    def total(self) -> float:
        return sum(self)


def machine() -> tuple[float, str, int]:
    """GB this process may hold, "cuda" or "cpu", and bytes a weight: all that is asked of the machine."""
    import torch

    size = preferred_dtype().itemsize
    if torch.cuda.is_available():
        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return (torch.cuda.mem_get_info()[0] + unused) / GB, "cuda", size
    imported = min(psutil.Process().memory_info().rss / GB, LIBRARIES["cpu"])  # the estimate counts them again
    return psutil.virtual_memory().available / GB + imported, "cpu", size


def widths(config: Any) -> tuple[int, int]:
    """`query` and `key` of a `Shape`, from a config as transformers writes it."""
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    return head * heads, head * (getattr(config, "num_key_value_heads", None) or heads)


def batch_tokens(model: Any) -> int:
    """Positions whose keys and values take 30 % of the GPU memory that the weights leave; 0 without a GPU."""
    import torch

    if model.device.type != "cuda":
        return 0
    text = model.config.get_text_config()
    position = 2 * text.num_hidden_layers * widths(text)[1] * model.dtype.itemsize
    return int(0.3 * torch.cuda.mem_get_info()[0] / position)


def shape_of(name: str) -> Shape | None:
    """The model's sizes from its folder's config.json and weights, or from the billions in its name; else None."""
    if name == "embedded":
        return KNOWN[0]
    if (folder := Path(name)).is_dir():
        try:
            whole = json.loads((folder / "config.json").read_text())
            c = SimpleNamespace(**whole.get("text_config", whole))
            dtype = whole.get("dtype") or whole.get("torch_dtype") or getattr(c, "dtype", None)
            files = [f.stat().st_size for f in folder.glob("*.safetensors")]
            sizes = c.num_hidden_layers, c.hidden_size, *widths(c), c.intermediate_size, c.vocab_size
            return Shape(sum(files) / (4 if "32" in str(dtype) else 2), *sizes) if files else None
        except (OSError, ValueError, TypeError, AttributeError, ArithmeticError):
            return None  # load_model says what is wrong there
    found = re.search(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", name.split("/")[-1].lower())
    parameters = int(found[1] or 1) * float(found[2]) * {"b": 1e9, "m": 1e6}[found[3]] if found else 0.0
    if not parameters:
        return None
    near = min(KNOWN, key=lambda known: abs(math.log(known.parameters / parameters)))
    vocabulary = 262_208 if "gemma" in name.lower() else near.vocabulary
    return near._replace(parameters=parameters, vocabulary=vocabulary)


def estimate(name: str, work: Work) -> Memory | None:
    """GB that `name` needs here for `work`; None if its size is neither in a folder nor in its name."""
    if (of := shape_of(name)) is None:
        return None
    _, device, size = machine()
    width = 2 * (of.hidden + of.query + of.key) + 3 * of.inner
    rows, length = work.prompts * work.group_size, work.prompt_tokens + work.new_tokens
    positions = max(_POSITIONS, work.group_size * length)  # of the engine, which never splits a group
    if work.train:
        tokens = work.prompts * work.prompt_tokens + rows * work.new_tokens
        if tokens > _SHARED or 4 * tokens > 3 * rows * length:  # else the trainer computes each prompt once
            tokens = rows * length
        adapter = 16.0 * work.lora_rank * (width + 5 * of.hidden) * of.layers  # weight, gradient, moments in float32
        layer = _KEPT[device, size] * width
        # with checkpointing each layer's input, and one layer recomputed
        kept = size * of.hidden * of.layers + layer if work.checkpointing else layer * of.layers
        activations, logits = tokens * kept, _LOGIT[device] * of.vocabulary * rows * work.new_tokens
    else:
        positions, adapter = min(positions, rows * length), 0.0
        activations = size * width * positions / work.group_size  # one layer, over the prompts of a batch
        logits = 24 * of.vocabulary * min(rows, _ROWS)  # six float32 arrays while a token is drawn
    cache = 2 * of.layers * of.key * size * positions  # keys and values
    weights = size * of.parameters
    if work.four_bit:
        embedded = min(2 * of.vocabulary * of.hidden, of.parameters)
        weights = size * embedded + _NF4 * (of.parameters - embedded)
    if work.vllm and device == "cpu":  # on a GPU it sleeps while the policy learns
        cache, weights = cache + VLLM_CACHE * GB, weights * (2 if work.train else 1)
    held = weights, adapter, cache, activations, logits, LIBRARIES[device] * GB
    return Memory(*(part / GB for part in held))


def require_memory(name: str, work: Work) -> Memory | None:
    """The estimate, or ModelError if it is more than is there; a model of unknown size passes, and that is said."""
    need, (there, device, _) = estimate(name, work), machine()
    if need is None:
        print(f"model={name!r}: no size in a folder's config or in the name; memory not checked", flush=True)
    if need is None or need.total <= there:
        return need
    fewer = [n for n in range(work.prompts - 1, 0, -1) if work.prompts % n == 0]  # which divide the step as well
    fits = next((n for n in fewer if (less := estimate(name, replace(work, prompts=n))) and less.total <= there), None)
    batch = "prompts_per_micro_batch" if work.train else "prompts per call"
    parts = ", ".join(f"{part.replace('_', ' ')} {gb:.1f}" for part, gb in need._asdict().items())
    raise ModelError(
        f"model={name!r} needs about {need.total:.1f} GB to {'train on' if work.train else 'answer'} {work.prompts} x "
        f"{work.group_size} rollouts of {work.prompt_tokens} + {work.new_tokens} tokens ({parts}), and {there:.1f} GB "
        f"of {'GPU memory' if device == 'cuda' else 'memory'} are free: {f'{batch}={fits} fits; or ' if fits else ''}"
        'take a smaller model (model="embedded" needs least), a smaller group_size, or a machine with more'
    )


def gpus() -> list[str]:
    """The names of the GPUs that this process may use."""
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.cuda.get_device_name(i) for i in range(there)]
