"""What the service knows of a store's examples besides their rows: ids, sources, times, and which of them a filter lets through.

Axes: N rows.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.errors import BadInput
from whence.store import Store

__all__ = ["Catalog", "Filter", "seconds_of"]


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which training examples may be hits. What is left empty lets all through.

    Args:
        sources: Names of sources, or patterns with * and ?.
        text: What their text has to contain, in any case.
        since: Earliest time, in seconds since 1970.
        until: The first time that is too late.
    """

    sources: tuple[str, ...] = ()
    text: str = ""
    since: float | None = None
    until: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it lets all through."""
        return self == Filter()


@dataclass(frozen=True)
class Catalog:
    """Examples of one store, by id, source and time. Texts stay on disk.

    Args:
        store: The store.
        sources: Names of all sources, in the order in which the rows name them.
        source_N: Each row's place in `sources`.
        marks_N: Digests of all ids, ascending: 8 bytes each instead of the ids themselves.
        row_N: Rows in the order of the digests.
        time_N: Time of each row in seconds since 1970, NaN where it is not known; None if none is.
        metadata: By id what was said of an example beside the store.
    """

    store: Store
    sources: tuple[str, ...]
    source_N: np.ndarray
    marks_N: np.ndarray
    row_N: np.ndarray
    time_N: np.ndarray | None
    metadata: Mapping[str, Mapping[str, Any]] = field(repr=False)

    @classmethod
    def of(cls, store: Store, metadata: Sequence[Mapping[str, Any]] = ()) -> "Catalog":
        """Read a store's examples once.

        Args:
            store: The store.
            metadata: Mappings with an `id`, perhaps a `time` in ISO 8601 (UTC where it names no zone), and whatever else is to be shown.

        Returns:
            The catalog.

        Raises:
            BadInput: If metadata have no id, hold what JSON cannot, are of no example here, or their time cannot be read.
        """
        metadata_of: dict[str, Mapping[str, Any]] = {}
        for number, record in enumerate(metadata):
            if not isinstance(record, Mapping) or "id" not in record:
                raise BadInput(found=f"metadata record {number} without an id", needed="the id of an example", do="add it")
            metadata_of[str(record["id"])] = _shown(number, {name: value for name, value in record.items() if name != "id"})
        size = len(store)
        source_N, marks_N = np.zeros(size, np.int32), np.zeros(size, np.uint64)
        time_N, rows, num_described = np.full(size, np.nan), {}, 0
        for row, example in enumerate(store.examples()):
            source_N[row] = rows.setdefault(example.get("source", ""), len(rows))
            marks_N[row] = _mark(example["id"])
            extra = metadata_of.get(example["id"])
            num_described += extra is not None
            if extra is not None and "time" in extra:
                time_N[row] = seconds_of(extra["time"])
        if metadata_of and not num_described:
            raise BadInput(
                found=f"metadata of {len(metadata_of):,} ids, none of which is in {store.folder}",
                needed="the ids of the store's examples",
                do="check that the metadata belong to this store",
            )
        order_N = marks_N.argsort(kind="stable")
        has_times = not np.isnan(time_N).all()
        return cls(store, tuple(rows), source_N, marks_N[order_N], order_N, time_N if has_times else None, metadata_of)

    @cached_property
    def source_sizes(self) -> dict[str, int]:
        """By name of a source how many examples it has."""
        return dict(zip(self.sources, np.bincount(self.source_N, minlength=len(self.sources)).tolist(), strict=True))

    def row_of(self, name: str) -> int | None:
        """The row of an id; None if there is none."""
        mark = _mark(name)
        for index in range(int(self.marks_N.searchsorted(mark)), len(self.marks_N)):
            if self.marks_N[index] != mark:
                return None
            if self.store.example(int(self.row_N[index]))["id"] == name:
                return int(self.row_N[index])
        return None

    def time_of(self, row: int) -> dict[str, float]:
        """The time of a row, as answers name it; nothing where it is not known."""
        time = float("nan") if self.time_N is None else float(self.time_N[row])
        return {} if time != time else {"time": time}

    def rows_of(self, chosen: Filter, *, hides_sources: bool = False) -> Tensor:
        """Which rows a filter lets through, shape (N,).

        A text is looked for in every example that the rest lets through, which reads them all.

        Args:
            chosen: The filter.
            hides_sources: Whether a source that is not there lets nothing through, so that names cannot be tried, where it is else refused.

        Raises:
            BadInput: If a source is not there, or times are asked for that nobody gave.
        """
        keep_N = np.ones(len(self.source_N), bool)
        if chosen.sources:
            wanted = {
                number
                for number, source in enumerate(self.sources)
                if any(source == name or fnmatchcase(source, name) for name in chosen.sources)
            }
            if not wanted and not hides_sources:
                raise BadInput(
                    found=f"no source {', '.join(map(repr, chosen.sources))}",
                    needed="a source of this store, or a pattern such as 'news*'",
                    do="see the shares of an answer for their names",
                )
            keep_N &= np.isin(self.source_N, sorted(wanted))
        if chosen.since is not None or chosen.until is not None:
            if self.time_N is None:
                raise BadInput(
                    found="a filter by time for a store without times",
                    needed="the time of its examples",
                    do="start the service with --metadata, a file with id and time",
                )
            with np.errstate(invalid="ignore"):
                keep_N &= self.time_N >= (-np.inf if chosen.since is None else chosen.since)
                keep_N &= self.time_N < (np.inf if chosen.until is None else chosen.until)
        if chosen.text:
            wanted_text = chosen.text.casefold()
            for row, example in enumerate(self.store.examples()):
                if keep_N[row] and wanted_text not in example.get("text", "").casefold():
                    keep_N[row] = False
        return torch.from_numpy(keep_N)


def seconds_of(time: object) -> float:
    """Seconds since 1970 of a time in ISO 8601; UTC where it names no zone.

    >>> seconds_of("1970-01-02")
    86400.0

    Raises:
        BadInput: If it cannot be read.
    """
    try:
        moment = datetime.fromisoformat(str(time))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise BadInput(
            found=f"the time {str(time)[:40]!r}",
            needed="ISO 8601, such as 2024-05-01 or 2024-05-01T12:00:00Z",
            do="write it so",
        ) from error


def _shown(number: int, record: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as an answer holds them: dates and the like as text.

    Raises:
        BadInput: If they hold what JSON cannot.
    """
    try:
        return json.loads(json.dumps(record, default=str, allow_nan=False))
    except (ValueError, TypeError, RecursionError) as error:
        raise BadInput(
            found=f"metadata record {number}, which JSON cannot hold ({error})",
            needed="texts and finite numbers",
            do="correct it",
        ) from error


def _mark(name: str) -> int:
    content = name.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
