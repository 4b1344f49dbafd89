"""Axes for codes of whitened gradients: the principal ones of a sample, through its Gram matrix, turned at random.

Axes: S examples of the sample, U coordinates of a unit, K axes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.compress import TURNED, Axes, Kronecker, Whitened, quantize, random_matrix, to_integers, turn, unpack
from whence.curvature.damping import ResolvedDamping
from whence.curvature.eigenbasis import KroneckerBlock, KroneckerCurvature
from whence.curvature.sides import as_basis, basis_tensors
from whence.records import Unit
from whence.reflections import Basis

__all__ = [
    "Code",
    "code_axes",
    "load_axes",
    "load_whitened",
    "most_bits",
    "save_axes",
    "save_whitened",
    "solve_whitened",
    "whiten",
]

# Eigenvalues of the Gram matrix below this share of the largest are rounding.
_NOISE = 1e-12
_TINY = torch.finfo(torch.float64).tiny
# Examples of the sample that the size of rounded axes is measured on.
_MEASURED = 128


def whiten(
    curvature: KroneckerCurvature, damping: ResolvedDamping, most_coordinates: int, device: torch.device | None = None
) -> Whitened:
    """Half of a damped inverse, restricted to the coordinates that carry most variance.

    A whitened coordinate has the variance eigenvalue / (eigenvalue + damping) under the curvature's own distribution of gradients.

    Args:
        curvature: The factors.
        damping: What is added to its eigenvalues.
        most_coordinates: How many are kept at most, over all units.
        device: Where rows will be whitened; None for where the factors are. Those that a fit reads from its folder are in memory.

    Returns:
        What whitens rows.
    """
    values = [block.values_OI + value for block, value in zip(curvature.blocks, curvature.dampings(damping), strict=True)]
    shares = [(block.values_OI / value).flatten() for block, value in zip(curvature.blocks, values, strict=True)]
    coordinates: list[Tensor | None] = [None] * len(values)
    if sum(map(len, shares)) > most_coordinates:
        # Ties at the threshold fall to the first ones.
        order = torch.cat(shares).argsort(descending=True, stable=True)[:most_coordinates]
        chosen = torch.zeros(sum(map(len, shares)), dtype=torch.bool).index_fill(0, order.cpu(), True)
        coordinates = [part.nonzero()[:, 0] for part in chosen.split([len(share) for share in shares])]

    def there(found: Basis | None) -> Basis | None:
        return found if found is None or device is None else found.to(device)

    bases = Kronecker(
        tuple(block.unit for block in curvature.blocks),
        tuple(there(block.outputs_OO) for block in curvature.blocks),
        tuple(there(block.inputs_II) for block in curvature.blocks),
    )
    weights = tuple(value.rsqrt() if device is None else value.rsqrt().to(device) for value in values)
    return Whitened(bases, weights, tuple(part if part is None or device is None else part.to(device) for part in coordinates))


def solve_whitened(whitened: Whitened, rows: Sequence[Tensor]) -> list[Tensor]:
    """The whole of the damped inverse that the halves are of, (H + damping)^-1, applied to vectors in parameter space.

    Weights of all coordinates are kept, so this is the inverse itself even where codes leave coordinates out.

    Args:
        whitened: One half.
        rows: Per unit, shape (Q, O, I).

    Returns:
        Per unit, shape (Q, O, I).
    """
    sides = zip(whitened.units, whitened.bases.outputs, whitened.bases.inputs, whitened.weights, strict=True)
    blocks = [KroneckerBlock(*parts) for parts in sides]
    return [block.back(block.into(row) * block.values_OI.to(row).square()) for block, row in zip(blocks, rows, strict=True)]


def most_bits(coordinates: int, width_K: int, most_bytes: int) -> int:
    """Bits per number of the axes, the most of 32, 8, 4 and 1 that fit.

    Few bits cost little: rounding errors of many coordinates average out. On text 4 bits lose nothing, and 1 bit .01 LDS (docs/log.md).

    >>> most_bits(1000, 100, 10**6), most_bits(10**6, 1000, 256 << 20)
    (32, 1)
    """
    return next((bits for bits in (32, 8, 4) if coordinates * width_K * bits <= 8 * most_bytes), 1)


@dataclass(frozen=True)
class Code:
    """How large a code is.

    Args:
        width: Numbers.
        dtype: How each is stored; see `whence.compress.quantize` for those of 8 bits and less.
        bits: The same in bits.
    """

    width: int
    dtype: str
    bits: int


def code_axes(
    rows: Sequence[Tensor], choices: Sequence[Code], *, most_bytes: int, seed: int, query_rows: Sequence[int] = ()
) -> tuple[Axes, Code, Tensor]:
    """Principal axes of whitened rows, over all units together, without forming their second moment.

    The Gram matrix of the sample has the same spectrum (Heo et al. 2026, section 3.3); axes are Z^T V / sigma. They are turned by a random
    rotation of the K axes among themselves, which keeps every inner product and spreads each row evenly over its numbers: few bits then lose
    far less. Rounding shrinks the axes; one factor makes the sample's codes come out at their exact size again.

    Of several sizes of code the one is taken with which the sample's examples, as each other's queries, find each other's scores best.

    Args:
        rows: Per unit, shape (S, U), of the sample.
        choices: Sizes of code; wider ones than the sample has directions are cut to that.
        most_bytes: That the axes of all units may take.
        seed: Of the rotation.
        query_rows: Places of examples that are to stand in for queries from outside.

    Returns:
        The axes, the size, and the codes that the asked examples would have as queries from outside the sample, shape (asked, K).
    """
    gram_SS = sum((_gram(row) for row in rows), torch.zeros(len(rows[0]), len(rows[0]), dtype=torch.float64))
    values_S, vectors_SS = torch.linalg.eigh(gram_SS)
    directions = max(1, int((values_S > values_S[-1] * _NOISE).sum()))
    mixes = [_mix(values_S, vectors_SS, min(choice.width, directions), seed) for choice in choices]
    quality = [_agreement(gram_SS, mix_SK, choice.bits) for mix_SK, choice in zip(mixes, choices, strict=True)]
    best = quality.index(max(quality)) if len(choices) > 1 else 0
    mix_SK, width = mixes[best], mixes[best].shape[1]
    bits = most_bits(sum(row.shape[1] for row in rows), width, most_bytes)
    few = slice(None, None, max(1, len(gram_SS) // _MEASURED))
    exact_FK, by_block = gram_SS[few] @ mix_SK, []
    found_FK = torch.zeros_like(exact_FK)
    for first, block_SM in _blocks(rows):
        wide = torch.promote_types(block_SM.dtype, torch.float32)
        by_block.append(Axes.of(block_SM.T.to(wide) @ mix_SK.to(wide), bits, first, seed=seed))
        if bits < 32:
            turned_FM = turn(block_SM[few].to(wide), first, seed=seed)
            for chosen, numbers_MK in by_block[-1].blocks():
                found_FK += (turned_FM[:, chosen] @ numbers_MK.to(wide)).double()
    # Rounding shortens axes, all by nearly the same factor.
    size = 1.0 if bits == 32 else float((found_FK * exact_FK).sum() / found_FK.square().sum().clamp_min(_TINY))
    axes = Axes(
        torch.cat([block.codes for block in by_block]), torch.cat([block.scales_M for block in by_block]) * size, bits, width
    )
    chosen = torch.tensor(query_rows, dtype=torch.long)
    # What of an example no other one has, squared: the Schur complement of the others in the Gram matrix. Axes hold it by the example's mix.
    least = values_S[-1] * _NOISE
    own_A = 1 / (vectors_SS[chosen].square() / (values_S.clamp_min(0) + least)).sum(1) - least
    outside_AK = gram_SS[chosen] @ mix_SK - own_A.clamp_min(0)[:, None] * mix_SK[chosen]
    return axes, Code(width, choices[best].dtype, choices[best].bits), outside_AK


def save_whitened(whitened: Whitened) -> dict[str, Tensor]:
    """Tensors to be written, for `load_whitened`."""
    tensors = {f"kept.{i}": value for i, value in enumerate(whitened.coordinates_kept) if value is not None}
    for side, bases in (("outputs", whitened.bases.outputs), ("inputs", whitened.bases.inputs)):
        for index, basis in enumerate(bases):
            tensors |= basis_tensors(basis, side, index)
    return {**tensors, **{f"weights.{i}": value for i, value in enumerate(whitened.weights)}}


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
    weights = tuple(value for value in named("weights") if value is not None)
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


def _mix(values_S: Tensor, vectors_SS: Tensor, width_K: int, seed: int) -> Tensor:
    """What the Gram matrix, and the rows, are multiplied with: turned axes of unit length, shape (S, K)."""
    values_K, vectors_SK = values_S.flip(0)[:width_K], vectors_SS.flip(1)[:, :width_K]
    # The sign of an eigenvector is free: make its largest entry positive, so that runs agree.
    largest_1K = vectors_SK.gather(0, vectors_SK.abs().argmax(0, keepdim=True))
    vectors_SK = vectors_SK * torch.where(largest_1K < 0, -1.0, 1.0)
    turn_KK = torch.linalg.qr(random_matrix("gaussian", width_K, width_K, seed=seed, name="rotation of codes").double())[0]
    return (vectors_SK / values_K.clamp_min(_TINY).sqrt()) @ turn_KK


def _agreement(gram_SS: Tensor, mix_SK: Tensor, bits: int) -> float:
    """Mean over the sample's examples, each as a query, of the correlation of scores by codes with exact scores of the others.

    A real query is not in the sample: its code has no part of an axis' own example. Leaving the diagonal out of the Gram matrix on the
    query's side gives such codes; with it they would be several times too long, and rounding would seem to cost far more than it does.
    """
    hollow_SS = gram_SS - torch.diag(gram_SS.diagonal())
    rounded_SK = codes_SK = gram_SS @ mix_SK
    if bits <= 8:
        integers, scales_S = quantize(codes_SK, bits)
        rounded_SK = to_integers(unpack(integers, bits)[:, : codes_SK.shape[1]], bits).double() * scales_S.double()[:, None]
    found_SS = (hollow_SS @ mix_SK) @ rounded_SK.T
    # An example's own score is far larger than all others, and nobody asks for it.
    others_SS = ~torch.eye(len(gram_SS), dtype=torch.bool)
    a, b = (
        (part * others_SS) - (part * others_SS).sum(1, keepdim=True) / max(1, len(part) - 1) for part in (gram_SS, found_SS)
    )
    a, b = a * others_SS, b * others_SS
    return float(((a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).clamp_min(_TINY).sqrt()).mean())


def _blocks(rows: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """All units' coordinates one after the other, cut where `turn` does.

    Yields:
        The place of the first, and the coordinates (S, at most TURNED).
    """
    widths = [row.shape[1] for row in rows]
    ends = [sum(widths[: index + 1]) for index in range(len(widths))]
    for first in range(0, ends[-1], TURNED):
        cuts = [
            row[:, max(0, first - end + width) : max(0, first + TURNED - end + width)]
            for row, width, end in zip(rows, widths, ends, strict=True)
            if end > first and end - width < first + TURNED
        ]
        yield first, torch.cat(cuts, 1)


def _gram(row_SU: Tensor) -> Tensor:
    """Inner products of a unit's rows, in blocks of coordinates: each in the rows' own precision, their sum in float64."""
    gram_SS = torch.zeros(len(row_SU), len(row_SU), dtype=torch.float64)
    for start in range(0, row_SU.shape[1], 1 << 14):
        block = row_SU[:, start : start + (1 << 14)]
        wide = block.to(torch.promote_types(block.dtype, torch.float32))
        gram_SS += (wide @ wide.T).double().cpu()
    return gram_SS
