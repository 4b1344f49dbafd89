"""What a forecast is made for at a size that nobody has at hand: a cluster, and what it is given to do."""

from dataclasses import dataclass

from whence.errors import BadInput, UnknownOption
from whence.settings.checks import typed

__all__ = ["GPUS", "Cluster", "Load"]

# Of a dense product in bfloat16, without sparsity, in TFLOP/s, and memory in GB, by the makers' data sheets.
GPUS = {"a100": (312.0, 80.0), "h100": (989.0, 80.0), "h200": (989.0, 141.0), "b200": (2250.0, 180.0)}


@dataclass(frozen=True, kw_only=True)
@typed
class Cluster:
    """What computes and reads.

    Args:
        gpus: Devices, one process each.
        gpu: a100, h100, h200 or b200, for its arithmetic and memory.
        tflops: Operations a second of a large product on one device, in 10^12; 0 takes the data sheet's.
        utilisation: Share of that which a build reaches. At .4 the published 8B rates of LoGra come out within 20 % (docs/scale.md).
        disk_gbps: What each process reads and writes, in 10^9 bytes a second.

    Raises:
        BadInput: If a number is not positive.
        UnknownOption: If there is no such device.
    """

    gpus: int = 1
    gpu: str = "h100"
    tflops: float = 0.0
    utilisation: float = 0.4
    disk_gbps: float = 2.0

    def __post_init__(self):
        for name in ("gpus", "utilisation", "disk_gbps"):
            if getattr(self, name) <= 0 or self.tflops < 0:
                bad = name if getattr(self, name) <= 0 else "tflops"
                raise BadInput(found=f"{bad}={getattr(self, bad)}", needed="a positive number", do="correct it")
        if self.gpu not in GPUS:
            raise UnknownOption(
                found=f"gpu={self.gpu!r}", needed=f"one of: {', '.join(GPUS)}", do="pick one, or give its tflops"
            )

    @property
    def operations_per_second(self) -> float:
        """Of one device, in a build."""
        return (self.tflops or GPUS[self.gpu][0]) * 1e12 * self.utilisation


@dataclass(frozen=True, kw_only=True)
@typed
class Load:
    """What there is to do.

    Args:
        examples: Training examples.
        tokens_per_example: Of every example.
        queries: Asked at once.
        k: Hits a query.

    Raises:
        BadInput: If a number is not positive.
    """

    examples: int
    tokens_per_example: int = 512
    queries: int = 1
    k: int = 100

    def __post_init__(self):
        for name in ("examples", "tokens_per_example", "queries", "k"):
            if getattr(self, name) < 1:
                raise BadInput(found=f"{name}={getattr(self, name)}", needed="1 or more", do="correct it")
