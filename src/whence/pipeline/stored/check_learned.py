"""Whether what was learned beside a store's rows fits the model that is asked, before anything is made of it.

Axes: O x I a unit, P x R its projection, M coordinates of all units, K numbers of a row.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from whence.compress import projected_shape
from whence.compress.quantize import packed_width
from whence.compress.turn import TURNED
from whence.errors import StoreCorrupt
from whence.methods import Method
from whence.pipeline.stored.code_size import STORED_TYPES
from whence.records import Unit
from whence.store import Blueprint, damaged

__all__ = ["check_learned", "check_sizes"]

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_BITS = (32, 8, 4, 1)
# Of a sketch: rows of a gigabyte would have as many.
_MOST_SLOTS = 1 << 33


def check_sizes(blueprint: Blueprint, method: Method, units: Sequence[Unit], folder: Path) -> None:
    """Refuse rows of other sizes than the method makes of these units: encoders of the wrong ones could take any memory.

    Args:
        blueprint: What the rows are said to be.
        method: Its method.
        units: Of the model.
        folder: The store, for the message.

    Raises:
        StoreCorrupt: If they are other ones.
    """
    rank, divisor = blueprint.rank, blueprint.side_divisor
    due = [rank] if method.is_joined else [math.prod(projected_shape(unit, rank, divisor)) for unit in units]
    sizes = [math.prod(unit.projected) for unit in blueprint.units]
    if method.encoder == "aligned":  # signs of what the axes leave may follow
        sizes = sizes[:1] if len(sizes) <= 2 else sizes
    if sizes != due:
        raise StoreCorrupt(
            **damaged(folder / "blueprint.json", f"rows of other sizes than {method.name} makes at rank {blueprint.rank:,}")
        )


def check_learned(path: Path, tensors: Mapping[str, Tensor], shapes: Shapes, units: Sequence[Unit], rank: int) -> None:
    """Refuse learned tensors that are not of this model's units.

    Args:
        path: Their file, whose name says what they are.
        tensors: By name.
        shapes: Shape and type of each, known without reading it.
        units: Of the model.
        rank: Of the store's projection, or numbers of its rows.

    Raises:
        StoreCorrupt: If one is missing, or has another shape, type or range.
    """
    why = {"axes": _axes, "moments": _moments, "mask": _mask, "codes": _codes}[path.stem](tensors, shapes, units, rank)
    if why:
        raise StoreCorrupt(**damaged(path, why))


def _axes(tensors: Mapping[str, Tensor], shapes: Shapes, units: Sequence[Unit], rank: int) -> str:
    for index, unit in enumerate(units):
        for name, size, width in zip(
            ("outputs", "inputs"), (unit.outputs, unit.inputs), projected_shape(unit, rank), strict=True
        ):
            if (f"{name}.{index}" in shapes or size != width) and (
                why := _misfit(shapes, f"{name}.{index}", (size, width), _FLOATS)
            ):
                return why
    return ""


def _moments(tensors: Mapping[str, Tensor], shapes: Shapes, units: Sequence[Unit], rank: int) -> str:
    for index, unit in enumerate(units):
        for name, size in (("outputs", unit.outputs), ("inputs", unit.inputs)):
            if why := _misfit(shapes, f"{name}.{index}", (size,), (torch.float64,)):
                return why
    return ""


def _mask(tensors: Mapping[str, Tensor], shapes: Shapes, units: Sequence[Unit], rank: int) -> str:
    size = sum(unit.outputs * unit.inputs for unit in units)
    return _misfit(shapes, "places", (None,), (torch.int64,)) or _unlike_places(tensors, "places", size)


def _codes(tensors: Mapping[str, Tensor], shapes: Shapes, units: Sequence[Unit], rank: int) -> str:
    coordinates = 0
    for index, unit in enumerate(units):
        # Of a cut side one weight of every direction and one, or one of every band, for the rest.
        groups: list[int] = []
        for name, size in (("outputs", unit.outputs), ("inputs", unit.inputs)):
            key = f"{name}.{index}"
            groups.append(size)
            if key in shapes and (why := _misfit(shapes, key, (None, None), _FLOATS)):
                return why
            if f"{name}_places.{index}" in shapes:
                if why := _unlike_block(tensors, shapes, name, index, size):
                    return why
                groups[-1] = min(size, shapes[key][0][0] + int(tensors[f"{name}_bands.{index}"].max()) + 1)
                continue
            # A square matrix, or the vectors of fewer reflections than the side is long.
            if key in shapes and (shapes[key][0][0] != size or not 0 < shapes[key][0][1] <= size):
                return f"{key} has the shape {tuple(shapes[key][0])}, not ({size}, {size} or less)"
            if key in shapes:
                groups[-1] = min(size, shapes[key][0][1] + 1)
        kept_name, size = f"kept.{index}", unit.outputs * unit.inputs
        whole = (unit.outputs, unit.inputs)
        if why := _misfit(shapes, f"weights.{index}", tuple(groups), _FLOATS) and _misfit(
            shapes, f"weights.{index}", whole, _FLOATS
        ):
            return why
        if kept_name in shapes:
            why = _misfit(shapes, kept_name, (None,), (torch.int64,))
            # Of some units none may be kept.
            if why := why or (_unlike_places(tensors, kept_name, size) if shapes[kept_name][0][0] else ""):
                return why
            size = shapes[kept_name][0][0]
        coordinates += size
    numbers = {"axes_bits": _BITS, "axes_width": (rank,), "dtype": range(len(STORED_TYPES))}
    for name, allowed in numbers.items():
        if why := _misfit(shapes, name, (), (torch.int64,)):
            return why
        if int(tensors[name]) not in allowed:
            return f"{name} is {int(tensors[name]):,}"
    bits = int(tensors["axes_bits"])
    rows = coordinates if bits == 32 else math.ceil(coordinates / TURNED) * TURNED
    codes = ((rows, rank), _FLOATS) if bits == 32 else ((rows, packed_width(rank, bits)), (torch.int8, torch.uint8))
    return (
        _misfit(shapes, "axes", *codes)
        or _misfit(shapes, "scales", (rows,), _FLOATS)
        or _misfit(shapes, "damping", (), _FLOATS)
        or ("rest_axes" in shapes and _rest(tensors, shapes, rank))
        or ("judged" in shapes and _misfit(shapes, "judged", (3,), (torch.int64,)))
        or ("anchors" in shapes and _misfit(shapes, "anchors", (32,), (torch.uint8,)))
        or ""
    )


def _rest(tensors: Mapping[str, Tensor], shapes: Shapes, rank: int) -> str:
    """Of what the axes leave."""
    for name, dtypes in (("rest_bits", (torch.int64,)), ("rest_slots", (torch.int64,)), ("rest_share", (torch.float64,))):
        if why := _misfit(shapes, name, (), dtypes):
            return why
    bits, slots, share = int(tensors["rest_bits"]), int(tensors["rest_slots"]), float(tensors["rest_share"])
    if bits not in (32, 8, 4) or not 0 < share <= 1:
        return f"rest_bits is {bits:,} and rest_share {share:g}"
    codes = ((None, rank), _FLOATS) if bits == 32 else ((None, packed_width(rank, bits)), (torch.int8, torch.uint8))
    why = _misfit(shapes, "rest_axes", *codes)
    mixtures = 0 if why else shapes["rest_axes"][0][0]
    why = why or _misfit(shapes, "rest_scales", (mixtures,), _FLOATS)
    return why or ("" if 0 < mixtures <= slots <= _MOST_SLOTS else f"{mixtures:,} mixtures of {slots:,} slots")


def _unlike_block(tensors: Mapping[str, Tensor], shapes: Shapes, name: str, index: int, size: int) -> str:
    """Of a basis that is a block among axes."""
    indices_name, bands_name = f"{name}_places.{index}", f"{name}_bands.{index}"
    why = _misfit(shapes, indices_name, (None,), (torch.int64,)) or _misfit(shapes, bands_name, (size,), (torch.int64,))
    why = why or _unlike_places(tensors, indices_name, size)
    count = shapes[indices_name][0][0]
    why = why or _misfit(shapes, f"{name}.{index}", (count, count), _FLOATS)
    if not why and not -1 <= int(tensors[bands_name].min()) <= int(tensors[bands_name].max()) < size:
        why = f"{bands_name} has numbers that are no bands"
    return why


def _misfit(shapes: Shapes, name: str, shape: tuple[int | None, ...], types: Sequence[torch.dtype]) -> str:
    if name not in shapes:
        return f"it has no tensor {name}"
    stored_shape, dtype = shapes[name]
    fits = len(stored_shape) == len(shape) and all(due in (None, size) for due, size in zip(shape, stored_shape, strict=True))
    if fits and dtype in types:
        return ""
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    return f"{name} has the shape {tuple(stored_shape)} of {dtype}, not ({sizes}) of {types[0]}"


def _unlike_places(tensors: Mapping[str, Tensor], name: str, size: int) -> str:
    places_M = tensors[name]
    rises = bool((places_M.diff() > 0).all())
    return (
        "" if len(places_M) and rises and 0 <= int(places_M[0]) <= int(places_M[-1]) < size else f"{name} are no rising places"
    )
