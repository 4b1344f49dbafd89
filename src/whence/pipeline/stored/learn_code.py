"""Learning the code of a store whose rows are half-whitened: fit EK-FAC, whiten a sample, take its principal axes.

Axes: S examples of the sample, U coordinates of a unit, K numbers of a code.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from whence.capture import Plan, available_bytes, frozen
from whence.compress import Aligned, Whitened
from whence.curvature import (
    Choosing,
    Code,
    LearnedCode,
    ResolvedDamping,
    basis_notes,
    code_axes,
    cut_note,
    few_rows,
    fit_ekfac,
    load_axes,
    load_rest,
    load_whitened,
    resolved,
    save_axes,
    save_rest,
    save_whitened,
    streamed_code,
    whiten,
)
from whence.data import Dataset
from whence.distributed import Ranks
from whence.errors import BadInput, DiskFull, OutOfMemory, StoreMismatch, Unsupported
from whence.methods import method_named
from whence.pipeline.inputs import autocast_named
from whence.pipeline.stored.anchors import ANCHORS, anchor_axes, check_anchors, check_queries
from whence.pipeline.stored.code_size import STORED_TYPES, CodeSize, code_choices, fits, held_back_places, sample_places
from whence.pipeline.stored.shared_budget import budget_note, nearest_sizes, within_budget
from whence.progress import meter, say
from whence.records import Unit
from whence.score import Batching, gradient_rows
from whence.settings import BuildConfig, FitConfig
from whence.store import bits_named, enough_disk
from whence.tasks import AbstractTask

__all__ = [
    "CHUNK_NUMBERS",
    "FIT_EXAMPLES",
    "SAMPLE",
    "STAND_INS",
    "aligned_encoder",
    "check_code",
    "cut_bases",
    "fit_config",
    "learn_code",
    "relative_damping",
    "sized_code",
]

STAND_INS = "stand_in_scores"
"""Among the learned tensors: scores of some of the sample as queries to all of it, by axes that they did not teach, shape (queries, sample);
of none where documents are held out."""
JUDGEMENT = "judged"
"""Among the learned tensors: of how many sizes a code was chosen, by how many queries, and whether these were outside the sample, int64."""
SAMPLE = "sample"
"""Among the learned tensors: places of the first dataset's documents that the axes were learned from, int64."""
FIT_EXAMPLES = 8192
"""That the curvature is fitted on: factors of other documents of the same kind serve as well (docs/log.md), more only take time."""
CHUNK_NUMBERS = 1 << 26
"""Of whitened gradients, taken at a time."""


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
    check_queries(task, plan, config)
    relative = relative_damping(config)
    fit_on = dataset.spread(FIT_EXAMPLES)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fit, size = sized_code(task, plan, dataset, config, folder)
    if (note := budget_note(plan.units, config, fit, size)) and not quiet:
        say(note)
    room = available_bytes(torch.device("cpu")) // ranks.local_count
    if size.sample_bytes > room:
        raise OutOfMemory(
            found=f"{room / 2**20:,.0f} MiB of free memory",
            needed=f"{size.sample_bytes / 2**20:,.0f} MiB for the gradients of {size.samples:,} examples that the axes are learned from",
            do="pass fewer anchors, or track fewer parameters"
            if config.anchors is not None
            else f"pass a smaller axes_examples than {size.samples:,}, or track fewer parameters"
            + nearest_sizes(plan.units, len(dataset), config, fit, lambda other: other.sample_bytes <= room),
        )
    _enough_disk(folder.parent, plan, len(dataset), config, fit, size)
    curvature = fit_ekfac(
        task, plan, fit_on, fit,
        max_positions=max_positions, folder=folder, room_bytes=available_bytes(task.device) // 2, quiet=quiet, ranks=ranks,
    )  # fmt: skip
    whitened = whiten(curvature, ResolvedDamping(relative, None, ""), size.coordinates, task.device)
    kept_damping = {"damping": torch.tensor(relative, dtype=torch.float64)}
    if config.anchors is not None:
        axes = anchor_axes(task, plan, whitened, config, max_positions=max_positions, quiet=quiet)
        return {**save_whitened(whitened), **axes, **kept_damping}
    learned, sample_rows = _learned(task, plan, dataset, whitened, size, config, max_positions, quiet)
    about_code = {
        **kept_damping,
        "dtype": torch.tensor(STORED_TYPES.index(learned.code.dtype)),
        STAND_INS: learned.stand_ins.float(),
        JUDGEMENT: torch.tensor([len(size.choices), learned.judges, size.held_out > 0]),
        SAMPLE: torch.tensor(sample_rows, dtype=torch.int64),
    }
    return {**save_whitened(whitened), **save_axes(learned.axes), **save_rest(learned), **about_code}


