"""Does a share report say what its scores say, and is it the one that was signed off?"""

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence.apply.shares.files import FORMAT, content_of, csv_text, queries_rows, read_sources, shares_rows
from whence.apply.shares.record import RECORD, SEAL, digest_of_input, store_facts
from whence.apply.shares.shares import Shares, shares
from whence.errors import BadInput, WhenceError
from whence.store import open_store, sha256_of, verify_store

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
    """Whether a folder holds a report by `whence.write_shares`, damaged or not."""
    return (Path(folder) / RECORD).is_file() and not (Path(folder) / "blueprint.json").exists()


def verify_shares(folder: str | Path, *, seal: str | None = None) -> ShareCheck:
    """Check a share report: its files, its figures, and what it was made from.

    All digests are compared with the record; shares, intervals and amounts are computed again from the scores and the sources in the folder;
    inputs and store are compared with what they were, where they still are. Only a seal that was kept elsewhere finds a folder
    that was rewritten as a whole, record included.

    Args:
        folder: Written by `whence.write_shares`.
        seal: What was printed when it was made; None if it was not kept.

    Returns:
        Faults and notes.

    Raises:
        BadInput: If there is no record of this format to check.
    """
    folder = Path(folder)
    record = _record(folder)
    faults, notes = [], []
    found = sha256_of(folder / RECORD)
    if not (folder / SEAL).is_file() or (folder / SEAL).read_bytes() != f"{found}  {RECORD}\n".encode():
        faults.append(f"{folder / RECORD}: its checksum is not the one in {SEAL}")
    if seal is None:
        notes.append("no seal was given: a folder that was rewritten as a whole would not be noticed")
    elif seal != found:
        faults.append(f"{folder / RECORD}: its seal is {found}, not the one that was kept")
    made = None
    try:
        faults += _files(folder, record)
        changed, gone = _origins(record)
        faults, notes = faults + changed, notes + gone
        made = _again(folder, record)
        faults += _figures(folder, made)
    except WhenceError as error:
        faults.append(f"{folder}: the shares cannot be computed again ({error})")
    # Whatever else a damaged file makes of the reading.
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        faults.append(
            f"{folder}: the shares cannot be computed again (found a file that cannot be read, or has another content than a report's; "
            "needed the files that were written; do this: restore the folder from a copy)"
        )
    sources = 0 if made is None else sum(line.kind == "source" for line in made.lines)
    return ShareCheck(tuple(faults), tuple(notes), sources, len(record["settings"]["weights"]))


def _record(folder: Path) -> dict[str, Any]:
    """The record, complete enough to be checked.

    Raises:
        BadInput: If it is not.
    """
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
        mappings = [record[name] for name in ("settings", "inputs", "outputs", "tables")]
        is_whole = record["format"] == FORMAT and all(isinstance(each, dict) for each in mappings)
        is_whole = is_whole and "weights" in record["settings"] and "store" in record
        why = "" if is_whole else "it is incomplete, or of another format"
    except OSError:
        why = "it cannot be read"
    except ValueError:
        why = "it is not JSON"
    except (KeyError, TypeError):
        why = "it is incomplete"
    if why:
        raise BadInput(
            found=f"{folder / RECORD}, which is no record of shares: {why}",
            needed=f"a folder by `whence shares`, of the format {FORMAT!r}",
            do="check the path, or restore the folder from a copy",
        )
    return record


def _files(folder: Path, record: Mapping[str, Any]) -> list[str]:
    faults = []
    for name, sha256 in record["outputs"].items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{path}: it is missing")
        elif sha256_of(path) != sha256:
            faults.append(f"{path}: its checksum is not the recorded one")
    known = {folder / name for name in (*record["outputs"], RECORD, SEAL)}
    for path in sorted(folder.rglob("*")):
        # A signature of the record, such as record.json.sig, can only come after it.
        if path.is_file() and path not in known and not path.name.startswith(f"{RECORD}."):
            faults.append(f"{path}: it is not in the record")
    return faults


def _again(folder: Path, record: Mapping[str, Any]) -> Shares:
    """The shares, computed again from the scores and sources in the folder with the settings of the record."""
    tables = {name: folder / place for name, place in record["tables"].items()}
    return shares(tables, read_sources(folder / "sources.jsonl"), **record["settings"], quiet=True)


def _figures(folder: Path, made: Shares) -> list[str]:
    """Faults of figures that do not follow from the scores."""
    faults = []
    recorded = json.loads((folder / "shares.json").read_text("utf-8"))
    place = _difference(recorded, json.loads(json.dumps(content_of(made))), "")
    if place is not None:
        faults.append(f"{folder / 'shares.json'}: {place} does not follow from the scores")
    for name, rows in (("shares.csv", shares_rows(made)), ("queries.csv", queries_rows(made))):
        written, due = (
            list(csv.reader(io.StringIO(text))) for text in ((folder / name).read_bytes().decode("utf-8"), csv_text(rows))
        )
        pairs = zip(written, due, strict=False)
        number = next((n for n, (row, other) in enumerate(pairs, start=1) if not _same_row(row, other)), None)
        if number is not None or len(written) != len(due):
            faults.append(f"{folder / name}: line {number or min(len(written), len(due)) + 1} does not follow from the scores")
    return faults


def _difference(written: Any, due: Any, place: str) -> str | None:
    """Where two values differ by more than rounding; None if nowhere."""
    if isinstance(written, dict) and isinstance(due, dict):
        if written.keys() != due.keys():
            return f"{place or 'the content'}"
        found = (_difference(written[name], due[name], f"{place}.{name}" if place else name) for name in due)
    elif isinstance(written, list) and isinstance(due, list):
        if len(written) != len(due):
            return place
        found = (_difference(one, other, f"{place}[{n}]") for n, (one, other) in enumerate(zip(written, due, strict=True)))
    elif isinstance(written, float) and isinstance(due, float):
        return None if math.isclose(written, due, rel_tol=_ROUNDING, abs_tol=_ROUNDING) else place
    else:
        return None if type(written) is type(due) and written == due else place
    return next((each for each in found if each is not None), None)


def _same_row(written: list[str], due: list[str]) -> bool:
    if len(written) != len(due):
        return False
    return all(one == other or _are_near(one, other) for one, other in zip(written, due, strict=True))


def _are_near(one: str, other: str) -> bool:
    # Money has three digits at most; a share has twelve, and only those may differ in the last.
    if not all("." in text and len(text.partition(".")[2]) > 3 for text in (one, other)):
        return False
    try:
        return math.isclose(float(one), float(other), rel_tol=_ROUNDING, abs_tol=_ROUNDING)
    except ValueError:
        return False


def _origins(record: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What is no longer as it was of what the report was made from, and what is not there any more."""
    changed, gone = [], []
    for role, known in record["inputs"].items():
        place = Path(known["path"])
        if known["sha256"] is None or not place.exists():
            gone.append(f"input {role} is not there to be checked: {place}")
        elif digest_of_input(place) != known["sha256"]:
            changed.append(f"{place}: the input {role} is no longer what it was")
    if record["store"] is None:
        return changed, gone
    place = Path(record["store"]["folder"])
    if not place.exists():
        return changed, [*gone, f"the store is not there to be checked: {place}"]
    try:
        store = open_store(place, check=False)
        changed += verify_store(store)
        names = [name for name, value in store_facts(store).items() if name != "folder" and value != record["store"][name]]
        if names:
            changed.append(f"{place}: it is no longer the store that it was ({', '.join(names)} changed)")
    except WhenceError as error:
        changed.append(f"{place}: the store cannot be checked ({error})")
    return changed, gone
