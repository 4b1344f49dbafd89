"""The query log: every answer and its shares in one SQLite file.

SQLite, since answers come one by one, must be on disk before they go out, and are read while more are written: that is what its
write-ahead log is for, in a file that every language opens, from Python's own library. A database of columns (DuckDB) scans months faster,
but locks its file to one process, writes whole row groups and would be a dependency.
"""

import contextlib
import json
import logging
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from whence.errors import BadInput, DiskFull, WhenceError
from whence.ledger import (
    Chain,
    Draft,
    Head,
    Sealed,
    Signer,
    StoreVersion,
    check_chain,
    connected,
    drafted,
    next_receipts,
    note_heads,
    prepared_log,
    sealed_answer,
    unsealed_answers,
    unsure_receipts,
    write_version,
)
from whence.serve.limits import Limits
from whence.serve.log_clock import LogClock
from whence.serve.responses import Refused
from whence.strict_json import parse_json

__all__ = ["QueryLog"]

_SHARES = """
SELECT source, sum(positive), sum(negative), count(DISTINCT query)
FROM shares JOIN queries ON queries.id = shares.query
WHERE digest IN (SELECT value FROM json_each(?)) AND time >= ? AND time < ? AND (? IS NULL OR client = ?)
GROUP BY source ORDER BY 2 DESC, 1 LIMIT ?
"""
_COUNT = """
SELECT count(*) FROM queries
WHERE digest IN (SELECT value FROM json_each(?)) AND time >= ? AND time < ? AND (? IS NULL OR client = ?)
"""
_OLDEST = "DELETE FROM queries WHERE number IN (SELECT number FROM queries ORDER BY number LIMIT ?)"
_COLUMNS = ("id", "time", "store", "digest", "prompt", "completion", "measurement", "seconds")
_SUMS = ("source", "positive", "negative")
_DAY = 86_400.0
# Old answers are looked for this often.
_PURGE_SECONDS = 3_600.0
# Answers that are deleted at once where the log has grown beyond its size.
_DELETED_AT_ONCE = 256
_RETRY_SECONDS = 10
_logger = logging.getLogger("whence.serve")


