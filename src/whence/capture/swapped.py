"""A model with other values for some of its parameters, for as long as somebody computes with them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.jit import ScriptModule

from whence.internals import taken_for_parameter
from whence.sharded_weights import refuse_spread

__all__ = ["put_back", "with_weights"]

Result = TypeVar("Result")


class _Around(nn.Module):
    """Holds a model, and runs something that calls it: what is swapped for this module's call is swapped for all of that."""

    def __init__(self, model: nn.Module, run: Callable[[], Any]):
        super().__init__()
        self.model, self.run = model, run

    def forward(self) -> Any:
        return self.run()


@contextmanager
def put_back(model: nn.Module, values: Iterable[Tensor]) -> Iterator[None]:
    """Some of a model's parameters and buffers, which may be written over meanwhile and are then what they were.

    Args:
        model: The model.
        values: Its tensors that may be written over.

    Yields:
        Nothing.

    Raises:
        Unsupported: If the model is spread over processes or devices, where writing into a weight changes nothing.
    """
    refuse_spread(model)
    before = [(value, value.detach().clone()) for value in values]
    try:
        yield
    finally:
        with torch.no_grad():
            for value, was in before:
                value.copy_(was)


def with_weights(model: nn.Module, values: Mapping[str, Tensor], run: Callable[[], Result]) -> Result:
    """What `run` gives while the model's modules hold other values in the place of their parameters, tied ones included.

    Whatever part of the model it calls, or reads, has these values: `model.encode(x)`, `model.head(h)`, `model.scale`; its steps back have
    them too, which run the model again under gradient checkpointing. Then the parameters are back, and so is every attribute that the passes
    bound anew, as old weight norms and caches do, since that was computed from the values.

    Args:
        model: The model.
        values: By parameter name; any tensors, those of `torch.func` included.
        run: Called once.

    Raises:
        Unsupported: If the model is spread over processes or devices.
    """
    refuse_spread(model)
    # Modules of torch.jit have no attributes of their own to be put back.
    modules = [module for module in model.modules() if not isinstance(module, ScriptModule)]
    attributes = [dict(vars(module)) for module in modules]
    buffers = [dict(module.named_buffers(recurse=False, remove_duplicate=False)) for module in modules]
    try:
        named = {f"model.{name}": taken_for_parameter(value) for name, value in values.items()}
        return functional_call(_Around(model, run), named, (), tie_weights=True)
    finally:
        for module, attributes_of, buffers_of in zip(modules, attributes, buffers, strict=True):
            for name in vars(module).keys() - attributes_of.keys():
                del vars(module)[name]
            vars(module).update(attributes_of)
            for name, value in buffers_of.items():
                if getattr(module, name) is not value:
                    setattr(module, name, value)
