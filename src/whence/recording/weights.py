"""Weights and optimizer state as the tensors of a checkpoint, and back."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from whence.internals import COMPILED
from whence.optimizers import SETTINGS, flat_state

__all__ = ["bare", "checkpoint_tensors", "digest_of_weights", "load_checkpoint", "lost_state", "parameters_of"]

# Names of what schedules of the learning rate keep in a group, which is the caller's to restore.
_OWN_RATES = ("scheduled_lr",)  # of the optimizer itself
_SCHEDULED = ("lr", "_momentum", "foreach", "fused", "capturable", "differentiable")


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
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], *, without: Collection[str] = ()
) -> dict[str, Tensor]:
    """What a checkpoint keeps of a model and its optimizers.

    `model.NAME` of parameters and buffers, `state_KEY.NAME` of the optimizers, with KEY[0], KEY[1] for the tensors of a list, and
    `group_KEY.NUMBER` of what a group counts by itself, such as its steps.

    Args:
        model: The model, without wrappers.
        optimizers: Whose state is kept, of the parameters that they have one for.
        without: Names of parameters to leave out.

    Returns:
        The tensors.
    """
    parameters = parameters_of(model)
    saved = {f"model.{name}": value.detach() for name, value in parameters.items() if name not in without}
    saved |= {f"model.{name}": value for name, value in _buffers_of(model).items()}
    name_of = {id(parameter): name for name, parameter in parameters.items()}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            saved |= {f"state_{key}.{name_of[id(parameter)]}": value for key, value in flat_state(state).items()}
    for number, (optimizer, group) in enumerate(_groups(optimizers)):
        saved |= {
            f"group_{key}.{number}": torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
            for key, value in _counters(optimizer, group).items()
        }
    return {name: saved[name].detach() for name in sorted(saved)}  # the same bytes, whatever the order of the states


def lost_state(optimizers: Sequence[torch.optim.Optimizer]) -> str:
    """What optimizers keep of a parameter that a checkpoint has no place for; empty if there is nothing."""
    for optimizer in optimizers:
        for state in optimizer.state.values():
            odd = [key for key, value in state.items() if not isinstance(value, Tensor) and not _is_list_of_tensors(value)]
            if odd:
                return f"{type(optimizer).__name__} keeps {', '.join(map(str, odd))}"
    return ""


def load_checkpoint(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Put what `checkpoint_tensors` gave into a model and its optimizers."""
    parameters = parameters_of(model)
    values = {**parameters, **_buffers_of(model)}
    states: dict[str, dict[str, Tensor]] = {}
    counters: dict[int, dict[str, Any]] = {}
    with torch.no_grad():
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            if kind == "model":
                values[name].copy_(value)
            elif kind.startswith("group_"):
                counters.setdefault(int(name), {})[kind.removeprefix("group_")] = value.item()
            else:
                states.setdefault(name, {})[kind.removeprefix("state_")] = value
    for optimizer in optimizers:
        optimizer.state.clear()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = next(name for name, value in parameters.items() if value is parameter)
                if name in states:
                    optimizer.state[parameter] = _listed(
                        # Step counters stay on the CPU, as torch keeps them.
                        {
                            key: value.clone() if key == "step" else value.to(parameter, copy=True)
                            for key, value in states[name].items()
                        }
                    )
    for number, (optimizer, group) in enumerate(_groups(optimizers)):
        defaults = {key: value for key, value in optimizer.defaults.items() if key in _counters(optimizer, group)}
        group.update({**defaults, **counters.get(number, {})})


def _groups(optimizers: Sequence[torch.optim.Optimizer]) -> list[tuple[torch.optim.Optimizer, dict[str, Any]]]:
    return [(optimizer, group) for optimizer in optimizers for group in optimizer.param_groups]


def _counters(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> dict[str, Any]:
    """What a group of parameters has come to hold that was not set: numbers that differ from those it began with."""
    return {
        key: value
        for key, value in group.items()
        if isinstance(value, bool | int | float)
        and key not in SETTINGS
        and (key in _OWN_RATES or not key.endswith(_SCHEDULED))
        and (key not in optimizer.defaults or optimizer.defaults[key] != value)
    }


def _is_list_of_tensors(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, Tensor) for part in value)


def _listed(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """A state whose KEY[0], KEY[1] are lists again."""
    lists: dict[str, Any] = {}
    for key in sorted(state, key=lambda key: (len(key), key)):
        name, bracket, _ = key.partition("[")
        if bracket:
            lists.setdefault(name, []).append(state[key])
        else:
            lists[key] = state[key]
    return lists


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
