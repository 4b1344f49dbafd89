"""Where a store's documents come from: how many there are of each source, and of each web site."""

from collections import defaultdict
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from whence.store import Store

__all__ = ["SourceCount", "Sources", "count_sources"]


@dataclass
class SourceCount:
    """Documents of one source.

    Args:
        documents: How many.
        positions: Of all of them together: tokens of texts.
    """

    documents: int = 0
    positions: int = 0


@dataclass(frozen=True)
class Sources:
    """What a store's documents say of where they come from.

    Args:
        by_source: By source, the most documents first.
        by_site: By host name of sources that are web addresses, likewise.
        unnamed: Documents without a source.
        everything: All documents.
        has_texts: Whether some have a text.
        has_images: Whether some have an image.
    """

    by_source: dict[str, SourceCount]
    by_site: dict[str, SourceCount]
    unnamed: SourceCount = field(default_factory=SourceCount)
    everything: SourceCount = field(default_factory=SourceCount)
    has_texts: bool = False
    has_images: bool = False


def count_sources(store: Store) -> Sources:
    """Go through what is known of every document, once.

    Raises:
        StoreCorrupt: If it cannot be read.
    """
    by_source: dict[str, SourceCount] = defaultdict(SourceCount)
    by_site: dict[str, SourceCount] = defaultdict(SourceCount)
    unnamed, everything, kinds = SourceCount(), SourceCount(), set()
    for example in store.examples():
        source = example.get("source", "")
        counts = [everything, by_source[source] if source else unnamed]
        site = _site(source)
        counts += [by_site[site]] if site else []
        for count in counts:
            count.documents += 1
            count.positions += example["length"]
        kinds.update(kind for kind in ("text", "image") if example.get(kind))
    return Sources(_most_first(by_source), _most_first(by_site), unnamed, everything, "text" in kinds, "image" in kinds)


def _site(source: str) -> str:
    """The host name of a web address; "" for anything else."""
    if not source.lower().startswith(("http://", "https://")):
        return ""
    try:
        return urlsplit(source).hostname or ""
    except ValueError:  # such as half an IPv6 address
        return ""


def _most_first(counts: dict[str, SourceCount]) -> dict[str, SourceCount]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1].documents, item[0])))
