"""How alike two texts are, by the character n-grams that they share: near-duplicates among questions, and clusters.

R-Zero clusters by BLEU of words, average linkage, at a distance of 0.5. Here an n-gram's share takes BLEU's place,
since questions of one line hardly have four words in common; what most texts of a set share says nothing of any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations

from scipy.cluster.hierarchy import fcluster, linkage

_N = 4  # characters
ALIKE = 0.8  # from which likeness on one text is taken for a wording of the other


@lru_cache(maxsize=20_000)
def grams(text: str) -> frozenset[str]:
    """The n-grams of a text in small letters, with single spaces, and one at either end."""
    line = f" {' '.join(text.casefold().split())} "
    return frozenset(line[i : i + _N] for i in range(max(1, len(line) - _N + 1)))


def likeness(a: frozenset[str], b: frozenset[str]) -> float:
    """n-grams of both over those of either (Jaccard); of two texts without any, 1."""
    return len(a & b) / len(a | b) if a | b else 1.0


def clusters(texts: Sequence[str], distance: float = 0.5) -> list[int]:
    """The cluster of each text: average linkage, cut at a distance, which is 1 less the likeness.

    n-grams that more than half of three different texts and more hold are left out. Time grows with the square of
    their number: a second for a thousand.
    """
    different = list(dict.fromkeys(texts))
    own = [grams(text) for text in different]
    held = Counter(g for of_one in own for g in of_one)
    frame = {g for g, n in held.items() if n > len(own) / 2} if len(own) > 2 else set()
    own = [of_one - frame for of_one in own]
    if len(different) < 2:
        return [1] * len(texts)
    apart = [1 - likeness(a, b) for a, b in combinations(own, 2)]
    found = dict(zip(different, fcluster(linkage(apart, "average"), distance, "distance"), strict=True))
    return [int(found[text]) for text in texts]
