"""Attention for decoding with grouped keys: transformers' `sdpa`, less the copies.

Where several query heads share a key head, `sdpa` with a mask first repeats keys and values for each of them. At one
new token a row the repeated cache is all there is to read, so decoding spends most of its time on that. Here the
query heads of a group become the rows of one small product with their own keys; the numbers are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_grouped_decode"  # what to give as `attn_implementation`


def _forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """query (B, heads, S, D), key and value (B, groups, T, D), mask (B, 1, S, T); returns (B, S, heads, D)."""
    batch, heads, length, width = query.shape
    if length > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0], None
    grouped = query.view(batch, key.shape[1], heads // key.shape[1], width)
    dropout, scale = options.get("dropout", 0.0), options.get("scaling")
    output = torch.nn.functional.scaled_dot_product_attention(grouped, key, value, attention_mask, dropout, scale=scale)
    return output.reshape(batch, 1, heads, value.shape[-1]), None


AttentionInterface.register(NAME, _forward)
AttentionMaskInterface.register(NAME, sdpa_mask)


def fits_window(config: Any, length: int) -> bool:
    """Whether every layer of a model with this config lets the last of `length` positions see the first."""
    return "sliding_attention" not in _kinds(config) or length <= int(config.get_text_config().sliding_window)


def unsuited(config: Any, sdpa: bool) -> str:
    """What keeps rollouts from sharing their prompt's keys and values, "" if nothing; `sdpa`: the attention has to."""
    if other := sorted(_kinds(config) - {"full_attention", "sliding_attention"}):
        return f"layers of the kind {', '.join(other)}: allowed are full and sliding-window attention"
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    kind = "capped" if capped else config._attn_implementation
    return f"attention of the kind {kind}: needed is sdpa" if sdpa and kind != "sdpa" else ""


def _kinds(config: Any) -> set[str]:
    text = config.get_text_config()
    mixed = getattr(text, "layers_block_type", None) or ()  # how recurrent models name their layers
    return set(get_layer_types_and_kwargs(text)[0]) | (set(mixed) - {"attention"})
