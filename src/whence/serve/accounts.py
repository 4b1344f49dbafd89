"""Clients with a token each: how much each may ask in a day, and what its handles of hidden ids are made with."""

import hmac
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from whence.errors import BadInput
from whence.plain_files import read_plain
from whence.serve.config import ServeConfig, check_length, check_token, check_write_token
from whence.serve.log import QueryLog
from whence.serve.responses import Refused
from whence.strict_json import fitted, parse_json

__all__ = ["Account", "Quotas", "account_of", "check_access", "read_accounts"]

_FILE_BYTES = 4 << 20
_LONGEST_NAME = 80
_DAY = 86_400


@dataclass(frozen=True, kw_only=True)
class Account:
    """A client.

    Args:
        name: What the log calls it.
        token: What its requests have to show.
        per_day: Questions that it may ask in a day of UTC; None for as many as it likes.
        salt: What handles of hidden ids are made with: they are the same in all of its answers, and others than every other client's. Empty
            for handles that are others in every answer.
    """

    name: str
    token: str
    per_day: int | None = None
    salt: str = ""


@dataclass(frozen=True)
class _Line:
    """What the file says of a client."""

    token: str
    per_day: int | None = None
    salt: str = ""


def read_accounts(path: str | Path) -> tuple[Account, ...]:
    """Clients from a file: a JSON object with, by name, `token` and perhaps `per_day` and `salt`.

    Raises:
        BadInput: If it cannot be read, or says what cannot be.
    """
    why, accounts = "it names none", ()
    try:
        content = parse_json(read_plain(Path(path), at_most=_FILE_BYTES, is_named=True))
        accounts = tuple(
            Account(name=name, **vars(line)) for name, line in fitted(dict[str, _Line], content, "the file").items()
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = str(error)
    if not accounts:
        raise BadInput(
            found=f"no clients in {path} ({why})",
            needed='a JSON object such as {"press": {"token": "...", "per_day": 1000, "salt": "..."}}',
            do="correct it",
        )
    _check_accounts(accounts)
    return accounts


def check_access(config: ServeConfig, token: str | None, write_token: str | None, accounts: Sequence[Account]) -> None:
    """Refuse secrets that keep nobody out, or of which one opens what another should.

    Args:
        config: The options.
        token: What requests have to show; None for none.
        write_token: What requests have to show that change documents; None for none.
        accounts: Clients with a token each, instead of `token`.

    Raises:
        BadInput: If there are such, or both a token for all and clients.
    """
    if accounts and token is not None:
        raise BadInput(
            found="one token for all and clients with a token each",
            needed="one or the other: who has the token for all would have no quota",
            do="leave the token out, or give its holder a client's",
        )
    _check_accounts(accounts)
    for each in [account.token for account in accounts] or [token]:
        check_token(config.host, each)
        check_write_token(write_token, each, config)


def account_of(header: bytes, accounts: Sequence[Account]) -> Account | None:
    """Whose token a request shows; it takes as long whosever it is."""
    asking = None
    for account in accounts:
        if hmac.compare_digest(header, f"Bearer {account.token}".encode()):
            asking = account
    return asking


class Quotas:
    """What clients have asked today.

    Answers are counted in the log, in the transaction that keeps them, so that a killed process forgets none that was given. Questions that
    failed or were cancelled count too, as long as the process runs. To be used from one thread.

    Args:
        accounts: The clients.
        log: Where answers are counted.
    """

    def __init__(self, accounts: Sequence[Account], log: QueryLog):
        self.most = {account.name: account.per_day for account in accounts}
        self.log = log
        self.day, self.counts = -1, dict[str, int]()

    def check(self, client: str) -> None:
        """Refuse a question that is one too many.

        Raises:
            Refused: If it is.
        """
        most, now = self.most.get(client), time.time()
        if most is None:
            return
        if int(now // _DAY) != self.day:
            self.day, self.counts = int(now // _DAY), {}
        if client not in self.counts:
            self.counts[client] = self.log.answers_on(client, self.day)
        if self.counts[client] >= most:
            raise Refused(
                429,
                found=f"{self.counts[client]:,} questions of this client today",
                needed=f"{most:,} in a day of UTC at most",
                do="ask again tomorrow, or ask whoever runs the service for more",
                headers={"Retry-After": str(int((self.day + 1) * _DAY - now) + 1)},
            )

    def count(self, client: str) -> None:
        """A question was taken."""
        if client in self.counts:
            self.counts[client] += 1


def _check_accounts(accounts: Sequence[Account]) -> None:
    """Refuse clients that cannot be told apart, or whose secrets are easily guessed.

    Raises:
        BadInput: If there are any.
    """
    for account in accounts:
        check_length(account.token)
        if account.salt:
            check_length(account.salt, "salt")
        if not account.name.isprintable() or not 0 < len(account.name) <= _LONGEST_NAME:
            raise BadInput(found="a client without a printable name", needed=f"1 to {_LONGEST_NAME} characters", do="name it")
        if account.per_day is not None and account.per_day < 1:
            raise BadInput(
                found=f"per_day={account.per_day} for the client {account.name}",
                needed="1 or more",
                do="leave it out for no quota, or leave the client out",
            )
    for what in ("name", "token", "salt"):
        values = [value for account in accounts if (value := getattr(account, what))]
        if len(set(values)) < len(values):
            raise BadInput(
                found=f"two clients with one {what}",
                needed="for each its own name, token and salt",
                do="correct the file of clients",
            )
