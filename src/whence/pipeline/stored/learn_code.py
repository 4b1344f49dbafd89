"""Learning the code of a store whose rows are half-whitened: fit EK-FAC, whiten a sample, take its principal axes.

Axes: S examples of the sample, U coordinates of a unit, K numbers of a code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from whence.capture import Plan, available_bytes, frozen
from whence.compress import Aligned, Whitened
from whence.curvature import (
    Code,
    ResolvedDamping,
    basis_notes,
    code_axes,
    cut_note,
    directions_of,
    fit_ekfac,
    load_axes,
    load_whitened,
    most_bits,
    resolved,
    save_axes,
    save_whitened,
    whiten,
)
from whence.data import Dataset, Example, spread_places
from whence.distributed import Ranks
from whence.errors import BadInput, OutOfMemory, StoreMismatch, Unsupported
from whence.methods import method_named
from whence.pipeline.inputs import autocast_named
from whence.progress import meter
from whence.records import Unit
from whence.score import Batching, gradient_rows
from whence.settings import BuildConfig, FitConfig
from whence.store import bits_named, enough_disk
from whence.tasks import AbstractTask

__all__ = [
    "AXES_BYTES",
    "FIT_EXAMPLES",
    "CodeSize",
    "aligned_encoder",
    "check_code",
    "code_choices",
    "STAND_INS",
    "code_size",
    "cut_bases",
    "fit_config",
    "learn_code",
    "stand_ins",
    "relative_damping",
    "sample_places",
    "sized_fit",
]

STAND_INS = "stand_ins"
"""Among the learned tensors: the codes of `stand_ins` as queries from outside the sample, shape (documents, K)."""
AXES_BYTES = 256 << 20
"""Axes are shared by all rows of a store and take at most this, by fewer bits a number first and then by fewer coordinates."""
# Of the sample's whitened rows, held at once: as float32 up to the first, as bfloat16 beyond.
_WIDE_BYTES, _SAMPLE_BYTES = 2 << 30, 4 << 30
_FEWEST_SAMPLES = 256
FIT_EXAMPLES = 8192
"""That the curvature is fitted on: factors of other documents of the same kind serve as well (docs/log.md), more only take time."""
# Numbers of whitened gradients taken at a time.
_CHUNK_NUMBERS = 1 << 26
# In the order that codes.safetensors counts them in (docs/format.md); a budget of bytes chooses among the first five.
STORED_TYPES = ("int1", "int2", "int4", "int8", "bfloat16", "float16", "float32", "float64")
_CHOSEN = STORED_TYPES[:5]
_SCALE_BYTES = 2


def code_choices(config: BuildConfig, most: int) -> list[Code]:
    """Sizes of code to choose from: the one asked for, or those that fit in the bytes, of at most so many numbers."""
    method = method_named(config.method)
    if not config.bytes_per_example:
        dtype = method.dtype if config.dtype == "method" else config.dtype
        return [Code(min(config.rank or method.rank, most), dtype, bits_named(dtype))]
    assert isinstance(config.bytes_per_example, int)  # the config has read it
    room = 8 * (config.bytes_per_example - _SCALE_BYTES)
    sized = [(dtype, bits_named(dtype)) for dtype in _CHOSEN]
    return [Code(min(room // bits, most), dtype, bits) for dtype, bits in sized if bits <= room]


@dataclass(frozen=True)
class CodeSize:
    """What learning a code takes, from sizes alone.

    Args:
        samples: Examples that the axes are learned from.
        coordinates: Of a whitened gradient that are kept.
        choices: Sizes of code.
        sample_bytes: Of memory, for the sample's whitened gradients and the axes made of them.
        shared_bytes: On disk, for the curvature's bases and the axes.
    """

    samples: int
    coordinates: int
    choices: list[Code]
    sample_bytes: int
    shared_bytes: int

    @property
    def row_bytes(self) -> int:
        """Of the largest code that may be chosen."""
        return max(-(-choice.width * choice.bits // 8) for choice in self.choices) + _SCALE_BYTES


def code_size(units: Sequence[Unit], examples: int, config: BuildConfig, fit: FitConfig | None = None) -> CodeSize:
    """What a build of so many examples would take to learn its code; the fit resolved, or without its bases."""
    parameters = sum(unit.outputs * unit.inputs for unit in units)
    samples = min(examples, config.axes_examples or method_named(config.method).axes_examples)
    widest = max(choice.width for choice in code_choices(config, samples))
    # Coordinates give way to axes of one bit, then examples to coordinates, down to a few.
    coordinates = min(parameters, 8 * AXES_BYTES // widest, _SAMPLE_BYTES // (2 * min(samples, _FEWEST_SAMPLES)))
    samples = min(samples, _SAMPLE_BYTES // (2 * coordinates))
    choices = code_choices(config, samples)
    width = max(choice.width for choice in choices)
    axes_bytes = coordinates * width * most_bits(coordinates, width, AXES_BYTES) // 8
    wide = 4 * samples * coordinates
    sides = [side for unit in units for side in (unit.outputs, unit.inputs)]
    bases = 0 if fit is None else sum(side * directions_of(side, fit) for side in sides)
    return CodeSize(
        samples,
        coordinates,
        choices,
        (wide if wide <= _WIDE_BYTES else wide // 2) + axes_bytes,
        axes_bytes + 4 * (parameters + bases),
    )


def sample_places(plan: Plan, examples: int, config: BuildConfig) -> list[int]:
    """Places of the examples, of so many, that a code is learned from."""
    return spread_places(examples, code_size(plan.units, examples, config).samples)


def stand_ins(documents: int) -> list[int]:
    """Places of the documents, of so many, that stand in for queries: 16, or an eighth where there are fewer; none for one alone."""
    count = min(16, documents // 8)
    return spread_places(documents, count) if count > 1 else []


def learn_code(
    task: AbstractTask,
    plan: Plan,
    dataset: Dataset,
    config: BuildConfig,
    folder: Path,
    *,
    max_positions: int,
    quiet: bool,
    ranks: Ranks = Ranks(),
) -> dict[str, Tensor]:
    """Everything that makes codes of gradients.

    Args:
        task: Model and likelihood.
        plan: Its units.
        dataset: What the curvature is fitted on, and the sample taken from.
        config: The build's options.
        folder: Where the stages of the fit are kept.
        max_positions: Positions per batch.
        quiet: No progress on stderr.
        ranks: In step, for a model that is split over them.

    Returns:
        Tensors to be written, for `aligned_encoder`.

    Raises:
        BadInput: If no example of the sample has a gradient.
        OutOfMemory: If the sample's gradients do not fit.
    """
    relative = relative_damping(config)
    fit_on = dataset.spread(FIT_EXAMPLES)
    fit = sized_fit(task, plan, dataset, config, folder)
    size = code_size(plan.units, len(dataset), config, fit)
    room = available_bytes(torch.device("cpu")) // ranks.local_count
    if size.sample_bytes > room:
        raise OutOfMemory(
            found=f"{room / 2**20:,.0f} MiB of free memory",
            needed=f"{size.sample_bytes / 2**20:,.0f} MiB for the gradients of {size.samples:,} examples that the axes are learned from",
            do=f"pass a smaller axes_examples than {size.samples:,}, or track fewer parameters",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    enough_disk(folder.parent, len(dataset), size.row_bytes, size.shared_bytes)
    curvature = fit_ekfac(
        task, plan, fit_on, fit,
        max_positions=max_positions, folder=folder, room_bytes=available_bytes(task.device) // 2, quiet=quiet, ranks=ranks,
    )  # fmt: skip
    whitened = whiten(curvature, ResolvedDamping(relative, None, ""), size.coordinates, task.device)
    sample = dataset.spread(size.samples).examples
    rows = _sample_rows(task, plan, whitened, sample, config, max_positions, quiet)
    if not any(bool(row.any()) for row in rows):
        raise BadInput(
            found=f"gradients that are zero in all {size.samples:,} examples of the sample",
            needed="examples that the loss reaches the model with",
            do="check the loss and the tracked parameters",
        )
    axes, code, asked_AK = code_axes(
        rows, size.choices, most_bytes=AXES_BYTES, seed=config.seed, query_rows=stand_ins(len(sample))
    )
    about_code = {
        "damping": torch.tensor(relative, dtype=torch.float64),
        "dtype": torch.tensor(STORED_TYPES.index(code.dtype)),
        STAND_INS: asked_AK.float(),
    }
    return {**save_whitened(whitened), **save_axes(axes), **about_code}


def relative_damping(config: BuildConfig) -> float:
    """What is added to every eigenvalue, as a share of its unit's mean."""
    return config.relative_damping or method_named(config.method).relative_damping


