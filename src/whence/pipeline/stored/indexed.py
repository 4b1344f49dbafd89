"""Candidates from an exported index in place of a scan; their scores are those of the store's rows.

Axes: Q queries, K hits, D numbers of a vector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.errors import BadInput, StoreMismatch
from whence.pipeline.stored.export import FORMAT, RECORD, Exported, package, rows_file
from whence.pipeline.stored.prepared import PreparedQuery
from whence.pipeline.stored.row_vectors import check_vectors, vectors_of, width_of
from whence.progress import meter
from whence.score import Top
from whence.store import Store, altered, damaged, read_record

__all__ = ["Index", "index_note", "indexed_top", "open_index"]

# Candidates beyond the hits that are wanted, since vectors are rounded.
_MARGIN = 64
# Queries whose candidates are read together: more would score too many rows for each other.
_TOGETHER = 32
# Of a sum of D products: so many roundings of a number times the root of D are more than ever came together.
_ROUNDINGS = 8
_HALF_EPS, _SINGLE_EPS = 2.0**-11, 2.0**-24


@dataclass(frozen=True)
class Index:
    """An exported index or table, ready to be searched.

    Args:
        name: Engine, kind and place, for the notes.
        is_exact: Whether it finds the largest inner products of all rows.
        exported: What it says of itself.
        search: From vectors (Q, D) and a count to the rows of the largest inner products, shape (Q, count), -1 where there are fewer.
    """

    name: str
    is_exact: bool
    exported: Exported
    search: Callable[[np.ndarray, int], np.ndarray]

    def slack(self, vector_D: Tensor) -> float:
        """By how much an inner product of it may differ from that of the store's row at most."""
        rounding = _ROUNDINGS * _SINGLE_EPS * self.exported.width**0.5
        rounding += _HALF_EPS if self.exported.dtype == "float16" else 0.0
        return rounding * float(vector_D.double().norm()) * self.exported.largest_norm


def open_index(folder: str | Path, store: Store) -> Index:
    """Open what `export` wrote.

    Args:
        folder: The export.
        store: The store that is asked.

    Raises:
        BadInput: If there is no export, a package is missing, or it has nothing that could be searched.
        StoreMismatch: If it is of another store, or of the store before it was changed.
    """
    folder = Path(folder)
    if not (folder / RECORD).exists():
        raise BadInput(found=f"no export in {folder}", needed="a folder made by `whence export`", do="check the path")
    exported = read_record(Exported, folder / RECORD)
    path = folder / rows_file(exported.to)
    if exported.format != FORMAT or exported.to == "parquet":
        what = f"an export to {exported.to}" if exported.format == FORMAT else f"an export of format {exported.format[:40]!r}"
        raise BadInput(
            found=f"{what} in {folder}", needed="one to faiss or lance, of this version", do="export the store with --to faiss"
        )
    if (exported.store, exported.rows, exported.width) != (store.digest, len(store), width_of(store)):
        raise StoreMismatch(
            found=f"an export of {exported.rows:,} rows in {folder} that was made of another store, or before rows were added or deleted",
            needed=f"one of {store.folder} as it is",
            do="export it again into another folder",
        )
    for name in altered(folder, exported.files):
        raise BadInput(**{**damaged(folder / name, "it is not what was exported"), "do": "export the store again"})
    return _faiss_index(path, exported) if exported.to == "faiss" else _lance_table(path, exported)


def indexed_top(prepared: PreparedQuery, index: Index, k: int, *, quiet: bool) -> tuple[Top, Top]:
    """The k highest and the k lowest scores of every query among the rows that an index finds.

    Of an exact index these are those of a scan, ties in row order: more candidates are asked for until no other row could be among them.

    Args:
        prepared: The queries.
        index: The index.
        k: Hits wanted on each side.
        quiet: No progress on stderr.

    Returns:
        Highest first, lowest first; where an index finds fewer rows than for other queries the last ones have the score 0.
    """
    check_vectors(prepared.store)
    vectors_QD = vectors_of(prepared)
    best: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    with meter("scan", len(vectors_QD), quiet=quiet) as progress:
        for start in range(0, len(vectors_QD), _TOGETHER):
            some = range(start, min(start + _TOGETHER, len(vectors_QD)))
            best |= _best(prepared, index, vectors_QD, [(query, sign) for sign in (1, -1) for query in some], k)
            progress.advance(len(some))
    high, low = (_joined([best[query, sign] for query in range(len(vectors_QD))], vectors_QD) for sign in (1, -1))
    return high, low


