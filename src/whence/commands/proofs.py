"""Verbs about what a store commits to: proving that a document is in it or not, and checking that."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from whence.commands.shared import Json
from whence.errors import BadInput
from whence.terminal import tell, tell_json

__all__ = ["ProofOptions", "prove", "verify_proof"]


@dataclass(frozen=True, kw_only=True)
class ProofOptions:
    """How a proof is checked.

    Args:
        root: Of a proof: the commitment that the store's owner published.
        text: Of a proof: file with the text that it is about, UTF-8.
    """

    root: str | None = None
    text: Path | None = None


def prove(
    store: Path,
    *,
    id: str | None = None,
    text: Path | None = None,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    as_json: Json = False,
) -> None:
    """Prove that a document is in a store, or that it is not, showing no other one.

    Prints what is proven and the commitment, which `whence verify PROOF --root` holds the proof against.

    Args:
        store: Folder made by `whence build`.
        id: Id of the document.
        text: Or a file with its whole text as it was trained on, UTF-8.
        output: Where the proof is written; proof.json if left out.
        as_json: Print JSON.

    Raises:
        BadInput: If there is neither id nor text, or both, or the store holds other documents than it commits to.
    """
    from whence.ledger import write_proof
    from whence.store import committed, open_store
    from whence.store import prove as proof_of

    path = Path("proof.json") if output is None else output
    opened = open_store(store)
    proof = proof_of(opened, id=id, text=None if text is None else _text(text))
    recorded = committed(opened)
    if recorded is not None and recorded.root != proof.root:
        raise BadInput(
            found=f"documents in {store} whose root is {proof.root[:16]}, and a commitment to {recorded.root[:16]}",
            needed="the documents that the store commits to",
            do="find out with `whence verify` what was changed",
        )
    write_proof(proof, path)
    if as_json:
        tell_json({"proof": str(path), "is_in": proof.is_in, "root": proof.root, "id": proof.id, "text": proof.text})
    else:
        tell(_words(proof), f"root: {proof.root}", f"proof: {path}")
        if recorded is None:
            tell("note: this store, which an earlier version of whence built, has no root of its own")


def verify_proof(path: Path, options: ProofOptions, as_json: bool) -> int:
    """Check a proof; 0 if it holds, 1 if not."""
    from whence.ledger import read_proof
    from whence.store import check_proof

    proof = read_proof(path)
    faults = check_proof(proof, root=options.root, text=None if options.text is None else _text(options.text))
    notes = [] if options.root else ["no root was given: anybody can make a tree in which this holds (--root)"]
    if as_json:
        tell_json({"is_in": proof.is_in, "root": proof.root, "faults": faults, "notes": notes})
        return 1 if faults else 0
    tell(*(f"{path}: {fault}" for fault in faults), *(f"note: {note}" for note in notes))
    if not faults:
        tell(f"{path}: {_words(proof)}")
    return 1 if faults else 0


def _words(proof: object) -> str:
    from whence.store import Proof

    assert isinstance(proof, Proof)
    what = f"the id {proof.id!r}" if proof.by == "id" else f"a text of SHA-256 {proof.text}"
    more = ""
    if proof.is_in:
        more = f", with a text of SHA-256 {proof.text}" if proof.by == "id" else f", as {proof.id!r}"
    return f"{what} is {'' if proof.is_in else 'not '}among {proof.leaves // 2:,} documents{more}"


def _text(path: Path) -> str:
    from whence.plain_files import read_plain

    try:
        return read_plain(path, is_named=True).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(found=f"no text in {path} ({error})", needed="a file in UTF-8", do="check the path") from error
