"""The document of an audit, as Markdown and as a page, and the whole list of sources."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

from whence.audit.facts import Section, recorded_name, sections_of
from whence.audit.sources import Sources, count_sources
from whence.durable import write_file
from whence.errors import UnknownOption
from whence.report import table_section, write_page
from whence.shares.files import csv_text
from whence.store import Store, open_store, verify_store

__all__ = ["AuditFiles", "audit"]

_INTRO = (
    "Facts that a store of training data attribution holds, in the order of the European Commission's template for the public summary of "
    "training content (Article 53(1)(d) of the AI Act); after that, how attribution was done and how far it can be relied on. What the "
    "store does not know is said to be not known. This is no legal advice."
)
_FACTS = ("fact", "what is known")


@dataclass(frozen=True)
class AuditFiles:
    """What an audit wrote.

    Args:
        markdown: The document.
        page: The same as HTML.
        sources: All sources with their documents and positions, as CSV.
        unknown: Names of the facts that are not known.
        faults: What is wrong with the store's files.
    """

    markdown: Path
    page: Path
    sources: Path
    unknown: tuple[str, ...]
    faults: tuple[str, ...]


def audit(store: Store | str | Path, output: str | Path, *, template: Literal["ai-act"] = "ai-act") -> AuditFiles:
    """Write down what a store knows of a model's training data and of its own scores, as a document that can be filed.

    Facts come from the store's manifest and its rows' records alone. The same store gives the same bytes.

    Args:
        store: A store or its folder.
        output: Folder for audit.md, audit.html and sources.csv.
        template: What the sections follow: the template for Article 53(1)(d) of Regulation (EU) 2024/1689.

    Returns:
        The files, and what is not known.

    Raises:
        BadInput: If the folder cannot be written.
        StoreCorrupt: If the store cannot be opened.
        UnknownOption: If there is no such template.
    """
    if template != "ai-act":
        raise UnknownOption(found=f"template={template!r}", needed="one of: ai-act", do="leave it out")
    opened = store if isinstance(store, Store) else open_store(store, check=False)
    faults, sources = tuple(verify_store(opened)), count_sources(opened)
    sections = sections_of(opened, sources, faults)
    folder = Path(output)
    title = f"Audit of the training data behind {recorded_name(opened.blueprint.task, 'model') or 'a model'}"
    write_file(folder / "audit.md", [_markdown(title, sections).encode("utf-8", "replace")])
    write_file(folder / "sources.csv", [csv_text(_source_rows(sources)).encode("utf-8", "replace")])
    page = write_page(folder / "audit.html", title, [(section.title, _html(section)) for section in sections], intro=_INTRO)
    unknown = tuple(fact.name for section in sections for fact in section.facts if fact.value is None)
    return AuditFiles(folder / "audit.md", page, folder / "sources.csv", unknown, faults)


def _markdown(title: str, sections: tuple[Section, ...]) -> str:
    parts = [f"# {_plain(title)}", _INTRO]
    for section in sections:
        parts += [f"## {_plain(section.title)}", *([_plain(section.text)] if section.text else [])]
        if section.facts:
            parts.append(_table(_FACTS, [(fact.name, fact.text) for fact in section.facts]))
        if section.rows:
            parts.append(_table(section.header, section.rows))
    return "\n\n".join(parts) + "\n"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *(tuple(map(_plain, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """A text on one line that no reader of Markdown takes for anything else: names of sources may hold all kinds of things."""
    return re.sub(r"([\\`*\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _html(section: Section) -> str:
    text = f"<p>{escape(section.text)}</p>" if section.text else ""
    facts = table_section(_FACTS, [(fact.name, fact.text) for fact in section.facts]) if section.facts else ""
    facts = f'<div class="facts">{facts}</div>' if facts else ""
    return text + facts + (table_section(section.header, section.rows) if section.rows else "")


def _source_rows(sources: Sources) -> Iterator[list[str]]:
    yield ["source", "documents", "positions"]
    for name, count in (*sources.by_source.items(), ("", sources.unnamed)):
        if count.documents:
            yield [name, str(count.documents), str(count.positions)]
