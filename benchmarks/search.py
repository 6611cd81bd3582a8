"""One query over 100,000 generated passages: SQLite's FTS5, as `cat_lib.tasks.search` has it, and bm25s.

    python benchmarks/search.py [REPEATS]      # needs `pip install bm25s`, which nothing else does

Both sides find the 4 best of each of 200 queries of 6 words, of a vocabulary whose words are as unevenly frequent as
words are (Zipf); the passages have 40 words.
"""

from __future__ import annotations

import random
import sys
import time

import bm25s

from cat_lib.tasks.search import Corpus, Passage
from common import compare

PASSAGES, WORDS, QUERIES, FOUND = 100_000, 40, 200, 4
VOCABULARY = [f"word{i}" for i in range(30_000)]
WEIGHTS = [1 / (i + 20) for i in range(30_000)]
repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5


def main() -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(VOCABULARY, WEIGHTS, k=WORDS)) for _ in range(PASSAGES)]
    start = time.perf_counter()
    corpus = Corpus([Passage(str(i), text) for i, text in enumerate(texts)])
    print(f"FTS5: built in {time.perf_counter() - start:.1f} s")
    start, quick = time.perf_counter(), bm25s.BM25()
    quick.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
    print(f"bm25s: built in {time.perf_counter() - start:.1f} s")

    def queries(round_: int) -> list[str]:
        drawn = random.Random(round_)
        return [" ".join(drawn.choices(VOCABULARY, WEIGHTS, k=6)) for _ in range(QUERIES)]

    def theirs(round_: int) -> None:
        for query in queries(round_):
            quick.retrieve(bm25s.tokenize([query], show_progress=False), k=FOUND, show_progress=False)

    def ours(round_: int) -> None:
        for query in queries(round_):
            corpus(query, FOUND)

    for name, side in (("FTS5", ours), ("bm25s", theirs)):
        start = time.perf_counter()
        side(100)
        print(f"{name}: {1000 * (time.perf_counter() - start) / QUERIES:.1f} ms a query")
    compare(theirs, ours, repeats, "bm25s over SQLite FTS5, seconds for 200 queries of 6 words over 100,000 passages")


if __name__ == "__main__":
    main()
