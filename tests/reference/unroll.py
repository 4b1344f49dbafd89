"""Attribution through training by the formulas as they are written: every matrix formed, every derivative taken forwards.

Axes: P parameters, N training examples, Q queries.
"""

import torch
from torch import Tensor

from tests.reference.gradients import dense_gradients, unit_gradients


def exact_unrolling(
    loss, start_P, batches, rates, *, optimizer="sgd", momentum=0.0, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8, outer=False
):
    """Final parameters of a run and their derivative by the weight of every example, shape (P,) and (P, N).

    Args:
        loss: Loss of each of all N examples at some parameters.
        start_P: Initial parameters.
        batches: Places of the examples of every step; the step lowers their mean loss.
        rates: Learning rate of every step.
        optimizer: "sgd", "adam" or "adamw".
        momentum: Heavy-ball coefficient.
        weight_decay: L2 coefficient, decoupled for "adamw".
        betas: Of Adam.
        eps: Of Adam.
        outer: Whether the mean outer product of the batch's gradients stands for the Hessian.
    """
    theta, count = start_P.clone(), len(loss(start_P))
    size = len(theta)
    tangent_PN = torch.zeros(size, count, dtype=theta.dtype)
    first, second = torch.zeros(size).double(), torch.zeros(size).double()
    first_PN, second_PN = torch.zeros(size, count).double(), torch.zeros(size, count).double()
    coupled = 0.0 if optimizer == "adamw" else weight_decay
    for number, (batch, rate) in enumerate(zip(batches, rates, strict=True), 1):

        def mean(values, batch=batch):
            return loss(values)[batch].mean()

        gradient = torch.func.grad(mean)(theta) + coupled * theta
        each_BP = torch.func.jacrev(lambda values, batch=batch: loss(values)[batch])(theta)
        matrix = each_BP.T @ each_BP / len(batch) if outer else torch.func.hessian(mean)(theta)
        change_PN = matrix @ tangent_PN + coupled * tangent_PN
        change_PN[:, batch] += each_BP.T / len(batch)
        if optimizer == "sgd":
            first = momentum * first + gradient
            first_PN = momentum * first_PN + change_PN
            theta, tangent_PN = theta - rate * first, tangent_PN - rate * first_PN
            continue
        first, second = betas[0] * first + (1 - betas[0]) * gradient, betas[1] * second + (1 - betas[1]) * gradient**2
        first_PN = betas[0] * first_PN + (1 - betas[0]) * change_PN
        second_PN = betas[1] * second_PN + 2 * (1 - betas[1]) * gradient[:, None] * change_PN
        one, two = 1 - betas[0] ** number, 1 - betas[1] ** number
        root = (second / two).sqrt()
        shrink = 1 - rate * (weight_decay if optimizer == "adamw" else 0.0)
        moved_PN = (first_PN / one) / (root + eps)[:, None]
        moved_PN -= ((first / one) / (root + eps) ** 2 / (2 * root * two))[:, None] * second_PN
        theta = shrink * theta - rate * (first / one) / (root + eps)
        tangent_PN = shrink * tangent_PN - rate * moved_PN
    return theta, tangent_PN


def data_value_embeddings(gradients, batches, rates, count) -> Tensor:
    """What every example's steps of plain descent have become at the end, shape (P, N): Wang et al. (2024), theorem 2 and algorithm 1.

    Args:
        gradients: Of every step, those of its examples' parts in the loss that it lowers, shape (B, P).
        batches: Places of the examples of every step.
        rates: Learning rate of every step.
        count: N.
    """
    size = gradients[0].shape[1]
    embeddings_PN, matrix = torch.zeros(size, count).double(), torch.zeros(size, size).double()
    for batch, rate, each_BP in reversed(list(zip(batches, rates, gradients, strict=True))):
        own_PB = rate * (each_BP.T - matrix @ each_BP.T)
        embeddings_PN.index_add_(1, batch, own_PB)
        # The paper lowers sums: of a mean the outer products count as much as each loss does.
        matrix = matrix + len(batch) * own_PB @ each_BP
    return embeddings_PN


