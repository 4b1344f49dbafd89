"""Inner products of integer rows with real queries, by integer arithmetic and without losing the queries' precision.

Axes: N rows, D numbers of a row, B bytes that they take, U units of a row, K pieces of units, Q queries, G digits, C columns (G x Q and what
fills them up).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from whence.compress.quantize import packed_width
from whence.internals import int8_product

__all__ = ["IntegerScorer", "has_integer_product", "integer_product"]

# Two digits of a query are 254 apart: a rest of half a step becomes a digit of at most 127.
_BASE = 254
# Products of so many pairs of int8 still add up to an int32, and so few columns are multiplied fastest.
_COLUMNS = 1024
# Of a float32.
_DIGITS = 3
# Numbers that a thread unpacks at a time, and products of them before they are added up: both should stay in a processor's cache.
_BLOCK_NUMBERS = 1 << 21
_PRODUCTS = 1 << 18
# Products of fewer rows at a time are slower.
_FEWEST_ROWS = 256
# Of one column PyTorch 2.13 gives wrong products where a stride is ambiguous; in float32 so few are exact as well.
_NARROW = 8


def has_integer_product() -> bool:
    """Whether this processor multiplies integers faster than floating point."""
    return int8_product() is not None


def integer_product(rows_QD: Tensor, integers_DN: Tensor) -> Tensor:
    """Products of real rows with int8 numbers by integer arithmetic: each row as three digits, which hold what a float32 does.

    Args:
        rows_QD: The rows, float32, on the CPU.
        integers_DN: From -127 to 127, N a multiple of a byte's numbers, contiguous. Up to 131,072 rows of products add up to an int32.

    Returns:
        Shape (Q, N), float32.
    """
    product = int8_product()
    assert product is not None, "asked for before"
    if integers_DN.shape[1] < _NARROW:
        return rows_QD @ integers_DN.float()
    top_Q = rows_QD.abs().amax(1)
    # A row that is not finite has digits without a meaning; its weight carries the fault to the products.
    rest_QD = torch.nan_to_num_(rows_QD * torch.where(top_Q > 0, 127 / top_Q, 0)[:, None])
    digits_GQD, rounded_QD = rest_QD.new_empty(_DIGITS, *rest_QD.shape, dtype=torch.int8), torch.empty_like(rest_QD)
    for digit_QD in digits_GQD:
        torch.round(rest_QD, out=rounded_QD)
        digit_QD.copy_(rounded_QD)
        rest_QD.sub_(rounded_QD).mul_(_BASE)
    products_CN = torch.empty(_DIGITS * len(rows_QD), integers_DN.shape[1], dtype=torch.int32)
    product(digits_GQD.flatten(0, 1), integers_DN, out=products_CN)
    worth_G = _BASE ** -torch.arange(_DIGITS, dtype=torch.float64)
    sums_QN = (products_CN.view(_DIGITS, len(rows_QD), -1) * worth_G[:, None, None]).sum(0)
    return sums_QN.mul_(top_Q[:, None] / 127).float()


class IntegerScorer:
    """Queries as sums of int8 digits, so that a processor's int8 instructions multiply them with rows as they are stored.

    A query q is q / max |q| to base 254: three digits hold what a float32 does, seven what a float64 does. The products are exact; only
    adding up what digits, pieces and units are worth rounds.

    Args:
        queries: Per unit, shape (Q, D), float32 or float64.
        bits: Bits per number of the rows: 8, 4, 2 or 1.
    """

    def __init__(self, queries: Sequence[Tensor], bits: int):
        self.bits, self.num_queries, self.dtype = bits, len(queries[0]), queries[0].dtype
        self.pieces: list[tuple[int, slice, Tensor]] = []
        weights, sums = [], []
        for index, query_QD in enumerate(queries):
            for first in range(0, query_QD.shape[1], _COLUMNS):
                piece_QD = query_QD[:, first : first + _COLUMNS]
                digits_DC, weights_GQ = _digits(piece_QD, bits)
                self.pieces.append((index, slice(first * bits // 8, (first + _COLUMNS) * bits // 8), digits_DC))
                weights.append(weights_GQ)
                sums.append(piece_QD.sum(1))
        self.weights_KGQ, self.sums_KQ = torch.stack(weights), torch.stack(sums)
        self.units_K = torch.tensor([index for index, _, _ in self.pieces])
        columns, widest = self.pieces[0][2].shape[1], max(len(digits_DC) for _, _, digits_DC in self.pieces)
        threads = torch.get_num_threads()
        self.rows = max(_FEWEST_ROWS, min(_BLOCK_NUMBERS // widest, _PRODUCTS // columns) * threads)
        self.together = min(len(self.pieces), max(1, _PRODUCTS * threads // (self.rows * columns)))
        # Used again for every shard: fresh memory costs as much as reading it.
        self.products = torch.empty(self.together * self.rows * columns, dtype=torch.int32)
        self.unpacked = torch.empty(0 if bits == 8 else self.rows * widest, dtype=torch.uint8)

    def __call__(self, codes: Sequence[Tensor], scales_UN: Tensor) -> Tensor:
        """Scores of rows, summed over units.

        Args:
            codes: Per unit, shape (N, bytes).
            scales_UN: What a unit's codes are to be multiplied with, in the queries' type.

        Returns:
            Shape (N, Q), in the queries' type.
        """
        count, columns = len(codes[0]), self.pieces[0][2].shape[1]
        rows, together = min(count, self.rows), self.together
        scales_KN, scores_NQ = scales_UN[self.units_K], torch.zeros(count, self.num_queries, dtype=self.dtype)
        buffer_KNC = self.products[: together * rows * columns].view(together, rows, columns)
        for start in range(0, count, rows):
            chosen_N = slice(start, min(start + rows, count))
            for first in range(0, len(self.pieces), together):
                chosen_K = slice(first, min(first + together, len(self.pieces)))
                products_KNC = buffer_KNC[: chosen_K.stop - first, : chosen_N.stop - start]
                for products_NC, (index, columns_B, digits_DC) in zip(products_KNC, self.pieces[chosen_K], strict=True):
                    _multiply(_planes(codes[index][chosen_N, columns_B], self.bits, self.unpacked), digits_DC, products_NC)
                scores_NQ[chosen_N] += self._added(products_KNC, chosen_K, scales_KN[chosen_K, chosen_N])
        return scores_NQ

    def _added(self, products_KNC: Tensor, chosen_K: slice, scales_KN: Tensor) -> Tensor:
        total_KNQ = torch.zeros(*products_KNC.shape[:2], self.num_queries, dtype=self.dtype)
        for digit, weights_KQ in enumerate(self.weights_KGQ[chosen_K].unbind(1)):
            columns = slice(digit * self.num_queries, (digit + 1) * self.num_queries)
            total_KNQ.addcmul_(products_KNC[:, :, columns].to(self.dtype), weights_KQ[:, None])
        if self.bits <= 2:  # a level b stands for 2 b - 1, or 2 b - 3
            total_KNQ.mul_(2).sub_(self.sums_KQ[chosen_K, None] * (2**self.bits - 1))
        return total_KNQ.mul_(scales_KN[:, :, None]).sum(0)


def _digits(query_QD: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Digits (D, C) in the order of `_planes`, with zeros for what fills the last byte of codes, and what a unit of each is worth (G, Q)."""
    num_digits = 7 if query_QD.dtype == torch.float64 else _DIGITS
    top_Q = query_QD.abs().amax(1).double()
    # A query that is not finite has digits without a meaning; its weights carry the fault to the scores.
    rest_QD = torch.nan_to_num(query_QD.double() / top_Q[:, None] * 127)
    digits = []
    for _ in range(num_digits):
        digits.append(rest_QD.round())
        rest_QD = (rest_QD - digits[-1]) * _BASE
    columns_CD = torch.cat(digits).to(torch.int8)
    per_byte = 8 // bits
    full = packed_width(query_QD.shape[1], bits) * per_byte
    # A multiple of four columns is multiplied faster than one less.
    columns_CD = pad(columns_CD, (0, full - columns_CD.shape[1], 0, -len(columns_CD) % 4))
    columns_CD = columns_CD.view(len(columns_CD), -1, per_byte).transpose(1, 2).flatten(1)
    powers_G = _BASE ** -torch.arange(num_digits, dtype=torch.float64)
    weights_GQ = powers_G[:, None] * top_Q / (127 * 16 if bits == 4 else 127)
    return columns_CD.T.contiguous(), weights_GQ.to(query_QD.dtype)


