"""EK-FAC of the mean curvature over several sets of weights: sums of second moments, then eigenvalues pooled in one basis.

Averaging eigenvectors would make no sense, so every stage of the fit is averaged before the next begins (Bae et al. 2024, section 3.3).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from whence.capture import Plan
from whence.curvature.eigenbasis import KroneckerCurvature
from whence.curvature.ekfac import fit_values
from whence.curvature.groups import POOLED, in_groups
from whence.curvature.kfac import FitRun, fit_factors, prepare_fit, solve_bases
from whence.curvature.stages import stages
from whence.data import Dataset
from whence.progress import Meter, meter
from whence.settings import FitConfig
from whence.tasks import AbstractTask

__all__ = ["Weights", "fit_ekfac_pooled"]

Weights = Callable[[], AbstractContextManager[None]]
"""Puts a set of weights into the task's model for as long as the context is open."""


def fit_ekfac_pooled(
    task: AbstractTask,
    plan: Plan,
    dataset: Dataset,
    weights: Sequence[Weights],
    config: FitConfig | None = None,
    run: FitRun = FitRun(),
    *,
    online: Mapping[str, Tensor] = MappingProxyType({}),
    **options: Any,
) -> KroneckerCurvature:
    """Fit EK-FAC to the mean of the curvatures at several sets of weights, two passes over the data for each, or for each group of units.

    Args:
        task: Model and likelihood.
        plan: Its units.
        dataset: What the curvature is averaged over.
        weights: The sets of weights; the draws of labels are the same for all.
        config: Labels, seed and sizes.
        run: As in `fit_kfac`, its ranks connected; the sums over the sets of weights count, too.
        online: Bases that are there already, as `whence.runs.OnlineCurvature` keeps them: their units are neither passed over for factors nor
            decomposed.
        **options: The fields of `FitRun` by name.

    Returns:
        The curvature, not damped.
    """
    run = replace(run, **options)
    room = None if run.room_bytes is None else int(run.room_bytes / POOLED)
    fit = prepare_fit(task, plan, dataset, config, replace(run, room_bytes=room))

    followed = _bases_of(plan, online)

    def identity() -> dict[str, object]:
        identity = fit.identity(weights="")
        digests = []
        for enter in weights:
            with enter():
                digests.append(task.weights)
        digest = hashlib.sha256(b"".join(followed[name].double().numpy().tobytes() for name in sorted(followed))).hexdigest()
        return {**identity, "weights": digests, **({"online": digest} if followed else {})}

    def pooled(name: str, make: Callable[[Meter], dict[str, Tensor]]) -> dict[str, Tensor]:
        totals: dict[str, Tensor] = {}
        with meter(name, -(-len(dataset) * len(weights) // run.ranks.count), quiet=run.quiet) as progress:
            for enter in weights:
                with enter():
                    tensors = make(progress)
                for name, value in tensors.items():
                    totals[name] = totals[name] + value / len(weights) if name in totals else value / len(weights)
        return totals

    with stages(run.folder, identity, run.ranks) as fit_stages:

        def make_bases(ending: str, units: range) -> dict[str, Tensor]:
            missing = [index for index in units if f"outputs_values.{index}" not in followed]
            mine = {name: value for name, value in followed.items() if int(name.rpartition(".")[2]) in units}
            if not missing:
                return mine

            def make_factors() -> dict[str, Tensor]:
                return pooled(f"factors{ending}", lambda progress: fit_factors(fit, progress, missing))

            factors = fit_stages.run(f"factors{ending}", make_factors)
            with meter(f"bases{ending}", len(missing), quiet=run.quiet) as progress:
                return mine | solve_bases(fit, factors, progress, missing)

        def make_values(ending: str, units: range) -> dict[str, Tensor]:
            return pooled(f"eigenvalues{ending}", lambda progress: fit_values(fit, bases, progress, units))

        bases = in_groups(fit_stages, "bases", fit.costs("bases"), fit.room_bytes, make_bases)
        values = in_groups(fit_stages, "values", fit.costs("values"), fit.room_bytes, make_values)
        curvature = fit.finish(bases, values, fit_stages.notes)
    count = sum(f"outputs_values.{index}" in followed for index in range(len(plan.units)))
    online_note = f", bases of {count} of {len(plan.units)} units followed along the run" if followed else ""
    return KroneckerCurvature(
        curvature.blocks, curvature.kfac, f"{curvature.note}, mean over {len(weights)} checkpoints{online_note}"
    )


def _bases_of(plan: Plan, online: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bases and values of the units that are known on all sides longer than 1, in the form of a fit's."""
    bases: dict[str, Tensor] = {}
    for index, unit in enumerate(plan.units):
        sides = {"outputs": unit.outputs, "inputs": unit.inputs}
        if any(size > 1 and f"{side}.{index}" not in online for side, size in sides.items()):
            continue
        for side, size in sides.items():
            if size > 1:
                # Orthonormal to the last bit again, after many small turns.
                basis_NN, signs_NN = torch.linalg.qr(online[f"{side}.{index}"])
                bases[f"{side}.{index}"] = basis_NN * signs_NN.diagonal().sign()
                bases[f"{side}_values.{index}"] = online[f"{side}_values.{index}"][None]
            else:
                bases[f"{side}_values.{index}"] = torch.ones(1, 1)
    return bases
