"""The projections of a store: made from a seed, or learned once and kept beside it."""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from whence.capture import Plan
from whence.compress import Kronecker, Random, projected_shape
from whence.config import BuildConfig
from whence.curvature import fit_axes
from whence.data import Dataset
from whence.errors import StoreCorrupt
from whence.methods import method_named
from whence.progress import meter
from whence.store import Store, damaged, dtype_named, listed_files, read_seals, read_tensors, sha256_of
from whence.tasks import AbstractTask

__all__ = ["make_encoder", "stored_encoder"]


def make_encoder(
    task: AbstractTask, plan: Plan, dataset: Dataset, folder: Path, config: BuildConfig, *, max_positions: int, quiet: bool
) -> tuple[Kronecker, dict[str, Tensor]]:
    """Projections for a build.

    Args:
        task: Model and loss.
        plan: Its units.
        dataset: Where learned axes are fitted.
        folder: The store; a resumed or appended build takes its axes from there.
        config: The build's options.
        max_positions: Positions per batch.
        quiet: No progress on stderr.

    Returns:
        The projections, and the learned axes to be stored; empty for random ones.

    Raises:
        StoreCorrupt: If the axes that stored rows were made with are altered or gone.
    """
    method = method_named(config.method)
    rank = config.rank or method.rank
    kind = method.projection if config.projection == "method" else config.projection
    if kind != "pca":
        shapes = [projected_shape(unit, rank) for unit in plan.units]
        return Kronecker.random(plan.units, shapes, kind=kind, seed=config.seed, device=task.device), {}
    path = folder / "axes.safetensors"
    if path.exists():
        sealed = (listed_files(folder) or {}).get(path.name)
        if sealed is not None and sha256_of(path) != sealed:
            raise StoreCorrupt(**damaged(path, "its checksum is not the sealed one"))
        axes = read_tensors(path)
    else:
        first = read_seals(folder).get(0)
        if first is not None and first.data != dataset.fingerprint:
            raise StoreCorrupt(
                found=f"no axes.safetensors in {folder}, which the rows there were made with",
                needed="the same axes for the rows to be added",
                do="restore that file from a copy, or build into another folder",
            )
        step = max(1, len(dataset) // config.axes_examples)
        sample = list(dataset.examples)[::step][: config.axes_examples]
        autocast = None if config.autocast == "none" else dtype_named(config.autocast)
        with meter("axes", len(sample), quiet=quiet) as progress:
            axes = fit_axes(
                task,
                plan,
                sample,
                rank=rank,
                seed=config.seed,
                max_positions=max_positions,
                progress=progress,
                autocast=autocast,
            )
    return _with_axes(plan, axes, task.device), axes


def stored_encoder(store: Store, plan: Plan, task: AbstractTask) -> Kronecker:
    """The projections that a store's rows were made with."""
    blueprint = store.blueprint
    if blueprint.projection == "pca":
        # Where every side is at most as wide as the rank there was nothing to learn.
        axes = store.file("axes.safetensors") if "axes.safetensors" in store.files else {}
        return _with_axes(plan, axes, task.device)
    kind = cast(Random, blueprint.projection)
    shapes = [unit.projected for unit in blueprint.units]
    return Kronecker.random(plan.units, shapes, kind=kind, seed=blueprint.seed, device=task.device)


def _with_axes(plan: Plan, axes: dict[str, Tensor], device: torch.device) -> Kronecker:
    def side(name: str, index: int) -> Tensor | None:
        matrix = axes.get(f"{name}.{index}")
        if matrix is None:
            return None
        # Fitted and read back from disk they lie differently in memory, which moves the last bits of a product.
        return matrix.to(device).clone(memory_format=torch.contiguous_format)

    count = range(len(plan.units))
    return Kronecker(plan.units, tuple(side("outputs", i) for i in count), tuple(side("inputs", i) for i in count))
