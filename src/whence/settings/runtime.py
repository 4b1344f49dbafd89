"""How a job runs: memory, batches, progress, processes. The numbers do not depend on it, but for rounding."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from whence.errors import BadInput
from whence.progress import is_shown_elsewhere
from whence.settings.checks import typed

if TYPE_CHECKING:
    from whence.distributed import Ranks

__all__ = ["Runtime", "check_batch", "check_memory"]


def _one_process() -> "Ranks":
    from whence.distributed import Ranks  # torch comes with it, which the command line's help does not wait for

    return Ranks()


@dataclass(frozen=True, kw_only=True)
@typed
class Runtime:
    """How a job runs.

    Args:
        batch_positions: Positions (tokens) per batch; None measures what fits.
        batch_size: Examples per batch if all were as long as the longest; of shorter ones a batch holds more, up to as many positions.
        memory_gib: Memory that each process may take besides the model, in GiB; None for most of what is free. What does not fit is done in
            parts.
        quiet: No progress on stderr.
        ranks: Processes that do the job together; `Ranks.launched()` under torchrun.
        workers: Who scans a store for this process, a `whence.workers.Workers`; None scans it here.

    Raises:
        BadInput: If a number is not positive, or several ranks are given workers.
    """

    batch_positions: int | None = None
    batch_size: int | None = None
    memory_gib: float | None = None
    quiet: bool = False
    ranks: "Ranks" = field(default_factory=_one_process)
    workers: Any = None

    def __post_init__(self):
        check_batch(self.batch_size, self.batch_positions)
        check_memory(self.memory_gib)
        if self.workers is not None and self.ranks.count > 1:
            raise BadInput(
                found=f"workers for each of {self.ranks.count} ranks",
                needed="ranks, which scan themselves, or one process with workers",
                do="leave workers out, or start one process without torchrun",
            )

    def positions(self, lengths: Iterable[int]) -> int | None:
        """Positions per batch of examples of these lengths; None where what fits is to be measured."""
        return self.batch_positions or (None if self.batch_size is None else self.batch_size * max(lengths, default=1))

    @property
    def chosen(self) -> list[str]:
        """Which settings of memory and batches were given, for verbs that refuse those they have no use for."""
        return [name for name in ("memory_gib", "batch_size", "batch_positions") if getattr(self, name) is not None]

    @property
    def is_quiet(self) -> bool:
        """Whether this process shows no progress: of several only the first does, unless another process shows that of all."""
        return self.quiet or (self.ranks.rank > 0 and not is_shown_elsewhere())


def check_batch(batch_size: int | None, batch_positions: int | None) -> None:
    """Refuse impossible batches.

    Args:
        batch_size: Examples per batch; None for what fits.
        batch_positions: Positions per batch; None for what fits.

    Raises:
        BadInput: If one is not positive, or both are given.
    """
    for name, value in (("batch_size", batch_size), ("batch_positions", batch_positions)):
        if value is not None and value < 1:
            raise BadInput(found=f"{name}={value}", needed="1 or more", do="leave it out to measure what fits")
    if batch_size is not None and batch_positions is not None:
        raise BadInput(
            found=f"batch_size={batch_size} and batch_positions={batch_positions}",
            needed="one of them: both say how large a batch is",
            do="leave one out",
        )


def check_memory(memory_gib: float | None) -> None:
    """Refuse no memory.

    Args:
        memory_gib: That may be taken; None for what is free.

    Raises:
        BadInput: If it is not positive.
    """
    if memory_gib is not None and not memory_gib > 0:
        raise BadInput(found=f"memory_gib={memory_gib}", needed="a positive number", do="leave it out to take what is free")
