"""Preconditioned queries, one block per unit: whole, or cut to a few singular directions.

Axes: Q queries, G groups of queries, O outputs, I inputs, R rank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.errors import BadInput

__all__ = ["DENSE_NUMBERS", "LowRank", "QueryBlock", "combine", "truncate", "written_out"]

DENSE_NUMBERS = 1 << 26
"""Numbers of low-rank queries written out at a time."""


@dataclass(frozen=True)
class LowRank:
    """Query blocks as products of factors, left^T right.

    Args:
        left_QRO: With the singular values in it.
        right_QRI: Orthonormal rows.
    """

    left_QRO: Tensor
    right_QRI: Tensor

    def dense(self) -> Tensor:
        """The blocks written out, shape (Q, O, I)."""
        return self.left_QRO.transpose(1, 2) @ self.right_QRI


QueryBlock = Tensor | LowRank


def written_out(block: LowRank) -> Iterator[Tensor]:
    """Dense blocks of some queries after the other: of all together they would take the memory that the factors save.

    Yields:
        Shape (Q, O, I), of as many queries as `DENSE_NUMBERS` allows, at least one.
    """
    size = max(1, DENSE_NUMBERS // (block.left_QRO.shape[2] * block.right_QRI.shape[2]))
    for start in range(0, len(block.left_QRO), size):
        yield LowRank(block.left_QRO[start : start + size], block.right_QRI[start : start + size]).dense()


def truncate(blocks: Sequence[Tensor], rank: int | None) -> list[QueryBlock]:
    """The best rank-r approximation of every query's block (Grosse et al. 2023, section 3.2.2).

    Args:
        blocks: Per unit, shape (Q, O, I).
        rank: Singular directions to keep; None keeps the blocks as they are, and so do blocks that would not get smaller.

    Returns:
        Per unit the block, or its factors.

    Raises:
        BadInput: If the rank is not positive.
    """
    if rank is None:
        return list(blocks)
    if rank < 1:
        raise BadInput(found=f"query_rank={rank}", needed="1 or more", do="leave it out to keep the queries whole")
    truncated: list[QueryBlock] = []
    for block_QOI in blocks:
        outputs, inputs = block_QOI.shape[1:]
        if rank * (outputs + inputs) >= outputs * inputs:
            truncated.append(block_QOI)
            continue
        u, s, right = torch.linalg.svd(block_QOI, full_matrices=False)
        left_QRO = (u[:, :, :rank] * s[:, None, :rank]).transpose(1, 2).contiguous()
        truncated.append(LowRank(left_QRO, right[:, :rank].contiguous()))
    return truncated


def combine(blocks: Sequence[Tensor], weights_GQ: Tensor) -> list[Tensor]:
    """Weighted sums of queries: means over a group, or one side minus another (contrastive queries).

    Scores are linear in the query, so a group is scored at the price of one query.

    Args:
        blocks: Per unit, shape (Q, O, I).
        weights_GQ: The weights.

    Returns:
        Per unit, shape (G, O, I).
    """
    return [torch.einsum("gq,qoi->goi", weights_GQ.to(block), block) for block in blocks]
