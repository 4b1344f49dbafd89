"""The processes of a data-parallel run: which of them this is, and how they wait for each other."""

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from whence.errors import Unsupported
from whence.internals import COMPILED
from whence.sharded_weights import is_sharded

__all__ = ["Ranks", "ranks_of", "rank_folder"]


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one model.

    Args:
        rank: Its number; the first writes the weights.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()

    def of_first(self, value: Any) -> Any:
        """What the first one passes."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


def ranks_of(model: nn.Module) -> Ranks:
    """The processes that train a model together.

    Raises:
        Unsupported: If its weights are sharded, or if there are several and it is not `DistributedDataParallel` that joins their gradients.
    """
    if is_sharded(model):
        raise Unsupported(
            found="a model that fully_shard split over processes",
            needed="whole weights and optimizer states, which a recorder copies",
            do="train it in DistributedDataParallel, or in one process without fully_shard: sharded models cannot be recorded",
        )
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return Ranks()
    if not isinstance(model, DistributedDataParallel) and not isinstance(
        getattr(model, COMPILED, None), DistributedDataParallel
    ):
        raise Unsupported(
            found=f"{dist.get_world_size()} processes and a {type(model).__name__}",
            needed="a model in DistributedDataParallel, which says how gradients are joined",
            do="pass the wrapped model; sharded models cannot be recorded",
        )
    return Ranks(dist.get_rank(), dist.get_world_size())


def rank_folder(rank: int) -> str:
    """Where a process other than the first keeps its steps, inside the run's folder.

    >>> rank_folder(3)
    'rank-00003'
    """
    return f"rank-{rank:05d}"
