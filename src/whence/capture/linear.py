"""Linear layers by the fastest product that the processor has, for as long as their weights are constants.

Axes: N any leading axes, I inputs, O outputs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from whence.internals import is_transforming
from whence.matmul import times_transposed

__all__ = ["constant_linear"]


def constant_linear(module: nn.Module) -> Callable[..., Tensor] | None:
    """What can stand in for the forward of a linear layer in float32 on a processor.

    The same product to the last bits of float32, forth and back, as often as is differentiated, in half the time where `times_transposed` is
    twice as fast. Calls that it is not made for (a weight that asks for a gradient, another type, autocast, `torch.func`, a compiler) go to
    the layer's own forward.

    Args:
        module: Any module.

    Returns:
        The function; None for a module that is not exactly `nn.Linear` or the Conv1D of transformers.
    """
    kind = type(module)
    is_turned = kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"
    if kind is not nn.Linear and not is_turned:
        return None
    layer: Any = module

    def forward(input: Tensor) -> Tensor:
        if not _is_plain(input, layer.weight, layer.bias):
            return kind.forward(layer, input)
        return _Product.apply(input, layer.weight.T if is_turned else layer.weight, layer.bias)

    # Conv1D calls its argument x; callers by name of either are served.
    return (lambda x: forward(x)) if is_turned else forward


class _Product(torch.autograd.Function):
    """input weight^T + bias, of which only the input is differentiated; its derivative is another such product."""

    @staticmethod
    def forward(ctx: Any, input_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.weight_OI = weight_OI
        output = times_transposed(input_NI, weight_OI, bias_O)
        # The same numbers, but no view of others: models may not change one in place that an autograd function gave them.
        return output.new_empty(0).set_(output)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, None, None]:
        return _Product.apply(grad_NO, ctx.weight_OI.T, None), None, None


def _is_plain(input: Tensor, weight: Any, bias: Any) -> bool:
    tensors = [input, weight] if bias is None else [input, weight, bias]
    return (
        all(
            type(tensor) in (Tensor, nn.Parameter) and tensor.dtype == torch.float32 and tensor.device.type == "cpu"
            for tensor in tensors
        )
        and not any(tensor.requires_grad for tensor in tensors[1:])
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not is_transforming()
        and not any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)
    )
