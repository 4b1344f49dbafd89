"""What flows through the house: gradient factors, units of parameters, and scores.

Axes: B batch, T positions, O outputs, I inputs, Q queries, N training examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Dense", "OneHot", "Pair", "Recipe", "ScoreTable", "Side", "Unit", "Values", "recipe_text", "values_by_unit"]

Values = Literal["scores", "self-influence", "loss", "knn-shapley", "random"]
"""What the numbers of a table are."""

# Units that only one kind of values has; whoever makes such a table writes its unit and its mark.
_VALUES_OF_UNIT: Mapping[str, Values] = {
    "loss of the example itself, negated": "self-influence",
    "loss of the training example": "loss",
    "share of nearest neighbours with the query's label": "knn-shapley",
    "standard normal draws": "random",
}


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

    def examples(self, start: int, stop: int) -> "Dense":
        """The same of some examples only."""
        return Dense(self.values_BTN[start:stop], self.has_one)

    def folded(self, rows: int) -> "Dense":
        """The same vectors in another number of rows of positions."""
        return Dense(self.values_BTN.reshape(rows, -1, self.values_BTN.shape[-1]), self.has_one)

    def wide(self) -> "Dense":
        """The same in float32 or wider."""
        return Dense(self.values_BTN.to(torch.promote_types(self.values_BTN.dtype, torch.float32)), self.has_one)

    def times(self, matrix_NM: Tensor) -> Tensor:
        """Every vector times a matrix with `size` rows: shape (B, T, M), in the dtype of the vectors."""
        matrix_NM = matrix_NM.to(self.values_BTN.dtype)
        if not self.has_one:
            return self.values_BTN @ matrix_NM
        return self.values_BTN @ matrix_NM[:-1] + matrix_NM[-1]

    def columns(self, places_M: Tensor) -> Tensor:
        """Some entries of every vector, shape (B, T, M)."""
        width = self.values_BTN.shape[-1]
        inside_M = places_M.clamp_max(width - 1)
        if len(places_M) > width:
            # Reading rows is several times faster than picking single numbers, and pays for turning the matrix if many are wanted.
            found_BTM = self.values_BTN.transpose(1, 2).contiguous().index_select(1, inside_M).transpose(1, 2)
        else:
            found_BTM = self.values_BTN.index_select(-1, inside_M)
        return torch.where(places_M == width, torch.ones_like(found_BTM[..., :1]), found_BTM) if self.has_one else found_BTM


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

    def examples(self, start: int, stop: int) -> "OneHot":
        """The same of some examples only."""
        return OneHot(self.ids_BT[start:stop], self.size, self.dtype)

    def folded(self, rows: int) -> "OneHot":
        """The same vectors in another number of rows of positions."""
        return OneHot(self.ids_BT.reshape(rows, -1), self.size, self.dtype)

    def wide(self) -> "OneHot":
        """The same in float32 or wider."""
        return OneHot(self.ids_BT, self.size, torch.promote_types(self.dtype, torch.float32))

    def times(self, matrix_NM: Tensor) -> Tensor:
        """Every vector times a matrix with `size` rows, by lookup: shape (B, T, M)."""
        return matrix_NM.to(self.dtype)[self.ids_BT]

    def columns(self, places_M: Tensor) -> Tensor:
        """Some entries of every vector, shape (B, T, M): whether the position's row is that one."""
        return (self.ids_BT[..., None] == places_M).to(self.dtype)


Side = Dense | OneHot


