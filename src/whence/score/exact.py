"""The exact scan: one pass over the training data itself, nothing stored, nothing compressed.

Axes: U units, Q queries, N training examples, B of a batch, T positions, O outputs, I inputs.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.capture import Objective, Plan, capture, in_halves, separate_head
from whence.curvature import KroneckerBlock, KroneckerCurvature, ResolvedDamping, SquaredGradients, held_examples, shared_units
from whence.data import Example, batches
from whence.distributed import Ranks
from whence.errors import NonFinite
from whence.progress import Meter
from whence.records import Pair
from whence.score.blocks import LowRank, QueryBlock
from whence.score.contract import Contraction
from whence.tasks import AbstractTask

__all__ = ["ExactScores", "Metric", "Parts", "exact_scores"]


@dataclass(frozen=True)
class Metric:
    """A squared norm of gradients: weighted squares of their coordinates in a curvature's bases.

    Args:
        blocks: The bases.
        weights: Per unit, shape (O, I).
    """

    blocks: tuple[KroneckerBlock, ...]
    weights: tuple[Tensor, ...]

    @classmethod
    def euclidean(cls, plan: Plan) -> "Metric":
        """The plain squared norm."""
        ones = tuple(torch.ones(unit.outputs, unit.inputs) for unit in plan.units)
        return cls(
            tuple(KroneckerBlock(unit, None, None, ones_OI) for unit, ones_OI in zip(plan.units, ones, strict=True)), ones
        )

    @classmethod
    def inverse(cls, curvature: KroneckerCurvature, damping: ResolvedDamping, *, power: int) -> "Metric":
        """g^T (H + damping)^-1 g for power 1, which is the self-influence, and |(H + damping)^-1 g|^2 for power 2."""
        values = zip(curvature.blocks, curvature.dampings(damping), strict=True)
        return cls(curvature.blocks, tuple((block.values_OI + value) ** -power for block, value in values))

    def of_rows(self, rows: Sequence[Tensor]) -> Tensor:
        """Squared norms of vectors in parameter space, per unit of shape (Q, O, I); returns shape (Q,), float64."""
        parts = zip(self.blocks, rows, self.weights, strict=True)
        squares = [(block.into(row).square() * weights.to(row)).flatten(1).sum(1).double() for block, row, weights in parts]
        return torch.stack(squares).sum(0)


@dataclass(frozen=True)
class ExactScores:
    """What one scan found.

    Args:
        scores_QN: Every example's score for every query, float64.
        units_UQN: Each unit's part of it, if asked for; they add up to the scores.
        tokens: By place of the example, each position's part of its scores, shape (Q, T); they add up to the scores.
        squared_norms_N: In the metric, if one was given.
    """

    scores_QN: Tensor
    units_UQN: Tensor | None
    tokens: dict[int, Tensor]
    squared_norms_N: Tensor | None

    def to_tensors(self) -> dict[str, Tensor]:
        """All of it by name, as it is kept in a file; `joined` puts such parts together."""
        tensors = {"scores_QN": self.scores_QN, "units_UQN": self.units_UQN, "squared_norms_N": self.squared_norms_N}
        tokens = {f"tokens_QT.{row}": parts_QT for row, parts_QT in self.tokens.items()}
        return {name: value for name, value in tensors.items() if value is not None} | tokens

    @classmethod
    def joined(cls, parts: Sequence[Mapping[str, Tensor]]) -> "ExactScores":
        """The scores of all rows from those of some, in order; norms are those of the first part."""
        tensors = dict(parts[0])
        for name in tensors if len(parts) > 1 else ():
            if name != "squared_norms_N":
                tensors[name] = torch.cat([part[name] for part in parts], 1 if name == "units_UQN" else 0)
        tokens = {int(name.split(".")[1]): value for name, value in tensors.items() if name.startswith("tokens_QT")}
        return cls(tensors["scores_QN"], tensors.get("units_UQN"), tokens, tensors.get("squared_norms_N"))


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a scan keeps besides the scores.

    Args:
        per_unit: Whether to keep each unit's part.
        tokens: Places of examples of which each position's part is wanted.
        metric: For squared norms of the training gradients, from the same pass.
    """

    per_unit: bool = False
    tokens: Collection[int] = ()
    metric: Metric | None = None


