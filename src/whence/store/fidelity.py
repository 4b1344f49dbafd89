"""How far a store's scores agree with exact ones, measured when it was built: kept beside its rows, and told in every answer."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from whence.errors import StoreCorrupt
from whence.store.files import damaged, read_json, write_json
from whence.store.reader import Store
from whence.store.resume import listed_files
from whence.store.rewritten import name_now, write_anew
from whence.strict_json import record_of

__all__ = ["Agreement", "Controls", "Fidelity", "fidelity_notes", "read_fidelity", "write_fidelity"]

_NAME = "fidelity.json"


@dataclass(frozen=True)
class Agreement:
    """Correlation of stored with exact scores over some documents, mean over queries.

    Args:
        documents: How many.
        spearman: Of ranks: mean, and the ends of its 95 % interval over queries.
        pearson: Of the scores themselves, the same.
    """

    documents: int
    spearman: tuple[float, float, float]
    pearson: tuple[float, float, float]

    def __str__(self) -> str:
        mean, low, high = self.spearman
        return f"Spearman {mean:.3f} [{low:.3f}, {high:.3f}]"


@dataclass(frozen=True)
class Controls:
    """How far scores agree with exact ones that do not know the query or the model, for the same queries and documents.

    Stored scores that agree no better than these are worth no more.

    Args:
        length: Of the length of each document's stored gradient, the same for every query.
        unrelated: Of the exact scores for another query.
        bm25: Of the words that query and document share; None where there are no texts.
    """

    length: Agreement
    unrelated: Agreement
    bm25: Agreement | None = None

    def __str__(self) -> str:
        words = f", shared words (BM25) {self.bm25.spearman[0]:.3f}" if self.bm25 else ""
        return f"gradient length {self.length.spearman[0]:.3f}, another query's scores {self.unrelated.spearman[0]:.3f}{words}"


@dataclass(frozen=True)
class Fidelity:
    """What was measured when a dataset was built or appended.

    Args:
        queries: Documents that stood in for queries; the code was not learned from them, or else they are as axes see them that were not.
        learned: On documents that the code was learned from; None where there were none.
        others: On documents that nothing was learned from; None where there were none. It speaks for whatever is added later.
        controls: On the same documents as `others`, or `learned` where there are no others; None in stores of earlier versions.
        is_outside: Whether queries were documents that nothing was learned from; None in stores of earlier versions.
    """

    queries: int
    learned: Agreement | None
    others: Agreement | None
    controls: Controls | None = None
    is_outside: bool | None = None

    def __str__(self) -> str:
        parts = [f"{self.learned} on documents that the code was learned from"] if self.learned else []
        parts += [f"{self.others} on documents that it was not learned from"] if self.others else []
        if self.is_outside is not None:
            from_where = (
                "that nothing was learned from" if self.is_outside else "of the sample, coded by axes that others taught,"
            )
            parts += [f"{self.queries} documents {from_where} stood in for queries"]
        parts += [f"for comparison, Spearman of {self.controls}"] if self.controls else []
        return "stored against exact EK-FAC scores: " + "; ".join(parts)


def write_fidelity(folder: Path, fingerprint: str, fidelity: Fidelity | None) -> dict[str, str]:
    """Add what was measured of a dataset to what is known of those that are in the store already.

    Args:
        folder: The store.
        fingerprint: Of the dataset.
        fidelity: None if nothing could be measured.

    Returns:
        Name and SHA-256 of the file, for the manifest; nothing if there is none.
    """
    path = folder / name_now(listed_files(folder) or {}, _NAME)
    by_dataset = read_json(path) if path.exists() else {}
    if fidelity is not None:
        by_dataset = {**by_dataset, fingerprint: asdict(fidelity)}
    return write_anew(folder, _NAME, lambda path: write_json(path, by_dataset)) if by_dataset else {}


def read_fidelity(store: Store) -> Mapping[str, Fidelity]:
    """By fingerprint of a dataset in the store.

    Raises:
        StoreCorrupt: If the file is not what a build writes.
    """
    name = name_now(store.files, _NAME)
    if name not in store.files:
        return {}
    path = store.folder / name
    by_dataset = read_json(path)
    try:
        return {name: record_of(Fidelity, content) for name, content in by_dataset.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise StoreCorrupt(**damaged(path, f"it is not what a build writes: {error}")) from error


def fidelity_notes(store: Store) -> tuple[str, ...]:
    """What an answer says of it."""
    by_dataset = read_fidelity(store)
    datasets = store.datasets()
    notes = []
    for name, rows in datasets:
        if name in by_dataset:
            notes.append(f"{by_dataset[name]}" + (f" ({rows:,} rows)" if len(datasets) > 1 else ""))
    return (*notes, *_rebuild_notes([by_dataset[name] for name, _ in datasets if name in by_dataset]))


def _rebuild_notes(by_age: Sequence[Fidelity]) -> tuple[str, ...]:
    """Whether rows that were added are scored less well, beyond chance, than those that the code was learned for."""
    first, *added = [fidelity.learned or fidelity.others for fidelity in by_age] or [None]
    low = first.spearman[0] if first else 0.0
    worse = [agreement.spearman[0] for agreement in added if agreement and first and agreement.spearman[2] < first.spearman[1]]
    if not worse:
        return ()
    return (
        f"rows that were added agree less with exact scores (Spearman {min(worse):.3f}) than those that the code was learned for "
        f"({low:.3f}): `whence refit`, which learns the code again from all of them, would score them better",
    )
