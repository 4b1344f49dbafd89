"""Inner products of stored rows with queries: widened a block at a time, so that memory is read once.

Axes: N rows, D numbers of a row, Q queries.
"""

import torch
from torch import Tensor

from whence.matmul import times_transposed

__all__ = ["room_for", "score_rows"]

# Numbers that a thread widens at a time: as float32 they stay in a processor's cache, and the work outweighs the calls.
_BLOCK_NUMBERS = 1 << 19
# Queries up to which PyTorch's product with the rows on the right is the faster one, and oneDNN's from here on.
_FEW = 8


def room_for(dtype: torch.dtype) -> Tensor:
    """Room for `score_rows`, to be used again for every shard: fresh memory costs as much as reading it."""
    return torch.empty(_BLOCK_NUMBERS * torch.get_num_threads(), dtype=dtype)


def score_rows(rows_ND: Tensor, query_QD: Tensor, scores_NQ: Tensor, room: Tensor) -> None:
    """Add the inner products of rows with queries, in the queries' type.

    Args:
        rows_ND: The rows, in any type.
        query_QD: The queries.
        scores_NQ: What is added to.
        room: From `room_for` the queries' type.
    """
    count, width = rows_ND.shape
    step = max(1, len(room) // width)
    for start in range(0, count, step):
        block_ND = rows_ND[start : start + step]
        if block_ND.dtype != query_QD.dtype:
            block_ND = room[: block_ND.numel()].view(block_ND.shape).copy_(block_ND)
        scores_NQ[start : start + step] += _products(block_ND, query_QD)


def _products(block_ND: Tensor, query_QD: Tensor) -> Tensor:
    if len(query_QD) == 1:
        return torch.mv(block_ND, query_QD[0])[:, None]
    if len(query_QD) < _FEW:
        return (query_QD @ block_ND.T).T
    return times_transposed(block_ND, query_QD)
