"""Models whose weights are not all in one place: split over processes by FSDP2, or laid out over devices, memory and a disk by accelerate.

Both put a layer's weight together just before the layer runs and take it apart again after, so hooks on layers see what they always see.
What reads weights or gradients from outside a pass goes through here.
"""

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from whence.errors import BadInput, Unsupported
from whence.internals import FORMER_FORWARD, HOOK

__all__ = [
    "is_offloaded",
    "is_sharded",
    "loaded_copies",
    "local",
    "main_device",
    "named_weights",
    "own_forward",
    "refuse_sharded",
    "refuse_spread",
    "refuse_split_ties",
    "refuse_wrapped",
    "settle",
    "whole",
]


def is_sharded(model: nn.Module) -> bool:
    """Whether parts of the model went through `torch.distributed.fsdp.fully_shard`.

    Its processes then have to run the same layers the same number of times, since each layer's weight is gathered from all of them.
    """
    return any(True for _ in _sharded_modules(model))


def is_offloaded(model: nn.Module) -> bool:
    """Whether weights are somewhere else than where they are used, as `device_map` puts them in memory or on a disk."""
    return any(True for _ in _offloads(model))


def settle(model: nn.Module) -> None:
    """Bring sharded parameters back into their shards.

    After a forward pass without a backward pass the outermost module still holds its whole weights, as other objects than its parameters.
    """
    for module in _sharded_modules(model):
        module.reshard()


def own_forward(module: nn.Module) -> str:
    """The attribute through which a module's own forward is called, for replacing it; empty where something else has been set already.

    accelerate puts a function in place of forward, which brings the weights and then calls the former one.
    """
    if HOOK in vars(module):
        former = getattr(module, FORMER_FORWARD, None)
        return FORMER_FORWARD if getattr(former, "__func__", None) is type(module).forward else ""
    return "" if "forward" in vars(module) else "forward"


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered from all processes, which all have to call this; any other as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight and buffer of the state by its name, in the order of names, whole, and one at a time.

    Yields:
        Name and value; a value is freed when the next is asked for.

    Raises:
        BadInput: If a weight has no values.
    """
    settle(model)
    elsewhere = {name: (values, key) for name, _, values, key in _offloads(model)}
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, Tensor):
            continue
        if value.device.type == "meta":
            if name not in elsewhere:
                raise BadInput(
                    found=f"the weight {name!r} on the meta device, without values",
                    needed="a model that is loaded",
                    do="load its weights, or give it a device_map with from_pretrained",
                )
            values, key = elsewhere[name]
            value = values[key]
        yield name, whole(value)


def main_device(model: nn.Module) -> torch.device:
    """Where a batch has to be: where the model's first weight is used."""
    for module in model.modules():
        for value in module.parameters(recurse=False):
            mesh = getattr(value, "device_mesh", None)
            if mesh is not None:  # shards may be in memory while they are not used
                is_cpu = mesh.device_type == "cpu"
                return torch.device("cpu") if is_cpu else torch.device(mesh.device_type, torch.cuda.current_device())
            if value.device.type != "meta":
                return value.device
            for hook in _hooks(module):
                if hook.execution_device is not None:
                    return torch.device(hook.execution_device)
    return next(model.parameters()).device


@contextmanager
def loaded_copies(model: nn.Module) -> Iterator[dict[str, list[nn.Parameter]]]:
    """The parameters that offloaded layers load for a pass: gradients land on these, which are dropped after it.

    Yields:
        By name, one for each time that a layer ran, to be read while the block lasts.
    """
    copies: dict[str, list[nn.Parameter]] = {}
    changed: list[tuple[Any, Any]] = []
    by_module: dict[int, tuple[Any, list[tuple[str, str]]]] = {}
    for name, module, _, key in _offloads(model):
        by_module.setdefault(id(module), (module, []))[1].append((name, key))
    try:
        for module, names in by_module.values():
            changed.append((module, getattr(module, HOOK)))
            setattr(module, HOOK, _Watched(getattr(module, HOOK), names, copies))
        yield copies
    finally:
        for module, hook in changed:
            setattr(module, HOOK, hook)


def refuse_sharded(model: nn.Module, what: str) -> None:
    """Refuse work whose passes are not the same in every process.

    Args:
        model: The model.
        what: The work, for the message.

    Raises:
        Unsupported: If the model is sharded.
    """
    if is_sharded(model):
        raise Unsupported(
            found=f"{what} with a model that fully_shard split over processes",
            needed="a whole model, since the processes do not run it equally often there",
            do="build a store with it and query that, or load the model with a device_map",
        )


