"""Score tables as every measure takes them: finite, whole, and matched by id."""

from collections.abc import Sequence

import torch
from torch import Tensor

from whence.errors import BadInput, NonFinite
from whence.records import ScoreTable

__all__ = ["aligned", "checked"]


def checked(table: ScoreTable) -> Tensor:
    """The scores in float64, on the CPU.

    Args:
        table: Any table.

    Returns:
        Shape (queries, train).

    Raises:
        BadInput: If the shape is not that of the ids, there are no scores, an id repeats, or weights are not multiplied in.
        NonFinite: If a score is NaN or infinite.
    """
    shape = (len(table.query_ids), len(table.train_ids))
    if tuple(table.scores.shape) != shape or 0 in shape:
        raise BadInput(
            found=f"scores of shape {tuple(table.scores.shape)} for {shape[0]} query and {shape[1]} train ids",
            needed="one row per query and one column per training example, at least one of each",
            do="check what made the table",
        )
    for name, ids in (("query", table.query_ids), ("train", table.train_ids)):
        if len(set(ids)) != len(ids):
            raise BadInput(
                found=f"a table whose {name} ids repeat",
                needed="every id once",
                do="number the examples, or leave the doubles out",
            )
    if table.weights is not None:
        raise BadInput(
            found=f"a table of {table.method} with weights that are not multiplied in",
            needed="scores",
            do="add it to an ensemble and take its table, or make it with weighted=True",
        )
    if not bool(torch.isfinite(table.scores).all()):
        raise NonFinite(
            found=f"a NaN or infinite score in the table of {table.method}",
            needed="finite scores",
            do="score again with more damping or in a wider type",
        )
    return table.scores.detach().cpu().double()


def aligned(table: ScoreTable, query_ids: Sequence[str], train_ids: Sequence[str]) -> Tensor:
    """The scores in the order of given ids.

    Args:
        table: The table to bring in order.
        query_ids: In the order that is wanted.
        train_ids: The same for the training examples.

    Returns:
        Shape (queries, train), float64.

    Raises:
        BadInput: If the table does not have exactly these ids.
    """
    scores = checked(table)
    columns = []
    for name, mine, theirs in (
        ("query", table.query_ids, query_ids),
        ("train", table.train_ids, train_ids),
    ):
        if set(mine) != set(theirs):
            example = min(set(mine) ^ set(theirs))
            raise BadInput(
                found=f"{len(mine)} {name} ids in the table of {table.method} and {len(theirs)} to match, {len(set(mine) & set(theirs))} "
                f"of them in both ({example!r} is not)",
                needed=f"the same {name} examples on both sides",
                do="score exactly the examples that are compared",
            )
        index_of = {key: index for index, key in enumerate(mine)}
        columns.append(torch.tensor([index_of[key] for key in theirs]))
    return scores[columns[0]][:, columns[1]]
