"""How long a build of method aligned takes before its rows, and for them: its parts, timed on a batch."""

from collections.abc import Sequence

import torch

from whence.capture import Plan
from whence.compress import TURNED, Aligned, Axes, turn
from whence.curvature import SKETCHED, ResolvedDamping, most_bits, whiten
from whence.data import Dataset, Example
from whence.pipeline.forecast.timing import positions_of, scan_seconds, timed, timed_fit
from whence.pipeline.stored.code_size import CodeSize, stand_ins
from whence.pipeline.stored.fidelity import FIDELITY_DOCUMENTS
from whence.pipeline.stored.learn_code import FIT_EXAMPLES, relative_damping
from whence.pipeline.stored.whole_gradients import WholeGradients
from whence.progress import meter
from whence.score import Batching, gradient_rows
from whence.settings import BuildConfig, FitConfig
from whence.tasks import AbstractTask

__all__ = ["timed_code", "timed_fidelity"]

# Side of the matrix whose eigenvectors are timed; those of others take the cube of the ratio as long.
_TIMED_SIDE = 512
# Examples of the sample that rounded axes are held against (`whence.curvature.code_axes`).
_MEASURED = 128


def timed_code(
    task: AbstractTask,
    plan: Plan,
    dataset: Dataset,
    few: Sequence[Example],
    config: BuildConfig,
    fitted: FitConfig,
    size: CodeSize,
    positions: int,
) -> tuple[float, Aligned]:
    """What learning a code takes, and one of its size that is made of chance, to time rows with.

    Args:
        task: Model and likelihood.
        plan: Its units.
        dataset: What the store would be built from.
        few: Some of it, as many as a batch has.
        config: The build's options.
        fitted: How the curvature would be fitted, resolved.
        size: Of the code.
        positions: Positions per batch.

    Returns:
        Seconds before the first row, and the encoder, of the widest code that the bytes allow.
    """
    fitted_on = positions_of(dataset.spread(FIT_EXAMPLES).examples)
    fit, curvature = timed_fit(task, plan, few, fitted, positions, everything=fitted_on)
    with meter("", len(few), quiet=True) as progress:
        whitened = whiten(curvature, ResolvedDamping(relative_damping(config), None, ""), size.coordinates, task.device)
        _, sample_seconds = timed(
            lambda: gradient_rows(task, plan, whitened, few, batching=Batching(positions), progress=progress)
        )
    before = fit.total(fitted_on)
    passes = 2 if size.is_streamed else 1
    before += passes * sample_seconds / positions_of(few) * positions_of(dataset.spread(size.samples).examples)
    coordinates = sum(width for _, width in whitened.shapes())
    widest = max(size.choices, key=lambda choice: choice.width)
    axes, seconds = _timed_axes(coordinates, size, widest.width, config.seed)
    return before + seconds, Aligned(whitened, axes, widest.dtype, config.seed)


def timed_fidelity(
    task: AbstractTask, plan: Plan, encoder: Aligned, dataset: Dataset, few: Sequence[Example], positions: int
) -> tuple[float, int]:
    """Seconds and bytes of memory that exact scores take which stored ones are held against at the end of a build."""
    queries = len(stand_ins(len(dataset)))
    if not queries:
        return 0.0, 0
    gradients = WholeGradients(task, plan, encoder, positions)
    blocks, asking = timed(lambda: gradients.preconditioned(few[:1], "loss"))
    at_once = min(queries, gradients.at_once)
    scanning = scan_seconds(task, plan, few, blocks, at_once, positions) * -(-queries // at_once)
    seconds = queries * asking + scanning * positions_of(dataset.spread(FIDELITY_DOCUMENTS).examples) / positions_of(few)
    return seconds, gradients.memory_bytes(queries)


def _timed_axes(coordinates: int, size: CodeSize, width: int, seed: int) -> tuple[Axes, float]:
    """Axes made of chance, and how long real ones take: one block of coordinates is timed, and eigenvectors of a smaller matrix."""
    bits, samples = most_bits(coordinates, width, size.axes_bytes), size.samples
    block = torch.randn(samples, min(TURNED, coordinates))
    mix = torch.randn(samples, width)
    _, gram_seconds = timed(lambda: (block @ block.T).double())
    made_axes, axes_seconds = timed(lambda: Axes.of(block.T @ mix, bits, 0, seed=seed))
    few = block[: min(samples, _MEASURED)]

    def encoded() -> list[torch.Tensor]:
        turned = few if bits == 32 else turn(few, 0, seed=seed)
        return [turned[:, chosen] @ numbers for chosen, numbers in made_axes.blocks()]

    _, again_seconds = timed(encoded)
    side = min(samples, _TIMED_SIDE)
    square = torch.randn(side, side, dtype=torch.float64)
    _, eigen_seconds = timed(lambda: torch.linalg.eigh(square + square.T))
    blocks = -(-coordinates // TURNED)
    rows = coordinates if bits == 32 else blocks * len(made_axes.codes)
    axes = Axes(made_axes.codes.repeat(blocks, 1)[:rows], made_axes.scales_M.repeat(blocks)[:rows], bits, width)
    multiplied = min(SKETCHED, coordinates) if size.is_streamed else coordinates
    seconds = (gram_seconds * multiplied + (axes_seconds + again_seconds) * coordinates) / block.shape[1]
    # Of all, and of those that trial axes are learned from where no documents are held out.
    return axes, seconds + eigen_seconds * (samples / side) ** 3 * (1 if size.held_out else 2)
