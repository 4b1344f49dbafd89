"""Held-out documents asked twice: through the codes of a store, and exactly.

Axes: Q documents that stand in for queries, N documents that are scored.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from whence.capture import Plan, available_bytes
from whence.compress import Aligned, Kronecker
from whence.curvature import solve_whitened
from whence.data import Dataset, Example
from whence.evaluate import mean_interval, pearson, spearman
from whence.pipeline.inputs import autocast_named
from whence.pipeline.stored.learn_code import stand_ins
from whence.progress import meter
from whence.score import Batching, exact_scores, gradient_rows
from whence.store import Agreement, Blueprint, Fidelity
from whence.tasks import AbstractTask

__all__ = ["measure_fidelity"]

_DOCUMENTS = 128
# Fewer say nothing about a correlation.
_FEWEST = 8
# Whole gradients of a query on the way to its preconditioned one, and the share of the free memory that they may take.
_COPIES, _SHARE = 4, 0.5


def measure_fidelity(
    task: AbstractTask,
    plan: Plan,
    encoder: Aligned,
    blueprint: Blueprint,
    dataset: Dataset,
    learned: Sequence[Example],
    stand_in_codes: Tensor | None,
    *,
    quiet: bool,
) -> Fidelity | None:
    """Correlation between the scores that a store gives and those of its EK-FAC without any code.

    Gradients of a few documents' losses stand in for queries. Where there are documents that the code was not learned from, they are taken
    from those, as queries from outside are. Elsewhere their codes are those that they would have from outside: with the part of an axis that
    is theirs alone they would be several times too long, and rounding would seem to cost far more than it does. Costs a pass over 16 and up
    to 256 documents, and more passes where few whole gradients fit.

    Args:
        task: Model and loss.
        plan: Its units.
        encoder: What makes the codes.
        blueprint: How they are stored.
        dataset: What was built.
        learned: Those of its documents that the code was learned from.
        stand_in_codes: Their codes as queries from outside the sample, of the documents that `stand_ins` names.
        quiet: No progress on stderr.

    Returns:
        The correlations; None where there are too few documents.
    """
    known = {example.id for example in learned}
    outside = [example for example in dataset.examples if example.id not in known]
    is_outside = len(outside) >= 2 * _FEWEST
    queries = [(outside if is_outside else learned)[place] for place in stand_ins(len(outside if is_outside else learned))]
    if not queries:
        return None
    asked = {example.id for example in queries}
    parts = ([example for example in part if example.id not in asked] for part in (learned, outside))
    chosen = [Dataset(part).spread(min(len(part), _DOCUMENTS)).examples if len(part) >= _FEWEST else () for part in parts]
    examples = [*chosen[0], *chosen[1]]
    own = None if is_outside else stand_in_codes
    stored_QN = _stored(task, plan, encoder, blueprint, queries, examples, own)
    exact_QN = _exact(task, plan, encoder, blueprint, queries, examples, quiet=quiet)
    found = [
        _agreement(stored_QN[:, columns], exact_QN[:, columns])
        for columns in (slice(len(chosen[0])), slice(len(chosen[0]), len(examples)))
    ]
    return Fidelity(len(queries), *found) if any(found) else None


def _stored(
    task: AbstractTask,
    plan: Plan,
    encoder: Aligned,
    blueprint: Blueprint,
    queries: Sequence[Example],
    examples: Sequence[Example],
    query_codes: Tensor | None,
) -> Tensor:
    """Scores as a scan of the store gives them, but for their scale, shape (Q, N); queries with codes of their own if they are given."""
    autocast = autocast_named(blueprint.autocast)

    def rows(some: Sequence[Example]) -> list[Tensor]:
        with meter("fidelity", len(some), quiet=True) as progress:
            return gradient_rows(
                task, plan, encoder, some, batching=Batching(blueprint.batch_positions), progress=progress, autocast=autocast
            ).units

    codec = blueprint.codec()
    encoded = rows(examples)
    ready = rows(queries) if query_codes is None else [query_codes.view(len(queries), 1, -1).to(encoded[0])]
    return codec.scorer(ready)(codec.encode(encoded)).double()


def _exact(
    task: AbstractTask,
    plan: Plan,
    encoder: Aligned,
    blueprint: Blueprint,
    queries: Sequence[Example],
    examples: Sequence[Example],
    *,
    quiet: bool,
) -> Tensor:
    """The same from whole gradients, shape (Q, N)."""
    size = sum(weight.numel() * weight.element_size() for weight in encoder.whitened.weights)
    at_once = max(1, int(_SHARE * available_bytes(task.device)) // (_COPIES * size))
    whole = Kronecker(plan.units, (None,) * len(plan.units), (None,) * len(plan.units))
    parts = []
    with meter("fidelity", len(examples) * -(-len(queries) // at_once), quiet=quiet) as progress:
        for start in range(0, len(queries), at_once):
            with meter("queries", at_once, quiet=True) as silent:
                rows = gradient_rows(
                    task, plan, whole, queries[start : start + at_once],
                    batching=Batching(blueprint.batch_positions), progress=silent,
                )  # fmt: skip
            blocks = solve_whitened(encoder.whitened, [row.to(task.device) for row in rows.units])
            parts.append(
                exact_scores(task, plan, examples, blocks, max_positions=blueprint.batch_positions, progress=progress).scores_QN
            )
    return torch.cat(parts).double()


def _agreement(stored_QN: Tensor, exact_QN: Tensor) -> Agreement | None:
    """None where there are no documents."""
    if not stored_QN.shape[1]:
        return None
    return Agreement(stored_QN.shape[1], _interval(spearman(stored_QN, exact_QN)), _interval(pearson(stored_QN, exact_QN)))


def _interval(values_Q: Tensor) -> tuple[float, float, float]:
    """Mean and 95 % interval, to digits that another batch size does not move."""
    found = mean_interval(values_Q)
    return round(found.mean, 3), round(max(-1.0, found.low), 3), round(min(1.0, found.high), 3)
