"""Tensors of a store that are read one by one, or stay in memory."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from whence.capture import available_bytes

__all__ = ["InMemory", "ReadWhenLookedAt"]

# Of the memory that is free when a store begins to be kept in it, what has to stay free.
_RESERVE = 0.25


@dataclass(frozen=True)
class InMemory:
    """Tensors that stay in memory, for whoever asks again and again.

    Args:
        reserve: Bytes of memory that have to stay free.
        tensors: Those that were read, by file.
    """

    reserve: int
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @classmethod
    def with_reserve(cls) -> "InMemory":
        """Nothing yet, with a reserve of a quarter of the memory that is free now."""
        return cls(int(_RESERVE * available_bytes(torch.device("cpu"))))

    def has_room(self, size: int) -> bool:
        """Whether so many bytes may be kept, too."""
        return available_bytes(torch.device("cpu")) - size >= self.reserve


class ReadWhenLookedAt(Mapping[str, Tensor]):
    """The tensors of a file, each read when it is looked at.

    Args:
        names: Of the tensors.
        read: Gives one by its name.
    """

    def __init__(self, names: Mapping[str, object], read: Callable[[str], Tensor]):
        self._names, self._read_tensor = names, read

    def __getitem__(self, tensor: str) -> Tensor:
        return self._read_tensor(tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
