"""Signs of a payout that somebody tries to inflate: what was looked for, what was found, and what could not be looked at.

Axes: Q queries, N training examples, L lines.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from whence.evaluate import spearman
from whence.shares.shares import Shares

__all__ = ["Gaming", "Sign", "gaming_of"]

# A gradient this many robust standard deviations above the median, on the scale of logarithms, is an outlier.
_FAR = 4.0
_SIGMA = 1.4826
# Fewer near-identical queries than this are what people ask; of so much of all weight they are worth a look.
_FEWEST, _LEAST_WEIGHT = 3, 0.05
_NAMED = 5


@dataclass(frozen=True)
class Sign:
    """One thing that deserves a look; none proves an intention.

    Args:
        kind: "copies" (a source's documents that nearly repeat each other), "copied" (the same text under several sources), "long" (documents
            of one source with outlying gradients), "stuffed" (near-identical queries).
        source: Whose; of "stuffed" the source that gets most of them.
        count: Documents, or queries.
        part: Of "stuffed" their part of all weight; else the count's part of the source's documents.
        such_as: Ids, five at most.
        words: In a sentence.
    """

    kind: str
    source: str
    count: int
    part: float
    such_as: tuple[str, ...]
    words: str


@dataclass(frozen=True)
class Gaming:
    """What was looked for in a report.

    Args:
        signs: What was found, by kind and falling count.
        missing: What could not be looked for, in words.
        by_length: The control: by source the share that it would get of all named sources if an example counted with the length of its
            gradient, whatever is asked; empty where lengths are not known.
        agreement: Rank correlation of these with the shares (Spearman 1904); None with fewer than three sources.
    """

    signs: tuple[Sign, ...]
    missing: tuple[str, ...] = field(default=())
    by_length: Mapping[str, float] = field(default_factory=dict)
    agreement: float | None = None

    @property
    def control(self) -> str:
        """What the control says, in a sentence; empty where there is none."""
        if self.agreement is None:
            return ""
        return (
            f"by the lengths of gradients alone, whatever is asked, {len(self.by_length):,} sources rank as by their shares with a "
            f"correlation of {self.agreement:.2f} (1: the shares follow how long gradients are)"
        )

    def to_dict(self) -> dict[str, Any]:
        """For `shares.json`."""
        return {
            "signs": [asdict(sign) | {"such_as": list(sign.such_as)} for sign in self.signs],
            "not_looked_for": list(self.missing),
            "by_length_alone": dict(self.by_length),
            "agreement_with_lengths": self.agreement,
        }


def gaming_of(report: Shares) -> Gaming:
    """Look for the cheap ways to inflate a payout.

    Args:
        report: The shares, with `facts` as far as they are known.

    Returns:
        Signs, and what could not be looked for.
    """
    facts, missing = report.facts, []
    signs: list[Sign] = []
    source_of = {name: source for name, source in report.sources.items() if source}
    sizes = {line.name: line.examples for line in report.lines if line.kind == "source"}
    if facts is None or facts.repeats is None:
        missing.append("near-duplicates among the documents: their texts are not at hand")
    else:
        signs += _duplicates(source_of, sizes, dict(facts.repeats))
    if facts is None or facts.lengths is None:
        missing.append("outlying gradients: lengths are not at hand")
    else:
        signs += _long(source_of, sizes, dict(facts.lengths))
    by_length, agreement = _by_length(report, source_of)
    return Gaming((*signs, *_stuffed(report)), tuple(missing), by_length, agreement)


def _by_length(report: Shares, source_of: dict[str, str]) -> tuple[dict[str, float], float | None]:
    """What gradient lengths alone would pay the sources, and how alike that ranks them."""
    lengths = None if report.facts is None else report.facts.lengths
    if not lengths:
        return {}, None
    sums = {line.name: 0.0 for line in report.lines if line.kind == "source"}
    for name, source in source_of.items():
        if name in lengths:
            sums[source] += lengths[name]
    total = sum(sums.values())
    if total <= 0:
        return {}, None
    shares = [line.share for line in report.lines if line.kind == "source"]
    pair = torch.tensor([list(sums.values()), shares], dtype=torch.float64)
    agreement = float(spearman(pair[0], pair[1])) if len(sums) > 2 else None
    return {source: value / total for source, value in sums.items()}, agreement


def _duplicates(source_of: dict[str, str], sizes: dict[str, int], repeats: dict[str, str]) -> list[Sign]:
    sets: dict[str, list[str]] = {}
    for name in source_of:
        sets.setdefault(repeats.get(name, name), []).append(name)
    own: dict[str, list[str]] = {}
    shared: dict[str, list[str]] = {}
    for members in sets.values():
        counts = Counter(source_of[name] for name in members)
        for source, count in counts.items():
            mine = [name for name in members if source_of[name] == source]
            if count > 1:
                own.setdefault(source, []).extend(mine)
            if len(counts) > 1:
                shared.setdefault(source, []).extend(mine)
    copies = _by_source("copies", own, sizes, "nearly repeat each other")
    return copies + _by_source("copied", shared, sizes, "nearly repeat another source's, or are repeated there")


def _long(source_of: dict[str, str], sizes: dict[str, int], lengths: dict[str, float]) -> list[Sign]:
    positive = {name: length for name, length in lengths.items() if length > 0}
    if not positive:
        return []
    logs = np.log(np.array(list(positive.values())))
    median = float(np.median(logs))
    spread = _SIGMA * float(np.median(np.abs(logs - median)))
    far: dict[str, list[str]] = {}
    for name, length in positive.items():
        if name in source_of and np.log(length) > median + _FAR * spread:
            far.setdefault(source_of[name], []).append(name)
    times = float(np.exp(_FAR * spread))
    return _by_source("long", far, sizes, f"have gradients of more than {times:.3g} times the median length")


def _by_source(kind: str, ids_of: dict[str, list[str]], sizes: dict[str, int], words: str) -> list[Sign]:
    signs = []
    for source, ids in sorted(ids_of.items(), key=lambda item: (-len(item[1]), item[0])):
        size = max(sizes.get(source, 0), len(ids))
        signs.append(
            Sign(
                kind, source, len(ids), len(ids) / size, tuple(ids[:_NAMED]),
                f"{len(ids):,} of {size:,} documents of {source} {words}, such as {ids[0]}",
            )
        )  # fmt: skip
    return signs


def _stuffed(report: Shares) -> list[Sign]:
    weights_Q, total = report.weights, sum(report.weights)
    sets: dict[int, list[int]] = {}
    for query, leader in enumerate(report.leaders):
        sets.setdefault(leader, []).append(query)
    signs = []
    for members in sets.values():
        part = sum(weights_Q[query] for query in members) / total
        if len(members) < _FEWEST or part < _LEAST_WEIGHT:
            continue
        shares_L = report.shares[members].sum(0)
        line = max(
            (number for number, line in enumerate(report.lines) if line.kind == "source"),
            key=lambda number: float(shares_L[number]),
        )
        ids = tuple(report.query_ids[query] for query in members[:_NAMED])
        name = report.lines[line].name
        signs.append(
            Sign(
                "stuffed", name, len(members), part, ids,
                f"{len(members):,} queries ask nearly the same and are {part:.1%} of all weight, such as {ids[0]}; they pay {name} most",
            )
        )  # fmt: skip
    return sorted(signs, key=lambda sign: (-sign.part, sign.such_as))
