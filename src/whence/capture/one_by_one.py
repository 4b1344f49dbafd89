"""Plain autograd, one example at a time: what captured gradients are held against."""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from whence.capture.blocks import as_block
from whence.capture.frozen import LEFT_OUT, frozen
from whence.capture.halves import is_out_of_memory
from whence.capture.hooks import Objective, capture, not_reached, objective_function
from whence.capture.units import Plan
from whence.data import Example
from whence.errors import BadInput, Unsupported, WhenceError
from whence.records import Pair
from whence.sharded_weights import is_sharded, loaded_copies, whole
from whence.tasks import AbstractTask, Batch
from whence.tasks.base import precision

__all__ = ["Trial"]

# Pairs of random vectors that gradients are seen through.
_PROBES = 4


@dataclass(frozen=True)
class Trial:
    """A task on a few examples, whose gradients are made in two ways.

    A gradient G of a unit is seen through K pairs of random vectors, as u'Gv: through one of them alone a wrong gradient would look right
    as often as the tolerance is wide.

    Args:
        task: Model and loss.
        plan: Its units.
        chosen: The examples.
        objective: Loss or measurement.
        autocast: As in `capture`.
    """

    task: AbstractTask
    plan: Plan
    chosen: Sequence[Example]
    objective: Objective
    autocast: torch.dtype | None

    def captured(self) -> tuple[Tensor, Tensor]:
        """By capture, of all examples in one batch.

        Returns:
            u'Gv, shape (units, B, K), and the objective's values, shape (B,); float64, on the CPU.
        """
        contractions = torch.zeros(len(self.plan.units), len(self.chosen), _PROBES, dtype=torch.float64)
        probes = self._probes()

        def consume(index: int, pair: Pair) -> None:
            left_OK, right_IK = probes[index]
            left_BTK = pair.outputs.times(left_OK).double()
            right_BTK = pair.inputs.times(right_IK).double()
            contractions[index] += (left_BTK * right_BTK).sum(1).cpu()

        values = capture(
            self.task, self.plan, self.task.collate(self.chosen), consume,
            num_examples=len(self.chosen), alone=lambda number: self.task.collate([self.chosen[number]]),
            objective=self.objective, autocast=self.autocast,
        )  # fmt: skip
        return contractions, values.double().cpu()

    def one_by_one(self) -> tuple[Tensor, Tensor, Tensor]:
        """By autograd, of each example alone.

        Returns:
            The objective's values, shape (B,); u'Gv, shape (units, B, K); and the gradients' Frobenius norms, shape (units, B), which are
            the scale of that.

        Raises:
            Unsupported: If no tracked parameter has a part in any of them.
        """
        parts = [self._by_autograd([example]) for example in self.chosen]
        if not any(part.is_reached for part in parts):
            raise Unsupported(**not_reached(self.objective))
        alone = torch.cat([part.values for part in parts])
        return alone, torch.stack([part.probed for part in parts], 1), torch.stack([part.norms for part in parts], 1)

    def of_sum(self) -> Tensor:
        """By autograd, of the sum over all examples in one batch: u'Gv, shape (units, K)."""
        return self._by_autograd(self.chosen).probed

    def _by_autograd(self, examples: Sequence[Example]) -> "_Gradients":
        """Of the sum of the objective over one batch.

        Raises:
            UserWarning: That of the model itself, where warnings are errors.
        """
        try:
            return self._of_tracked(examples)
        except UserWarning as warning:
            if not re.match(LEFT_OUT, str(warning)):
                raise
            # Reentrant checkpointing leaves out a stretch whose inputs ask for none, as they do where all is trained.
            return self._of_tracked(examples, every=True)

    def _of_tracked(self, examples: Sequence[Example], *, every: bool = False) -> "_Gradients":
        task, plan, probes = self.task, self.plan, self._probes()
        function = objective_function(task, self.objective)
        with frozen(task.model), torch.enable_grad(), loaded_copies(task.model) as copies:
            # Asked each time: offloaded ones are other objects after a pass.
            parameters = {
                name: value
                for name, value in task.model.named_parameters()
                if name in task.tracked or (every and (value.is_floating_point() or value.is_complex()))
            }
            gradients_before = {name: value.grad for name, value in parameters.items()}
            for parameter in parameters.values():
                parameter.requires_grad_(True)
                parameter.grad = None
            autocast = torch.autocast(task.device.type, dtype=self.autocast, enabled=self.autocast is not None)
            try:
                with autocast, warnings.catch_warnings():
                    if not every:
                        warnings.filterwarnings("error", message=LEFT_OUT)
                    values = _values(task, function, examples)
            except UserWarning:
                for name, parameter in parameters.items():
                    parameter.grad = gradients_before[name]
                raise
            is_reached = values.requires_grad
            if is_reached:
                _backward(values.sum())
        grads = {name: _gradients(name, parameter, copies) for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            parameter.grad = gradients_before[name]
        probed = torch.zeros(len(plan.units), _PROBES, dtype=torch.float64)
        norms = torch.zeros(len(plan.units), dtype=torch.float64)
        for index, unit in enumerate(plan.units):
            own = {name: _joined(grads.pop(name), parameters[name], task.device)[None] for name in unit.parameters}
            gradient = as_block(plan, unit, own)[0].double()
            left_OK, right_IK = probes[index]
            probed[index] = ((left_OK.double().T @ gradient) * right_IK.double().T).sum(1).cpu()
            norms[index] = gradient.norm().cpu()
        return _Gradients(values.detach().sum().double().cpu()[None], probed, norms, is_reached)

    def _probes(self) -> list[tuple[Tensor, Tensor]]:
        dtype = torch.float64 if precision(self.task.model) == torch.float64 else torch.float32
        probes = []
        for index, unit in enumerate(self.plan.units):
            generator = torch.Generator().manual_seed(index)
            left_OK, right_IK = (
                torch.randn(size, _PROBES, generator=generator, dtype=dtype) for size in (unit.outputs, unit.inputs)
            )
            probes.append((left_OK.to(self.task.device), right_IK.to(self.task.device)))
        return probes


@dataclass(frozen=True)
class _Gradients:
    """The objective's sum over a batch, shape (1,); per unit u'Gv (K) and the norm of G; and whether a tracked parameter has a part in it."""

    values: Tensor
    probed: Tensor
    norms: Tensor
    is_reached: bool


def _values(task: AbstractTask, function: Callable[[nn.Module, Batch], Tensor], examples: Sequence[Example]) -> Tensor:
    """The objective of some examples.

    Raises:
        BadInput: If there is none, with the first example's id.
        error: Whatever is not of this example: memory that does not suffice, processes that a model is split over and that are lost.
    """
    batch, example = task.collate(examples), examples[0]
    try:
        return function(task.model, batch)
    except BadInput as error:
        do = f"{error.do} (seen in the example {example.id!r})"
        raise BadInput(found=error.found, needed=error.needed, do=do) from error
    except Exception as error:
        if isinstance(error, WhenceError | UserWarning) or is_sharded(task.model) or is_out_of_memory(error):
            raise error
        line = (str(error).strip().splitlines() or [""])[0][:200]
        raise BadInput(
            found=f"a model or a loss that fails on the example {example.id!r} alone ({type(error).__name__}: {line})",
            needed="inputs that it takes, and a batch of one among them",
            do="check this example; the error that this one comes from says where",
        ) from error


def _backward(value: Tensor) -> None:
    """Run backward, not `autograd.grad`, which reentrant checkpointing refuses.

    Raises:
        Unsupported: If an operation on the way has no derivative: PyTorch only warns and goes on as if it were constant.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*an autograd kernel was not registered")
        try:
            value.backward()
        except UserWarning as warning:
            raise Unsupported(
                found=f"a model with an operation that has no derivative ({str(warning).split(': an autograd')[0]})",
                needed="operations that gradients go through",
                do="for bitsandbytes on a CPU load the model anew, since one that was run in evaluation mode is packed for good",
            ) from None


def _gradients(name: str, parameter: Tensor, copies: dict[str, list[Any]]) -> list[Tensor]:
    """The gradients of a parameter, or of the copies of it that were loaded for the pass, which add up to it."""
    return [holder.grad for holder in copies.get(name, [parameter]) if holder.grad is not None]


def _joined(gradients: list[Tensor], parameter: Tensor, device: torch.device) -> Tensor:
    """A parameter's whole gradient, zeros if the loss did not reach it; of a sharded one all processes ask, unit by unit."""
    if not gradients:
        return torch.zeros(parameter.shape, dtype=parameter.dtype, device=device)
    return whole(sum(gradients[1:], gradients[0])).to(device)
