"""Answers kept on disk, keyed by all they depend on: a judge asked twice pays once.

SQLite and JSON, nothing that executes when read. Several processes may use one file: each write is a transaction of
its own. A value that is no JSON counts as absent. A wrong or foreign file is refused, not overwritten.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any


def key(**parts: Any) -> str:
    """A digest of everything an answer depends on: model, prompt text, sampling, sample index."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


class Cache:
    """A dictionary on disk from digest to a JSON value. Raises ValueError if `path` is no cache of ours, or is full."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as db:
            if db.execute("SELECT 1 FROM sqlite_master WHERE name != 'answers' AND tbl_name != 'answers'").fetchone():
                raise sqlite3.DatabaseError("it holds other tables")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value TEXT NOT NULL)")

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """The known ones among `keys`."""
        known = dict[str, Any]()
        with self._open() as db:
            for k in keys:
                for (value,) in db.execute("SELECT value FROM answers WHERE key = ?", (k,)):
                    with suppress(ValueError, TypeError, RecursionError):  # damaged: as if it were not there
                        known[k] = json.loads(value)
        return known

    def put(self, values: Mapping[str, Any]) -> None:
        """Add answers. One that is there already was of no use to who asked again: it is replaced."""
        with self._open() as db:
            rows = [(k, json.dumps(v)) for k, v in values.items()]
            db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=60.0)) as db, db:
                db.execute("PRAGMA synchronous=NORMAL")  # outlives a killed process, at no wait for the disk
                yield db
        except sqlite3.Error as error:
            wrong = f"{self.path} can't be used as a cache ({error}); move it away or name another file"
            raise ValueError(wrong) from error