def _planes(codes_NB: Tensor, bits: int, room: Tensor) -> Tensor:
    """The integers of codes, (N, D), in a form that is fast to make: all first numbers of the bytes before all second ones.

    As they are for 8 bits, times 16 for 4; for 2 and 1 bits half of their distance from the lowest, 0 to 3 and 0 to 1.
    So few whole passes over bytes are made; numbers in their own order would have to be put in place one by one.

    Args:
        codes_NB: Codes.
        bits: Bits per number.
        room: Where to write them.
    """
    if bits == 8:
        return codes_NB
    count, width = codes_NB.shape
    room_NPB = room[: count * width * 8 // bits].view(count, 8 // bits, width)
    first_NB, *rest = room_NPB.unbind(1)
    if bits == 4:  # each half of a byte goes to the upper half of one of its own, where its sign bit is the byte's
        torch.bitwise_left_shift(codes_NB, 4, out=first_NB)
        torch.bitwise_and(codes_NB, 0xF0, out=rest[0])
    else:
        first_NB.copy_(codes_NB)
        for plane, plane_NB in enumerate(rest, start=1):
            torch.bitwise_right_shift(codes_NB, plane * bits, out=plane_NB)
        room_NPB.bitwise_and_(2**bits - 1)
    return room_NPB.flatten(1).view(torch.int8)


def _multiply(codes_ND: Tensor, digits_DC: Tensor, products_NC: Tensor) -> None:
    """Exact products of integers; as float32 too, which holds sums of so few columns, where there is no other fast kernel."""
    product = None if len(digits_DC) < _NARROW else int8_product()
    if product is None:
        products_NC.copy_(codes_ND.float() @ digits_DC.float())
    else:
        product(codes_ND, digits_DC, out=products_NC)