def index_note(index: Index) -> str:
    """What an answer says of where its hits were looked for."""
    if index.is_exact:
        return f"hits were looked for in {index.name}, which finds all that a scan does; scores are those of the store's rows"
    return (
        f"approximate index: hits are among the rows that {index.name} finds, and stronger ones may be missing; scores are those of the "
        "store's rows"
    )


def _best(
    prepared: PreparedQuery, index: Index, vectors_QD: Tensor, sides: Sequence[tuple[int, int]], k: int
) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    """Scores and rows of the k best of some queries' sides (query, sign), the rows of all of them read together."""
    best: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    rows_there, waiting = len(prepared.store), list(sides)
    count = min(rows_there, k + _MARGIN)
    while waiting:
        signed_WD = torch.stack([sign * vectors_QD[query] for query, sign in waiting])
        candidates = [torch.from_numpy(np.unique(rows[rows >= 0])) for rows in index.search(signed_WD.float().numpy(), count)]
        scores = _scores(prepared, [query for query, _ in waiting], candidates)
        still = []
        for (query, sign), rows_S, scores_S in zip(waiting, candidates, scores, strict=True):
            order = (sign * scores_S).argsort(descending=True, stable=True)
            best[query, sign] = scores_S[order[:k]], rows_S[order[:k]]
            is_all = not index.is_exact or len(rows_S) == rows_there
            if not is_all and not _is_sure(sign * scores_S[order], k, index, vectors_QD[query]):
                still.append((query, sign))
        waiting, count = still, min(rows_there, 2 * count)
    return best


def _joined(best: Sequence[tuple[Tensor, Tensor]], like: Tensor) -> Top:
    """Scores and rows of each query side by side."""
    size = max(len(rows) for _, rows in best)
    scores_QK, rows_QK = like.new_zeros(len(best), size), torch.zeros(len(best), size, dtype=torch.long)
    for query, (scores_K, rows_K) in enumerate(best):
        scores_QK[query, : len(rows_K)], rows_QK[query, : len(rows_K)] = scores_K, rows_K
        rows_QK[query, len(rows_K) :] = rows_K[-1] if len(rows_K) else 0
    return Top(scores_QK, rows_QK)


def _is_sure(sorted_S: Tensor, k: int, index: Index, vector_D: Tensor) -> bool:
    """Whether no row that was not found can be among the k best: the last that was found, and the k-th, may be off by the slack each."""
    return len(sorted_S) > k and float(sorted_S[k - 1]) > float(sorted_S[-1]) + 2 * index.slack(vector_D)


def _scores(prepared: PreparedQuery, queries: Sequence[int], candidates: Sequence[Tensor]) -> list[Tensor]:
    """Scores of each query's candidates by the store's rows, each of which is read once."""
    together_S = torch.cat(list(candidates)).unique()
    if not len(together_S):
        return [torch.zeros(0) for _ in candidates]
    first, last = min(queries), max(queries)
    scores_QS = prepared.scores(range(first, last + 1), together_S.tolist())
    return [
        scores_QS[query - first, torch.searchsorted(together_S, rows_S)]
        for query, rows_S in zip(queries, candidates, strict=True)
    ]


def _faiss_index(path: Path, exported: Exported) -> Index:
    faiss = package("faiss")
    index = faiss.read_index(str(path))
    is_exact = isinstance(index, faiss.IndexFlat | faiss.IndexScalarQuantizer)
    return Index(
        f"the FAISS index {path.parent} ({exported.factory})",
        is_exact,
        exported,
        lambda vectors, count: index.search(vectors, count)[1],
    )


def _lance_table(path: Path, exported: Exported) -> Index:
    table = package("lance").dataset(str(path))
    if hasattr(table, "describe_indices"):
        kinds = [entry.index_type for entry in table.describe_indices() if "vector" in entry.field_names]
    else:  # before version 1
        kinds = [entry["type"] for entry in table.list_indices() if "vector" in entry["fields"]]
    name = f"the Lance table {path.parent} ({kinds[0] if kinds else 'no index of vectors'})"
    # Whoever deleted rows in the table wants them to be left out.
    is_exact = not kinds and table.count_rows() == exported.rows

    def search(vectors_QD: np.ndarray, count: int) -> np.ndarray:
        rows_QK = np.full((len(vectors_QD), count), -1, dtype=np.int64)
        for query, vector_D in enumerate(vectors_QD):
            nearest = {"column": "vector", "q": vector_D, "k": count, "metric": "dot"}
            rows: Sequence[Any] = table.to_table(columns=["row", "_distance"], nearest=nearest)["row"].to_numpy()
            rows_QK[query, : len(rows)] = rows
        return rows_QK

    return Index(name, is_exact, exported, search)
