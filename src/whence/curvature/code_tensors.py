"""The tensors that codes are made with, as they are written beside a store's rows."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from whence.compress import Axes, Kronecker, Residual, Whitened
from whence.curvature.code_axes import REST_BITS, LearnedCode
from whence.curvature.sides import as_basis, basis_tensors, value_groups
from whence.records import Unit
from whence.reflections import Basis

__all__ = ["load_axes", "load_rest", "load_whitened", "rest_bits", "save_axes", "save_rest", "save_whitened"]


def save_whitened(whitened: Whitened) -> dict[str, Tensor]:
    """Tensors to be written, for `load_whitened`."""
    tensors = {f"kept.{i}": value for i, value in enumerate(whitened.coordinates_kept) if value is not None}
    for side, bases in (("outputs", whitened.bases.outputs), ("inputs", whitened.bases.inputs)):
        for index, basis in enumerate(bases):
            tensors |= basis_tensors(basis, side, index)
    return {**tensors, **{f"weights.{i}": _one_of_each(whitened, i) for i in range(len(whitened.weights))}}


def _one_of_each(whitened: Whitened, index: int) -> Tensor:
    """A unit's weights, of coordinates that have one eigenvalue one: with cut bases, a small part of them."""
    weights_OI = whitened.weights[index]
    for axis, basis in enumerate((whitened.bases.outputs[index], whitened.bases.inputs[index])):
        groups_N = value_groups(basis, weights_OI.shape[axis])
        firsts = torch.zeros(int(groups_N.max()) + 1, dtype=torch.int64)
        # Written backwards, so that the first of each stays.
        firsts[groups_N.flip(0)] = torch.arange(len(groups_N)).flip(0)
        if len(firsts) < len(groups_N):
            weights_OI = weights_OI.index_select(axis, firsts.to(weights_OI.device))
    return weights_OI.contiguous()


def _of_all(weights: Tensor, unit: Unit, outputs: Basis | None, inputs: Basis | None) -> Tensor:
    """The weights of all coordinates, of one of each; stores of before have all."""
    for axis, (basis, size) in enumerate(((outputs, unit.outputs), (inputs, unit.inputs))):
        if weights.shape[axis] < size:
            weights = weights.index_select(axis, value_groups(basis, size).to(weights.device))
    return weights


def load_whitened(units: Sequence[Unit], tensors: Mapping[str, Tensor], device: torch.device) -> Whitened:
    """What `save_whitened` took apart."""

    def named(name: str) -> tuple[Tensor | None, ...]:
        tensors_of = [tensors.get(f"{name}.{index}") for index in range(len(units))]
        return tuple(value if value is None else _laid_out(value, device) for value in tensors_of)

    def side(name: str) -> tuple[Basis | None, ...]:
        own_tensors = {
            key: _laid_out(value, device) for key, value in tensors.items() if key.split(".")[0].split("_")[0] == name
        }
        return tuple(as_basis(own_tensors, name, index) for index in range(len(units)))

    bases = Kronecker(tuple(units), side("outputs"), side("inputs"))
    sides = zip(units, named("weights"), bases.outputs, bases.inputs, strict=True)
    weights = tuple(_of_all(value, unit, left, right) for unit, value, left, right in sides if value is not None)
    return Whitened(bases, weights, named("kept"))


def _laid_out(value: Tensor, device: torch.device) -> Tensor:
    # Fitted and read back from disk they lie differently in memory, which moves the last bits of a product.
    return value.to(device).clone(memory_format=torch.contiguous_format)


def save_axes(axes: Axes) -> dict[str, Tensor]:
    """Tensors to be written, for `load_axes`."""
    return {
        "axes": axes.codes,
        "scales": axes.scales_M,
        "axes_bits": torch.tensor(axes.bits),
        "axes_width": torch.tensor(axes.width_K),
    }


def load_axes(tensors: Mapping[str, Tensor]) -> Axes:
    """What `save_axes` took apart."""
    return Axes(tensors["axes"], tensors["scales"], int(tensors["axes_bits"]), int(tensors["axes_width"]))


def rest_bits(axes_bits: int) -> int:
    """Bits per number of the sketches of axes of so many bits: 4, or more if the axes have more."""
    return max(REST_BITS, axes_bits)


def save_rest(learned: LearnedCode) -> dict[str, Tensor]:
    """Tensors to be written, for `load_rest`; none where nothing is kept of what the axes leave."""
    if learned.rest_axes_RK is None:
        return {}
    bits = rest_bits(learned.axes.bits)
    numbers, scales_R = Residual.rounded(learned.rest_axes_RK if bits == 32 else learned.rest_axes_RK.float(), bits)
    return {
        "rest_axes": numbers,
        "rest_scales": scales_R,
        "rest_bits": torch.tensor(bits),
        "rest_slots": torch.tensor(learned.slots),
        "rest_share": torch.tensor(learned.share, dtype=torch.float64),
    }


def load_rest(tensors: Mapping[str, Tensor], coordinates: int, seed: int, device: torch.device) -> Residual | None:
    """What `save_rest` took apart.

    Args:
        tensors: By name.
        coordinates: Whitened, of all units.
        seed: Of the sketch.
        device: Where it works.
    """
    if "rest_axes" not in tensors:
        return None
    codes, slots = tensors["rest_axes"], int(tensors["rest_slots"])
    sketch = Residual.sketch_of(coordinates, slots, len(codes), seed=seed, device=device)
    width, root = int(tensors["axes_width"]), float(tensors["rest_share"]) ** 0.5
    return Residual(sketch, codes, tensors["rest_scales"], int(tensors["rest_bits"]), width, root)
