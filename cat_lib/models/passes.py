"""Passes through a causal model's weights: over prompts that share an opening, over trees, and token by token.

What many texts open with is there once. `model` is the transformers model itself; who calls holds it in inference mode
(`LocalModel.working`).
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from cat_lib.models.attention import fits_window
from cat_lib.schema import Sampling

MAX_ROWS = 256  # bounds the logits of one decoding step to rows x vocabulary
_CHUNK = 256  # tokens
_DRAWN = 8  # rows: what is made of their logits stays in a processor's cache, and malloc gives the same memory again
Tensors = tuple[torch.Tensor, ...]
Drawn = tuple[list[int], list[float], list[tuple[int, int]]]


class _Roomy(DynamicLayer):  # type: ignore[misc]
    """A filled layer of a cache, each row n times, with room for what is decoded: transformers' is copied each step."""

    def __init__(self, filled: DynamicLayer, n: int, room: int) -> None:
        super().__init__()
        self.lazy_initialization(filled.keys, filled.values)
        self.keys, self.values, self.room = filled.keys, filled.values, room + filled.keys.shape[2]
        self.batch_select_indices(torch.arange(len(filled.keys)).repeat_interleave(n).to(self.device))

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Tensors:
        start = self.keys.shape[2]
        for wide, new in zip(self.wide, (key_states, value_states), strict=True):
            wide[:, :, start : start + new.shape[2]] = new
        self.keys, self.values = (wide[:, :, : start + key_states.shape[2]] for wide in self.wide)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        held, self.wide = (self.keys, self.values), list[torch.Tensor]()
        for old in held:
            self.wide.append(old.new_empty(len(indices), old.shape[1], self.room, old.shape[3]))
            torch.index_select(old, 0, indices, out=self.wide[-1][:, :, : old.shape[2]])
        self.keys, self.values = (wide[:, :, : held[0].shape[2]] for wide in self.wide)


class Row:
    """A tree of texts as one row of tokens. Each sees its ancestors and itself, as if its branch stood alone.

    `start` is the position of the first token: how many stand before the row, in a cache that all of it sees.
    """

    def __init__(self, start: int = 0) -> None:
        self.start = start
        self.tokens, self.positions = list[int](), list[int]()
        self._nodes: list[tuple[int, int, int]] = []  # where a node begins and ends, and its parent's last token

    def add(self, tokens: Sequence[int], parent: int = -1) -> list[int]:
        """Append a node behind the token at `parent`, -1 for a root.

        Returns which token predicts each of the node's own, and last the one that predicts what follows them.
        """
        first = len(self.tokens)
        position = self.positions[parent] + 1 if parent >= 0 else self.start
        self.tokens += tokens
        self.positions += range(position, position + len(tokens))
        self._nodes.append((first, len(self.tokens), parent))
        return [parent, *range(first, len(self.tokens))]

    def mask(self) -> torch.Tensor:
        """(L, L), True where the row's token may look: earlier, and on the way from its root to it."""
        seen = torch.zeros(len(self.tokens), len(self.tokens), dtype=torch.bool)
        for first, end, parent in self._nodes:
            if parent >= 0:
                seen[first:end] = seen[parent]
            seen[first:end, first:end] = torch.ones(end - first, end - first, dtype=torch.bool).tril()
        return seen


def common_prefix(ids: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts open with; each keeps at least one of its own, whose logits start the completion."""
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*ids, strict=False))
    return min(sum(1 for _ in same), min(map(len, ids), default=1) - 1)


def batches(lengths: list[int], n: int, new_tokens: int, budget: int) -> Iterator[list[int]]:
    """Indices in batches whose n samples stay under the budget of positions, prompts of like length together."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        rows = (len(batch) + 1) * n
        if batch and (rows * (lengths[i] + new_tokens) > budget or rows > MAX_ROWS):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def opening(model: Any, rows: Sequence[Sequence[int]], longest: int) -> DynamicCache:
    """Keys and values of what all rows open with, computed once; empty where that is nothing.

    Nothing is shared where `longest` positions pass a sliding window: it counts the padding between opening and rest.
    """
    same = rows[0][: common_prefix(rows)] if rows and fits_window(model.config, longest) else ()
    return prefill(model, [same], DynamicCache())[1] if same else DynamicCache()


def prefill(
    model: Any, rows: Sequence[Sequence[int]], shared: DynamicCache, keep: int = 1
) -> tuple[torch.Tensor, DynamicCache, torch.Tensor]:
    """Each row's own tokens, left-padded, behind the shared ones.

    Returns the logits of the last `keep` positions, the cache, and the mask (rows, shared + own tokens) over it.
    """
    width, prefix = max(map(len, rows)), shared.get_seq_length()
    ids = torch.tensor([[*[0] * (width - len(row)), *row] for row in rows])
    mask = torch.tensor([[1] * prefix + [0] * (width - len(row)) + [1] * len(row) for row in rows])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, prefix:]
    cache = _behind(shared, len(rows), DynamicCache(config=model.config))
    # an index copies the rows; a slice of a frozen model's states makes matmul copy the vocabulary per row
    return _forward(model, cache, ids, mask, positions, torch.arange(width - keep, width)), cache, mask


