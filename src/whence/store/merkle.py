"""Merkle trees after RFC 6962, section 2.1: one hash that stands for a list, and short proofs of what is where in it.

A leaf's hash has the prefix 0, an inner node's 1, so that neither passes for the other. A list of n splits at the largest power of two
below n.
"""

import hashlib
from collections.abc import Iterable, Sequence

__all__ = ["audit_path", "leaf_hash", "root_by_path", "tree_hash"]


def leaf_hash(content: bytes) -> bytes:
    """Hash of a leaf."""
    return hashlib.sha256(b"\0" + content).digest()


def tree_hash(leaves: Iterable[bytes]) -> bytes:
    """Hash of a list, in one pass and little memory.

    Args:
        leaves: Hashes of the leaves, in order.

    Returns:
        32 bytes; of an empty list the hash of nothing.
    """
    # Hashes of full trees, each with fewer leaves than the one before, as the bits of the number of leaves say.
    full: list[bytes] = []
    for count, leaf in enumerate(leaves):
        node, bits = leaf, count
        while bits & 1:
            node, bits = _node(full.pop(), node), bits >> 1
        full.append(node)
    if not full:
        return hashlib.sha256().digest()
    node = full.pop()
    while full:
        node = _node(full.pop(), node)
    return node


def audit_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes that lead from a leaf to the root, the nearest first.

    Args:
        leaves: Hashes of all leaves, in order.
        index: Of the leaf.
    """
    if len(leaves) == 1:
        return []
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if index < split:
        return [*audit_path(leaves[:split], index), tree_hash(leaves[split:])]
    return [*audit_path(leaves[split:], index - split), tree_hash(leaves[:split])]


def root_by_path(leaf: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes | None:
    """The root that a leaf has in its place, by its path (RFC 9162, section 2.1.3.2).

    Args:
        leaf: Its hash.
        index: Its place.
        count: Leaves of the tree.
        path: From `audit_path`.

    Returns:
        The hash; None if a tree of so many leaves has no such path.
    """
    if not 0 <= index < count:
        return None
    at, last, node = index, count - 1, leaf
    for other in path:
        if last == 0:
            return None
        if at & 1 or at == last:
            node = _node(other, node)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            node = _node(node, other)
        at, last = at >> 1, last >> 1
    return node if last == 0 else None


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()
