"""Rows as small integers: one scale a row, several numbers to a byte.

Axes: N rows, D numbers of a row, B bytes that they take.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["packed_width", "quantize", "to_integers", "unpack"]

# Of 4 bits the outermost values are rare: what is lost by cutting them off is less than what finer steps gain.
_INT4_CUTS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)


def packed_width(numbers: int, bits: int) -> int:
    """Bytes that a row takes, its scale left out.

    >>> packed_width(9, 8), packed_width(9, 4), packed_width(9, 1)
    (9, 5, 2)
    """
    return -(-numbers * bits // 8)


def quantize(rows_ND: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Symmetric codes around zero, and the scale that each row's codes are to be multiplied with.

    8 bits take the largest number as 127. 4 bits take as 7 the largest number or a share of it, whichever leaves the least squared error.
    1 bit keeps the sign, zero counting as positive, and the scale is the mean magnitude, the best one for given signs (Rastegari et al.
    2016, equation 6). Scales are bfloat16, which reaches as far as float32 does; codes are made against the rounded scale.

    Args:
        rows_ND: The rows.
        bits: 8, 4 or 1.

    Returns:
        Codes (N, B) as `unpack` reads them, and scales (N,). A row with a number that is not finite has such a scale.
    """
    size_N1 = rows_ND.abs().mean(1, keepdim=True) if bits == 1 else rows_ND.abs().amax(1, keepdim=True)
    if bits == 1:
        codes = torch.from_numpy(np.packbits((rows_ND >= 0).cpu().numpy(), axis=1, bitorder="little"))
        return codes, size_N1[:, 0].bfloat16().cpu()
    if bits == 8:
        scale_N1 = (size_N1 / 127).bfloat16()
        return _rounded(rows_ND, scale_N1, 127).to(torch.int8).cpu(), scale_N1[:, 0].cpu()
    scale_N1, least_N1 = (size_N1 / 7).bfloat16(), torch.full_like(size_N1, torch.inf)
    for cut in _INT4_CUTS:
        tried_N1 = (size_N1 * (cut / 7)).bfloat16()
        error_N1 = (_rounded(rows_ND, tried_N1, 7) * tried_N1 - rows_ND).square().sum(1, keepdim=True)
        scale_N1 = torch.where(error_N1 < least_N1, tried_N1, scale_N1)
        least_N1 = torch.minimum(least_N1, error_N1)
    codes = _rounded(rows_ND, scale_N1, 7).to(torch.int8).cpu().numpy().view(np.uint8) & 15
    packed = np.zeros((len(codes), packed_width(codes.shape[1], 4)), dtype=np.uint8)
    packed |= codes[:, ::2]
    packed[:, : codes.shape[1] // 2] |= codes[:, 1::2] << 4
    return torch.from_numpy(packed), scale_N1[:, 0].cpu()


def unpack(codes_NB: Tensor, bits: int) -> Tensor:
    """The integers of codes, in a form that is fast to make: as they are for 8 bits, times 16 for 4, 1 for plus and 0 for minus for 1.

    The first column is in the lowest bits of a byte.

    Args:
        codes_NB: What `quantize` gave, on the CPU.
        bits: 8, 4 or 1.

    Returns:
        int8, shape (N, B x 8 / bits): the rows, followed by what fills the last byte.
    """
    if bits == 8:
        return codes_NB
    codes = codes_NB.numpy()
    if bits == 1:
        return torch.from_numpy(np.unpackbits(codes, axis=1, bitorder="little").view(np.int8))
    pairs = codes.astype(np.uint16)
    # Each half of a byte goes to the upper half of a byte of its own, where its sign bit is the byte's.
    return torch.from_numpy(((pairs << 4 & 0xF0) | (pairs << 8 & 0xF000)).astype("<u2", copy=False).view(np.int8))


def to_integers(unpacked_ND: Tensor, bits: int) -> Tensor:
    """The codes' values in float32, shape (N, D): what the scale is to be multiplied with."""
    wide_ND = unpacked_ND.float()
    if bits == 4:
        return wide_ND.div_(16)
    return wide_ND.mul_(2).sub_(1) if bits == 1 else wide_ND


def _rounded(rows_ND: Tensor, scale_N1: Tensor, most: int) -> Tensor:
    """The nearest codes; zero for a row whose scale is."""
    wide_N1 = scale_N1.to(rows_ND.dtype)
    return torch.where(wide_N1 == 0, 0, rows_ND / wide_N1).round().clamp(-most, most)