def exact_scores(
    task: AbstractTask,
    plan: Plan,
    examples: Sequence[Example],
    blocks: Sequence[QueryBlock],
    *,
    max_positions: int,
    progress: Meter,
    parts: Parts = Parts(),
    ranks: Ranks = Ranks(),
) -> ExactScores:
    """Inner products of queries with the loss gradient of every training example, in one pass over the data.

    Args:
        task: Model and loss.
        plan: Its units.
        examples: The training data.
        blocks: Preconditioned queries, per unit, on the model's device, already scaled to the score's unit; empty for norms only.
        max_positions: Positions per batch.
        progress: Advanced by examples.
        parts: What is kept besides the scores.
        ranks: Connected processes that share the examples, all with the same blocks; each gets the scores of all examples.

    Returns:
        The scores, in the order of the examples, on the CPU.
    """
    shared = shared_units(plan)
    max_examples = 256 if parts.metric is None else held_examples(plan, shared)
    head = separate_head(task, plan, examples)
    scan = _Scan(task, plan, "loss" if head is None else head.loss, blocks, parts, shared)
    finished: list[tuple[Sequence[int], _Part]] = []
    mine = ranks.balanced([example.length for example in examples])
    lengths = [examples[number].length for number in mine]
    for batch in batches(lengths, max_positions=max_positions, max_examples=max_examples):
        items = [mine[number] for number in batch]
        finished.extend(in_halves(items, lambda some: (some, scan.part(examples, some)), task.model))
        progress.advance(len(items))
    # What the others have is zero here, so that the sum over ranks is every example's score as its rank made it.
    rows = 0 if not blocks else len(blocks[0].left_QRO if isinstance(blocks[0], LowRank) else blocks[0])
    units_UQN = torch.zeros(len(plan.units) if parts.per_unit else 1, rows, len(examples), dtype=torch.float64)
    norms_N = None if parts.metric is None else torch.zeros(len(examples), dtype=torch.float64)
    tokens_of: dict[int, Tensor] = {}
    for items, part in finished:
        numbers = list(items)
        units_UQN[:, :, numbers] = part.scores_UQB
        tokens_of |= {numbers[number]: parts_QT for number, parts_QT in part.tokens.items()}
        if norms_N is not None and part.norms_B is not None:
            norms_N[numbers] = part.norms_B
    scores = ExactScores(units_UQN.sum(0), units_UQN if parts.per_unit else None, tokens_of, norms_N)
    return scores if ranks.count == 1 else ExactScores.joined([ranks.added_up(scores.to_tensors())])


@dataclass(frozen=True)
class _Part:
    """One batch's results."""

    scores_UQB: Tensor
    tokens: dict[int, Tensor]
    norms_B: Tensor | None

    def summed(self) -> "_Part":
        return _Part(self.scores_UQB.sum(0, keepdim=True), self.tokens, self.norms_B)


@dataclass(frozen=True)
class _Scan:
    """What is the same for all batches: model, what is differentiated, queries and the units that several layers share."""

    task: AbstractTask
    plan: Plan
    objective: Objective
    blocks: Sequence[QueryBlock]
    parts: Parts
    shared: set[int]

    def part(self, examples: Sequence[Example], items: Sequence[int]) -> _Part:
        """The results of a batch, by the places of its examples."""
        chosen = [examples[item] for item in items]
        batch = self.task.collate(chosen)
        tokens = self.parts.tokens
        wanted = {row: examples[item].length for row, item in enumerate(items) if item in tokens}
        squares = None
        while squares is None:  # again when a unit turns out to be used more than once
            squares = self._captured(batch, chosen, wanted)
        _check_finite(squares, self.plan, chosen)
        return squares if self.parts.per_unit else squares.summed()

    def _captured(self, batch: Any, chosen: Sequence[Example], wanted: dict[int, int]) -> _Part | None:
        task, metric, longest = self.task, self.parts.metric, max(example.length for example in chosen)
        contraction = Contraction(self.blocks, len(chosen), wanted, longest, task.draws) if self.blocks else None
        norms = None if metric is None else _Norms(metric, len(chosen), task.device)
        squares = None if norms is None else SquaredGradients(norms.metric.blocks, len(chosen), self.shared, norms)

        def consume(index: int, pair: Pair) -> None:
            for consumer in (contraction, squares):
                if consumer is not None:
                    consumer(index, pair)

        capture(
            task,
            self.plan,
            batch,
            consume,
            num_examples=len(chosen),
            alone=lambda row: task.collate([chosen[row]]),
            objective=self.objective,
        )
        if squares is not None and not squares.finish():
            return None
        empty = torch.zeros(len(self.plan.units), 0, len(chosen))
        scores_UQB = empty if contraction is None else contraction.scores_UQB
        tokens = {} if contraction is None else {row: each.double().cpu() for row, each in contraction.tokens.items()}
        return _Part(scores_UQB.double().cpu(), tokens, None if norms is None else norms.squares_B.cpu())


class _Norms:
    """Takes squared gradients and adds them up per example, weighted."""

    def __init__(self, metric: Metric, num_examples: int, device: torch.device):
        self.metric = metric
        self.squares_B = torch.zeros(num_examples, dtype=torch.float64, device=device)

    def dense(self, index: int, start: int, squares_BOI: Tensor) -> None:
        weights = self.metric.weights[index].to(squares_BOI).flatten()
        self.squares_B[start : start + len(squares_BOI)] += (squares_BOI.flatten(1) @ weights).double()

    def products(self, index: int, outputs_BO: Tensor, inputs_BI: Tensor) -> None:
        self.squares_B += ((outputs_BO @ self.metric.weights[index].to(outputs_BO)) * inputs_BI).sum(1).double()

    def rows(self, index: int, examples_U: Tensor, rows_U: Tensor, squares_UI: Tensor) -> None:
        weights_UI = self.metric.weights[index].to(squares_UI)[rows_U]
        self.squares_B.index_add_(0, examples_U, (squares_UI * weights_UI).sum(1).double())


def _check_finite(part: _Part, plan: Plan, chosen: Sequence[Example]) -> None:
    bad_UB = ~torch.isfinite(part.scores_UQB).all(1)
    names = [f"score through {unit.name!r}" for unit in plan.units]
    if part.norms_B is not None:
        bad_UB = torch.cat([bad_UB, ~torch.isfinite(part.norms_B)[None]])
        names.append("gradient norm")
    if bool(bad_UB.any()):
        kind, number = bad_UB.nonzero()[0].tolist()
        raise NonFinite(
            found=f"a NaN or infinite {names[kind]} of the example {chosen[number].id!r}",
            needed="finite gradients and queries",
            do="drop this example, raise the damping, or run in a wider type than the model's",
        )
