"""The page of a study."""

from html import escape
from math import asinh, isnan, log10, sinh
from pathlib import Path

from whence.report import Point, bars_section, heat_section, hits_fragment, plot_section, table_section, write_page
from whence.study.copied import COPIED_HEADER
from whence.study.kinds import KindShare
from whence.study.readouts import Histograms
from whence.study.recall import RECALL_HEADER
from whence.study.result import SIDES, Reading, Study
from whence.study.side_by_side import SIDE_HEADER

__all__ = ["write_study"]

# Documents per side of a query, and kinds per tail, that a page shows; study.json has them all.
_HITS, _KINDS = 5, 8
_WORDS = {
    "top": "documents whose weight raises the measurement most",
    "bottom": "documents whose weight lowers the measurement most",
}


def write_study(path: Path, study: Study) -> Path:
    """Write it.

    Args:
        path: The file.
        study: What to show.

    Returns:
        The path written.
    """
    cautions = "".join(_prose(f"<strong>{escape(caution)}.</strong>") for caution in study.cautions())
    sections = [("In short", cautions + _prose(_SHORT) + table_section(study.header, study.cells()))]
    for reading in study.readings.values():
        sections += _reading(study, reading)
    if study.recall:
        cells = [recall.cells() for recall in study.recall]
        sections.append(("What the strongest documents say", _prose(_RECALL) + table_section(RECALL_HEADER, cells)))
    if study.sides:
        cells = [side.cells() for side in study.sides]
        sections.append(("Beside another model", _prose(_SIDES) + table_section(SIDE_HEADER, cells)))
    if study.beside:
        sections.append(("What is copied", _prose(_COPIED) + table_section(COPIED_HEADER, study.copied())))
    sections.append(("Strongest documents of each query", _prose(_DOCUMENTS) + hits_fragment(study.hits(k=_HITS))))
    norms = f" The norm of a document is {study.corpus.norm}." if study.corpus.norm else ""
    intro = (
        f"{len(study.query_ids):,} queries in {len(study.sets):,} sets, {len(study.corpus):,} documents of {study.num_kinds:,} kinds, "
        f"{study.corpus.method}. Tails are {study.k:,} documents on each side of each query.{norms}"
    )
    return write_page(path, "Where sets of queries come from", sections, intro=intro)


_SHORT = (
    "Scores are divided by the query's loss (per nat), so that long completions compare with short ones; in the second reading also by "
    "the document's norm, so that documents with large gradients do not come first for every query. Alike within: mean rank "
    "correlation of two queries of the set over the whole corpus, with a 95 % interval over queries; outside: of a query of the set "
    "with one of another set. In the top 1 %: the share of a query's positive influence that one document in a hundred holds. Power of "
    "rank: by which power of the rank scores fall in the top tail."
)
_PEARSON = (
    "The same by the scores themselves, as published: Pearson's correlation, which a few documents of large scores decide. Where it is large "
    "and that of the ranks is not, queries share their strongest documents and nothing else."
)
_HEAT = (
    "One square per pair of queries: how alike they rank all documents. A strong block on the diagonal is a set that draws on "
    "shared documents."
)
_KINDS_TEXT = (
    "How often a kind of document is in a tail, over how often it would be if kinds did not matter: 1 is the corpus share. Intervals are "
    "over the set's queries. The table says what chance gives, with the kinds dealt anew; only a ratio beyond that speaks, and of many "
    "kinds a few are beyond it by chance."
)
_MASS = "What share of all positive influence the most influential documents hold, mean over the set's queries with a 95 % interval."
_HISTOGRAM = "All scores of all queries of a set. The scale across is even near zero and counts powers of ten far from it."
_RECALL = (
    "Of the answers, and of the steps to them, that queries say: the share that one of the documents of the top tail has, with a 95 % "
    "interval over queries; the same for the first documents by BM25, and what as many random documents would have."
)
_SIDES = "The same queries and documents with two models: how alike the two rank all documents for one query, and the tails that they share."
_COPIED = (
    "Words copied: the share of the queries' words that stand in the corpus in runs of four or more. Of the documents in the top tails, per "
    "nat: copied share such a run with the query, related are among the first one in a hundred (and ten at least) by BM25, the others are "
    "only influential."
)
_DOCUMENTS = "The order is per nat; scores are as they were made."


