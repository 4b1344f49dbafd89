"""Bases of the curvature kept while a model is trained, from the run's own backward passes.

Axes: B batch, T positions, R positions with a gradient, N a side.
"""

from contextlib import ExitStack

import torch
from torch import Tensor

from whence.capture import plan_units, taps
from whence.curvature import SpectralFactor
from whence.errors import BadInput, Unsupported
from whence.records import Dense, Pair
from whence.tasks import AbstractTask

__all__ = ["OnlineCurvature"]


class OnlineCurvature:
    """Follows the eigenvectors of K-FAC's factors along a run, for `whence.Recorder(..., curvature=OnlineCurvature(task))`.

    Of every so many-th step the inputs and output gradients of each layer are looked at as they come by; after a few, whose moments are
    decomposed, each moment turns the bases a little (`whence.curvature.SpectralFactor`). Every checkpoint has the bases of then, and
    `whence.attribute(..., method=whence.Source(online_bases=True))` takes them in place of its first pass over the data and all
    decompositions.
    The moments are of the labels that the data has, and of the steps before the checkpoint; eigenvalues are measured in the bases later.

    Args:
        task: With the model that is trained, as it will be attributed with.
        every: Steps from one look to the next: a look costs about the products that a decomposition of each side would.
        share: Of a look in the moving average.
        first: Looks before the first bases.
        largest_side: Longer sides are left to the fit.

    Raises:
        BadInput: If a number is not in its range.
    """

    def __init__(self, task: AbstractTask, *, every: int = 10, share: float = 0.1, first: int = 4, largest_side: int = 4096):
        if every < 1 or first < 1 or not 0 < share < 1:
            raise BadInput(
                found=f"every={every}, share={share}, first={first}",
                needed="at least one step and look, and a share between 0 and 1",
                do="correct it",
            )
        self.task, self.every, self.share, self.first, self.largest_side = task, every, share, first, largest_side
        self.plan = plan_units(task)
        self.factors: dict[str, SpectralFactor] = {}
        self.looks = 0
        self._sums: dict[str, Tensor] = {}
        self._moments: dict[str, Tensor] = {}
        self._stack = ExitStack()
        self._is_blind = False

    def watch(self, num_examples: int, step: int) -> None:
        """Look at the coming forward and backward pass, if its step's turn has come."""
        self._stack.close()
        if step % self.every == 0:
            self._stack.enter_context(taps(self.plan, self._consume, num_examples, self.task.device)).copies = True
            # Until a pair comes by; a plan without layers that are looked at has nothing to miss.
            self._is_blind = any(not layer.units <= self.plan.route.twin for layer in self.plan.layers)

    def step(self) -> None:
        """Take what was seen into the bases; before the weights are stepped.

        Raises:
            BadInput: If it was to look at the step and no pass came by.
        """
        self._stack.close()
        if self._is_blind:
            raise BadInput(
                found="a step to look at for the curvature, and no forward and backward pass after batch(ids)",
                needed="batch(ids) before the forward pass, since that is where its inputs are seen",
                do="call batch(ids) of the recorder first, then the model, backward() and optimizer.step()",
            )
        if not self._sums:
            return
        self.looks += 1
        for name, total in self._sums.items():
            moment_NN = total / float(total.diagonal().mean().clamp_min(torch.finfo(total.dtype).tiny))
            if name in self.factors:
                self.factors[name].update(moment_NN, self.share)
            else:
                self._moments[name] = self._moments.get(name, torch.zeros_like(moment_NN)) + moment_NN / self.first
                if self.looks >= self.first:
                    self.factors[name] = SpectralFactor.of(self._moments.pop(name))
        self._sums = {}

    def close(self) -> None:
        """Look no more."""
        self._stack.close()
        self._is_blind = False
        self._sums = {}

    def tensors(self) -> dict[str, Tensor]:
        """Bases and eigenvalues by `side.unit` and `side_values.unit`, of units that have both or need no basis on the other side."""
        saved = {}
        for name, factor in self.factors.items():
            side, _, index = name.partition(".")
            saved |= {f"{side}.{index}": factor.basis_NN.contiguous(), f"{side}_values.{index}": factor.values_N}
        return saved

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        names = [name for name in tensors if not name.partition(".")[0].endswith("_values")]
        pairs = {name: (tensors[name], tensors[name.replace(".", "_values.")]) for name in names}
        self.factors = {name: SpectralFactor(basis_NN, values_N) for name, (basis_NN, values_N) in pairs.items()}
        self.looks = self.first if self.factors else 0
        self._moments = {}

    def _consume(self, index: int, pair: Pair) -> None:
        self._is_blind = False
        if not isinstance(pair.outputs, Dense) or index in self.plan.route.twin:
            return
        outputs_BTN = pair.wide().outputs
        assert isinstance(outputs_BTN, Dense)
        rows_BTN = outputs_BTN.dense().detach()
        real_BT = rows_BTN.abs().sum(-1) > 0  # padding has inputs, but no gradient
        self._add(f"outputs.{index}", rows_BTN[real_BT])
        inputs = pair.wide().inputs
        if isinstance(inputs, Dense):
            self._add(f"inputs.{index}", inputs.dense().detach()[real_BT])

    def _add(self, name: str, rows_RN: Tensor) -> None:
        size = rows_RN.shape[1]
        if size > self.largest_side or size == 1 or not len(rows_RN):
            return
        product_NN = rows_RN.T @ rows_RN
        self._sums[name] = self._sums[name] + product_NN if name in self._sums else product_NN
        if not bool(torch.isfinite(product_NN.diagonal()).all()):
            raise Unsupported(
                found=f"a NaN or infinite moment of {name}",
                needed="finite gradients",
                do="record without curvature, or lower the rate",
            )