def _enough_disk(folder: Path, plan: Plan, examples: int, config: BuildConfig, fit: FitConfig, size: CodeSize) -> None:
    """Refuse a store that the disk does not hold, with the options that it would hold.

    Raises:
        DiskFull: If there is less room.
    """
    try:
        enough_disk(folder, examples, size.row_bytes, size.shared_bytes)
    except DiskFull as error:
        if config.anchors is not None:
            raise
        free = shutil.disk_usage(folder).free
        near = nearest_sizes(
            plan.units, examples, config, fit, lambda other: examples * other.row_bytes + other.shared_bytes <= free
        )
        raise DiskFull(found=error.found, needed=error.needed, do=error.do + near) from None


def _learned(
    task: AbstractTask,
    plan: Plan,
    dataset: Dataset,
    whitened: Whitened,
    size: CodeSize,
    config: BuildConfig,
    max_positions: int,
    quiet: bool,
) -> tuple[LearnedCode, list[int]]:
    """Axes and size of a code, and the places of the documents that taught them.

    Raises:
        BadInput: If no example of the sample has a gradient.
    """
    sample_rows, held_places = sample_places(len(dataset), size)

    def chunks(name: str, chosen: Sequence[int]) -> Iterator[tuple[range, list[Tensor]]]:
        examples, step = [dataset.examples[number] for number in chosen], max(1, CHUNK_NUMBERS // max(1, size.coordinates))
        with meter(name, len(chosen), quiet=quiet) as progress:
            for start in range(0, len(examples), step):
                some = examples[start : start + step]
                rows = gradient_rows(
                    task, plan, whitened, some,
                    batching=Batching(max_positions), progress=progress, autocast=autocast_named(config.autocast),
                )  # fmt: skip
                yield range(start, start + len(some)), [row[:, 0] for row in rows.units]

    def check(is_zero: bool) -> None:
        if is_zero:
            raise BadInput(
                found=f"gradients that are zero in all {size.samples:,} examples of the sample",
                needed="examples that the loss reaches the model with",
                do="check the loss and the tracked parameters",
            )

    how = Choosing(size.choices, size.axes_bytes, config.seed, size.slots, members=len(sample_rows) / len(dataset))
    held_out_rows = _together(chunks("held out", held_places), len(held_places), size.is_halved) if held_places else None
    if size.is_streamed and held_out_rows is not None:
        check(not any(bool(row.any()) for row in held_out_rows))
        passes = iter(("sketches", "axes"))
        return streamed_code(
            lambda: ((where, torch.cat(rows, 1)) for where, rows in chunks(next(passes), sample_rows)),
            len(sample_rows), held_out_rows, how, task.device,
        ), sample_rows  # fmt: skip
    rows = _together(chunks("sample", sample_rows), len(sample_rows), size.is_halved)
    check(not any(bool(row.any()) for row in rows))
    return code_axes(rows, held_out_rows or [row[:0] for row in rows], how, held_back_places(len(sample_rows))), sample_rows


def relative_damping(config: BuildConfig) -> float:
    """What is added to every eigenvalue, as a share of its unit's mean."""
    return config.relative_damping or method_named(config.method).relative_damping


def sized_code(
    task: AbstractTask, plan: Plan, dataset: Dataset, config: BuildConfig, folder: Path | None = None
) -> tuple[FitConfig, CodeSize]:
    """How the curvature is fitted, with the sizes of bases that memory, time and the budget of shared bytes allow, and how large the code is.

    Args:
        task: Model and likelihood.
        plan: Its units.
        dataset: What the store is built from.
        config: The build's options.
        folder: Of a fit that may have begun, in a folder that is there; None for a forecast.
    """
    fit_on = dataset.spread(FIT_EXAMPLES)
    length, room = sum(example.length for example in fit_on.examples), available_bytes(task.device)
    fit = fit_config(task, fit_on, config)
    rows = few_rows(task, plan, fit_on, fit)
    fit = resolved(fit, plan.units, device=task.device, positions=length, rows=rows, room_bytes=room, folder=folder)
    free = float("inf") if folder is None else float(shutil.disk_usage(folder.parent).free)
    is_begun = folder is not None and (folder / "fit.json").exists()
    return within_budget(plan.units, len(dataset), config, fit, free_bytes=free, is_begun=is_begun)


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
    whitened = load_whitened(units, tensors, device)
    coordinates = sum(width for _, width in whitened.shapes())
    rest = load_rest(tensors, coordinates, seed, device)
    return Aligned(whitened, load_axes(tensors), dtype, seed, rest, is_anchored=ANCHORS in tensors, judge=_judge(tensors))


def _judge(tensors: Mapping[str, Tensor]) -> str:
    """By what a code's size was chosen; nothing is said of codes of earlier versions."""
    sizes, queries, is_outside = tensors[JUDGEMENT].tolist() if JUDGEMENT in tensors else (1, 0, False)
    if sizes <= 1:
        return ""
    if not queries:
        return f"the first of {sizes} sizes, with too few documents to judge by"
    what = "that nothing was learned from" if is_outside else "of the sample, coded by trial axes that the others taught"
    return f"the best of {sizes} sizes to {queries} documents {what}"


def cut_bases(whitened: Whitened, relative: float) -> list[str]:
    """What is to be said of a code: which bases are cut, the share of the trace that their directions hold, and coordinates left out.

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
    made_of = sum(width for _, width in whitened.shapes())
    parameters = sum(weights.numel() for weights in whitened.weights)
    return [
        *basis_notes(sides),
        *([f"codes are made of {made_of:,} of {parameters:,} coordinates"] if made_of < parameters else []),
    ]


def check_code(tensors: dict[str, Tensor], config: BuildConfig, path: Path) -> None:
    """Refuse to go on with a code that was learned with other options.

    Raises:
        StoreMismatch: If damping or size are not those asked for.
    """
    stored, width, dtype = float(tensors["damping"]), int(tensors["axes_width"]), STORED_TYPES[int(tensors["dtype"])]
    wanted = relative_damping(config)
    code = Code(width, dtype, bits_named(dtype), len(tensors.get("rest_axes", ())))
    check_anchors(tensors, config, path)
    choices = [code] if ANCHORS in tensors else code_choices(config, width)
    if stored != wanted or not fits(code, choices, config):
        sizes = " or ".join(f"{choice.width:,} of {choice.dtype}" for choice in choices)
        raise StoreMismatch(
            found=f"a code of {width:,} numbers of {dtype} with damping {stored:g} x mean in {path.parent}",
            needed=f"{sizes} with damping {wanted:g} x mean, as asked",
            do="build into another folder, or with the options of the first build",
        )


def _together(chunks: Iterable[tuple[range, list[Tensor]]], count: int, is_halved: bool) -> list[Tensor]:
    """Whitened gradients of a sample, per unit of shape (S, U), on the CPU."""
    rows_by_unit: list[Tensor] = []
    for where, rows in chunks:
        if not rows_by_unit:
            dtype = torch.bfloat16 if is_halved else rows[0].dtype
            rows_by_unit = [torch.empty(count, row.shape[1], dtype=dtype) for row in rows]
        for unit_rows, row in zip(rows_by_unit, rows, strict=True):
            unit_rows[where.start : where.stop] = row
    return rows_by_unit
