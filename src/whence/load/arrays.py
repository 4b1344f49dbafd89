"""Tables of numbers as records."""

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whence.errors import BadInput
from whence.load.unpacked import check_zip

__all__ = ["load_arrays", "read_npz"]

# Arrays of a file of images, as diffusion models take them.
_OF_IMAGES = {"image", "label", "condition", "null_label", "null_condition", "trajectory", "steps", "ids", "source"}


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
        BadInput: If lengths differ, X holds something other than numbers, or the rows of two data frames are in another order.

    >>> load_arrays([[0.0, 1.0], [2.0, 3.0]], [0, 1])[1]
    {'inputs': array([2., 3.]), 'label': np.int64(1), 'id': '1'}
    """
    rows, targets = _array("X", X), _array("y", y)
    if rows.dtype.kind not in "fiub":
        raise BadInput(
            found=f"a table of type {rows.dtype}",
            needed="numbers only",
            do="encode its other columns, with scikit-learn for instance",
        )
    index, other = _index(X), _index(y)
    if index is not None and other is not None and index != other and set(index) == set(other):
        raise BadInput(
            found="a table and targets with the same index in another order",
            needed="the same rows in the same order",
            do="join them by their index first, or pass y.to_numpy() if they are in one order",
        )
    if isinstance(ids, str):
        raise BadInput(found="one string as ids", needed="one id per row", do="pass a list")
    names = list(ids if ids is not None else range(len(rows)) if index is None else index)
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


def _array(name: str, values: Any) -> np.ndarray:
    """What NumPy makes of it.

    Raises:
        BadInput: If that is nothing with rows.
    """
    try:
        # A tensor's own: NumPy cannot look at one that needs a gradient.
        array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    except (ValueError, TypeError, RuntimeError) as error:
        line = (str(error).splitlines() or [""])[0][:160]
        raise BadInput(found=f"a {name} that is no array ({line})", needed="rows of equal lengths", do="convert it") from error
    if isinstance(values, np.ma.MaskedArray) and bool(np.ma.getmaskarray(values).any()):
        raise BadInput(found=f"masked entries in {name}", needed="all of them", do="fill them, or drop their rows")
    if not array.ndim:
        raise BadInput(found=f"a {name} without rows ({type(values).__name__})", needed="an array", do="convert it")
    return array


def _index(values: Any) -> list[Any] | None:
    index = getattr(values, "index", None)  # of a data frame; a list has a method of that name
    return None if index is None or callable(index) else list(index)


def read_npz(path: Path) -> Iterator[dict[str, Any]]:
    """Records from a file with the arrays `X`, `y` and, if there are any, `ids`; or `image` and what else images have.

    Yields:
        What `load_arrays` makes of them; of images mappings with a row of each array, `id` for that of `ids`.

    Raises:
        ValueError: If there is no `X` or no `y` and no `image`, or the file is damaged.
    """
    try:
        if zipfile.is_zipfile(path):
            check_zip(path)
        opened = np.load(path, allow_pickle=False)
        arrays = {name: opened[name] for name in opened} if isinstance(opened, np.lib.npyio.NpzFile) else None
    except Exception as error:  # a damaged archive fails in as many ways as there are bytes in it
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from error
    if arrays is None:
        raise ValueError("one array, not a file of several")
    if "image" in arrays:
        yield from _images(arrays)
        return
    if "X" not in arrays or "y" not in arrays:
        raise ValueError(f"arrays {', '.join(arrays)}, not X and y")
    ids = arrays.get("ids")
    yield from load_arrays(arrays["X"], arrays["y"], None if ids is None else list(ids))


def _images(arrays: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """Records of images, with a row of every array.

    Yields:
        One mapping for each image.

    Raises:
        ValueError: If there is an array that images do not have, or one of another length.
    """
    unknown = sorted(arrays.keys() - _OF_IMAGES)
    lengths = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if unknown or len(set(lengths.values())) > 1:
        wrong = f"an array {unknown[0]}" if unknown else f"arrays of the lengths {', '.join(map(str, lengths.values()))}"
        raise ValueError(f"{wrong}; image goes with {', '.join(sorted(_OF_IMAGES - {'image'}))}, all of one length")
    for number in range(lengths["image"]):
        record = {name: array[number] for name, array in arrays.items() if name not in ("ids", "source")}
        name = {"id": str(arrays["ids"][number])} if "ids" in arrays else {}
        source = {"source": str(arrays["source"][number])} if "source" in arrays else {}
        yield record | name | source