def sized_fit(task: AbstractTask, plan: Plan, dataset: Dataset, config: BuildConfig, folder: Path | None = None) -> FitConfig:
    """How the curvature is fitted, with the sizes of bases that memory and time allow; `folder` is that of a fit that may have begun."""
    fit_on = dataset.spread(FIT_EXAMPLES)
    length, room = sum(example.length for example in fit_on.examples), available_bytes(task.device)
    fit = fit_config(task, fit_on, config)
    return resolved(fit, plan.units, device=task.device, positions=length, room_bytes=room, folder=folder)


def fit_config(task: AbstractTask, dataset: Dataset, config: BuildConfig) -> FitConfig:
    """How the curvature is fitted: with the model's own labels, or the dataset's for a loss that does not say what it is a likelihood of."""
    try:
        with frozen(task.model), torch.no_grad():
            task.outputs(task.model, task.collate(dataset.examples[:1]))
    except Unsupported:
        return FitConfig(seed=config.seed, labels="dataset")
    return FitConfig(seed=config.seed)


def aligned_encoder(units: Sequence[Unit], tensors: Mapping[str, Tensor], seed: int, device: torch.device) -> Aligned:
    """The encoder that `learn_code` learned."""
    dtype = STORED_TYPES[int(tensors["dtype"])]
    return Aligned(load_whitened(units, tensors, device), load_axes(tensors), dtype, seed)


