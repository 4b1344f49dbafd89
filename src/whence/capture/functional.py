"""The functional twin: per-example gradients of any parameter, for layers that no rule covers or that hooks get wrong.

Every example is collated alone, so that nothing has to be cut out of a batch, whatever a batch looks like.

Axes: B examples, O x I a unit's matrix.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from whence.capture.blocks import as_block
from whence.capture.frozen import LEFT_OUT
from whence.capture.halves import is_out_of_memory
from whence.capture.rules import matrix_pair, vector_pair
from whence.capture.swapped import with_weights
from whence.capture.units import Plan
from whence.errors import BadInput
from whence.internals import map_tree
from whence.tasks import Batch

__all__ = ["functional_pairs"]

Function = Callable[[nn.Module, Batch], Tensor]
Gradients = dict[str, Tensor]


def functional_pairs(
    function: Function, model: nn.Module, plan: Plan, units: Iterable[int], examples: Sequence[Batch], consume
) -> None:
    """Hand out one pair per unit, from gradients that are written out.

    Examples whose batches are alike run side by side under `vmap`, if the model can be run so and the check has not found the result to be
    another than alone; all others run one at a time.

    Args:
        function: Of model and batch; gives one value per example.
        model: The model, frozen.
        plan: Its units.
        units: Which of them.
        examples: Each example as a batch of its own.
        consume: As in `capture`.

    Raises:
        BadInput: If the function does not give one value for one example.
        RuntimeError: Whatever the model raises on one example.
    """
    units = list(units)
    parameters = dict(model.named_parameters())
    names = [name for index in units for name in plan.units[index].parameters]
    values = {name: parameters[name].detach() for name in names}
    rows: dict[str, list[Tensor | None]] = {name: [None] * len(examples) for name in names}
    for group in _groups(examples):
        by_name = _side_by_side(function, model, values, group) if plan.route.side_by_side else None
        if by_name is None:
            alone = [_alone(function, model, values, examples[example_index]) for example_index in group.indices]
            by_name = {name: torch.stack([gradients[name] for gradients in alone]) for name in names}
        for name in names:
            for example_index, row in zip(group.indices, by_name[name], strict=True):
                rows[name][example_index] = row
    for index in units:
        unit = plan.units[index]
        block_BOI = as_block(plan, unit, {name: torch.stack(rows.pop(name)) for name in unit.parameters})  # type: ignore[arg-type]
        consume(index, vector_pair(block_BOI[:, 0]) if unit.outputs == 1 else matrix_pair(block_BOI))


@dataclass
class _Group:
    """Examples that differ in the numbers of their tensors only.

    Args:
        form: A batch with the number of each leaf in its place.
        indices: The examples.
        members: The leaves of each of them.
    """

    form: Any
    indices: list[int]
    members: list[list[Any]]

    def takes(self, form: Any, leaves: list[Any]) -> bool:
        return form == self.form and all(map(_is_alike, self.members[0], leaves))


def _groups(examples: Sequence[Batch]) -> list[_Group]:
    groups: list[_Group] = []
    for index, batch in enumerate(examples):
        form, leaves = _taken_apart(batch)
        group = next((group for group in groups if group.takes(form, leaves)), None)
        if group is None:
            groups.append(_Group(form, [index], [leaves]))
        else:
            group.indices.append(index)
            group.members.append(leaves)
    return groups


def _taken_apart(batch: Batch) -> tuple[Any, list[Any]]:
    """The form of a batch and its leaves."""
    leaves: list[Any] = []

    def number(leaf: Any) -> int:
        leaves.append(leaf)
        return len(leaves) - 1

    try:
        return map_tree(number, batch), leaves
    except Exception:  # a container that can hold nothing but tensors, such as a packed sequence, is a leaf itself
        return 0, [batch]


def _is_alike(first: Any, second: Any) -> bool:
    """Whether two leaves are tensors that can be stacked, or the same thing."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return (first.shape, first.dtype, first.device, type(first)) == (
            second.shape,
            second.dtype,
            second.device,
            type(second),
        )
    is_plain = type(first) is type(second) and isinstance(first, bool | int | float | str | torch.dtype | torch.device | None)
    return first is second or (is_plain and first == second)


def _side_by_side(function: Function, model: nn.Module, values: Gradients, group: _Group) -> Gradients | None:
    """Gradients of a group's examples, with the examples in front; None if the model cannot be run so."""
    # A tensor that is one object in all examples is shared; of one example nobody can say, and need not.
    own = [
        number
        for number, leaf in enumerate(group.members[0])
        if isinstance(leaf, Tensor) and (len(group.indices) == 1 or any(member[number] is not leaf for member in group.members))
    ]
    if not own:
        return None

    def alone(chosen: Gradients, *tensors: Tensor) -> Tensor:
        leaves = dict(zip(own, tensors, strict=True))
        batch = map_tree(lambda number: leaves.get(number, group.members[0][number]), group.form)
        return with_weights(model, chosen, lambda: _value(function, model, batch))

    try:
        stacked = [torch.stack([member[number] for member in group.members]) for number in own]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")  # known to be the slower way
            return vmap(grad(alone), in_dims=(None, *[0] * len(own)))(values, *stacked)
    except Exception as error:
        # Whatever is wrong with the model itself is said again by the run of one example.
        if is_out_of_memory(error):
            raise
        return None


def _alone(function: Function, model: nn.Module, values: Gradients, batch: Batch) -> Gradients:
    """One example's gradients by plain autograd."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=LEFT_OUT)
            return _backward(function, model, values, batch)
    except UserWarning:
        every = {name: parameter.detach() for name, parameter in model.named_parameters()}
        gradients = _backward(function, model, every, batch)
        return {name: gradients[name] for name in values}


def _backward(function: Function, model: nn.Module, values: Gradients, batch: Batch) -> Gradients:
    leaves = {name: value.clone() for name, value in values.items()}
    for leaf in leaves.values():
        leaf.requires_grad_(leaf.is_floating_point() or leaf.is_complex())

    def run() -> None:
        with torch.enable_grad():
            value = _value(function, model, batch)
            if value.requires_grad:  # an example need not use these parameters,
                value.backward()

    with_weights(model, leaves, run)
    # nor all of them: experts that none of its positions was given to have no gradient.
    return {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}


def _value(function: Function, model: nn.Module, batch: Batch) -> Tensor:
    value = function(model, batch)
    if value.shape != (1,):
        raise BadInput(
            found=f"a function of shape {tuple(value.shape)} for a batch of one example",
            needed="one value per example, shape (1,)",
            do="sum over everything but the batch axis",
        )
    return value[0]
