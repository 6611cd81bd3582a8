"""A policy: a model and a fresh LoRA adapter on it (Hu et al., 2021, arXiv 2106.09685)."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING

import torch

from cat_lib.models import ModelError
from cat_lib.schema import Model

if TYPE_CHECKING:
    from cat_lib.models.local import LocalModel


def add_lora(model: Model, rank: int, seed: int, name: str = "policy") -> LocalModel:
    """The policy `name`: the model with a fresh LoRA adapter on the linear layers that text passes (alpha = 2 x rank).

    Its modules are its own and its weights are those of `model` in memory, which stays as it is. So policies of
    several names share one set of weights with their anchor, and each trains as if it were alone; `adapter(name)`
    gives the last one of a name. Raises ModelError for a model that is not in this process, and ValueError for the
    modules from inside a policy.
    """
    from peft import LoraConfig, get_peft_model

    from cat_lib.models.local import LocalModel

    if not isinstance(model, LocalModel):
        raise ModelError(f"model={model.name!r} can't be trained from here: take a local model (engine transformers)")
    if any("lora_" in part for part, _ in model.plain.named_parameters()):
        raise ValueError("this model has a policy's adapter inside: pass add_lora the policy, or its anchor()")
    weights = {id(tensor): tensor for tensor in (*model.plain.parameters(), *model.plain.buffers())}
    own = copy.deepcopy(model.plain, weights)
    torch.manual_seed(seed)
    decoder = next(path for path, module in own.named_modules() if module is own.get_decoder())
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", bias="none", task_type="CAUSAL_LM",
        exclude_modules=rf"(?!{re.escape(decoder)}\.).*",  # a tower for images would never see a gradient
    )  # fmt: skip
    model.policies[name] = get_peft_model(own, config)
    return model.adapter(name)
