"""Inner products of gradient pairs with query blocks, in the cheapest order, without keeping any gradient.

Axes: B examples of a batch, T positions, N pairs of an example and a position, Q queries, U units (or ids of a table, K positions each),
O outputs, I inputs, F flattened, R rank.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from whence.matmul import times_transposed
from whence.records import Dense, OneHot, Pair
from whence.score.blocks import LowRank, QueryBlock, written_out

__all__ = ["Contraction"]

# Numbers made at a time on the way: they should stay in a processor's cache, and fill a device with work.
_CHUNK_NUMBERS = {"cpu": 1 << 21}
_DEVICE_CHUNK_NUMBERS = 1 << 26


class Contraction:
    """Adds up one batch's scores, to be passed to `capture` as its consumer.

    A score is the inner product of the query's block M with the example's gradient, the sum over positions of d a^T. Three orders give
    it: form the gradient and multiply it with all queries at once, O I (T + Q) products; pass both sides through the factors of a low-rank
    query, T Q R (O + I); look up the rows of M that a table's ids point at, T Q I, once for all positions with the same id. A pair takes the
    one with the fewest.

    Args:
        blocks: The queries, per unit, in the order of the plan.
        num_examples: Examples in the batch.
        tokens: For examples of which each position's part is wanted, by place in the batch, their number of positions.
        positions: Positions of the batch, padding included.
        draws: Inputs that the model sees per example, one after the other in its positions; of an example with as many positions each is
            one of them.
    """

    def __init__(
        self, blocks: Sequence[QueryBlock], num_examples: int, tokens: Mapping[int, int], positions: int, draws: int = 1
    ):
        self.blocks, self.positions, self.draws = blocks, positions, draws
        first = blocks[0].left_QRO if isinstance(blocks[0], LowRank) else blocks[0]
        self.scores_UQB = first.new_zeros(len(blocks), len(first), num_examples)
        self.tokens = {row: first.new_zeros(len(first), length) for row, length in tokens.items()}

    def __call__(self, index: int, pair: Pair) -> None:
        """Add one pair."""
        pair, block = pair.wide(), self.blocks[index]
        if isinstance(pair.outputs, OneHot):
            found_QB = _looked_up(block, pair, pair.outputs)
        elif isinstance(block, LowRank) and _factors_are_cheaper(block, pair):
            found_QB = _through_factors(block, pair)
        else:
            parts = written_out(block) if isinstance(block, LowRank) else [block]
            found_QB = torch.cat([_through_gradients(part_QOI, pair) for part_QOI in parts])
        self.scores_UQB[index] += found_QB.to(self.scores_UQB)
        for row, parts_QT in self.tokens.items():
            found_QT = _by_position(block, pair.examples(row, row + 1)).to(parts_QT)
            if pair.is_by_position and found_QT.shape[1] == self.positions:
                # The rest of each of an example's rows is padding, which has no gradient.
                length = parts_QT.shape[1] // self.draws
                parts_QT += found_QT.unflatten(1, (self.draws, -1))[:, :, :length].flatten(1)
            elif (
                pair.is_by_position and 1 < self.draws == parts_QT.shape[1] and found_QT.shape[1] % self.draws == 0
            ):  # positions inside of draws
                parts_QT += found_QT.unflatten(1, (self.draws, -1)).sum(2)
            else:  # vectors and pooled layers have no positions
                parts_QT += found_QT.sum(1, keepdim=True) / parts_QT.shape[1]


def _factors_are_cheaper(block: LowRank, pair: Pair) -> bool:
    queries, rank, outputs = block.left_QRO.shape
    inputs = block.right_QRI.shape[2]
    examples, positions = pair.shape
    through_factors = examples * positions * queries * rank * (outputs + inputs)
    written_out = queries * rank * outputs * inputs + examples * outputs * inputs * (positions + queries)
    return through_factors < written_out


def _through_gradients(block_QOI: Tensor, pair: Pair) -> Tensor:
    """Form some rows of all examples' gradients at a time and multiply them with all queries, shape (Q, B)."""
    assert isinstance(pair.outputs, Dense) and isinstance(pair.inputs, Dense)
    left_BTO, right_BTI = pair.outputs.values_BTN, pair.inputs.values_BTN
    weight_QOI = block_QOI.to(left_BTO)
    found_QB = left_BTO.new_zeros(len(block_QOI), len(left_BTO))
    if pair.inputs.has_one:  # the bias column by itself: the layer's inputs are not copied for a column of ones
        found_QB += weight_QOI[:, :, -1] @ left_BTO.sum(1).T
        weight_QOI = weight_QOI[:, :, :-1]
    left_BOT = left_BTO.transpose(1, 2)
    size = _chunk(len(left_BTO) * right_BTI.shape[2], left_BTO.device)
    for start in range(0, left_BOT.shape[1], size):
        rows = slice(start, start + size)
        gradients_BF = torch.bmm(left_BOT[:, rows], right_BTI).flatten(1)
        found_QB += times_transposed(gradients_BF, weight_QOI[:, rows].flatten(1)).T
    return found_QB


