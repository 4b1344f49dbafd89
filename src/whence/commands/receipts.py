"""Verbs about receipts: making a key, sealing what commands wrote, and checking a chain."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from whence.commands.recorded import task_of_store
from whence.commands.shared import Json
from whence.errors import BadInput
from whence.settings import Placement
from whence.terminal import tell, tell_json

__all__ = ["ReceiptOptions", "SealOptions", "chain_of", "keys", "seal", "verify_receipts"]


@dataclass(frozen=True, kw_only=True)
class ReceiptOptions:
    """How receipts are checked.

    Args:
        key: Public key that signed the receipts, or the .pub file with it; once per key. Without one that of the first receipt is believed.
        head: Head of the chain, or of an earlier part of it, that was published.
        receipts: Of a report of a service's answers: their receipts, which it is held against.
        store: Of receipts: the store that answered, with its model, to compute the sealed scores again.
        model: With --store: where its model is, if not where the store says.
        trust: With --store: load what it records even if that is code or a name on the hub.
        publish: Of receipts that hold: write a copy without what was asked and answered into this file; it has the same head.
    """

    key: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    head: str | None = None
    receipts: Path | None = None
    store: Path | None = None
    model: str | None = None
    trust: Annotated[bool, Parameter(negative="")] = False
    publish: Path | None = None


@dataclass(frozen=True, kw_only=True)
class SealOptions:
    """Receipts of what is answered here.

    Args:
        receipts: File of receipts: the answer gets one, signed and chained to the one before.
        sign_with: File with the private key that it is signed with, from `whence keys`.
    """

    receipts: Path | None = None
    sign_with: Path | None = None

    def check(self) -> None:
        """Refuse half of it.

        Raises:
            BadInput: If one is there without the other.
        """
        if (self.receipts is None) != (self.sign_with is None):
            raise BadInput(
                found="--receipts without --sign-with" if self.receipts else "--sign-with without --receipts",
                needed="a file of receipts and a key, or neither",
                do="add the other; `whence keys` makes a key",
            )

    def add(self, sealed: Sequence[Any]) -> None:
        """Seal something, if that is asked for."""
        from whence.ledger import chained, read_signer
        from whence.progress import say

        if self.receipts is None or self.sign_with is None:
            return
        heads = chained(self.receipts, read_signer(self.sign_with), sealed)
        say(f"receipt {heads[-1].number} of {self.receipts}; head of the chain, to be published: {heads[-1].hash()}")


def keys(path: Path, *, as_json: Json = False) -> None:
    """Make a key to sign receipts with. Its public half is printed, and written beside it.

    Args:
        path: A new file for the private key, which only its owner may read.
        as_json: Print JSON.
    """
    from whence.ledger import new_key

    public = new_key(path)
    if as_json:
        tell_json({"private": str(path), "public": f"{path}.pub", "key": public})
    else:
        tell(public)


def seal(folder: Path, *, receipts: Path, sign_with: Path, as_json: Json = False) -> None:
    """Give a receipt to a table of scores or a report of shares: signed, and chained to the one before.

    Args:
        folder: Made by `whence score`, `whence attribute` or `whence shares`.
        receipts: File of receipts; made if it is not there.
        sign_with: File with the private key, from `whence keys`.
        as_json: Print the receipt as JSON.

    Raises:
        BadInput: If the folder is neither, or a table does not say of which model and data it is.
    """
    from dataclasses import asdict

    from whence.ledger import chained, read_signer
    from whence.shares.sealing import sealed_folder

    (head,) = chained(receipts, read_signer(sign_with), [sealed_folder(folder)])
    if as_json:
        tell_json({**asdict(head), "head": head.hash()})
    else:
        tell(f"receipt {head.number} of {receipts}", f"head of the chain, to be published: {head.hash()}")


def chain_of(path: Path, options: ReceiptOptions) -> Any:
    """A chain of receipts, checked."""
    from whence.ledger import read_public_key, verify_chain

    return verify_chain(path, keys=[read_public_key(text) for text in options.key], published=options.head)


def verify_receipts(path: Path, options: ReceiptOptions, as_json: bool) -> int:
    """Check a chain of receipts, and with a store at hand its figures; 0 if all is well, 1 if not.

    Raises:
        BadInput: If the copy to be published would be written over the chain.
    """
    from dataclasses import asdict

    from whence.ledger import canonical
    from whence.store import write_bytes

    if options.publish is not None and options.publish.resolve() == path.resolve():
        raise BadInput(
            found=f"--publish over the receipts {path} themselves",
            needed="another file: the copy is without what was asked and answered, which would be lost",
            do="choose another path",
        )
    check = chain_of(path, options)
    faults, notes = list(check.faults), list(check.notes)
    if options.store is not None:
        more, said_besides = _again(check, options)
        faults, notes = faults + more, notes + said_besides
    if options.publish is not None and not faults:
        write_bytes(options.publish, [canonical(asdict(head)) + b"\n" for head in check.heads])
    if as_json:
        tell_json({"receipts": len(check.heads), "head": check.head, "faults": faults, "notes": notes})
        return 1 if faults else 0
    tell(*faults, *(f"note: {note}" for note in notes))
    if not faults:
        tell(f"{path}: {len(check.heads):,} receipts, all signed and chained; head {check.head}")
    return 1 if faults else 0


def _again(check: Any, options: ReceiptOptions) -> tuple[list[str], list[str]]:
    try:
        from whence.serve.hosted_store import HostedStore
        from whence.serve.recompute import recomputed
    except ImportError as error:
        raise BadInput(
            found=f"no package {error.name}", needed="what the service needs", do="pip install 'whence-tda[serve]'"
        ) from error
    from whence.store import open_store

    assert options.store is not None
    opened = open_store(options.store)
    task = task_of_store(opened, options.store, options.model, Placement(), trust=options.trust)
    return recomputed(HostedStore.load(options.store.name, opened, task), check)
