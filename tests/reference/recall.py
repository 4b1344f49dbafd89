"""Recall of a shortlist by drawing scores."""

import torch


def drawn_recall(correlation: float, documents: int, best: int, shortlist: int, draws: int = 40) -> float:
    """Mean over draws of pairs of normal scores."""
    made, total = torch.Generator().manual_seed(0), 0.0
    for _ in range(draws):
        exact = torch.randn(documents, generator=made)
        found = correlation * exact + (1 - correlation**2) ** 0.5 * torch.randn(documents, generator=made)
        kept = set(found.topk(shortlist).indices.tolist())
        total += len(kept & set(exact.topk(best).indices.tolist())) / best
    return total / draws
