"""Options that several verbs share: how model and data are read, memory, damping of a store, who scans."""

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from whence.settings import Damping

__all__ = ["Damped", "DampingOptions", "ScanOptions", "Scanned", "Work", "WorkOptions"]


@dataclass(frozen=True, kw_only=True)
class WorkOptions:
    """How model and data are read, and what memory may be taken.

    Args:
        task: What the model does.
        split: Split of a Hugging Face dataset.
        memory_gib: Memory to take besides the model, for each process; most of what is free if left out. What does not fit is done in parts.
    """

    task: Literal["causal_lm", "classification", "masked_lm"] = "causal_lm"
    split: str = "train"
    memory_gib: float | None = None


@dataclass(frozen=True, kw_only=True)
class DampingOptions:
    """Damping of a store's curvature, chosen when it is asked; the method's own share of the mean eigenvalue if nothing is said.

    Args:
        relative_damping: Damping as a share of each layer's mean curvature.
        absolute_damping: Damping in units of the loss's curvature.
        damping_rule: A published rule instead of a number: .1 x the mean eigenvalue over all directions (mean), .5 x (lorif), .1 x the mean
            of the directions kept (lorif-paper), or what the training recipe implies (recipe).
    """

    relative_damping: float | None = None
    absolute_damping: float | None = None
    damping_rule: Literal["mean", "lorif", "lorif-paper", "recipe"] | None = None

    def damping(self) -> Damping:
        """As the package takes it.

        Raises:
            BadInput: If more than one is given.
        """
        return Damping(relative=self.relative_damping, absolute=self.absolute_damping, rule=self.damping_rule)


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """Who scans a store.

    Args:
        workers: Have so many processes scan the store; one that is lost is replaced.
        ray: With --workers, have actors of a Ray cluster do that: its address, or "auto".
    """

    workers: int | None = None
    ray: str | None = None


Work = Annotated[WorkOptions, Parameter(name="*")]
Damped = Annotated[DampingOptions, Parameter(name="*")]
Scanned = Annotated[ScanOptions, Parameter(name="*")]
