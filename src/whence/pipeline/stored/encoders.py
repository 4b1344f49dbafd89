"""What shrinks the gradients of a store: made from a seed, or learned once and kept beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from whence.capture import Plan
from whence.compress import BLOW_UP, ChannelMask, Encoder, EntryMask, Kronecker, Random, WholeProjection, projected_shape
from whence.curvature import fit_axes, fit_mask, fit_second_moments, rounding_share, side_scales
from whence.data import Dataset
from whence.distributed import Ranks
from whence.errors import StoreCorrupt
from whence.methods import Method, method_named
from whence.pipeline.inputs import autocast_named
from whence.pipeline.stored.check_learned import check_learned, check_sizes
from whence.pipeline.stored.code_size import code_choices
from whence.pipeline.stored.learn_code import aligned_encoder, check_code, learn_code
from whence.progress import meter
from whence.records import Unit
from whence.settings import BuildConfig, Runtime
from whence.store import Store, damaged, listed_files, read_seals, read_tensors, sha256_of
from whence.tasks import AbstractTask

__all__ = ["learned_file", "make_encoder", "random_encoder", "stored_encoder"]


def make_encoder(
    task: AbstractTask,
    plan: Plan,
    dataset: Dataset,
    folder: Path,
    config: BuildConfig,
    *,
    positions: int,
    runtime: Runtime,
) -> tuple[Encoder, dict[str, dict[str, Tensor]]]:
    """What shrinks the gradients of a build.

    Args:
        task: Model and loss.
        plan: Its units.
        dataset: Where axes and masks are learned.
        folder: The store; a resumed or appended build takes what was learned from there.
        config: The build's options.
        positions: Per batch.
        runtime: How the job runs. A model that is split over processes is learned by them in step; another by this process alone.

    Returns:
        The encoder, and by name of a file the tensors that were learned; empty for a random one.

    Raises:
        StoreCorrupt: If what stored rows were made with is altered or gone.
    """
    method = method_named(config.method)
    name = learned_file(method)
    if name is None:
        return random_encoder(plan, config, task.device), {}
    path = folder / name
    if path.exists():
        sealed = (listed_files(folder) or {}).get(path.name)
        if sealed is not None and sha256_of(path) != sealed:
            raise StoreCorrupt(**damaged(path, "its checksum is not the sealed one"))
        learned = read_tensors(path)
        shapes = {key: (tuple(value.shape), value.dtype) for key, value in learned.items()}
        width = int(learned["axes_width"]) if "axes_width" in learned else config.rank or method.rank
        check_learned(path, learned, shapes, plan.units, width)
        if method.encoder == "aligned":
            check_code(learned, config, path)
    else:
        first = read_seals(folder).get(0)
        if first is not None and first.data != dataset.fingerprint:
            raise StoreCorrupt(
                found=f"no {name} in {folder}, which the rows there were made with",
                needed=f"the same {path.stem} for the rows to be added",
                do="restore that file from a copy, or build into another folder",
            )
        factors = Path(config.factors) if config.factors is not None else folder / "factors"
        learned = _learn(task, plan, dataset, config, factors, positions, runtime)
    return _with_learned(task, plan, _EncoderSettings.of(config), learned), {name: learned} if learned else {}


def random_encoder(plan: Plan, config: BuildConfig, device: torch.device) -> Encoder:
    """The encoder of a build; for a method that learns it, a random one of the same shapes."""
    method = method_named(config.method)
    if method.encoder == "aligned":
        return WholeProjection(plan.units, code_choices(config, method.axes_examples)[0].width, "sparse", config.seed, device)
    how = _EncoderSettings.of(config)
    return _random(plan, replace(how, kind="rademacher") if how.kind == "pca" else how, device)


def stored_encoder(store: Store, plan: Plan, task: AbstractTask) -> Encoder:
    """The encoder that a store's rows were made with.

    Raises:
        StoreCorrupt: If the rows, or what was learned for them, are not of this model.
    """
    blueprint = store.blueprint
    method = method_named(blueprint.method)
    name = learned_file(method)
    check_sizes(blueprint, method, plan.units, store.folder)
    widths = (blueprint.rank, blueprint.side_divisor, blueprint.blow_up)
    how = _EncoderSettings(method, blueprint.projection, *widths, blueprint.seed)
    if name is not None:
        # Where every side is at most as wide as the rank there was nothing to learn.
        learned = store.file(name) if name in store.files else {}
        shapes = store.shapes_of(name) if name in store.files else {}
        check_learned(store.folder / name, learned, shapes, plan.units, blueprint.rank)
        return _with_learned(task, plan, how, learned)
    return _random(plan, how, task.device)


@dataclass(frozen=True)
class _EncoderSettings:
    """How an encoder is made, besides what is learned for it.

    Args:
        method: The method.
        kind: Of the random projection.
        rank: Its width on each side, or numbers of a row.
        side_divisor: Of each side's length instead, 0 for the rank.
        blow_up: Entries chosen for each number.
        seed: Of everything random.
    """

    method: Method
    kind: str
    rank: int
    side_divisor: int
    blow_up: int
    seed: int

    @classmethod
    def of(cls, config: BuildConfig) -> "_EncoderSettings":
        """As a build asks for it."""
        method = method_named(config.method)
        kind = method.projection if config.projection == "method" else config.projection
        widths = (config.rank or method.rank, config.side_divisor, config.blow_up or BLOW_UP)
        return cls(method, kind, *widths, config.seed)

    def sides(self, units: Sequence[Unit], device: torch.device) -> Kronecker:
        """Both sides of each unit projected."""
        shapes = [projected_shape(unit, self.rank, self.side_divisor) for unit in units]
        return Kronecker.random(units, shapes, kind=cast(Random, self.kind), seed=self.seed, device=device)


def _random(plan: Plan, how: _EncoderSettings, device: torch.device) -> Encoder:
    units, encoder = plan.units, how.method.encoder
    if encoder == "whole":
        return WholeProjection(units, how.rank, cast(Random | Literal["sparse"], how.kind), how.seed, device)
    if encoder == "entries":
        return EntryMask.random(units, how.rank, seed=how.seed, device=device, blow_up=how.blow_up)
    if encoder == "channels":
        return ChannelMask.random(units, how.rank, seed=how.seed, device=device, blow_up=how.blow_up)
    if encoder != "sides":
        raise NotImplementedError(encoder)
    return how.sides(units, device)


def learned_file(method: Method) -> str | None:
    """Name of the file of what a method learns before the rows; None for one that learns nothing."""
    if method.encoder == "aligned":
        return "codes.safetensors"
    if method.mask == "selective":
        return "mask.safetensors"
    if method.optimizer_scaled:
        return "moments.safetensors"
    return "axes.safetensors" if method.projection == "pca" else None


def _learn(
    task: AbstractTask,
    plan: Plan,
    dataset: Dataset,
    config: BuildConfig,
    factors: Path,
    max_positions: int,
    runtime: Runtime,
) -> dict[str, Tensor]:
    method, quiet, ranks = method_named(config.method), runtime.is_quiet, runtime.ranks
    if method.encoder == "aligned":
        alike = ranks if ranks.in_step else Ranks()
        return learn_code(task, plan, dataset, config, factors, max_positions=max_positions, quiet=quiet, ranks=alike)
    sample = dataset.spread(config.axes_examples or method.axes_examples).examples
    autocast = autocast_named(config.autocast)
    rank = config.rank or method.rank
    if method.mask == "selective":
        with meter("mask", len(sample), quiet=quiet) as progress:
            return fit_mask(
                task, plan, sample,
                width=rank, seed=config.seed, max_positions=max_positions, progress=progress, autocast=autocast,
            )  # fmt: skip
    if method.optimizer_scaled:
        with meter("moments", len(sample), quiet=quiet) as progress:
            return fit_second_moments(task, plan, sample, max_positions=max_positions, progress=progress, autocast=autocast)
    with meter("axes", len(sample), quiet=quiet) as progress:
        return fit_axes(
            task, plan, sample,
            rank=rank, seed=config.seed, max_positions=max_positions, progress=progress, autocast=autocast,
        )  # fmt: skip


def _with_learned(task: AbstractTask, plan: Plan, how: _EncoderSettings, learned: Mapping[str, Tensor]) -> Encoder:
    method = how.method
    if method.encoder == "aligned":
        return aligned_encoder(plan.units, learned, how.seed, task.device)
    if method.mask == "selective":
        return EntryMask.of_places(plan.units, learned["places"], how.rank, seed=how.seed, scale=1.0, device=task.device)

    count = range(len(plan.units))
    if method.optimizer_scaled:
        moments = [(learned[f"outputs.{index}"], learned[f"inputs.{index}"]) for index in count]
        dtype = next(task.model.parameters()).dtype.to_real()
        least = rounding_share(dtype) * max(float(outputs_O.mean()) for outputs_O, _ in moments)
        scales = [side_scales(*pair, least) for pair in moments]
        plain = how.sides(plan.units, task.device)
        return plain.scaled([left.to(task.device) for left, _ in scales], [right.to(task.device) for _, right in scales])

    def side(name: str, index: int) -> Tensor | None:
        matrix = learned.get(f"{name}.{index}")
        if matrix is None:
            return None
        # Fitted and read back from disk they lie differently in memory, which moves the last bits of a product.
        return matrix.to(task.device).clone(memory_format=torch.contiguous_format)

    return Kronecker(plan.units, tuple(side("outputs", i) for i in count), tuple(side("inputs", i) for i in count))
