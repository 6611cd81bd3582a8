"""One door to the engines: `load_model("embedded")`, a hub id, or a local folder.

Nothing heavy is imported before a model is asked for, so the command line answers at once and Unsloth, where it is
used, is imported before the libraries that it patches.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cat_lib.ledger import Ledger
    from cat_lib.models.local import LocalModel
    from cat_lib.schema import Model

ENGINES = ("transformers", "unsloth")
_ADVICE = 'model="embedded" works offline, and a local folder is given by its path, e.g. model="./my-model"'


class ModelError(RuntimeError):
    """A model that cannot be had or used, and what to do about it."""


def load_model(name: str, engine: str = "transformers", thinking: bool = False) -> LocalModel:
    """The model `name` ("embedded", a hub id such as "Qwen/Qwen3-4B", or a local folder), ready to generate.

    On CPUs with bfloat16 instructions, and on GPUs, weights are bfloat16; else float32. `thinking` lets a model think
    before it answers, where its chat template leaves that open. Raises ModelError if it cannot be reached, has no
    tokenizer or chat template or an attention that is not supported, ValueError for an unknown engine.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r}: allowed are {', '.join(ENGINES)}")
    model, tokenizer = (_unsloth if engine == "unsloth" else _transformers)(name, _path(name))
    if tokenizer.chat_template is None:
        raise ModelError(f"model={name!r} has no chat template: take its instruction-tuned variant, or {_ADVICE}")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    from cat_lib.models.local import LocalModel

    loaded = LocalModel(model, tokenizer, name, engine=engine, thinking=thinking)
    try:
        loaded.context  # noqa: B018  # it raises for a model of which nothing says what fits
    except ValueError as error:
        raise ModelError(f"{error}; {_ADVICE}") from None
    return replace(loaded, batch_tokens=max(loaded.batch_tokens, _batch_tokens(model)))


@lru_cache(maxsize=1)
def _loaded(name: str) -> LocalModel:
    """One copy of a model's weights, however many roles it gets."""
    return load_model(name)


def open_model(name: str, role: str, ledger: Ledger, **settings: Any) -> Model:
    """The model `name`, or the one behind `endpoint:MODEL@URL`, in a role, its costs in `ledger`.

    `settings` are those of an endpoint. Raises as `load_model`, and ValueError for an endpoint of another form.
    """
    if name.startswith("endpoint:"):
        from cat_lib.models import endpoint

        return endpoint.parse(name, role=role, ledger=ledger, **settings)
    return replace(_loaded(name), role=role, ledger=ledger)


def reader(name: str) -> Model:
    """The model `name` without its weights: it encodes, and knows its context. Raises ModelError if there is none."""
    from types import SimpleNamespace

    from transformers import AutoConfig, AutoTokenizer

    from cat_lib.models.local import LocalModel

    try:
        config, tokenizer = (auto.from_pretrained(_path(name)) for auto in (AutoConfig, AutoTokenizer))
    except Exception as error:  # the hub raises a dozen unrelated types
        said = " ".join(str(error).split())[:200]
        raise ModelError(f"model={name!r}: no tokenizer to be had ({type(error).__name__}: {said})") from None
    return LocalModel(SimpleNamespace(config=config.get_text_config()), tokenizer, name)


def _path(name: str) -> str:
    """Where the model lies: a folder, or its hub id. Raises ModelError for what is neither."""
    if name == "embedded":
        from cat_lib.models.embedded import checkpoint

        return str(checkpoint())
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise ModelError(f'model={name!r} is no folder here and no hub id ("owner/name"); {_ADVICE}')
    return name


def _batch_tokens(model: Any) -> int:
    """Positions whose keys and values take 30 % of the GPU memory that the weights leave; 0 without a GPU."""
    import torch

    from cat_lib.models import memory

    if model.device.type != "cuda":
        return 0
    config = model.config.get_text_config()
    _, key = memory.widths(config)
    position = memory.position_bytes(config.num_hidden_layers, key, model.dtype.itemsize)
    return int(0.3 * torch.cuda.mem_get_info()[0] / position)


def _transformers(name: str, path: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    from cat_lib.models.attention import fits_window, register

    disable_progress_bar()
    part = "tokenizer"
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, clean_up_tokenization_spaces=False)
        part = "weights"
        model = AutoModelForCausalLM.from_pretrained(path, dtype=preferred_dtype())
    except Exception as error:  # the hub raises a dozen unrelated types
        here = Path(name).is_dir()
        reached = "" if here else " (no model hub reached, no such model, or access not granted)"
        said = " ".join(str(error).split())[:200]
        raise ModelError(
            f"can't load the {part} of {'the folder' if here else 'the hub id'} {name}{reached}: "
            f"{type(error).__name__}: {said}; {_ADVICE}"
        ) from error
    attention, text = model.config._attn_implementation, model.config.get_text_config()
    try:
        fits_window(text, 1)
        if attention != "sdpa" or getattr(text, "attn_logit_softcapping", None):
            raise ValueError(f"attention of the kind {'capped' if attention == 'sdpa' else attention}: needed is sdpa")
    except ValueError as error:
        raise ModelError(
            f"model={name!r} ({text.model_type}) has {error}, or rollouts that share a prompt would go wrong; take a "
            "Llama, Qwen 2.5 or 3, Mistral or Gemma 3 model"
        ) from None
    model.set_attn_implementation(register())
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def _unsloth(_: str, path: str) -> tuple[Any, Any]:
    from unsloth import FastLanguageModel  # must come before transformers, trl and peft

    model, tokenizer = FastLanguageModel.from_pretrained(path, load_in_4bit=False, load_in_16bit=True)
    return model, tokenizer


def preferred_dtype() -> Any:
    """bfloat16 where the processor computes in it, else float32: emulated, it is slower than float32."""
    import torch

    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
