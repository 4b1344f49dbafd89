"""A model as attribution needs it for a while: nothing random, nothing that trains, nothing slower than it must be."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from whence.capture.linear import constant_linear
from whence.internals import CHECKPOINTING
from whence.sharded_weights import own_forward, settle

__all__ = ["frozen"]

# A class of transformers that writes this activation out as eight operations, each with a tensor kept for the way back. The kernel rounds
# differently in the last bit and takes a third of the time; in a small GPT-2 that is a fifth of a pass.
_COMPOSED = "NewGELUActivation"
_GELU = partial(nn.functional.gelu, approximate="tanh")


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no parameter asks for a gradient, no layer works in place, activations are one kernel and products the fastest.

    Tables give whole gradients, not sparse ones.

    Then all is as before.

    Layers with gradient checkpointing switched on keep it, though Hugging Face takes evaluation mode for a reason to leave it out.

    Yields:
        Nothing.
    """
    settle(model)
    modules = list(model.modules())
    checkpointed: list[Any] = [module for module in modules if _is_checkpointed(module)]
    modes = [(module, module.training) for module in modules if module.training or _packs(module)]
    modes += [(module, False) for module in checkpointed if not module.training]
    # By owner: an offloaded parameter is another object after each pass.
    grads = [(module, name, value.requires_grad) for module in modules for name, value in _own(module)]
    inplace: list[Any] = [module for module in modules if getattr(module, "inplace", False) is True]
    sparse: list[Any] = [module for module in modules if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse]
    faster = [(module, name, forward) for module in modules if (name := own_forward(module)) and (forward := _faster(module))]
    kept = [vars(module).get(name) for module, name, _ in faster]
    # The fused encoder layer of PyTorch skips the layers' own forward when nothing needs a gradient.
    fastpath = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for module, _ in modes:
            module.training = _packs(module)  # not eval(), which models may override
        for module, name, flag in grads:
            if flag:
                getattr(module, name).requires_grad_(False)
        for module in inplace:
            module.inplace = False
        for module in sparse:
            module.sparse = False
        for module, name, forward in faster:
            setattr(module, name, forward)
        for module in checkpointed:
            module.training = True
            setattr(module, CHECKPOINTING, _Evaluating(module, getattr(module, CHECKPOINTING)))
        yield
    finally:
        settle(model)
        for module in checkpointed:
            setattr(module, CHECKPOINTING, getattr(module, CHECKPOINTING).run)
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, mode in modes:
            module.training = mode
        for module, name, flag in grads:
            value = getattr(module, name)
            if value.requires_grad != flag:
                value.requires_grad_(flag)
        for module in inplace:
            module.inplace = True
        for module in sparse:
            module.sparse = True
        for (module, name, _), before in zip(faster, kept, strict=True):
            setattr(module, name, before) if before is not None else delattr(module, name)


@dataclass(frozen=True)
class _Evaluating:
    """Checkpoints a layer of Hugging Face that is in evaluation mode while it runs, the second time too.

    Args:
        module: The layer, in training mode around it, which is what switches checkpointing on.
        run: What checkpoints.
    """

    module: nn.Module
    run: Callable[..., Any]

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def evaluating(*inputs: Any, **named: Any) -> Any:
            self.module.training = False
            try:
                return function(*inputs, **named)
            finally:
                self.module.training = True

        return self.run(evaluating, *args, **kwargs)


def _own(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters(recurse=False, remove_duplicate=False))


def _packs(module: nn.Module) -> bool:
    """Whether it is a layer of 4 bits of bitsandbytes, which in evaluation mode packs itself for a kernel without a derivative."""
    return hasattr(module, "support_avx512bf16_for_cpu")


def _is_checkpointed(module: nn.Module) -> bool:
    return getattr(module, "gradient_checkpointing", False) is True and hasattr(module, CHECKPOINTING)


def _faster(module: nn.Module) -> Callable[..., Tensor] | None:
    """What a module's forward becomes meanwhile."""
    kind = type(module)
    if kind.__name__ == _COMPOSED and kind.__module__ == "transformers.activations":
        return _GELU
    return constant_linear(module)
