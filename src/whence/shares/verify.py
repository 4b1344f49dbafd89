"""Does a share report say what its scores say, and is it the one that was signed off?"""

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whence.errors import BadInput, WhenceError
from whence.ledger import Head
from whence.settings import SharesConfig
from whence.shares.answers import Answers
from whence.shares.answers_file import ANSWERS, EXAMPLES, read_answers
from whence.shares.example_facts import FACTS, read_facts
from whence.shares.files import content_of, csv_text, queries_rows, read_sources, shares_rows
from whence.shares.receipted import receipt_faults
from whence.shares.record import RECORD, SEAL, answers_facts, digest_of_input, store_facts, unlike_answers
from whence.shares.sealed_record import Record, read_report
from whence.shares.shares import Shares, shares
from whence.store import open_store, parse_json, read_plain, sha256_of, verify_store

__all__ = ["ShareCheck", "is_share_report", "verify_shares"]

# Another processor or version may move the last bit of a sum; amounts and names have to be equal.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class ShareCheck:
    """What was found wrong with a share report, a line each.

    Args:
        faults: What is not as it was written or does not follow from the scores; empty if all is well.
        notes: What could not be checked, being gone.
        sources: Lines of named sources.
        queries: Queries.
    """

    faults: tuple[str, ...]
    notes: tuple[str, ...]
    sources: int
    queries: int


def is_share_report(folder: str | Path) -> bool:
    """Whether a folder holds a report by `whence.shares.write_shares`, damaged or not."""
    return os.path.lexists(Path(folder) / RECORD) and not os.path.lexists(Path(folder) / "blueprint.json")


def verify_shares(
    folder: str | Path,
    *,
    seal: str | None = None,
    inputs: Mapping[str, str | Path] | None = None,
    receipts: Sequence[Head] | None = None,
) -> ShareCheck:
    """Check a share report: its files, its figures, and what it was made from.

    All digests are compared with the record; shares, intervals and amounts are computed again from the scores and the sources in the folder;
    inputs and store are compared with what they were, where they still are: those that lie beside the report, in the folder that it is in,
    and those that are named here. Nothing else that the record names is opened, since anybody may have written it. Only a seal that was kept
    elsewhere finds a folder that was rewritten as a whole, record included.

    Args:
        folder: Written by `whence.shares.write_shares`.
        seal: What was printed when it was made; None if it was not kept.
        inputs: Where inputs are now, by their roles in the record, "store" among them.
        receipts: For a report of a service's answers: the heads of their chain, from `whence.ledger.verify_chain`. Each answer is held
            against its receipt, and none of the period may be left out.

    Returns:
        Faults and notes.

    Raises:
        BadInput: If there is no record of this format to check, or it has no input of a name in `inputs`.
    """
    folder = Path(folder)
    record = read_report(folder)
    _check_roles(record, inputs or {})
    faults, notes = [], []
    digest = sha256_of(folder / RECORD)
    if not _has_seal(folder, digest):
        faults.append(f"{folder / RECORD}: its checksum is not the one in {SEAL}")
    if seal is None:
        notes.append("no seal was given: a folder that was rewritten as a whole would not be noticed")
    elif seal != digest:
        faults.append(f"{folder / RECORD}: its seal is {digest}, not the one that was kept")
    notes += [record.unnamed] if record.unnamed else []
    recomputed = None
    try:
        faults += _files(folder, record)
        changed, missing = _origins(record, folder, {role: Path(path) for role, path in (inputs or {}).items()})
        faults, notes = faults + changed, notes + missing
        recomputed = _again(folder, record)
        faults += _rows(folder, record, recomputed, inputs or {})
        faults += _figures(folder, recomputed) + _stated(folder, record, recomputed)
        faults += [] if receipts is None else _unsealed(folder, recomputed, receipts)
    except WhenceError as error:
        faults.append(f"{folder}: the shares cannot be computed again ({error})")
    # Whatever else a damaged file makes of the reading.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, csv.Error):
        faults.append(
            f"{folder}: the shares cannot be computed again (found a file that cannot be read, or has another content than a report's; "
            "needed the files that were written; do this: restore the folder from a copy)"
        )
    sources = 0 if recomputed is None else sum(line.kind == "source" for line in recomputed.lines)
    return ShareCheck(tuple(faults), tuple(notes), sources, len(record.settings.weights))


