"""Proofs of what is in a store, as files."""

from dataclasses import asdict
from pathlib import Path

from whence.errors import BadInput
from whence.ledger.canonical import canonical
from whence.plain_files import read_plain
from whence.store import PROOF_FORMAT, Proof, write_bytes
from whence.strict_json import parse_json, record_of

__all__ = ["is_proof", "read_proof", "write_proof"]


def write_proof(proof: Proof, path: str | Path) -> None:
    """Write a proof into a file.

    Args:
        proof: From `whence.store.prove`.
        path: Of the file.
    """
    write_bytes(Path(path), [canonical(asdict(proof)), b"\n"])


def is_proof(path: Path) -> bool:
    """Whether a file is meant to be a proof, damaged or not: by its name."""
    return path.is_file() and path.suffix == ".json"


def read_proof(path: str | Path) -> Proof:
    """A proof from a file.

    Raises:
        BadInput: If it is none.
    """
    try:
        return _read(Path(path))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BadInput(
            found=f"{path}, which is no proof as it was written ({error})",
            needed="what `whence prove` writes",
            do="ask for it again",
        ) from error


def _read(path: Path) -> Proof:
    """The same, with whatever is raised.

    Raises:
        ValueError: If it is none.
    """
    text = read_plain(path, is_named=True)
    content = parse_json(text)
    proof = record_of(Proof, content)
    if proof.format != PROOF_FORMAT:
        raise ValueError(f"it is of the format {proof.format[:40]!r}")
    if canonical(content) + b"\n" != text:
        raise ValueError("its bytes are others than those of its content")
    return proof
