"""The answer to a query: ranked examples, with what it takes to show, print and save them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from whence.report.beside import Beside
from whence.report.html import hits_fragment
from whence.report.terminal import print_hits

__all__ = ["ClassLabel", "Hit", "Hits", "QueryFacts"]


@dataclass(frozen=True)
class ClassLabel:
    """What an example is said to be, and what the model makes of it.

    Args:
        label: Name of its class, or its number where classes have no names.
        predicted: The class that the model sees; empty where nobody looked.
    """

    label: str
    predicted: str = ""

    @property
    def is_disputed(self) -> bool:
        """Whether the model sees another class than the label says."""
        return bool(self.predicted) and self.predicted != self.label

    def fields(self) -> dict[str, str]:
        """As a store keeps it with an example."""
        return {"label": self.label, **({"predicted": self.predicted} if self.predicted else {})}


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
        query_scores: One score per token of the query, `Hits.query_tokens`, adding up to the example's score; empty unless asked for.
        label: Of a classifier's example: its label, and what the model saw in it when the store was built.
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
    label: ClassLabel | None = None
    query_scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class QueryFacts:
    """What else is known of a query.

    Args:
        record: What was asked with, as far as JSON holds it: its id, prompt and completion, and whatever else its record has.
        label: Of a classifier's query: the label that was asked about, and what the model sees.
    """

    record: Mapping[str, Any]
    label: ClassLabel | None = None


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
        facts: What else is known of each query; empty if nothing is.
        beside: What is copied and what is related, by words, see `beside_hits`; empty if nobody looked.
        query_tokens: Per query the texts of its scored tokens, for which hits have `query_scores`; empty where they have none.
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
    facts: tuple[QueryFacts, ...] = ()
    beside: tuple[Beside, ...] = ()
    query_tokens: tuple[tuple[str, ...], ...] = ()

    def label_of(self, query: int) -> ClassLabel | None:
        """The label that a query asks about; None without one."""
        return self.facts[query].label if self.facts else None

    def tokens_of(self, query: int) -> tuple[str, ...]:
        """Texts of a query's scored tokens; empty where its hits have no score for them."""
        return self.query_tokens[query] if self.query_tokens else ()

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
                    **self._facts_dict(number),
                    "measurement": measurement,
                    "proponents": [_hit_dict(hit) for hit in up],
                    "opponents": [_hit_dict(hit) for hit in down],
                    **({"beside": self.beside[number].to_dict()} if self.beside else {}),
                    **({"query_tokens": list(self.tokens_of(number))} if self.tokens_of(number) else {}),
                }
                for number, (query, measurement, up, down) in enumerate(
                    zip(self.queries, self.measurements, self.proponents, self.opponents, strict=True)
                )
            ],
        }

    def _facts_dict(self, query: int) -> dict[str, Any]:
        if not self.facts:
            return {}
        return {"question": dict(self.facts[query].record), **_label_dict(self.facts[query].label)}

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
    fields |= _label_dict(hit.label)
    if hit.token_scores:
        fields["tokens"] = [
            {"span": list(span), "score": score} for span, score in zip(hit.token_spans, hit.token_scores, strict=True)
        ]
    if hit.query_scores:
        fields["query_scores"] = list(hit.query_scores)
    return fields


def _label_dict(label: ClassLabel | None) -> dict[str, Any]:
    if label is None:
        return {}
    return {**label.fields(), **({"is_disputed": label.is_disputed} if label.predicted else {})}
