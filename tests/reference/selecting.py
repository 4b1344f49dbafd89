"""Slow, obvious twins of what curation does."""

import math
from fractions import Fraction


def water_level(amount, weights, caps):
    """Fill all groups at a speed in proportion to their weights, a full one stops; exact amounts as fractions."""
    given = [Fraction(0)] * len(weights)
    left = Fraction(min(amount, sum(cap for weight, cap in zip(weights, caps, strict=True) if weight > 0)))
    while left > 0:
        open_groups = [g for g, cap in enumerate(caps) if weights[g] > 0 and given[g] < cap]
        speed = sum(Fraction(weights[g]) for g in open_groups)
        # Until the first is full, or nothing is left.
        time = min([left / speed, *((caps[g] - given[g]) / Fraction(weights[g]) for g in open_groups)])
        for g in open_groups:
            given[g] += time * Fraction(weights[g])
        left -= time * speed
    return given


def choose(values, names, sizes, quotas):
    """Ids of what is taken, one example after the other."""
    room, taken = dict(quotas), set()
    for place in sorted(range(len(values)), key=lambda i: (-values[i], i)):
        if sizes[place] <= room[names[place]]:
            room[names[place]] -= sizes[place]
            taken.add(place)
    return taken


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def leaders(rows, least):
    """Place of every row's leader: the nearest earlier leader that is near enough, else its own."""
    found = []
    for place, row in enumerate(rows):
        near = [(cosine(row, rows[other]), -other) for other in sorted(set(found)) if cosine(row, rows[other]) >= least]
        found.append(-max(near)[1] if near else place)
    return found


def lloyd(rows, centers):
    """Labels of spherical k-means, row by row."""
    labels = None
    while True:
        fresh = [max(range(len(centers)), key=lambda c: (cosine(row, centers[c]), -c)) for row in rows]
        if fresh == labels:
            return labels
        labels = fresh
        centers = [
            [sum(row[k] for row, label in zip(rows, labels, strict=True) if label == c) for k in range(len(rows[0]))]
            for c in range(len(centers))
        ]
