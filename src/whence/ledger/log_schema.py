"""The file that answers are logged in: its tables, and how it is opened by the service that writes it and by whoever reads it."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from whence.errors import BadInput

__all__ = ["LOG_VERSION", "connected", "existing_log", "prepared_log"]

LOG_VERSION = 5
"""`user_version` of the file."""

# So long a reader waits for another process that has the file locked.
_WAIT_SECONDS = 10.0

# Heads of the receipts that the chain may lose if the machine stops now, and where in its file they begin.
_VERSION_5 = """
CREATE TABLE heads (
    number INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    head TEXT NOT NULL
);
"""
# Which examples each version of a store had, for payouts of answers that several versions gave; who asked, and how often in a day, whatever
# was deleted since.
_VERSION_4 = """
CREATE TABLE versions (
    digest TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    before TEXT NOT NULL,
    changes BLOB NOT NULL
);
ALTER TABLE queries ADD COLUMN client TEXT NOT NULL DEFAULT '';
CREATE TABLE asked (
    client TEXT NOT NULL,
    day INTEGER NOT NULL,
    answers INTEGER NOT NULL,
    PRIMARY KEY (client, day)
) WITHOUT ROWID;
CREATE TRIGGER queries_asked AFTER INSERT ON queries WHEN NEW.client != '' BEGIN
    INSERT INTO asked VALUES (NEW.client, CAST(NEW.time / 86400 AS INTEGER), 1)
        ON CONFLICT (client, day) DO UPDATE SET answers = answers + 1;
END;
"""
# How many answers of each day are not there any more: who adds answers up has to know that some are missing.
_VERSION_3 = """
ALTER TABLE queries ADD COLUMN receipt INTEGER;
CREATE INDEX queries_by_receipt ON queries (receipt) WHERE receipt IS NOT NULL;
CREATE TABLE credits (
    query TEXT PRIMARY KEY REFERENCES queries (id) ON DELETE CASCADE,
    credit BLOB NOT NULL
);
CREATE TABLE removed (
    digest TEXT NOT NULL,
    day INTEGER NOT NULL,
    answers INTEGER NOT NULL,
    PRIMARY KEY (digest, day)
) WITHOUT ROWID;
CREATE TRIGGER queries_removed AFTER DELETE ON queries BEGIN
    INSERT INTO removed VALUES (OLD.digest, CAST(OLD.time / 86400 AS INTEGER), 1)
        ON CONFLICT (digest, day) DO UPDATE SET answers = answers + 1;
END;
CREATE TABLE payouts (
    digest TEXT NOT NULL,
    period TEXT NOT NULL,
    since REAL NOT NULL,
    until REAL NOT NULL,
    seal TEXT NOT NULL,
    carried TEXT NOT NULL,
    held TEXT NOT NULL,
    PRIMARY KEY (digest, since, until)
) WITHOUT ROWID;
"""
_VERSION_2 = """
CREATE TABLE queries (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    time REAL NOT NULL,
    store TEXT NOT NULL,
    digest TEXT NOT NULL,
    prompt TEXT NOT NULL,
    completion TEXT NOT NULL,
    measurement REAL NOT NULL,
    seconds REAL NOT NULL,
    answer TEXT NOT NULL,
    kept_at REAL NOT NULL
);
CREATE INDEX queries_by_time ON queries (digest, time);
CREATE INDEX queries_by_age ON queries (kept_at);
CREATE TABLE shares (
    query TEXT NOT NULL REFERENCES queries (id) ON DELETE CASCADE,
    source TEXT NOT NULL,
    positive REAL NOT NULL,
    negative REAL NOT NULL,
    PRIMARY KEY (query, source)
) WITHOUT ROWID;
CREATE TABLE clock (time REAL NOT NULL);
"""
# Logs of version 1 knew no order but their times'.
_FROM_VERSION_1 = f"""
ALTER TABLE shares RENAME TO shares_1;
ALTER TABLE queries RENAME TO queries_1;
DROP INDEX queries_by_time;
{_VERSION_2}
INSERT INTO queries (id, time, store, digest, prompt, completion, measurement, seconds, answer, kept_at)
    SELECT id, time, store, digest, prompt, completion, measurement, seconds, answer, time FROM queries_1 ORDER BY time;
INSERT INTO shares SELECT * FROM shares_1;
DROP TABLE shares_1;
DROP TABLE queries_1;
"""
_UPGRADES = {
    0: _VERSION_2 + _VERSION_3 + _VERSION_4 + _VERSION_5,
    1: _FROM_VERSION_1 + _VERSION_3 + _VERSION_4 + _VERSION_5,
    2: _VERSION_3 + _VERSION_4 + _VERSION_5,
    3: _VERSION_4 + _VERSION_5,
    4: _VERSION_5,
}


def connected(path: str) -> sqlite3.Connection:
    """A connection to a log; several may read while one writes."""
    connection = sqlite3.connect(path, check_same_thread=False, timeout=_WAIT_SECONDS)
    connection.execute("PRAGMA journal_mode = WAL")
    # A commit is on the disk itself: neither a killed process nor a lost current takes an answer back.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


@contextlib.contextmanager
def existing_log(path: str | Path) -> Iterator[sqlite3.Connection]:
    """A log that is there, of this version, for as long as the block runs.

    Args:
        path: The file.

    Yields:
        A connection.

    Raises:
        BadInput: If there is none, or it cannot be read or written: no database, locked, damaged.
    """
    if not Path(path).is_file():
        raise BadInput(found=f"no query log {path}", needed="the file that `whence serve --log` wrote", do="check the path")
    try:
        with contextlib.closing(connected(str(path))) as connection:
            prepared_log(connection, str(path), is_new=False)
            yield connection
    except sqlite3.Error as error:
        raise BadInput(
            found=f"the query log {path}, which cannot be used ({error})",
            needed="a log by `whence serve` that is whole, may be written, and that nobody else keeps locked",
            do="check the path and its permissions, and try again; restore it from a copy if it is damaged",
        ) from error


def prepared_log(connection: sqlite3.Connection, path: str, *, is_new: bool = True) -> None:
    """Have the tables of this version in a log, those of earlier versions taken over.

    Args:
        connection: Of the log.
        path: For errors.
        is_new: Whether an empty file becomes a log; else it is refused.

    Raises:
        BadInput: If it is a database of another kind, or of a later version.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if version == LOG_VERSION:
        return
    if version not in _UPGRADES or (version == 0 and (tables > 0 or not is_new)):
        raise BadInput(
            found=f"{path}, a database of another kind or version",
            needed="a query log of this version of whence",
            do="pass another --log",
        )
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.executescript(f"BEGIN; {_UPGRADES[version]} PRAGMA user_version = {LOG_VERSION}; COMMIT;")
    connection.execute("PRAGMA foreign_keys = ON")
