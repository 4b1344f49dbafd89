"""What was chosen, example by example, in words and on disk.

Axes: N training examples.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from whence.errors import BadInput, StoreCorrupt, UnknownOption
from whence.records import ScoreTable
from whence.settings import By
from whence.store.file_sets import check_set, path_in_set, write_set
from whence.store.files import read_json, read_lines
from whence.strict_json import fitted, is_plain, record_of

__all__ = ["CRITERIA", "Decision", "Selection", "criterion_of", "load_selection"]

# Of an array that is written as text, about ten characters each.
_MOST_NUMBERS = 4096


@dataclass(frozen=True)
class Criterion:
    """What examples are ranked by.

    Args:
        prefer: Which end is worth keeping, unless somebody says otherwise.
        meaning: What a value is, for the summary.
    """

    prefer: Literal["high", "low"]
    meaning: str


CRITERIA: Mapping[str, Criterion] = {
    "influence": Criterion("high", "predicted change of the mean validation measurement if the example counted twice"),
    "self-influence": Criterion("low", "what the example does to its own loss; high for atypical examples and wrong labels"),
    "loss": Criterion("low", "the example's own loss; high for what the model fits worst"),
    "knn-shapley": Criterion(
        "high", "what its label adds to a nearest-neighbour classifier of the validation set (Shapley value)"
    ),
    "random": Criterion("high", "a random draw"),
}
"""What examples can be ranked by."""

# By what the values of a table are.
_CRITERION_OF_VALUES: Mapping[str, By] = {
    "scores": "influence", "self-influence": "self-influence", "loss": "loss", "knn-shapley": "knn-shapley", "random": "random",
}  # fmt: skip


def criterion_of(table: ScoreTable, by: By | None) -> By:
    """What a table ranks examples by.

    Args:
        table: Values.
        by: What somebody wants to rank by; None for what the table has.

    Returns:
        A name in `CRITERIA`.

    Raises:
        BadInput: If the table has other values than are wanted.
        UnknownOption: If it says that its values are something that there is not.
    """
    if table.values not in _CRITERION_OF_VALUES:
        raise UnknownOption(
            found=f"a table with values={table.values!r}",
            needed=f"one of: {', '.join(_CRITERION_OF_VALUES)}",
            do="say what its numbers are",
        )
    has = _CRITERION_OF_VALUES[table.values]
    if by not in (None, has):
        wanted = next(values for values, name in _CRITERION_OF_VALUES.items() if name == by)
        raise BadInput(
            found=f"by={by!r} for a table of {len(table.query_ids)} x {len(table.train_ids)} values that are {table.values!r}",
            needed=f"values that are {wanted!r}, or by={has!r}",
            do=f"leave by out, or make the table with value_table(..., {by!r}); one made by hand says values={wanted!r}",
        )
    return has


@dataclass(frozen=True)
class Decision:
    """What became of one example.

    Args:
        id: Of the example.
        decision: "keep" or "drop".
        weight: In training: 1 or 0, or a number in between or above when data is re-weighted.
        value: What it was ranked by.
        rank: 1 for what is kept first, over all examples.
        reason: Why, in words.
        group: Its class or source, if data was balanced by it.
        tokens: Its length, if known.
        duplicate_of: Id of the example that is kept in its place.
    """

    id: str
    decision: Literal["keep", "drop"]
    weight: float
    value: float
    rank: int
    reason: str
    group: str | None = None
    tokens: int | None = None
    duplicate_of: str | None = None


@dataclass(frozen=True)
class Selection:
    """A decision for every training example, in the order of the data.

    Args:
        by: What examples were ranked by, a name in `CRITERIA`.
        unit: Of the values.
        method: How the values were made.
        budget: What was asked for, in words.
        decisions: One per training example.
        counts: What the budget was counted in.
        is_weighted: Whether what is kept has weights of its own.
        notes: What else a reader has to know of the values, such as how damping was chosen.
    """

    by: str
    unit: str
    method: str
    budget: str
    decisions: tuple[Decision, ...]
    counts: Literal["examples", "tokens"] = "examples"
    is_weighted: bool = False
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.decisions)

    @cached_property
    def keep(self) -> Tensor:
        """True for what is kept, shape (N,): the mask that a training function takes."""
        return torch.tensor([decision.decision == "keep" for decision in self.decisions])

    @cached_property
    def weights(self) -> Tensor:
        """Weight of every example in training, shape (N,), float64; 0 for what is dropped."""
        return torch.tensor([decision.weight for decision in self.decisions], dtype=torch.float64)

    @property
    def dropped(self) -> list[int]:
        """Places of what is dropped."""
        return torch.nonzero(~self.keep).flatten().tolist()

    def predicted_change(self) -> float | None:
        """What the validation measurement is predicted to gain on average: the sum of (weight - 1) x value; None if not by influence.

        To first order, so the larger the change of the data the less it says; only scores in the unit of a measurement make it a forecast.
        """
        if self.by != "influence":
            return None
        values_N = torch.tensor([decision.value for decision in self.decisions], dtype=torch.float64)
        return float(((self.weights - 1) * values_N).sum())

    def summary(self) -> dict[str, Any]:
        """Counts, plain numbers for JSON."""
        keepers = [decision for decision in self.decisions if decision.decision == "keep"]
        summary: dict[str, Any] = {
            "by": self.by,
            "meaning": CRITERIA[self.by].meaning,
            "unit": self.unit,
            "method": self.method,
            "notes": list(self.notes),
            "budget": self.budget,
            "counts": self.counts,
            "examples": len(self),
            "kept": len(keepers),
            "dropped": len(self) - len(keepers),
            "duplicates_dropped": sum(decision.duplicate_of is not None for decision in self.decisions),
        }
        if all(decision.tokens is not None for decision in self.decisions):
            summary |= {
                "tokens": sum(decision.tokens or 0 for decision in self.decisions),
                "tokens_kept": sum(decision.tokens or 0 for decision in keepers),
            }
        if self.by == "influence":
            summary |= {
                "kept_though_harmful": sum(decision.value < 0 for decision in keepers),
                "dropped_though_helpful": sum(
                    decision.value > 0 and decision.duplicate_of is None
                    for decision in self.decisions
                    if decision.decision == "drop"
                ),
                "predicted_change": self.predicted_change(),
            }
        if self.is_weighted:
            total = float(self.weights.sum())
            summary |= {
                "effective_examples": total**2 / float(self.weights.square().sum()),
                "largest_weight": float(self.weights.max()),
            }
        if self.decisions[0].group is not None:
            of_all = Counter(decision.group for decision in self.decisions)
            of_kept = Counter(decision.group for decision in keepers)
            summary["groups"] = {
                str(name): {"examples": of_all[name], "kept": of_kept[name]} for name in sorted(of_all, key=str)
            }
        return summary

    def save(self, folder: str | Path, *, records: Sequence[Any] | None = None) -> None:
        """Write `list.jsonl`, one decision per line in the order of the data, and `summary.json`.

        Args:
            folder: Where they go.
            records: The training data, one record per decision in the same order: those that are kept go into `kept.jsonl` as they are, ready
                to train on, arrays and tensors of at most 4,096 numbers as lists. If one is kept that JSON does not hold, such as a larger
                array, there is no such file.

        Raises:
            BadInput: If there are not as many records as decisions.
        """
        folder = Path(folder)
        lines = (_line(_without_none(decision)) for decision in self.decisions)
        parts: dict[str, Iterable[bytes]] = {"list.jsonl": lines}
        if records is not None:
            if len(records) != len(self):
                raise BadInput(
                    found=f"{len(records):,} records for {len(self):,} decisions",
                    needed="the record of every example, in the order of the decisions",
                    do="pass the data that was selected from",
                )
            pairs = zip(records, self.decisions, strict=True)
            chosen = [_as_lists(record) for record, decision in pairs if decision.decision == "keep"]
            if all(isinstance(record, Mapping) and is_plain(record) for record in chosen):
                parts["kept.jsonl"] = (_line(record) for record in chosen)
        write_set(folder, parts, "summary.json", {**self.summary(), "is_weighted": self.is_weighted})


# What `summary.json` repeats of a selection, beside counts.
_FACTS = {"by": str, "unit": str, "method": str, "budget": str, "counts": Literal["examples", "tokens"], "is_weighted": bool}


def load_selection(folder: str | Path) -> Selection:
    """What `Selection.save` wrote.

    Args:
        folder: With list.jsonl and summary.json.

    Returns:
        The selection.

    Raises:
        BadInput: If a file is missing or is not what was written.
    """
    folder = Path(folder)
    try:
        facts = dict(read_json(path_in_set(folder, "summary.json")))
        check_set(folder, fitted(dict[str, str], facts.get("files", {}), "files"))
        decisions = tuple(record_of(Decision, line) for line in read_lines(path_in_set(folder, "list.jsonl")))
        facts_read = {name: fitted(kind, facts[name], name) for name, kind in _FACTS.items()}
        notes = fitted(tuple[str, ...], facts.get("notes", []), "notes")
        return _checked(Selection(**facts_read, decisions=decisions, notes=notes))
    except (OSError, ValueError, TypeError, KeyError, StoreCorrupt) as error:
        raise BadInput(
            found=f"{folder}, which holds no selection ({error.found if isinstance(error, StoreCorrupt) else error})",
            needed="list.jsonl and summary.json, as `whence select` writes them",
            do="check the path, or select again",
        ) from error


def _checked(selection: Selection) -> Selection:
    """A selection as `Selection.save` has them.

    Raises:
        ValueError: If it is not.
    """
    if not selection.decisions or selection.by not in CRITERIA or any(decision.weight < 0 for decision in selection.decisions):
        raise ValueError("no decisions, or such as no selection makes")
    return selection


def _without_none(decision: Decision) -> dict[str, Any]:
    return {name: value for name, value in asdict(decision).items() if value is not None}


def _as_lists(value: Any) -> Any:
    """A record with its small arrays and tensors as lists; what a list would not be equal to stays as it is."""
    if isinstance(value, dict):
        return {name: _as_lists(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_as_lists(item) for item in value]
    if isinstance(value, Tensor):
        return value.tolist() if value.numel() <= _MOST_NUMBERS else value
    # Dates and objects turn into something else, and so do masked entries.
    is_array = isinstance(value, np.ndarray | np.generic) and not isinstance(value, np.ma.MaskedArray)
    return value.tolist() if is_array and value.dtype.kind in "biufU" and value.size <= _MOST_NUMBERS else value


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
