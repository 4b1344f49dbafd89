"""Receipts: what was answered, signed, each with the digest of the one before, so that none can be changed, added or left out in between.

A receipt has a head and a content. The head has digests only and is what is signed and chained; so a chain can be published without what was
asked, and whoever has a content can show that it is the one that was sealed.
"""

import hashlib
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from whence.durable import AppendedLines, disk_errors
from whence.errors import BadInput
from whence.ledger.canonical import canonical, digest_of
from whence.ledger.keys import Signer
from whence.strict_json import parse_json, record_of

__all__ = ["FIRST", "Chain", "Head", "Kind", "Sealed", "chained", "head_of", "receipt_line", "sealed_now"]

Kind = Literal["answer", "query", "table", "shares"]
"""What a receipt is of: an answer of a service, of `whence query`, a table of scores, a report of shares."""

FIRST = "0" * 64
"""What the first receipt has in place of the digest of the one before."""

_FORMAT = "whence receipt 1"


@dataclass(frozen=True, kw_only=True)
class Head:
    """What is signed.

    Args:
        number: Its place in the chain, counted from 0.
        previous: SHA-256 of the head before.
        key: The public key.
        kind: What it is of.
        id: Of the answer.
        time: When it was given, in seconds since 1970.
        store: Digest of the store that answered; empty without one.
        token: The only token that was asked about; None for all.
        digest: SHA-256 of the content.
        credit: SHA-256 of the answer's credit; None if none is written down.
        signature: Of all the others.
        format: Of receipts.
    """

    number: int
    previous: str
    key: str
    kind: Kind
    id: str
    time: float
    store: str
    token: int | None
    digest: str
    credit: str | None
    signature: str = ""
    format: str = _FORMAT

    def message(self) -> bytes:
        """What the signature is of."""
        return canonical({name: value for name, value in vars(self).items() if name != "signature"})

    def hash(self) -> str:
        """What the next receipt names; of the last one it is the head of the chain, which says what all receipts are."""
        return digest_of(vars(self))


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """What a receipt is to be made of.

    Args:
        kind: What it is.
        id: Of the answer.
        time: When it was given.
        store: Digest of the store; empty without one.
        token: The only token that was asked about; None for all.
        content: Everything else that is sealed.
        credit: SHA-256 of the answer's credit; None without one.
    """

    kind: Kind
    id: str
    time: float
    store: str
    token: int | None
    content: Mapping[str, Any]
    credit: str | None = None


class Chain:
    """A file of receipts that is added to.

    Args:
        path: The file, a receipt a line.
        signer: The key.

    Raises:
        BadInput: If its last line is no receipt, it cannot be written, or another process adds to it.
    """

    def __init__(self, path: str | Path, signer: Signer):
        self.signer = signer
        self.lines = AppendedLines(Path(path))
        self.count, self.previous = 0, FIRST
        last = self.lines.last()
        if last:
            try:
                head = head_of(parse_json(last, any_number=True))
            except ValueError as error:
                self.close()
                raise BadInput(
                    found=f"{path}, whose last line is no receipt ({error})",
                    needed="a chain of receipts, or a new file",
                    do="look at it with `whence verify`, and restore it from a copy",
                ) from error
            self.count, self.previous = head.number + 1, head.hash()

    def append(self, sealed: Iterable[Sealed]) -> list[Head]:
        """Add receipts: when this returns, they are on the disk.

        Args:
            sealed: What they are of.

        Returns:
            Their heads.

        Raises:
            DiskFull: If there is no room; then none is added.
            BadInput: If the file cannot be written.
        """
        heads, lines, previous = [], [], self.previous
        for number, each in enumerate(sealed, start=self.count):
            head, line = receipt_line(each, number, previous, self.signer)
            heads.append(head)
            lines.append(line)
            previous = head.hash()
        with disk_errors(self.lines.path):
            self.lines.append(lines)
        self.count, self.previous = self.count + len(heads), previous
        return heads

    def close(self) -> None:
        """Let go of the file."""
        self.lines.close()


def receipt_line(sealed: Sealed, number: int, previous: str, signer: Signer) -> tuple[Head, bytes]:
    """A receipt: its head, and its line."""
    facts = {name: getattr(sealed, name) for name in ("kind", "id", "time", "store", "token", "credit")}
    content = canonical(sealed.content)
    digest = hashlib.sha256(content).hexdigest()
    unsigned = Head(number=number, previous=previous, key=signer.public, digest=digest, **facts)
    head = replace(unsigned, signature=signer.sign(unsigned.message()))
    # Keys are sorted, and "content" comes before all others: it need not be written twice.
    return head, b'{"content":' + content + b"," + canonical(vars(head))[1:]


def sealed_now(kind: Kind, content: Mapping[str, Any], *, store: str = "") -> Sealed:
    """What is sealed by a command, now; with a salt, so that nobody finds the content by trying its digest."""
    identity = secrets.token_urlsafe(15)
    content = {**content, "salt": secrets.token_hex(16)}
    return Sealed(kind=kind, id=identity, time=time.time(), store=store, token=None, content=content)


def head_of(entry: Any) -> Head:
    """The head of a receipt.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(entry, dict):
        raise ValueError("it is no object")
    try:
        head = record_of(Head, {name: value for name, value in entry.items() if name != "content"})
    except (TypeError, KeyError) as error:
        raise ValueError(f"it is no receipt: {error}") from None
    if head.format != _FORMAT:
        raise ValueError(f"it is of the format {head.format[:40]!r}, not {_FORMAT!r}")
    return head


def chained(path: str | Path, signer: Signer, sealed: Sequence[Sealed]) -> list[Head]:
    """Add receipts to a file that nothing else adds to at the time; as `Chain.append`."""
    chain = Chain(path, signer)
    try:
        return chain.append(sealed)
    finally:
        chain.close()
