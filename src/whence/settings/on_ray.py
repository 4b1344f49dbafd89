"""Actors of a Ray cluster that do a job together."""

from dataclasses import dataclass

from whence.errors import BadInput
from whence.settings.checks import typed

__all__ = ["OnRay"]


@dataclass(frozen=True, kw_only=True)
@typed
class OnRay:
    """Actors of a Ray cluster that do a job together, as the processes of torchrun would.

    Args:
        address: Of the cluster; "auto" finds the one that this machine is part of, "local" starts one on this machine that ends with the job.
        actors: How many; None for as many as the cluster has processors, or GPUs, for.
        cpus: Processors of each, as many as it has threads.
        gpus: GPUs of each; None for one where the model runs on CUDA, and none elsewhere.

    Raises:
        BadInput: If an actor has no processor, or there are none.
    """

    address: str
    actors: int | None = None
    cpus: int = 1
    gpus: float | None = None

    def __post_init__(self):
        if not self.address:
            raise BadInput(found="no address", needed="where a Ray cluster is", do="pass its address, 'auto' or 'local'")
        if (1 if self.actors is None else self.actors) < 1 or self.cpus < 1 or (self.gpus or 0) < 0:
            raise BadInput(
                found=f"{'some' if self.actors is None else self.actors} actors of {self.cpus} processors and {self.gpus or 0:g} GPUs",
                needed="1 actor or more, of 1 processor or more",
                do="correct them, or leave them out",
            )