class QueryLog:
    """Answers without training text, which stays in the stores.

    Args:
        path: The file; made, readable by its owner only, if it is not there. ":memory:" for none.
        retention_days: Older answers are deleted.
        max_bytes: Where it holds more, the oldest answers are deleted.
        receipts: File of the chain in which every answer gets a receipt, once it is in the log, and the key; None for none. Answers that a
            killed process did not get to seal are sealed when the log is opened, and receipts that a stopped machine lost are made again.

    Raises:
        BadInput: If the file cannot be opened or is something else, or the chain lacks receipts that answers had.
    """

    def __init__(
        self,
        path: str,
        *,
        retention_days: float,
        max_bytes: int = Limits.max_log_bytes,
        receipts: tuple[str | Path, Signer] | None = None,
    ):
        self.path, self.retention, self.max_bytes = path, retention_days * _DAY, max_bytes
        self.trouble = ""
        self.writing, self.reading, self.sealing = threading.Lock(), threading.Lock(), threading.RLock()
        try:
            self._open()
            (last,) = self.writer.execute(
                "SELECT max(at) FROM (SELECT max(time) AS at FROM clock UNION SELECT max(kept_at) FROM queries)"
            ).fetchone()
            unsure = unsure_receipts(self.writer)
        except (sqlite3.Error, OSError, ValueError) as error:
            raise BadInput(
                found=f"the query log {path}, which cannot be opened ({error})",
                needed="a place to write, or a log that this service made",
                do="pass another --log, or ':memory:'",
            ) from error
        self.clock = LogClock(last, self.retention)
        self.purged = time.monotonic()
        self.chain = None if receipts is None else Chain(*receipts, unsure)
        if self.chain is not None:
            check_chain(self.writer, self.chain)
        with contextlib.suppress(Refused):  # a full disk is told to those who ask, and by /health
            self._seal()
            self.purge()

    def add(self, answers: Sequence[Mapping[str, Any]], *, on_written: Callable[[], object] = lambda: None) -> dict[str, Head]:
        """Keep answers: when this returns, they are on disk, and so is what their receipts are made of again if the machine stops.

        Args:
            answers: What `answered` gives, with id, time and digest; a `credit` in it, as bytes, is kept for payouts and never shown;
                `client`, who asked, is kept beside it.
            on_written: Called when only the disk is waited for.

        Returns:
            Heads of their receipts by id; none without a chain.

        Raises:
            Refused: If the disk is full, or the file cannot be written.
        """
        with self.sealing:
            self.sync()
            drafts = self._insert(answers, on_written)
            heads = self._seal(drafts)
            if self.path == ":memory:":  # it holds nothing that receipts could be made of again
                self.sync()
        if time.monotonic() - self.purged > _PURGE_SECONDS:
            self.purge()
        return heads

    def sync(self) -> None:
        """Have all receipts on the disk, where the log alone may have had them before.

        Raises:
            Refused: If the disk is full, or fails; the answers get their receipts later.
        """
        with self.sealing:
            if self.chain is not None:
                try:
                    self.chain.sync()
                except WhenceError as error:
                    raise self._refusal(isinstance(error, DiskFull), f"receipts: {error}") from error

    def _insert(self, answers: Sequence[Mapping[str, Any]], on_written: Callable[[], object]) -> list[Draft]:
        """Put answers into the log, and the heads of their receipts; these, where they follow the last receipt of the chain."""
        with self._written():
            shift = self.clock.ahead()
            receipts = next_receipts(self.writer, self.chain, len(answers))
            drafts: list[Draft] = []
            if self.chain is not None:
                if answers and receipts[0] == self.chain.count:
                    sealed = [sealed_answer(_content_of(answer), answer.get("credit")) for answer in answers]
                    drafts = drafted(sealed, self.chain.count, self.chain.previous, self.chain.signer)
                note_heads(self.writer, self.chain, drafts)
            texts = [draft.content.decode() for draft in drafts] or list(map(_text_of, answers))
            if self._bytes() > self.max_bytes:
                self.writer.execute(_OLDEST, (_DELETED_AT_ONCE + len(answers),))
            self.writer.executemany(
                f"INSERT OR REPLACE INTO queries ({', '.join(_COLUMNS)}, answer, kept_at, receipt, client) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        *(answer[name] for name in _COLUMNS),
                        text,
                        answer["time"] - shift,
                        receipt,
                        answer.get("client", ""),
                    )
                    for answer, receipt, text in zip(answers, receipts, texts, strict=True)
                ],
            )
            self.writer.executemany(
                "INSERT OR REPLACE INTO shares VALUES (?, ?, ?, ?)",
                [(answer["id"], *(share[name] for name in _SUMS)) for answer in answers for share in answer["shares"]],
            )
            self.writer.executemany(
                "INSERT OR REPLACE INTO credits VALUES (?, ?)",
                [(answer["id"], zlib.compress(answer["credit"], 1)) for answer in answers if "credit" in answer],
            )
            on_written()
        return drafts

    def answer(self, name: str) -> dict[str, Any] | None:
        """An answer by its id, with `client`, who asked, where that is known; None if it is not there (any more).

        Raises:
            Refused: If the file cannot be read.
        """
        with self._read():
            row = self.reader.execute("SELECT answer, client FROM queries WHERE id = ?", (name,)).fetchone()
        return None if row is None else parse_json(row[0], any_number=True) | ({"client": row[1]} if row[1] else {})

    def answers_on(self, client: str, day: int) -> int:
        """How many answers a client was given on a day, counted from 1970-01-01 in UTC.

        Raises:
            Refused: If the file cannot be read.
        """
        with self._read():
            row = self.reader.execute("SELECT answers FROM asked WHERE client = ? AND day = ?", (client, day)).fetchone()
        return 0 if row is None else row[0]

    def shares(
        self, digests: Sequence[str], since: float, until: float, limit: int, client: str | None = None
    ) -> dict[str, Any]:
        """What the sources add up to over all questions of some time.

        Args:
            digests: Of the versions of the store that count.
            since: From then on, in seconds since 1970.
            until: Before then.
            limit: Sources at most.
            client: Whose questions count; None for all.

        Returns:
            Number of questions, and per source its sums and the number of answers that list it.

        Raises:
            Refused: If the file cannot be read.
        """
        versions = json.dumps(list(digests))
        with self._read():
            rows = self.reader.execute(_SHARES, (versions, since, until, client, client, limit)).fetchall()
            (count,) = self.reader.execute(_COUNT, (versions, since, until, client, client)).fetchone()
        names = ("source", "positive", "negative", "answers")
        return {"questions": count, "shares": [dict(zip(names, row, strict=True)) for row in rows]}

    def note_version(self, version: StoreVersion) -> bool:
        """Note which examples a version of a store has, so that a payout can be made of the answers of several.

        Returns:
            Whether it is noted now; not where the one that it was made from is not.

        Raises:
            Refused: If the disk is full, or the file cannot be written.
        """
        with self._written():
            return write_version(self.writer, version)

    def purge(self) -> None:
        """Delete what is older than it may be, and the oldest of what is too much.

        Raises:
            Refused: If the disk is full, or the file cannot be written.
        """
        self.purged = time.monotonic()
        if ahead := self.clock.ahead():
            _logger.warning("the clock jumped by %.1f hours: no answer is deleted by it before a day has passed", ahead / 3600)
        with self._written():
            self._note_time()
            self.writer.execute("DELETE FROM queries WHERE kept_at < ?", (self.clock.now() - self.retention,))
            while self._bytes() > self.max_bytes and self.writer.execute(_OLDEST, (_DELETED_AT_ONCE,)).rowcount > 0:
                pass

    def try_again(self) -> None:
        """Write a little where writing failed before, and open the file anew if that does not help.

        Raises:
            Refused: If it still cannot be written.
        """
        if not self.trouble:
            return
        try:
            with self._written():
                self._note_time()
        except Refused:
            if self.path == ":memory:":
                raise
            with self.writing, self.reading, contextlib.suppress(sqlite3.Error, OSError, BadInput):
                self._close()
                self._open()
            with self._written():
                self._note_time()
        self._seal()

    def close(self) -> None:
        """Close the files; what was written is there anyway."""
        with contextlib.suppress(Refused):
            self.sync()
        with contextlib.suppress(Refused), self._written():
            self._note_time()
        self._close()
        if self.chain is not None:
            self.chain.close()

    def _open(self) -> None:
        if self.path != ":memory:":
            Path(self.path).touch(mode=0o600)
        self.writer = connected(self.path)
        prepared_log(self.writer, self.path)
        # Readers of a file have a connection of their own, and see the last commit while the next one is written.
        self.reader = self.writer if self.path == ":memory:" else connected(self.path)
        if self.reader is self.writer:
            self.reading = self.writing

    def _close(self) -> None:
        self.reader.close()
        self.writer.close()

    def _seal(self, drafts: Sequence[Draft] = ()) -> dict[str, Head]:
        """Give a receipt to every answer of the log that has none yet, in order.

        Args:
            drafts: The receipts of all of these, whose heads are in the log.

        Returns:
            Their heads by id of the answer.

        Raises:
            Refused: If the chain cannot be written; the answers get their receipts later.
        """
        heads: dict[str, Head] = {}
        if self.chain is None:
            return heads
        with self.sealing:
            try:
                if drafts:
                    return {head.id: head for head in self.chain.append_drafts(drafts, is_synced=False)}
                while unsealed := self._unsealed():
                    heads |= {head.id: head for head in self.chain.append(unsealed)}
            except WhenceError as error:
                raise self._refusal(isinstance(error, DiskFull), f"receipts: {error}") from error
        return heads

    def _unsealed(self) -> list[Sealed]:
        assert self.chain is not None
        with self._read():
            return unsealed_answers(self.reader, self.chain.count)

    def _note_time(self) -> None:
        """For the next start, which cannot know by itself how long nothing ran."""
        self.writer.execute("DELETE FROM clock")
        self.writer.execute("INSERT INTO clock VALUES (?)", (self.clock.now(),))

    def _bytes(self) -> int:
        """What the answers take, pages that wait to be used again left out."""
        pages, free, size = (
            self.writer.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """A transaction.

        Yields:
            Nothing.

        Raises:
            Refused: If it fails; nothing of it is kept.
        """
        try:
            with self.writing, self.writer:
                yield
        except sqlite3.Error as error:
            is_full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
            raise self._refusal(is_full, str(error)) from error
        self.trouble = ""

    def _refusal(self, is_full: bool, why: str) -> Refused:
        """What is said of a file that cannot be written."""
        if not self.trouble:  # once, not with every answer
            _logger.error("the query log %s cannot be written: %s", self.path, why)
        self.trouble = "full" if is_full else "not writable"
        return Refused(
            507 if is_full else 503,
            found="no space left for the query log" if is_full else "a query log that cannot be written",
            needed="it to hold every answer before that goes out",
            do="tell whoever runs the service: free some space" if is_full else "tell whoever runs the service",
            headers={"Retry-After": str(_RETRY_SECONDS)},
        )

    @contextlib.contextmanager
    def _read(self) -> Iterator[None]:
        try:
            with self.reading:
                yield
        except sqlite3.Error as error:
            problem = "a query log that cannot be read"
            headers = {"Retry-After": str(_RETRY_SECONDS)}
            raise Refused(503, found=problem, do="tell whoever runs the service", headers=headers) from error


def _text_of(answer: Mapping[str, Any]) -> str:
    return json.dumps(_content_of(answer))


def _content_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in ("credit", "client")}
