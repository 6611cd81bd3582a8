"""One door to the engines: `load_model("embedded")`, a hub id, or a local folder.

Nothing heavy is imported before a model is asked for, so the command line answers at once and Unsloth, where it is
used, is imported before the libraries that it patches.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from cat_lib.ledger import Ledger
    from cat_lib.models.local import LocalModel
    from cat_lib.schema import Model

LEARNERS = ("transformers", "unsloth", "unsloth_4bit")
ENGINES = (*LEARNERS, "vllm")
ADVICE = 'model="embedded" works offline, and a local folder is given by its path, e.g. model="./my-model"'


class ModelError(RuntimeError):
    """A model that cannot be had or used, and what to do about it."""


def load_model(name: str, engine: str = "transformers", thinking: bool = False, rollouts: str = "engine") -> Model:
    """The model `name` ("embedded", a hub id such as "Qwen/Qwen3-4B", or a local folder), ready to generate.

    With rollouts="vllm" a vLLM engine beside it generates for it, policy and anchor, and what it learns is handed over;
    with the URL of a vLLM server, that does. engine="unsloth_4bit" holds the linear layers' weights in 4 bits (NF4,
    doubly quantized: QLoRA, arXiv 2305.14314), which no other engine would draw from.
    On CPUs with bfloat16 instructions, and on GPUs, weights are bfloat16; else float32. `thinking` lets a model think
    before it answers, where its chat template leaves that open. Raises ModelError if it cannot be reached, has no
    tokenizer or chat template or an attention that is not supported, ValueError for an unknown engine.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r}: allowed are {', '.join(ENGINES)}")
    if require_sampler(rollouts, engine):
        from cat_lib.models import served

        server = served.load(rollouts)
        return replace(_local(name, engine, thinking), sampler=server)
    if "vllm" not in (engine, rollouts):
        return _local(name, engine, thinking)
    model = None if engine == "vllm" else _local(name, engine, thinking)  # first: Unsloth patches what vLLM imports
    from cat_lib.models import vllm

    sampler = vllm.load(name, thinking, beside=model is not None)
    return replace(model, sampler=sampler) if model else sampler


def require_sampler(rollouts: str, engine: str = "transformers") -> bool:
    """Whether `rollouts` is the URL of a server.

    Raises ValueError for what says no sampler, holds a secret, or has other weights than those that `engine` learns on.
    """
    if engine == "unsloth_4bit" and rollouts != "engine":
        learnt = "learns on 4-bit weights, and vLLM would draw from 16-bit ones"
        raise ValueError(f"engine={engine!r} {learnt}: take rollouts='engine', or engine='unsloth'")
    if rollouts in ("engine", "vllm"):
        return False
    if "@" in rollouts or "?" in rollouts:  # not shown: it may hold the key
        raise ValueError("the URL of a server holds no user, password or query: set CAT_LIB_API_KEY to the key")
    with suppress(ValueError):  # a port that is no number, half an address
        if (url := urlsplit(rollouts)).scheme in ("http", "https") and url.hostname and url.port != 0:
            return True
    raise ValueError(
        f"rollouts={rollouts!r}: allowed are engine, vllm, and a vLLM server by its URL, http://HOST:PORT/v1"
    )


def _local(name: str, engine: str, thinking: bool) -> LocalModel:
    if engine == "transformers":
        model, tokenizer = _transformers(name, _path(name))
    else:
        model, tokenizer = _unsloth(name, _path(name), engine == "unsloth_4bit")
    from cat_lib.models import memory
    from cat_lib.models.attention import NAME, unsuited
    from cat_lib.models.local import LocalModel

    loaded = LocalModel(model, engine, tokenizer=tokenizer, name=name, thinking=thinking)
    if wrong := unsuited(model.config, loaded.plainly):
        raise ModelError(
            f"model={name!r} ({model.config.get_text_config().model_type}) has {wrong}, or rollouts that share a "
            "prompt would go wrong; take a Llama, Qwen 2.5 or 3, Mistral or Gemma 3 model"
        )
    if loaded.plainly:
        model.set_attn_implementation(NAME)
    loaded.context  # noqa: B018  # it raises for a model of which nothing says what fits
    return replace(loaded, batch_tokens=max(loaded.batch_tokens, memory.batch_tokens(model)))


_loaded = lru_cache(maxsize=1)(_local)  # one copy of a model's weights, however many roles it gets


