"""What a question to a store is asked with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence.errors import BadInput
from whence.settings.checks import typed

__all__ = ["Indexed", "Rerank", "Shortlist"]

# Of each side, per hit that is wanted and at least: docs/results.md has what is then missed.
_SHORTLIST, _SHORTEST = 10, 400
# Of the rows, at most as many as one in so many, unless hits call for more.
_SHARE = 10


@dataclass(frozen=True, kw_only=True)
@typed
class Rerank:
    """A second stage: a scan of the store leaves a shortlist per query, and something better scores that.

    Args:
        by: "exact" for whole gradients of the model with the EK-FAC and the damping inside a store of aligned; or another store of the same
            data, or its folder.
        train: For "exact", at least the examples that the store was built from, in any order. The model runs on the shortlist only.
        shortlist: Rows kept of each query on each side; None for 10 for each hit, and 400 at least, and where the store's agreement with
            exact scores is known as many as are expected to hold 95 % of the best 100, up to a tenth of the rows.

    Raises:
        BadInput: If there is training data for a second store.
    """

    by: Any = "exact"
    train: Any = None
    shortlist: int | None = None

    def __post_init__(self):
        if self.by != "exact" and self.train is not None:
            raise BadInput(
                found="train for a second store",
                needed="nothing but the store",
                do="leave train out, or by, which then is 'exact'",
            )

    def rows_kept(self, k: int, rows: int, wanted: int = 0) -> int:
        """Rows of each side that the scan keeps for k hits.

        Args:
            k: Hits.
            rows: Of the store.
            wanted: As many as its agreement with exact scores calls for.

        Raises:
            BadInput: If the shortlist is shorter than that.
        """
        if self.shortlist is not None and self.shortlist < k:
            raise BadInput(
                found=f"shortlist={self.shortlist} for k={k}", needed="at least k", do="keep more, or ask for fewer hits"
            )
        return self.shortlist or max(_SHORTLIST * k, _SHORTEST, min(wanted, rows // _SHARE))


@dataclass(frozen=True, kw_only=True)
@typed
class Indexed:
    """A store with an index of its rows, which `whence.query` asks in place of a scan.

    Args:
        store: A store or its folder.
        index: What `whence.pipeline.export` wrote of it for FAISS or Lance. An index that is not exact misses some hits, which a note says;
            scores are those of the store's rows.
    """

    store: Any
    index: str | Path


@dataclass(frozen=True, kw_only=True)
@typed
class Shortlist:
    """A store as a first stage of `whence.why.why`: a scan of it leaves a shortlist, which is then scored exactly.

    Args:
        store: A store of method aligned, or its folder.
        rows: Training examples kept on each side; None as in `Rerank`.
    """

    store: Any
    rows: int | None = None
