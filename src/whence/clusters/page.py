"""Clusters for people: in the terminal, and as a page."""

from html import escape
from pathlib import Path

from whence.clusters.clusters import Cluster, Clusters
from whence.report import print_table, table_section, write_page

__all__ = ["show_clusters", "write_clusters"]

_TEXT, _SHORT = 400, 60


def show_clusters(clustering: Clusters) -> None:
    """One line per cluster on stdout."""
    has_queries = any(cluster.helps or cluster.harms for cluster in clustering.clusters)
    header = ("", "cluster", "examples", "tightness", "most central", *(("helps", "harms") if has_queries else ()))
    rows = []
    for number, cluster in enumerate(clustering.clusters):
        near = cluster.central[0]
        row = [number, cluster.name, cluster.size, f"{cluster.tightness:.2f}", near.source or near.id]
        if has_queries:
            row += [_queries(cluster.helps[:2]), _queries(cluster.harms[:2])]
        rows.append(row)
    print_table(header, rows)


def write_clusters(path: str | Path, clustering: Clusters, *, title: str = "What is in this corpus?") -> Path:
    """Write the page: a table of all clusters, and of each its words, sources, queries and most central examples.

    Args:
        path: The file.
        clustering: The clusters.
        title: Heading.

    Returns:
        The path written.
    """
    header = ("cluster", "examples", "tightness", "sources", "helps")
    rows = [
        (cluster.name, cluster.size, cluster.tightness, _sources(cluster), _queries(cluster.helps))
        for cluster in clustering.clusters
    ]
    sections = [("All clusters", table_section(header, rows))]
    sections += [(f"{number}. {cluster.name}", _section(cluster)) for number, cluster in enumerate(clustering.clusters)]
    without = sum(label < 0 for label in clustering.labels)
    intro = (
        f"{len(clustering.ids):,} training examples in {len(clustering.clusters)} clusters. Two examples are in one cluster when training on "
        "either moves the model the same way, whatever words they use. Tightness is how alike they are: 1 if all do the same, near 0 if "
        "there is little that they share."
    )
    if without:
        intro += f" {without:,} examples teach nothing any more and are in none."
    return write_page(path, title, sections, intro=intro)


def _section(cluster: Cluster) -> str:
    parts = [f"<p>{cluster.size:,} examples, tightness {cluster.tightness:.2f}.</p>"]
    if cluster.words:
        words = ", ".join(f"{word} ({z:.1f})" for word, z in cluster.words)
        parts.append(f"<p><b>Words</b> that it has more often than the rest, with z: {escape(words)}</p>")
    if cluster.sources:
        parts.append(f"<p><b>Sources</b>: {escape(_sources(cluster))}</p>")
    for verb, queries in (("Helps", cluster.helps), ("Harms", cluster.harms)):
        if queries:
            parts.append(f"<p><b>{verb}</b>, with its share of all that acts on the query: {escape(_queries(queries))}</p>")
    rows = [
        (central.id, f"{central.cosine:.2f}", central.text[:_TEXT] + ("…" if len(central.text) > _TEXT else ""))
        for central in cluster.central
    ]
    return "".join(parts) + table_section(("most central", "cosine", "text"), rows)


def _sources(cluster: Cluster) -> str:
    return ", ".join(f"{source[:_SHORT]} ({count})" for source, count in cluster.sources)


def _queries(queries: tuple[tuple[str, float], ...]) -> str:
    return ", ".join(f"{name[:_SHORT]} {share:+.0%}" for name, share in queries)
