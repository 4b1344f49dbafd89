"""Which examples each version of a store had: in full for the first one that a service had, and what came and went for those after it.

Credits number rows of the version that answered; by these tables a payout is made of the answers of all versions, without their stores.
"""

import sqlite3
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from whence.errors import BadInput
from whence.ledger.canonical import canonical
from whence.strict_json import fitted, parse_json

__all__ = ["StoreVersion", "VersionRows", "known_versions", "rows_of_versions", "write_version"]


@dataclass(frozen=True, kw_only=True)
class StoreVersion:
    """A version of a store.

    Args:
        digest: Of the version.
        model: Digest of the model's weights.
        before: Digest of the version that it was made from; empty for one that is told in full.
        deleted: Rows of that one that it lacks.
        added: Ids and sources of the examples behind the others; of one that is told in full of all its examples.
    """

    digest: str
    model: str
    before: str = ""
    deleted: Sequence[int] = ()
    added: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class VersionRows:
    """The examples of several versions together.

    Args:
        ids: Of all examples, each once.
        rows: By digest of a version the place in `ids` of each of its rows.
        sources: By id whose an example is; empty for unknown.
        disputed: Ids that had another source in another version.
    """

    ids: tuple[str, ...] = field(repr=False)
    rows: Mapping[str, np.ndarray]
    sources: Mapping[str, str] = field(repr=False)
    disputed: frozenset[str]


def write_version(connection: sqlite3.Connection, version: StoreVersion) -> bool:
    """Note a version in a log, unless it is noted already.

    Args:
        connection: Of the log, in a transaction.
        version: What it is.

    Returns:
        Whether it is noted now: not where the one before it is not.
    """
    digests = {digest for (digest,) in connection.execute("SELECT digest FROM versions")}
    if version.digest in digests:
        return True
    if version.before and version.before not in digests:
        return False
    content = canonical({"deleted": list(version.deleted), "added": [list(pair) for pair in version.added]})
    connection.execute(
        "INSERT INTO versions VALUES (?, ?, ?, ?)", (version.digest, version.model, version.before, zlib.compress(content, 1))
    )
    return True


def known_versions(connection: sqlite3.Connection, model: str) -> dict[str, str]:
    """By digest of every version of stores of a model the one that it was made from; empty where it is told in full."""
    return dict(connection.execute("SELECT digest, before FROM versions WHERE model = ?", (model,)))


def rows_of_versions(
    connection: sqlite3.Connection, digests: Collection[str], at_hand: tuple[str, Iterable[tuple[str, str]]]
) -> VersionRows:
    """The examples of versions of a store.

    Args:
        connection: Of the log.
        digests: Of the versions.
        at_hand: Digest of a version that need not be noted, and ids and sources of its examples.

    Returns:
        Its examples come first, then those of the others.

    Raises:
        BadInput: If what is noted cannot be read.
    """
    examples = _Examples()
    rows = {at_hand[0]: examples.numbered(at_hand[1])}
    try:
        for digest in digests:
            _trace(connection, digest, rows, examples)
    except (ValueError, TypeError, KeyError, IndexError, zlib.error) as error:
        raise BadInput(
            found=f"versions of a store in the query log that cannot be read ({error})",
            needed="what a service with --credits notes",
            do="restore the log from a copy",
        ) from error
    return VersionRows(
        tuple(examples.sources), {digest: rows[digest] for digest in digests}, examples.sources, frozenset(examples.disputed)
    )


class _Examples:
    """Ids in the order in which they came, and their sources."""

    def __init__(self):
        self.sources: dict[str, str] = {}
        self.numbers: dict[str, int] = {}
        self.disputed: set[str] = set()

    def numbered(self, examples: Iterable[tuple[str, str]]) -> np.ndarray:
        """Where examples stand, the new ones at the end."""
        numbers = []
        for name, source in examples:
            numbers.append(self.numbers.setdefault(name, len(self.numbers)))
            if self.sources.setdefault(name, source) != source:
                self.disputed.add(name)
        return np.array(numbers, dtype=np.int64)


def _trace(connection: sqlite3.Connection, digest: str, rows: dict[str, np.ndarray], examples: _Examples) -> None:
    """Find the rows of a version, by way of those that it was made from.

    Raises:
        ValueError: If one of them is not noted.
    """
    way: list[tuple[str, dict[str, Any]]] = []
    while digest not in rows:
        row = connection.execute("SELECT before, changes FROM versions WHERE digest = ?", (digest,)).fetchone()
        if row is None or any(digest == name for name, _ in way):
            raise ValueError(f"{digest[:12]} is not noted")
        before, content = row
        way.append((digest, parse_json(zlib.decompress(content))))
        if not before:
            rows[""] = np.zeros(0, dtype=np.int64)
        digest = before
    for name, changes in reversed(way):
        added = fitted(tuple[tuple[str, str], ...], changes["added"], "added")
        deleted = fitted(tuple[int, ...], changes["deleted"], "deleted")
        left = np.delete(rows[digest], np.array(deleted, dtype=np.int64))
        rows[name] = np.concatenate([left, examples.numbered(added)])
        digest = name
