"""Some entries of the gradient, then a sparse projection: GraSS on the whole gradient, FactGraSS layer by layer.

Axes: B batch, T positions, P kept outputs, R kept inputs, M kept entries, K numbers of a row or of a stored unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from whence.compress.kronecker import projected_shape
from whence.compress.sparse import SparseSketch, random_places
from whence.compress.whole import JoinedRows, joined_unit
from whence.records import OneHot, Pair, Side, Unit

__all__ = ["BLOW_UP", "ChannelMask", "EntryMask", "entries_of"]

# Of the products of positions and kept entries written out at a time.
_NUMBERS = 1 << 22
BLOW_UP = 4
"""Kept entries per stored number: the default of the authors' library."""


def entries_of(pair: Pair, outputs_M: Tensor, inputs_M: Tensor) -> Tensor:
    """Some entries of every example's gradient, without the others; shape (B, M).

    Args:
        pair: One use of the weight.
        outputs_M: Row of each entry.
        inputs_M: Column of each entry.
    """
    pair = pair.wide()
    examples, positions = pair.shape
    step = max(1, _NUMBERS // max(1, positions * len(outputs_M)))
    parts = []
    for start in range(0, examples, step):
        part = pair.examples(start, start + step)
        parts.append((part.outputs.columns(outputs_M) * part.inputs.columns(inputs_M)).sum(1))
    return torch.cat(parts)


@dataclass(frozen=True)
class EntryMask:
    """GraSS: chosen entries of the whole gradient, summed into K slots with random signs (Hu et al. 2025).

    Args:
        plan_units: The units that are joined.
        places_M: The chosen entries, counted over all units one after the other and each row by row; rising.
        sketch: From the chosen entries to the numbers of a row.
        scale: Factor on every entry: the square root of entries in all over chosen ones keeps inner products on average if the choice is
            random.
        device: Where it works.
    """

    plan_units: tuple[Unit, ...]
    places_M: Tensor
    sketch: SparseSketch
    scale: float
    device: torch.device

    @classmethod
    def random(
        cls, units: Sequence[Unit], width_K: int, *, seed: int, device: torch.device, blow_up: int = BLOW_UP
    ) -> "EntryMask":
        """Random entries, `blow_up` for every number of a row; reproducible from the seed, the units' names and both counts.

        Args:
            units: The units.
            width_K: Numbers of a row.
            seed: The run's seed.
            device: Where it works.
            blow_up: Entries for each number; all there are, if that is fewer.
        """
        size = joined_unit(units).inputs
        places_M = random_places(size, blow_up * width_K, seed=seed, name="entries of the gradient")
        return cls.of_places(units, places_M, width_K, seed=seed, scale=(size / len(places_M)) ** 0.5, device=device)

    @classmethod
    def of_places(
        cls, units: Sequence[Unit], places_M: Tensor, width_K: int, *, seed: int, scale: float, device: torch.device
    ) -> "EntryMask":
        """Chosen entries, learned or not, with the sketch that the seed gives."""
        sketch = SparseSketch.random(len(places_M), width_K, seed=seed, name="sparse rows", device=device)
        return cls(tuple(units), places_M.to(device), sketch, scale, device)

    @property
    def units(self) -> tuple[Unit, ...]:
        """The one stored unit."""
        return (joined_unit(self.plan_units),)

    def shapes(self) -> list[tuple[int, int]]:
        """(1, K)."""
        return [(1, self.sketch.width_K)]

    def gains(self) -> list[float]:
        """Every chosen entry adds its squared scale to one of K diagonals."""
        return [len(self.places_M) * self.scale**2 / self.sketch.width_K]

    def rows(self, num_examples: int) -> JoinedRows:
        """A fresh consumer for a batch."""
        return JoinedRows(self.project, num_examples, self.sketch.width_K, self.device)

    def project(self, index: int, pair: Pair) -> Tensor:
        """One pair's part of the rows, shape (B, K)."""
        outputs_M, inputs_M, sketch = self._parts[index]
        return sketch.times(entries_of(pair, outputs_M, inputs_M) * self.scale)

    def position_scores(self, index: int, pair: Pair, queries: Sequence[Tensor]) -> Tensor:
        """Each position's part of the inner product of one example's row with a query, shape (T,); see `Encoder`."""
        outputs_M, inputs_M, sketch = self._parts[index]
        weights_M = sketch.back(queries[0].flatten().to(self.device)) * self.scale
        return (pair.outputs.columns(outputs_M) * pair.inputs.columns(inputs_M))[0].to(weights_M) @ weights_M

    @cached_property
    def _parts(self) -> list[tuple[Tensor, Tensor, SparseSketch]]:
        """Per unit of the plan rows and columns of its chosen entries, and their part of the sketch."""
        parts, at = [], 0
        for unit in self.plan_units:
            size = unit.outputs * unit.inputs
            inside_M = (self.places_M >= at) & (self.places_M < at + size)
            local = self.places_M[inside_M] - at
            sketch = SparseSketch(self.sketch.slots_N[inside_M], self.sketch.signs_N[inside_M], self.sketch.width_K)
            parts.append((local // unit.inputs, local % unit.inputs, sketch))
            at += size
        return parts


@dataclass(frozen=True)
class _Channels:
    """One unit: which of its rows and columns are kept, None for all; None for the sketch where nothing is left to shrink."""

    outputs_P: Tensor | None
    inputs_R: Tensor | None
    shape: tuple[int, int]
    scale: float
    sketch: SparseSketch | None


@dataclass(frozen=True)
class ChannelMask:
    """FactGraSS: random channels of both sides, contracted over positions, summed into slots (Hu et al. 2025).

    A stored unit takes as many numbers as with a projection of the same rank. What is kept of it before the slots is a larger sub-matrix of
    the gradient, the paper's blow-up factor times as many numbers, scaled so that inner products are kept on average.

    Args:
        units: The units.
        channels: What is kept of each.
    """

    units: tuple[Unit, ...]
    channels: tuple[_Channels, ...] = field(repr=False)

    @classmethod
    def random(
        cls, units: Sequence[Unit], rank: int, *, seed: int, device: torch.device, blow_up: int = BLOW_UP
    ) -> "ChannelMask":
        """Reproducible from the seed, the units' names, the rank and the factor.

        Args:
            units: The units.
            rank: A stored unit takes rank x rank numbers, or less if it is smaller.
            seed: The run's seed.
            device: Where it works.
            blow_up: Numbers kept of a unit for each that is stored: its root on each side, rounded.
        """
        kept_rank = round(blow_up**0.5 * rank)

        def side(unit: Unit, name: str, size: int, count: int) -> Tensor | None:
            if count >= size:
                return None
            return random_places(size, count, seed=seed, name=f"{unit.name}:{name}").to(device)

        channels = []
        for unit in units:
            p, r = projected_shape(unit, rank)
            kept_P, kept_R = projected_shape(unit, kept_rank)
            is_sketched = kept_P * kept_R > p * r
            sketch = SparseSketch.random(kept_P * kept_R, p * r, seed=seed, name=f"{unit.name}:slots", device=device)
            channels.append(
                _Channels(
                    side(unit, "outputs", unit.outputs, kept_P),
                    side(unit, "inputs", unit.inputs, kept_R),
                    (1, p * r) if is_sketched else (kept_P, kept_R),
                    (unit.outputs * unit.inputs / (kept_P * kept_R)) ** 0.5,
                    sketch if is_sketched else None,
                )
            )
        return cls(tuple(units), tuple(channels))

    def shapes(self) -> list[tuple[int, int]]:
        """(1, K) of every unit, or (P, R) where all that is kept fits without slots."""
        return [channels.shape for channels in self.channels]

    def gains(self) -> list[float]:
        """The squared scales of all kept entries add up to as many as the unit has."""
        return [
            unit.outputs * unit.inputs / (shape[0] * shape[1]) for unit, shape in zip(self.units, self.shapes(), strict=True)
        ]

    def rows(self, num_examples: int) -> "_ChannelRows":
        """A fresh consumer for a batch."""
        return _ChannelRows(self, num_examples)

    def position_scores(self, index: int, pair: Pair, queries: Sequence[Tensor]) -> Tensor:
        """Each position's part of the inner product of one example's row with a query, shape (T,); see `Encoder`."""
        channels = self.channels[index]
        left_TP, right_TR = _at_indices(pair.outputs, channels.outputs_P)[0], _at_indices(pair.inputs, channels.inputs_R)[0]
        query = queries[index].flatten().to(left_TP.device)
        weights_PR = (query if channels.sketch is None else channels.sketch.back(query)).view(
            left_TP.shape[1], -1
        ) * channels.scale
        return torch.einsum("tp,pr,tr->t", left_TP.to(query), weights_PR, right_TR.to(query))


class _ChannelRows:
    """Adds up the kept sub-matrices of one batch; the sketch comes last, once per unit."""

    def __init__(self, mask: ChannelMask, num_examples: int):
        self.mask = mask
        self.num_examples = num_examples
        self.rows: list[Tensor | None] = [None] * len(mask.units)

    def __call__(self, index: int, pair: Pair) -> None:
        """Add one pair."""
        channels = self.mask.channels[index]
        if isinstance(pair.outputs, OneHot) and channels.outputs_P is None and channels.inputs_R is None:
            kept_BPR = pair.wide().gradient()
        else:
            left_BTP, right_BTR = _at_indices(pair.outputs, channels.outputs_P), _at_indices(pair.inputs, channels.inputs_R)
            wide = torch.promote_types(torch.promote_types(left_BTP.dtype, right_BTR.dtype), torch.float32)
            kept_BPR = torch.bmm(left_BTP.to(wide).transpose(1, 2), right_BTR.to(wide))
        rows_BPR = self.rows[index]
        self.rows[index] = kept_BPR if rows_BPR is None else rows_BPR + kept_BPR

    def finished(self) -> list[Tensor]:
        """Per unit the rows; zeros for a unit that the loss did not reach."""
        some_rows = next((rows for rows in self.rows if rows is not None), torch.zeros(()))
        finished = []
        for channels, kept_BPR in zip(self.mask.channels, self.rows, strict=True):
            if kept_BPR is None:
                finished.append(some_rows.new_zeros(self.num_examples, *channels.shape))
            elif channels.sketch is None:
                finished.append(kept_BPR * channels.scale)
            else:
                finished.append(channels.sketch.times(kept_BPR.flatten(1)).mul_(channels.scale)[:, None])
        return finished


def _at_indices(side: Side, indices: Tensor | None) -> Tensor:
    return side.dense() if indices is None else side.columns(indices)