def decode(
    model: Any,
    filled: tuple[torch.Tensor, DynamicCache, torch.Tensor],
    uniform: torch.Tensor,
    sampling: Sampling,
    stop_ids: frozenset[int],
    after: Callable[[list[int]], list[int] | None],
) -> tuple[list[Drawn], int]:
    """Draw n sequences from each of the rows that `prefill` gave; `uniform` (rows, n, tokens) says which.

    `after` is told the ids of one that came to a stop, and gives those that are put behind them before it goes on, less
    than there is room for; None: it has ended.
    Returns (token ids, sums over the drawn ones of what `draw` tells of a token, spans that were put in) of each, and
    how many tokens were computed.
    """
    logits, cache, mask = filled
    n, uniform = uniform.shape[1], uniform.flatten(0, 1)
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[i] = _Roomy(layer, n, sampling.max_new_tokens)
        else:
            layer.batch_repeat_interleave(n)
    logits, mask = logits[:, -1].repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
    stops = torch.tensor(sorted(stop_ids))
    rows: list[Drawn] = [([], [0.0] * 3, []) for _ in range(len(uniform))]
    put = [list[int]() for _ in rows]  # what is still to be put in
    active, computed = torch.arange(len(uniform)), 0
    for step in range(sampling.max_new_tokens):
        tokens, *numbers = draw(logits, sampling, uniform[active, step])
        running = ~torch.isin(tokens, stops)
        for i, (row, token, *new) in enumerate(zip(*(t.tolist() for t in (active, tokens, *numbers)), strict=True)):
            ids, sums, spans = rows[row]
            if put[row]:
                tokens[i], running[i] = put[row][0], True
                ids.append(put[row].pop(0))
                continue
            ids.append(token)
            sums[:] = map(operator.add, sums, new)
            if not running[i] and (more := after(ids)) is not None:
                put[row], running[i] = more, True
                spans += [(len(ids), len(ids) + len(more))] if more else []
        if step + 1 == sampling.max_new_tokens or not running.any():
            break
        if not running.all():  # ended rows leave the batch, so nobody waits for the longest
            kept = running.nonzero()[:, 0]
            cache.batch_select_indices(kept.to(model.device))
            active, tokens, mask = active[kept], tokens[kept], mask[kept]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = mask.sum(-1, keepdim=True) - 1
        logits = _forward(model, cache, tokens[:, None], mask, positions, torch.tensor([0]))[:, -1]
        computed += len(tokens)
    return rows, computed


def draw(logits: torch.Tensor, sampling: Sampling, uniform: torch.Tensor) -> Tensors:
    """Tokens (R,) from logits (R, V) and a uniform number each: what is drawn depends on nothing else.

    With them their log-probabilities, the entropies and the self-certainties (logsumexp minus the mean logit), of the
    distribution at the sampling temperature (greedy: 1).
    """
    rows = _DRAWN if logits.device.type == "cpu" else len(logits)
    parts = zip(torch.split(logits, rows), torch.split(uniform, rows), strict=True)
    drawn = zip(*(_draw(own.float(), sampling, numbers) for own, numbers in parts), strict=True)
    return tuple(map(torch.cat, drawn))


