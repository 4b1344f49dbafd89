"""Sizes that can be believed: scores brought to the unit of the measurement by a handful of retrained models."""

import math
from dataclasses import replace

from whence.errors import BadInput
from whence.evaluate.bank import Bank
from whence.evaluate.calibration import calibration
from whence.evaluate.lds import predicted
from whence.records import ScoreTable

__all__ = ["calibrated"]


def calibrated(table: ScoreTable, bank: Bank) -> ScoreTable:
    """A table whose scores are multiplied with what the measurement changes per unit of predicted change.

    One number for all of them: order and LDS stay, and so do signs. It is the slope of `calibration`, with its interval over subsets; a
    table that is judged by the same bank afterwards has a slope of 1 there by construction.

    Args:
        table: Scores of the bank's examples for its queries, or for some of them.
        bank: Models retrained on subsets; five or more, of halves of the data say.

    Returns:
        The table, with a note of the factor, its interval and what it stands on.

    Raises:
        BadInput: If the bank has too few subsets, ids do not fit, or no size follows from it: the interval holds 0.
    """
    shared = [name for name in bank.query_ids if name in set(table.query_ids)]
    if not shared:
        raise BadInput(
            found=f"a bank of other queries than the {len(table.query_ids):,} of {table.method!r}",
            needed="some in both",
            do="make a bank of queries that the table has, or score the bank's queries too",
        )
    of_bank = bank.of_queries(shared)
    result = calibration(predicted(table, of_bank), of_bank.actual_MQ)
    slope, unit = result.slope, bank.unit or "the bank's measurements"
    if not slope.low > 0 or not math.isfinite(slope.high):
        raise BadInput(
            found=f"a change of {slope.mean:.3g} per unit that {table.method!r} predicts, somewhere from {slope.low:.3g} to {slope.high:.3g}",
            needed="one that is above 0, to know sizes by",
            do="retrain on more subsets, or take the order alone",
        )
    note = (
        f"sizes: times {slope.mean:.3g}, somewhere from {slope.low:.3g} to {slope.high:.3g} (95 %), by what {len(shared):,} queries did in "
        f"{result.num_subsets:,} retrained models"
    )
    return replace(
        table,
        scores=table.scores * slope.mean,
        parts={name: part * slope.mean for name, part in table.parts.items()},
        tokens={name: part * slope.mean for name, part in table.tokens.items()},
        unit=unit,
        method=f"{table.method}, sizes by {result.num_subsets:,} retrained models",
        notes=(*table.notes, note),
    )
