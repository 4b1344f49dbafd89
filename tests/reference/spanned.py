"""EK-FAC on few documents in the span of their rows, whatever a side's length: nothing is formed that is as long as a side twice.

Eigenvectors of a factor's range are right singular vectors of its rows. In what is left of a side the factor is zero and leaves the basis
open; it is taken as isotropic, each direction of the other side with one eigenvalue there, the mean. With the data's own labels the
corrected eigenvalues are zero there, so scores are those of all eigenvectors exactly.

Examples have one length each and every unit one kind of layer. Axes: N examples, T positions, O outputs, I inputs, R directions.
"""

import torch
from torch import Tensor

from whence.capture import capture
from whence.curvature import rounding_share
from whence.curvature.labels import choose_labels, numbered, objectives
from whence.records import OneHot


def spanned_scores(task, plan, train, queries, labels="auto", relative=0.1) -> Tensor:
    """Scores, shape (queries, train), float64, with a damping of a share of every unit's mean eigenvalue."""
    rule = choose_labels(task, train, labels, samples=None, seed=0)
    assert rule.passes == 1
    staged = [_rows(task, plan, train, lambda example, stage=stage: next(objectives(task, rule, [example], stage=stage)))
              for stage in ("factors", "values")]  # fmt: skip
    trained, asked = _rows(task, plan, train, lambda example: "loss"), _rows(task, plan, queries, lambda example: "measurement")
    found, means, dtype = [], [], torch.float32
    for index, unit in enumerate(plan.units):
        (factors, values), dtype = (of_stage[index] for of_stage in staged), trained[index][0][1].dtype
        bases = [_directions([pair[side] for pair in factors], size) for side, size in ((0, unit.outputs), (1, unit.inputs))]
        eigenvalues = _eigenvalues(values, unit.outputs, bases)
        means.append(sum(float(value.sum()) * count for value, count in eigenvalues) / (unit.outputs * unit.inputs))
        found.append((eigenvalues, bases))
    least = max(means) * rounding_share(dtype)
    total = torch.zeros(len(queries), len(train), dtype=torch.float64)
    for index, (eigenvalues, bases) in enumerate(found):
        damping = max(relative * means[index], least, 1e-30)
        total -= _scores(
            asked[index], trained[index], plan.units[index].outputs, [value + damping for value, _ in eigenvalues], bases
        )
    return total / len(train)


def _rows(task, plan, examples, objective_of) -> list[list[tuple[Tensor | None, Tensor]]]:
    """Per unit and example both sides of its pairs, (T, O) and (T, I), as the model's numbers; one-hot ids for rows of a table, (T,)."""
    found = [[] for _ in plan.units]
    for example in examples:
        objective = objective_of(example)
        batch = task.collate([example])
        batch = batch if isinstance(objective, str) else numbered(batch, 1, task.device)

        def consume(index, pair):
            outputs = pair.outputs.ids_BT[0] if isinstance(pair.outputs, OneHot) else pair.outputs.dense()[0]
            found[index].append((outputs.detach(), pair.inputs.dense()[0].detach()))

        capture(task, plan, batch, consume, num_examples=1, alone=lambda _, batch=batch: batch, objective=objective)
    assert all(len(of_unit) == len(examples) for of_unit in found)
    return found


def _directions(rows, size: int) -> Tensor | None:
    """Orthonormal columns that span the rows, (N, R); None for the axes."""
    if size == 1 or not rows[0].is_floating_point():
        return None
    whole = torch.cat(rows).double()
    least = 8 * len(whole) ** 0.5 * torch.finfo(rows[0].dtype).eps
    if len(whole) < size:
        _, lengths, directions = torch.linalg.svd(whole, full_matrices=False)
        return directions[lengths > least * lengths[0]].T
    squares, directions = torch.linalg.eigh(whole.T @ whole)
    return directions[:, squares > least**2 * squares[-1]]


def _parts(rows: Tensor, size: int, directions: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of a side's rows their coordinates in the span, and they themselves."""
    wide = rows.double() if rows.is_floating_point() else torch.nn.functional.one_hot(rows, size).double()
    return (wide if directions is None else wide @ directions), wide


def _eigenvalues(pairs, rows_of_table, bases) -> list[tuple[Tensor, int]]:
    """Mean squares of gradients in both spans, (R, R), one and the rest of the other, (R,) twice, and both rests, with how many have each."""
    sums, sizes = [0.0] * 4, [0, 0]
    for pair in pairs:
        (a, left), (b, right) = (_parts(rows, rows_of_table, bases[side]) for side, rows in enumerate(pair))
        rest_left, rest_right = left @ left.T - a @ a.T, right @ right.T - b @ b.T
        sizes = [left.shape[1] - a.shape[1], right.shape[1] - b.shape[1]]
        parts = (
            (a.T @ b).square(),
            ((rest_left @ b) * b).sum(0),
            ((rest_right @ a) * a).sum(0),
            (rest_left * rest_right).sum(),
        )
        sums = [total + part for total, part in zip(sums, parts, strict=True)]
    counts = [1, sizes[0], sizes[1], sizes[0] * sizes[1]]
    return [(total.clamp_min(0) / (max(count, 1) * len(pairs)), count) for total, count in zip(sums, counts, strict=True)]


def _scores(asked, trained, rows_of_table, damped, bases) -> Tensor:
    """Inner products of gradients over damped eigenvalues, (queries, train)."""
    spans, rest_left, rest_right, rests = damped
    found = torch.zeros(len(asked), len(trained), dtype=torch.float64)
    both = [[[_parts(rows, rows_of_table, bases[side]) for side, rows in enumerate(pair)] for pair in pairs]
            for pairs in (asked, trained)]  # fmt: skip
    for column, ((a, left), (b, right)) in enumerate(both[1]):
        inside = (a.T @ b) / spans
        for row, ((a_query, left_query), (b_query, right_query)) in enumerate(both[0]):
            across_left = left_query @ left.T - a_query @ a.T
            across_right = right_query @ right.T - b_query @ b.T
            found[row, column] = (
                ((a_query @ inside) * b_query).sum()
                + ((across_left @ b) * b_query / rest_left).sum()
                + ((across_right @ a) * a_query / rest_right).sum()
                + (across_left * across_right).sum() / rests
            )
    return found
