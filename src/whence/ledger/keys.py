"""Keys that receipts are signed with: Ed25519 (RFC 8032), whose signatures are the same each time for the same text."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence.durable import disk_errors, write_file
from whence.errors import BadInput
from whence.plain_files import read_plain

__all__ = ["Signer", "is_signed", "new_key", "read_public_key", "read_signer"]

_KEY_BYTES = 1 << 14
_DIGITS = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Signer:
    """A private key in use.

    Args:
        public: Its public half, as 64 hexadecimal digits.
        key: The private half.
    """

    public: str
    key: Any

    def sign(self, message: bytes) -> str:
        """The signature of a text, as 128 hexadecimal digits."""
        return self.key.sign(message).hex()


def new_key(path: str | Path) -> str:
    """Make a key.

    Args:
        path: Of the private half, which only its owner may read; the public half gets the same path with `.pub` after it.

    Returns:
        The public half, as 64 hexadecimal digits.

    Raises:
        BadInput: If a key is there already, or nothing can be written.
    """
    path = Path(path)
    serialization, ed25519 = _library()
    if os.path.lexists(path):
        raise BadInput(
            found=f"something at {path} already",
            needed="a new file: a key that is lost cannot be made again",
            do="choose another",
        )
    key = ed25519.Ed25519PrivateKey.generate()
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )  # fmt: skip
    public = key.public_key().public_bytes_raw().hex()
    with disk_errors(path):
        write_file(path.with_name(f"{path.name}.pub"), [public.encode() + b"\n"])
        write_file(path, [text], mode=0o600)
    return public


def read_signer(path: str | Path) -> Signer:
    """The private key in a file.

    Raises:
        BadInput: If there is none, or others may read it.
    """
    path = Path(path)
    serialization, ed25519 = _library()
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        content = read_plain(path, at_most=_KEY_BYTES, is_named=True)
        others = path.stat().st_mode & 0o077
        key = serialization.load_pem_private_key(content, None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadInput(
            found=f"no private key in {path}", needed="a file that `whence keys` made", do="check the path, or make one"
        ) from error
    if others:
        raise BadInput(
            found=f"the private key {path}, which others may read or write (mode {path.stat().st_mode & 0o777:o})",
            needed="a file of its owner's alone",
            do=f"chmod 600 {path}; if somebody may have read it, make another key",
        )
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise BadInput(found=f"a key of another kind in {path}", needed="an Ed25519 key", do="make one with `whence keys`")
    return Signer(key.public_key().public_bytes_raw().hex(), key)


def read_public_key(text: str) -> str:
    """A public key as people pass it: its 64 hexadecimal digits, or the file that holds them.

    Raises:
        BadInput: If it is neither.
    """
    digits = text.strip()
    if not _is_key(digits):
        try:
            digits = read_plain(Path(text), at_most=_KEY_BYTES, is_named=True).decode("ascii").strip()
        except (OSError, ValueError):
            digits = ""
    if not _is_key(digits):
        raise BadInput(
            found=f"no public key in {text[:80]!r}", needed="64 hexadecimal digits, or the .pub file with them", do="check it"
        )
    return digits


def is_signed(public: str, message: bytes, signature: str) -> bool:
    """Whether a text has the signature of a key.

    Args:
        public: The public key, in hexadecimal digits.
        message: The text.
        signature: In hexadecimal digits. Both in one way only, small letters and nothing between: a text that says the same in other bytes is
            no signature.
    """
    _, ed25519 = _library()
    from cryptography.exceptions import InvalidSignature

    if not _is_key(public) or not _is_hex(signature, 128):
        return False
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _is_key(digits: str) -> bool:
    return _is_hex(digits, 64)


def _is_hex(digits: str, length: int) -> bool:
    return len(digits) == length and _DIGITS.issuperset(digits)


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise BadInput(
            found="no package cryptography", needed="it, for signatures", do="pip install 'whence-tda[receipts]'"
        ) from error
    return serialization, ed25519
