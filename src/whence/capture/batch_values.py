"""An objective's values in batches, held against those of examples alone: what mixes the examples of a batch shows here."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from whence.capture.frozen import frozen
from whence.capture.hooks import objective_function
from whence.capture.one_by_one import Trial
from whence.data import Example
from whence.errors import BadInput, NonFinite

__all__ = ["are_equal", "check_values", "mixes", "narrowest_type", "unchanging"]

# How far values may be apart, by the tolerance of gradients that they have to be within: relative and absolute.
_FINE, _COARSE, _HALF = (1e-7, 1e-9), (1e-4, 1e-5), (0.5, 1e-5)
# Devices round float32 to fewer bits on the way (TF32), in one batch otherwise than in another.
_ON_DEVICE = 50
# What rounding makes of the largest value, where others are differences of numbers of its size.
_ROUNDED = 8
# Values that are computed again to see chance in them.
_COINS = 12
# How far they may be apart where additions on a device come in another order: relative and absolute.
_SAME = (1e-2, 1e-5)


def check_values(trial: Trial, others: Sequence[Example], together: Tensor, alone: Tensor, tolerance: float) -> None:
    """Hold the values of some examples together, and among others, against those alone.

    Args:
        trial: The examples, and what is computed of them.
        others: More of the data, for a larger batch.
        together: Values of the chosen in one batch, shape (B,), float64 on the CPU.
        alone: Values of each alone, likewise.
        tolerance: Of gradients, relative.

    Raises:
        BadInput: If the objective mixes the examples of a batch, is mean-reduced or changes from call to call.
        NonFinite: If a value is NaN or infinite.
    """
    chosen = trial.chosen
    name = trial.objective if isinstance(trial.objective, str) else "function"
    for example, *values in zip(chosen, alone.tolist(), together.tolist(), strict=True):
        odd = next((value for value in values if value != value or value in (float("inf"), float("-inf"))), None)
        if odd is not None:
            raise NonFinite(
                found=f"a {name} of {odd} for the example {example.id!r}",
                needed="a finite number",
                do="check this example and the model's weights",
            )

    if are_equal(trial, together, alone, tolerance):
        if not others:
            return
        chosen = [*chosen, *others]
        together, alone = (
            _in_batches(trial, [chosen]),
            torch.cat([alone, _in_batches(trial, [[example] for example in others])]),
        )
        if are_equal(trial, together, alone, tolerance):
            return
    if are_equal(trial, together * len(chosen), alone, tolerance):
        raise BadInput(
            found=f"a {name} divided by the number of examples in the batch",
            needed="each example's own loss, independent of the batch",
            do="use reduction='none' and sum over positions only",
        )
    raise BadInput(**mixes(name, chosen, together, alone))


def unchanging(trial: Trial) -> Tensor:
    """The chosen examples' values in one batch as the model gives them untouched, made several times: a coin may fall as it did.

    Args:
        trial: The examples, and what is computed of them.

    Returns:
        Shape (B,), float64, on the CPU.

    Raises:
        BadInput: If they change.
    """
    first = _in_batches(trial, [trial.chosen])
    for _ in range(max(1, _COINS // len(trial.chosen))):
        again = _in_batches(trial, [trial.chosen])
        if not torch.equal(again.isfinite(), first.isfinite()) or not torch.allclose(again, first, *_SAME, equal_nan=True):
            name = trial.objective if isinstance(trial.objective, str) else "function"
            raise BadInput(
                found=f"a {name} that changes from call to call on the same examples",
                needed="a deterministic one",
                do="switch off functional dropout and random augmentation, or seed them by example",
            )
    return first


def mixes(name: str, chosen: Sequence[Example], together: Tensor, alone: Tensor) -> dict[str, str]:
    """What to say of an objective that mixes the examples of a batch, or its gradient.

    Args:
        name: Of the objective.
        chosen: The examples.
        together: Values of all of them in one batch, shape (B,).
        alone: Values alone.
    """
    index = int((together - alone).abs().argmax())
    return {
        "found": f"a {name} that depends on the other examples of its batch ({together[index]:.7g} of the example {chosen[index].id!r} "
        f"in a batch of {len(chosen)}, {alone[index]:.7g} alone)",
        "needed": "each example's own loss",
        "do": "look for statistics over the batch (a norm over axis 0, in-batch negatives) and for attention over padding",
    }


def narrowest_type(trial: Trial) -> torch.dtype:
    """The narrowest type that the model and the loss compute in, between the weights and the objective: watched, not guessed.

    Norms and softmaxes of Hugging Face are in float32 whatever the model is in, and there are models of several types.

    Args:
        trial: The examples, of which the first is taken.
    """
    task, watch = trial.task, _Types()
    function = objective_function(task, trial.objective)
    autocast = torch.autocast(task.device.type, trial.autocast, enabled=trial.autocast is not None)
    with frozen(task.model), torch.enable_grad(), autocast:
        for name, parameter in task.model.named_parameters():
            parameter.requires_grad_(name in task.tracked)
        with watch:
            function(task.model, task.collate(trial.chosen[:1]))
    return min(watch.types or {torch.float64}, key=lambda kind: torch.finfo(kind).bits)


def _in_batches(trial: Trial, batches: Sequence[Sequence[Example]]) -> Tensor:
    """Values of all examples, shape (B,), float64 on the CPU."""
    task, function = trial.task, objective_function(trial.task, trial.objective)
    autocast = torch.autocast(task.device.type, trial.autocast, enabled=trial.autocast is not None)
    with frozen(task.model), torch.no_grad(), autocast:
        return torch.cat([function(task.model, task.collate(batch)).double().cpu() for batch in batches])


class _Types(TorchFunctionMode):
    """Notes the floating types of all results that gradients go through."""

    def __init__(self):
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                self.types.add(tensor.dtype.to_real())
        return result


def are_equal(trial: Trial, together: Tensor, alone: Tensor, tolerance: float) -> bool:
    """Whether values are alike but for rounding.

    Args:
        trial: What they are of.
        together: Some, shape (B,).
        alone: The same in another way.
        tolerance: Of gradients, relative, which says how exactly is computed.
    """
    relative, absolute = _FINE if tolerance <= 1e-7 else _COARSE if tolerance <= 2e-3 else _HALF
    factor = 1 if trial.task.device.type == "cpu" else _ON_DEVICE
    dtype = torch.float64 if relative == _FINE[0] else torch.float32
    return torch.allclose(together, alone, rtol=factor * relative, atol=_rounded(alone, absolute, dtype))


def _rounded(values: Tensor, least: float, dtype: torch.dtype) -> float:
    """What rounding makes of the largest value, or the least that is looked at."""
    return max(least, _ROUNDED * torch.finfo(dtype).eps * float(values.abs().max()))