def open_model(name: str, role: str, ledger: Ledger, **settings: Any) -> Model:
    """The model `name`, or the one behind `endpoint:MODEL@URL`, in a role, its costs in `ledger`.

    `settings` are those of an endpoint. Raises as `load_model`, and ValueError for an endpoint of another form.
    """
    if name.startswith("endpoint:"):
        from cat_lib.models import endpoint

        return endpoint.parse(name, role=role, ledger=ledger, **settings)
    return replace(_loaded(name, "transformers", False), role=role, ledger=ledger)


def reader(name: str) -> Model:
    """The model `name` without its weights: it encodes, and knows its context. Raises ModelError if there is none."""
    from types import SimpleNamespace

    from transformers import AutoConfig, AutoTokenizer

    from cat_lib.models.local import LocalModel

    path = _path(name)
    with _reaching("tokenizer", name):
        config, tokenizer = AutoConfig.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    return LocalModel(SimpleNamespace(config=config.get_text_config()), tokenizer=tokenizer, name=name)


def _path(name: str) -> str:
    """Where the model lies: a folder, or its hub id. Raises ModelError for what is neither."""
    if name == "embedded":
        from cat_lib.models.embedded import checkpoint

        return str(checkpoint())
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise ModelError(f'model={name!r} is no folder here and no hub id ("owner/name"); {ADVICE}')
    return name


def saved(name: str) -> Path:
    """The folder with the model's files, fetched if `name` is a hub id. Raises ModelError if it can't be had."""
    from huggingface_hub import snapshot_download

    if (folder := Path(path := _path(name))).is_dir():
        return folder
    kinds, other = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"], ["original/*", "consolidated*"]
    with _reaching("weights", name):
        return Path(snapshot_download(path, allow_patterns=kinds, ignore_patterns=other))


def load_tokenizer(name: str, path: str) -> Any:
    """The tokenizer of the model in `path`. Raises ModelError if there is none."""
    from transformers import AutoTokenizer

    with _reaching("tokenizer", name):
        return _ready(name, AutoTokenizer.from_pretrained(path, clean_up_tokenization_spaces=False))


def _ready(name: str, tokenizer: Any) -> Any:
    """The tokenizer, padding on the left. Raises ModelError if it has no chat template."""
    if tokenizer.chat_template is None:
        raise ModelError(f"model={name!r} has no chat template: take its instruction-tuned variant, or {ADVICE}")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def _transformers(name: str, path: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = load_tokenizer(name, path)
    with _reaching("weights", name):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=preferred_dtype())
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def _unsloth(name: str, path: str, four_bit: bool) -> tuple[Any, Any]:
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # of kernels that it would download
    # it fails where there is a folder of that name, no driver, or another torch
    engine = f"engine=unsloth{'_4bit' * four_bit}"
    with as_model_error(f"{engine}: Unsloth can't be used here (", "); `make engines` adds it"):
        if four_bit:
            import_module("bitsandbytes")  # Unsloth goes on without it, in 16 bits
        with _unprobed():
            from unsloth import FastLanguageModel  # must come before transformers, trl and peft
    with _reaching("weights", name):
        bits = {"load_in_4bit": four_bit, "load_in_16bit": not four_bit}
        model, tokenizer = FastLanguageModel.from_pretrained(path, **bits, use_exact_model_name=four_bit)
    if four_bit and not any(hasattr(weight, "quant_state") for weight in model.parameters()):
        raise ModelError(f"{engine}: Unsloth left the weights of {name} in 16 bits; take engine=unsloth")
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):  # weights packed for inference have no gradient
            layer.support_avx512bf16_for_cpu = False
    return model, _ready(name, tokenizer)


@contextmanager
def _unprobed() -> Iterator[None]:
    """Meanwhile there is no `vllm._C` where it is made for another processor: Unsloth, which probes it, would crash."""
    import torch

    known = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
    if other := not known and torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        sys.modules["vllm._C"] = None  # type: ignore[assignment]  # no such module
    try:
        yield
    finally:
        if other:
            del sys.modules["vllm._C"]


def _reaching(part: str, name: str) -> AbstractContextManager[None]:
    missing = " (no model hub reached, no such model, or access not granted)"
    place = f"folder {name}" if Path(name).is_dir() else f"hub id {name}{missing}"
    return as_model_error(f"can't load the {part} of the {place}: ", f"; {ADVICE}")


@contextmanager
def as_model_error(before: str, after: str = "") -> Iterator[None]:
    """One error for what goes wrong inside: files, the hub and engines raise what their parts raise, a dozen types."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise ModelError(f"{before}{type(error).__name__}: {said}{after}") from error


def preferred_dtype() -> Any:
    """bfloat16 where the processor computes in it, else float32: emulated, it is slower than float32."""
    import torch

    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
