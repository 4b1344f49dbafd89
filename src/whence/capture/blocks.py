"""Vectors in parameter space: as one matrix per unit, and as one tensor per parameter.

Axes: Q vectors, O outputs, I inputs.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from whence.capture.rules import Rule
from whence.capture.units import Plan, num_numbers
from whence.records import Unit

__all__ = ["Blocks", "as_block", "as_blocks", "as_parameters"]

Blocks = list[Tensor]
"""Vectors in parameter space: one tensor (Q, O, I) per unit of the plan, in the plan's order."""


def as_parameters(plan: Plan, model: nn.Module, blocks: Blocks) -> dict[str, Tensor]:
    """Blocks as tensors of the parameters' own shapes.

    Args:
        plan: The units.
        model: The model that the plan was made for.
        blocks: The vectors.

    Returns:
        By name of every parameter in the plan, shape (Q, *parameter).
    """
    parameters = dict(model.named_parameters())
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    values = {}
    for unit, block_QOI in zip(plan.units, blocks, strict=True):
        if _is_flat(plan, unit, shapes):
            parts = block_QOI[:, 0].split([num_numbers(parameters[name]) for name in unit.parameters], 1)
            values.update({name: _as_tensor(part, parameters[name]) for name, part in zip(unit.parameters, parts, strict=True)})
            continue
        weight, *bias = unit.parameters
        columns = unit.inputs - len(bias)
        values[weight] = _rule(plan, unit).from_matrix(block_QOI[..., :columns], shapes[weight])
        values.update(dict.fromkeys(bias, block_QOI[..., -1]))
    return {name: value.to(parameters[name].dtype) for name, value in values.items()}


def as_blocks(plan: Plan, tensors: Mapping[str, Tensor]) -> Blocks:
    """The inverse of `as_parameters`.

    Args:
        plan: The units.
        tensors: By name of every parameter in the plan, shape (Q, *parameter).

    Returns:
        One tensor (Q, O, I) per unit.
    """
    return [as_block(plan, unit, tensors) for unit in plan.units]


def as_block(plan: Plan, unit: Unit, tensors: Mapping[str, Tensor]) -> Tensor:
    """One unit of `as_blocks`, shape (Q, O, I), from at least its own parameters' tensors."""
    shapes = {name: tensors[name].shape[1:] for name in unit.parameters}
    if _is_flat(plan, unit, shapes):
        return torch.cat([_numbers(tensors[name]) for name in unit.parameters], 1)[:, None]
    weight, *bias = unit.parameters
    matrix_QOI = torch.vmap(_rule(plan, unit).matrix)(tensors[weight])
    return torch.cat([matrix_QOI, *(tensors[name][..., None] for name in bias)], 2)


def _numbers(values: Tensor) -> Tensor:
    """(Q, *parameter) as (Q, N), a complex number as its two parts, of which the loss is a real function."""
    real = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    return real.flatten(1) if real.ndim > 1 else real[:, None]


def _as_tensor(numbers_QN: Tensor, parameter: Tensor) -> Tensor:
    """The inverse."""
    if not parameter.is_complex():
        return numbers_QN.reshape(len(numbers_QN), *parameter.shape)
    return torch.view_as_complex(numbers_QN.reshape(len(numbers_QN), *parameter.shape, 2).contiguous())


def _is_flat(plan: Plan, unit: Unit, shapes: Mapping[str, torch.Size]) -> bool:
    """Whether the unit is a list of numbers: norms, lone biases, parameters of unknown layers."""
    return not unit.layers or len(shapes[unit.name]) < 2 or _rule(plan, unit).vector


def _rule(plan: Plan, unit: Unit) -> Rule:
    return next(layer.rule for layer in plan.layers if layer.name == unit.layers[0])
