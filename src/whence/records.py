"""What flows through the house: gradient factors, units of parameters, and scores.

Axes: B batch, T positions, O outputs, I inputs, Q queries, N training examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Dense", "OneHot", "Pair", "Recipe", "ScoreTable", "Side", "Unit"]


@dataclass(frozen=True)
class Dense:
    """One side of a gradient pair, one vector per position.

    Args:
        values_BTN: The vectors.
        has_one: Whether a trailing 1 belongs to each vector (the bias column), kept implicit so that nothing is copied.
    """

    values_BTN: Tensor
    has_one: bool = False

    @property
    def size(self) -> int:
        """Length of the vectors, the trailing 1 included."""
        return self.values_BTN.shape[-1] + int(self.has_one)

    def dense(self) -> Tensor:
        """The vectors written out, shape (B, T, size)."""
        if not self.has_one:
            return self.values_BTN
        return torch.nn.functional.pad(self.values_BTN, (0, 1), value=1.0)

    def times(self, matrix_NM: Tensor) -> Tensor:
        """Every vector times a matrix with `size` rows: shape (B, T, M), in the dtype of the vectors."""
        matrix_NM = matrix_NM.to(self.values_BTN.dtype)
        if not self.has_one:
            return self.values_BTN @ matrix_NM
        return self.values_BTN @ matrix_NM[:-1] + matrix_NM[-1]


@dataclass(frozen=True)
class OneHot:
    """One side of a gradient pair whose vectors are rows of the identity: token ids, or row numbers.

    Args:
        ids_BT: Which row, per position.
        size: Number of rows of the identity.
        dtype: Floating type of the vectors when written out.
    """

    ids_BT: Tensor
    size: int
    dtype: torch.dtype = torch.float32

    def dense(self) -> Tensor:
        """The vectors written out, shape (B, T, size): for tests and small sizes only."""
        return torch.nn.functional.one_hot(self.ids_BT, self.size).to(self.dtype)

    def times(self, matrix_NM: Tensor) -> Tensor:
        """Every vector times a matrix with `size` rows, by lookup: shape (B, T, M)."""
        return matrix_NM.to(self.dtype)[self.ids_BT]


Side = Dense | OneHot


@dataclass(frozen=True)
class Pair:
    """One use of a weight: the per-example gradient is the sum over positions of output x input.

    The pair is the currency of the house. `gradient()` writes it out and is meant for tests and small layers.
    """

    outputs: Side
    inputs: Side

    def gradient(self) -> Tensor:
        """Per-example gradients, shape (B, O, I), in loss units per weight unit."""
        return torch.einsum("bto,bti->boi", self.outputs.dense(), self.inputs.dense())


@dataclass(frozen=True)
class Unit:
    """A group of parameters attributed together, with a gradient of shape (outputs, inputs).

    A weight is one unit, however many layers share it; a bias that belongs to one layer is the unit's last input column. Vectors
    (norm scales, lone biases, parameters of unknown layers) are units of one output.

    Args:
        name: Name of the first parameter.
        outputs: Rows of the gradient matrix.
        inputs: Columns of the gradient matrix, the bias column included.
        parameters: Names of all parameters in it.
        layers: Names of the modules that use it; empty for the functional twin.
    """

    name: str
    outputs: int
    inputs: int
    parameters: tuple[str, ...]
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """What is known of the training run, for damping in the units of the loss that was minimised.

    Args:
        optimizer: "sgd" (with or without momentum) or the name of an adaptive optimizer.
        learning_rate_sum: Sum of the learning rate over all steps.
        momentum: Heavy-ball coefficient; 0 for none.
        weight_decay: L2 coefficient.
        loss_divisor: What one example's summed loss was divided by inside the mean that training minimised: 1 for a mean over
            examples, the mean number of tokens per example for a mean over tokens.
        inverse_preconditioner: For adaptive optimizers, by parameter name, the mean of sqrt(v) + eps over its entries at the end of
            training, v bias-corrected (`whence.inverse_preconditioner` makes it); None if unknown.
    """

    optimizer: str
    learning_rate_sum: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    loss_divisor: float = 1.0
    inverse_preconditioner: Mapping[str, float] | None = None


@dataclass(frozen=True)
class ScoreTable:
    """Scores of every training example for every query.

    A score is the predicted change of the query's measurement when the example's weight in training goes from 1 to 2. Positive: a
    proponent, more weight on it raises the measurement.

    Args:
        scores: Shape (queries, train).
        query_ids: One per row.
        train_ids: One per column.
        unit: What one unit of score means.
        method: Name and settings of the method.
        tuned_on: Ids of queries that a hyper-parameter was chosen with, on which the table must not be judged.
        bytes_per_example: What a store keeps of each training example, for stored methods; None where nothing is kept.
        seconds: What it took to make the table, all included; None if not measured.
    """

    scores: Tensor
    query_ids: tuple[str, ...]
    train_ids: tuple[str, ...]
    unit: str
    method: str
    tuned_on: tuple[str, ...] = ()
    bytes_per_example: float | None = None
    seconds: float | None = None

    def removal_effect(self) -> Tensor:
        """Predicted change of the measurement when each example is left out, shape (queries, train)."""
        return -self.scores
