"""Scores averaged over several models: seeds, checkpoints."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from whence.errors import BadInput
from whence.records import ScoreTable

__all__ = ["mean_table"]


def mean_table(tables: Sequence[ScoreTable]) -> ScoreTable:
    """Mean of the scores of several models trained alike (the ensembles of Park et al. 2023, section 3.2).

    Args:
        tables: Of one method, for the same queries and examples in the same order.

    Returns:
        A table whose method says how many models; seconds and bytes add up, queries that any was tuned on stay marked.

    Raises:
        BadInput: If there are none, or their ids differ.
    """
    if not tables or len({(table.query_ids, table.train_ids) for table in tables}) != 1:
        raise BadInput(
            found=f"{len(tables)} tables, not all with the same ids in the same order",
            needed="one or more that do",
            do="score the same data with every model",
        )
    sizes, times = [table.bytes_per_example for table in tables], [table.seconds for table in tables]
    return replace(
        tables[0],
        scores=torch.stack([table.scores for table in tables]).mean(0),
        method=f"{tables[0].method}, {len(tables)} models",
        tuned_on=tuple(dict.fromkeys(query for table in tables for query in table.tuned_on)),
        bytes_per_example=None if None in sizes else sum(size for size in sizes if size is not None),
        seconds=None if None in times else sum(time for time in times if time is not None),
    )
