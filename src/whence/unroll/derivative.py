"""The derivative of one step of a run, applied to many vectors at once, in either direction.

A step takes the weights and the state s to s' = update(s, g), g the gradient of the sum of weight_i w_i loss_i at s. Its derivative by s and
by the examples' own weights w is that of the update, a formula per parameter, and that of g: one more pass back through the graph of the
gradient (Ilyas and Engstrom 2025, arXiv 2504.16430, section 3). Both directions need only products with the Hessian, which is symmetric.

Axes: R vectors carried, B examples of a step, N training examples, G groups of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from whence.capture import pulled, with_weights
from whence.errors import Unsupported
from whence.unroll.replay import Replay, State, trainable
from whence.unroll.update import Values

__all__ = ["backward", "check_second_derivatives", "forward", "pulled_update", "without_fresh_state"]

Rows = dict[str, Tensor]
Result = TypeVar("Result")


def backward(
    replay: Replay, state: State, gradients: Mapping[str, Tensor], step: int, wanted: Values, scores_RN: Tensor, at_once: int
) -> Values:
    """One step against the direction of time.

    Args:
        replay: The run.
        state: Before the step.
        gradients: Of its loss.
        step: Which.
        wanted: Derivative of each of R numbers by weights and state after the step, with R in front.
        scores_RN: Where the derivative by each training example's weight is added, as far as it acts through this step.
        at_once: Vectors taken through a graph together.

    Returns:
        The derivative by weights and state before the step.
    """
    before, by_gradient = pulled_update(replay, state, gradients, step, wanted)

    def run(leaves: Rows) -> None:
        for part, scale_B, outputs in _graphs(replay, leaves, step):
            stepped_on = {name: value for name, value in outputs.items() if name in by_gradient}
            rows = _pulled(stepped_on, [*leaves.values(), scale_B], by_gradient, at_once)
            for name, row in zip(leaves, rows, strict=False):
                if row is not None:
                    before["weights"][name] += row
            by_scale_RB = rows[-1]
            assert by_scale_RB is not None  # a loss always depends on what it is multiplied with
            scores_RN.index_add_(1, part.places_B, by_scale_RB.double().cpu())

    _with_leaves(replay, state, run)
    return without_fresh_state(before, state)


def pulled_update(
    replay: Replay, state: State, gradients: Mapping[str, Tensor], step: int, wanted: Values
) -> tuple[Values, Rows]:
    """The optimizer's update of a step alone against the direction of time, its gradients taken as given.

    Args:
        replay: The run.
        state: Before the step.
        gradients: Of its loss.
        step: Which.
        wanted: As in `backward`.

    Returns:
        The derivative by weights and state before the step, and by its gradients.
    """
    update = replay.update(step)

    def stepped(values: Values, rows: Rows) -> Values:
        return update(values, rows, state.counts)

    pull = vjp(stepped, state.values, dict(gradients))[1]
    return vmap(pull)(_complete(wanted, state.values))


def forward(
    replay: Replay, state: State, gradients: Mapping[str, Tensor], step: int, tangents: Values, groups_N: Tensor, at_once: int
) -> Values:
    """One step in the direction of time (for Adam the tangent of arXiv 2605.18814).

    Args:
        replay: The run.
        state: Before the step.
        gradients: Of its loss.
        step: Which.
        tangents: Derivative of weights and state before the step by the weight of each of R groups of examples, with R in front.
        groups_N: Group of every training example, -1 for none.
        at_once: Vectors taken through a graph together.

    Returns:
        The derivative of weights and state after the step.
    """
    update = replay.update(step)
    tangents = without_fresh_state(_complete(tangents, state.values), state)
    count = len(next(iter(tangents["weights"].values())))
    change = {name: value.new_zeros(count, *value.shape) for name, value in gradients.items()}

    def run(leaves: Rows) -> None:
        for part, _, outputs in _graphs(replay, leaves, step):
            inputs = [leaves[name] for name in change]
            rows = _pulled(outputs, inputs, tangents["weights"], at_once)
            members_RB = groups_N[part.places_B] == torch.arange(count)[:, None]
            own = _pulled({"": part.losses_B}, inputs, {"": members_RB.to(part.weights_B) * part.weights_B}, at_once)
            for name, product, gradient in zip(change, rows, own, strict=True):
                for row in (product, gradient):
                    if row is not None:
                        change[name] += row

    _with_leaves(replay, state, run)

    def stepped(values: Values, rows: Rows) -> Values:
        return update(values, rows, state.counts)

    def push(values: Values, rows: Rows) -> Values:
        return jvp(stepped, (state.values, dict(gradients)), (values, rows))[1]

    return vmap(push)(tangents, change)


def check_second_derivatives(replay: Replay) -> None:
    """Refuse a loss with a step back that cannot be differentiated again: autograd would leave its part out without a word.

    Args:
        replay: The run.

    Raises:
        Unsupported: If there is one.
    """
    _, _, outputs = _with_leaves(replay, replay.load(0), lambda leaves: next(_graphs(replay, leaves, 0)))
    queue = [gradient.grad_fn for gradient in outputs.values()]
    seen = set(queue)
    while queue:
        node = queue.pop()
        if node is None:
            continue
        if node.name().endswith(("::Error", "NotImplemented")):
            raise Unsupported(**_not_twice("a backward pass marked as differentiable once"))
        more = {following for following, _ in node.next_functions} - seen
        seen |= more
        queue += more


def _not_twice(what: str) -> dict[str, str]:
    return {
        "found": f"a loss that cannot be differentiated twice ({what})",
        "needed": "second derivatives of every operation",
        "do": "use plain attention (attn_implementation='eager') and no custom backward, or choose method='source'",
    }


def _with_leaves(replay: Replay, state: State, run: Callable[[Rows], Result]) -> Result:
    """What `run` gives for a model with a state's weights, whose graphs it makes and walks.

    All weights ask for gradients, those that only another stage steps included: they change what this step does.
    """
    leaves = trainable(state.values["weights"], replay.names)
    return with_weights(replay.task.model, leaves, lambda: run(leaves))


def _graphs(replay: Replay, leaves: Rows, step: int):
    """The gradients of a step with the graph that made them, part by part of its examples.

    Yields:
        The part, the examples' own weights, and by parameter the gradient.
    """
    with torch.enable_grad():
        for part in replay.parts(step):
            scale_B = torch.ones_like(part.weights_B).requires_grad_()
            total = (part.losses_B * part.weights_B * scale_B).sum()
            gradients = torch.autograd.grad(total, list(leaves.values()), create_graph=True, allow_unused=True)
            yield (
                part,
                scale_B,
                {name: gradient for name, gradient in zip(leaves, gradients, strict=True) if gradient is not None},
            )


def _pulled(outputs: Rows, inputs: Sequence[Tensor], rows: Rows, at_once: int) -> list[Tensor | None]:
    """Every vector taken back from outputs to inputs, with R in front; None where nothing comes from.

    Raises:
        Unsupported: If a step back cannot be differentiated.
        RuntimeError: Whatever else autograd raises.
    """
    try:
        return pulled(list(outputs.values()), inputs, [rows[name] for name in outputs], at_once)
    except RuntimeError as error:
        if "differentiate twice" not in str(error) and "not implemented" not in str(error):
            raise error
        raise Unsupported(**_not_twice(str(error).splitlines()[0])) from error


def _complete(rows: Values, values: Values) -> Values:
    """With zeros for state that the vectors say nothing of, and without state that there is not."""
    count = len(next(iter(rows["weights"].values())))
    return {
        kind: {
            name: rows[kind][name] if name in rows.get(kind, {}) else value.new_zeros(count, *value.shape)
            for name, value in given.items()
        }
        for kind, given in values.items()
    }


def without_fresh_state(rows: Values, state: State) -> Values:
    """Derivatives by weights and state before a step, 0 of a state that starts from zero there: nothing depends on it."""
    return {
        kind: {
            name: torch.zeros_like(row) if kind != "weights" and not state.counts.get(name, 0) else row
            for name, row in of_kind.items()
        }
        for kind, of_kind in rows.items()
    }
