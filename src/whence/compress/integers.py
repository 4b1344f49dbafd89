"""Inner products of integer rows with real queries, by integer arithmetic and without losing the queries' precision.

Axes: N rows, D numbers of a row, Q queries, G digits, C columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from whence.compress.quantize import packed_width, unpack

__all__ = ["DigitQuery"]

# Two digits of a query are 254 apart: a rest of half a step becomes a digit of at most 127.
_BASE = 254
# Products of so many pairs of int8 still add up to an int32, and so few columns are multiplied fastest.
_COLUMNS = 1024
# Of one column PyTorch 2.13 gives wrong products where a stride is ambiguous; in float32 so few are exact as well.
_NARROW = 8
# A block of codes unpacked to bytes should stay in a core's cache.
_CACHE_BYTES = 1 << 19
_BLOCK_ROWS = 64


@dataclass(frozen=True)
class DigitQuery:
    """Queries as sums of int8 digits, so that a processor's int8 instructions multiply them with the rows as they are stored.

    A query q is q / max |q| to base 254: three digits hold what a float32 does, seven what a float64 does. The products are exact; only
    adding the digits' shares rounds.

    Args:
        digits_DC: int8, shape (D, C): digit by digit, the queries side by side, then zeros up to a multiple of four columns.
        weights_GQ: What a unit of each digit is worth.
        sums_Q: Sum of each query, which sign bits need.
        bits: Bits per number of the rows.
    """

    digits_DC: Tensor
    weights_GQ: Tensor
    sums_Q: Tensor
    bits: int

    @classmethod
    def of(cls, query_QD: Tensor, bits: int) -> "DigitQuery":
        """Cut queries into digits.

        Args:
            query_QD: float32 or float64.
            bits: Bits per number of the rows.

        Returns:
            The queries.
        """
        num_digits = 7 if query_QD.dtype == torch.float64 else 3
        top_Q = query_QD.abs().amax(1).double()
        # A query that is not finite has digits without a meaning; its weights carry the fault to the scores.
        rest_QD = torch.nan_to_num(query_QD.double() / top_Q[:, None] * 127)
        digits = []
        for _ in range(num_digits):
            digits.append(rest_QD.round())
            rest_QD = (rest_QD - digits[-1]) * _BASE
        columns_CD = torch.cat(digits).to(torch.int8)
        full = packed_width(query_QD.shape[1], bits) * 8 // bits
        columns_CD = pad(columns_CD, (0, full - columns_CD.shape[1], 0, -len(columns_CD) % 4))
        powers_G = _BASE ** -torch.arange(num_digits, dtype=torch.float64)
        weights_GQ = (powers_G[:, None] * top_Q / (127 * 16 if bits == 4 else 127)).to(query_QD.dtype)
        return cls(columns_CD.T.contiguous(), weights_GQ, query_QD.sum(1), bits)

    def dot(self, codes_NB: Tensor) -> Tensor:
        """Inner products of all rows of codes with all queries, not yet scaled, shape (N, Q)."""
        wide, rows = self.weights_GQ.dtype, len(codes_NB)
        step = rows if self.bits == 8 else max(_BLOCK_ROWS, _CACHE_BYTES // len(self.digits_DC))
        found_NQ = torch.empty(rows, self.weights_GQ.shape[1], dtype=wide)
        for start in range(0, rows, max(1, step)):
            block_ND = unpack(codes_NB[start : start + step], self.bits)
            total_NQ = found_NQ[start : start + step].zero_()
            for first in range(0, block_ND.shape[1], _COLUMNS):
                chosen = slice(first, first + _COLUMNS)
                self._add(total_NQ, _product(block_ND[:, chosen], self.digits_DC[chosen]))
            if self.bits == 1:  # a bit b stands for 2 b - 1
                total_NQ.mul_(2).sub_(self.sums_Q)
        return found_NQ

    def _add(self, total_NQ: Tensor, products_NC: Tensor) -> None:
        for place, weight_Q in enumerate(self.weights_GQ):
            queries = len(weight_Q)
            total_NQ.addcmul_(products_NC[:, place * queries : (place + 1) * queries].to(total_NQ.dtype), weight_Q)


def _product(codes_ND: Tensor, digits_DC: Tensor) -> Tensor:
    """Exact products of integers, shape (N, C)."""
    if len(digits_DC) < _NARROW:
        return codes_ND.float() @ digits_DC.float()
    return torch._int_mm(codes_ND, digits_DC)  # pyright: ignore[reportPrivateImportUsage]
