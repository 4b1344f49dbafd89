"""A model as attribution needs it for a while: nothing random, nothing that trains, nothing slower than it must be."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from whence.capture.linear import constant_linear

__all__ = ["frozen"]

# A class of transformers that writes this activation out as eight operations, each with a tensor kept for the way back. The kernel rounds
# differently in the last bit and takes a third of the time; in a small GPT-2 that is a fifth of a pass.
_COMPOSED = "NewGELUActivation"
_GELU = partial(nn.functional.gelu, approximate="tanh")


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no parameter asks for a gradient, no layer works in place, activations are one kernel and products the fastest.

    Then all is as before.

    Yields:
        Nothing.
    """
    modules = list(model.modules())
    training = [module for module in modules if module.training]
    grads = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    inplace: list[Any] = [module for module in modules if getattr(module, "inplace", False) is True]
    faster = [(module, forward) for module in modules if (forward := _faster(module)) is not None]
    # The fused encoder layer of PyTorch skips the layers' own forward when nothing needs a gradient.
    fastpath = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for module in training:
            module.training = False  # not eval(), which models may override
        for parameter, _ in grads:
            parameter.requires_grad_(False)
        for module in inplace:
            module.inplace = False
        for module, forward in faster:
            module.forward = forward
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module in training:
            module.training = True
        for parameter, flag in grads:
            parameter.requires_grad_(flag)
        for module in inplace:
            module.inplace = True
        for module, _ in faster:
            del module.forward


def _faster(module: nn.Module) -> Callable[..., Tensor] | None:
    """What a module's forward becomes meanwhile; one that is set already is somebody's choice, or this function's."""
    kind = type(module)
    if kind.__name__ == _COMPOSED and kind.__module__ == "transformers.activations" and "forward" not in vars(module):
        return _GELU
    return constant_linear(module)