@dataclass(frozen=True)
class Pair:
    """One use of a weight: the per-example gradient is the sum over positions of output x input.

    The pair is the currency of the house. `gradient()` writes it out: for queries, small layers and a few examples at a time.

    Args:
        outputs: Gradients of what came out of the weight.
        inputs: What went into it.
        is_by_position: Whether its positions may be those of the data; if not, they are rows of a gradient that was written out, and say
            nothing of where it came from.
    """

    outputs: Side
    inputs: Side
    is_by_position: bool = True

    def examples(self, start: int, stop: int) -> "Pair":
        """The same of some examples only."""
        return Pair(self.outputs.examples(start, stop), self.inputs.examples(start, stop), self.is_by_position)

    def folded(self, rows: int) -> "Pair":
        """The same with the positions of neighbouring rows in one, or of a row in several: as many rows as said."""
        return Pair(self.outputs.folded(rows), self.inputs.folded(rows), self.is_by_position)

    def wide(self) -> "Pair":
        """The same in float32 or wider, for sums over positions."""
        return Pair(self.outputs.wide(), self.inputs.wide(), self.is_by_position)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of examples, and of positions of each."""
        side = self.inputs
        examples, positions = (side.ids_BT if isinstance(side, OneHot) else side.values_BTN).shape[:2]
        return examples, positions

    def gradient(self) -> Tensor:
        """Per-example gradients, shape (B, O, I), in loss units per weight unit; one-hot outputs are never written out."""
        inputs_BTI = self.inputs.dense()
        if isinstance(self.outputs, Dense):
            return torch.einsum("bto,bti->boi", self.outputs.values_BTN, inputs_BTI)
        batch, _, width = inputs_BTI.shape
        rows_RI = inputs_BTI.new_zeros(batch * self.outputs.size, width)
        first_B1 = torch.arange(batch, device=inputs_BTI.device)[:, None] * self.outputs.size
        rows_RI.index_add_(0, (self.outputs.ids_BT + first_B1).flatten(), inputs_BTI.flatten(0, 1))
        return rows_RI.view(batch, self.outputs.size, width)


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
        decoupled_weight_decay: Whether an adaptive optimizer decays weights by themselves (AdamW), so that decay bypasses what gradients are
            divided by, or as a part of the gradient (Adam); None goes by its name.
        loss_divisor: What one example's summed loss was divided by inside the mean that training minimised: 1 for a mean over
            examples, the mean number of tokens per example for a mean over tokens.
        inverse_preconditioner: For adaptive optimizers, by parameter name, the mean of sqrt(v) + eps over its entries at the end of
            training, v bias-corrected (`whence.curvature.inverse_preconditioner` makes it); None if unknown.
    """

    optimizer: str
    learning_rate_sum: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    loss_divisor: float = 1.0
    inverse_preconditioner: Mapping[str, float] | None = None
    decoupled_weight_decay: bool | None = None


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
        method: Name and settings of the method, in a few words.
        notes: What else a reader should know: coverage, how damping was chosen, what the curvature was fitted with.
        parts: By name of a unit of parameters its part of the scores, shape (queries, train), if asked for; they add up to the scores.
        tokens: By id of a training example each position's part of its scores, shape (queries, positions), for those asked for.
        tuned_on: Ids of queries that a hyper-parameter was chosen with, on which the table must not be judged.
        bytes_per_example: What a store keeps of each training example, for stored methods; None where nothing is kept.
        seconds: What it took to make the table, all included; None if not measured.
        provenance: Who attributed for whom, where that is not one model: digests of the weights under "attributor" and "target" and of the
            data under "train" and "queries"; see `whence.proxy.proxy_table`.
        is_weighted: Whether a weight of each example is multiplied into the scores, as TRAK's and GraSS's 1 - p is. Such tables cannot be
            averaged over models, which is done for scores and weights apart.
        weights: What each example's scores are still to be multiplied with, shape (train,), in tables made for an ensemble
            (`score_table(..., weighted=False)`); None in all others.
        values: What the numbers are: scores for queries, or, as `whence.self_influence` and `whence.select.value_table` make them, each
            example's self-influence, its own loss, or chance. High self-influence and loss are suspicious where a high score is a help, so
            `whence.select.select` goes by it.
    """

    scores: Tensor
    query_ids: tuple[str, ...]
    train_ids: tuple[str, ...]
    unit: str
    method: str
    notes: tuple[str, ...] = ()
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    tuned_on: tuple[str, ...] = ()
    bytes_per_example: float | None = None
    seconds: float | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    is_weighted: bool = False
    weights: Tensor | None = None
    values: Values = "scores"

    def removal_effect(self) -> Tensor:
        """Predicted change of the measurement when each example is left out, shape (queries, train)."""
        return -self.scores


def values_by_unit(unit: str) -> Values:
    """What the numbers of a table are that was written before tables said so.

    Args:
        unit: The table's.

    >>> values_by_unit("loss of the training example"), values_by_unit("nats")
    ('loss', 'scores')
    """
    return _VALUES_OF_UNIT.get(unit, "scores")


def recipe_text(recipe: Mapping[str, object]) -> str:
    """A recipe as it is recorded, on one line; of what it has for each parameter only how many there are.

    >>> recipe_text({"optimizer": "adamw", "weight_decay": 0.1, "momentum": None, "inverse_preconditioner": {"a": 1.0, "b": 2.0}})
    'optimizer adamw, weight decay 0.1, inverse preconditioner of 2 parameters'
    """
    values = {name: f"of {len(value)} parameters" if isinstance(value, Mapping) else value for name, value in recipe.items()}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items() if value not in (None, ""))
