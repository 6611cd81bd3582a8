"""Many short continuations of one long text, scored in one forward pass: what a judge with a rubric asks for.

A row is a tree with one level, `[head] [branch 1] ... [branch k]`: a branch's tokens see the head and themselves, at
the positions they would have if they stood alone behind the head. What all heads open with (worked examples) is
computed once for the whole call. So a response of 500 tokens and its ten criteria cost about one pass over it.

A row's mask knows no sliding window. So where a branch ends beyond it, each branch is a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from cat_lib.ledger import clock
from cat_lib.models.attention import fits_window
from cat_lib.models.local import batches, common_prefix

if TYPE_CHECKING:
    from cat_lib.models.local import LocalModel

_CHUNK = 256  # tokens


@torch.inference_mode()
def score_branches(
    model: LocalModel, heads: Sequence[Sequence[int]], branches: Sequence[Sequence[str]], words: Sequence[str] = ()
) -> list[list[list[float]]]:
    """Log-probabilities in nats of what follows `heads[i]` (token ids) and `branches[i][j]` (text).

    With `words`, [i][j] holds the log-probability of each word, read by its first token, right after the branch.
    Without, [i][j] holds one number: the mean log-probability of the branch's own tokens after the head.
    Raises ValueError if two words open with the same token, a head or branch is empty, or a row does not fit.
    """
    start = clock()
    first = [model.tokenizer(w, add_special_tokens=False).input_ids[0] for w in words]
    if len(set(first)) < len(words):
        raise ValueError(f"the words {', '.join(map(repr, words))} open with the same token; take others")
    ids = [list(h) for h in heads]
    tails = [[list(model.tokenizer(b, add_special_tokens=False).input_ids) for b in row] for row in branches]
    if not all(ids) or not all(t for row in tails for t in row):
        raise ValueError("a head or a branch is empty; there is nothing to score")
    longest = max((len(h) + max(map(len, t)) for h, t in zip(ids, tails, strict=True)), default=0)
    if longest > model.context:
        raise ValueError(f"head and branch take {longest} tokens; the context has {model.context}")
    billed = sum(len(h) + len(b) for h, t in zip(ids, tails, strict=True) for b in t)
    if not fits_window(model.model.config, longest):
        rows = [(h, t) for h, own in zip(ids, tails, strict=True) for t in own]
        asked = [([*h, *t], [w]) for h, t in rows for w in first] if words else rows
        logps, computed = model.following(*zip(*asked, strict=True))
        found = iter(logps)
        model.book(billed, sum(map(len, tails)), computed, start, calls=len(rows))
        return [[[next(found)[0] for _ in first] if words else [fmean(next(found))] for _ in own] for own in tails]
    results: list[list[list[float]]] = [[] for _ in ids]
    prefix = common_prefix(ids) if ids else 0
    lengths = [len(h) - prefix + sum(map(len, t)) for h, t in zip(ids, tails, strict=True)]
    training = model.model.training
    with model.weights():
        model.model.eval()  # the judge may share its weights with a policy in training
        shared = model.forward(torch.tensor([ids[0][:prefix]]), None, None)[1] if prefix else None
        # small batches: over rows this long, padding costs more than batching gains
        for batch in batches(lengths, 1, 0, model.batch_tokens // 16):
            rows = [(ids[i][prefix:], tails[i]) for i in batch]
            for i, scores in zip(batch, _score(model, rows, shared, prefix, first), strict=True):
                results[i] = scores
    model.model.train(training)
    model.book(billed, sum(map(len, tails)), prefix + sum(lengths), start, calls=sum(map(len, tails)))
    return results


def _score(
    model: LocalModel,
    rows: Sequence[tuple[list[int], list[list[int]]]],
    shared: DynamicCache | None,
    prefix: int,
    words: list[int],
) -> list[list[list[float]]]:
    """One pass over a batch of trees; for each row and branch the numbers that `score_branches` returns."""
    width = max(len(head) + sum(map(len, tails)) for head, tails in rows)
    ids, positions = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)  # padding sees itself: no row may be empty
    spans: list[list[tuple[int, list[int]]]] = []  # of each branch: where it starts, and its tokens
    for r, (head, tails) in enumerate(rows):
        ids[r, : len(head)] = torch.tensor(head)
        positions[r, : len(head)] = torch.arange(prefix, prefix + len(head))
        mask[r, : len(head), : len(head)] = torch.ones(len(head), len(head), dtype=torch.bool).tril()
        at, own = len(head), list[tuple[int, list[int]]]()
        for tail in tails:
            stop = at + len(tail)
            ids[r, at:stop] = torch.tensor(tail)
            positions[r, at:stop] = torch.arange(prefix + len(head), prefix + len(head) + len(tail))
            mask[r, at:stop, : len(head)] = True
            mask[r, at:stop, at:stop] = torch.ones(len(tail), len(tail), dtype=torch.bool).tril()
            own.append((at, tail))
            at = stop
        spans.append(own)
    mask = torch.cat([torch.ones(len(rows), width, prefix, dtype=torch.bool), mask], dim=2)
    cache = DynamicCache()  # without a config no layer forgets: all of a row's tokens stay, and the mask decides
    if shared is not None:
        for layer, source in enumerate(shared.layers):
            cache.update(*(t.expand(len(rows), -1, -1, -1) for t in (source.keys, source.values)), layer)
    # a branch's first token is predicted at the head's last position, each further one at the token before it
    sources = [
        [[at + len(t) - 1] if words else [len(head) - 1, *range(at, at + len(t) - 1)] for at, t in own]
        for (head, _), own in zip(rows, spans, strict=True)
    ]
    wanted = sorted({p for row in sources for source in row for p in source})
    device, parts = model.model.device, []
    for start in range(0, width, _CHUNK):  # in chunks, attention skips the keys that come later
        stop = min(start + _CHUNK, width)
        here = [at - start for at in wanted if start <= at < stop]
        out = model.model(
            input_ids=ids[:, start:stop].to(device),
            attention_mask=mask[:, None, start:stop, : prefix + stop].to(device),
            position_ids=positions[:, start:stop].to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=torch.tensor(here or [0], device=device),
        )
        parts += [out.logits] if here else []
    logits = torch.cat(parts, dim=1)
    place = {at: i for i, at in enumerate(wanted)}
    results: list[list[list[float]]] = []
    for r, (row, own) in enumerate(zip(sources, spans, strict=True)):
        scores = []
        for source, (_, tail) in zip(row, own, strict=True):
            logp = logits[r, [place[p] for p in source]].float().log_softmax(-1)  # (positions, V)
            target = torch.tensor(tail, device=device)[:, None]
            scores.append(logp[0, words].tolist() if words else [float(logp.gather(-1, target).mean())])
        results.append(scores)
    return results
