"""K-FAC: per unit, the Fisher as a Kronecker product of input and output-gradient second moments, by its eigenvectors.

Martens and Grosse 2015; for positions that share a weight Eschenhagen et al. 2023. Axes: N examples, O outputs, I inputs, K roles of a unit.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from whence.capture import Head, ModelRecord, Plan, capture, forecast, in_halves, separate_head
from whence.curvature.eigenbasis import KroneckerBlock, KroneckerCurvature
from whence.curvature.eigenvectors import diagonal, eigenbasis, wide
from whence.curvature.groups import in_groups, of_units, unit_bytes
from whence.curvature.labels import LabelRule, check_outputs, choose_labels, class_count, likely_classes, numbered, objectives
from whence.curvature.moments import FactorSums
from whence.curvature.sides import (
    Probes,
    as_basis,
    basis_notes,
    basis_tensors,
    blocked_basis,
    cut_note,
    directions_of,
    reflected_basis,
    resolved,
)
from whence.curvature.stages import MODEL, Stages, stages
from whence.data import Dataset, batches
from whence.distributed import Ranks
from whence.errors import NonFinite
from whence.progress import Meter, meter
from whence.reflections import Blocked, Reflected
from whence.settings import FitConfig
from whence.sharded_weights import is_sharded
from whence.tasks import AbstractTask

__all__ = [
    "Fit",
    "FitRun",
    "blamed",
    "fit_bases",
    "fit_factors",
    "fit_kfac",
    "prepare_fit",
    "refuse_sum",
    "solve_bases",
]


@dataclass(frozen=True, kw_only=True)
class FitRun:
    """How a fit runs; what it depends on is in `FitConfig`.

    Args:
        max_positions: Positions per batch; None measures what fits.
        folder: Where the stages are kept, for going on after a stop and for use again; None keeps nothing.
        room_bytes: Sums held at a time, in bytes: more are made in groups of units, a pass over the data each. None makes all at once.
        quiet: No progress on stderr.
        ranks: Processes that fit together: each takes its own batches, their sums are added up, and units are spread over them for their
            eigenvectors.
    """

    max_positions: int | None = None
    folder: Path | None = None
    room_bytes: int | None = None
    quiet: bool = False
    ranks: Ranks = Ranks()


@dataclass(frozen=True)
class Fit:
    """A fit under way: what all of its stages share.

    Args:
        task: Model and likelihood.
        plan: Its units.
        dataset: What the curvature is averaged over.
        config: Labels, seed and sizes, resolved.
        rule: Which labels.
        max_positions: Positions per batch.
        quiet: No progress on stderr.
        probes: What long sides are sketched with.
        head: A head that can be left out, for labels that are not taken all.
        room_bytes: For the units of a group; None takes all at once.
        ranks: Connected processes that fit together, each on its own batches.
    """

    task: AbstractTask
    plan: Plan
    dataset: Dataset
    config: FitConfig
    rule: LabelRule
    max_positions: int
    quiet: bool
    probes: Probes
    head: Head | None = None
    room_bytes: int | None = None
    ranks: Ranks = Ranks()

    def batches(self, max_examples: int = 256) -> list[list[int]]:
        """The data's batches that are this process's."""
        lengths = [example.length for example in self.dataset.examples]
        # Batches come by length: every so many-th of them is as much work for each process.
        return self.ranks.mine(list(batches(lengths, max_positions=self.max_positions, max_examples=max_examples)))

    def meter(self, title: str) -> AbstractContextManager[Meter]:
        """Progress over this process's examples, about so many."""
        return meter(title, -(-len(self.dataset) // self.ranks.count), quiet=self.quiet)

    def identity(self, weights: str | None = None) -> dict[str, object]:
        """What the result depends on, as JSON. Batches are not part of it: they move the last bits only.

        Args:
            weights: Digest of the weights; None makes it.
        """
        units = [(unit.parameters, unit.outputs, unit.inputs) for unit in self.plan.units]
        return {
            "version": 1,
            "weights": self.task.weights if weights is None else weights,
            MODEL: ModelRecord.of(self.task, self.plan, self.dataset.examples).to_json(),
            "preprocessing": self.task.preprocessing,
            "dataset": self.dataset.fingerprint,
            "units": units,
            **asdict(self.config),
        }

    def costs(self, stage: str) -> list[int]:
        """Bytes that each unit takes in a stage."""
        return [unit.of_stage(stage) for unit in unit_bytes(self.task, self.plan, self.config, self.probes.classes)]

    def block(self, index: int, bases: dict[str, Tensor], values_OI: Tensor) -> KroneckerBlock:
        """One unit's curvature, on the model's device."""
        left, right = (as_basis(bases, side, index) for side in ("outputs", "inputs"))
        return KroneckerBlock(self.plan.units[index], left, right, values_OI).on(self.task.device)

    def finish(
        self, bases: dict[str, Tensor], values: dict[str, Tensor] | None, notes: Sequence[str] = ()
    ) -> KroneckerCurvature:
        """The curvature from the tensors of its stages, which come from the disk if the fit was done before, with what is to be said of them.

        What had to be fitted in groups stays on the CPU, mapped from its files; each unit goes to the model's device when it is needed.
        """
        blocks, kfac, cut = [], [], []
        for index, unit in enumerate(self.plan.units):
            left_KO, right_KI = bases[f"outputs_values.{index}"], bases[f"inputs_values.{index}"]
            values_OI = left_KO.T @ right_KI if values is None else values[f"values.{index}"]
            left, right = (as_basis(bases, side, index) for side in ("outputs", "inputs"))
            blocks.append(KroneckerBlock(unit, left, right, values_OI))
            kfac.append((left_KO, right_KI))
            for side, basis, values_KN in (("outputs", left, left_KO), ("inputs", right, right_KI)):
                if isinstance(basis, Reflected | Blocked):
                    cut.append(cut_note(unit, side, basis, values_KN.sum(0)))
                elif values_KN.shape[1] > 1 and directions_of(values_KN.shape[1], self.config) == 0:
                    cut.append(f"{side} of {unit.name}: {values_KN.shape[1]:,} axes")
        notes = [*basis_notes(cut), *notes]
        note = "; ".join([f"{self.rule}, {len(self.dataset):,} examples", *notes])
        curvature = KroneckerCurvature(tuple(blocks), tuple(kfac), note)
        return curvature.on(self.task.device) if self.room_bytes is None else curvature


def fit_kfac(
    task: AbstractTask,
    plan: Plan,
    dataset: Dataset,
    config: FitConfig | None = None,
    run: FitRun = FitRun(),
    **options: Any,
) -> KroneckerCurvature:
    """Fit K-FAC in one pass over the data.

    A unit that one kind of layer uses gets the usual product of factors. One that layers multiply with and tables look up in (a tied
    embedding) gets the sum of one product per kind, of which the part that is diagonal in the bases is kept; the bases are the eigenvectors
    of the sum's two partial traces. Where a side's basis is the identity the same is done with its factor: its diagonal counts. Each of these
    is the best approximation, in Frobenius norm, that is diagonal in the bases.

    Args:
        task: Model and likelihood.
        plan: Its units.
        dataset: What the curvature is averaged over.
        config: Labels, seed and sizes.
        run: How the fit runs. Processes that fit together give the same numbers but for the order of sums, on every one of them.
        **options: The fields of `FitRun` by name.

    Returns:
        The curvature, not damped.
    """
    run = replace(run, **options)
    with run.ranks.connected():
        fit = prepare_fit(task, plan, dataset, config, run)
        with stages(run.folder, fit.identity, run.ranks) as fit_stages:
            return fit.finish(fit_bases(fit, fit_stages), None, fit_stages.notes)


def prepare_fit(task: AbstractTask, plan: Plan, dataset: Dataset, config: FitConfig | None, run: FitRun) -> Fit:
    """Decide on labels, batch size and sides and, for several connected processes, the same for all."""
    length = sum(example.length for example in dataset.examples)
    sized = resolved(config, plan.units, device=task.device, positions=length, folder=run.folder)
    rule = choose_labels(task, dataset.examples, sized.labels, samples=sized.samples, seed=sized.seed)
    if rule.kind != "dataset":
        check_outputs(task, dataset.examples)
    positions = run.max_positions or forecast(task, plan, dataset.examples).batch_positions
    head = None if rule.kind == "exact" else separate_head(task, plan, dataset.examples)
    classes, places_K = class_count(task, plan, dataset.examples, sized), None
    if classes:
        places_K = likely_classes(task, dataset, directions_of(classes, sized))
    positions, room, sized, places_K = run.ranks.of_first((positions, run.room_bytes, sized, places_K))
    return Fit(
        task,
        plan,
        dataset,
        sized,
        rule,
        positions,
        run.quiet,
        Probes(plan.units, sized, places_K, classes),
        head,
        room,
        run.ranks,
    )


def fit_bases(fit: Fit, run: Stages) -> dict[str, Tensor]:
    """The first two stages: factors, then bases with K-FAC's eigenvalues in them."""

    def make(ending: str, units: range) -> dict[str, Tensor]:
        def make_factors() -> dict[str, Tensor]:
            with fit.meter(f"factors{ending}") as progress:
                return fit_factors(fit, progress, units)

        factors = run.run(f"factors{ending}", make_factors)
        with meter(f"bases{ending}", -(-len(units) // fit.ranks.count), quiet=fit.quiet) as progress:
            return solve_bases(fit, factors, progress, units)

    return in_groups(run, "bases", fit.costs("bases"), fit.room_bytes, make)


def fit_factors(fit: Fit, progress: Meter, units: Sequence[int] | None = None) -> dict[str, Tensor]:
    """Sums of second moments of both sides in one pass over the data, with the number of positions; of some units, or of all."""
    totals: dict[str, Tensor] = {}
    group = range(len(fit.plan.units)) if units is None else units

    def sums_of(items: Sequence[int]) -> dict[str, Tensor]:
        chosen = [fit.dataset.examples[item] for item in items]
        batch = fit.task.collate(chosen)
        masks = fit.task.positions(batch)
        padded = None if isinstance(masks, Tensor) and bool(masks.all()) else masks
        sums = FactorSums(fit.plan, fit.config.sharing, fit.probes, padded, fit.task.draws)
        labelled = numbered(batch, len(chosen), fit.task.device)
        for objective in objectives(fit.task, fit.rule, chosen, stage="factors", head=fit.head):
            capture(
                fit.task,
                fit.plan,
                labelled,
                of_units(sums, group),
                num_examples=len(chosen),
                alone=lambda index: numbered(fit.task.collate([chosen[index]]), 1, fit.task.device, first=index),
                objective=objective,
            )
        return sums.sums

    def run(items: Sequence[int]) -> None:
        # Added only when the batch went through: one that did not fit is done again in halves.
        sums = sums_of(items)
        if (unit := _not_finite(sums, fit.plan)) is not None:
            raise blamed(fit, items, unit, "factor", lambda some: _not_finite(sums_of(some), fit.plan))
        for name, value in sums.items():
            totals[name] = value if name not in totals else totals[name].add_(value)
        progress.advance(len(items))

    for batch in fit.batches():
        in_halves(batch, run, fit.task.model)
    sums = fit.ranks.added_up(totals)
    if (unit := _not_finite(sums, fit.plan)) is not None:
        refuse_sum(unit, "factor", f"all {len(fit.dataset):,} examples")
    # Which classes a block is of belongs to it.
    outputs_indices = {index: fit.probes.block(index, "outputs") for index in group}
    return sums | {
        f"outputs_places.{index}": indices.double() for index, indices in outputs_indices.items() if indices is not None
    }


def blamed(fit: Fit, items: Sequence[int], unit: str, what: str, unit_of: Callable[[Sequence[int]], str | None]) -> NonFinite:
    """The error about a batch whose sums are NaN or infinite, with the example that makes them so.

    Args:
        fit: The fit.
        items: The batch.
        unit: Name of the unit whose sum it is.
        what: The sum, for the message.
        unit_of: Makes the sums of some items again; gives the name of a unit whose sum is not finite, None if all are.

    Returns:
        The error. A batch whose examples are finite one by one, or that several processes have to run together, is named as a whole.
    """
    some = list(items)
    # The half that has it, again and again: a few passes over small batches.
    while len(some) > 1 and not is_sharded(fit.task.model):
        middle = len(some) // 2
        halves = ((half, unit_of(half)) for half in (some[:middle], some[middle:]))
        half, bad = next(((half, bad) for half, bad in halves if bad is not None), ([], None))
        if bad is None:
            break
        some, unit = half, bad
    name = fit.dataset.examples[some[0]].id
    if len(some) > 1:
        refuse_sum(unit, what, f"{len(some)} examples of which {name!r} is one")
    return NonFinite(
        found=f"a NaN or infinite {what} of {unit!r} for the example {name!r}",
        needed="finite inputs and gradients",
        do="drop this example, or run in a wider type than the model's",
    )


def refuse_sum(unit: str, what: str, whose: str) -> NoReturn:
    """Refuse a sum that is NaN or infinite though no single example's part is known to be.

    Raises:
        NonFinite: Always.
    """
    raise NonFinite(
        found=f"a NaN or infinite {what} of {unit!r} in the sum over {whose}",
        needed="finite sums",
        do="run in a wider type than the model's, or scale the loss or the inputs down",
    )


def _not_finite(sums: dict[str, Tensor], plan: Plan) -> str | None:
    """Name of the first unit with a sum that is NaN or infinite."""
    for name, value in sums.items():
        # A NaN or an infinity in any vector shows on the diagonal.
        if not bool(torch.isfinite(value.diagonal() if value.ndim == 2 else value).all()):
            return plan.units[int(name.split(".")[1])].name
    return None


def solve_bases(fit: Fit, factors: dict[str, Tensor], progress: Meter, units: Sequence[int] | None = None) -> dict[str, Tensor]:
    """Eigenvectors of the factors, and what K-FAC's own eigenvalues are products of."""
    bases: dict[str, Tensor] = {}
    group = range(len(fit.plan.units)) if units is None else units
    for position in fit.ranks.balanced([_decomposition(factors, index) for index in group]):
        bases |= _solve_unit(fit, factors, group[position])
        progress.advance()
    # Sent, not solved by every process: eigenvectors have signs, and other machines round otherwise.
    return fit.ranks.added_up(bases)


def _solve_unit(fit: Fit, factors: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """Both bases of a unit, and K-FAC's eigenvalues in them."""
    unit, bases = fit.plan.units[index], {}
    roles = [name.split(".")[2] for name in factors if name.startswith(f"count.{index}.")]
    sides = {side: [factors[f"{side}.{index}.{role}"] for role in roles] for side in ("outputs", "inputs")}
    # F = (1/N) sum over positions of (d d^T) x (a a^T), the two taken as independent over all positions.
    # No position at all reaches an expert that is given none: its moments are zero, whatever they are divided by.
    scales = [1.0 / (len(fit.dataset) * max(1.0, float(factors[f"count.{index}.{role}"]))) for role in roles]
    for side, other, size in (("outputs", "inputs", unit.outputs), ("inputs", "outputs", unit.inputs)):
        dtype = sides[side][0].dtype if roles else torch.float32
        # Where the factors come from a file they are on the CPU.
        mine = wide([moment.to(fit.task.device) for moment in sides[side]])
        traces = [float(diagonal(moment).double().sum()) for moment in sides[other]]
        weights = [scale * trace for scale, trace in zip(scales, traces, strict=True)]
        sketches, blocks = ([factors.get(f"{side}_{kind}.{index}.{role}") for role in roles] for kind in ("sketch", "block"))
        omega_NK, places_K = fit.probes.omega(index, side), factors.get(f"{side}_places.{index}")
        if any(moment.ndim == 2 for moment in mine):
            basis, values_KN = eigenbasis(mine, weights, dtype)
        elif places_K is not None and any(block is not None for block in blocks):
            basis, values_KN = blocked_basis(places_K.round().long(), blocks, mine, weights)
        elif omega_NK is not None and any(sketch is not None for sketch in sketches):
            basis, values_KN = reflected_basis(omega_NK, sketches, mine, weights)
        else:
            basis = None
            values_KN = torch.stack([diagonal(moment) for moment in mine]) if mine else torch.zeros(1, size).double()
        if side == "outputs" and scales:
            values_KN = values_KN * torch.tensor(scales, dtype=values_KN.dtype, device=values_KN.device)[:, None]
        bases[f"{side}_values.{index}"] = values_KN.to(dtype)
        bases |= basis_tensors(basis, side, index, dtype)
    return bases


def _decomposition(factors: dict[str, Tensor], index: int) -> int:
    """What the bases of a unit cost, in cubes of its sides; nothing where a side's factor is a diagonal."""
    sides = {
        name.split(".")[0]: value.shape[0] * value.shape[1] ** 2
        for name, value in factors.items()
        if value.ndim == 2 and name.split(".")[1] == str(index)
    }
    return sum(sides.values())