def refuse_spread(model: nn.Module) -> None:
    """Refuse passes with other values than a model's own, which layers that fetch their weights would not see.

    Raises:
        Unsupported: If the model is sharded or offloaded.
    """
    if is_sharded(model) or is_offloaded(model):
        raise Unsupported(
            found="passes with other weights than the model's own, as solvers, replays and contrasts make, for weights that are spread",
            needed="all weights on the device that they are used on",
            do="take a method without such passes (ekfac, kfac, datainf, or a store), or load the model whole",
        )


def refuse_split_ties(model: nn.Module, tracked: Collection[str]) -> None:
    """Refuse weights that the model ties and that are offloaded, which makes two parameters of one.

    Args:
        model: The model.
        tracked: Names of the parameters that are attributed.

    Raises:
        Unsupported: If one of them is such a weight.
    """
    elsewhere = {name for name, *_ in _offloads(model)}
    for prefix, module in model.named_modules() if elsewhere else ():
        for pair in getattr(module, "all_tied_weights_keys", {}).items():  # as transformers names them
            names = [f"{prefix}.{name}" if prefix else name for name in pair]
            if any(name in elsewhere for name in names) and any(name in tracked for name in names):
                raise Unsupported(
                    found=f"the tied weights {names[0]!r} and {names[1]!r}, of which one is offloaded",
                    needed="both on the device that they are used on, since offloaded they are no longer one parameter",
                    do="give the modules of both a device in device_map, or leave them out with ignore=[...]",
                )


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse what hides a model's parameters or joins its gradients.

    Raises:
        Unsupported: If the model, or a part of it, is wrapped.
    """
    parallel = sys.modules.get("torch.distributed.fsdp")
    old = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    for module in model.modules():
        if isinstance(module, old):
            raise Unsupported(
                found=f"a model in {type(module).__name__}",
                needed="the model itself: gradients of single examples are not joined",
                do="pass model.module",
            )
        if parallel is not None and isinstance(module, parallel.FullyShardedDataParallel):
            raise Unsupported(
                found="a model in FullyShardedDataParallel, which flattens its parameters into one",
                needed="parameters under their own names and shapes",
                do="shard it with torch.distributed.fsdp.fully_shard (FSDP2)",
            )
    shards = any(hasattr(value, "device_mesh") for value in model.parameters())
    if shards and not is_sharded(model):
        raise Unsupported(
            found="parameters that are DTensors in a model without fully_shard, as tensor parallelism makes them",
            needed="layers that see whole inputs and weights",
            do="shard the model with torch.distributed.fsdp.fully_shard instead",
        )


class _Watched:
    """An accelerate hook that keeps the parameters it has loaded."""

    def __init__(self, hook: Any, names: list[tuple[str, str]], copies: dict[str, list[nn.Parameter]]):
        self._hook, self._names, self._copies = hook, names, copies

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hook, name)

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        ready = self._hook.pre_forward(module, *args, **kwargs)
        loaded = dict(module.named_parameters())
        for name, key in self._names:
            if key in loaded:
                self._copies.setdefault(name, []).append(loaded[key])
        return ready


def _sharded_modules(model: nn.Module) -> Iterator[Any]:
    parallel = sys.modules.get("torch.distributed.fsdp")  # whoever has sharded a model has loaded it
    kind = getattr(parallel, "FSDPModule", None)
    if kind is not None:
        yield from (module for module in model.modules() if isinstance(module, kind))


def _offloads(model: nn.Module) -> Iterator[tuple[str, nn.Module, Any, str]]:
    """Tensors that are loaded for a pass.

    Yields:
        Name, the module that loads it, where from, and its name there.
    """
    for prefix, module in model.named_modules():
        for hook in _hooks(module):
            if hook.offload:
                own = [name for name, _ in module.named_parameters(recurse=hook.place_submodules)]
                own += [name for name, _ in module.named_buffers(recurse=hook.place_submodules) if hook.offload_buffers]
                for key in own:
                    yield (f"{prefix}.{key}" if prefix else key), module, hook.weights_map, key


def _hooks(module: nn.Module) -> list[Any]:
    """What accelerate has put on a module to bring inputs and weights together."""
    hook: Any = getattr(module, HOOK, None)
    hooks = getattr(hook, "hooks", (hook,))
    return [hook for hook in hooks if hasattr(hook, "execution_device") and hasattr(hook, "offload")]
