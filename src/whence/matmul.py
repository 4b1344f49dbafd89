"""The fastest matrix product that PyTorch has for a processor.

PyTorch multiplies matrices in float32 through MKL, which keeps to 256-bit instructions on processors of other makers. oneDNN, which PyTorch
has with it for layers, uses what the processor has: on one with AVX-512 that is twice as fast, with the same float32 sums.

Axes: M rows, K what is summed over, N columns.
"""

import torch
from torch import Tensor, nn

from whence.internals import linear_product

__all__ = ["times_transposed"]


def times_transposed(left_MK: Tensor, right_NK: Tensor, added_N: Tensor | None = None) -> Tensor:
    """The product left right^T, for numbers that no gradient is asked of.

    Args:
        left_MK: Any number of leading axes.
        right_NK: A matrix.
        added_N: What is added to every row, if anything; of the same type.

    Returns:
        Shape (..., N), in the type of both.

    >>> times_transposed(torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[1., 3.],
            [2., 4.]])
    """
    left_MK, right_NK, added_N = left_MK.detach(), right_NK.detach(), None if added_N is None else added_N.detach()
    has_numbers = left_MK.numel() > 0 and right_NK.numel() > 0
    is_plain = left_MK.device.type == "cpu" and left_MK.dtype == right_NK.dtype == torch.float32 and has_numbers
    product = linear_product() if is_plain else None
    if product is None:
        return nn.functional.linear(left_MK, right_NK, added_N)
    # Laid out row by row: on slices of wider tensors oneDNN falls back to a loop a thousand times slower.
    return product(left_MK.contiguous(), right_NK.contiguous(), added_N)
