"""Seconds of a fit and of exact scores, from a few batches at the model's own width and a cost model of decompositions.

Passes over the data are timed on some of it and scaled by positions. Eigenvectors are not found for a forecast, which would take as long as
the run: bases of the right shapes are made of chance, for the passes that turn gradients into them, and the time of real ones is that of a
smaller matrix of the fit's own, scaled by the cube of the side.

Axes: N length of a side, K directions.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from whence.capture import Plan
from whence.curvature import Fit, FitRun, KroneckerCurvature, eigenvectors, fit_factors, fit_values, prepare_fit
from whence.curvature.eigenvectors import SETTLED_SIDE
from whence.curvature.sides import LONG_SIDE, basis_tensors, reflected_basis
from whence.data import Dataset, Example
from whence.progress import meter
from whence.reflections import Blocked, Reflected
from whence.score import exact_scores, truncate
from whence.settings import FitConfig
from whence.tasks import AbstractTask

__all__ = ["QUICK", "WORTH", "FitSeconds", "Timing", "positions_of", "scan_seconds", "timed", "timed_fit", "timed_sample"]

Result = TypeVar("Result")
# Positions times parameters that are timed at most, but for two examples: some seconds of a processor's pass over the data.
_NUMBERS = 3e10
# Rows that a scan is timed with, besides one alone.
_FEW_ROWS = 4


@dataclass(frozen=True)
class Timing:
    """How much time is spent on telling time.

    Args:
        examples: Timed at most: enough to fill a batch of short ones, few enough to wait for.
        runs: Of each part.
        enough: Seconds after which a part is not run again.
        side: Of the matrix whose eigenvectors are timed; those of others take the cube of the ratio as long.
    """

    examples: int = 64
    runs: int = 3
    enough: float = 5.0
    side: int = 768


QUICK = Timing(examples=2, runs=2, enough=0.5, side=384)
"""For what is about to run: a few parts in a hundred of it."""
WORTH = 20
"""Times as much data as is timed at least: of less, telling the time would be a good part of the run."""


@dataclass(frozen=True)
class FitSeconds:
    """What a fit takes.

    Args:
        factors: Of a position, in the pass for second moments.
        bases: For all eigenvectors.
        values: Of a position, in the pass for eigenvalues; 0 where there is none.
    """

    factors: float
    bases: float
    values: float

    def total(self, positions: int, factor_passes: int = 1, value_passes: int = 1) -> float:
        """Of a fit on so many positions."""
        return self.bases + positions * (self.factors * factor_passes + self.values * value_passes)


def timed_sample(dataset: Dataset, positions: int, parameters: int, timing: Timing = Timing()) -> list[Example]:
    """Examples from all over the data, as many as fit in a batch and can be waited for, two at least.

    Args:
        dataset: The data.
        positions: Per batch.
        parameters: Of the model that are tracked.
        timing: How much time it may take.
    """
    most = min(positions, int(_NUMBERS / parameters))
    sample: list[Example] = []
    for example in dataset.spread(min(timing.examples, len(dataset))).examples:
        if len(sample) > 1 and positions_of(sample) + example.length > most:
            break
        sample.append(example)
    return sample


def timed_fit(
    task: AbstractTask,
    plan: Plan,
    few: Sequence[Example],
    config: FitConfig,
    positions: int,
    *,
    everything: int,
    has_values: bool = True,
    timing: Timing = Timing(),
) -> tuple[FitSeconds, KroneckerCurvature]:
    """What a fit would take, and a curvature of its shapes that is made of chance.

    Args:
        task: Model and likelihood.
        plan: Its units.
        few: Some of the data.
        config: Resolved.
        positions: Per batch.
        everything: Positions that will be fitted on.
        has_values: Whether eigenvalues are corrected in a pass of their own.
        timing: How much time it may take.
    """
    fit = prepare_fit(task, plan, Dataset(list(few)), config, FitRun(max_positions=positions, quiet=True))
    with meter("", len(few), quiet=True) as progress:
        factors, factor_seconds = timed(lambda: fit_factors(fit, progress), timing)
        bases = _chance_bases(fit, factors)
        values, value_seconds = None, 0.0
        if has_values:
            values, value_seconds = timed(lambda: fit_values(fit, bases, progress, range(len(plan.units))), timing)
    count = positions_of(few)
    seconds = FitSeconds(factor_seconds / count, _basis_seconds(fit, factors, everything, timing), value_seconds / count)
    return seconds, fit.finish(bases, values)


def scan_seconds(
    task: AbstractTask,
    plan: Plan,
    few: Sequence[Example],
    blocks: Sequence[Tensor],
    rows: int,
    positions: int,
    query_rank: int | None = None,
    timing: Timing = Timing(),
) -> float:
    """Of exact scores of a few examples for so many rows: timed for one and for a few, and a straight line from there.

    Args:
        task: Model and loss.
        plan: Its units.
        few: The examples.
        blocks: One query, per unit of shape (1, O, I).
        rows: Of the score table, asked at once.
        positions: Per batch.
        query_rank: Singular directions kept of every row.
        timing: How much time it may take.
    """

    def scan(count: int) -> float:
        many = truncate([block.expand(count, *block.shape[1:]).contiguous() for block in blocks], query_rank)
        with meter("", len(few), quiet=True) as progress:
            return timed(lambda: exact_scores(task, plan, few, many, max_positions=positions, progress=progress), timing)[1]

    one_row, most = scan(1), min(rows, _FEW_ROWS)
    each = (scan(most) - one_row) / (most - 1) if most > 1 else 0.0
    return one_row + max(each, 0.0) * (rows - 1)


def positions_of(examples: Sequence[Example]) -> int:
    """Positions of all of them together."""
    return sum(example.length for example in examples)


def timed(make: Callable[[], Result], timing: Timing = Timing()) -> tuple[Result, float]:
    """What something makes, and the seconds that it takes once it has run before: the first time is like no other of many batches."""
    result, best = _once(make)
    for _ in range(timing.runs - 1 if best < timing.enough else 0):
        result, seconds = _once(make)
        best = min(best, seconds)
    return result, best


def _once(make: Callable[[], Result]) -> tuple[Result, float]:
    started = time.perf_counter()
    result = make()
    return result, time.perf_counter() - started


def _sides(fit: Fit, factors: dict[str, Tensor]) -> list[tuple[int, str, int, str]]:
    """Of each side its unit, its name, its length, and what is found of its basis: "whole", "sketch", "block" or nothing."""
    sides = []
    for index, unit in enumerate(fit.plan.units):
        for side, size in (("outputs", unit.outputs), ("inputs", unit.inputs)):
            names = [name for name in factors if name.split(".")[:2] == [side, str(index)]]
            kinds = [
                kind for kind in ("sketch", "block") if any(name.startswith(f"{side}_{kind}.{index}.") for name in factors)
            ]
            whole = ["whole"] if any(factors[name].ndim == 2 for name in names) else []
            sides.append((index, side, size, (whole + kinds + [""])[0]))
    return sides


def _chance_bases(fit: Fit, factors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bases of the shapes that the fit would find, with K-FAC's eigenvalues of one."""
    bases: dict[str, Tensor] = {}
    for index, side, size, kind in _sides(fit, factors):
        roles = max(1, sum(name.startswith(f"count.{index}.") for name in factors))
        bases[f"{side}_values.{index}"] = torch.ones(roles, size, device=fit.task.device)
        basis: Tensor | Reflected | Blocked | None = None
        if kind == "whole":
            basis = _chance(size, size).to(fit.task.device)
        elif kind == "sketch":
            omega_NK = fit.probes.omega(index, side)
            assert omega_NK is not None
            basis = Reflected.of(_chance(size, omega_NK.shape[1]).to(fit.task.device))
        elif kind == "block":
            places_K = factors[f"{side}_places.{index}"].round().long()
            rest_N = torch.ones(size, dtype=torch.bool).index_fill(0, places_K.cpu(), False)
            bands_N = torch.where(rest_N, torch.arange(size) % 8, -1).to(fit.task.device)
            basis = Blocked(_chance(len(places_K), len(places_K)).to(fit.task.device), places_K, bands_N)
        bases |= basis_tensors(basis, side, index)
    return bases


