"""How long a shortlist has to be, by how far a store's scores agree with exact ones."""

from whence.score import expected_recall, shortlist_for
from whence.store import Store, read_fidelity

__all__ = ["recall_note", "shortlist_wanted"]

_BEST, _RECALL = 100, 0.95


def shortlist_wanted(store: Store) -> int:
    """Rows of each side that are expected to hold 95 % of the best 100; 0 where nothing was measured."""
    correlation = _correlation(store)
    return 0 if correlation is None else shortlist_for(_RECALL, correlation, len(store), min(_BEST, len(store)))


def recall_note(store: Store, shortlist: int) -> tuple[str, ...]:
    """What an answer says of the share of the best that it holds."""
    correlation, best = _correlation(store), min(_BEST, len(store))
    if correlation is None:
        return ()
    recall = expected_recall(correlation, len(store), best, min(shortlist, len(store)))
    return (
        f"expected to hold {recall:.0%} of the {best:,} strongest of each side, from a correlation of {correlation:.2f} with exact scores",
    )


def _correlation(store: Store) -> float | None:
    """Measured when the store was built, mean over its rows: on documents that nothing was learned from where there are any."""
    by_dataset = read_fidelity(store)
    total, weighed = 0, 0.0
    for name, rows in store.datasets():
        fidelity = by_dataset.get(name)
        agreement = fidelity and (fidelity.others or fidelity.learned)
        if agreement:
            total, weighed = total + rows, weighed + rows * max(0.0, agreement.pearson[0])
    return weighed / total if total else None
