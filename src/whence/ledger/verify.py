"""Whether a chain of receipts is whole: every byte, every signature, every link."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence.errors import BadInput
from whence.ledger.canonical import canonical, digest_of
from whence.ledger.keys import is_signed
from whence.ledger.receipts import FIRST, Head, head_of
from whence.plain_files import open_plain
from whence.strict_json import parse_json

__all__ = ["ChainCheck", "is_chain", "verify_chain"]

_LONGEST_LINE = 64 << 20


@dataclass(frozen=True)
class ChainCheck:
    """What came of checking a chain.

    Args:
        faults: The first receipt that is wrong, and what in it; empty if all is well.
        notes: What could not be checked.
        heads: Of the receipts before that.
        contents: Of these, by number, as far as they are published.
    """

    faults: tuple[str, ...]
    notes: tuple[str, ...]
    heads: tuple[Head, ...]
    contents: dict[int, Any]

    @property
    def head(self) -> str:
        """The head of the chain."""
        return self.heads[-1].hash() if self.heads else FIRST


def is_chain(path: Path) -> bool:
    """Whether a file is a chain of receipts, damaged or not: by its name, or its first bytes."""
    if not path.is_file():
        return False
    try:
        with open_plain(path, is_named=True) as file:
            return b'"previous":' in file.read(1 << 16) or path.suffix == ".jsonl"
    except OSError:
        return False


def verify_chain(path: str | Path, *, keys: Sequence[str] = (), published: str | None = None) -> ChainCheck:
    """Check a chain of receipts from its first to its last byte.

    Args:
        path: The file.
        keys: Public keys that may have signed, in hexadecimal digits; without one the first receipt's own key is believed.
        published: Head of the chain, or of an earlier part of it, that was published.

    Returns:
        Faults and notes.

    Raises:
        BadInput: If there is no such file.
    """
    path, heads, contents, fault = Path(path), [], {}, ""
    keys = tuple(keys)
    notes = [] if keys else ["no key was given: whoever has another key could have written all of it (--key)"]
    try:
        for line in _lines(path):
            previous = heads[-1] if heads else None
            head, content, fault = _checked(line, previous, keys)
            if head is None or fault:
                break
            keys = keys or (head.key,)
            heads.append(head)
            if content is not None:
                contents[head.number] = content
    except OSError as error:
        raise BadInput(found=f"{path}, which cannot be read ({error})", needed="a file of receipts", do="check it") from error
    faults = [f"{path}: receipt {len(heads)}: {fault}"] if fault else []
    without = len(heads) - len(contents)
    notes += [f"{without:,} of {len(heads):,} receipts are published without their content"] if without else []
    if published is None:
        notes.append("no head was given: receipts cut off at the end would not be noticed (--head)")
    elif published not in {FIRST, *(head.hash() for head in heads)}:
        faults.append(f"{path}: the published head {published[:80]} is that of none of its {len(heads):,} receipts")
    return ChainCheck(tuple(faults), tuple(notes), tuple(heads), contents)


def _lines(path: Path) -> Iterator[bytes]:
    with open_plain(path, is_named=True) as file:
        while line := file.readline(_LONGEST_LINE + 1):
            yield line


def _checked(line: bytes, previous: Head | None, keys: Sequence[str]) -> tuple[Head | None, Any, str]:
    """A receipt, its content, and what is wrong with it; empty if nothing is."""
    if not line.endswith(b"\n"):
        return (
            None,
            None,
            "it is cut off: an append was not finished (the service mends that when it starts), or bytes are missing",
        )
    try:
        entry = parse_json(line, any_number=True)
        head = head_of(entry)
        is_exact = canonical(entry) + b"\n" == line
    except ValueError as error:
        return None, None, f"it cannot be read ({error})"
    content = entry.get("content")
    number, before = (0, FIRST) if previous is None else (previous.number + 1, previous.hash())
    if not is_exact:
        return head, content, "it is not written as it was"
    if head.number != number:
        return head, content, f"it has the number {head.number}, not {number}: receipts are missing or out of order"
    if keys and head.key not in keys:
        return head, content, f"it was signed with another key ({head.key[:16]})"
    if not is_signed(head.key, head.message(), head.signature):
        return head, content, "its signature is not that of its head, of which a field was changed"
    if head.previous != before:
        return head, content, "it does not follow the receipt before (previous)"
    if "content" in entry and digest_of(content) != head.digest:
        return head, content, "its content is not what was sealed (digest)"
    return head, content, ""
