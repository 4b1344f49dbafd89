"""Options of the service, and the rules that keep it closed unless it is opened on purpose."""

import ipaddress
from dataclasses import dataclass

from whence.errors import BadInput

__all__ = ["ServeConfig", "check_token", "is_loopback"]

_SHORTEST_TOKEN = 16


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """How the service behaves, and what one request may ask of it.

    Args:
        host: Address to listen on. Any but a loopback address needs a token.
        port: Port to listen on; 0 takes a free one.
        redacted: Answer with ids, values and shares, and never with training text.
        log: SQLite file in which every answer is kept; ":memory:" keeps them until the service stops.
        retention_days: Age at which answers are deleted from the log.
        max_body_bytes: Largest body of a request.
        max_characters: Characters of a prompt, and of a completion, at most; the model's context is a limit of its own.
        max_image_bytes: Largest file of an uploaded image.
        max_k: Most hits on each side.
        max_new_tokens: Most tokens that one request may have generated.
        max_waiting: Requests that may wait; more are answered with 503 and Retry-After.
        batch: Waiting requests that share one scan at most.
        seconds: After so long a request is given up, with 504.
        drain_seconds: How long a stop waits for what has begun.
        workers: Processes that scan the stores, each a part of every store, for the one that answers and has the models; that one scans them
            itself if left out. One that is lost is replaced, and its part is scanned again.
        ray: With workers, have actors of a Ray cluster do that: its address, "auto" for the one that this machine is part of, or "local" for
            one on this machine only.

    Raises:
        BadInput: If a limit is not positive, the port is none, or there is a cluster without workers.
    """

    host: str = "127.0.0.1"
    port: int = 8420
    redacted: bool = False
    log: str = "whence-queries.sqlite"
    retention_days: float = 30.0
    max_body_bytes: int = 1 << 16
    max_characters: int = 20_000
    max_image_bytes: int = 4 << 20
    max_k: int = 100
    max_new_tokens: int = 256
    max_waiting: int = 64
    batch: int = 16
    seconds: float = 60.0
    drain_seconds: float = 30.0
    workers: int | None = None
    ray: str | None = None

    def __post_init__(self):
        for name in (
            "retention_days", "max_body_bytes", "max_characters", "max_image_bytes", "max_k", "max_new_tokens", "max_waiting", "batch",
            "seconds", "drain_seconds",
        ):  # fmt: skip
            if not getattr(self, name) > 0:
                raise BadInput(found=f"{name}={getattr(self, name)}", needed="more than 0", do="raise it, or leave it out")
        if not 0 <= self.port <= 65535:
            raise BadInput(found=f"port {self.port}", needed="0 to 65535", do="pick another")
        if self.ray is not None and self.workers is None:
            raise BadInput(
                found=f"ray={self.ray!r} without workers", needed="how many", do="say how many workers, or leave ray out"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_token(host: str, token: str | None) -> None:
    """Refuse to listen to others without a token.

    Args:
        host: Address to listen on.
        token: What requests have to show; None for none.

    Raises:
        BadInput: If it is missing where others reach the service, or too short to keep anybody out.
    """
    if token is None and not is_loopback(host):
        raise BadInput(
            found=f"the address {host} without a token",
            needed="a token wherever others can reach the service",
            do="pass --token-file with a file that holds one, or listen on 127.0.0.1",
        )
    if token is not None and (len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        raise BadInput(
            found=f"a token of {len(token)} characters",
            needed=f"{_SHORTEST_TOKEN} or more, printable ASCII",
            do="make one with `python -c 'import secrets; print(secrets.token_urlsafe())'`",
        )