def _chance(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) / rows**0.5


def _basis_seconds(fit: Fit, factors: dict[str, Tensor], everything: int, timing: Timing) -> float:
    """Of all eigenvectors: one side of a kind is found, shorter than it is where it is long, and the others are scaled from it.

    Fewer positions than a side is long leave it a null space, whose basis is found too (`whence.curvature.eigenvectors`): its eigenvectors,
    and two products that take about as long; not where that is most of a long side. Gradients of low rank leave a larger one, which nothing
    here knows.
    """
    rates: dict[tuple[str, bool], float] = {}
    total = 0.0
    for index, side, size, kind in _sides(fit, factors):
        if not kind:
            continue
        width = size if kind == "whole" else min(size, _width(fit, index, side))
        key = (kind, size > LONG_SIDE)
        if key not in rates:
            rates[key] = _rate(fit, factors, index, side, kind, width, timing)
        null = max(0, width - everything) if kind != "sketch" else 0
        null = 0 if size > SETTLED_SIDE and 2 * null >= width else null
        total += rates[key] * (size * width**2 if kind == "sketch" else width**3 + null**3 + width * null**2)
    return total


def _width(fit: Fit, index: int, side: str) -> int:
    places_K, omega_NK = fit.probes.block(index, side), fit.probes.omega(index, side)
    return len(places_K) if places_K is not None else 0 if omega_NK is None else omega_NK.shape[1]


def _rate(fit: Fit, factors: dict[str, Tensor], index: int, side: str, kind: str, width: int, timing: Timing) -> float:
    """Seconds per cube of a side, or per length and square of directions."""
    moments = [value for name, value in factors.items() if name.split(".")[:2] == [side, str(index)]]
    size = len(moments[0])
    short = min(width, timing.side)
    if kind == "sketch":
        rows = min(size, max(4 * short, timing.side))
        sketches = [value for name, value in factors.items() if name.startswith(f"{side}_sketch.{index}.")]
        omega_NK = fit.probes.omega(index, side)
        assert omega_NK is not None
        cut = [sketch[:rows, :short].contiguous() for sketch in sketches]
        diagonals = [moment[:rows] for moment in moments[: len(cut)]]
        _, seconds = timed(
            lambda: reflected_basis(omega_NK[:rows, :short].contiguous(), cut, diagonals, [1.0] * len(cut)), timing
        )
        return seconds / (rows * short**2)
    whole = next((moment for moment in moments if moment.ndim == 2), torch.eye(short))
    square = whole[:short, :short].contiguous()
    # A matrix of full rank, as enough data has, in the type that sides of this length are decomposed in.
    square = square + torch.diag(square.diagonal().mean().expand(short)) * torch.linspace(0.1, 1, short, device=square.device)
    square = square if size > LONG_SIDE else square.double()
    _, seconds = timed(lambda: eigenvectors([square], [1.0], square.dtype), timing)
    return seconds / short**3
