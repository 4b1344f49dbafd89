"""Verbs that look: at a store, at what a run would take, at the methods there are."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from whence.commands.along import inspect_along, verify_along
from whence.commands.proofs import ProofOptions, verify_proof
from whence.commands.receipts import ReceiptOptions, chain_of, verify_receipts
from whence.commands.recorded import recorded_needs_trust
from whence.commands.shared import Json
from whence.commands.work_options import flags_given
from whence.errors import BadInput
from whence.methods import EXACT_METHODS, METHODS
from whence.terminal import tell, tell_json

__all__ = ["inspect", "methods", "verify"]

# The options that each kind of thing is verified with, each with the one beside which alone it means something.
_TAKEN: dict[str, Mapping[str, str]] = {
    "proof": {"--root": "", "--text": ""},
    "file of receipts": {
        "--key": "", "--head": "", "--publish": "", "--store": "", "--model": "--store", "--trust": "--store",
    },
    "report of shares": {"--seal": "", "--inputs": "", "--receipts": "", "--key": "--receipts", "--head": "--receipts"},
    "store": {},
}  # fmt: skip


def verify(
    folder: Path,
    *,
    seal: str | None = None,
    inputs: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    sealed: Annotated[ReceiptOptions, Parameter(name="*")] = ReceiptOptions(),
    proof: Annotated[ProofOptions, Parameter(name="*")] = ProofOptions(),
    as_json: Json = False,
) -> int:
    """Check that a store is what was written: checksums, shapes, ids, finite numbers; or a report of shares, receipts, or a proof.

    Figures of a report are computed again, those of receipts with --store too.

    Args:
        folder: Folder made by `whence build`, or by `whence shares`; or a file of receipts, or a proof by `whence prove`.
        seal: Of a report of shares: the seal that was printed when it was made, to find a folder that was rewritten as a whole.
        inputs: Of a report of shares: where an input or the store is now that does not lie beside the report, as NAME=PATH with its name in
            the report's record; once per input.
        sealed: How receipts are checked.
        proof: How a proof is checked.
        as_json: Print JSON.

    Returns:
        Exit status: 0 if all is well, 1 if not.

    Raises:
        BadInput: If an option is for another kind of thing, inputs are not named as the record names them, or a report of shares has lost its
            record.
    """
    from whence.ledger import is_chain, is_proof
    from whence.pipeline.through.along_record import is_along, open_along
    from whence.shares.verify import is_share_report
    from whence.store import open_store, verify_store

    kind = "proof" if is_proof(folder) else "file of receipts" if is_chain(folder) else "report of shares"
    if kind == "report of shares" and not is_share_report(folder):
        if (folder / "shares.json").exists():
            raise BadInput(
                found=f"a report of shares without its record.json in {folder}",
                needed="the record that its figures are held against",
                do="restore it from a copy, or make the report again",
            )
        kind = "store"
    along = open_along(folder, check=False) if kind == "store" and is_along(folder) else None
    opened = open_store(folder, check=False) if kind == "store" and along is None else None
    given = flags_given(sealed, proof) | {"--seal": seal, "--inputs": inputs}
    _refuse_misplaced(folder, kind, [name for name, value in given.items() if value])
    if kind == "proof":
        return verify_proof(folder, proof, as_json)
    if kind == "file of receipts":
        return verify_receipts(folder, sealed, as_json)
    if along is not None:
        return verify_along(along, as_json=as_json)
    if opened is None:
        return _verify_shares(folder, seal, inputs, sealed, as_json)
    faults = verify_store(opened)
    if as_json:
        tell_json(
            {
                "rows": len(opened),
                "deleted": opened.num_deleted,
                "shards": len(opened.sealed),
                "faults": faults,
            }
        )
        return 1 if faults else 0
    for fault in faults:
        tell(fault)
    if not faults:
        deleted = f"; {opened.num_deleted:,} more rows are deleted" if opened.num_deleted else ""
        tell(f"{folder}: {len(opened):,} rows in {len(opened.sealed)} shards, all as sealed{deleted}")
    return 1 if faults else 0


def inspect(store: Path, *, as_json: Json = False) -> None:
    """Say what a store holds, and what of its model and data would be loaded with --trust only. Nothing of it is loaded.

    Args:
        store: Folder made by `whence build`.
        as_json: Print everything as JSON.
    """
    from whence.pipeline.stored.refit import unfinished_refit
    from whence.pipeline.through.along_record import is_along
    from whence.records import recipe_text
    from whence.store import addition_notes, committed, fidelity_notes, open_store, read_fidelity
    from whence.store.disk import folder_bytes, size_text

    if is_along(store):
        inspect_along(store, as_json=as_json)
        return
    opened = open_store(store, check=False)
    blueprint, work = opened.blueprint, unfinished_refit(store)
    begun = None if work is None else {"folder": str(work), "bytes": folder_bytes(work)}
    documents = committed(opened)
    content = {
        **blueprint.to_json(),
        "rows": len(opened),
        "deleted": opened.num_deleted,
        "shards": len(opened.sealed),
        "bytes_per_row": opened.codec.row_bytes(),
        "fidelity": {name: asdict(fidelity) for name, fidelity in read_fidelity(opened).items()},
        "shared_bytes": opened.shared_bytes(),
        "disk_bytes": opened.disk_bytes().to_dict(),
        "unfinished_refit": begun,
        "documents": None if documents is None else asdict(documents),
        "needs_trust": recorded_needs_trust(opened, store),
    }
    if as_json:
        tell_json(content)
        return
    for name in (
        "rows",
        *(["deleted"] if opened.num_deleted else []),
        "shards",
        "bytes_per_row",
        "method",
        "rank",
        "factor_rank",
        "curvature_rank",
        "dtype",
        "seed",
    ):
        tell(f"{name:>16}  {content[name]}")
    tell(f"{'recipe':>16}  {recipe_text(blueprint.recipe) if blueprint.recipe else 'not known'}")
    tell(f"{'model':>16}  {blueprint.task.get('model', 'given in Python')} (weights {blueprint.model[:12]})")
    tell(f"{'data':>16}  {blueprint.task.get('data', 'given in Python')}")
    if documents is not None:
        tell(f"{'root':>16}  {documents.root} of {documents.count:,} documents")
    for note in fidelity_notes(opened):
        tell(f"{'fidelity':>16}  {note}")
    for note in addition_notes(opened.folder):
        tell(f"{'additions':>16}  {note}")
    tell(f"{'disk':>16}  {opened.disk_bytes()}")
    if begun is not None:
        tell(
            f"{'beside it':>16}  {size_text(begun['bytes'])} in {begun['folder']} of an unfinished refit; `whence refit` goes on with it"
        )
    for name, title in (("bases", "curvature"), ("code", "code")):
        if name in blueprint.task:
            tell(f"{title:>16}  {blueprint.task[name]}")
    for why in content["needs_trust"]:
        tell(f"{'with --trust':>16}  {why}")
    tell(f"{'units':>16}  {len(blueprint.units)}: {', '.join(unit.name for unit in blueprint.units[:3])} ...")


def methods(*, as_json: Json = False) -> None:
    """List the attribution methods, what each is made of and where it comes from.

    Args:
        as_json: Print everything as JSON.
    """
    from whence.report import print_methods

    if as_json:
        tell_json([asdict(method) for method in (*METHODS.values(), *EXACT_METHODS.values())])
    else:
        print_methods(METHODS.values(), EXACT_METHODS.values())


def _refuse_misplaced(folder: Path, kind: str, given: Sequence[str]) -> None:
    """Refuse options that would be ignored.

    Raises:
        BadInput: If an option is for another kind of thing, or for another option that is not given.
    """
    for name in given:
        kinds = [each for each, taken in _TAKEN.items() if name in taken]
        beside = _TAKEN[kind].get(name)
        if beside is None or beside not in ("", *given):
            what = "" if beside is None else f" without {beside}"
            raise BadInput(
                found=f"{name} for the {kind} {folder}{what}",
                needed=f"a {' or a '.join(kinds)}" if beside is None else f"{beside} beside {name}",
                do=f"leave {name} out" + (f", or add {beside}" if beside else ""),
            )


def _verify_shares(folder: Path, seal: str | None, inputs: tuple[str, ...], sealed: ReceiptOptions, as_json: bool) -> int:
    from dataclasses import replace

    from whence.shares.verify import verify_shares

    chain = None if sealed.receipts is None else chain_of(sealed.receipts, sealed)
    check = verify_shares(folder, seal=seal, inputs=_named(inputs), receipts=None if chain is None else chain.heads)
    if chain is not None:
        check = replace(check, faults=(*chain.faults, *check.faults), notes=(*chain.notes, *check.notes))
    if as_json:
        tell_json(asdict(check))
        return 1 if check.faults else 0
    for fault in check.faults:
        tell(fault)
    for note in check.notes:
        tell(f"note: {note}")
    if not check.faults:
        tell(
            f"{folder}: {check.sources:,} sources, {check.queries:,} queries; all files as recorded, all figures computed again"
        )
    return 1 if check.faults else 0


def _named(inputs: tuple[str, ...]) -> dict[str, str]:
    parts = [text.partition("=") for text in inputs]
    if any(not name or not path for name, _, path in parts) or len({name for name, _, _ in parts}) != len(parts):
        raise BadInput(
            found=f"--inputs {' '.join(inputs)}",
            needed="NAME=PATH, every name once",
            do="such as: --inputs store=path/to/store",
        )
    return {name: path for name, _, path in parts}
