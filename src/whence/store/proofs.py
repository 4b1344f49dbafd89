"""Proofs that a document is in a store, or is not, which show no other one."""

import hashlib
from dataclasses import dataclass
from typing import Any

from whence.errors import BadInput
from whence.store.documents import By, Leaf, blind_of, commitment, content_digest, key_of, sealed_value, tree_of
from whence.store.merkle import audit_path, root_by_path
from whence.store.reader import Store

__all__ = ["PROOF_FORMAT", "Proof", "check_proof", "prove"]

PROOF_FORMAT = "whence proof 1"


@dataclass(frozen=True)
class Opening:
    """A leaf and its way to the root.

    Args:
        index: Its place among all leaves.
        key: What it is found by, in hexadecimal digits.
        value: What it says besides, blinded.
        path: Hashes from it to the root.
    """

    index: int
    key: str
    value: str
    path: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A proof.

    Args:
        by: Whether the document is named by its id or by its text.
        id: Its id; empty in a proof that a text is not in the store.
        text: SHA-256 of its text; empty in a proof that an id is not in the store.
        is_in: Whether it is in the store.
        leaves: Leaves of the tree, two for each document.
        root: The commitment.
        openings: The document's own leaf, or the neighbours between which it would have to be.
        blind: What opens the leaf; empty where the document is not in the store.
        format: Of proofs.
    """

    by: By
    id: str
    text: str
    is_in: bool
    leaves: int
    root: str
    openings: tuple[Opening, ...]
    blind: str = ""
    format: str = PROOF_FORMAT


def prove(store: Store, *, id: str | None = None, text: str | None = None) -> Proof:
    """Prove that a document is in a store, or that it is not.

    Args:
        store: The store.
        id: The document's id; or
        text: its whole text, as it was trained on.

    Returns:
        The proof, for `check_proof`.

    Raises:
        BadInput: If there are both or neither.
    """
    if (id is None) == (text is None):
        raise BadInput(found="an id and a text" if text is not None else "neither id nor text", needed="one", do="pass one")
    tree = tree_of(store.examples)
    hashes = tree.hashes()
    digest = b"" if text is None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    by: By = "text" if id is None else "id"
    key = key_of(by, digest if id is None else id.encode("utf-8", "surrogatepass"))
    at = tree.first_at(key)

    def opening(index: int) -> Opening:
        leaf = tree.leaf(index)
        return Opening(index, leaf.key.hex(), leaf.value.hex(), tuple(node.hex() for node in audit_path(hashes, index)))

    first = opening(0)
    facts: dict[str, Any] = {"by": by, "leaves": len(hashes), "root": _root(first, len(hashes))}
    if at == len(hashes) or tree.leaf(at).key != key:
        openings = tuple(opening(index) for index in (at - 1, at) if 0 <= index < len(hashes))
        return Proof(**facts, id=id or "", text=digest.hex(), is_in=False, openings=openings)
    example = _example(store, id, digest)
    identity = hashlib.sha256(example["id"].encode("utf-8", "surrogatepass")).digest()
    content = content_digest(example)
    blind = blind_of(tree.secret, key, content if by == "id" else identity)
    # Several documents may have one text.
    value = sealed_value(blind, content if by == "id" else identity)
    while tree.leaf(at).value != value:
        at += 1
    return Proof(**facts, id=example["id"], text=content.hex(), is_in=True, openings=(opening(at),), blind=blind.hex())


def check_proof(proof: Proof, *, root: str | None = None, text: str | None = None) -> list[str]:
    """What is wrong with a proof; empty if it holds.

    Args:
        proof: The proof.
        root: The commitment that was published; without it any tree would do.
        text: The text that it is about, to be held against the digest in it.
    """
    faults = []
    if root is not None and root != proof.root:
        faults.append(f"root: it is of {proof.root[:16]}, not of the published {root[:16]}")
    if text is not None and hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() != proof.text:
        faults.append("text: it is of another text than the one that was given")
    try:
        why = _why_not(proof)
    except (ValueError, OverflowError) as error:
        why = f"it cannot be read ({error})"
    return faults + ([why] if why else [])


def _why_not(proof: Proof) -> str:
    """Why a proof does not hold by itself; empty if it does."""
    what = bytes.fromhex(proof.text) if proof.by == "text" else proof.id.encode("utf-8", "surrogatepass")
    key = key_of(proof.by, what)
    for number, each in enumerate(proof.openings):
        if _root(each, proof.leaves) != proof.root:
            return f"openings[{number}]: its path does not lead to the root"
    if proof.is_in:
        if len(proof.openings) != 1:
            return "openings: not one leaf"
        identity = hashlib.sha256(proof.id.encode("utf-8", "surrogatepass")).digest()
        value = sealed_value(bytes.fromhex(proof.blind), bytes.fromhex(proof.text) if proof.by == "id" else identity)
        if proof.openings[0].key != key.hex() or len(proof.blind) != 64 or len(proof.text) != 64:
            return f"openings[0].key: it is not that of the {proof.by}"
        return "" if proof.openings[0].value == value.hex() else "openings[0].value: it is not that of this id and this text"
    if proof.blind or (proof.id if proof.by == "text" else proof.text):
        return "id, text or blind: more than what is proven not to be there"
    return _why_not_between(proof, key)


def _why_not_between(proof: Proof, key: bytes) -> str:
    """Why a key may be in the tree after all."""
    openings, last = proof.openings, proof.leaves - 1
    indices = [each.index for each in openings]
    is_gap = len(indices) == 2 and indices[1] == indices[0] + 1
    if not (is_gap or indices == [0] or indices == [last]):
        return "openings: they are not neighbours, nor the first or the last"
    if indices == [0] and last > 0 and key > bytes.fromhex(openings[0].key):
        return "openings[0].key: it is not above what is proven not to be there"
    below = openings[0] if is_gap or (indices == [last] and key > bytes.fromhex(openings[0].key)) else None
    above = openings[-1] if is_gap or below is None else None
    if below is not None and not bytes.fromhex(below.key) < key:
        return "openings[0].key: it is not below what is proven not to be there"
    if above is not None and not (bytes.fromhex(above.key) > key and (is_gap or above.index == 0)):
        return f"openings[{len(openings) - 1}].key: it is not above what is proven not to be there"
    return ""


def _root(each: Opening, count: int) -> str:
    leaf = Leaf(bytes.fromhex(each.key), bytes.fromhex(each.value))
    is_short = len(leaf.key) != 32 or len(leaf.value) != 32 or any(len(node) != 64 for node in each.path)
    root = None if is_short else root_by_path(leaf.hash(), each.index, count, [bytes.fromhex(node) for node in each.path])
    return "" if root is None else commitment(count, root)


def _example(store: Store, name: str | None, digest: bytes) -> dict[str, Any]:
    """The document, which is there."""
    return next(
        example
        for example in store.examples()
        if (example["id"] == name if name is not None else example.get("text") and content_digest(example) == digest)
    )
