"""Search over passages: BM25 in SQLite's FTS5 over a local corpus, or an HTTP endpoint, as one function.

A `Search` takes a query and gives passages, best first, each a bounded snippet with its id. A query is data: its words
are quoted, so that operators, quotes and column names of FTS5 ask for nothing. Over 100,000 passages a query takes
about 12 ms; bm25s, a library more, takes a fifth of that and twice as long to build (benchmarks/search.py).
"""

from __future__ import annotations

import json
import re
import sqlite3
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote

from cat_lib.prompts import one_line
from cat_lib.shown import masked
from cat_lib.tasks.rows import DataError, Given, file_rows, local_file, usable

PASSAGES = Path(__file__).with_name("passages.jsonl")
SNIPPET, LONGEST = 600, 400  # most characters of a passage that are shown, and of a query that are read
_WORD, _MOST_WORDS = re.compile(r"\w+"), 32
# words of a question that say nothing of what it is about
_EMPTY = frozenset(
    _WORD.findall(
        "a about after am an and any are as at be been but by can do does for from get give had has have he her him "
        "his how i if in is it its just me my no not of on or our out she should so than that the their them then "
        "there they this to up was we what when which who why will with would you your"
    )
)
_ANSWER = 1_000_000  # bytes of an endpoint's answer that are read


class SearchError(RuntimeError):
    """A search that could not be made, and what to do about it."""


@dataclass(frozen=True)
class Passage:
    """What search found: its id, by which it is cited, and its text, cut to a snippet."""

    id: str
    text: str


Search = Callable[[str, int], list[Passage]]  # a query, and how many at most; best first, perhaps none


class Corpus:
    """A local `Search`, all of it in memory. Raises DataError for no passages, or two of one id."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        if not passages:
            raise DataError("a corpus without passages: give a file with an id and a text in each row")
        ids, texts = [_citable(p.id) for p in passages], [one_line(p.text) for p in passages]
        if len({*ids}) < len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            raise DataError(f"passage id {twice!r} stands twice; each passage needs its own")
        self.base = sqlite3.connect(":memory:", check_same_thread=False)
        self.base.execute("CREATE VIRTUAL TABLE passages USING fts5(text, id UNINDEXED, tokenize='porter unicode61')")
        self.base.executemany("INSERT INTO passages VALUES (?, ?)", zip(texts, ids, strict=True))

    def __call__(self, query: str, n: int) -> list[Passage]:
        """Passages with any of the query's words, by BM25; words that say nothing are left out if it has others."""
        words = list(dict.fromkeys(_WORD.findall(one_line(query[:LONGEST]).casefold())))
        words = [w for w in words if w not in _EMPTY] or words
        if not words or n < 1:
            return []
        asked = " OR ".join(f'"{word}"' for word in words[:_MOST_WORDS])
        rows = self.base.execute(
            "SELECT id, text FROM passages WHERE passages MATCH ? ORDER BY bm25(passages), rowid LIMIT ?", (asked, n)
        )
        return [_snippet(Passage(id, text)) for id, text in rows]


def endpoint(url: str, deadline: float = 10.0) -> Search:
    """A `Search` behind an address with {query} and {n} in it, that answers [{"id": ..., "text": ...}, ...].

    It raises SearchError if it can't be reached within `deadline` seconds, or answers anything else.
    """
    if not url.startswith(("http://", "https://")) or "{query}" not in url:
        raise ValueError(f"search={masked(url)!r}: allowed is an http address with {{query}} in it")

    def search(query: str, n: int) -> list[Passage]:
        asked = url.replace("{query}", quote(query[:LONGEST], safe="")).replace("{n}", str(n))
        try:
            with urllib.request.urlopen(asked, timeout=deadline) as reply:
                rows = json.loads(reply.read(_ANSWER + 1).decode())
            found = [_passage(row) for row in Given(rows, "the answer").entries()]
        except (OSError, HTTPException, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise SearchError(
                f"search at {masked(url)} failed ({masked(str(error) or type(error).__name__)[:200]}); see that "
                'it runs and answers a list of {"id", "text"}, or take a local file'
            ) from None
        return [_snippet(p) for p in found[:n]]

    return search


def load_search(source: str | Path = PASSAGES) -> Search:
    """The search of a .jsonl or .json file with an `id` and a `text` in each row, a folder of .txt files, whose names
    are the ids, or an endpoint's address with {query} in it; the embedded corpus without one.

    The embedded corpus is general health guidance of our own, for testing software: not reviewed by a physician.
    Raises DataError for a corpus that can't be had or used, ValueError for an address without {query}.
    """
    if str(source).startswith(("http://", "https://")):
        return endpoint(str(source))
    if (folder := Path(source)).is_dir():
        files = sorted(folder.rglob("*.txt"))
        ids = [f.relative_to(folder).as_posix().removesuffix(".txt") for f in files]
        texts = [f.read_text("utf-8", "replace") for f in files]
        return Corpus([Passage(id, text) for id, text in zip(ids, texts, strict=True) if text.strip()])
    return Corpus([passage for _, passage in usable(file_rows(local_file(source)), _passage)])


def _passage(row: Given) -> Passage:
    return Passage(_citable(row["id"].text()), one_line(row["text"].text()))


def _citable(id: str) -> str:
    """An id that can stand in brackets: what is no letter, number, or one of ./_- becomes a dash."""
    return re.sub(r"[^\w./-]+", "-", id)[:80]


def _snippet(passage: Passage) -> Passage:
    text = passage.text
    return passage if len(text) <= SNIPPET else Passage(passage.id, text[:SNIPPET].rpartition(" ")[0] + " [...]")