def _unsealed(folder: Path, recomputed: Shares, receipts: Sequence[Head]) -> list[str]:
    if not isinstance(recomputed.tables, Answers):
        return [f"{folder}: it is of score tables, which have no receipts of answers"]
    return [f"{folder / ANSWERS}: {fault}" for fault in receipt_faults(recomputed.tables, receipts)]


def _stated(folder: Path, record: Record, recomputed: Shares) -> list[str]:
    """Faults of what the record says of the answers."""
    if not isinstance(recomputed.tables, Answers) or record.answers is None:
        return []
    due = answers_facts(recomputed.tables)
    return [
        f"{folder / RECORD}: answers.{name} is {str(value)[:80]}, and {str(due[name])[:80]} in {ANSWERS}"
        for name, value in vars(record.answers).items()
        if value != due[name]
    ]


def _rows(folder: Path, record: Record, recomputed: Shares, inputs: Mapping[str, str | Path]) -> list[str]:
    """Faults of the examples that answers are said to number, where the store is at hand."""
    if record.store is None or not isinstance(recomputed.tables, Answers):
        return []
    path = _reachable("store", record.store.folder, folder, {role: Path(path) for role, path in inputs.items()})
    if path is None or not path.exists():
        return []
    what = unlike_answers(open_store(path, check=False), recomputed.tables)
    return [f"{folder / EXAMPLES}: the store in {path} is one of {what}"] if what else []


def _check_roles(record: Record, named: Mapping[str, str | Path]) -> None:
    roles = [*record.inputs, *(["store"] if record.store is not None else [])]
    unknown = [role for role in named if role not in roles]
    if unknown:
        raise BadInput(
            found=f"inputs named {', '.join(map(repr, unknown))}",
            needed=f"inputs that the record has: {', '.join(roles) or 'it has none'}",
            do="correct the name, or leave it out",
        )


def _has_seal(folder: Path, digest: str) -> bool:
    try:
        return read_plain(folder / SEAL) == f"{digest}  {RECORD}\n".encode()
    except OSError:
        return False


def _files(folder: Path, record: Record) -> list[str]:
    faults = []
    for name, sha256 in record.outputs.items():
        path = folder / name
        if not os.path.lexists(path):
            faults.append(f"{path}: it is missing")
        elif _sum_of(path) != sha256:
            faults.append(f"{path}: its checksum is not the recorded one")
    recorded_files = {folder / name for name in (*record.outputs, RECORD, SEAL)}
    for path in sorted(folder.rglob("*")):
        # A signature of the record, such as record.json.sig, can only come after it.
        if not path.is_dir() and path not in recorded_files and not path.name.startswith(f"{RECORD}."):
            faults.append(f"{path}: it is not in the record")
    return faults


def _sum_of(path: Path) -> str | None:
    try:
        return sha256_of(path)
    except OSError:  # a link, a pipe
        return None


def _again(folder: Path, record: Record) -> Shares:
    """The shares, computed again from the scores and sources in the folder with the settings of the record."""
    tables: Any = {name: folder / table_folder for name, table_folder in record.tables.items()}
    if record.answers is not None:
        tables = read_answers(folder)
    given = dict(vars(record.settings))
    weights, carried = given.pop("weights"), given.pop("carried")
    sources = read_sources(folder / "sources.jsonl")
    facts = read_facts(folder) if FACTS in record.outputs else None
    # Numbers that nobody's scores have end here, not in a sum that is none.
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        return shares(tables, sources, config=SharesConfig(**given), weights=weights, carried=carried, facts=facts, quiet=True)


