"""Every limit of the service, in one place: what a connection, a request, the line of questions and the log may take."""

import math
import os
import resource
from dataclasses import dataclass, fields

from whence.errors import BadInput

__all__ = [
    "LONGEST_ID",
    "LONGEST_NAME",
    "LONGEST_TIME",
    "MOST_PIXELS",
    "MOST_DOCUMENTS",
    "MOST_SOURCES",
    "Limits",
    "most_connections",
]

# Sizes of a request's fields, which /openapi.json names.
LONGEST_NAME, LONGEST_ID, LONGEST_TIME, MOST_SOURCES = 400, 4000, 40, 64
MOST_DOCUMENTS = 256
"""Documents that one request may add."""
MOST_PIXELS = 1 << 24
"""Pixels of an uploaded image, read before it is decoded."""

# With fewer than this a browser that opens six, a monitor and a client already stand in each other's way.
_FEWEST_CONNECTIONS = 8


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the service takes from outside, and for how long.

    Args:
        max_url_bytes: Longest address of a request; a longer one is refused with 414.
        max_header_bytes: Address and headers of a request together; more are refused with 431.
        max_headers: Most headers of a request; more are refused with 431.
        header_seconds: How long a request may take to send its headers; then 408.
        body_seconds: How long a request may take to send its body after that; then 408.
        send_seconds: A client that takes less than 64 KiB of its answer in so long, and not all of it, is cut off.
        idle_seconds: A connection without a request is closed after so long.
        max_connections: Most connections; fewer where the process may not open as many files. Where one more comes, the one that keeps the
            service waiting longest is closed for it; where none does, it gets 503.
        max_connections_each: Most connections of one address (of IPv6, of one /64 network); more are treated alike, with 429.
        reserved_files: Files that the process may open besides its connections.
        max_body_bytes: Largest body of a request.
        max_characters: Characters of a prompt, and of a completion, at most; the model's context is a limit of its own.
        max_image_bytes: Largest file of an uploaded image.
        max_k: Most hits on each side.
        max_new_tokens: Most tokens that one request may have generated.
        max_waiting: Requests that may wait; more are answered with 503 and Retry-After.
        batch: Waiting requests that share one scan at most.
        seconds: After so long a request is given up, with 504.
        drain_seconds: How long a stop waits for what has begun.
        retention_days: Age at which answers are deleted from the log.
        max_log_bytes: Size of the log at which the oldest answers are deleted, whatever their age.

    Raises:
        BadInput: If one is not a number above 0.
    """

    max_url_bytes: int = 8 << 10
    max_header_bytes: int = 16 << 10
    max_headers: int = 64
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    send_seconds: float = 30.0
    idle_seconds: float = 15.0
    max_connections: int = 512
    max_connections_each: int = 128
    reserved_files: int = 128
    max_body_bytes: int = 1 << 16
    max_characters: int = 20_000
    max_image_bytes: int = 4 << 20
    max_k: int = 100
    max_new_tokens: int = 256
    max_waiting: int = 64
    batch: int = 16
    seconds: float = 60.0
    drain_seconds: float = 30.0
    retention_days: float = 30.0
    max_log_bytes: int = 4 << 30

    def __post_init__(self):
        for item in fields(Limits):
            value = getattr(self, item.name)
            if not (value > 0 and math.isfinite(value)):
                raise BadInput(found=f"{item.name}={value}", needed="more than 0", do="raise it, or leave it out")

    @property
    def max_request_bytes(self) -> int:
        """The largest body of any request: one with an image, in base64, which takes four bytes for three."""
        return self.max_body_bytes + 4 * self.max_image_bytes // 3


def most_connections(limits: Limits) -> int:
    """Connections that this process can hold, its other files kept in reserve.

    Args:
        limits: What it should hold.

    Returns:
        At most `limits.max_connections`.

    Raises:
        BadInput: If hardly any are left.
    """
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return limits.max_connections
    left = allowed - len(os.listdir("/dev/fd")) - limits.reserved_files
    if left < min(_FEWEST_CONNECTIONS, limits.max_connections):
        raise BadInput(
            found=f"{max(0, left)} files left for connections, of {allowed:,} that this process may open",
            needed=f"{_FEWEST_CONNECTIONS} or more, beside {limits.reserved_files} in reserve",
            do="raise `ulimit -n`, or lower --reserved-files",
        )
    return min(limits.max_connections, left)
