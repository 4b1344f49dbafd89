"""Robust shares the slow way: sets of documents, one at a time, in fractions."""

import math
import re
import statistics
from fractions import Fraction


def robust_shares(scores, owners, sets, floor, lengths=None):
    """By line the share of one query; `sets` has the first document that each one repeats, `lengths` those of gradients, 0 if unknown."""
    known = [length for length in lengths or () if length > 0]
    median = Fraction(statistics.median(known)) if known else None
    counts = {}
    values = {}
    for n, score in enumerate(scores):
        members = [m for m in range(len(scores)) if sets[m] == sets[n]]
        value = max(Fraction(score), Fraction(0))
        if abs(score) < floor:
            line = "noise"
        else:
            value /= len(members)
            line = "withheld" if len({owners[m] for m in members}) > 1 else owners[n] or "unknown"
        counts[n] = line, value
    total = sum(value for _, value in counts.values())
    for n, (line, value) in list(counts.items()):
        if median is not None and line not in ("noise", "withheld") and lengths[n] > median:
            members = [m for m in range(len(scores)) if sets[m] == sets[n]]
            alone = Fraction(floor) * (Fraction(lengths[n]) - median) / median / len(members)
            counts[n] = line, max(value - alone, Fraction(0))
            values["withheld"] = values.get("withheld", Fraction(0)) + min(alone, value)
    if total == 0:
        return {"none": Fraction(1)}
    for first in set(sets):
        members = [n for n in counts if sets[n] == first]
        paid = [n for n in members if counts[n][0] not in ("noise", "withheld")]
        sum_paid = sum(counts[n][1] for n in paid)
        part = min(Fraction(1), total / 4 / sum_paid) if sum_paid else Fraction(1)
        for n in members:
            line, value = counts[n]
            kept = value * part if n in paid else value
            values[line] = values.get(line, Fraction(0)) + kept
            values["withheld"] = values.get("withheld", Fraction(0)) + value - kept
    return {line: value / total for line, value in values.items()}


def robust_weights(weights, leaders):
    """What each query counts: no set more than a hundredth of all, or than its heaviest."""
    counted = []
    for query, weight in enumerate(weights):
        members = [Fraction(weights[n]) for n in range(len(weights)) if leaders[n] == leaders[query]]
        most = max(max(members), Fraction(sum(weights), 100))
        counted.append(Fraction(weight) * min(Fraction(1), most / sum(members)) if sum(members) else Fraction(0))
    return counted


def alike(profiles):
    """The first query with a cosine above .95 that shares one of the three strongest documents, the nearest of them."""
    leaders = []
    for n, mine in enumerate(profiles):
        best, most = n, 0.95
        for m in range(n):
            other = profiles[m]
            if leaders[m] == m and set(strongest(mine)) & set(strongest(other)):
                cosine = sum(a * b for a, b in zip(mine, other, strict=True)) / math.hypot(*mine) / math.hypot(*other)
                if cosine > most + 1e-12:
                    best, most = m, cosine
        leaders.append(best)
    return leaders


def strongest(scores):
    """The three highest positive ones."""
    return [n for n in sorted(range(len(scores)), key=lambda n: -scores[n])[:3] if scores[n] > 0]


def near(one, other):
    """Part of the word triples of both that they share."""
    mine, others = triples(one), triples(other)
    return len(mine & others) / len(mine | others) if mine and others else 0.0


def triples(text):
    """Three words in a row; of a shorter text all of them."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[n : n + 3]) for n in range(max(1, len(words) - 2))} if words else set()
