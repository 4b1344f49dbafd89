"""Digests that take a pass over all of a model's weights, made once in a verb."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["digested_once", "kept_digest"]

# By object: itself, so that it lives as long as the entry, its state, and the digest.
_DIGESTS: ContextVar[dict[int, tuple[object, Hashable, str]] | None] = ContextVar("digests", default=None)


@contextmanager
def digested_once() -> Iterator[None]:
    """Keep digests until the block ends, however often they are asked for. Blocks may be nested.

    What changes inside, as weights do in a replay of a run, is digested again.

    Yields:
        Nothing.
    """
    token = _DIGESTS.set({}) if _DIGESTS.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _DIGESTS.reset(token)


def kept_digest(of: object, state: Hashable | None, make: Callable[[], str]) -> str:
    """A digest, made if it is not kept.

    Args:
        of: What is digested.
        state: Equal as long as that has not changed; None if nobody can tell.
        make: Makes the digest.

    Returns:
        The digest.
    """
    digests = _DIGESTS.get()
    if digests is None or state is None:
        return make()
    if id(of) not in digests or digests[id(of)][1] != state:
        digests[id(of)] = (of, state, make())
    return digests[id(of)][2]
