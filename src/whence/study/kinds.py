"""Which kinds of document sit in the tails more often than in the corpus.

Axes: Q queries of a set, K documents of a tail, C kinds, N documents, U different documents of a tail, D draws.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.errors import BadInput
from whence.evaluate.statistics import Interval, bootstrap_interval, drawn_counts

__all__ = ["KindShare", "Kinds", "kind_shares", "kinds_of"]

_DRAWS = 1000
# Of kinds that no tail has, the commonest ones: their absence is news, that of rare ones is not.
_COMMON = 50


@dataclass(frozen=True)
class Kinds:
    """The kind of every document.

    Args:
        names: By number.
        codes_N: Number of each document's kind.
    """

    names: tuple[str, ...]
    codes_N: Tensor


@dataclass(frozen=True)
class KindShare:
    """One kind in one tail of one set.

    Args:
        set: Name of the set of queries.
        side: "top" or "bottom".
        kind: Name.
        documents: Documents of that kind in the corpus.
        found: Times that one is in the tail of a query of the set.
        expected: The same if kinds did not matter.
        ratio: Found over expected, with a 95 % bootstrap interval over the set's queries; without ends for one or two queries,
            and for a kind that was not found.
        chance: Where 95 % of the ratios lie if the kinds are dealt to the documents anew at random, the tails left as they are.
    """

    set: str
    side: str
    kind: str
    documents: int
    found: int
    expected: float
    ratio: Interval
    chance: tuple[float, float]

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the ratio lies outside of what chance gives, one kind looked at alone."""
        return not self.chance[0] <= self.ratio.mean <= self.chance[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "set": self.set, "side": self.side, "kind": self.kind, "documents": self.documents, "found": self.found,
            "expected": self.expected, "ratio": self.ratio.to_dict(), "chance": list(self.chance),
            "is_beyond_chance": self.is_beyond_chance,
        }  # fmt: skip


def kinds_of(documents: Iterable[Mapping[str, Any]], kinds: Mapping[str, str] | None) -> Kinds:
    """Number the kinds.

    Args:
        documents: Id and source of every document, in order.
        kinds: By id the kind; None takes the source.

    Returns:
        The kinds; a document without a source is of the kind "no source".

    Raises:
        BadInput: If a document has no kind.
    """
    numbers: dict[str, int] = {}
    codes = []
    for document in documents:
        name = document.get("source") or "no source" if kinds is None else kinds.get(document["id"])
        if name is None:
            raise BadInput(
                found=f"no kind of the document {document['id']!r}", needed="one for every id", do="add it, or leave kinds out"
            )
        codes.append(numbers.setdefault(str(name), len(numbers)))
    return Kinds(tuple(numbers), torch.tensor(codes))


def kind_shares(kinds: Kinds, tails_QK: Tensor, set_name: str, side: str, *, seed: int) -> list[KindShare]:
    """Compare one tail with the corpus.

    Args:
        kinds: Of all documents.
        tails_QK: Rows of the documents in the tail of each query of the set.
        set_name: For the result.
        side: For the result.
        seed: Of the draws.

    Returns:
        Kinds that the tail has and the commonest of the rest, most over-represented first.
    """
    num_queries, k = tails_QK.shape
    totals_C = torch.bincount(kinds.codes_N, minlength=len(kinds.names)).double()
    counts_QC = torch.stack([torch.bincount(kinds.codes_N[row_K], minlength=len(kinds.names)) for row_K in tails_QK]).double()
    common_C = totals_C.argsort(descending=True, stable=True)[:_COMMON]
    shown = sorted({*counts_QC.sum(0).nonzero()[:, 0].tolist(), *common_C.tolist()})
    counts_QC, totals_C = counts_QC[:, shown], totals_C[shown]
    expected_C = num_queries * k * totals_C / len(kinds.codes_N)
    drawn_DC = drawn_counts(num_queries, _DRAWS, torch.Generator().manual_seed(seed)) @ counts_QC / expected_C
    low_C, high_C = _chance(kinds, tails_QK, shown, seed) / expected_C
    shares = []
    for index, code in enumerate(shown):
        ratio = float(counts_QC[:, index].sum() / expected_C[index])
        # What no query has, no draw of queries has.
        is_told = num_queries > 2 and ratio > 0
        interval = bootstrap_interval(ratio, drawn_DC[:, index]) if is_told else Interval(ratio, math.nan, math.nan)
        shares.append(
            KindShare(
                set_name, side, kinds.names[code], int(totals_C[index]), int(counts_QC[:, index].sum()), float(expected_C[index]),
                interval, (float(low_C[index]), float(high_C[index])),
            )
        )  # fmt: skip
    return sorted(shares, key=lambda share: (-share.ratio.mean, -share.documents, share.kind))


def _chance(kinds: Kinds, tails_QK: Tensor, shown: Sequence[int], seed: int) -> Tensor:
    """Quantiles .025 and .975 of how often each kind is met with kinds dealt anew, shape (2, C).

    Only the different documents of the tails need new kinds, and those of random documents are such.
    """
    weights_U = torch.unique(tails_QK, return_counts=True)[1].double().numpy()
    generator = np.random.default_rng(seed)
    place_of = np.full(len(kinds.names), -1)
    place_of[list(shown)] = np.arange(len(shown))
    codes_N = place_of[kinds.codes_N.numpy()]
    drawn_DC = np.zeros((_DRAWS, len(shown)))
    for draw in drawn_DC:
        dealt_U = codes_N[generator.choice(len(codes_N), len(weights_U), replace=False)]
        draw += np.bincount(dealt_U[dealt_U >= 0], weights_U[dealt_U >= 0], minlength=len(shown))
    return torch.from_numpy(np.quantile(drawn_DC, [0.025, 0.975], axis=0))
