"""Settings that many tests have in common, and records from options that a test draws by name."""

from dataclasses import fields
from typing import Any

from whence.methods import METHODS
from whence.settings import ExactSettings, Runtime, exact_settings

QUIET = Runtime(quiet=True)
_RUNTIME = {field.name for field in fields(Runtime)}


def small_rank(method: str, *, joined: int = 0, side: int = 0) -> dict[str, int]:
    """The rank of a store's method at which something of a small model is shrunk, for rows of all units or of each; aligned's own."""
    rank = 0 if method == "aligned" else joined if METHODS[method].is_joined else side
    return {"rank": rank} if rank else {}


def settings_of(method: str = "ekfac", **options: Any) -> ExactSettings:
    """The settings of an exact method from flat options."""
    return exact_settings(method, options)


def keywords_of(method: Any = "ekfac", **options: Any) -> dict[str, Any]:
    """The keywords of `whence.attribute` and its like from flat options: of the method, of the runtime, of the table; quiet."""
    runtime = Runtime(**{"quiet": True, **{name: value for name, value in options.items() if name in _RUNTIME}})
    table = {name: value for name, value in options.items() if name in ("groups", "per_unit", "tokens_of")}
    rest = {name: value for name, value in options.items() if name not in _RUNTIME and name not in table}
    assert isinstance(method, str) or not rest, f"{', '.join(rest)} beside settings, which would be without effect"
    return {"method": exact_settings(method, rest) if isinstance(method, str) else method, "runtime": runtime, **table}
