"""The one door to what PyTorch and its neighbours have no public name for, with what does instead where a name is gone.

Such a name may change with any release. So each is looked up when it is first needed, and tried: where it is missing, or does something else,
something public takes its place, slower or coarser, and a warning says so once. `tests/test_internals.py` sees to it that no other module
has private names of others, and runs with all of them gone.

Axes: M rows, K what is summed over, N columns.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "BATCH_NORMS",
    "CHECKPOINTING",
    "COLLATES",
    "COMPILED",
    "COMPILED_CALL",
    "DROPOUTS",
    "FORMER_FORWARD",
    "HOOK",
    "UNSPLIT",
    "int8_product",
    "is_transforming",
    "lightning_source",
    "linear_product",
    "map_tree",
    "quiet_ray",
    "taken_for_parameter",
    "version_of",
    "view_base",
]

# Attributes that libraries put on their objects. An object without one is taken as one that the library never touched.
CHECKPOINTING = "_gradient_checkpointing_func"  # transformers: what runs a layer's forward pass twice
HOOK, FORMER_FORWARD = "_hf_hook", "_old_forward"  # accelerate: what brings a layer's weights, and what it stands before
UNSPLIT = "_no_split_modules"  # transformers: class names of the blocks that stay in one place
COMPILED, COMPILED_CALL = "_orig_mod", "_compiled_call_impl"  # torch.compile: the module inside, and what runs in its place
COLLATES = "_auto_collation"  # what reads a DataLoader's batches: whether it puts examples together

# Families of layers; PyTorch's names of their common ancestors are private.
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def linear_product() -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """OneDNN's float32 product of a linear layer on a processor, (..., K), (N, K) and (N,) or None to (..., N); None if there is none."""
    if not torch.backends.mkldnn.is_available():
        return None
    operator = _working("torch.ops.mkldnn._linear_pointwise", _is_linear, "float32 products on processors are slower")
    return operator and (lambda left_MK, right_NK, added_N: operator(left_MK, right_NK, added_N, "none", [], ""))


def int8_product() -> Callable[..., Tensor] | None:
    """The product of int8 matrices, (M, K) and (K, N) to `out` of int32, (M, N); None if there is no fast one."""
    if not torch.backends.mkldnn.is_available():
        return None
    return _working("torch._int_mm", _is_int8_product, "scans of stores of integers are slower")


def is_transforming() -> bool:
    """Whether `torch.func` is taking derivatives or running examples side by side right now; yes if that cannot be known."""
    peek = _working("torch._C._functorch.peek_interpreter_stack", _answers, "linear layers on processors are slower")
    return peek is None or peek() is not None


