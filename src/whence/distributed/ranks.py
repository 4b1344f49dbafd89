"""The processes of a job, as torchrun, SLURM or Kubernetes start them.

Most of what ranks do needs no messages: a build hands out shards through locks on the file system. Sums of curvature, products of solvers,
scores and gathered hits go through `torch.distributed`, over gloo, which needs no GPU.
"""

import heapq
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from whence.errors import BadInput, RankLost

__all__ = ["Ranks"]

Item = TypeVar("Item")
# A rank that is gone shows at once, by its closed connection; one that only has more to do is waited for.
_PATIENCE = timedelta(days=7)
# Process groups that this process was in.
_GROUPS = itertools.count()


@dataclass(frozen=True)
class Ranks:
    """This process among those that do one job together.

    Args:
        rank: Its number, from 0.
        count: How many there are.
        local_count: How many of them share this machine's memory.
        in_step: Whether all do the same work at the same time, since a model that is split over them runs on all or none: nothing is
            divided then, and nothing added up.

    Raises:
        BadInput: If the numbers cannot be.

    >>> Ranks(1, 3).mine("abcdefg")
    ['b', 'e']
    """

    rank: int = 0
    count: int = 1
    local_count: int = 1
    in_step: bool = False

    def __post_init__(self):
        if not 0 <= self.rank < self.count or not 1 <= self.local_count <= self.count:
            raise BadInput(
                found=f"rank {self.rank} of {self.count}, {self.local_count} on this machine",
                needed="ranks from 0 to one below their count",
                do="correct RANK, WORLD_SIZE and LOCAL_WORLD_SIZE, or let torchrun set them",
            )

    @classmethod
    def launched(cls) -> "Ranks":
        """What the environment says: RANK, WORLD_SIZE and, where several share a machine, LOCAL_WORLD_SIZE; alone without them.

        Raises:
            BadInput: If only some of them are set, or they are no numbers.
        """
        given = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE") if name in os.environ}
        if not given:
            return cls()
        try:
            return cls(int(given["RANK"]), int(given["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        except (KeyError, ValueError) as error:
            raise BadInput(
                found=", ".join(f"{name}={value!r}" for name, value in given.items()) + " in the environment",
                needed="numbers in RANK and WORLD_SIZE, or neither",
                do="start the processes with torchrun, set both, or unset them",
            ) from error

    @contextmanager
    def connected(self, backend: str = "gloo") -> Iterator[None]:
        """Let the ranks talk, for as long as the block runs; not needed by a build, but where a model is split over them.

        Uses the process group that is there, or makes one from MASTER_ADDR and MASTER_PORT.

        Args:
            backend: What it is made over, as torch.distributed calls it.

        Yields:
            Nothing.

        Raises:
            BadInput: If the other ranks cannot be reached.
        """
        if self.count == 1 or dist.is_initialized():
            yield
            return
        try:
            # Each group meets under a name of its own: one that comes after another would find the addresses of the former.
            store = PrefixStore(f"whence-{next(_GROUPS)}", _meeting_place(self.rank, self.count))
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.count, timeout=_PATIENCE)
        except (ValueError, RuntimeError) as error:  # a variable that is missing, an address that nobody listens at
            raise BadInput(
                found=f"rank {self.rank} of {self.count}, which does not reach the others ({str(error).splitlines()[0][:120]})",
                needed="MASTER_ADDR and MASTER_PORT of rank 0, the same everywhere",
                do="start the processes with torchrun, or set both",
            ) from error
        try:
            yield
        finally:
            dist.destroy_process_group()

    def mine(self, items: Sequence[Item]) -> list[Item]:
        """Every so many-th of some items, so that all ranks together have each once; all of them for ranks in step."""
        return list(items) if self.in_step else list(items[self.rank :: self.count])

    def part(self, length: int) -> range:
        """This rank's run of neighbours among `length` items; those of all ranks are about as long and follow each other.

        >>> Ranks(1, 3).part(8)
        range(2, 5)
        """
        return range(self.rank * length // self.count, (self.rank + 1) * length // self.count)

    def balanced(self, costs: Sequence[float]) -> list[int]:
        """Places of this rank's items, so that all ranks have about as much to do.

        The dearest first, each to the rank with least so far: none has more than 4/3 of what it would in the best division (Graham 1969).

        Args:
            costs: Of the items, in any unit.

        Returns:
            The places, rising; those of all ranks together are each item once. All of them for ranks in step.

        >>> Ranks(1, 2).balanced([1, 8, 3, 5])
        [2, 3]
        """
        if self.count == 1 or self.in_step:
            return list(range(len(costs)))
        loads = [(0.0, rank) for rank in range(self.count)]
        mine = []
        for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
            load, rank = loads[0]
            heapq.heapreplace(loads, (load + costs[index], rank))
            if rank == self.rank:
                mine.append(index)
        return sorted(mine)

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.count > 1:
            with self._together():
                dist.barrier()

    def of_first(self, value: Any) -> Any:
        """What the first rank passes, on every rank."""
        if self.count == 1:
            return value
        values = [value]
        with self._together():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def gathered(self, value: Any) -> list[Any]:
        """What every rank passes, in the order of ranks, on every rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with self._together():
            dist.all_gather_object(values, value)
        return values

    def added_up(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over ranks, by name; a name that a rank does not have counts as zero there.

        Every rank gets the same bits. Summed in the tensors' own type, which should be as wide as the sum needs.

        Args:
            tensors: Of this rank; with the same shape and type wherever there is one of the name.

        Returns:
            All names, in the order in which the first rank that has one has them, on the device that they were on.
        """
        if self.count == 1 or self.in_step:
            return dict(tensors)
        layout: dict[str, tuple[torch.Size, torch.dtype]] = {}
        for theirs in self.gathered({name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}):
            for name, what in theirs.items():
                layout.setdefault(name, what)
        totals = {}
        with self._together():
            for name, (shape, dtype) in layout.items():
                mine = tensors.get(name)
                device = torch.device("cpu") if mine is None else mine.device
                sum_ = torch.zeros(shape, dtype=dtype) if mine is None else mine.detach().cpu().clone().contiguous()
                dist.all_reduce(sum_)
                totals[name] = sum_.to(device)
        return totals

    def check_alike(self, tensors: Sequence[Tensor], what: str) -> None:
        """Stop, on every rank, if the ranks hold different bits: from there on they would take different turns and wait for each other.

        Args:
            tensors: That should be the same everywhere.
            what: They are, for the error.

        Raises:
            BadInput: If they are not the same.
        """
        if self.count == 1:
            return
        # Sums of the bits as whole numbers: any single change shows, and nothing has to be sent.
        marks = self.gathered([int(tensor.detach().contiguous().view(torch.int32).sum()) for tensor in tensors])
        if any(mark != marks[0] for mark in marks):
            raise BadInput(
                found=f"{what} that are not the same on all {self.count} ranks",
                needed="processes that compute alike",
                do="start them on the same kind of machine, with the same versions and OMP_NUM_THREADS, or in one process",
            )

    @contextmanager
    def _together(self) -> Iterator[None]:
        if not dist.is_initialized():
            raise BadInput(
                found=f"rank {self.rank} of {self.count}, which is not connected",
                needed="a process group, since what the ranks find is put together",
                do="do it inside `with ranks.connected():`",
            )
        try:
            yield
        except RuntimeError as error:
            raise RankLost(
                found=f"rank {self.rank} of {self.count} waiting for one that is gone",
                needed="all of them until the end",
                do="see the messages of the other ranks, and run the same command again",
            ) from error


@cache
def _meeting_place(rank: int, count: int) -> Store:
    """Where the ranks find each other, kept until the process ends: the others may still be there when the first one is done."""
    return next(rendezvous("env://", rank=rank, world_size=count))[0]
