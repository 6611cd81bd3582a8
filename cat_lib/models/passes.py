"""Passes through a causal model's weights: over prompts that share an opening, over trees, and token by token.

`model` is the transformers model itself; who calls holds it in inference mode (`LocalModel.working`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from cat_lib.models.tree import Row
from cat_lib.schema import Sampling

_CHUNK = 256  # tokens
Draw = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def opening(model: Any, tokens: Sequence[int]) -> DynamicCache | None:
    """Keys and values of what all rows of a call open with; None where that is nothing."""
    return _forward(model, torch.tensor([tokens]), None, None)[1] if tokens else None


def prefill(
    model: Any, rows: Sequence[Sequence[int]], shared: DynamicCache | None, prefix: int, keep: int = 1
) -> tuple[torch.Tensor, DynamicCache, torch.Tensor]:
    """Each row's own tokens, left-padded, behind the `prefix` shared ones.

    Returns the logits of the last `keep` positions, the cache, and the mask (rows, prefix + tokens) over it.
    """
    width = max(map(len, rows))
    ids = torch.tensor([[*[0] * (width - len(row)), *row] for row in rows])
    mask = torch.tensor([[1] * prefix + [0] * (width - len(row)) + [1] * len(row) for row in rows])
    cache = _behind(shared, len(rows), DynamicCache(config=model.config))
    return *_forward(model, ids, mask, cache, keep), mask


def decode(
    model: Any,
    filled: tuple[torch.Tensor, DynamicCache, torch.Tensor],
    uniform: torch.Tensor,
    sampling: Sampling,
    stop_ids: frozenset[int],
) -> tuple[list[tuple[list[int], float, float]], int]:
    """Draw n sequences from each of the rows that `prefill` gave; `uniform` (rows, n, tokens) says which.

    Returns (token ids, sum of log-probabilities, sum of entropies) of each, and how many tokens were computed.
    """
    logits, cache, mask = filled
    n, uniform = uniform.shape[1], uniform.flatten(0, 1)
    cache.batch_repeat_interleave(n)
    logits, mask = logits[:, -1].repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
    stops = torch.tensor(sorted(stop_ids))
    rows: list[tuple[list[int], float, float]] = [([], 0.0, 0.0) for _ in range(len(uniform))]
    active, computed = torch.arange(len(uniform)), 0
    for step in range(sampling.max_new_tokens):
        tokens, *numbers = draw(logits.float(), sampling, uniform[active, step])
        for row, token, *new in zip(*(t.tolist() for t in (active, tokens, *numbers)), strict=True):
            ids, logp, entropy = rows[row]
            ids.append(token)
            rows[row] = ids, logp + new[0], entropy + new[1]
        running = ~torch.isin(tokens, stops)
        if step + 1 == sampling.max_new_tokens or not running.any():
            break
        if not running.all():  # ended rows leave the batch, so nobody waits for the longest
            kept = running.nonzero()[:, 0]
            cache.batch_select_indices(kept.to(model.device))
            active, tokens, mask = active[kept], tokens[kept], mask[kept]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits, cache = _forward(model, tokens[:, None], mask, cache)
        logits, computed = logits[:, -1], computed + len(tokens)
    return rows, computed


def draw(logits: torch.Tensor, sampling: Sampling, uniform: torch.Tensor) -> Draw:
    """Tokens (R,) from logits (R, V) and a uniform number each: what is drawn depends on nothing else.

    With them their log-probabilities and the entropies, of the distribution at the sampling temperature (greedy: 1).
    """
    scaled = logits / (sampling.temperature or 1.0)
    logp = scaled.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        order = None
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


def trees(
    model: Any,
    rows: Sequence[tuple[list[int], list[list[int]]]],
    shared: DynamicCache | None,
    prefix: int,
    words: list[int],
) -> list[list[list[float]]]:
    """Numbers for (head, tails) rows behind the `prefix` shared tokens, in one pass, each row a tree of one level.

    For each row and tail: the log-probabilities of `words` right after it, or without words one number, the mean
    log-probability of the tail's own tokens. So a response of 500 tokens and its ten criteria cost about one pass
    over it. The mask knows no sliding window.
    """
    laid, sources = list[Row](), list[list[list[int]]]()  # of each row and tail: what predicts the numbers wanted
    for head, tails in rows:
        row, own = Row(prefix), list[list[int]]()
        row.add(head)
        for tail in tails:
            predictors = row.add(tail, len(head) - 1)
            own.append([len(row.tokens) - 1] if words else predictors)
        laid.append(row)
        sources.append(own)
    width = max(len(row.tokens) for row in laid)
    ids = torch.tensor([row.tokens + [0] * (width - len(row.tokens)) for row in laid])
    positions = torch.tensor([row.positions + [0] * (width - len(row.tokens)) for row in laid])
    mask = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)  # padding sees itself: no row may be empty
    for r, row in enumerate(laid):
        mask[r, : len(row.tokens), : len(row.tokens)] = row.mask()
    mask = torch.cat([torch.ones(len(rows), width, prefix, dtype=torch.bool), mask], dim=2)
    # without a config no layer of the cache forgets: all of a row's tokens stay, and the mask decides
    cache, device, parts = _behind(shared, len(rows), DynamicCache()), model.device, []
    wanted = sorted({p for own in sources for source in own for p in source})
    for start in range(0, width, _CHUNK):  # in chunks, attention skips the keys that come later
        stop = min(start + _CHUNK, width)
        here = [at - start for at in wanted if start <= at < stop]
        out = model(
            input_ids=ids[:, start:stop].to(device),
            attention_mask=mask[:, None, start:stop, : prefix + stop].to(device),
            position_ids=positions[:, start:stop].to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=torch.tensor(here or [0], device=device),
        )
        parts += [out.logits] if here else []
    logits, place = torch.cat(parts, dim=1), {at: i for i, at in enumerate(wanted)}
    results: list[list[list[float]]] = []
    for r, (_, tails) in enumerate(rows):
        scores = []
        for source, tail in zip(sources[r], tails, strict=True):
            logp = logits[r, [place[p] for p in source]].float().log_softmax(-1)  # (positions, V)
            target = torch.tensor(tail, device=device)[:, None]
            scores.append(logp[0, words].tolist() if words else [float(logp.gather(-1, target).mean())])
        results.append(scores)
    return results


def _behind(shared: DynamicCache | None, rows: int, cache: DynamicCache) -> DynamicCache:
    """The cache of `rows` rows that begin with a copy of what is shared."""
    for layer, source in enumerate(shared.layers if shared else ()):
        cache.update(*(t.expand(rows, -1, -1, -1) for t in (source.keys, source.values)), layer)
    return cache


def _forward(
    model: Any, ids: torch.Tensor, mask: torch.Tensor | None, cache: DynamicCache | None, keep: int = 1
) -> tuple[torch.Tensor, DynamicCache]:
    """One pass. ids (B, S), mask (B, P + S) over cache and input; logits of the last `keep` positions."""
    cache = DynamicCache(config=model.config) if cache is None else cache
    positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    out = model(
        input_ids=ids.to(model.device),
        attention_mask=None if mask is None else mask.to(model.device),
        position_ids=None if positions is None else positions.to(model.device),
        past_key_values=cache,
        use_cache=True,  # a trained model's config has it off, and decoding would recompute everything
        # an index copies the rows; a slice of a frozen model's states makes matmul copy the vocabulary per row
        logits_to_keep=torch.arange(ids.shape[1] - keep, ids.shape[1], device=model.device),
    )
    return out.logits, cache
