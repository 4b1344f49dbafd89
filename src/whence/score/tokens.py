"""Which positions of a training example its score comes from.

Axes: Q queries, T positions, P x R one stored unit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from whence.capture import Plan, capture
from whence.compress import Encoder
from whence.data import Example
from whence.records import Pair
from whence.tasks import AbstractTask

__all__ = ["by_label", "token_scores"]


def token_scores(
    task: AbstractTask,
    plan: Plan,
    encoder: Encoder,
    example: Example,
    queries: Sequence[Tensor],
    *,
    autocast: torch.dtype | None = None,
) -> Tensor:
    """Contribution of each position to one example's score under one query.

    The gradient of a weight is a sum over positions, so the score is too. The parts add up to the score of the example's encoded
    gradient. Vectors (norm scales, lone biases) have no positions; their share is spread evenly.

    Args:
        task: Model and loss.
        plan: Its units.
        encoder: What made the rows.
        example: The training example.
        queries: One preconditioned query, per stored unit of shape (P, R).
        autocast: As in `capture`.

    Returns:
        Shape (T,), in the unit of the score.
    """
    scores_T = torch.zeros(example.length, dtype=torch.float64)

    def consume(index: int, pair: Pair) -> None:
        parts = encoder.position_scores(index, pair, queries).double().cpu()
        if pair.is_by_position and len(parts) == len(scores_T):
            scores_T.add_(parts)
        else:
            scores_T.add_(parts.sum() / len(scores_T))

    batch = task.collate([example])
    capture(task, plan, batch, consume, num_examples=1, alone=lambda _: batch, autocast=autocast)
    return scores_T


def by_label(parts_QT: Tensor) -> Tensor:
    """Parts of a language model's positions, each at the token that was to be predicted there.

    A position reads one token and predicts the next, so its part belongs to the next token. It holds whatever of the example's loss flows
    through the position: the loss of that next token, and of later ones as far as they attend to it.

    Args:
        parts_QT: Each position's part of an example's scores.

    Returns:
        Shape (Q, T), with the same sums. The first token, which is never predicted, has 0. The last position predicts nothing; all it can
        have is its share of vectors, which have no positions, and that is spread over the others.

    >>> by_label(torch.tensor([[3.0, 1.0, 0.0]]))
    tensor([[0., 3., 1.]])
    """
    shifted_QT = parts_QT.roll(1, dims=1)
    last_Q1 = shifted_QT[:, :1].clone()
    shifted_QT[:, 0] = 0
    shifted_QT[:, 1:] += last_Q1 / (parts_QT.shape[1] - 1)
    return shifted_QT
