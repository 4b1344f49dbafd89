"""The answer to a query: ranked examples, with what it takes to show, print and save them."""

from dataclasses import dataclass
from typing import Any, Literal

from whence.report.html import hits_fragment
from whence.report.terminal import print_hits

__all__ = ["Hit", "Hits"]


@dataclass(frozen=True)
class Hit:
    """One training example in a ranking.

    Args:
        id: Stable id of the example.
        row: Its row in the store.
        score: See `ScoreTable`.
        source: Where it comes from.
        text: Its text, if it has one.
        span: Characters of the source document that the text covers.
        token_spans: Characters of `text` per token; empty unless token scores were asked for.
        token_scores: One score per token, adding up to the example's score but for the rounding of stored rows.
        image: Path of its image, if it has one in a file.
    """

    id: str
    row: int
    score: float
    source: str = ""
    text: str = ""
    span: tuple[int, int] | None = None
    token_spans: tuple[tuple[int, int], ...] = ()
    token_scores: tuple[float, ...] = ()
    image: str = ""


@dataclass(frozen=True)
class Hits:
    """The answer to a set of queries: the strongest examples on both sides.

    Args:
        queries: Text (or id) of each query.
        proponents: Per query, highest score first: examples that raise the measurement.
        opponents: Per query, lowest score first: examples that lower it.
        measurements: Value of each query's measurement under the model.
        unit: What one unit of score means.
        method: Name and settings of the method.
        notes: What a reader has to know, such as how damping was chosen.
        measurement_unit: What the measurements are counted in; the same as `unit` only for methods with curvature.
        stage: Where all of the scores are from: "scan", the rows of the store; "exact", the model run again on a shortlist of them; "store",
            a second store's rows of that shortlist.
        query_images: Path of each query's image, empty for those without one; empty if none has one.
    """

    queries: tuple[str, ...]
    proponents: tuple[tuple[Hit, ...], ...]
    opponents: tuple[tuple[Hit, ...], ...]
    measurements: tuple[float, ...]
    unit: str
    method: str
    num_examples: int
    notes: tuple[str, ...] = ()
    measurement_unit: str = ""
    stage: Literal["scan", "exact", "store"] = "scan"
    query_images: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as `--json` prints them."""
        return {
            "unit": self.unit,
            "measurement_unit": self.measurement_unit,
            "method": self.method,
            "stage": self.stage,
            "num_examples": self.num_examples,
            "notes": list(self.notes),
            "queries": [
                {
                    "query": query,
                    "measurement": measurement,
                    "proponents": [_hit_dict(hit) for hit in up],
                    "opponents": [_hit_dict(hit) for hit in down],
                }
                for query, measurement, up, down in zip(
                    self.queries, self.measurements, self.proponents, self.opponents, strict=True
                )
            ],
        }

    def show(self) -> None:
        """Print the ranking as a table in the terminal."""
        print_hits(self)

    def _repr_html_(self) -> str:
        return hits_fragment(self)


def _hit_dict(hit: Hit) -> dict[str, Any]:
    fields: dict[str, Any] = {"id": hit.id, "row": hit.row, "score": hit.score, "source": hit.source, "text": hit.text}
    if hit.span is not None:
        fields["span"] = list(hit.span)
    if hit.image:
        fields["image"] = hit.image
    if hit.token_scores:
        fields["tokens"] = [
            {"span": list(span), "score": score} for span, score in zip(hit.token_spans, hit.token_scores, strict=True)
        ]
    return fields
