"""Memory: what is there, and what a batch will take."""

import ctypes
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from whence.capture.hooks import capture
from whence.capture.units import Plan
from whence.data import Example
from whence.internals import view_base
from whence.records import Pair
from whence.sharded_weights import local
from whence.tasks import AbstractTask

__all__ = ["Forecast", "available_bytes", "forecast", "give_back"]

# More positions at once than this bring no speed on the device, only memory.
_ENOUGH_POSITIONS = {"cpu": 2048, "cuda": 65536}
# Gradients in flight and the allocator's slack, on top of what autograd keeps: measured at 1.2 to 1.5 on small GPT-2 models.
_SLACK = 1.6


@dataclass(frozen=True)
class Forecast:
    """What a build will take.

    Args:
        model_bytes: Weights and buffers that this process holds.
        bytes_per_position: Kept for the backward pass, per position of a batch.
        batch_positions: Positions per batch that fit in half of what is free, at most what the device has a use for.
        peak_bytes: Model and one batch.
        available_bytes: Free now on the model's device.
    """

    model_bytes: int
    bytes_per_position: int
    batch_positions: int
    peak_bytes: int
    available_bytes: int

    def __str__(self) -> str:
        return (
            f"memory: {self.model_bytes / 2**20:,.0f} MiB of weights and {self.bytes_per_position / 2**10:,.0f} KiB a position, "
            f"{self.batch_positions:,} positions a batch, peak about {self.peak_bytes / 2**20:,.0f} of "
            f"{self.available_bytes / 2**20:,.0f} MiB free"
        )


def available_bytes(device: torch.device) -> int:
    """Free memory on a device; on the CPU the smaller of the system's and the control group's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        if "MemAvailable" in fields:
            limits = [int(fields["MemAvailable"].split()[0]) * 1024]
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            # Pages of files, mapped ones included, are given back when memory is short.
            fields = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = int((group / "memory.current").read_text()) - int(fields["inactive_file"]) - int(fields["active_file"])
            limits.append(int(limit) - used)
    except (OSError, ValueError, KeyError):
        pass
    return max(min(limits), 0)


def forecast(
    task: AbstractTask,
    plan: Plan,
    examples: Sequence[Example],
    *,
    autocast: torch.dtype | None = None,
    room_bytes: int | None = None,
) -> Forecast:
    """Measure what autograd keeps for the longest example and scale it up.

    Args:
        task: Model and loss.
        plan: Its units.
        examples: The dataset.
        autocast: As in `capture`.
        room_bytes: What may be taken at most; None for all that is free.

    Returns:
        The forecast, with a batch size that fits.
    """
    longest = max(examples, key=lambda example: example.length)
    saved: dict[int, int] = {}
    state = [local(value) for value in task.model.state_dict().values() if isinstance(value, Tensor)]
    weights = {value.untyped_storage().data_ptr() for value in state}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # Weights that are gathered or loaded for the pass are parameters, or views of them, in other places than the model's own.
        is_weight = any(isinstance(value, nn.Parameter) for value in (tensor, view_base(tensor)))
        if not is_weight and storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def ignore(index: int, pair: Pair) -> None:
        return None

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        batch = task.collate([longest])
        capture(task, plan, batch, ignore, num_examples=1, alone=lambda _: batch, autocast=autocast)
    model_bytes = sum(value.numel() * value.element_size() for value in state if value.device.type != "meta")
    per_position = int(_SLACK * sum(saved.values()) / longest.length) + 1
    free = available_bytes(task.device) if room_bytes is None else min(room_bytes, available_bytes(task.device))
    fits = int(0.5 * free / per_position)
    enough = _ENOUGH_POSITIONS.get(task.device.type, 65536)
    # A batch of short examples has no use for more positions than 256 of the longest.
    positions = max(longest.length, min(fits, enough, 256 * longest.length))
    return Forecast(model_bytes, per_position, positions, model_bytes + positions * per_position, free)


def give_back() -> None:
    """Hand memory that was freed back to the system, between two pieces of work that take much.

    glibc keeps it in holes between what is still used, where the next piece does not fit, and a process grows by what it has already.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