def cut_bases(whitened: Whitened, relative: float) -> list[str]:
    """What is to be said of the bases inside a code: which are cut, and the share of the trace that their directions hold.

    Args:
        whitened: Half of the damped inverse.
        relative: Its damping, as a share of each unit's mean eigenvalue.
    """
    sides = []
    for unit, left, right, weights_OI in zip(
        whitened.units, whitened.bases.outputs, whitened.bases.inputs, whitened.weights, strict=True
    ):
        # A weight is (eigenvalue + damping)^-1/2, and the damping a share of the mean eigenvalue.
        damped_OI = weights_OI.double() ** -2
        values_OI = (damped_OI - damped_OI.mean() * relative / (1 + relative)).clamp_min(0)
        for side, basis, values_N in (("outputs", left, values_OI.sum(1)), ("inputs", right, values_OI.sum(0))):
            if basis is not None and not isinstance(basis, Tensor):
                sides.append(cut_note(unit, side, basis, values_N))
    return basis_notes(sides)


def check_code(tensors: dict[str, Tensor], config: BuildConfig, path: Path) -> None:
    """Refuse to go on with a code that was learned with other options.

    Raises:
        StoreMismatch: If damping or size are not those asked for.
    """
    stored, width, dtype = float(tensors["damping"]), int(tensors["axes_width"]), STORED_TYPES[int(tensors["dtype"])]
    wanted = relative_damping(config)
    choices = code_choices(config, width)
    if stored != wanted or not any(choice.dtype == dtype and choice.width >= width for choice in choices):
        sizes = " or ".join(f"{choice.width:,} of {choice.dtype}" for choice in choices)
        raise StoreMismatch(
            found=f"a code of {width:,} numbers of {dtype} with damping {stored:g} x mean in {path.parent}",
            needed=f"{sizes} with damping {wanted:g} x mean, as asked",
            do="build into another folder, or with the options of the first build",
        )


def _sample_rows(
    task: AbstractTask,
    plan: Plan,
    whitened: Whitened,
    sample: Sequence[Example],
    config: BuildConfig,
    max_positions: int,
    quiet: bool,
) -> list[Tensor]:
    """Whitened gradients of the sample, per unit of shape (S, U), on the CPU."""
    widths = [width for _, width in whitened.shapes()]
    autocast = autocast_named(config.autocast)
    rows_by_unit: list[Tensor] = []
    step = max(1, _CHUNK_NUMBERS // max(1, sum(widths)))
    with meter("sample", len(sample), quiet=quiet) as progress:
        for start in range(0, len(sample), step):
            chunk = sample[start : start + step]
            rows = gradient_rows(
                task, plan, whitened, chunk, batching=Batching(max_positions), progress=progress, autocast=autocast
            )
            if not rows_by_unit:
                wide = rows.units[0].dtype
                is_large = len(sample) * sum(widths) * wide.itemsize > _WIDE_BYTES
                rows_by_unit = [torch.empty(len(sample), width, dtype=torch.bfloat16 if is_large else wide) for width in widths]
            for unit_rows, row in zip(rows_by_unit, rows.units, strict=True):
                unit_rows[start : start + len(chunk)] = row[:, 0]
    return rows_by_unit
