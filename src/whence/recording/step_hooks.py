"""When a step of a run begins and ends, whoever calls `step` and of however many optimizers it is made."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from whence.errors import BadInput

__all__ = ["StepHooks", "several"]


def several(optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer]) -> tuple[torch.optim.Optimizer, ...]:
    """One optimizer or many, as many."""
    return (optimizer,) if isinstance(optimizer, torch.optim.Optimizer) else tuple(optimizer)


class StepHooks:
    """Hooks on optimizers. A step begins with the first that steps and ends when all have.

    Args:
        optimizers: All that a step is made of.
        before: Called when a step begins.
        after: Called when it has ended.

    `has_closure` says whether the step that was entered last computes its gradients itself, from a closure that it was given.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], before: Callable[[], None], after: Callable[[], None]):
        self.optimizers, self._before, self._after = optimizers, before, after
        self._stepped: list[torch.optim.Optimizer] = []
        self._inside = 0
        self.has_closure = False
        self._hooks: list[Any] = []
        for stepping in optimizers:
            self._hooks.append(stepping.register_step_pre_hook(lambda optimizer, *given: self._enter(optimizer, given)))
            self._hooks.append(stepping.register_step_post_hook(lambda optimizer, *_: self._leave(optimizer)))

    def remove(self) -> None:
        """Take them off."""
        for hook in self._hooks:
            hook.remove()

    def forget(self) -> None:
        """A step that raised was not left."""
        self._inside = 0

    def _enter(self, optimizer: torch.optim.Optimizer, given: Sequence[Any]) -> None:
        self._inside += 1
        if self._inside > 1:  # of a subclass whose step calls that of its base, both have hooks
            return
        if any(stepped is optimizer for stepped in self._stepped):
            raise BadInput(
                found=f"a second step of {type(optimizer).__name__} before the other optimizers made theirs",
                needed="all of them in every step",
                do="step all optimizers that the recorder was given, or begin a stage with those that go on: stage(name, optimizers)",
            )
        args, kwargs = given
        self.has_closure = any(callable(value) for value in (*args, *kwargs.values()))
        if not self._stepped:
            self._before()

    def _leave(self, optimizer: torch.optim.Optimizer) -> None:
        self._inside -= 1
        if self._inside == 0:
            self._stepped.append(optimizer)
            if len(self._stepped) == len(self.optimizers):
                self._stepped = []
                self._after()
