"""One step of a run against the direction of time with the Hessian replaced by the outer products of its examples' gradients.

That is data value embedding (Wang et al. 2024, arXiv 2412.09538, equation 4 and theorem 2). An example's embedding is what its gradient in
step t has become at the end, rate_t prod_k (I - rate_k H_k) g_t, H_k = sum of weight_i g_i g_i^T over the examples of step k. The paper
carries the matrix M = I - prod_k (I - rate_k H_k) backwards and multiplies embeddings with queries; here the queries are carried, which
gives the same numbers and never forms a matrix of parameters by parameters.

Axes: R vectors carried, B examples of a part of a step, N training examples.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from whence.capture import Plan, as_parameters, capture, put_back
from whence.compress import Kronecker
from whence.unroll.derivative import pulled_update, without_fresh_state
from whence.unroll.replay import Replay, State
from whence.unroll.update import Values

__all__ = ["backward_by_outer_products"]


def backward_by_outer_products(
    replay: Replay,
    plan: Plan,
    state: State,
    gradients: Mapping[str, Tensor],
    step: int,
    wanted: Values,
    scores_RN: Tensor,
) -> Values:
    """As `backward` of the exact derivative, which differs in the curvature alone: the optimizer's update is differentiated as it is.

    Args:
        replay: The run.
        plan: Units of its model.
        state: Before the step.
        gradients: Of its loss.
        step: Which.
        wanted: Derivative of each of R numbers by weights and state after the step, with R in front.
        scores_RN: Where the derivative by each training example's weight is added, as far as it acts through this step.

    Returns:
        The derivative by weights and state before the step.
    """
    before, by_gradient = pulled_update(replay, state, gradients, step, wanted)
    model = replay.task.model
    values = dict(model.named_parameters())
    with put_back(model, [values[name] for name in replay.names]):
        with torch.no_grad():
            for name in replay.names:
                values[name].copy_(state.values["weights"][name])
        for indices, weights in replay.pieces(step):
            rows = _gradients(replay, plan, indices)
            # What each example's gradient does to the numbers through this step.
            products_RB = torch.stack([row.flatten(1) @ rows[name].flatten(1).T for name, row in by_gradient.items()]).sum(0)
            effects_RB = products_RB * torch.tensor(weights, dtype=products_RB.dtype, device=products_RB.device)
            scores_RN.index_add_(1, torch.tensor(indices), effects_RB.double().cpu())
            for name in replay.names:
                before["weights"][name] += torch.einsum("rb,b...->r...", effects_RB, rows[name])
    return without_fresh_state(before, state)


def _gradients(replay: Replay, plan: Plan, indices: list[int]) -> dict[str, Tensor]:
    """Of the losses of some examples, by parameter, shape (B, *parameter)."""
    task = replay.task
    chosen = [replay.train.examples[index] for index in indices]
    whole = Kronecker(plan.units, (None,) * len(plan.units), (None,) * len(plan.units))
    sums = whole.rows(len(chosen))
    capture(
        task, plan, task.collate(chosen), sums,
        num_examples=len(chosen), alone=lambda index: task.collate([chosen[index]]),
    )  # fmt: skip
    return as_parameters(plan, task.model, [row.to(task.device) for row in sums.finished()])
