"""What torch.func needs of a model to push tangents through it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from whence.capture.frozen import frozen
from whence.errors import Unsupported

__all__ = ["forward_mode"]

# What PyTorch says of functions that torch.func cannot go through.
_NOT_DIFFERENTIABLE = (
    "forward AD",
    "forward-mode AD",
    "jvp",
    "setup_context",
    "saved tensor hooks",
    "once_differentiable",
    "vmap",
)


@contextmanager
def forward_mode(model: nn.Module, *, purpose: str, needed: str, do: str) -> Iterator[None]:
    """A model as forward-mode derivatives want it: frozen, without fused attention, and without a tangent for padding rows of embeddings.

    Args:
        model: The model.
        purpose: What cannot go through a model that has no such derivatives, for the error.
        needed: What that takes.
        do: The way out.

    Yields:
        Nothing.

    Raises:
        Unsupported: If the model cannot be differentiated so.
        RuntimeError: Whatever else fails inside.
        NotImplementedError: The same.
    """
    padded = [module for module in model.modules() if isinstance(module, nn.Embedding) and module.padding_idx is not None]
    handles = [module.register_forward_hook(_without_padding, with_kwargs=True) for module in padded]
    try:
        # Fused attention has neither a forward-mode nor a second derivative.
        with frozen(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    except (RuntimeError, NotImplementedError) as error:
        if not any(word in str(error) for word in _NOT_DIFFERENTIABLE):
            raise error
        raise Unsupported(
            found=f"a model that {purpose} cannot go through: {str(error).splitlines()[0]}", needed=needed, do=do
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def _without_padding(module: nn.Embedding, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> Tensor:
    """Reverse mode gives the padding row no gradient; forward mode would give it a tangent, and a matrix its symmetry away."""
    ids = args[0] if args else kwargs["input"]
    return torch.where((ids == module.padding_idx)[..., None], output.detach(), output)
