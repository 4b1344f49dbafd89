"""A model as attribution needs it for a while: nothing random, nothing that trains or is written to, nothing slower than it must be."""

import re
import warnings
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

__all__ = ["LEFT_OUT", "frozen"]

LEFT_OUT = "None of the inputs have requires_grad=True"
"""What reentrant checkpointing says when it leaves out the gradients of a stretch whose inputs ask for none."""

# A class of transformers that writes this activation out as eight operations, each with a tensor kept for the way back. The kernel rounds
# differently in the last bit and takes a third of the time; in a small GPT-2 that is a fifth of a pass.
_COMPOSED = "NewGELUActivation"
_GELU = partial(nn.functional.gelu, approximate="tanh")


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no parameter asks for a gradient, no layer works in place, activations are one kernel and products the fastest.

    Tables with `max_norm` are read without being written to. Tables give whole gradients, not sparse ones.

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
    own_forwards = [vars(module).get(name) for module, name, _ in faster]
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
        with _unheard(LEFT_OUT):
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
        for (module, name, _), before in zip(faster, own_forwards, strict=True):
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


@contextmanager
def _unheard(message: str) -> Iterator[None]:
    """A warning is not told for a while: where no weight asks for a gradient, a stretch that is checkpointed need not have one.

    Not by `catch_warnings`, after which Python tells all other warnings again that are told once, after each batch.

    Yields:
        Nothing.
    """
    filters: Any = warnings.filters
    entry = ("ignore", re.compile(message), UserWarning, None, 0)
    filters.insert(0, entry)
    try:
        yield
    finally:
        if entry in warnings.filters:
            filters.remove(entry)


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
    if getattr(module, "max_norm", None) is not None and kind.forward in _BOUNDED:
        return partial(_BOUNDED[kind.forward], module)
    if kind.forward is nn.GroupNorm.forward:
        return partial(_group_norm, module)
    return constant_linear(module)


def _group_norm(norm: Any, input: Tensor) -> Tensor:
    """The same; PyTorch 2.13 crashes on the way back to its scales where channels lie last and the input asks for no gradient."""
    lies_last = not input.is_contiguous() and not input.requires_grad
    return nn.functional.group_norm(
        input.contiguous() if lies_last else input, norm.num_groups, norm.weight, norm.bias, norm.eps
    )


def _bounded_embedding(table: nn.Embedding, input: Tensor) -> Tensor:
    """What an embedding with max_norm gives; its own forward shortens the rows of the table that it reads, for good."""
    return _bounded(nn.functional.embedding(input, table.weight), table)


def _bounded_bag(
    table: nn.EmbeddingBag, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
) -> Tensor:
    return nn.functional.embedding_bag(
        input,
        _bounded(table.weight, table),
        offsets,
        mode=table.mode,
        per_sample_weights=per_sample_weights,
        include_last_offset=table.include_last_offset,
        padding_idx=table.padding_idx,
    )


def _bounded(rows: Tensor, table: Any) -> Tensor:
    """Rows that are longer than max_norm at that length, as `torch.embedding_renorm_` makes them."""
    lengths = rows.detach().norm(table.norm_type, -1, keepdim=True)
    return torch.where(lengths > table.max_norm, rows * (table.max_norm / (lengths + 1e-7)), rows)


_BOUNDED: dict[Any, Callable[..., Tensor]] = {
    nn.Embedding.forward: _bounded_embedding,
    nn.EmbeddingBag.forward: _bounded_bag,
}
