"""The contract of a task: what is attributed, and how one example's loss is computed."""

import fnmatch
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from whence.data import Dataset, Example
from whence.digests import kept_digest
from whence.errors import BadInput, NonFinite, Unsupported
from whence.internals import version_of
from whence.records import Recipe
from whence.sharded_weights import is_offloaded, is_sharded, main_device, named_weights
from whence.tasks.outputs import Outputs

__all__ = ["AbstractTask", "Batch", "fitting_mask", "precision", "weights_digest"]

Batch = Any


class AbstractTask(ABC):
    """A model together with its per-example loss.

    The model is never changed: its mode and `requires_grad` flags are restored after each pass and no `.grad` is written.

    Args:
        model: Any PyTorch module.
        track: Patterns (as in `fnmatch`) of parameter names to attribute; None takes every trainable parameter.
        ignore: Patterns of parameter names to leave out.
        functional: Whether parameters of layers that whence has no rule for, or whose hooks the check finds wrong, go through the functional
            twin instead of being refused: True is enough for any module. With False those without a rule do if they are at most 2 % of the
            parameters. Patterns of parameter names send these there whatever their layer, and only these; parameters without a rule have to
            be among them.
        recipe: What is known of the training run, for damping.
        skip_bad: Whether records that cannot be used are left out, with a note in every answer, instead of refusing the data.

    Raises:
        BadInput: If the model is no module, a pattern matches no parameter, or nothing is left to attribute.
    """

    kind: str
    unit: str
    draws: int = 1
    """Inputs that the model sees per example, each on its own, one after the other in the leading axis of what it is given."""
    is_split: bool = False
    """Whether an example has more of these, which the model sees in several calls."""

    def __init__(
        self,
        model: nn.Module,
        *,
        track: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
        functional: bool | Sequence[str] = False,
        recipe: Recipe | None = None,
        skip_bad: bool = False,
    ):
        if not isinstance(model, nn.Module):
            raise BadInput(
                found=f"a {type(model).__name__} as the model", needed="a torch.nn.Module", do="pass the model itself, first"
            )
        self.model = model
        self.recipe = recipe
        self.skip_bad = skip_bad
        self.tracked = _tracked(model, track, ignore)
        self.functional = functional if isinstance(functional, bool) else _matching(model, functional)

    @property
    def device(self) -> torch.device:
        """Where batches go: where the model lives, or where its first weight is used if it is spread over devices."""
        return main_device(self.model)

    @property
    def weights(self) -> str:
        """Digest of every weight and buffer as they are now; kept inside `whence.digests.digested_once` only, as models may be trained on.

        Raises:
            NonFinite: If a weight is NaN or infinite.
        """
        return weights_digest(self.model)

    @property
    def preprocessing(self) -> str:
        """Digest of what turns raw data into model inputs; empty when the task takes ready inputs."""
        return ""

    @abstractmethod
    def prepare(self, records: Iterable[Any]) -> Dataset:
        """Raw records as examples with stable ids."""

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples as one batch on the model's device."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss of each example, summed over its positions, shape (B,)."""

    def measurement(self, model: nn.Module, batch: Batch) -> Tensor:
        """What a query asks about, shape (B,): by default the log-probability of its target, which is minus the loss."""
        return -self.loss(model, batch)

    def query_notes(self) -> tuple[str, ...]:
        """What a reader of scores has to know of how queries are measured; a line each."""
        return ()

    @property
    def highest_measurement(self) -> float | None:
        """What a measurement can be at most: 0 for a log-probability; None where nothing is known."""
        return None

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """What the loss is a convex function of, for curvature: logits or means, one row per scored position.

        Raises:
            Unsupported: If the task does not say.
        """
        raise Unsupported(
            found=f"a {type(self).__name__} task whose likelihood is not known",
            needed="the model's outputs and their likelihood, for curvature other than that of the labels' own gradients",
            do="pass outputs=... to whence.Custom, or choose a method that needs the loss only",
        )

    def output_function(self, model: nn.Module, batch: Batch) -> Tensor:
        """What TRAK linearises, shape (B,): a number per example of which the loss is a decreasing function.

        Raises:
            Unsupported: If the task has none.
        """
        raise Unsupported(
            found=f"a {type(self).__name__} task without an output function",
            needed="classification, regression or a causal language model for TRAK and GraSS",
            do="override output_function and output_weights in a task of your own, or choose another method, such as logra",
        )

    def output_weights(self, values_B: Tensor, batch: Batch) -> Tensor:
        """Minus the derivative of each example's loss by its output function, from that function's values; shape (B,).

        Raises:
            Unsupported: If the task has none.
        """
        raise Unsupported(
            found=f"a {type(self).__name__} task without output weights",
            needed="what its loss changes by when its output function does",
            do="override output_weights along with output_function",
        )

    def num_rows(self, batch: Batch, num_examples: int) -> int:
        """Inputs that the model sees for a batch of so many examples, those of one example after those of another."""
        return num_examples * self.draws

    def positions(self, batch: Batch) -> Tensor | tuple[Tensor, ...] | None:
        """True where a position is real and False where it is padding, shape (B, T); None if there is no padding.

        Several for a model of several sequences, an encoder's and a decoder's, no two of one shape, by which they are told apart.
        """
        return None


