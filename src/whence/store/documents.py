"""What a store commits to: one hash over all of its documents, by id and by text, that gives none of them away.

Each document has two leaves, one that is found by its id and one by its text. They are sorted by a hash of these, so that two neighbours
prove that nothing is between them. What else is in a leaf is blinded with a key that only whoever has all documents can make.

Axes: N documents, L = 2 N leaves.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from whence.store.merkle import leaf_hash, tree_hash

__all__ = [
    "Documents",
    "Leaf",
    "Tree",
    "blind_of",
    "commitment",
    "content_digest",
    "documents_of",
    "key_of",
    "sealed_value",
    "tree_of",
]

By = Literal["id", "text"]
# Bytes of two digests; so many documents at once take 1.5 GiB, more take several passes.
_WIDTH = 64
_AT_ONCE = 1 << 22
_PREFIX = {"id": b"\2", "text": b"\3"}


@dataclass(frozen=True)
class Documents:
    """What a store commits to.

    Args:
        count: How many there are.
        root: The commitment: 64 hexadecimal digits.
    """

    count: int
    root: str


@dataclass(frozen=True)
class Leaf:
    """A leaf, opened.

    Args:
        key: What it is found by: a hash of the id or of the text's digest.
        value: What it says besides, blinded.
    """

    key: bytes
    value: bytes

    def hash(self) -> bytes:
        """As it is in the tree."""
        return leaf_hash(self.key + self.value)


@dataclass(frozen=True)
class Tree:
    """All leaves of a store, for proofs.

    Args:
        leaves_L: Key and value of each, shape (L, 64), sorted.
        secret: What values are blinded with.
    """

    leaves_L: np.ndarray
    secret: bytes

    def leaf(self, index: int) -> Leaf:
        """A leaf by its place."""
        content = self.leaves_L[index].tobytes()
        return Leaf(content[:32], content[32:])

    def hashes(self) -> list[bytes]:
        """Hashes of all leaves, in order."""
        return [leaf_hash(row.tobytes()) for row in self.leaves_L]

    def first_at(self, key: bytes) -> int:
        """The first leaf whose key is not below another one."""
        # Keys of 32 bytes compare as Python compares bytes.
        low, high = 0, len(self.leaves_L)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.leaf(middle).key < key else (low, middle)
        return low


def content_digest(example: Mapping[str, Any]) -> bytes:
    """SHA-256 of a document: of its text as UTF-8, or, of one without, of what else is known of it."""
    text = example.get("text")
    if text:
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    rest = sorted((name, repr(value)) for name, value in example.items() if name != "id")
    return hashlib.sha256(repr(rest).encode("utf-8", "surrogatepass")).digest()


def key_of(by: By, what: bytes) -> bytes:
    """What a leaf is found by.

    Args:
        by: Whether it is an id or a text.
        what: The id as UTF-8, or the digest of the text.
    """
    return hashlib.sha256(_PREFIX[by] + what).digest()


def sealed_value(blind: bytes, what: bytes) -> bytes:
    """What a leaf says besides, blinded.

    Args:
        blind: 32 bytes, known for a leaf that was opened.
        what: The digest of the text, for a leaf that is found by id; else that of the id.
    """
    return hashlib.sha256(blind + what).digest()


def blind_of(secret: bytes, key: bytes, what: bytes) -> bytes:
    """What one leaf is blinded with; it tells nothing of the others."""
    return hashlib.sha256(secret + key + what).digest()


def commitment(count: int, root: bytes) -> str:
    """The published hash: of the number of leaves, and of the tree.

    >>> commitment(0, b"")[:16]
    '93e60f669b99ad3e'
    """
    return hashlib.sha256(b"\4" + count.to_bytes(8, "big") + root).hexdigest()


def documents_of(examples: Any) -> Documents:
    """The commitment of a store's documents.

    Args:
        examples: Called for all of them as often as needed: one pass more for every 4 million.
    """
    secret, count = _secret(examples())
    parts = max(1, -(-count // _AT_ONCE))
    pairs = (_sorted_leaves(examples(), secret, part, parts) for part in range(parts))
    root = tree_hash(leaf_hash(row.tobytes()) for leaves_L in pairs for row in leaves_L)
    return Documents(count, commitment(2 * count, root))


def tree_of(examples: Any) -> Tree:
    """All leaves of a store; arguments as in `documents_of`. They take some 400 bytes a document."""
    secret, _ = _secret(examples())
    return Tree(_sorted_leaves(examples(), secret, 0, 1), secret)


def _digests(examples: Iterable[Mapping[str, Any]]) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Id, its digest, and the digest of the content of each document.

    Yields:
        The three.
    """
    for example in examples:
        name = example["id"].encode("utf-8", "surrogatepass")
        yield name, hashlib.sha256(name).digest(), content_digest(example)


def _secret(examples: Iterable[Mapping[str, Any]]) -> tuple[bytes, int]:
    """A key that takes all documents to make, in whatever order they are; and how many they are."""
    total, count = 0, 0
    for _, identity, content in _digests(examples):
        total += int.from_bytes(hashlib.sha256(b"\5" + identity + content).digest(), "big")
        count += 1
    return hashlib.sha256(b"\6" + (total % (1 << 256)).to_bytes(32, "big")).digest(), count


def _sorted_leaves(examples: Iterable[Mapping[str, Any]], secret: bytes, part: int, parts: int) -> np.ndarray:
    """The leaves of a part of all keys, in order; shape (leaves, 64)."""
    leaves = bytearray()
    for name, identity, content in _digests(examples):
        for key, what in ((key_of("id", name), content), (key_of("text", content), identity)):
            if int.from_bytes(key[:4], "big") * parts >> 32 == part:
                leaves += key + sealed_value(blind_of(secret, key, what), what)
    leaves_L = np.frombuffer(leaves, np.uint8).reshape(-1, _WIDTH)
    # As big-endian numbers, whose order is that of the bytes.
    words = leaves_L.view(">u8")
    return leaves_L[np.lexsort(words.T[::-1])]
