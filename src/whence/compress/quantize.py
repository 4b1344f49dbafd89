"""Rows as small integers: one scale a row, several numbers to a byte.

Axes: N rows, D numbers of a row, B bytes that they take.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["INT4_CUTS", "packed_width", "quantize", "to_integers"]

# Of 4 bits the outermost values are rare: what is lost by cutting them off is less than what finer steps gain.
INT4_CUTS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
# Half the step of the four levels -3, -1, 1 and 3, in root mean squares of the row: around the best for normal numbers, 0.498 (Max 1960).
_INT2_STEPS = (0.7, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35)


def _values_of_bytes(bits: int, dtype: type) -> np.ndarray:
    """The numbers in each byte, the first in its lowest bits, as one record a byte."""
    levels = np.arange(256)[:, None] >> np.arange(0, 8, bits) & (1 << bits) - 1
    values = ((levels ^ 8) - 8 if bits == 4 else 2 * levels - ((1 << bits) - 1)).astype(dtype)
    return values.view(f"V{values.itemsize * values.shape[1]}")[:, 0]


_VALUES = {
    dtype: {bits: _values_of_bytes(bits, numbers) for bits in (1, 2, 4)}
    for dtype, numbers in ((torch.float32, np.float32), (torch.int8, np.int8))
}


def packed_width(numbers: int, bits: int) -> int:
    """Bytes that a row takes, its scale left out.

    >>> packed_width(9, 8), packed_width(9, 4), packed_width(9, 1)
    (9, 5, 2)
    """
    return -(-numbers * bits // 8)


def quantize(rows_ND: Tensor, bits: int, *, cuts: Sequence[float] = INT4_CUTS) -> tuple[Tensor, Tensor]:
    """Symmetric codes around zero, and the scale that each row's codes are to be multiplied with.

    8 bits take the largest number as 127. 4 bits take as 7 the largest number or a share of it, whichever leaves the least squared error.
    2 bits take -3, -1, 1 or 3 times the scale of least squared error, and 1 bit keeps the sign, zero counting as positive. So few bits make
    rows shorter along themselves; the scale of 1 and 2 bits is the one with which a row's inner product with its code is its squared norm, so
    that scores keep their size. Scales are bfloat16, which reaches as far as float32 does; codes of 4 and 8 bits are made against the rounded
    scale.

    Args:
        rows_ND: The rows.
        bits: 8, 4, 2 or 1.
        cuts: Of 4 bits, shares of the largest number that are tried as the outermost value.

    Returns:
        Codes (N, B) as `to_integers` reads them, and scales (N,). A row with a number that is not finite has such a scale.
    """
    if bits == 1:
        codes = torch.from_numpy(np.packbits((rows_ND >= 0).cpu().numpy(), axis=1, bitorder="little"))
        return codes, _unshortened(rows_ND, rows_ND.abs())
    if bits == 2:
        return _quantize_by_quarters(rows_ND)
    size_N1 = rows_ND.abs().amax(1, keepdim=True)
    if bits == 8:
        scale_N1 = (size_N1 / 127).bfloat16()
        return _rounded(rows_ND, scale_N1, 127).to(torch.int8).cpu(), scale_N1[:, 0].cpu()
    scale_N1, least_N1 = (size_N1 / 7).bfloat16(), torch.full_like(size_N1, torch.inf)
    for cut in cuts:
        tried_N1 = (size_N1 * (cut / 7)).bfloat16()
        error_N1 = (_rounded(rows_ND, tried_N1, 7) * tried_N1 - rows_ND).square().sum(1, keepdim=True)
        scale_N1 = torch.where(error_N1 < least_N1, tried_N1, scale_N1)
        least_N1 = torch.minimum(least_N1, error_N1)
    codes = _rounded(rows_ND, scale_N1, 7).to(torch.int8).cpu().numpy().view(np.uint8) & 15
    packed = np.zeros((len(codes), packed_width(codes.shape[1], 4)), dtype=np.uint8)
    packed |= codes[:, ::2]
    packed[:, : codes.shape[1] // 2] |= codes[:, 1::2] << 4
    return torch.from_numpy(packed), scale_N1[:, 0].cpu()


def to_integers(codes_NB: Tensor, bits: int, into: Tensor | None = None) -> Tensor:
    """The codes' values: what the scale is to be multiplied with. The first column is in the lowest bits of a byte.

    Args:
        codes_NB: What `quantize` gave, on the CPU.
        bits: 8, 4, 2 or 1.
        into: Contiguous memory of the result's shape, float32 or int8, to be written over; None for fresh memory of float32.

    Returns:
        Shape (N, B x 8 / bits): the rows, followed by what fills the last byte.
    """
    into = torch.empty(len(codes_NB), codes_NB.shape[1] * 8 // bits) if into is None else into
    if bits == 8:
        return into.copy_(codes_NB)
    # The values of a byte lie together, so that a byte is looked up at once.
    table = _VALUES[into.dtype][bits]
    np.take(table, codes_NB.numpy(), out=into.numpy().view(table.dtype), mode="clip")
    return into


def _quantize_by_quarters(rows_ND: Tensor) -> tuple[Tensor, Tensor]:
    size_N1 = rows_ND.square().mean(1, keepdim=True).sqrt()
    best_ND, least_N1 = torch.zeros_like(rows_ND), torch.full_like(size_N1, torch.inf)
    for step in _INT2_STEPS:
        half_N1 = size_N1 * step
        # The nearest of -3, -1, 1 and 3 half steps.
        tried_ND = (torch.where(half_N1 > 0, rows_ND / half_N1, 0).div(2).floor() * 2 + 1).clamp(-3, 3)
        error_N1 = (tried_ND * half_N1 - rows_ND).square().sum(1, keepdim=True)
        best_ND = torch.where(error_N1 < least_N1, tried_ND, best_ND)
        least_N1 = torch.minimum(least_N1, error_N1)
    levels = ((best_ND + 3) / 2).to(torch.uint8).cpu().numpy()
    packed = np.zeros((len(levels), packed_width(levels.shape[1], 2)), dtype=np.uint8)
    for quarter in range(4):
        column = levels[:, quarter::4]
        packed[:, : column.shape[1]] |= column << (2 * quarter)
    return torch.from_numpy(packed), _unshortened(rows_ND, rows_ND * best_ND)


def _unshortened(rows_ND: Tensor, products_ND: Tensor) -> Tensor:
    """The scale with which a row's inner product with its code is its squared norm; zero for a row of zeros."""
    along_N = products_ND.sum(1)
    return torch.where(along_N == 0, 0, rows_ND.square().sum(1) / along_N).bfloat16().cpu()


def _rounded(rows_ND: Tensor, scale_N1: Tensor, most: int) -> Tensor:
    """The nearest codes; zero for a row whose scale is."""
    wide_N1 = scale_N1.to(rows_ND.dtype)
    return torch.where(wide_N1 == 0, 0, rows_ND / wide_N1).round().clamp(-most, most)
