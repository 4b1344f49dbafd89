"""The query log: every answer and its shares in one SQLite file.

SQLite, since answers come one by one, must be on disk before they go out, and are read while more are written: that is what its
write-ahead log is for, in a file that every language opens, from Python's own library. A database of columns (DuckDB) scans months faster,
but locks its file to one process, writes whole row groups and would be a dependency.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whence.errors import BadInput

__all__ = ["QueryLog"]

_VERSION = 1
_SCHEMA = """
CREATE TABLE queries (
    id TEXT PRIMARY KEY,
    time REAL NOT NULL,
    store TEXT NOT NULL,
    digest TEXT NOT NULL,
    prompt TEXT NOT NULL,
    completion TEXT NOT NULL,
    measurement REAL NOT NULL,
    seconds REAL NOT NULL,
    answer TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX queries_by_time ON queries (store, time);
CREATE TABLE shares (
    query TEXT NOT NULL REFERENCES queries (id) ON DELETE CASCADE,
    source TEXT NOT NULL,
    positive REAL NOT NULL,
    negative REAL NOT NULL,
    PRIMARY KEY (query, source)
) WITHOUT ROWID;
"""
_SHARES = """
SELECT source, sum(positive), sum(negative), count(DISTINCT query)
FROM shares JOIN queries ON queries.id = shares.query
WHERE store = ? AND time >= ? AND time < ?
GROUP BY source ORDER BY 2 DESC, 1 LIMIT ?
"""
_COLUMNS = ("id", "time", "store", "digest", "prompt", "completion", "measurement", "seconds")
_SUMS = ("source", "positive", "negative")
_DAY = 86_400.0
# Old answers are looked for this often.
_PURGE_SECONDS = 3_600.0


class QueryLog:
    """Answers without training text, which stays in the stores.

    Args:
        path: The file; made, readable by its owner only, if it is not there. ":memory:" for none.
        retention_days: Older answers are deleted.

    Raises:
        BadInput: If the file cannot be opened or is something else.
    """

    def __init__(self, path: str, *, retention_days: float):
        self.path, self.retention_days = path, retention_days
        self.purged = -_PURGE_SECONDS
        try:
            if path != ":memory:":
                Path(path).touch(mode=0o600)
            self.writer = _connect(path)
            _prepare(self.writer, path)
            # Readers of a file have a connection of their own, and see the last commit while the next one is written.
            self.reader = self.writer if path == ":memory:" else _connect(path)
        except (sqlite3.Error, OSError) as error:
            raise BadInput(
                found=f"the query log {path}, which cannot be opened ({error})",
                needed="a place to write, or a log that this service made",
                do="pass another --log, or ':memory:'",
            ) from error
        self.writing, self.reading = threading.Lock(), threading.Lock()
        if self.reader is self.writer:
            self.reading = self.writing
        self.purge()

    def add(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Keep answers: when this returns, they are on disk.

        Args:
            answers: What `answered` gives, with id, time and digest.
        """
        with self.writing, self.writer:
            self.writer.executemany(
                "INSERT INTO queries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(*(answer[name] for name in _COLUMNS), json.dumps(answer)) for answer in answers],
            )
            self.writer.executemany(
                "INSERT INTO shares VALUES (?, ?, ?, ?)",
                [(answer["id"], *(one[name] for name in _SUMS)) for answer in answers for one in answer["shares"]],
            )
        if time.monotonic() - self.purged > _PURGE_SECONDS:
            self.purge()

    def answer(self, name: str) -> dict[str, Any] | None:
        """An answer by its id; None if it is not there (any more)."""
        with self.reading:
            found = self.reader.execute("SELECT answer FROM queries WHERE id = ?", (name,)).fetchone()
        return None if found is None else json.loads(found[0])

    def shares(self, store: str, since: float, until: float, limit: int) -> dict[str, Any]:
        """What the sources add up to over all questions of some time.

        Args:
            store: Name of the store.
            since: From then on, in seconds since 1970.
            until: Before then.
            limit: Sources at most.

        Returns:
            Number of questions, and per source its sums and the number of answers that list it.
        """
        with self.reading:
            rows = self.reader.execute(_SHARES, (store, since, until, limit)).fetchall()
            (count,) = self.reader.execute(
                "SELECT count(*) FROM queries WHERE store = ? AND time >= ? AND time < ?", (store, since, until)
            ).fetchone()
        names = ("source", "positive", "negative", "answers")
        return {"questions": count, "shares": [dict(zip(names, row, strict=True)) for row in rows]}

    def purge(self) -> None:
        """Delete what is older than it may be."""
        self.purged = time.monotonic()
        with self.writing, self.writer:
            self.writer.execute("DELETE FROM queries WHERE time < ?", (time.time() - self.retention_days * _DAY,))

    def close(self) -> None:
        """Close the file; what was written is there anyway."""
        self.reader.close()
        self.writer.close()


def _connect(path: str) -> sqlite3.Connection:
    found = sqlite3.connect(path, check_same_thread=False, timeout=10)
    found.execute("PRAGMA journal_mode = WAL")
    # A commit is on the disk itself: neither a killed process nor a lost current takes an answer back.
    found.execute("PRAGMA synchronous = FULL")
    found.execute("PRAGMA foreign_keys = ON")
    return found


def _prepare(connection: sqlite3.Connection, path: str) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if version == 0 and tables == 0:
        connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
    elif version != _VERSION:
        raise BadInput(
            found=f"{path}, a database of another kind or version",
            needed="a query log of this version of whence",
            do="pass another --log",
        )
