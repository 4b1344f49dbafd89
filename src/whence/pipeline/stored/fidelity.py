"""Held-out documents asked twice: through the codes of a store, and exactly.

Axes: Q documents that stand in for queries, N documents that are scored.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from whence.capture import Plan
from whence.compress import Aligned
from whence.data import Dataset, Example, spread_places
from whence.evaluate import mean_interval, pearson, spearman
from whence.pipeline.inputs import autocast_named
from whence.pipeline.stored.code_size import stand_ins
from whence.pipeline.stored.whole_gradients import WholeGradients
from whence.progress import meter
from whence.score import Batching, bm25, gradient_rows
from whence.store import Agreement, Blueprint, Controls, Fidelity
from whence.tasks import AbstractTask

__all__ = ["FIDELITY_DOCUMENTS", "measure_fidelity"]

_DOCUMENTS = 128
FIDELITY_DOCUMENTS = 2 * _DOCUMENTS
"""That are scored at most: some that the code was learned from, and some others."""
# Fewer say nothing about a correlation.
_FEWEST = 8


def measure_fidelity(
    task: AbstractTask,
    plan: Plan,
    encoder: Aligned,
    blueprint: Blueprint,
    dataset: Dataset,
    learned: Sequence[int],
    stand_in_scores: Tensor | None,
    *,
    quiet: bool,
) -> Fidelity | None:
    """Correlation between the scores that a store gives and those of its EK-FAC without any code.

    Gradients of a few documents' losses stand in for queries. Where there are documents that the code was not learned from, they are taken
    from those, as queries from outside are. Elsewhere their scores are those by trial axes that only the other documents taught: axes that
    they taught themselves hold more of them than of any query. Costs a pass over 16 and up to 256 documents, and more passes where few whole
    gradients fit.

    Args:
        task: Model and loss.
        plan: Its units.
        encoder: What makes the codes.
        blueprint: How they are stored.
        dataset: What was built.
        learned: Places of its documents that the code was learned from.
        stand_in_scores: Scores of the documents that `stand_ins` names to those the code was learned from, by axes they did not teach.
        quiet: No progress on stderr.

    Returns:
        The correlations; None where there are too few documents.
    """
    learned_rows = set(learned)
    outside = [row for row in range(len(dataset)) if row not in learned_rows]
    is_outside = len(outside) >= 2 * _FEWEST
    source = outside if is_outside else learned
    query_rows = [source[row] for row in stand_ins(len(source))]
    if not query_rows or (not is_outside and (stand_in_scores is None or len(stand_in_scores) != len(query_rows))):
        return None
    query_set = set(query_rows)
    groups = [_some([row for row in part if row not in query_set]) for part in (learned, outside if is_outside else ())]
    queries, examples = ([dataset.examples[row] for row in chosen] for chosen in (query_rows, [*groups[0], *groups[1]]))
    autocast = autocast_named(blueprint.autocast)

    def rows(some: Sequence[Example]) -> list[Tensor]:
        with meter("fidelity", len(some), quiet=True) as progress:
            return gradient_rows(
                task, plan, encoder, some, batching=Batching(blueprint.batch_positions), progress=progress, autocast=autocast
            ).units

    codec, encoded = blueprint.codec(), rows(examples)
    if is_outside or stand_in_scores is None:
        # As a scan of the store gives them, but for their scale.
        stored_QN = codec.scorer(rows(queries))(codec.encode(encoded)).double()
    else:
        columns = {row: column for column, row in enumerate(learned)}
        stored_QN = stand_in_scores[:, [columns[row] for row in groups[0]]].double()
    exact_QN = _exact(WholeGradients(task, plan, encoder, blueprint.batch_positions), queries, examples, quiet)
    parts = (slice(len(groups[0])), slice(len(groups[0]), len(examples)))
    agreements = [_agreement(stored_QN[:, part], exact_QN[:, part]) for part in parts]
    if not any(agreements):
        return None
    part = parts[1] if agreements[1] else parts[0]
    lengths_N = torch.stack([codes_NPR.double().square().sum((1, 2)) for codes_NPR in encoded]).sum(0).sqrt()
    controls = _controls(lengths_N[part], exact_QN[:, part], Dataset(queries), Dataset(examples[part]))
    return Fidelity(len(queries), agreements[0], agreements[1], controls, is_outside)


def _controls(lengths_N: Tensor, exact_QN: Tensor, queries: Dataset, examples: Dataset) -> Controls:
    """Agreement with exact scores of what does not know the query, or the model."""
    has_texts = all(example.text for example in (*queries.examples, *examples.examples))
    shared_words = _agreement(bm25(examples, queries).scores.double(), exact_QN) if has_texts else None
    length = _agreement(lengths_N.expand_as(exact_QN), exact_QN)
    unrelated = _agreement(exact_QN.roll(1, 0), exact_QN)
    assert length is not None and unrelated is not None
    return Controls(length, unrelated, shared_words)


def _some(rows: Sequence[int]) -> list[int]:
    """At most so many of them as are scored; none where they say nothing."""
    return [rows[index] for index in spread_places(len(rows), _DOCUMENTS)] if len(rows) >= _FEWEST else []


def _exact(gradients: WholeGradients, queries: Sequence[Example], examples: Sequence[Example], quiet: bool) -> Tensor:
    """Scores from whole gradients, shape (Q, N), a pass over the examples for as many queries as fit."""
    step = gradients.at_once
    with meter("fidelity", len(examples) * -(-len(queries) // step), quiet=quiet) as progress:
        starts = range(0, len(queries), step)
        parts = [
            gradients.scores(gradients.preconditioned(queries[start : start + step], "loss"), examples, progress)
            for start in starts
        ]
    return torch.cat(parts).double()


def _agreement(stored_QN: Tensor, exact_QN: Tensor) -> Agreement | None:
    """None where there are no documents."""
    if not stored_QN.shape[1]:
        return None
    return Agreement(stored_QN.shape[1], _interval(spearman(stored_QN, exact_QN)), _interval(pearson(stored_QN, exact_QN)))


def _interval(values_Q: Tensor) -> tuple[float, float, float]:
    """Mean and 95 % interval, to digits that another batch size does not move."""
    interval = mean_interval(values_Q)
    return round(interval.mean, 3), round(max(-1.0, interval.low), 3), round(min(1.0, interval.high), 3)