def _figures(folder: Path, recomputed: Shares) -> list[str]:
    """Faults of figures that do not follow from the scores."""
    faults = []
    recorded = parse_json(read_plain(folder / "shares.json"))
    path = _difference(recorded, json.loads(json.dumps(content_of(recomputed))), "")
    if path is not None:
        faults.append(f"{folder / 'shares.json'}: {path} does not follow from the scores")
    for name, rows in (("shares.csv", shares_rows(recomputed)), ("queries.csv", queries_rows(recomputed))):
        written, due = (
            list(csv.reader(io.StringIO(text))) for text in (read_plain(folder / name).decode("utf-8"), csv_text(rows))
        )
        pairs = zip(written, due, strict=False)
        number = next((n for n, (row, other) in enumerate(pairs, start=1) if not _same_row(row, other)), None)
        if number is not None or len(written) != len(due):
            faults.append(f"{folder / name}: line {number or min(len(written), len(due)) + 1} does not follow from the scores")
    return faults


def _difference(written: Any, due: Any, path: str) -> str | None:
    """Where two values differ by more than rounding; None if nowhere."""
    if isinstance(written, dict) and isinstance(due, dict):
        if written.keys() != due.keys():
            return f"{path or 'the content'}"
        differences = (_difference(written[name], due[name], f"{path}.{name}" if path else name) for name in due)
    elif isinstance(written, list) and isinstance(due, list):
        if len(written) != len(due):
            return path
        differences = (_difference(old, other, f"{path}[{n}]") for n, (old, other) in enumerate(zip(written, due, strict=True)))
    elif isinstance(written, float) and isinstance(due, float):
        return None if math.isclose(written, due, rel_tol=_ROUNDING, abs_tol=_ROUNDING) else path
    else:
        return None if type(written) is type(due) and written == due else path
    return next((each for each in differences if each is not None), None)


def _same_row(written: list[str], due: list[str]) -> bool:
    if len(written) != len(due):
        return False
    return all(old == new or _are_near(old, new) for old, new in zip(written, due, strict=True))


def _are_near(old: str, other: str) -> bool:
    # Money has three digits at most; a share has twelve, and only those may differ in the last.
    if not all("." in text and len(text.partition(".")[2]) > 3 for text in (old, other)):
        return False
    try:
        return math.isclose(float(old), float(other), rel_tol=_ROUNDING, abs_tol=_ROUNDING)
    except ValueError:
        return False


def _origins(record: Record, folder: Path, named: Mapping[str, Path]) -> tuple[list[str], list[str]]:
    """What is no longer as it was of what the report was made from, and what is not there to be checked."""
    changed, missing = [], []
    for role, recorded in record.inputs.items():
        path = _reachable(role, recorded.path, folder, named)
        if path is None:
            missing.append(_elsewhere(f"input {role}", role, recorded.path))
        elif recorded.sha256 is None or not path.exists():
            missing.append(f"input {role} is not there to be checked: {path}")
        elif digest_of_input(path) != recorded.sha256:
            changed.append(f"{path}: the input {role} is no longer what it was")
    if record.store is None:
        return changed, missing
    path = _reachable("store", record.store.folder, folder, named)
    if path is None:
        return changed, [*missing, _elsewhere("the store", "store", record.store.folder)]
    if not path.exists():
        return changed, [*missing, f"the store is not there to be checked: {path}"]
    try:
        store = open_store(path, check=False)
        changed += verify_store(store)
        recorded = vars(record.store)
        names = [name for name, value in store_facts(store).items() if name != "folder" and value != recorded[name]]
        if names:
            changed.append(f"{path}: it is no longer the store that it was ({', '.join(names)} changed)")
    except WhenceError as error:
        changed.append(f"{path}: the store cannot be checked ({error})")
    return changed, missing


def _reachable(role: str, path: str, folder: Path, named: Mapping[str, Path]) -> Path | None:
    """Where something that a record names may be opened: where a person says it is, or beside the report; None if it is elsewhere."""
    if role in named:
        return named[role]
    resolved = Path(path).resolve()
    return resolved if resolved.is_relative_to(folder.resolve().parent) else None


def _elsewhere(what: str, role: str, path: str) -> str:
    return f"{what} lies elsewhere and was not opened: {path}; --inputs {role}=PATH, or verify_shares(..., inputs=...), takes where it is"
