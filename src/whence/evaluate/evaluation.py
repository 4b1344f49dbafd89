"""Several score tables against one bank: the comparison that `whence evaluate` prints.

Axes: Q queries.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from whence.errors import BadInput
from whence.evaluate.bank import Bank
from whence.evaluate.calibration import Calibration, calibration
from whence.evaluate.lds import Ceiling, Judge, Lds, predicted
from whence.evaluate.statistics import Interval
from whence.evaluate.tuning import judged_queries
from whence.records import ScoreTable

__all__ = ["Evaluation", "Row", "evaluate"]


@dataclass(frozen=True)
class Row:
    """One table's result.

    Args:
        method: Name and settings.
        lds: Linear datamodeling score.
        calibration: Measured change per unit of predicted change; None where every prediction is the same.
        behind: How far the LDS is behind the best row's, paired by bootstrap draw; None for the best.
        bytes_per_example: What its store keeps of each training example; None without a store.
        seconds: What the table took; None if not measured.
        is_tuned: Whether a hyper-parameter was chosen on other queries of the bank.
    """

    method: str
    lds: Lds
    calibration: Calibration | None
    behind: Interval | None
    bytes_per_example: float | None
    seconds: float | None
    is_tuned: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "method": self.method,
            **self.lds.to_dict(),
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "behind_best": None if self.behind is None else self.behind.to_dict(),
            "bytes_per_example": self.bytes_per_example,
            "seconds": self.seconds,
            "is_tuned": self.is_tuned,
        }


@dataclass(frozen=True)
class Evaluation:
    """All rows, best first, on the same queries.

    Args:
        rows: One per table.
        ceiling: Of the bank.
        num_subsets: Subsets in the bank.
        num_examples: Training examples.
        query_ids: Queries that were judged: those of the bank that no table was tuned on.
        fraction: Mean share of the examples that a subset keeps.
        unit: What the measurement is counted in.
    """

    rows: tuple[Row, ...]
    ceiling: Ceiling
    num_subsets: int
    num_examples: int
    query_ids: tuple[str, ...]
    fraction: float
    unit: str

    header = (
        "method",
        "LDS",
        "95 % interval",
        "of ceiling",
        "one seed",
        "behind best",
        "slope",
        "bytes per example",
        "seconds",
    )

    def cells(self) -> list[tuple[str, ...]]:
        """One row of text per method, to go under `header`."""
        return [
            (
                row.method + (" (tuned)" if row.is_tuned else ""),
                f"{row.lds.interval.mean:.3f}",
                f"{row.lds.interval.low:.3f} to {row.lds.interval.high:.3f}",
                "?" if math.isnan(row.lds.share) else f"{row.lds.share:.0%}",
                f"{row.lds.same_seed:.3f}",
                "" if row.behind is None else f"{row.behind.mean:.3f} [{row.behind.low:.3f}, {row.behind.high:.3f}]",
                "" if row.calibration is None else f"{row.calibration.slope.mean:.2g}",
                "" if row.bytes_per_example is None else f"{row.bytes_per_example:,.0f}",
                "" if row.seconds is None else f"{row.seconds:.1f}",
            )
            for row in self.rows
        ]

    def summary(self) -> str:
        """What the rows stand on, in a sentence or two."""
        truth = (
            f"{self.num_subsets} subsets with {self.fraction:.0%} of {self.num_examples:,} examples, "
            f"{self.ceiling.num_seeds} {'seed' if self.ceiling.num_seeds == 1 else 'seeds'} each, {len(self.query_ids):,} queries"
        )
        if math.isnan(self.ceiling.reachable):
            return f"{truth}. One seed: the noise ceiling is not known."
        on = "" if self.ceiling.num_repeated is None else f" on {self.ceiling.num_repeated} subsets that were retrained twice"
        return (
            f"{truth}. Two single runs agree by {self.ceiling.seed_to_seed:.3f}{on}; a perfect prediction would reach "
            f"{self.ceiling.reachable:.3f}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "rows": [row.to_dict() for row in self.rows],
            "summary": self.summary(),
            "num_subsets": self.num_subsets,
            "num_examples": self.num_examples,
            "num_seeds": self.ceiling.num_seeds,
            "query_ids": list(self.query_ids),
            "fraction": self.fraction,
            "unit": self.unit,
        }


def evaluate(tables: Sequence[ScoreTable], bank: Bank, *, draws: int = 1000, seed: int = 0) -> Evaluation:
    """Hold score tables against a bank of retrained models.

    All are judged on the same queries: those of the bank that none of them was tuned on.

    Args:
        tables: Scores of the bank's examples for its queries, from any system.
        bank: The truth.
        draws: Bootstrap draws for intervals.
        seed: Of the draws.

    Returns:
        The rows, best first.

    Raises:
        BadInput: If there is no table, two have the same method name, or no query is left.
    """
    names = [table.method for table in tables]
    queries = judged_queries(tables, bank)
    if not tables or len(set(names)) != len(names) or not queries:
        doubles = sorted({name for name in names if names.count(name) > 1})
        raise BadInput(
            found=f"{len(tables)} tables, {len(doubles)} names more than once {doubles[:2]}, {len(queries)} queries left to judge on",
            needed="a table or more, each with a method name of its own, and queries that none was tuned on",
            do="rename the doubles (the field method of table.json), or tune on fewer queries",
        )
    bank = bank.of_queries(queries)
    judge = Judge(bank, draws=draws, seed=seed)
    predictions = [predicted(table, bank) for table in tables]
    scored = [(table, prediction, judge.lds_of(prediction)) for table, prediction in zip(tables, predictions, strict=True)]
    scored.sort(key=lambda row: -row[2].interval.mean)
    rows = [_row(table, prediction, lds, scored[0][2], bank) for table, prediction, lds in scored]
    num_examples = bank.masks_MN.shape[1]
    return Evaluation(tuple(rows), judge.ceiling, len(bank.masks_MN), num_examples, queries, bank.fraction, bank.unit)


def _row(table: ScoreTable, predicted_MQ: Tensor, lds: Lds, best: Lds, bank: Bank) -> Row:
    varies = bool((predicted_MQ != predicted_MQ[:1]).any())
    return Row(
        table.method,
        lds,
        calibration(predicted_MQ, bank.actual_MQ) if varies else None,
        None if lds is best else best.minus(lds),
        table.bytes_per_example,
        table.seconds,
        bool(table.tuned_on),
    )
