"""An orthogonal mixing of a long row's numbers, so that rounding what it is multiplied with errs evenly.

Axes: B rows, M numbers of a row.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from whence.compress.projection import random_matrix

__all__ = ["TURNED", "turn", "turn_back"]

# Numbers are mixed among so many neighbours, as a square of this side: two small products instead of one large one.
_SIDE = 128
TURNED = _SIDE * _SIDE


def turn(rows_BM: Tensor, first: int, *, seed: int) -> Tensor:
    """Random signs, then Hadamard matrices along both sides of each square (Ailon and Chazelle 2009): inner products are kept.

    Few coordinates hold much of a gradient. Axes rounded to a bit are wrong by a share of their size, so without mixing these coordinates'
    errors add up to most of the noise.

    Args:
        rows_BM: The rows, or some of their numbers: M a multiple of TURNED unless they are the last ones.
        first: Place of the first number.
        seed: Of the signs.

    Returns:
        Shape (B, M rounded up to a multiple of TURNED).
    """
    rows_BM = pad(rows_BM, (0, -rows_BM.shape[1] % TURNED))
    squares = (rows_BM * _signs(first, rows_BM, seed)).view(len(rows_BM), -1, _SIDE, _SIDE)
    side = _hadamard().to(rows_BM)
    return (side @ squares @ side).flatten(1)


def turn_back(rows_BM: Tensor, first: int, *, seed: int) -> Tensor:
    """The inverse of `turn`, padding included."""
    side = _hadamard().to(rows_BM)
    squares = side @ rows_BM.view(len(rows_BM), -1, _SIDE, _SIDE) @ side
    return squares.flatten(1) * _signs(first, rows_BM, seed)


def _signs(first: int, rows_BM: Tensor, seed: int) -> Tensor:
    starts = range(first, first + rows_BM.shape[1], TURNED)
    return torch.cat(
        [random_matrix("rademacher", TURNED, 1, seed=seed, name=f"signs of coordinates from {start}")[:, 0] for start in starts]
    ).to(rows_BM)


def _hadamard() -> Tensor:
    """Sylvester's, symmetric and orthogonal."""
    signs = torch.ones(1, 1)
    while len(signs) < _SIDE:
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    return signs / _SIDE**0.5
