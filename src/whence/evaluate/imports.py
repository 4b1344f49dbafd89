"""Banks that others made, from their masks and losses.

Axes: M subsets, S seeds, N training examples, Q queries, K examples in a subset.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from whence.errors import BadInput, UnknownOption
from whence.evaluate.bank import Bank, Values
from whence.plain_files import open_plain
from whence.store.strict_arrays import read_npy
from whence.store.tensor_bytes import tensors_of

__all__ = ["import_bank", "read_array"]


def import_bank(
    subsets: Tensor,
    outcomes: Tensor,
    *,
    values: Values,
    num_examples: int | None = None,
    train_ids: Sequence[str] | None = None,
    query_ids: Sequence[str] | None = None,
    unit: str = "",
) -> Bank:
    """Make a bank of arrays as kronfluence, TRAK and dattri keep them.

    Args:
        subsets: Masks (M, N) of zeros and ones (kronfluence, TRAK), or indices of the kept examples (M, K) (dattri).
        outcomes: Loss or measurement of each query after training: (M, Q), or (M, S, Q) with several seeds.
        values: Whether `outcomes` are losses or measurements (margins, log-probabilities); nothing in the numbers tells, and the sign of
            every correlation hangs on it.
        num_examples: N, needed for indices only.
        train_ids: Ids of the examples in the order of the columns; their numbers if None.
        query_ids: Ids of the queries; their numbers if None.
        unit: What the outcomes are counted in.

    Returns:
        The bank.

    Raises:
        BadInput: If the arrays do not fit each other, or indices come without `num_examples`.
        UnknownOption: If `values` is neither.
    """
    if values not in ("loss", "measurement"):
        raise UnknownOption(found=f"values={values!r}", needed="one of: loss, measurement", do="say which, for the sign")
    masks_MN = _masks(subsets, num_examples)
    outcomes = outcomes[:, None] if outcomes.ndim == 2 else outcomes
    if outcomes.ndim != 3 or len(outcomes) != len(masks_MN):
        raise BadInput(
            found=f"{len(masks_MN)} subsets and outcomes of shape {tuple(outcomes.shape)}",
            needed="outcomes (subsets, queries) or (subsets, seeds, queries)",
            do="transpose or reshape the outcomes",
        )
    sign = -1.0 if values == "loss" else 1.0
    return Bank(
        masks_MN,
        outcomes.double() * sign,
        tuple(range(outcomes.shape[1])),
        tuple(train_ids or map(str, range(masks_MN.shape[1]))),
        tuple(query_ids or map(str, range(outcomes.shape[2]))),
        unit,
        None,
        {"imported": True},
    )


def read_array(path: str | Path, name: str | None = None) -> Tensor:
    """An array from a .npy, .npz, .pt (tensors only) or .safetensors file; nothing is unpickled.

    Args:
        path: The file.
        name: Which array, in a file with several.

    Raises:
        BadInput: If it cannot be read, or it has several arrays and none was named.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            with open_plain(path, is_named=True) as file:
                array = tensors_of(file)
        elif path.suffix == ".npy":
            array = read_npy(path, is_named=True)
        elif path.suffix in (".pt", ".pth"):
            array = torch.load(path, map_location="cpu", weights_only=True)
        else:
            array = np.load(path, allow_pickle=False)
    except Exception as error:  # each of the formats fails in its own way
        raise BadInput(
            found=f"{path}, which cannot be read ({str(error).splitlines()[0] if str(error) else type(error).__name__})",
            needed="a .npy, .npz, .safetensors or .pt file of plain arrays",
            do="save the array with numpy.save",
        ) from error
    if not isinstance(array, np.ndarray | Tensor):
        arrays = dict(array)
        if name not in arrays and len(arrays) != 1:
            raise BadInput(
                found=f"{len(arrays)} arrays in {path}: {', '.join(list(arrays)[:6])}",
                needed="the name of one" if name is None else f"one named {name!r}",
                do=f"write {path}:NAME",
            )
        array = arrays[name] if name in arrays else next(iter(arrays.values()))
    return torch.as_tensor(array)


def _masks(subsets: Tensor, num_examples: int | None) -> Tensor:
    is_mask = subsets.ndim == 2 and (subsets.dtype == torch.bool or bool(((subsets == 0) | (subsets == 1)).all()))
    if is_mask:
        return subsets.bool()
    whole = subsets.long()
    if (
        subsets.ndim != 2
        or num_examples is None
        or bool((whole != subsets).any())
        or not 0 <= whole.min() <= whole.max() < num_examples
    ):
        raise BadInput(
            found=f"subsets of shape {tuple(subsets.shape)} with values from {subsets.min()} to {subsets.max()}, num_examples {num_examples}",
            needed="masks (subsets, examples) of zeros and ones, or indices of kept examples together with num_examples",
            do="pass num_examples (--examples), or make masks of them",
        )
    return torch.zeros(len(whole), num_examples, dtype=torch.bool).scatter_(1, whole, True)