def map_tree(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """A nest of containers with each leaf replaced by a function of it, and of the leaves in its place in others of the same form.

    >>> map_tree(lambda leaf: leaf + 1, {"a": [1, 2], "b": (3,)})
    {'a': [2, 3], 'b': (4,)}
    """
    mapped = _working(
        "torch.utils._pytree.tree_map", _is_tree_map, "batches may hold tensors in lists, tuples and dictionaries only"
    )
    return (mapped or _plain_map_tree)(function, tree, *others)


def taken_for_parameter(tensor: Tensor) -> Tensor:
    """The same tensor, which `isinstance` takes for an `nn.Parameter`, so that models which look for parameters find it."""
    tensor._is_param = True  # type: ignore[attr-defined]
    return tensor


def view_base(tensor: Tensor) -> Tensor | None:
    """The tensor that this one is a view of, if that is known."""
    return getattr(tensor, "_base", None)


def version_of(tensor: Tensor) -> Any:
    """A value that changes when numbers of a tensor do: the count of writes to it, or else the sum of its numbers."""
    count = getattr(tensor, "_version", None)
    return repr(float(tensor.detach().sum(dtype=torch.float64))) if count is None else count


def lightning_source(trainer: Any) -> Any:
    """What makes a Lightning trainer's training batches, an object with the method `dataloader`; None if it cannot be found."""
    source = getattr(trainer.fit_loop, "_data_source", None)
    return source if hasattr(source, "dataloader") else None


@contextmanager
def quiet_ray() -> Iterator[None]:
    """Keep Ray from printing on stdout, where data goes, what ended on its machines; where that is not known to it, it prints.

    Yields:
        Nothing.
    """
    try:
        worker = resolve_name("ray._private.worker")
    except (ImportError, AttributeError):
        yield
        return
    before = getattr(worker, "_worker_logs_enabled", True)
    worker._worker_logs_enabled = False
    try:
        yield
    finally:
        worker._worker_logs_enabled = before


@cache
def _working(name: str, is_right: Callable[[Any], bool], otherwise: str) -> Any:
    """What a dotted name stands for if it does what it should on a small case, else None with a warning."""
    try:
        value = resolve_name(name)
        trouble = "" if is_right(value) else "gives something else"
    except (ImportError, AttributeError):
        trouble = "is gone"
    except (RuntimeError, TypeError, ValueError) as error:  # an operator that takes other arguments, or has no kernel here
        trouble = f"fails ({str(error).splitlines()[0]})"
    if not trouble:
        return value
    logging.getLogger(__name__).warning("%s of PyTorch %s %s: %s", name, torch.__version__, trouble, otherwise)
    return None


def _answers(peek: Any) -> bool:
    peek()  # either answer may be right
    return True


def _is_linear(operator: Any) -> bool:
    for rows, inner, columns in ((1, 1, 1), (7, 33, 5), (64, 128, 96)):
        left_MK, right_NK, added_N = (_random(*shape).float() for shape in ((rows, inner), (columns, inner), (columns,)))
        exact_MN = left_MK.double() @ right_NK.double().T
        plain_MN, added_MN = (operator(left_MK, right_NK, added, "none", [], "") for added in (None, added_N))
        wrong_MN = torch.stack([plain_MN - exact_MN, added_MN - exact_MN - added_N]).abs() / exact_MN.abs().amax().clamp_min(
            1.0
        )
        if not bool((wrong_MN < 1e-4).all()):
            return False
    return True


def _is_int8_product(operator: Any) -> bool:
    # Of many numbers, also the largest: PyTorch 2.4 saturates sums of two products on processors without VNNI.
    for rows, inner, columns in ((1, 8, 8), (7, 33, 4), (40, 1024, 12), (256, 256, 24)):
        wide_MK, right_KN = (
            _random(*shape).mul(64).round().clamp(-128, 127).to(torch.int8) for shape in ((rows, 2 * inner), (inner, columns))
        )
        for left_MK in (
            wide_MK[:, :inner],
            wide_MK[:, inner:].clamp_min(0).sub_(128),
        ):  # rows of a wider matrix, and all the least
            out_MN = torch.zeros(rows, columns, dtype=torch.int32, device="cpu")
            operator(left_MK, right_KN, out=out_MN)
            if not torch.equal(out_MN, left_MK.int() @ right_KN.int()):
                return False
    return True


def _random(*shape: int) -> Tensor:
    """The same numbers each time, whatever types and devices are the default just now, and without touching anybody's draws."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float64, device="cpu")


def _is_tree_map(operator: Any) -> bool:
    return operator(lambda leaf, other: leaf + other, {"a": [1, (2,)]}, {"a": [3, (4,)]}) == {"a": [4, (6,)]}


def _plain_map_tree(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """The same for the containers of Python; objects of other classes are leaves."""
    kind = type(tree)
    if kind in (list, tuple) or (issubclass(kind, tuple) and hasattr(kind, "_fields")):
        parts = [_plain_map_tree(function, *each) for each in zip(tree, *others, strict=True)]
        return kind(*parts) if hasattr(kind, "_fields") else kind(parts)
    if kind in (dict, OrderedDict):
        return kind((key, _plain_map_tree(function, value, *(other[key] for other in others))) for key, value in tree.items())
    return function(tree, *others)
