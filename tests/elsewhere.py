"""A pretend accelerator: tensors that say they are on another device, hold real numbers, and refuse to meet tensors of the CPU.

A tensor `Elsewhere` wraps one in memory and says that its device is "lazy:0", a kind of device that no build of torch computes on but all
of them know. Its operations run on what it wraps. What an accelerator would refuse is refused: an operation with tensors of both places, a
random generator of the other place, NumPy. So a factory without a device, `torch.zeros(n)`, fails as soon as what it made meets the model.

Let through is what CUDA lets through: a number (a CPU tensor without axes) in an operation on the device, places on the CPU that index a
tensor there, and copies from one place to another.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

__all__ = ["DEVICE", "Elsewhere", "elsewhere", "moved"]

DEVICE = torch.device("lazy", 0)
_aten = torch.ops.aten
# Between places, and places on the CPU that index a tensor elsewhere.
_COPIES = {_aten._to_copy.default, _aten.copy_.default, _aten.copy.default}
_INDEXED = {_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default, _aten._index_put_impl_.default}
# Numbers of the CPU are taken by what goes entry by entry, not by products.
_PRODUCTS = {"mm", "bmm", "addmm", "addmv", "mv", "dot", "baddbmm", "cat", "stack", "gather", "index_select", "index_add_"}


class Elsewhere(Tensor):
    """A tensor on the pretend accelerator.

    Args:
        inner: Its numbers, in memory.
    """

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Elsewhere":
        """Wrap a tensor."""
        made = Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )
        made.inner = inner
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Elsewhere({self.inner!r})"

    def tolist(self) -> Any:
        """Its numbers, which torch refuses of any subclass."""
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation where its tensors are."""
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Makes tensors where they are asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """The pretend accelerator, for the time of a block.

    Yields:
        Its device, for `model.to`.
    """
    lifts = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(
        True
    )  # torch.tensor(..., device=) makes its tensor in memory and moves it, for all to see
    try:
        # Which storages are the same is asked by address; one that has none is told by the storage itself.
        address = patch("torch.UntypedStorage.data_ptr", lambda storage: storage._cdata)
        with _Factories(), patch("torch.autocast", _autocast), address:
            yield DEVICE
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts)


def moved(model: nn.Module) -> nn.Module:
    """A model moved to the pretend accelerator, in place; parameters that modules share stay shared, as `to` keeps them on a real one."""
    known: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                known.setdefault(id(value), nn.Parameter(value.detach().to(DEVICE), value.requires_grad))
                module._parameters[name] = known[id(value)]
        for name, value in module._buffers.items():
            module._buffers[name] = value if value is None else value.to(DEVICE)
    return model


def _autocast(kind: str, dtype: torch.dtype | None = None, *, enabled: bool = True) -> AbstractContextManager[Any]:
    """Lower types for products, of which this device knows nothing."""
    return nullcontext() if kind == DEVICE.type and not enabled else torch.amp.autocast(kind, dtype=dtype, enabled=enabled)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    asked = kwargs.get("device")
    if there and len(there) < len(tensors):
        _refuse_mixed(func, args, tensors)
    is_there = bool(there) if asked is None else torch.device(asked).type == DEVICE.type
    if func is _aten.copy_.default:
        is_there = isinstance(args[0], Elsewhere)
    if asked is not None and is_there:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    generator = kwargs.get("generator")
    if generator is not None and is_there:
        raise RuntimeError(f"{func}: expected a generator on {DEVICE}, got one on {generator.device}")
    if func is _aten._efficientzerotensor.default:  # without memory, which an ordinary operation cannot read
        func = _aten.zeros.default
    known = {id(tensor.inner): tensor for tensor in there}
    with torch._C._DisableTorchDispatch():
        found = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in known:
            return known[id(value)]
        return Elsewhere(value) if is_there else value

    return tree_map(placed, found)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Elsewhere) else value


def _refuse_mixed(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Stop what CUDA would stop.

    Raises:
        RuntimeError: In the words of torch.
    """
    here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere)]
    if func in _COPIES or (func in _INDEXED and isinstance(args[0], Elsewhere)):
        return
    name = func.overloadpacket.__name__
    writes_here = name.endswith("_") and args and any(args[0] is tensor for tensor in here)
    if writes_here or name in _PRODUCTS or any(tensor.ndim for tensor in here):
        shapes = ", ".join(f"{tuple(tensor.shape)} on {tensor.device}" for tensor in tensors)
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {shapes}")
