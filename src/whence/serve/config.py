"""Options of the service, and the rules that keep it closed unless it is opened on purpose."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from whence.errors import BadInput
from whence.serve.limits import Limits
from whence.serve.redaction import Redaction

__all__ = ["ServeConfig", "check_length", "check_token", "check_write_token", "is_loopback"]

_SHORTEST_TOKEN = 16


@dataclass(frozen=True, kw_only=True)
class ServeConfig(Limits):
    """How the service behaves, and its limits.

    Args:
        host: Address to listen on. Any but a loopback address needs a token.
        port: Port to listen on; 0 takes a free one.
        redacted: Answer with ids, rows, sources, values and shares, and never with training text or metadata.
        round_to: With redacted: significant digits of scores, sums and times; all of them if left out.
        least_group: With redacted: a source of fewer documents is not named, and a filter that lets fewer through has no hits.
        hide_ids: With redacted: hits have a handle, another one in every answer, instead of id and row.
        log: SQLite file in which every answer is kept; ":memory:" keeps them until the service stops.
        credits: Keep with every answer what each training example scored, all that `whence shares --log` needs for a payout. Takes four bytes
            of memory per row for each question of a scan.
        receipts: File of receipts: every answer gets one, signed and chained to the one before. Needs `sign_with`.
        sign_with: File with the private key that receipts are signed with, from `whence keys`.
        workers: Processes that scan the stores, each a part of every store, for the one that answers and has the models; that one scans them
            itself if left out. One that is lost is replaced, and its part is scanned again.
        ray: With workers, have actors of a Ray cluster do that: its address, "auto" for the one that this machine is part of, or "local" for
            one on this machine only.

    Raises:
        BadInput: If a limit is not positive, the port is none, receipts and their key are not both there, or there is a cluster without
            workers.
    """

    host: str = "127.0.0.1"
    port: int = 8420
    redacted: bool = False
    round_to: int | None = None
    least_group: int = 1
    hide_ids: bool = False
    log: str = "whence-queries.sqlite"
    credits: bool = False
    receipts: str | None = None
    sign_with: str | None = None
    workers: int | None = None
    ray: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.port <= 65535:
            raise BadInput(found=f"port {self.port}", needed="0 to 65535", do="pick another")
        self._check_redaction()
        if (self.receipts is None) != (self.sign_with is None):
            raise BadInput(
                found="receipts without a key" if self.receipts else "a key without a file of receipts",
                needed="both, or neither",
                do="pass --receipts and --sign-with; `whence keys` makes a key",
            )
        if self.ray is not None and self.workers is None:
            raise BadInput(
                found=f"ray={self.ray!r} without workers", needed="how many", do="say how many workers, or leave ray out"
            )

    def redaction(self, salts: Mapping[str, str] | None = None) -> Redaction | None:
        """What is told instead of training text; None where that is shown.

        Args:
            salts: By name of a client what its handles are made with, where each has its own.
        """
        if not self.redacted:
            return None
        return Redaction(self.round_to, self.least_group, self.hide_ids, salts=salts or {})

    def _check_redaction(self) -> None:
        """Refuse settings of a redacted service that cannot be, or for one that is not.

        Raises:
            BadInput: If there are any.
        """
        chosen = {"round_to": self.round_to, "least_group": self.least_group - 1, "hide_ids": self.hide_ids}
        names = [name for name, value in chosen.items() if value]
        if (self.round_to is not None and not 1 <= self.round_to <= 15) or self.least_group < 1:
            raise BadInput(
                found=f"round_to={self.round_to}, least_group={self.least_group}",
                needed="1 to 15 significant digits, and groups of 1 or more",
                do="correct them, or leave them out",
            )
        if names and not self.redacted:
            raise BadInput(
                found=f"{names[0]} without redacted", needed="a redacted service", do=f"add it, or leave {names[0]} out"
            )
        if names and self.receipts is not None:
            raise BadInput(
                found=f"{names[0]} with receipts",
                needed="answers as they are sealed",
                do=f"leave {names[0]} or the receipts out",
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_write_token(write_token: str | None, token: str | None, config: ServeConfig) -> None:
    """Refuse a token for changes that keeps nobody out, or changes that the service cannot make.

    Args:
        write_token: What requests have to show that change documents; None for none.
        token: What all others have to show.
        config: The options.

    Raises:
        BadInput: If it is too short, that of all others, or there are workers, which have the stores open.
    """
    if write_token is None:
        return
    check_length(write_token)
    if write_token == token:
        raise BadInput(
            found="one token for questions and for changes",
            needed="two: who may ask must not be able to delete",
            do="make another one",
        )
    if config.workers is not None:
        raise BadInput(
            found="changes of documents with workers, which have the stores open",
            needed="a service that scans them itself",
            do="leave workers out, or --write-token-file",
        )


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
    if token is not None:
        check_length(token)


def check_length(token: str, what: str = "token") -> None:
    """Refuse a secret that is easily guessed, or that no header can hold.

    Raises:
        BadInput: If it is one.
    """
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
        raise BadInput(
            found=f"a {what} of {len(token)} characters",
            needed=f"{_SHORTEST_TOKEN} or more, printable ASCII",
            do="make one with `python -c 'import secrets; print(secrets.token_urlsafe())'`",
        )
