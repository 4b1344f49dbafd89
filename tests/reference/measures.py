"""Measures as their definitions read, with loops over pairs, queries and draws."""


def overlap(first, second, k):
    """Share of the k best in common, of two rows."""
    best = [set(sorted(range(len(row)), key=lambda place: -row[place])[:k]) for row in (first.tolist(), second.tolist())]
    return len(best[0] & best[1]) / k
