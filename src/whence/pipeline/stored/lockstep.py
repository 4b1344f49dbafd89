"""Models that `fully_shard` split over the processes of a job: who runs which batch when.

Each layer's weight is gathered from all processes before it runs, forth and back, so a process that runs a layer waits until all do. Shards
of a store can therefore not be handed out to whoever is free. They are made in turns instead: in each, every rank makes the rows of one
shard, rank r of N the r-th of the next N that are missing. A rank whose shard has fewer batches than another's repeats its last
one, and a rank for which none is left takes the last shard again; rows that are made twice are dropped. Who does what follows from what is
missing, which all see alike, so nothing is sent. The rows are those of one process: each batch is what it would be there, and the weights
are the same numbers.

Everything else (checks, the forecast, learned axes, queries) is done by all ranks alike.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch.distributed as dist
from torch import nn

from whence.data import Example, batches
from whence.distributed import Ranks
from whence.errors import BadInput, RankLost
from whence.score import Batching
from whence.sharded_weights import is_sharded
from whence.store import Pending

__all__ = ["Turn", "first_then_others", "lost_ranks", "stepping", "turns"]

# What gloo and NCCL say when another process has ended.
_CONNECTION_WORDS = (
    "Connection closed",
    "Connection reset",
    "Connection refused",
    "Broken pipe",
    "gloo",
    "NCCL",
    "Socket Timeout",
)


@dataclasses.dataclass(frozen=True)
class Turn:
    """What a rank does while the others do the same.

    Args:
        shard: Whose rows it makes.
        is_kept: Whether it writes them; if not they are another rank's.
        calls: Batches to run, so that all run equally many.
    """

    shard: Pending
    is_kept: bool
    calls: int


def stepping(model: nn.Module, ranks: Ranks) -> Ranks:
    """The ranks as the model needs them: in step if it is split over them, and as they are if not.

    Raises:
        BadInput: If the model is split over other processes than these.
    """
    if not is_sharded(model):
        return ranks
    if dist.get_world_size() != ranks.count:
        raise BadInput(
            found=f"a model that fully_shard split over {dist.get_world_size()} processes, and ranks that are {ranks.count}",
            needed="all processes that have a part of it",
            do="pass runtime=whence.Runtime(ranks=whence.distributed.Ranks.launched()), and shard over all of them",
        )
    return dataclasses.replace(ranks, in_step=True)


def turns(pending: Sequence[Pending], examples: Sequence[Example], batching: Batching, ranks: Ranks) -> Iterator[Turn]:
    """The turns of one rank.

    Args:
        pending: Shards that are missing, the same for all ranks.
        examples: Of the dataset.
        batching: How examples are taken together.
        ranks: Who shares the work.

    Yields:
        As many turns as any rank has.
    """
    for start in range(0, len(pending), ranks.count):
        together = pending[start : start + ranks.count]
        calls = max(_num_batches(shard, examples, batching) for shard in together)
        yield Turn(together[min(ranks.rank, len(together) - 1)], ranks.rank < len(together), calls)


@contextmanager
def first_then_others(ranks: Ranks) -> Iterator[None]:
    """What the first rank does before the others do it too; for ranks in step.

    Yields:
        Nothing.
    """
    if ranks.rank > 0:
        ranks.wait()
    yield
    if ranks.rank == 0:
        ranks.wait()


@contextmanager
def lost_ranks(ranks: Ranks) -> Iterator[None]:
    """Say so if a pass fails because another rank has ended; for ranks in step.

    Yields:
        Nothing.

    Raises:
        RankLost: If one has.
        RuntimeError: Whatever else fails.
    """
    try:
        yield
    except RuntimeError as error:
        if not ranks.in_step or not any(word in str(error) for word in _CONNECTION_WORDS):
            raise error
        raise RankLost(
            found=f"rank {ranks.rank} of {ranks.count} waiting for one that is gone, which had a part of the model",
            needed="all of them until the end",
            do="see the messages of the other ranks, and run the same command again",
        ) from error


def _num_batches(shard: Pending, examples: Sequence[Example], batching: Batching) -> int:
    lengths = [example.length for example in examples[shard.start : shard.stop]]
    return sum(1 for _ in batches(lengths, max_positions=batching.positions, max_examples=batching.examples))
