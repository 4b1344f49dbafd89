"""Merkle trees as RFC 6962, section 2.1, defines them: by recursion, on contents."""

import hashlib


def split_of(count):
    split = 1
    while 2 * split < count:
        split *= 2
    return split


def tree_hash(contents):
    """MTH(D[n])."""
    if not contents:
        return hashlib.sha256(b"").digest()
    if len(contents) == 1:
        return hashlib.sha256(b"\x00" + contents[0]).digest()
    split = split_of(len(contents))
    return hashlib.sha256(b"\x01" + tree_hash(contents[:split]) + tree_hash(contents[split:])).digest()


def audit_path(index, contents):
    """PATH(m, D[n])."""
    if len(contents) == 1:
        return []
    split = split_of(len(contents))
    if index < split:
        return [*audit_path(index, contents[:split]), tree_hash(contents[split:])]
    return [*audit_path(index - split, contents[split:]), tree_hash(contents[:split])]


def documents_root(documents):
    """The commitment of a mapping from ids to texts, with everything spelled out."""
    sha = lambda content: hashlib.sha256(content).digest()  # noqa: E731
    pairs = [(name.encode(), sha(text.encode())) for name, text in documents]
    total = sum(int.from_bytes(sha(b"\x05" + sha(name) + text), "big") for name, text in pairs) % 2**256
    secret = sha(b"\x06" + total.to_bytes(32, "big"))
    leaves = []
    for name, text in pairs:
        for key, what in ((sha(b"\x02" + name), text), (sha(b"\x03" + text), sha(name))):
            leaves.append(key + sha(sha(secret + key + what) + what))
    return sha(b"\x04" + len(leaves).to_bytes(8, "big") + tree_hash(sorted(leaves))).hex()
