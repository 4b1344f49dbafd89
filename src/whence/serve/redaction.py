"""What a redacted service still tells: how coarsely, of how many documents together, and under which names."""

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from whence.serve.question import SIDES
from whence.serve.shares import OTHERS

__all__ = ["SMALL", "Redaction"]

SMALL = "(small sources)"
"""Stands for the sources that have too few documents to be named."""

_HANDLE_DIGITS = 16


@dataclass(frozen=True)
class Redaction:
    """How a redacted service shows answers.

    Args:
        digits: Significant digits of scores, sums and the measurement; None for all.
        least_group: A source of fewer documents is not named: its sums are added up with those of the other small ones.
        hides_ids: Whether hits have a handle instead of id and row. It is another one in every answer, but for clients with a salt, of whom
            each has its own in all of its answers.
        key: What handles are made with; nobody outside the process knows it.
        salts: By name of a client what its handles are made with instead.
    """

    digits: int | None = None
    least_group: int = 1
    hides_ids: bool = False
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    salts: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def hides_sources(self) -> bool:
        """Whether sources of few documents are not to be told from those that are not there."""
        return self.least_group > 1

    def shown(self, answer: Mapping[str, Any], sizes: Mapping[str, int], *, client: str = "") -> dict[str, Any]:
        """An answer without what is not told.

        Args:
            answer: Without training text.
            sizes: Documents of each source.
            client: Who asked.

        Returns:
            The answer. Where a filter lets fewer documents through than a group has to have, it has no hits.
        """
        is_narrow = answer["num_allowed"] < self.least_group
        sides = {
            side: [] if is_narrow else [self._hit(answer["id"], hit, sizes, client) for hit in answer[side]] for side in SIDES
        }
        # How many a filter lets through would tell how many documents a small source has, and whether there is such a source.
        allowed = {"num_allowed": 0} if is_narrow else {}
        coarse = allowed | {name: self.rounded(answer[name]) for name in ("measurement", "seconds") if name in answer}
        return {**answer, **sides, **coarse, "shares": self.shares(answer["shares"], sizes)}

    def shares(self, lines: Sequence[Mapping[str, Any]], sizes: Mapping[str, int]) -> list[dict[str, Any]]:
        """Sums of sources, those of small ones in one line, rounded.

        Args:
            lines: Each with `source` and numbers, which are added up.
            sizes: Documents of each source.

        Returns:
            The lines; that of the small sources comes last.
        """
        named: list[dict[str, Any]] = []
        small: dict[str, Any] = {}
        for line in lines:
            if self._is_named(line["source"], sizes):
                named.append(dict(line))
                continue
            for name, value in line.items():
                small[name] = SMALL if name == "source" else small.get(name, 0) + value
        return [{name: self.rounded(value) for name, value in line.items()} for line in [*named, *([small] if small else [])]]

    def rounded(self, value: Any) -> Any:
        """A float to so many significant digits; anything else as it is."""
        return float(f"{value:.{self.digits}g}") if self.digits is not None and isinstance(value, float) else value

    def _hit(self, answer: str, hit: Mapping[str, Any], sizes: Mapping[str, int], client: str) -> dict[str, Any]:
        coarse = {name: self.rounded(value) for name, value in hit.items()}
        if not self._is_named(hit["source"], sizes):
            coarse["source"] = SMALL
        if self.hides_ids:
            del coarse["row"]
            salt = self.salts.get(client)
            key, name = (self.key, f"{answer}\n{hit['id']}") if salt is None else (salt.encode(), hit["id"])
            digest = hmac.new(key, name.encode("utf-8", "replace"), hashlib.sha256)
            coarse["id"] = digest.hexdigest()[:_HANDLE_DIGITS]
        return coarse

    def _is_named(self, source: str, sizes: Mapping[str, int]) -> bool:
        return source == OTHERS or sizes.get(source, 0) >= self.least_group
