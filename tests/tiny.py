"""A policy of two layers with random weights: real training in seconds."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from cat_lib.learning.grpo import add_lora
from cat_lib.models.attention import NAME
from cat_lib.models.embedded import checkpoint
from cat_lib.models.local import LocalModel


@cache
def _tokenizer() -> Any:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint())
    tokenizer.padding_side = "left"
    return tokenizer


def tiny_policy() -> LocalModel:
    """A random Llama with the embedded model's tokenizer and a fresh adapter, the same each time."""
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, attn_implementation=NAME,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return add_lora(LocalModel(model, tokenizer=tokenizer, name="tiny"), 4, 0)
