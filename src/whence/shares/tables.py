"""The tables that shares come from: one, those of a month, or those of several models.

Axes: M models, N training examples, L lines of the report.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whence.errors import BadInput
from whence.evaluate import load_table
from whence.evaluate.tables import checked
from whence.records import ScoreTable
from whence.settings import Several
from whence.shares.rules import Rule
from whence.shares.sources import Lines

__all__ = ["Tables", "tables_of"]


@dataclass(frozen=True)
class Tables:
    """Score tables of the same training examples.

    Args:
        tables: By name, in order.
        folders: Where those lie that were given as folders, by name.
        several: Whether they are of more queries or of more models; None for one.
        query_ids: Names of the queries: with several tables of queries, table and query id with a colon between.
    """

    tables: Mapping[str, ScoreTable]
    folders: Mapping[str, Path]
    several: Several | None
    query_ids: tuple[str, ...]

    @property
    def first(self) -> ScoreTable:
        """The first, whose examples, method and unit all share."""
        return next(iter(self.tables.values()))

    @property
    def method(self) -> str:
        """What made the scores."""
        return self.first.method

    @property
    def unit(self) -> str:
        """Of the scores."""
        return self.first.unit

    @property
    def notes(self) -> tuple[str, ...]:
        """What is known of the scores."""
        return tuple(self.first.notes)

    @property
    def train_ids(self) -> tuple[str, ...]:
        """Ids of the training examples."""
        return self.first.train_ids

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many examples each query was scored against."""
        return (len(self.train_ids),)

    @property
    def num_models(self) -> int:
        """How many models scored each query."""
        return len(self.tables) if self.several == "models" else 1

    def placed(self, query: int, rule: Rule, lines: Lines) -> tuple[np.ndarray, np.ndarray, float]:
        """Mean scores of a query, the line that each counts on, and the noise floor: 0 for none, and where it differs by example."""
        return rule.placed(self.of_query(query), lines)

    def without(self, model: int, query: int, rule: Rule, lines: Lines) -> tuple[np.ndarray, np.ndarray, float]:
        """The same without one of the models."""
        return rule.placed(np.delete(self.of_query(query), model, axis=0), lines)

    def rows(self, query: int) -> np.ndarray:
        """The training example of each score of a query."""
        return np.arange(len(self.train_ids))

    def of_query(self, query: int) -> np.ndarray:
        """Scores of a query by each model, shape (M, N), float64 from the float32 that files hold."""
        if self.several == "models":
            rows = [table.scores[query] for table in self.tables.values()]
        else:
            tables = iter(self.tables.values())
            table = next(tables)
            while query >= len(table.query_ids):
                query -= len(table.query_ids)
                table = next(tables)
            rows = [table.scores[query]]
        return torch.stack(rows).detach().cpu().float().double().numpy()


def tables_of(given: Any, several: Several | None) -> Tables:
    """Tables as people pass them, checked against each other.

    Args:
        given: A table or its folder, a sequence of them, or a mapping by name.
        several: What more than one is.

    Returns:
        The tables.

    Raises:
        BadInput: If there is none, they do not belong together, or it is not said what they are.
    """
    if isinstance(given, ScoreTable | str | Path):
        given = [given]
    if not isinstance(given, Mapping):
        given = {
            str(given_table) if isinstance(given_table, str | Path) else f"table {n}": given_table
            for n, given_table in enumerate(_distinct(given), start=1)
        }
    tables = {
        name: given_table if isinstance(given_table, ScoreTable) else load_table(given_table)
        for name, given_table in given.items()
    }
    folders = {name: Path(given_table) for name, given_table in given.items() if not isinstance(given_table, ScoreTable)}
    if not tables or (several is not None) != (len(tables) > 1):
        raise BadInput(
            found=f"{len(tables)} table(s)" + (f" and several={several!r}" if several else ""),
            needed="one table, or more and whether they are of more queries or of the same queries by other models",
            do="say several='queries' or several='models', with more than one table only",
        )
    for name, table in tables.items():
        checked(table)
        if several == "models" and table.is_weighted:
            raise BadInput(
                found=f"{name}, a table of {table.method} with the examples' weights multiplied into its scores, as one of several models",
                needed="one table of all models, since scores and weights are averaged apart",
                do="pass the table that `whence score --ensemble` or whence.pipeline.ensemble_table makes",
            )
    first = next(iter(tables.values()))
    shared = ("train_ids", "unit", "method", "query_ids")[: 4 if several == "models" else 3]
    for name, table in tables.items():
        for what in shared:
            if getattr(table, what) != getattr(first, what):
                raise BadInput(
                    found=f"other {what.replace('_', ' ')} in {name} than in {next(iter(tables))}",
                    needed="the same " + ", ".join(words.replace("_", " ") for words in shared) + ", in the same order",
                    do="score the same training examples with the same method for every table",
                )
    names = [f"{name}:{query}" for name, table in tables.items() for query in table.query_ids]
    return Tables(tables, folders, several, tuple(names) if several == "queries" else first.query_ids)


def _distinct(given: Sequence[Any]) -> list[Any]:
    """The same, refused if a folder is there twice.

    Raises:
        BadInput: If it is.
    """
    folders = [str(folder) for folder in given if isinstance(folder, str | Path)]
    if len(set(folders)) != len(folders):
        raise BadInput(
            found=f"{next(folder for folder in folders if folders.count(folder) > 1)} twice",
            needed="every table once, or it would count twice",
            do="leave the double out",
        )
    return list(given)
