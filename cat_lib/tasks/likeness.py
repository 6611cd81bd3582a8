"""How alike two texts are by their character n-grams: near-duplicates among questions, and clusters of them.

R-Zero clusters by BLEU of words, average linkage, cut at a distance of 0.5. n-grams take BLEU's place here, less how
all questions of a set begin and end: questions of one line hardly have four words in common, but for these.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, zip_longest

from scipy.cluster.hierarchy import fcluster, linkage

_N = 4  # characters
ALIKE = 0.8  # from here on a text is taken for another wording of the other


@lru_cache(maxsize=20_000)
def grams(text: str) -> frozenset[str]:
    """The n-grams of a text in small letters with single spaces, and one at either end."""
    line = f" {' '.join(text.casefold().split())} "
    return frozenset(line[i : i + _N] for i in range(max(1, len(line) - _N + 1)))


def likeness(a: str, b: str) -> float:
    """n-grams of both texts over those of either (Jaccard), 0 to 1."""
    return len(grams(a) & grams(b)) / len(grams(a) | grams(b))


def clusters(texts: Sequence[str], distance: float = 0.5) -> list[int]:
    """The cluster of each text, by 1 less the likeness. Time grows with their square: a second for a thousand."""
    different = list(dict.fromkeys(texts))
    if len(different) < 2:
        return [1] * len(texts)
    either = different, [text[::-1] for text in different]
    first, last = (next(i for i, c in enumerate(zip_longest(*own)) if len(set(c)) > 1) for own in either)
    own = [text[first : max(first, len(text) - last)] for text in different]
    apart = [1 - likeness(a, b) for a, b in combinations(own, 2)]
    found = dict(zip(different, fcluster(linkage(apart, "average"), distance, "distance"), strict=True))
    return [int(found[text]) for text in texts]
