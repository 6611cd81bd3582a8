"""Token rows laid out for one pass: what many texts open with is there once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

MAX_ROWS = 256  # bounds the logits of one decoding step to rows x vocabulary


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
