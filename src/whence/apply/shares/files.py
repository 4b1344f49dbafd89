"""A share report as files: JSON for programs, CSV for ledgers, the scores and the sources for who recomputes it."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from whence.apply.shares.payout import apportion
from whence.apply.shares.rules import RULES
from whence.apply.shares.shares import WHOLE, Shares
from whence.errors import BadInput
from whence.evaluate import save_table
from whence.plain_files import open_plain
from whence.store import record_of, write_bytes
from whence.store.file_sets import path_in_set
from whence.store.files import read_lines

__all__ = ["FORMAT", "content_of", "copy_tables", "csv_text", "queries_rows", "read_sources", "shares_rows", "sources_text"]

FORMAT = "whence shares 1"
# Of each query so many sources are listed one by one; the rest is one line, so that many documents and many queries make no file of both.
_LISTED = 100
_CHUNK_BYTES = 4 << 20
_MONEY = ("amount", "carried", "paid", "held", "kept")


@dataclass(frozen=True)
class _Source:
    id: str
    source: str


def content_of(found: Shares) -> dict[str, Any]:
    """Everything but the shares of each query, as plain numbers and words for `shares.json`; amounts are decimal text."""
    table, payout = found.tables.first, found.payout
    money = None
    if payout is not None:
        units = {name: sum(getattr(line.settled, name) for line in found.lines) for name in _MONEY}
        money = {"currency": payout.currency, "minimum": payout.text(payout.minimum)}
        money |= {name: payout.text(total) for name, total in units.items()}
    return {
        "format": FORMAT,
        "method": table.method,
        "unit": table.unit,
        "notes": list(table.notes),
        "rule": {**asdict(found.rule), "means": RULES[found.rule.name]},
        "models": found.tables.num_models,
        "examples": len(found.tables.train_ids),
        "unlisted_examples": found.unlisted,
        "attributed": found.attributed,
        "payout": money,
        "intervals": {"over_models": "jackknife", "over_queries": "bootstrap", "draws": found.draws, "seed": found.seed},
        "queries": [{"query": name, "weight": weight} for name, weight in zip(found.query_ids, found.weights, strict=True)],
        "lines": [_line(found, place) for place in range(len(found.lines))],
    }


def shares_rows(found: Shares) -> Iterator[list[str]]:
    """The rows of `shares.csv`: a header, and a row per line.

    Yields:
        Cells as text; shares have 12 digits after the point and add up to 1 exactly.
    """
    yield [
        "kind", "name", "examples", "share", "models_low", "models_high", "queries_low", "queries_high", "raised", "lowered",
        "currency", *_MONEY,
    ]  # fmt: skip
    for place, line in enumerate(found.lines):
        shown = _line(found, place)
        spread = [*_cells(line.over_models), *_cells(line.over_queries)]
        money = [] if found.payout is None else [found.payout.currency, *(shown["payout"][name] for name in _MONEY)]
        sums = [f"{line.raised:.9g}", f"{line.lowered:.9g}"]
        share = _decimal(round(line.share * WHOLE))
        yield [line.kind, line.name, str(line.examples), share, *spread, *sums, *(money or [""] * (1 + len(_MONEY)))]


def queries_rows(found: Shares) -> Iterator[list[str]]:
    """The rows of `queries.csv`: a header, then for each query its lines by falling share.

    At most 100 sources stand alone; all others of the query are one row of kind "others".

    Yields:
        Cells as text; the shares of a query add up to 1 exactly.
    """
    yield ["query", "weight", "kind", "name", "share"]
    for name, weight, shares_L in zip(found.query_ids, found.weights, found.shares, strict=True):
        some = [place for place in range(len(found.lines)) if shares_L[place] > 0]
        some.sort(key=lambda place: (found.lines[place].kind != "source", -shares_L[place]))
        sources = [place for place in some if found.lines[place].kind == "source"]
        rest = sources[_LISTED:]
        # Sources come first, so what is cut out lies between the listed ones and the last lines.
        shown = sources[:_LISTED] + some[len(sources) :]
        parts = [float(shares_L[place]) for place in shown] + ([float(sum(shares_L[rest]))] if rest else [])
        labels = [(found.lines[place].kind, found.lines[place].name) for place in shown]
        labels += [("others", f"{len(rest)} more sources")] if rest else []
        for (kind, label), share in zip(labels, apportion(WHOLE, parts), strict=True):
            yield [name, repr(weight), kind, label, _decimal(share)]


def csv_text(rows: Iterator[list[str]]) -> str:
    """Rows as CSV. A cell that a spreadsheet would run as a formula is led by an apostrophe; `shares.json` has the names as they are."""
    file = io.StringIO()
    csv.writer(file).writerows([f"'{cell}" if _is_formula(cell) else cell for cell in row] for row in rows)
    return file.getvalue()


def sources_text(sources: Mapping[str, str]) -> str:
    """By id the source that each training example counted for, a mapping per line."""
    return "".join(json.dumps({"id": name, "source": source}) + "\n" for name, source in sources.items())


def read_sources(path: Path) -> dict[str, str]:
    """What `sources_text` wrote.

    Raises:
        BadInput: If a line is not of that kind.
    """
    try:
        lines = [record_of(_Source, line) for line in read_lines(path)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            found=f"a line without id and source in {path} ({error})", needed="both", do="restore the file"
        ) from error
    return {line.id: line.source for line in lines}


def copy_tables(found: Shares, folder: Path) -> dict[str, str]:
    """Copy the tables into a folder, byte for byte where they come from files; returns where each is, by its name."""
    places = {}
    for number, (name, table) in enumerate(found.tables.tables.items(), start=1):
        target = folder / "tables" / str(number)
        if name in found.tables.folders:
            for file in ("scores.npy", "table.json"):
                write_bytes(target / file, _bytes_of(path_in_set(found.tables.folders[name], file)))
        else:
            save_table(table, target)
        places[name] = f"tables/{number}"
    return places


def _bytes_of(path: Path) -> Iterator[bytes]:
    with open_plain(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _line(found: Shares, place: int) -> dict[str, Any]:
    line, payout = found.lines[place], found.payout
    money = (
        None if payout is None or line.settled is None else {name: payout.text(getattr(line.settled, name)) for name in _MONEY}
    )
    return {
        "kind": line.kind,
        "name": line.name,
        "examples": line.examples,
        "share": line.share,
        "over_models": _listed(line.over_models),
        "over_queries": _listed(line.over_queries),
        "raised": line.raised,
        "lowered": line.lowered,
        "payout": money,
    }


def _listed(ends: tuple[float, float] | None) -> list[float] | None:
    return None if ends is None else list(ends)


def _cells(ends: tuple[float, float] | None) -> list[str]:
    return ["", ""] if ends is None else [f"{end:.6f}" for end in ends]


def _decimal(whole: int) -> str:
    return f"{Decimal(whole).scaleb(-12):.12f}"


def _is_formula(cell: str) -> bool:
    if cell[:1] in ("=", "@", "\t", "\r"):
        return True
    return cell[:1] in ("+", "-") and not _is_number(cell)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
