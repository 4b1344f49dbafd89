"""Which sides of a unit get all of their eigenvectors, and what the others get instead.

A side of N numbers has a second moment of N x N and eigenvectors that take N^3 to find. What is too long for that is sketched: S Omega for a
random Omega of K columns, added up in the same pass, gives the leading directions by the Nystroem formula (Halko, Martinsson and Tropp 2011,
section 5.5), and the basis is the coordinate axes reflected so that their first K become these directions. Eigenvalues are measured in it as
in any other, and those of the rest are their mean: a truncated basis with an isotropic rest.

A vocabulary's logits have nearly a diagonal for their second moment, with a long tail that no few directions hold. There the eigenvectors are
those among the likely classes, and all others keep their axes, in bands of about the same second moment with one eigenvalue each.

Axes: N length of a side, K directions, R positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from whence.compress import nystroem_directions, random_matrix
from whence.records import Unit
from whence.reflections import Basis, Blocked, Reflected
from whence.settings import FitConfig
from whence.store.files import read_json

__all__ = [
    "DIRECTIONS",
    "LONG_SIDE",
    "ROUNDING",
    "Probes",
    "as_basis",
    "basis_notes",
    "basis_plan",
    "basis_tensors",
    "blocked_basis",
    "cut_note",
    "directions_of",
    "even_rest",
    "kept_numbers",
    "reflected_basis",
    "resolved",
    "units_of_classes",
    "value_groups",
]

DIRECTIONS = 1024
"""Kept of a side that is too long for all of its eigenvectors; `benchmarks/widths.py` measures what fewer cost."""
LONG_SIDE = 2049
"""Sides up to this (2,048 and a joined bias) have their eigenvectors found in float64; on longer ones that takes 2.6 times as long."""
# Seconds that eigenvectors may take if the passes over the data take less.
_PATIENCE = 600.0
# Seconds per cube of a side: measured on an x86 core for 1,024 to 8,192 (float32, LAPACK's divide and conquer), assumed for an accelerator.
_DECOMPOSITION_SECONDS = {"cpu": 8e-11, "cuda": 1e-11}
# Operations a second that a pass over the data reaches, per thread or device.
_RATE = {"cpu": 2e10, "cuda": 3e13}
# Numbers per square of a side at the height of its decomposition: the moment, its copy, the vectors and LAPACK's workspace.
_COPIES = 8
ROUNDING = 8
"""Times the precision of a sketch's numbers, or of a long side's second moment, below which an eigenvalue of it is rounding."""
# Times its directions, from which on a side is sketched: no slower than decomposing it, and nearer to the range of few rows.
_WORTH = 2
# Columns of a sketch beyond the rank that it is to hold: a square random matrix may be nearly singular.
_SPARE = 32
# Numbers per number of a sketch at the height of its decomposition, in float64; and its time in that of a cube of as many operations.
_SKETCH_COPIES, _SKETCH_CUBES = 10, 4
# Of the classes that are not among the likely ones.
_BANDS = 8


def resolved(
    config: FitConfig | None,
    units: Sequence[Unit],
    *,
    device: torch.device,
    positions: int,
    rows: int | None = None,
    room_bytes: float = float("inf"),
    folder: Path | None = None,
) -> FitConfig:
    """The same config with numbers for what was left to be chosen: the longest side with all of its eigenvectors.

    All sides up to some length are decomposed: the longest for which a side's decomposition fits in half of the memory, and those of all
    such sides together take no longer than the passes over the data or ten minutes, whichever is more. Rates are rough and fixed, so that
    the same job on the same kind of machine is fitted alike; a fit that is in a folder keeps what it was begun with.

    With few rows a long side has as many directions as there are rows: then nothing of its second moment is in the rest, a sketch takes
    less time than all eigenvectors, and it holds smaller eigenvalues than rounding leaves of a whole second moment. A side of classes
    then has the likely ones.

    Args:
        config: What was asked for; None for the defaults.
        units: The units.
        device: Where they are fitted.
        positions: In the data that the curvature is averaged over.
        rows: Vectors that second moments are sums of, if they are few (`few_rows`).
        room_bytes: Of memory, for the whole fit.
        folder: Of a fit that may have begun.
    """
    config = config or FitConfig()
    begun = _begun(folder)
    longest, directions = (
        begun.get(name) if value is None else value
        for name, value in (("largest_side", config.largest_side), ("directions", config.directions))
    )
    sides = [side for unit in units for side in (unit.outputs, unit.inputs) if side > 1]
    if longest is None:
        parameters = sum(unit.outputs * unit.inputs for unit in units)
        kind = device.type if device.type in _RATE else "cuda"
        # Two passes, each of a forward pass and a backward pass to every layer, and products of the sides.
        rate = _RATE[kind] * (torch.get_num_threads() if kind == "cpu" else 1)
        cubes = max(_PATIENCE, 2 * 6.0 * positions * parameters / rate) / _DECOMPOSITION_SECONDS[kind]
        longest = _longest(sides, cubes, room_bytes)
        if rows is not None and directions is None:
            longest, directions = _spanned(sides, rows, longest, cubes, room_bytes)
    return replace(config, largest_side=int(longest), directions=DIRECTIONS if directions is None else int(directions))


def _begun(folder: Path | None) -> dict[str, int]:
    """The sizes that a fit in a folder was begun with; what is no such record is refused where the fit is read."""
    if folder is None or not (folder / "fit.json").exists():
        return {}
    earlier = read_json(folder / "fit.json")
    identity = earlier.get("identity") if isinstance(earlier, dict) else None
    if not isinstance(identity, dict):
        return {}
    return {name: value for name, value in identity.items() if type(value) is int and value >= 0}


def _longest(sides: Sequence[int], cubes: float, room_bytes: float) -> int:
    """The longest side up to which all are decomposed in so many cubes of a side."""
    longest, spent = 1, 0.0
    for size in sorted(set(sides)):
        spent += sides.count(size) * float(size) ** 3
        if spent > cubes or 4 * _COPIES * size * size > room_bytes / 2:
            return longest
        longest = size
    return longest


def _spanned(sides: Sequence[int], rows: int, longest: int, cubes: float, room_bytes: float) -> tuple[int, int]:
    """The longest side with all of its eigenvectors, and directions of others, where a sketch of a long side holds all of a few rows.

    Where sketches are too much, too, or sides between would have neither, it is as with many rows.
    """
    width = max(DIRECTIONS, rows + _SPARE)
    whole = max(LONG_SIDE, _WORTH * width)
    long = [side for side in sides if side > whole]
    spent = sum(_SKETCH_CUBES * side * float(width) ** 2 for side in long)
    is_large = 4 * _SKETCH_COPIES * max(long, default=0) * width > room_bytes / 2
    if not long or spent > cubes or is_large or any(longest < side <= whole for side in sides):
        return longest, DIRECTIONS
    return whole, width


def directions_of(size: int, config: FitConfig) -> int:
    """Directions that a side's basis has: all, some, or 0 for the coordinate axes.

    Args:
        size: Of the side.
        config: Resolved.
    """
    assert config.largest_side is not None and config.directions is not None
    if size == 1:
        return 0
    # One more is let through: a bias that is joined to a weight decides nothing.
    return size if size <= config.largest_side + 1 else min(config.directions, size - 1)


def kept_numbers(units: Sequence[Unit], config: FitConfig) -> int:
    """Numbers of bases and of one weight per group of eigenvalues, as a store keeps them; more than enough for a cut side of classes.

    Args:
        units: The units.
        config: Resolved.
    """
    total = 0
    for unit in units:
        sizes = (unit.outputs, unit.inputs)
        widths = [directions_of(size, config) for size in sizes]
        # What is cut has an eigenvalue for every direction, and one, or one of every band, for the rest.
        groups = [min(size, width + _BANDS) if width else size for size, width in zip(sizes, widths, strict=True)]
        total += sum(size * width for size, width in zip(sizes, widths, strict=True)) + groups[0] * groups[1]
    return total


def value_groups(basis: Basis | None, size: int) -> Tensor:
    """Which coordinates of a side have one eigenvalue, shape (N,): every direction its own, the rest of a cut side together or by bands.

    Args:
        basis: The side's.
        size: N.
    """
    if isinstance(basis, Reflected):
        return torch.arange(size).clamp_max(basis.directions)
    if isinstance(basis, Blocked):
        groups_N = basis.bands_N.cpu() + basis.directions
        return groups_N.index_copy(0, basis.places_K.cpu(), torch.arange(basis.directions))
    return torch.arange(size)


def units_of_classes(units: Sequence[Unit], classes: int) -> frozenset[int]:
    """Whose outputs are the classes, by index: a table that the head shares, or else the last unit of that many outputs."""
    indices = [index for index, unit in enumerate(units) if unit.outputs == classes]
    shared = [index for index in indices if len(units[index].layers) > 1]
    return frozenset(shared or indices[-1:])


@dataclass(frozen=True)
class Probes:
    """What is added up of long sides instead of a whole second moment.

    Args:
        units: The units.
        config: Resolved.
        places_K: The likely classes, for the units whose outputs are classes; None if no such side is cut.
        classes: How many classes there are; 0 if no such side is cut.
        drawn: Random matrices, once they were made.
    """

    units: Sequence[Unit]
    config: FitConfig
    places_K: Tensor | None = None
    classes: int = 0
    drawn: dict[tuple[int, str], Tensor] = field(default_factory=dict, repr=False)

    def block(self, index: int, side: str) -> Tensor | None:
        """Places of the likely classes, (K,), for a cut side of classes; None for another."""
        is_classes = side == "outputs" and index in units_of_classes(self.units, self.classes)
        return self.places_K if is_classes and self._is_cut(index, side) else None

    def omega(self, index: int, side: str) -> Tensor | None:
        """The random matrix of another cut side, shape (N, K), float32 on the CPU at first; None for a side that is not sketched."""
        if not self._is_cut(index, side) or self.block(index, side) is not None:
            return None
        unit = self.units[index]
        size = unit.outputs if side == "outputs" else unit.inputs
        if (index, side) not in self.drawn:
            name = f"{unit.name}:{side}:basis"
            width = directions_of(size, self.config)
            self.drawn[index, side] = random_matrix("gaussian", size, width, seed=self.config.seed, name=name)
        return self.drawn[index, side]

    def sums(self, index: int, side: str, rows_RN: Tensor) -> dict[str, Tensor]:
        """What is added up beside the diagonal: `side_sketch`, S Omega (N, K), or `side_block`, the second moment of the likely classes."""
        places_K, omega_NK = self.block(index, side), self.omega(index, side)
        if places_K is not None:
            few_RK = rows_RN[:, places_K.to(rows_RN.device)]
            return {f"{side}_block": few_RK.T @ few_RK}
        if omega_NK is None:
            return {}
        omega_NK = self.drawn[index, side] = omega_NK.to(rows_RN)
        return {f"{side}_sketch": rows_RN.T @ (rows_RN @ omega_NK)}

    def _is_cut(self, index: int, side: str) -> bool:
        size = self.units[index].outputs if side == "outputs" else self.units[index].inputs
        return directions_of(size, self.config) not in (0, size)


def reflected_basis(
    omega_NK: Tensor, sketches: Sequence[Tensor | None], diagonals: Sequence[Tensor], weights: Sequence[float]
) -> tuple[Reflected | None, Tensor]:
    """The basis of a sketched side, and its roles' second moments there.

    Args:
        omega_NK: What it was sketched with.
        sketches: Per role the second moment times omega, (N, K); None for one that is a diagonal.
        diagonals: Per role the diagonal of the second moment, (N,).
        weights: Per role, of its moment in the sum that the directions are of.

    Returns:
        The basis, None if nothing reached this side; and per role the diagonal of the second moment in it, (roles, N): of the Nystroem
        approximation for the directions, and what is left of the trace evenly for the rest.
    """
    least = ROUNDING * torch.finfo(diagonals[0].dtype).eps
    omega_NK, diagonals = omega_NK.to(diagonals[0].device).double(), [diagonal.double() for diagonal in diagonals]
    sketches = [None if sketch is None else sketch.to(omega_NK) for sketch in sketches]
    pairs = list(zip(sketches, diagonals, strict=True))
    full = [diagonal[:, None] * omega_NK if sketch is None else sketch for sketch, diagonal in pairs]
    total_NK = torch.stack([weight * sketch for weight, sketch in zip(weights, full, strict=True)]).sum(0)
    half_NK = nystroem_directions(omega_NK, total_NK, least=least)
    if half_NK.shape[1] == 0:
        return None, torch.stack(diagonals)
    directions_NK = torch.linalg.svd(half_NK, full_matrices=False)[0]
    size, width = directions_NK.shape
    values = []
    for sketch, diagonal in pairs:
        # U^T S U by the half of S, or by its diagonal.
        inside = (directions_NK.square() * diagonal[:, None]).sum(0)
        if sketch is not None:
            inside = (nystroem_directions(omega_NK, sketch, least=least).T @ directions_NK).square().sum(0)
        rest = (diagonal.sum() - inside.sum()).clamp_min(0) / max(1, size - width)
        values.append(torch.cat([inside, rest.expand(size - width)]))
    return Reflected.towards(directions_NK), torch.stack(values)


def blocked_basis(
    places_K: Tensor, blocks: Sequence[Tensor | None], diagonals: Sequence[Tensor], weights: Sequence[float]
) -> tuple[Blocked, Tensor]:
    """The basis of a cut side of classes, and its roles' second moments there.

    Eigenvectors among the likely classes, axes for the rest, in bands of about the same second moment.

    Args:
        places_K: Of the likely classes.
        blocks: Per role the second moment among them, (K, K); None for a role that is a diagonal.
        diagonals: Per role the diagonal of the whole, (N,).
        weights: As in `reflected_basis`.

    Returns:
        The basis, and per role the diagonal of the second moment in it, (roles, N), evened out like eigenvalues.
    """
    diagonals = [diagonal.double() for diagonal in diagonals]
    places_K = places_K.to(diagonals[0].device)
    pairs = zip(blocks, diagonals, strict=True)
    moments = [torch.diag(diagonal[places_K]) if block is None else block.to(diagonal) for block, diagonal in pairs]
    total_KK = torch.stack([weight * moment for weight, moment in zip(weights, moments, strict=True)]).sum(0)
    block_KK = torch.linalg.eigh((total_KK + total_KK.T) / 2)[1]
    total_N = torch.stack([weight * diagonal for weight, diagonal in zip(weights, diagonals, strict=True)]).sum(0)
    total_N[places_K] = -1.0
    bands_N = torch.full_like(total_N, -1, dtype=torch.int64)
    rest = total_N.argsort(descending=True, stable=True)[: len(total_N) - len(places_K)]
    for band, indices in enumerate(rest.chunk(_BANDS)):
        bands_N[indices] = band
    basis = Blocked(block_KK, places_K, bands_N)
    values = [
        basis.even(diagonal.index_copy(0, places_K, (block_KK * (moment @ block_KK)).sum(0).clamp_min(0))[:, None])[:, 0]
        for moment, diagonal in zip(moments, diagonals, strict=True)
    ]
    return basis, torch.stack(values)


def even_rest(values_OI: Tensor, outputs: Basis | None, inputs: Basis | None) -> Tensor:
    """Eigenvalues with a mean in place of each of those that belong to no direction of a cut basis, in place.

    As they are measured they would be those of axes that mean nothing: with the mean, scores are nearer to those of all eigenvectors.
    """
    if isinstance(outputs, Reflected | Blocked):
        outputs.even(values_OI)
    if isinstance(inputs, Reflected | Blocked):
        inputs.even(values_OI.T)
    return values_OI


def as_basis(tensors: Mapping[str, Tensor], side: str, index: int) -> Basis | None:
    """A basis as it is kept in a file: a square matrix, the vectors of reflections, or a block with its places and bands."""
    tensor = tensors.get(f"{side}.{index}")
    if f"{side}_places.{index}" in tensors and tensor is not None:
        return Blocked(tensor, tensors[f"{side}_places.{index}"], tensors[f"{side}_bands.{index}"])
    return tensor if tensor is None or tensor.shape[0] == tensor.shape[1] else Reflected.of(tensor)


def basis_tensors(basis: Basis | None, side: str, index: int, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """What `as_basis` makes a basis of, its numbers in a type."""
    if basis is None:
        return {}
    if isinstance(basis, Blocked):
        tensors = {f"{side}_places.{index}": basis.places_K, f"{side}_bands.{index}": basis.bands_N}
        return {f"{side}.{index}": basis.block_KK.to(dtype or basis.block_KK.dtype).contiguous(), **tensors}
    whole = basis.vectors_NK if isinstance(basis, Reflected) else basis
    return {f"{side}.{index}": whole.to(dtype or whole.dtype).contiguous()}


def cut_note(unit: Unit, side: str, basis: Reflected | Blocked, values_N: Tensor) -> str:
    """What is to be said of a side whose basis is cut.

    Args:
        unit: The unit.
        side: "outputs" or "inputs".
        basis: Its basis.
        values_N: The diagonal of its second moment in the basis, up to a factor.
    """
    values_N = values_N.double()
    share = float(basis.leading(values_N).sum() / values_N.sum().clamp_min(1e-300))
    what = "likely classes" if isinstance(basis, Blocked) else "directions"
    return f"{side} of {unit.name}: {basis.directions:,} of {len(values_N):,} {what} with {share:.1%} of the trace"


def basis_plan(units: Sequence[Unit], config: FitConfig) -> list[str]:
    """What will have to be said of the bases, by sizes alone, before anything is fitted.

    Args:
        units: The units.
        config: Resolved.
    """
    sides = [(side, unit, size) for unit in units for side, size in (("outputs", unit.outputs), ("inputs", unit.inputs))]
    cut = [(side, unit, size, directions_of(size, config)) for side, unit, size in sides]
    return [
        f"{side} of {unit.name}: {width:,} of {size:,} directions" if width else f"{side} of {unit.name}: {size:,} axes"
        for side, unit, size, width in cut
        if size > 1 and width < size
    ]


def basis_notes(sides: Sequence[str]) -> list[str]:
    """One note of all such sides; of many the number, the first and the last, and those of classes."""
    if len(sides) > 4:
        classes = [side for side in sides if "classes" in side and side not in (sides[0], sides[-1])]
        sides = [f"{len(sides)} sides, such as {sides[0]}", *classes, sides[-1]]
    return [f"bases are cut at {'; '.join(sides)}, the rest is taken as isotropic"] if sides else []
