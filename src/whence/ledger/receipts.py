"""Receipts: what was answered, signed, each with the digest of the one before, so that none can be changed, added or left out in between.

A receipt has a head and a content. The head has digests only and is what is signed and chained; so a chain can be published without what was
asked, and whoever has a content can show that it is the one that was sealed.
"""

import contextlib
import functools
import hashlib
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from whence.durable import AppendedLines, disk_errors
from whence.errors import BadInput, DiskFull
from whence.ledger.canonical import canonical, digest_of
from whence.ledger.keys import Signer
from whence.strict_json import parse_json, record_of

__all__ = ["FIRST", "Chain", "Draft", "Head", "Kind", "Sealed", "chained", "drafted", "head_of", "sealed_now"]

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


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A receipt that is to be added.

    Args:
        head: Its head.
        content: Its content, as `canonical` writes it.
    """

    head: Head
    content: bytes

    @functools.cached_property
    def head_text(self) -> bytes:
        """The head as `canonical` writes it."""
        return canonical(vars(self.head))

    @property
    def hash(self) -> str:
        """As `Head.hash`."""
        return hashlib.sha256(self.head_text).hexdigest()

    @property
    def line(self) -> bytes:
        """As it stands in the file."""
        # Keys are sorted, and "content" comes before all others: it need not be written twice.
        return b'{"content":' + self.content + b"," + self.head_text[1:]


class Chain:
    """A file of receipts that is added to.

    Args:
        path: The file, a receipt a line.
        signer: The key.
        unsure: Where receipts begin that the file may have lost when the machine stopped, and these; it has them again, if they are its own.

    Raises:
        BadInput: If its last line is no receipt, it cannot be written, or another process adds to it.
    """

    def __init__(self, path: str | Path, signer: Signer, unsure: tuple[int, Sequence[Draft]] = (0, ())):
        self.signer = signer
        self.lines = AppendedLines(Path(path))
        try:
            self._restore(*unsure)
            head = self._last(self.lines.size)
        except (ValueError, BadInput, DiskFull) as error:
            self.close()
            if not isinstance(error, ValueError):
                raise
            raise BadInput(
                found=f"{path}, whose last line is no receipt ({error})",
                needed="a chain of receipts, or a new file",
                do="look at it with `whence verify`, and restore it from a copy",
            ) from error
        self.count, self.previous = (0, FIRST) if head is None else (head.number + 1, head.hash())
        self.synced = self.count, self.previous

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
        return self.append_drafts(drafted(sealed, self.count, self.previous, self.signer), is_synced=True)

    def append_drafts(self, drafts: Sequence[Draft], *, is_synced: bool) -> list[Head]:
        """Add receipts that were made to follow the last one; as `append`, but that they may be on the disk only after `sync`.

        Raises:
            DiskFull: If there is no room; then none is added.
            BadInput: If the file cannot be written.
        """
        if is_synced:  # of those before, too: a disk that fails tells of each byte once
            self.sync()
        with disk_errors(self.lines.path):
            self.lines.append([draft.line for draft in drafts], is_synced=is_synced)
        if drafts:
            self.count, self.previous = self.count + len(drafts), drafts[-1].hash
        if is_synced:
            self.synced = self.count, self.previous
        return [draft.head for draft in drafts]

    def sync(self) -> None:
        """Have all receipts on the disk.

        Raises:
            DiskFull: If there is no room; then those that the disk may lack are not in the chain any more.
            BadInput: If the disk fails; likewise.
        """
        try:
            with disk_errors(self.lines.path):
                self.lines.sync()
        except (DiskFull, BadInput):
            self.count, self.previous = self.synced
            raise
        self.synced = self.count, self.previous

    def close(self) -> None:
        """Let go of the file."""
        self.lines.close()

    def _last(self, stop: int) -> Head | None:
        """The head of the last receipt before a byte; None if there is none.

        Raises:
            ValueError: If it is none.
        """
        last = self.lines.last(stop)
        return head_of(parse_json(last, any_number=True)) if last else None

    def _restore(self, at: int, drafts: Sequence[Draft]) -> None:
        """Have receipts begin at a byte, if they are of this chain; what a stopped machine left of them goes.

        Raises:
            BadInput: If other receipts stand there.
        """
        if not drafts or at > self.lines.size:
            return
        try:
            before = self._last(at)
        except ValueError:  # it is another file
            return
        if drafts[0].head.previous != (FIRST if before is None else before.hash()):
            return
        for number, draft in enumerate(drafts):
            line = self.lines.line_at(at)
            if line != draft.line + b"\n":
                self._check_lost(line, draft)
                with disk_errors(self.lines.path):
                    self.lines.replace_from(at, [each.line for each in drafts[number:]])
                return
            at += len(line)

    def _check_lost(self, line: bytes, draft: Draft) -> None:
        """Refuse to put a receipt in the place of one that somebody else may have been given.

        Raises:
            BadInput: If a line is a receipt.
        """
        with contextlib.suppress(ValueError):
            head = head_of(parse_json(line, any_number=True))
            raise BadInput(
                found=f"{self.lines.path}, whose receipt {head.number} is of {head.id[:40]!r}, and of {draft.head.id[:40]!r} in the log",
                needed="the chain that belongs to the log: something else was sealed into it after the service had stopped",
                do="restore it from a copy, or pass a new --log with it",
            )


def drafted(sealed: Iterable[Sealed], number: int, previous: str, signer: Signer) -> list[Draft]:
    """Receipts that follow one another.

    Args:
        sealed: What they are of.
        number: Of the first.
        previous: Digest of the head before it.
        signer: The key.
    """
    drafts = []
    for each in sealed:
        drafts.append(_draft(each, number, previous, signer))
        number, previous = number + 1, drafts[-1].hash
    return drafts


def _draft(sealed: Sealed, number: int, previous: str, signer: Signer) -> Draft:
    facts = {name: getattr(sealed, name) for name in ("kind", "id", "time", "store", "token", "credit")}
    content = canonical(sealed.content)
    digest = hashlib.sha256(content).hexdigest()
    unsigned = Head(number=number, previous=previous, key=signer.public, digest=digest, **facts)
    return Draft(head=replace(unsigned, signature=signer.sign(unsigned.message())), content=content)


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
