"""Answers kept on disk, keyed by all they depend on: a judge asked twice pays once.

SQLite and JSON, nothing that executes when read. Several processes may use one file: each write is a transaction of
its own, and who comes second keeps the first's answer. A wrong or foreign file is refused, not overwritten.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

_BUSY_SECONDS = 60.0


def key(**parts: Any) -> str:
    """A digest of everything an answer depends on: model, prompt text, sampling, sample index."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


class Cache:
    """A dictionary on disk from digest to a JSON value. Raises ValueError if `path` is no cache of ours."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._open() as db:
                if db.execute(
                    "SELECT 1 FROM sqlite_master WHERE name != 'answers' AND tbl_name != 'answers'"
                ).fetchone():
                    raise sqlite3.DatabaseError("it holds other tables")
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path} can't be used as a cache ({error}); move it away or name another file") from error

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """The known ones among `keys`."""
        with self._open() as db:
            rows = (db.execute("SELECT value FROM answers WHERE key = ?", (k,)).fetchone() for k in keys)
            return {k: json.loads(row[0]) for k, row in zip(keys, rows, strict=True) if row}

    def put(self, values: Mapping[str, Any]) -> None:
        """Add answers; a key that is there already keeps its value."""
        with self._open() as db:
            rows = [(k, json.dumps(v)) for k, v in values.items()]
            db.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=_BUSY_SECONDS)) as db, db:
            yield db
