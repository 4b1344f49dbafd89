"""Codes of half-whitened gradients by the formulas: dense square roots of inverses, the singular vectors of the sample's rows."""

import torch
from torch import Tensor

from tests.reference.gradients import dense_gradients, unit_gradients
from whence.compress import turn
from whence.curvature.code_choice import evened, rounded


def whitened_rows(task, plan, curvature, relative: float, examples, objective="loss") -> list[Tensor]:
    """(H + damping)^-1/2 g per unit, by a formed matrix, in the order of the bases' coordinates; shape (B, O I)."""
    found = []
    for block, rows in zip(
        curvature.blocks, unit_gradients(task, plan, dense_gradients(task, examples, objective)), strict=True
    ):
        left = torch.eye(block.unit.outputs).double() if block.outputs_OO is None else block.outputs_OO.double()
        right = torch.eye(block.unit.inputs).double() if block.inputs_II is None else block.inputs_II.double()
        values = block.values_OI.double().flatten()
        damping = max(relative * float(values.mean()), 1e-30)
        found.append(rows.flatten(1) @ torch.kron(left, right) @ torch.diag((values + damping) ** -0.5))
    return found


def best_coordinates(curvature, relative: float, count: int) -> list[Tensor]:
    """Per unit a mask of the coordinates with the largest share of eigenvalue in eigenvalue + damping, `count` over all units."""
    shares = []
    for place, block in enumerate(curvature.blocks):
        values = block.values_OI.double().flatten()
        damping = max(relative * float(values.mean()), 1e-30)
        shares += [(-float(value / (value + damping)), place, number) for number, value in enumerate(values)]
    chosen = {(place, number) for _, place, number in sorted(shares)[:count]}
    return [
        torch.tensor([(place, number) in chosen for number in range(block.values_OI.numel())])
        for place, block in enumerate(curvature.blocks)
    ]


def low_rank_scores(sample: Tensor, train: Tensor, queries: Tensor, width: int) -> Tensor:
    """-(1/N) q^T V V^T t with V the leading right singular vectors of the sample's rows, shape (Q, N)."""
    directions = torch.linalg.svd(sample, full_matrices=False).Vh[:width]
    return -(queries @ directions.T) @ (train @ directions.T).T / len(train)


def codes_with_rest(encoder, rows: Tensor) -> Tensor:
    """x = A^T z and root (S z - S A x) side by side, S and S A as dense matrices; shape (B, K + R)."""
    turned = turn(rows, 0, seed=encoder.seed)
    axes = torch.cat([block for _, block in encoder.axes.blocks()]).double()
    codes = (turned if encoder.axes.bits < 32 else rows) @ axes
    rest = encoder.residual
    sketch = torch.zeros(rest.width_R, turned.shape[1]).double()
    sketch[rest.sketch.slots_N, torch.arange(turned.shape[1])] = rest.sketch.signs_N.double()
    along = torch.stack([rest.back(row) for row in torch.eye(rest.width_R).double()]) / rest.root
    return torch.cat([codes, rest.root * (turned @ sketch.T - codes @ along.T)], 1)


def held_back_agreement(rows: Tensor, back: Tensor, taught: Tensor, code, seed: int) -> float:
    """Documents asked along singular vectors of the others' rows, as large a share of them as the code has of all: mean correlation."""
    left, values, right = torch.linalg.svd(rows[taught], full_matrices=False)
    width = round(code.width * len(taught) / len(rows))
    signs = torch.stack([torch.sign(column[column.abs().argmax()]) for column in left.T])[:width]
    stored = left[:, :width] * values[:width] * signs
    asked = (rows[back] @ right[:width].T) * signs
    scores = evened(asked, seed) @ rounded(evened(stored, seed), code.bits).T
    pairs = zip(scores, rows[back] @ rows[taught].T, strict=True)
    return sum(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs) / len(back)
