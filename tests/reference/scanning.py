"""What a scan finds, from one table of all scores and sorts that anyone can read."""


def strongest(scores_QN, k, sign, keep=None):
    """Per query the k best (score, row), by score and then by row; only of rows that may be hits."""
    found = []
    for query, scores_N in enumerate(scores_QN.tolist()):
        rows = [row for row in range(len(scores_N)) if keep is None or query not in keep or keep[query][row]]
        pairs = sorted((-sign * scores_N[row], row) for row in rows)[:k]
        found.append([(-sign * score, row) for score, row in pairs])
    return found


def group_sums(scores_QN, group_N, count):
    """Per query and group the sums of its positive and of its negative scores."""
    up = [[0.0] * count for _ in scores_QN]
    down = [[0.0] * count for _ in scores_QN]
    for query, scores_N in enumerate(scores_QN.tolist()):
        for row, score in enumerate(scores_N):
            (up if score > 0 else down)[query][group_N[row]] += score
    return up, down
