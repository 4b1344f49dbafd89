"""Tables of numbers as records."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whence.errors import BadInput

__all__ = ["load_arrays", "read_npz"]


def load_arrays(X: Any, y: Any, ids: Sequence[Any] | None = None) -> list[dict[str, Any]]:
    """Records from a table of numbers and its targets, as scikit-learn takes them.

    Args:
        X: One example per row: an array, a tensor or a data frame of numbers; rows may have any shape.
        y: One target per row, or several. Integers, booleans and strings are labels for `Classification`, real numbers targets for
            `Regression`.
        ids: One per row; None takes the index of a data frame, or numbers the rows.

    Returns:
        Mappings with `inputs`, `label` or `target`, and `id`.

    Raises:
        BadInput: If lengths differ, or X holds something other than numbers.

    >>> load_arrays([[0.0, 1.0], [2.0, 3.0]], [0, 1])[1]
    {'inputs': array([2., 3.]), 'label': np.int64(1), 'id': '1'}
    """
    rows, targets = np.asarray(X), np.asarray(y)
    if rows.dtype.kind not in "fiub":
        raise BadInput(
            found=f"a table of type {rows.dtype}",
            needed="numbers only",
            do="encode its other columns, with scikit-learn for instance",
        )
    index = getattr(X, "index", None)  # of a data frame; a list has a method of that name
    names = list(ids if ids is not None else range(len(rows)) if index is None or callable(index) else index)
    if not len(rows) == len(targets) == len(names):
        raise BadInput(
            found=f"{len(rows)} rows, {len(targets)} targets and {len(names)} ids",
            needed="as many of each",
            do="check the arrays",
        )
    # Models are of real numbers; the precision is that of the model when a batch is made.
    rows = rows if rows.dtype.kind == "f" else rows.astype(np.float32)
    field = "target" if targets.dtype.kind == "f" else "label"
    targets = targets.astype(np.int64) if targets.dtype.kind == "b" else targets
    return [{"inputs": row, field: target, "id": str(name)} for row, target, name in zip(rows, targets, names, strict=True)]


def read_npz(path: Path) -> Iterator[dict[str, Any]]:
    """Records from a file with the arrays `X`, `y` and, if there are any, `ids`.

    Yields:
        What `load_arrays` makes of them.

    Raises:
        ValueError: If there is no `X` or no `y`.
    """
    with np.load(path, allow_pickle=False) as found:
        if "X" not in found or "y" not in found:
            raise ValueError(f"arrays {', '.join(found)}, not X and y")
        yield from load_arrays(found["X"], found["y"], found.get("ids"))
