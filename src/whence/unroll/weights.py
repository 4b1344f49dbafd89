"""Weights and optimizer state as the tensors of a checkpoint, and back."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["checkpoint_tensors", "load_checkpoint"]


def checkpoint_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What a checkpoint keeps: `model.NAME` of parameters and buffers, `state_KEY.NAME` of the optimizer."""
    found = {f"model.{name}": value for name, value in model.named_parameters()}
    found |= {f"model.{name}": value for name, value in model.named_buffers()}
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter, state in optimizer.state.items():
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        found |= {f"state_{key}.{name_of[id(parameter)]}": value for key, value in tensors.items()}
    return {name: found[name].detach() for name in sorted(found)}  # the same bytes, whatever the order of the states


def load_checkpoint(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put what `checkpoint_tensors` gave into a model and an optimizer."""
    parameters = dict(model.named_parameters())
    values = parameters | dict(model.named_buffers())
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