def _reading(study: Study, reading: Reading) -> list[tuple[str, str]]:
    ends = f", {reading.name}"
    correlation = reading.correlation
    groups = [(name, len(rows)) for name, rows in study.sets.items()]
    heat = heat_section(
        "Spearman correlation; blue is alike, orange opposite", correlation.matrix_QQ.tolist(), groups, names=study.query_ids
    )
    pearson = heat_section(
        "Pearson correlation; blue is alike, orange opposite",
        reading.pearson.matrix_QQ.tolist(),
        groups,
        names=study.query_ids,
    )
    bars = [
        (
            block.first if block.first == block.second else f"{block.first} - {block.second}",
            block.mean.mean,
            *_ends(block.mean.mean, block.mean.low, block.mean.high),
        )
        for block in correlation.blocks
        if block.pairs
    ]
    means = bars_section("Mean correlation of pairs of queries", bars, "95 % interval over queries") if bars else ""
    tested = ""
    if not isnan(correlation.p_value):
        tested = _prose(
            f"Pairs of one set correlate by {correlation.difference:.3f} more than pairs of different sets; dealing the queries to sets at "
            f"random gives as much in a share of {correlation.p_value:.3f} of the draws."
        )
    mass = {
        name: [Point(100 * share, block.mean, *_open(block.low, block.high)) for share, block in _with_interval(reading, rows)]
        for name, rows in study.sets.items()
    }
    sections = [
        (f"Which queries rank alike{ends}", _prose(_HEAT) + heat + means + tested + _prose(_PEARSON) + pearson),
        (f"Kinds of document in the tails{ends}", _prose(_KINDS_TEXT) + _kinds(study, reading)),
    ]
    if any(mass.values()):
        plot = plot_section(
            "Share of positive influence", {name: points for name, points in mass.items() if points},
            across="most influential documents (% of corpus)", upwards="share of positive influence", log_across=True,
        )  # fmt: skip
        sections.append((f"How few documents hold the influence{ends}", _prose(_MASS) + plot))
    sections.append((f"All scores{ends}", _prose(_HISTOGRAM) + _histogram(reading.histograms, list(study.sets))))
    return sections


def _with_interval(reading: Reading, rows: range) -> list:
    pairs = zip(reading.mass.shares, reading.mass.of(rows), strict=True)
    return [(share, summary) for share, summary in pairs if not isnan(summary.mean)]


def _kinds(study: Study, reading: Reading) -> str:
    parts = []
    for name in study.sets:
        for side in SIDES:
            of_side = [share for share in reading.kinds if share.set == name and share.side == side]
            # What is least likely to be chance, not the largest ratio: that is a rare kind, met once.
            shown = sorted(of_side, key=lambda share: -abs(share.found - share.expected) / max(share.expected, 1.0) ** 0.5)[
                :_KINDS
            ]
            shown.sort(key=lambda share: -share.ratio.mean)
            # Kinds that were not found stand in the table only, beside what chance gives.
            bars = [
                (share.kind, share.ratio.mean, *_ends(share.ratio.mean, share.ratio.low, share.ratio.high))
                for share in shown
                if share.found
            ]
            parts.append(bars_section(f"{name}, {side}: {_WORDS[side]}", bars, "times the corpus share"))
            parts.append(f"<details><summary>Numbers</summary>{_kind_table(shown)}</details>")
    return "".join(parts)


def _kind_table(shown: list[KindShare]) -> str:
    header = ("kind", "in corpus", "found", "expected", "ratio", "chance", "beyond chance")
    rows = [
        (
            share.kind, share.documents, share.found, share.expected, share.ratio.mean, f"{share.chance[0]:.2f} to {share.chance[1]:.2f}",
            "yes" if share.is_beyond_chance else "no",
        )
        for share in shown
    ]  # fmt: skip
    return table_section(header, rows)


def _histogram(histograms: Histograms, names: list[str]) -> str:
    """Counts on a logarithmic scale over values on that of the bins."""
    edges = [asinh(float(edge) / histograms.unit) for edge in histograms.edges_B]
    counts = histograms.counts_SB.tolist()
    series = {
        name: [Point((a + b) / 2, log10(count)) for a, b, count in zip(edges, edges[1:], row, strict=False) if count]
        for name, row in zip(names, counts, strict=True)
    }
    powers = [10.0**power for power in range(int(log10(max(sinh(edges[-1]), 1))) + 1)]
    sizes = [-power for power in reversed(powers)] + [0.0, *powers]
    most = max(max(row) for row in counts)
    return plot_section(
        f"Documents per bin; 1 across is {histograms.unit:.3g}, the median size of a score", series,
        across="score, in multiples of the median size", upwards="documents per bin",
        marks_across={asinh(size): f"{size:g}" for size in sizes},
        marks_upwards={float(power): f"{10**power:,}" for power in range(len(str(most)))},
    )  # fmt: skip


def _ends(mean: float, low: float, high: float) -> tuple[float, float]:
    """For bars: without an interval, the mean itself."""
    return (mean, mean) if isnan(low) or isnan(high) else (low, high)


def _open(low: float, high: float) -> tuple[float | None, float | None]:
    return (None, None) if isnan(low) or isnan(high) else (low, high)


def _prose(text: str) -> str:
    return f"<p>{text}</p>"
