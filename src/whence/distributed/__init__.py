"""Several processes on one job: which of them this is, and what they say to each other."""

from whence.distributed.ranks import Ranks

__all__ = ["Ranks"]
