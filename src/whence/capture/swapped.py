"""A model with other values for some of its parameters, for as long as somebody computes with them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.jit import ScriptModule

from whence.errors import Unsupported
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
        Unsupported: If the model is spread over processes or devices, or a part of it is compiled by `torch.jit`.
    """
    refuse_spread(model)
    parameters = dict(model.named_parameters())
    value_of = {id(parameters[name]): value for name, value in values.items()}
    modules = list(model.modules())
    for module in modules:
        if isinstance(module, ScriptModule):
            raise Unsupported(
                found=f"passes with other weights than the model's own for a {type(module).__name__} of torch.jit, which keeps its own",
                needed="modules in Python",
                do="take the model that it was compiled from",
            )
    before = [(module, *(dict(held) for held in _held(module))) for module in modules]
    try:
        for module in modules:
            own = module._parameters
            own.update({key: value_of[id(value)] for key, value in own.items() if id(value) in value_of})  # type: ignore[misc]
        yield
    finally:
        for module, *kept in before:
            for held, known in zip(_held(module), kept, strict=True):
                for key in held.keys() - known.keys():
                    del held[key]
                held.update(known)


def _held(module: nn.Module) -> tuple[dict, dict, dict]:
    return vars(module), module._parameters, module._buffers
