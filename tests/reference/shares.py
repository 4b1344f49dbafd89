"""Shares the slow way: dictionaries, one example at a time, and fractions instead of floats where it can be."""

import math
import statistics
from fractions import Fraction


def query_shares(scores, owners, *, rule="positive", temperature=None, floor=None, floor_errors=None):
    """By line the share of one query; `scores` has a list per model, `owners` a name per example or None for unknown.

    Without a floor and a number of errors the floor is that of the scores' own spread.
    """
    values = {}
    means = [sum(Fraction(model[n]) for model in scores) / len(scores) for n in range(len(owners))]
    spread = statistics.pstdev(float(mean) for mean in means)
    if floor is None and floor_errors is None:
        sigma = statistics.median(abs(float(mean)) for mean in means) / statistics.NormalDist().inv_cdf(0.75)
        floor = sigma * math.sqrt(2 * math.log(len(means))) if len(means) >= 50 else "off"
    for n, owner in enumerate(owners):
        line = ("unknown", "") if owner is None else ("source", owner)
        if floor not in (None, "off") and abs(means[n]) < floor:
            line = ("noise", "")
        if floor_errors is not None:
            error = statistics.stdev(float(model[n]) for model in scores) / math.sqrt(len(scores))
            if abs(means[n]) < floor_errors * error:
                line = ("noise", "")
        if rule == "softmax":
            value = Fraction(math.exp(float(means[n] - max(means)) / (temperature * spread))) if spread else Fraction(0)
        else:
            value = max(means[n], 0) if rule == "positive" else means[n]
        values[line] = values.get(line, Fraction(0)) + value
    values = {line: max(value, Fraction(0)) for line, value in values.items()}
    total = sum(values.values())
    if total == 0:
        return {("none", ""): Fraction(1)}
    return {line: value / total for line, value in values.items()}


def total_shares(per_query, weights):
    """Mean over queries by weight."""
    total = {}
    for shares, weight in zip(per_query, weights, strict=True):
        for line, share in shares.items():
            total[line] = total.get(line, Fraction(0)) + Fraction(weight) * share
    return {line: share / sum(map(Fraction, weights)) for line, share in total.items()}


def largest_remainders(total, parts):
    """An amount split over parts, unit by unit."""
    quotas = [Fraction(total) * Fraction(part) / sum(map(Fraction, parts)) for part in parts]
    given = [math.floor(quota) for quota in quotas]
    while sum(given) < total:
        lag = [quota - each if each == math.floor(quota) else Fraction(-1) for quota, each in zip(quotas, given, strict=True)]
        given[lag.index(max(lag))] += 1
    return given
