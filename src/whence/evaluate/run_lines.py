"""Banks that others published as lines of JSON, one retrained model a line.

Axes: M runs, N training examples, Q queries.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from whence.errors import BadInput
from whence.evaluate.bank import Bank, Values
from whence.evaluate.imports import import_bank
from whence.plain_files import open_plain
from whence.strict_json import fitted, parse_json

__all__ = ["import_run_lines"]


def import_run_lines(
    path: str | Path,
    *,
    values: Values = "loss",
    num_examples: int | None = None,
    train_ids: Sequence[str] | None = None,
    query_ids: Sequence[str] | None = None,
    unit: str = "",
) -> Bank:
    """Make a bank of a file of runs, as STRIDE publishes them (arXiv 2606.05165; `CausalNLP/stride-lds` on the Hugging Face hub).

    Each line is an object with `train_subset`, the indices of the examples that were trained on, and `test_loss`, the loss of each query;
    `train_subset_global`, if it is there, names the same examples, and these names are the bank's ids. A line with `_meta` is left out.

    Args:
        path: The file, of lines of JSON.
        values: Whether `test_loss` holds losses, as the name says, or measurements.
        num_examples: N; None for the number of `train_ids`, or as many as the lines' indices come to.
        train_ids: Ids of the examples by index; None for the names in the file, or the indices.
        query_ids: Ids of the queries; their numbers if None.
        unit: What the losses are counted in.

    Returns:
        The bank, one seed a subset.

    Raises:
        BadInput: If a line is no such run, or runs do not fit each other.
    """
    runs = list(_runs(Path(path)))
    if not runs:
        raise BadInput(found=f"no runs in {path}", needed="lines of JSON with train_subset and test_loss", do="check the file")
    indices = {index for subset, _, _ in runs for index in subset}
    count = num_examples or (len(train_ids) if train_ids is not None else 1 + max(indices))
    if max(indices) >= count or len({len(losses) for _, _, losses in runs}) > 1:
        raise BadInput(
            found=f"runs in {path} on examples up to number {max(indices):,}, with {_numbers({len(losses) for _, _, losses in runs})} losses",
            needed=f"examples from 0 to {count - 1:,}, and a loss of the same queries in every run",
            do="correct --examples or --data, or the file",
        )
    masks_MN = torch.zeros(len(runs), count, dtype=torch.bool)
    for mask_N, (subset, _, _) in zip(masks_MN, runs, strict=True):
        mask_N[list(subset)] = True
    losses_MQ = torch.tensor([losses for _, _, losses in runs], dtype=torch.float64)
    return import_bank(
        masks_MN, losses_MQ,
        values=values, train_ids=train_ids or _named(Path(path), runs, count), query_ids=query_ids, unit=unit,
    )  # fmt: skip


_Run = tuple[tuple[int, ...], tuple[int, ...] | None, tuple[float, ...]]


def _runs(path: Path) -> list[_Run]:
    """Places, names and losses of each line.

    Raises:
        BadInput: If the file cannot be read, or a line is no run.
    """
    runs, lines = [], 0
    try:
        with open_plain(path, is_named=True) as file:
            for line in file:
                lines += 1
                run = _run(parse_json(line)) if line.strip() else None
                runs += [run] if run is not None else []
    except (OSError, KeyError, TypeError, ValueError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise BadInput(
            found=f"{path}, of which line {max(lines, 1):,} is no run: {why}",
            needed="lines of JSON with train_subset and test_loss",
            do="check the file",
        ) from error
    return runs


def _run(content: Any) -> _Run | None:
    """A line's run; None for one about the file.

    Raises:
        KeyError: If a part is missing.
        TypeError: If one has another type.
        ValueError: If they do not fit each other.
    """
    content = fitted(Mapping[str, Any], content, "it")
    if "_meta" in content:
        return None
    subset = fitted(tuple[int, ...], content["train_subset"], "train_subset")
    names = fitted(tuple[int, ...] | None, content.get("train_subset_global"), "train_subset_global")
    losses = fitted(tuple[float, ...], content["test_loss"], "test_loss")
    if not subset or min(subset) < 0:
        raise ValueError("train_subset without indices, or with one below 0")
    if not losses or (names is not None and len(names) != len(subset)):
        raise ValueError("no losses, or not one name for each index")
    return subset, names, losses


def _named(path: Path, runs: Sequence[_Run], count: int) -> list[str] | None:
    """Ids by index from the names in the file; None if it has none.

    Raises:
        BadInput: If an example has two names, or none.
    """
    names: dict[int, int] = {}
    for subset, given, _ in runs:
        for index, name in zip(subset, given or (), strict=False):
            if names.setdefault(index, name) != name:
                raise BadInput(
                    found=f"two names of example {index:,} in {path}: {names[index]:,} and {name:,}",
                    needed="one name for each index",
                    do="correct the file, or pass --data",
                )
    if names and len(names) < count:
        raise BadInput(
            found=f"{count - len(names):,} of {count:,} examples that no run of {path} was trained on, which so have no name",
            needed="ids of all examples",
            do="pass --data with the pool, in the order of its indices",
        )
    return [str(names[index]) for index in range(count)] if names else None


def _numbers(counts: set[int]) -> str:
    return " and ".join(f"{count:,}" for count in sorted(counts)[:2])