def _draw(logits: torch.Tensor, sampling: Sampling, uniform: torch.Tensor) -> Tensors:
    scaled = logits if sampling.temperature in (0, 1) else logits / sampling.temperature
    scaled = scaled - scaled.amax(-1, keepdim=True)  # so that the sums below keep their digits
    whole = probs = scaled.softmax(-1)
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        order = None
        if sampling.top_k or sampling.top_p < 1:
            k = min(sampling.top_k or logits.shape[-1], logits.shape[-1])
            likeliest, order = scaled.topk(k, dim=-1)
            probs = likeliest.softmax(-1)
        if sampling.top_p < 1:  # the first token is always kept: nothing stands before it
            probs = probs.masked_fill(probs.cumsum(-1) - probs >= sampling.top_p, 0.0)
        cumulative = probs.cumsum(-1)
        target = uniform.to(logits.device)[:, None] * cumulative[:, -1:]
        index = torch.searchsorted(cumulative, target, right=True).clamp(max=probs.shape[-1] - 1)
        tokens = (index if order is None else order.gather(-1, index))[:, 0]
    sums = -whole.amax(-1).log()  # of exponentials: the likeliest stands at 0
    logp, entropy = scaled.gather(-1, tokens[:, None])[:, 0] - sums, sums - torch.linalg.vecdot(whole, scaled)
    return tokens.cpu(), logp.cpu(), entropy.cpu(), (sums - scaled.mean(-1)).cpu()


def trees(
    model: Any, rows: Sequence[tuple[list[int], list[list[int]]]], shared: DynamicCache, words: list[int]
) -> list[list[list[float]]]:
    """Numbers for (head, tails) rows behind the shared tokens, in one pass, each row a tree of one level.

    For each row and tail: the log-probabilities of `words` right after it, or without words one number, the mean
    log-probability of the tail's own tokens. So a response of 500 tokens and its ten criteria cost about one pass
    over it. The mask knows no sliding window.
    """
    prefix, asked = shared.get_seq_length(), slice(-1, None) if words else slice(-1)
    laid, sources = list[Row](), list[list[list[int]]]()  # of each row and tail: what predicts the numbers wanted
    for head, tails in rows:
        laid.append(row := Row(prefix))
        end = row.add(head)[-1]
        sources.append([row.add(tail, end)[asked] for tail in tails])
    ids, positions = (
        pad_sequence([torch.tensor(own) for own in part], batch_first=True)
        for part in ([row.tokens for row in laid], [row.positions for row in laid])
    )
    width = ids.shape[1]
    mask = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)  # padding sees itself: no row may be empty
    for own, row in zip(mask, laid, strict=True):
        own[: len(row.tokens), : len(row.tokens)] = row.mask()
    mask = torch.cat([mask.new_ones(len(rows), width, prefix), mask], dim=2)[:, None]
    # without a config no layer of the cache forgets: all of a row's tokens stay, and the mask decides
    cache, parts = _behind(shared, len(rows), DynamicCache()), []
    wanted = sorted({p for own in sources for source in own for p in source})
    for start in range(0, width, _CHUNK):  # in chunks, attention skips the keys that come later
        here, stop = slice(start, start + _CHUNK), min(start + _CHUNK, width)
        keep = [at - start for at in wanted if start <= at < stop]
        seen = mask[:, :, here, : prefix + stop]
        logits = _forward(model, cache, ids[:, here], seen, positions[:, here], torch.tensor(keep or [0]))
        parts += [logits] if keep else []
    logits, place = torch.cat(parts, dim=1), {at: i for i, at in enumerate(wanted)}

    def numbers(row: int, source: list[int], tail: list[int]) -> list[float]:
        logp = logits[row, [place[p] for p in source]].float().log_softmax(-1)  # (positions, V)
        own = torch.tensor(tail, device=logp.device)[:, None]
        return logp[0, words].tolist() if words else [float(logp.gather(-1, own).mean())]

    return [
        [numbers(r, source, tail) for source, tail in zip(sources[r], tails, strict=True)]
        for r, (_, tails) in enumerate(rows)
    ]


def _behind(shared: DynamicCache, rows: int, cache: DynamicCache) -> DynamicCache:
    """The cache of `rows` rows that begin with a copy of what is shared."""
    for layer, source in enumerate(shared.layers):
        cache.update(*(t.expand(rows, -1, -1, -1) for t in (source.keys, source.values)), layer)
    return cache


def _forward(model: Any, cache: DynamicCache, *inputs: torch.Tensor) -> torch.Tensor:
    """Logits of one pass, which extends the cache.

    `inputs` are ids (B, S), the mask over cache and input, positions (B, S), and which of the S tokens get logits.
    """
    ids, mask, positions, keep = (part.to(model.device) for part in inputs)
    options = {"past_key_values": cache, "use_cache": True}  # a trained model's config has it off
    out = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=keep, **options)
    logits: torch.Tensor = out.logits
    return logits
