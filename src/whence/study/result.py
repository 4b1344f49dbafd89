"""What a study found, as data.

Axes: Q queries, K documents of a tail, N documents.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence.report import Beside, Hits
from whence.study.copied import copied_cells
from whence.study.correlation import Correlation
from whence.study.kept_scores import Corpus, StoredScores
from whence.study.kinds import KindShare
from whence.study.readouts import Histograms, Mass, Tails
from whence.study.recall import Recall
from whence.study.side_by_side import Side

__all__ = ["Reading", "Study"]

SIDES = ("top", "bottom")
# Of a set; draws of two queries are the same query twice half of the time, so there is no interval to be had from them.
_FEW = 2


@dataclass(frozen=True)
class Reading:
    """Everything that is read off one normalisation of the scores.

    Args:
        name: "per nat", or "per nat and norm".
        tails: Strongest documents of each query.
        mass: How few documents hold the positive influence.
        histograms: Of all values, by set.
        correlation: Between queries, of ranks.
        pearson: The same of the scores themselves, as published.
        kinds: Kinds of document in the tails, by set and side.
    """

    name: str
    tails: Tails
    mass: Mass
    histograms: Histograms
    correlation: Correlation
    pearson: Correlation
    kinds: tuple[KindShare, ...]


@dataclass(frozen=True)
class Study:
    """What a study found; `whence.study.study` also writes it as study.json and study.html.

    Args:
        folder: Where it and all scores are.
        sets: Rows of the queries of each set.
        query_ids: Set and id of each query.
        texts: Text of each query, or its id.
        nats: What each query's scores are divided by: its loss, which for a language model is the nats of its completion.
        measurements: Of each query.
        readings: By normalisation: "per nat" and, unless the method divides by norms itself, "per nat and norm".
        scores: All scores and the documents' norms, on disk.
        corpus: The documents.
        num_kinds: Kinds of document.
        k: Documents of a tail.
        measurement_unit: What measurements are counted in.
        beside: What is copied and what is related by words, by query; empty if nobody looked.
        recall: How much of what was sought is in the top tails; empty if nothing was.
        sides: Comparison with a study of another model.
    """

    folder: Path
    sets: Mapping[str, range]
    query_ids: tuple[str, ...]
    texts: tuple[str, ...]
    nats: tuple[float, ...]
    measurements: tuple[float, ...]
    readings: Mapping[str, Reading]
    scores: StoredScores
    corpus: Corpus
    num_kinds: int
    k: int
    measurement_unit: str
    beside: tuple[Beside, ...] = ()
    recall: tuple[Recall, ...] = ()
    sides: tuple[Side, ...] = ()

    header = ("reading", "set", "queries", "nats", "alike within", "alike outside", "in the top 1 %", "power of rank")

    def cautions(self) -> tuple[str, ...]:
        """What there are too few queries for, in words; empty if there are enough."""
        few = [name for name, rows in self.sets.items() if len(rows) <= _FEW]
        if not few:
            return ()
        return (
            f"{_FEW} queries or fewer in {', '.join(few)}: too few for an interval of how alike they rank, or of the kinds in their "
            "tails, and a mean over two is hardly known; such sets may differ by chance. Ask 5 or more of each",
        )

    def cells(self) -> list[tuple[str, ...]]:
        """One row of text per reading and set, to go under `header`."""
        rows = []
        for reading in self.readings.values():
            for name, queries in self.sets.items():
                blocks = reading.correlation.blocks
                within = next(
                    block.mean.brief if block.pairs else "" for block in blocks if block.first == block.second == name
                )
                outside = [block for block in blocks if (block.first == name) != (block.second == name)]
                pairs = sum(block.pairs for block in outside)
                between = f"{sum(block.mean.mean * block.pairs for block in outside) / pairs:.2g}" if pairs else ""
                mass = dict(zip(reading.mass.shares, reading.mass.of(queries), strict=True)).get(0.01)
                nats = sum(self.nats[row] for row in queries) / len(queries)
                rows.append(
                    (
                        reading.name,
                        name,
                        str(len(queries)),
                        f"{nats:.1f}",
                        within,
                        between,
                    )
                    + (_cell(None if mass is None else mass.mean, ".0%"), _cell(reading.mass.slope(queries).mean, ".2g"))
                )
        return rows

    def hits(self, reading: str = "per nat", *, k: int | None = None) -> Hits:
        """The tails of every query as rankings with their texts; scores are raw, the order is the reading's.

        Args:
            reading: Its name.
            k: Documents on each side at most; None for all of the tail.
        """
        tails, sides = self.readings[reading].tails, []
        for side, sign in (("top", 1), ("bottom", -1)):
            rows_QK, values_QK = tails.side(side)
            sides.append(
                tuple(
                    tuple(
                        self.corpus.document(row, self._raw(query, row, value, reading))
                        for row, value in list(zip(rows, values, strict=True))[:k]
                        if value * sign > 0
                    )
                    for query, (rows, values) in enumerate(zip(rows_QK.tolist(), values_QK.tolist(), strict=True))
                )
            )
        return Hits(
            self.texts, sides[0], sides[1], self.measurements, self.corpus.unit, self.corpus.method, len(self.corpus),
            self.corpus.notes, self.measurement_unit, beside=self.beside,
        )  # fmt: skip

    def copied(self, reading: str = "per nat") -> list[tuple[str, ...]]:
        """How much is copied, to go under `whence.study.copied.COPIED_HEADER`; empty if nobody looked."""
        return copied_cells(self.beside, self.readings[reading].tails, self.sets) if self.beside else []

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, as study.json holds them."""
        return {
            "method": self.corpus.method,
            "unit": self.corpus.unit,
            "notes": [*self.cautions(), *self.corpus.notes],
            "num_documents": len(self.corpus),
            "num_kinds": self.num_kinds,
            "document_norm": self.corpus.norm or None,
            "k": self.k,
            "sets": {name: [self.query_ids[row] for row in rows] for name, rows in self.sets.items()},
            "queries": [
                {"id": name, "text": text, "nats": nats, "measurement": measured}
                for name, text, nats, measured in zip(self.query_ids, self.texts, self.nats, self.measurements, strict=True)
            ],
            "readings": {
                name: {
                    "tails": self._tails(reading),
                    "positive_mass": reading.mass.to_dict(self.sets),
                    "histograms": reading.histograms.to_dict(self.sets),
                    "correlation": reading.correlation.to_dict(),
                    "pearson": reading.pearson.to_dict(),
                    "kinds": [kind.to_dict() for kind in reading.kinds],
                }
                for name, reading in self.readings.items()
            },
            **({"recall": [recall.to_dict() for recall in self.recall]} if self.recall else {}),
            **({"side_by_side": [side.to_dict() for side in self.sides]} if self.sides else {}),
            **({"beside": [beside.to_dict() for beside in self.beside]} if self.beside else {}),
        }

    def _tails(self, reading: Reading) -> list[dict[str, Any]]:
        tails: list[dict[str, Any]] = [{"query": name} for name in self.query_ids]
        for side in SIDES:
            rows_QK, values_QK = reading.tails.side(side)
            for query, (rows, values) in enumerate(zip(rows_QK.tolist(), values_QK.tolist(), strict=True)):
                tails[query][side] = [
                    {"id": hit.id, "source": hit.source, "row": row, "value": value, "score": hit.score}
                    | ({"norm": float(self.scores.norms_N[row])} if self.scores.has_norms else {})
                    for row, value in zip(rows, values, strict=True)
                    for hit in [self.corpus.document(row, self._raw(query, row, value, reading.name))]
                ]
        return tails

    def _raw(self, query: int, row: int, value: float, reading: str) -> float:
        """The score that a value was made from."""
        return value * self.nats[query] * (float(self.scores.norms_N[row]) if reading.endswith("norm") else 1.0)


def _cell(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, form)
