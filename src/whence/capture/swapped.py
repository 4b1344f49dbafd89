"""A model with other values for some of its parameters, for as long as somebody computes with them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.jit import ScriptModule

from whence.spread import refuse_spread

__all__ = ["swapped"]


@contextmanager
def swapped(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Put values where a model keeps its parameters, tied ones included, and put the parameters back.

    The modules themselves hold the values, so whatever part of the model is called, or read, sees them: `model.encode(x)`, `model.head(h)`,
    `model.scale`. Attributes that a pass binds anew, as old weight norms and caches do, are put back too, since they hold what was computed
    from the values.

    Args:
        model: The model.
        values: By parameter name; any tensors, those of `torch.func` included.

    Yields:
        Nothing.

    Raises:
        Unsupported: If the model is spread over processes or devices.
    """
    refuse_spread(model)
    parameters = dict(model.named_parameters())
    value_of = {id(parameters[name]): value for name, value in values.items()}
    modules = [module for module in model.modules() if not isinstance(module, ScriptModule)]
    before = [(module, *(dict(held) for held in _held(module))) for module in modules]
    try:
        for module in modules:
            for key, value in module._parameters.items():
                if id(value) in value_of:
                    module._parameters[key] = _named_parameter(value_of[id(value)])
        yield
    finally:
        for module, *kept in before:
            for held, known in zip(_held(module), kept, strict=True):
                for key in held.keys() - known.keys():
                    del held[key]
                held.update(known)


def _named_parameter(value: Tensor) -> Any:
    """The same tensor, which `isinstance` takes for an `nn.Parameter`, as models that look for parameters do."""
    value._is_param = True  # type: ignore[attr-defined]
    return value


def _held(module: nn.Module) -> tuple[dict, dict, dict]:
    return vars(module), module._parameters, module._buffers
