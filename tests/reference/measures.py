"""Measures as their definitions read, with loops over pairs, queries and draws."""


def overlap(first, second, k):
    """Share of the k best in common, of two rows."""
    best = [set(sorted(range(len(row)), key=lambda place: -row[place])[:k]) for row in (first.tolist(), second.tolist())]
    return len(best[0] & best[1]) / k


def fit(predicted, actual):
    """Pooled slope and correlation of the pairs, each query centred, subsets in rows."""
    centred = [values - values.mean(0) for values in (predicted, actual)]
    product, square, other = (float((x * y).sum()) for x, y in ((*centred,), (centred[0],) * 2, (centred[1],) * 2))
    return product / square, product / (square * other) ** 0.5


def auc(scores, positive):
    """Share of (positive, negative) pairs in the right order, ties for a half."""
    pairs = [
        (a, b)
        for a, is_a in zip(scores, positive, strict=True)
        if is_a
        for b, is_b in zip(scores, positive, strict=True)
        if not is_b
    ]
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)


def average_precision(scores, positive):
    """Sum over thresholds, highest first, of the gain in recall times the precision there."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        above = [is_positive for score, is_positive in zip(scores, positive, strict=True) if score >= threshold]
        recall = sum(above) / sum(positive)
        total += (recall - before) * sum(above) / len(above)
        before = recall
    return total


def gold_ranks(scores, gold):
    """Ranks of the gold documents in a list sorted by score, where gold ones come last among equals."""
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], place in gold))
    return [number + 1 for number, place in enumerate(order) if place in gold]
