"""Versions of a store that a service has answered from: where a row of an earlier one is now."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from whence.ledger import StoreVersion
from whence.serve.hosted_store import HostedStore
from whence.serve.question import SIDES

__all__ = ["Versions", "version_of"]


class Versions:
    """The versions of one store since the service started, oldest first.

    Rows that are added come after all others; where rows are deleted, those behind them move up.

    Args:
        digest: Of the first one.
    """

    def __init__(self, digest: str):
        self.digests = [digest]
        # What was deleted from each version but the last, as rows of that version, ascending.
        self.deleted: list[tuple[int, ...]] = []

    def add(self, digest: str, deleted: Sequence[int] = ()) -> None:
        """There is a new version.

        Args:
            digest: Its digest.
            deleted: Rows of the last one that it lacks.
        """
        self.digests.append(digest)
        self.deleted.append(tuple(sorted(deleted)))

    def row_now(self, digest: str, row: int) -> int | None:
        """Where a row of a version is now; None if it was deleted.

        Raises:
            ValueError: If it is no version of this store.
        """
        for deleted in self.deleted[self.digests.index(digest) :]:
            before = bisect_left(deleted, row)
            if before < len(deleted) and deleted[before] == row:
                return None
            row -= before
        return row

    def as_now(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """An answer of an earlier version with the rows of this one: hits that were deleted are left out, and a note counts them."""
        sides = {
            side: [
                {**hit, "row": row} for hit in answer[side] if (row := self.row_now(answer["digest"], hit["row"])) is not None
            ]
            for side in SIDES
        }
        missing = sum(len(answer[side]) - len(sides[side]) for side in SIDES)
        notes = [f"{missing} of its hits were deleted since it was given"] if missing else []
        return {**answer, **sides, "notes": [*answer["notes"], *notes]}


def version_of(hosted: HostedStore, former: HostedStore | None = None, deleted: Sequence[int] = ()) -> StoreVersion:
    """What the log notes of a version, for payouts.

    Args:
        hosted: The store.
        former: What it was before a change; None to tell it in full.
        deleted: Rows of the former one that it lacks.
    """
    store = hosted.prepared.store
    first = 0 if former is None else len(former.prepared.store) - len(deleted)
    return StoreVersion(
        digest=hosted.digest,
        model=hosted.weights,
        before="" if former is None else former.digest,
        deleted=sorted(deleted),
        added=[(example["id"], example.get("source", "")) for example in islice(store.examples(), first, None)],
    )
