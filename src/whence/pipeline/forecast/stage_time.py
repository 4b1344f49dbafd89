"""How long the stages of a build will take, told as it starts: a few parts in a hundred of the build go into it."""

from dataclasses import dataclass
from pathlib import Path

import torch

from whence.capture import Plan
from whence.compress import Encoder
from whence.curvature import ResolvedDamping, whiten
from whence.data import Dataset
from whence.methods import method_named
from whence.pipeline.forecast.timing import QUICK, WORTH, positions_of, timed, timed_fit, timed_sample
from whence.pipeline.inputs import autocast_named
from whence.pipeline.stored.encoders import random_encoder
from whence.pipeline.stored.fidelity import FIDELITY_DOCUMENTS
from whence.pipeline.stored.learn_code import FIT_EXAMPLES, relative_damping, sized_code
from whence.progress import meter
from whence.score import Batching, gradient_rows
from whence.settings import BuildConfig
from whence.tasks import AbstractTask

__all__ = ["StageSeconds", "stage_seconds"]


@dataclass(frozen=True, kw_only=True)
class StageSeconds:
    """What the parts of a build take.

    Args:
        curvature: Fitted before the rows.
        code: Learned before the rows.
        rows: Of all the data.
        fidelity: To hold stored scores against exact ones.
    """

    curvature: float = 0.0
    code: float = 0.0
    rows: float = 0.0
    fidelity: float = 0.0


def stage_seconds(
    task: AbstractTask, plan: Plan, dataset: Dataset, config: BuildConfig, positions: int, folder: Path | None
) -> StageSeconds | None:
    """Time the parts of a build on two examples.

    Args:
        task: Model and likelihood.
        plan: Its units.
        dataset: What the store is built from.
        config: The build's options.
        positions: Per batch.
        folder: Of a fit of curvature that has begun; None if none has.

    Returns:
        The parts; None for so little data that timing would be a good part of the build.
    """
    few = timed_sample(dataset, positions, plan.coverage.tracked, QUICK)
    everything = positions_of(dataset.examples)
    if everything < WORTH * positions_of(few):
        return None
    method = method_named(config.method)
    if method.encoder != "aligned":
        each = _row_seconds(task, plan, dataset, random_encoder(plan, config, task.device), config, positions)
        sample = dataset.spread(min(config.axes_examples or method.axes_examples, len(dataset)))
        return StageSeconds(code=each * positions_of(sample.examples), rows=each * everything)
    fitting, size = sized_code(task, plan, dataset, config, folder)
    fitted = positions_of(dataset.spread(FIT_EXAMPLES).examples)
    seconds, curvature = timed_fit(task, plan, few, fitting, positions, everything=fitted, timing=QUICK)
    whitened = whiten(curvature, ResolvedDamping(relative_damping(config), None, ""), size.coordinates, task.device)
    each = _row_seconds(task, plan, dataset, whitened, config, positions)
    sampled = (2 if size.is_streamed else 1) * positions_of(dataset.spread(size.samples).examples)
    scored = positions_of(dataset.spread(FIDELITY_DOCUMENTS).examples)
    return StageSeconds(
        curvature=seconds.total(fitted),
        code=each * sampled + _axes_seconds(size.samples, size.coordinates),
        rows=each * everything,
        # Rows of these and whole gradients of these, and as many contractions.
        fidelity=2 * each * scored,
    )


def _row_seconds(
    task: AbstractTask, plan: Plan, dataset: Dataset, encoder: Encoder, config: BuildConfig, positions: int
) -> float:
    """Of a position, from its gradient to what is kept of it."""
    few = timed_sample(dataset, positions, plan.coverage.tracked, QUICK)

    def rows() -> None:
        with meter("", len(few), quiet=True) as progress:
            gradient_rows(
                task, plan, encoder, few,
                batching=Batching(positions), progress=progress, autocast=autocast_named(config.autocast),
            )  # fmt: skip

    return timed(rows, QUICK)[1] / positions_of(few)


def _axes_seconds(samples: int, coordinates: int) -> float:
    """Of the axes of a sample: its inner products, and their eigenvectors by a smaller matrix's."""
    side = min(samples, QUICK.side)
    block = torch.randn(side, side, dtype=torch.float64)
    _, product_seconds = timed(lambda: block @ block.T, QUICK)
    _, eigen_seconds = timed(lambda: torch.linalg.eigh(block + block.T), QUICK)
    return product_seconds * samples**2 * coordinates / side**3 + eigen_seconds * (samples / side) ** 3