def _through_factors(block: LowRank, pair: Pair) -> Tensor:
    """Both sides through the query's factors, position by position, shape (Q, B)."""
    queries, rank, _ = block.left_QRO.shape
    left_OF, right_IF = block.left_QRO.flatten(0, 1).T, block.right_QRI.flatten(0, 1).T
    examples, positions = pair.shape
    parts = []
    size = _chunk(positions * queries * rank, left_OF.device)
    for start in range(0, examples, size):
        part = pair.examples(start, start + size)
        products_BF = (part.outputs.times(left_OF) * part.inputs.times(right_IF)).sum(1)
        parts.append(products_BF.view(-1, queries, rank).sum(2))
    return torch.cat(parts).T


def _looked_up(block: QueryBlock, pair: Pair, outputs: OneHot) -> Tensor:
    """The rows of the query that the ids point at, times the inputs, shape (Q, B)."""
    examples, positions = pair.shape
    right_NI = pair.inputs.dense().flatten(0, 1)
    queries, inputs = len(block.left_QRO) if isinstance(block, LowRank) else len(block), right_NI.shape[1]
    # Positions with the same id share a row of the query, which is fetched once; ids met equally often make one product.
    ids_U, place_N, counts_U = torch.unique(outputs.ids_BT.flatten(), return_inverse=True, return_counts=True)
    order_N, starts_U = place_N.argsort(stable=True), counts_U.cumsum(0) - counts_U
    found_NQ = right_NI.new_zeros(len(right_NI), queries)
    for count in torch.unique(counts_U).tolist():
        alike = (counts_U == count).nonzero()[:, 0]
        for some in alike.split(_chunk(queries * inputs, right_NI.device)):
            at_UK = order_N[starts_U[some][:, None] + torch.arange(count, device=some.device)]
            rows_UIQ = _rows_of(block, ids_U[some]).to(right_NI).permute(1, 2, 0)
            found_NQ[at_UK] = torch.bmm(right_NI[at_UK], rows_UIQ)
    return found_NQ.view(examples, positions, queries).sum(1).T


def _rows_of(block: QueryBlock, ids_U: Tensor) -> Tensor:
    """Some rows of every query, shape (Q, U, I)."""
    if isinstance(block, LowRank):
        return block.left_QRO.index_select(2, ids_U).transpose(1, 2) @ block.right_QRI
    return block.index_select(1, ids_U)


def _by_position(block: QueryBlock, pair: Pair) -> Tensor:
    """Each position's part of one example's scores, shape (Q, T)."""
    if isinstance(block, LowRank):
        left = pair.outputs.times(block.left_QRO.flatten(0, 1).T)[0]
        right = pair.inputs.times(block.right_QRI.flatten(0, 1).T)[0]
        return (left * right).view(len(left), len(block.left_QRO), -1).sum(2).T
    right_TI = pair.inputs.dense()[0]
    if isinstance(pair.outputs, OneHot):
        return torch.einsum("qti,ti->qt", block.to(right_TI)[:, pair.outputs.ids_BT[0]], right_TI)
    left_TO = pair.outputs.dense()[0]
    return torch.stack([((left_TO @ one_OI) * right_TI).sum(1) for one_OI in block.to(right_TI)])


def _chunk(numbers: int, device: torch.device) -> int:
    return max(1, _CHUNK_NUMBERS.get(device.type, _DEVICE_CHUNK_NUMBERS) // numbers)
