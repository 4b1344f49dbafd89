"""The functional twin: per-example gradients of any parameter through `torch.func`, for layers that no rule covers."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map

from whence.capture.rules import vector_pair
from whence.capture.units import Plan
from whence.sharded_weights import refuse_spread
from whence.tasks import Batch

__all__ = ["Swapped", "functional_pairs"]


class Swapped(nn.Module):
    """A model that runs with other values for some of its parameters, tied ones included.

    Args:
        model: The model; attributes are looked up in it.
        values: By parameter name.
    """

    def __init__(self, model: nn.Module, values: dict[str, Tensor]):
        super().__init__()
        refuse_spread(model)
        object.__setattr__(self, "_target", (model, values))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives with these values."""
        model, values = self._target
        return functional_call(model, values, args, kwargs, tie_weights=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_target")[0], name)


def functional_pairs(function, model: nn.Module, plan: Plan, batch: Batch, consume, *, num_examples: int) -> None:
    """Hand out the pairs of the units that no hook feeds, one vector per example.

    The function, of model and batch, gives one value per example.

    The model is expected to be frozen. Examples run side by side under `vmap`; a model that vmap cannot trace runs them one at a time.
    """
    parameters = dict(model.named_parameters())
    values = {name: parameters[name].detach() for name in plan.functional}

    def single(chosen: dict[str, Tensor], example: Batch) -> Tensor:
        return function(Swapped(model, chosen), example)[0]

    gradients = _side_by_side(single, values, batch, num_examples)
    if gradients is None:
        gradients = _one_at_a_time(single, values, batch, num_examples)
    first = len(plan.units) - len(plan.functional)
    for place, name in enumerate(plan.functional):
        consume(first + place, vector_pair(gradients[name].flatten(1)))


def _is_batched(leaf: Any, num_examples: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == num_examples


def _side_by_side(single, values: dict[str, Tensor], batch: Batch, num_examples: int) -> dict[str, Tensor] | None:
    axes = tree_map(lambda leaf: 0 if _is_batched(leaf, num_examples) else None, batch)

    def alone(chosen: dict[str, Tensor], example: Batch) -> Tensor:
        widened = tree_map(lambda leaf, axis: leaf[None] if axis == 0 else leaf, example, axes)
        return single(chosen, widened)

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")  # known to be the slower way
            return vmap(grad(alone), in_dims=(None, axes))(values, batch)
    except (RuntimeError, ValueError, TypeError, NotImplementedError):
        return None


def _one_at_a_time(single, values: dict[str, Tensor], batch: Batch, num_examples: int) -> dict[str, Tensor]:
    rows: dict[str, list[Tensor]] = {name: [] for name in values}
    for index in range(num_examples):
        example = tree_map(
            lambda leaf: leaf[index : index + 1] if _is_batched(leaf, num_examples) else leaf,  # noqa: B023
            batch,
        )
        leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
        with torch.enable_grad():
            # An example need not use every parameter: experts that none of its positions was given to have no gradient.
            found = torch.autograd.grad(single(leaves, example), list(leaves.values()), materialize_grads=True)
        for name, gradient in zip(leaves, found, strict=True):
            rows[name].append(gradient)
    return {name: torch.stack(gradients) for name, gradients in rows.items()}
