"""Readings of a study from a whole table in memory, one definition after the other."""

import numpy as np
from scipy import stats


def values(scores_QN, nats_Q, norms_N=None):
    per_nat = scores_QN / nats_Q[:, None]
    return per_nat if norms_N is None else per_nat / norms_N


def tail(values_N, k, *, top):
    order = sorted(range(len(values_N)), key=lambda row: (-values_N[row] if top else values_N[row], row))
    return order[:k]


def mass(values_N, share):
    positive = sorted((value for value in values_N if value > 0), reverse=True)
    count = int(np.ceil(share * len(values_N)))
    return sum(positive[:count]) / sum(positive)


def slope(values_N, k):
    highest = [values_N[row] for row in tail(values_N, k, top=True) if values_N[row] > 0]
    return stats.linregress(np.log(np.arange(1, len(highest) + 1)), np.log(highest)).slope


def correlations(values_QN):
    return np.array([[stats.spearmanr(a, b).statistic for b in values_QN] for a in values_QN])


def ratio(tails, kinds, kind):
    found = sum(kinds[row] == kind for rows in tails for row in rows)
    drawn = sum(len(rows) for rows in tails)
    return (found / drawn) / (sum(one == kind for one in kinds) / len(kinds))


def pearson(values):
    """Of every pair of rows."""
    return np.corrcoef(values)