def fitting_mask(masks: Tensor | tuple[Tensor, ...] | None, count: int) -> Tensor | None:
    """The mask of so many positions in all; None if there is none, as for a pooled layer, which has no padding.

    Args:
        masks: What `AbstractTask.positions` gives.
        count: Positions of all examples.
    """
    given = (masks,) if isinstance(masks, Tensor) else masks or ()
    return next((mask for mask in given if mask.numel() == count), None)


def precision(model: nn.Module) -> torch.dtype:
    """The type that inputs of real numbers take: that of the first layer's weight, which sees them, or else of the first parameter."""
    floating = [(name, value) for name, value in model.named_parameters() if value.is_floating_point() or value.is_complex()]
    weights = [value for name, value in floating if name.endswith("weight") and value.ndim > 1 and not value.is_complex()]
    first = next(iter([*weights, *(value for _, value in floating)]), torch.empty(0))
    return first.dtype.to_real()


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of every weight and buffer with its name, shape and type: the same wherever they are.

    Of a sharded model all processes have to ask, for it is gathered weight by weight.

    Raises:
        NonFinite: If a weight is NaN or infinite.
    """
    return kept_digest(model, _state_of(model), lambda: _digest(model))


def _state_of(model: nn.Module) -> tuple[tuple[int, int, int], ...] | None:
    """Which tensors a model's weights are, and how often each was written to; None where that cannot be seen."""
    if is_sharded(model) or is_offloaded(model):
        return None
    try:
        return tuple((id(value), version_of(value), value.data_ptr()) for value in (*model.parameters(), *model.buffers()))
    except (RuntimeError, NotImplementedError):  # tensors that are no block of memory, such as quantised ones
        return None


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in named_weights(model):
        digest.update(f"{name}:{tuple(value.shape)}:{value.dtype}:".encode())
        for part in _stored(value.detach()):
            if part.is_floating_point() and not bool(torch.isfinite(part).all()):
                raise NonFinite(
                    found=f"NaN or infinite values in the weight {name!r}",
                    needed="finite weights",
                    do="load a checkpoint from before the training run diverged",
                )
            digest.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _stored(value: Tensor) -> list[Tensor]:
    """The plain tensors that a tensor keeps its numbers in: itself, or, where it is quantised, codes and scales."""
    flatten = getattr(value, "__tensor_flatten__", None)
    return [value] if flatten is None else [part for name in flatten()[0] for part in _stored(getattr(value, name))]


def _tracked(model: nn.Module, track: Sequence[str] | None, ignore: Sequence[str]) -> frozenset[str]:
    _matching(model, (*(track or ()), *ignore))
    names = [name for name, _ in model.named_parameters()]
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    chosen = trainable if track is None else {name for pattern in track for name in fnmatch.filter(names, pattern)}
    chosen -= {name for pattern in ignore for name in fnmatch.filter(names, pattern)}
    if not chosen:
        raise BadInput(
            found=f"no parameter to attribute among {len(names)}",
            needed="at least one trainable or tracked parameter",
            do="unfreeze the model or pass track=['*']",
        )
    return frozenset(chosen)


def _matching(model: nn.Module, patterns: Sequence[str]) -> frozenset[str]:
    """Names of the parameters that patterns match.

    Raises:
        BadInput: If a pattern matches none.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise BadInput(
                found=f"the pattern {pattern!r}, which matches no parameter",
                needed=f"a pattern for names such as {', '.join(names[:3])}",
                do="list the names with `model.named_parameters()`",
            )
    return frozenset(name for pattern in patterns for name in fnmatch.filter(names, pattern))
