"""Weights and optimizer state as the tensors of a checkpoint, and back."""

import hashlib
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from whence.internals import COMPILED

__all__ = ["bare", "checkpoint_tensors", "digest_of_weights", "load_checkpoint", "parameters_of"]


def bare(model: nn.Module) -> nn.Module:
    """The model inside the wrappers that `torch.compile` and data-parallel training put around it."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, COMPILED, None), nn.Module):
            model = inner
        else:
            return model


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by the names that they have where no layer is compiled."""
    return {name.replace(f"{COMPILED}.", ""): value for name, value in model.named_parameters()}


def checkpoint_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, without: Collection[str] = ()
) -> dict[str, Tensor]:
    """What a checkpoint keeps: `model.NAME` of parameters and buffers, `state_KEY.NAME` of the optimizer.

    Args:
        model: The model, without wrappers.
        optimizer: Whose state is kept, of the parameters that it has one for.
        without: Names of parameters to leave out.

    Returns:
        The tensors.
    """
    parameters = parameters_of(model)
    saved = {f"model.{name}": value.detach() for name, value in parameters.items() if name not in without}
    saved |= {f"model.{name}": value for name, value in _buffers_of(model).items()}
    name_of = {id(parameter): name for name, parameter in parameters.items()}
    for parameter, state in optimizer.state.items():
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        saved |= {f"state_{key}.{name_of[id(parameter)]}": value for key, value in tensors.items()}
    return {name: saved[name].detach() for name in sorted(saved)}  # the same bytes, whatever the order of the states


def load_checkpoint(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put what `checkpoint_tensors` gave into a model and an optimizer."""
    parameters = parameters_of(model)
    values = {**parameters, **_buffers_of(model)}
    states: dict[str, dict[str, Tensor]] = {}
    with torch.no_grad():
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            if kind == "model":
                values[name].copy_(value)
            else:
                states.setdefault(name, {})[kind.removeprefix("state_")] = value
    optimizer.state.clear()
    for name, state in states.items():
        parameter = parameters[name]
        # Step counters stay on the CPU, as torch keeps them.
        optimizer.state[parameter] = {
            key: value.clone() if key == "step" else value.to(parameter, copy=True) for key, value in state.items()
        }


def digest_of_weights(model: nn.Module, names: Collection[str]) -> str:
    """SHA-256 of some parameters with their names and types."""
    digest = hashlib.sha256()
    parameters = parameters_of(model)
    for name in sorted(names):
        value = parameters[name].detach()
        digest.update(f"{name}:{tuple(value.shape)}:{value.dtype}:".encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _buffers_of(model: nn.Module) -> dict[str, Tensor]:
    return {name.replace(f"{COMPILED}.", ""): value for name, value in model.named_buffers()}
