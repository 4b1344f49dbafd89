"""A share report as files: JSON for programs, CSV for ledgers, the scores and the sources for who recomputes it."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from whence.errors import BadInput
from whence.evaluate import save_table
from whence.plain_files import open_plain
from whence.shares.answers import Answers
from whence.shares.gaming import gaming_of
from whence.shares.payout import apportion
from whence.shares.robust import robust_words
from whence.shares.rules import RULES
from whence.shares.shares import WHOLE, Shares
from whence.store import record_of, write_bytes
from whence.store.file_sets import path_in_set
from whence.store.files import read_lines

__all__ = ["FORMAT", "content_of", "copy_tables", "csv_text", "queries_rows", "read_sources", "shares_rows", "sources_text"]

FORMAT = "whence shares 4"
# Of each query so many sources are listed one by one; the rest is one line, so that many documents and many queries make no file of both.
_LISTED = 100
_CHUNK_BYTES = 4 << 20
_MONEY = ("amount", "carried", "paid", "held", "kept")


@dataclass(frozen=True)
class _Source:
    id: str
    source: str


def content_of(report: Shares) -> dict[str, Any]:
    """Everything but the shares of each query, as plain numbers and words for `shares.json`; amounts are decimal text."""
    table, payout = report.tables, report.payout
    money = None
    if payout is not None:
        units = {name: sum(getattr(line.settled, name) for line in report.lines) for name in _MONEY}
        money = {"currency": payout.currency, "minimum": payout.text(payout.minimum)}
        money |= {name: payout.text(total) for name, total in units.items()}
    return {
        "format": FORMAT,
        "method": table.method,
        "unit": table.unit,
        "notes": list(table.notes),
        "rule": {**asdict(report.rule), "means": RULES[report.rule.name]},
        "robust": robust_words(has_control=report.has_control) if report.is_robust else None,
        "noise_floor": report.noise_floor,
        "models": report.tables.num_models,
        "examples": len(report.tables.train_ids),
        "unlisted_examples": report.unlisted,
        "attributed": report.attributed,
        "payout": money,
        "intervals": {
            "over_models": "jackknife",
            "over_queries": report.over_queries,
            "draws": report.draws,
            "seed": report.seed,
        },
        "queries": [
            {"query": name, "weight": weight, "counted": counted, "floor": floor}
            for name, weight, counted, floor in zip(
                report.query_ids, report.weights, report.counted, report.floors, strict=True
            )
        ],
        "gaming": gaming_of(report).to_dict(),
        "lines": [_line(report, index) for index in range(len(report.lines))],
    }


def shares_rows(report: Shares) -> Iterator[list[str]]:
    """The rows of `shares.csv`: a header, and a row per line.

    Yields:
        Cells as text; shares have 12 digits after the point and add up to 1 exactly.
    """
    yield [
        "kind", "name", "examples", "share", "models_low", "models_high", "queries_low", "queries_high", "raised", "lowered",
        "currency", *_MONEY,
    ]  # fmt: skip
    for index, line in enumerate(report.lines):
        shown = _line(report, index)
        spread = [*_cells(line.over_models), *_cells(line.over_queries)]
        money = [] if report.payout is None else [report.payout.currency, *(shown["payout"][name] for name in _MONEY)]
        sums = [f"{line.raised:.9g}", f"{line.lowered:.9g}"]
        share = _decimal(round(line.share * WHOLE))
        yield [line.kind, line.name, str(line.examples), share, *spread, *sums, *(money or [""] * (1 + len(_MONEY)))]


def queries_rows(report: Shares) -> Iterator[list[str]]:
    """The rows of `queries.csv`: a header, then for each query its lines by falling share.

    At most 100 sources stand alone; all others of the query are one row of kind "others".

    Yields:
        Cells as text; the shares of a query add up to 1 exactly.
    """
    yield ["query", "weight", "kind", "name", "share"]
    for name, weight, shares_L in zip(report.query_ids, report.weights, report.shares, strict=True):
        some = [index for index in range(len(report.lines)) if shares_L[index] > 0]
        some.sort(key=lambda index: (report.lines[index].kind != "source", -shares_L[index]))
        sources = [index for index in some if report.lines[index].kind == "source"]
        rest = sources[_LISTED:]
        # Sources come first, so what is cut out lies between the listed ones and the last lines.
        shown = sources[:_LISTED] + some[len(sources) :]
        parts = [float(shares_L[index]) for index in shown] + ([float(sum(shares_L[rest]))] if rest else [])
        labels = [(report.lines[index].kind, report.lines[index].name) for index in shown]
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


def copy_tables(report: Shares, folder: Path) -> dict[str, str]:
    """Copy the tables into a folder, byte for byte where they come from files; returns where each is, by its name."""
    if isinstance(report.tables, Answers):
        return {}
    folders = {}
    for number, (name, table) in enumerate(report.tables.tables.items(), start=1):
        target = folder / "tables" / str(number)
        if name in report.tables.folders:
            for file in ("scores.npy", "table.json"):
                write_bytes(target / file, _bytes_of(path_in_set(report.tables.folders[name], file)))
        else:
            save_table(table, target)
        folders[name] = f"tables/{number}"
    return folders


def _bytes_of(path: Path) -> Iterator[bytes]:
    with open_plain(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _line(report: Shares, index: int) -> dict[str, Any]:
    line, payout = report.lines[index], report.payout
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