def source(
    task, run, train, queries, segments, curvatures, reaches, decays, scales=None, is_decoupled=False, form="full"
) -> Tensor:
    """SOURCE with matrix exponentials, shape (Q, N): one dense matrix per unit and segment.

    Args:
        task: The task, with the final weights.
        run: Puts weights into the model.
        train: Examples.
        queries: Queries.
        segments: Checkpoints of each segment, and each example's share in it, shape (N,).
        curvatures: Per segment the fitted blocks, taken for their matrix only.
        reaches: Per segment the sum of effective learning rates.
        decays: Per segment the sum of those times weight decay.
        scales: Per segment and unit the diagonal of P, flat; None for SGD.
        is_decoupled: Whether weight decay bypasses P.
        form: "full" for the exponential of the whole product of P and the curvature, "diagonal" for that of its diagonal.
    """
    from whence.capture import plan_units

    plan = plan_units(task)
    total = torch.zeros(len(queries), len(train)).double()
    asked = unit_gradients(task, plan, dense_gradients(task, queries, "measurement"))
    for unit, rows in enumerate(asked):
        wanted_QP = rows.flatten(1)
        for number in reversed(range(len(segments))):
            checkpoints, shares_N = segments[number]
            block = curvatures[number].blocks[unit]
            matrix = _dense(block)
            eye = torch.eye(len(matrix)).double()
            reach, decay = reaches[number], decays[number]
            if scales is None:
                x = reach * matrix + decay * eye
                taken_QP = wanted_QP @ _phi(x) * reach
                left_QP = wanted_QP @ torch.matrix_exp(-x)
            elif form == "full":
                p = torch.diag(scales[number][unit])
                x = p @ (reach * matrix) + decay * (eye if is_decoupled else p)
                taken_QP = wanted_QP @ _phi(x) @ p * reach
                left_QP = wanted_QP @ torch.matrix_exp(-x)
            else:
                p = scales[number][unit]
                x = reach * p * matrix.diagonal() + decay * (1.0 if is_decoupled else p)
                damping = decay / reach * ((1 / p).mean() if is_decoupled else 1.0) + 1e-8 * matrix.trace() / len(matrix)
                taken_QP = torch.linalg.solve(matrix + damping * eye, (wanted_QP * (1 - torch.exp(-x))).T).T
                left_QP = wanted_QP * torch.exp(-x)
            for step in checkpoints:
                with run.weights(task.model, [step]):
                    gradients = unit_gradients(task, plan, dense_gradients(task, train))[unit].flatten(1)
                total -= taken_QP @ gradients.T * shares_N / len(checkpoints)
            wanted_QP = left_QP
    return total


def source_averaged(task, run, train, queries, segments, curvatures, scales=None) -> Tensor:
    """SOURCE through a Schedule-Free run, shape (Q, N): every step's matrix on fast weights and average formed, one after the other.

    Args:
        task: The task, with the final weights.
        run: Puts weights into the model.
        train: Examples.
        queries: Queries.
        segments: Of each segment its checkpoints, b, and per step (reach, decay, share of the average); all examples have the same share.
        curvatures: As for `source`.
        scales: As for `source`.
    """
    from whence.capture import plan_units

    plan = plan_units(task)
    total = torch.zeros(len(queries), len(train)).double()
    asked = unit_gradients(task, plan, dense_gradients(task, queries, "measurement"))
    for unit, rows in enumerate(asked):
        average_QP = rows.flatten(1)
        fast_QP = torch.zeros_like(average_QP)
        for number in reversed(range(len(segments))):
            checkpoints, b, steps = segments[number]
            matrix = _dense(curvatures[number].blocks[unit])
            eye = torch.eye(len(matrix)).double()
            p = eye if scales is None else torch.diag(scales[number][unit])
            taken_QP = 0
            for reach, decay, share in reversed(steps):
                x = reach * p @ matrix + decay * eye
                u = eye - torch.matrix_exp(-x)
                into_QP = fast_QP + share * average_QP
                taken_QP = taken_QP + into_QP @ _phi(x) @ p * reach
                fast_QP, average_QP = into_QP @ (eye - (1 - b) * u), (1 - share) * average_QP - b * into_QP @ u
            for step in checkpoints:
                with run.weights(task.model, [step]):
                    gradients = unit_gradients(task, plan, dense_gradients(task, train))[unit].flatten(1)
                total -= taken_QP @ gradients.T / len(train) / len(checkpoints)
    return total


def _dense(block) -> Tensor:
    left = torch.eye(block.unit.outputs).double() if block.outputs_OO is None else block.outputs_OO.double()
    right = torch.eye(block.unit.inputs).double() if block.inputs_II is None else block.inputs_II.double()
    basis = torch.kron(left, right)
    return basis @ torch.diag(block.values_OI.double().flatten()) @ basis.T


def _phi(x: Tensor) -> Tensor:
    """The mean of exp(-t x) over t in [0, 1], as the corner of one exponential: no inverse, so singular matrices are fine."""
    size = len(x)
    corner = torch.zeros(2 * size, 2 * size).double()
    corner[:size, :size] = -x
    corner[:size, size:] = torch.eye(size).double()
    return torch.matrix_exp(corner)[:size, size:]
