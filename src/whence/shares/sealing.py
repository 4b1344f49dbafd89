"""What a receipt of a folder of scores or shares holds: the digests of its files, and of which model and data it is."""

from pathlib import Path
from typing import Any

from whence.errors import BadInput
from whence.evaluate import load_table, origin_of_table
from whence.ledger import Sealed, sealed_now
from whence.shares.record import RECORD
from whence.shares.sealed_record import read_report
from whence.shares.verify import is_share_report, verify_shares
from whence.store import sha256_of
from whence.store.file_sets import path_in_set

__all__ = ["sealed_folder"]


def sealed_folder(folder: str | Path) -> Sealed:
    """What is sealed of a table of scores, or of a report of shares.

    Args:
        folder: Of either.

    Returns:
        It, for `whence.ledger.chained`.

    Raises:
        BadInput: If it is neither, is damaged, or does not say of which model and data it is.
    """
    folder = Path(folder)
    if is_share_report(folder):
        faults = verify_shares(folder).faults
        if faults:
            raise BadInput(found=f"a report with a fault ({faults[0]})", needed="one that holds", do="restore it from a copy")
        record = read_report(folder)
        facts = {"models": record.models, "data": record.data, "method": record.method, "unit": record.unit}
        facts |= {"record": sha256_of(folder / RECORD)}
        store = "" if record.answers is None else record.answers.stores[0]
        return sealed_now("shares", _named(folder, facts), store=store)
    table, origin = load_table(folder), origin_of_table(folder)
    facts = {"models": origin.get("models", []), "data": origin.get("data", []), "method": table.method, "unit": table.unit}
    facts |= {"files": {name: sha256_of(path_in_set(folder, name)) for name in ("scores.npy", "table.json")}}
    return sealed_now("table", _named(folder, facts))


def _named(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    if not facts["models"] or not facts["data"]:
        raise BadInput(
            found=f"{folder}, which does not say of which model and data its scores are",
            needed="digests of both, or a receipt would prove nothing",
            do="score with `whence score` or `whence attribute`, or make the report with --store; in Python, pass origin",
        )
    return facts
