"""From whatever people pass as data to its records, one after the other.

Data is read as exactly the records that are meant, or it is refused: batches of a loader, columns of a table and the letters of a text are
no records, and a dataset has as many as it says.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler, default_collate

from whence.errors import BadInput, WhenceError
from whence.internals import COLLATES

__all__ = ["records_in"]

_FRAMES = {"pandas", "polars", "dask", "pyspark", "cudf", "modin"}


def records_in(data: Any) -> Iterator[Any]:
    """The records of whatever is passed as data.

    Args:
        data: Anything that can be iterated over, or that has a length and gives a record for a number, as PyTorch's datasets do. A
            `DataLoader` that only shuffles and stacks stands for its dataset, in that one's order.

    Returns:
        They, one after the other.

    Raises:
        BadInput: If that would give something other than records: the batches of any other loader, the columns of a data frame, the letters
            of a text, the keys of a mapping, the lines of a file. While it is read, if a record cannot be had, or there are more or fewer
            than the length says.
    """
    data = _single(data)
    refusal = _refusal(data)
    if refusal is not None:
        found, do = refusal
        raise BadInput(found=f"{found} as data", needed="a list of records, or a dataset that gives one at a time", do=do)
    return _counted(data)


def _single(data: Any) -> Any:
    """The dataset of a loader that takes every example of it once and puts them together in the plain way; other data as it is."""
    if not isinstance(data, DataLoader) or not _gives_batches(data):
        return data
    sampler: Any = data.sampler
    dataset: Any = data.dataset
    is_plain = type(data.batch_sampler) is BatchSampler and type(sampler) in (SequentialSampler, RandomSampler)
    is_whole = is_plain and not getattr(sampler, "replacement", False) and len(sampler) == len(dataset)
    is_stream = isinstance(dataset, IterableDataset)
    return dataset if data.collate_fn is default_collate and (is_stream or is_whole) else data


def _refusal(data: Any) -> tuple[str, str] | None:
    """What data is that gives no records, and what to do instead; None for data that may."""
    kind = f"a {type(data).__name__}"
    if isinstance(data, Mapping):
        keys = ", ".join(map(str, list(data)[:4]))
        return f"a mapping with the keys {keys}", "pick one split, such as data['train'], or put a single record into a list"
    if isinstance(data, str | bytes | bytearray):
        return "one string", "put it into a list; to read a file use whence.load_records"
    if isinstance(data, Path | io.IOBase):
        return f"a file ({kind})", "read it with whence.load_records"
    if _gives_batches(data) or _gives_batches(getattr(data, "iterable", None)):  # the latter under a bar of tqdm
        return (
            f"{kind}, which samples or puts together in its own way and gives batches,",
            "pass its dataset, such as loader.dataset",
        )
    if _is_table(data):
        return (
            f"a table ({kind})",
            "pass its rows, such as frame.to_dict('records') or table.to_pylist(), or use whence.load_arrays",
        )
    if isinstance(data, set | frozenset):
        return f"{kind}, which has no order,", "pass a list"
    if (
        isinstance(data, tuple)
        and data
        and all(isinstance(part, np.ndarray | Tensor | list) or _is_table(part) for part in data)
    ):
        return (
            f"a tuple of {len(data)} arrays or lists",
            "pass whence.load_arrays(X, y) for a table and its targets, or a list if each part is a record of its own",
        )
    if isinstance(data, np.ndarray | Tensor) and data.ndim == 0:
        return f"{kind} without axes", "pass a list of records"
    by_number = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if isinstance(data, type) or not (hasattr(data, "__iter__") or by_number):
        is_function = callable(data) and not hasattr(data, "__getitem__")
        return kind, "call it, and pass what it returns" if is_function else "give it a __len__, or pass a list"
    return None


def _gives_batches(data: Any) -> bool:
    """Whether it is a loader that puts examples together, PyTorch's or one like it, or one that is being read."""
    if isinstance(data, DataLoader):
        return data.batch_sampler is not None
    like_one = hasattr(data, "dataset") and (hasattr(data, "collate_fn") or hasattr(data, "batch_size"))
    return (like_one and not hasattr(data, "__getitem__")) or bool(getattr(data, COLLATES, False))


def _is_table(data: Any) -> bool:
    """Whether it is a data frame or an Arrow table, over whose columns one would go."""
    roots = {kind.__module__.split(".")[0] for kind in type(data).__mro__}
    return "pyarrow" in roots or (bool(roots & _FRAMES) and hasattr(data, "columns"))


def _counted(data: Any) -> Iterator[Any]:
    """The records, held against the length that data says it has.

    Yields:
        A record.

    Raises:
        BadInput: If one cannot be had, or there are more or fewer.
    """
    expected = _length(data)
    if not hasattr(data, "__iter__"):
        for number in range(expected or 0):
            yield _read(data, number, lambda: data[number])  # noqa: B023, called at once
        return
    records, end, number = _read(data, 0, lambda: iter(data)), object(), 0
    while (record := _read(data, number, lambda: next(records, end))) is not end:
        if number == expected:
            raise BadInput(**_other_length(data, expected, "more"))
        yield record
        number += 1
    if expected is not None and number < expected:
        raise BadInput(**_other_length(data, expected, f"{number:,}"))


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def _read(data: Any, number: int, take: Callable[[], Any]) -> Any:
    try:
        return take()
    except (WhenceError, MemoryError):
        raise
    except Exception as error:  # a dataset is somebody's program, and fails as that does
        line = (str(error).strip().splitlines() or [""])[0][:160]
        raise BadInput(
            found=f"record {number} of a {type(data).__name__} that cannot be had ({type(error).__name__}: {line})",
            needed="data that gives every record it says it has",
            do="mend it, or leave that record out of it",
        ) from error


def _other_length(data: Any, expected: int | None, count: str) -> dict[str, str]:
    return {
        "found": f"a {type(data).__name__} of length {expected:,} that gives {count} records",
        "needed": "as many records as its length says",
        "do": "mend its __len__ or its __iter__",
    }
