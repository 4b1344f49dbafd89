"""One way to write a value as JSON, so that its digest is the same wherever it is made."""

import hashlib
import json
from typing import Any

__all__ = ["canonical", "digest_of"]


def canonical(value: Any) -> bytes:
    r"""JSON in ASCII with sorted keys and no spaces; numbers as Python writes them, the shortest text that reads back as the same float.

    >>> canonical({"b": [1, 0.5], "a": "é"})
    b'{"a":"\\u00e9","b":[1,0.5]}'

    Raises:
        ValueError: If a number is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def digest_of(value: Any) -> str:
    """SHA-256 of a value as `canonical` writes it, in hexadecimal digits."""
    return hashlib.sha256(canonical(value)).hexdigest()
