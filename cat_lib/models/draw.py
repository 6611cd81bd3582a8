"""One token a row, from logits and a uniform number: what is drawn depends on nothing else."""

from __future__ import annotations

import torch

from cat_lib.schema import Sampling


def draw(
    logits: torch.Tensor, sampling: Sampling, uniform: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens (R,), their log-probabilities and the entropies of the unscaled distribution, from logits (R, V)."""
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        scaled, order = logits / sampling.temperature, None
        if sampling.top_k or sampling.top_p < 1:
            k = min(sampling.top_k or logits.shape[-1], logits.shape[-1])
            scaled, order = scaled.topk(k, dim=-1)
        probs = scaled.softmax(-1)
        if sampling.top_p < 1:  # the first token is always kept: nothing stands before it
            probs = probs.masked_fill(probs.cumsum(-1) - probs >= sampling.top_p, 0.0)
        cumulative = probs.cumsum(-1)
        target = uniform.to(logits.device)[:, None] * cumulative[:, -1:]
        index = torch.searchsorted(cumulative, target, right=True).clamp(max=probs.shape[-1] - 1)
        tokens = (index if order is None else order.gather(-1, index))[:, 0]
    return tokens.cpu(), logp.gather(-1, tokens[:, None])[:, 0].cpu(), entropy.cpu()
