"""Weights that a run does not train: written once, and held to be what they were."""

from collections.abc import Sequence

import torch
from torch import nn

from whence.errors import StoreMismatch, Unsupported
from whence.internals import version_of
from whence.recording.weights import digest_of_weights, parameters_of

__all__ = ["Frozen", "check_optimizers"]


class Frozen:
    """The parameters that ask for no gradient and are not in the optimizer.

    Args:
        model: The model.
        optimizers: The first of the run.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]):
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        stepped = {id(parameter) for group in groups for parameter in group["params"]}
        self.model = model
        self.parameters = {
            name: value for name, value in parameters_of(model).items() if not value.requires_grad and id(value) not in stepped
        }
        self.mark()

    def mark(self) -> None:
        """Take them as they are now for unchanged."""
        self._versions = {name: version_of(value) for name, value in self.parameters.items()}

    def digest(self) -> str | None:
        """What they are, as a run's record holds it."""
        return digest_of_weights(self.model, self.parameters) if self.parameters else None

    def check_unchanged(self) -> None:
        """Refuse what changes without the optimizer, such as an average of weights: checkpoints would miss it.

        Raises:
            Unsupported: If one has.
        """
        changed = [name for name, value in self.parameters.items() if version_of(value) != self._versions[name]]
        if changed:
            raise Unsupported(
                found=f"{changed[0]!r}, frozen when the recorder was made, changed without the optimizer",
                needed="what changes in every checkpoint",
                do="keep it as a buffer, or let it ask for a gradient while the recorder is made",
            )

    def check_same(self, digest: str | None) -> None:
        """Refuse others than those that a run began with.

        Raises:
            StoreMismatch: If they are.
        """
        if digest != self.digest():
            raise StoreMismatch(
                found="a model whose frozen weights are not those that the run began with",
                needed="the same, frozen as they were",
                do="load them, or record into another folder",
            )


def check_optimizers(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], frozen: Frozen) -> None:
    """Refuse optimizers of parameters that checkpoints do not have.

    Raises:
        Unsupported: If one is, or two step the same parameter.
    """
    name_of = {id(parameter): name for name, parameter in parameters_of(model).items()}
    stepped: set[str] = set()
    for group in [group for optimizer in optimizers for group in optimizer.param_groups]:
        for parameter in group["params"]:
            name = name_of.get(id(parameter))
            if name is None:
                raise Unsupported(
                    found="an optimizer that steps parameters which the model does not have",
                    needed="the model whose parameters it was made with",
                    do="pass that model, not a copy of it",
                )
            if name in frozen.parameters:
                raise Unsupported(
                    found=f"an optimizer that steps {name!r}, which was frozen when the recorder was made",
                    needed="all that is trained in every checkpoint",
                    do="make the recorder while it still asks for a gradient, or with the optimizer that has it",
                )
            if name in stepped:
                raise Unsupported(
                    found=f"two optimizers that step {name!r}",
                    needed="one for every parameter",
                    do="take it out of one of them",
                )
            stepped.add(name)
