"""Shapley values of training examples for a nearest-neighbour classifier, exactly, beside influence.

Axes: N training examples, Q queries, H width of the representation.
"""

import torch
from torch import Tensor

from whence.data import Dataset
from whence.errors import BadInput, Unsupported
from whence.progress import meter
from whence.records import ScoreTable
from whence.score.representation import representations
from whence.tasks import AbstractTask, Classification

__all__ = ["knn_shapley", "knn_shapley_values"]


def knn_shapley(
    task: AbstractTask, train: Dataset, queries: Dataset, *, neighbours: int = 5, max_positions: int = 4096, quiet: bool = False
) -> ScoreTable:
    """What each training example adds to a K-nearest-neighbour classifier on the model's own representations (Jia et al. 2019, theorem 1).

    The classifier's utility for a query is the share of its K nearest training examples that have its label. Distances are Euclidean, between
    inputs of the model's last layer. A value is the Shapley value of that game: the mean, over all orders in which the data could have come,
    of what the example adds. The values of a query add up to the utility of all of the data. They say what an example's label is worth among
    its neighbours, and nothing of what training on it does to the model.

    Args:
        task: A classifier of one class each.
        train: The training examples.
        queries: The queries, with labels.
        neighbours: K.
        max_positions: Positions per batch.
        quiet: No progress on stderr.

    Returns:
        One row per query.

    Raises:
        BadInput: If K is not positive.
        Unsupported: If the task has no classes to compare.
    """
    if not isinstance(task, Classification) or task.labelling != "single":
        raise Unsupported(
            found=f"a {type(task).__name__} task" + (" of several labels" if isinstance(task, Classification) else ""),
            needed="a classifier of one class each, whose labels are compared",
            do="rank by influence",
        )
    if neighbours < 1:
        raise BadInput(found=f"neighbours={neighbours}", needed="1 or more", do="leave it out for 5")
    examples = [*train.examples, *queries.examples]
    with meter("representations", len(examples), quiet=quiet) as progress:
        layer, states_MH = representations(task, examples, max_positions, progress)
    states_NH, states_QH = states_MH.split([len(train), len(queries)])
    labels_N, labels_Q = (
        torch.tensor([int(example.fields["target"]) for example in data.examples]) for data in (train, queries)
    )
    values_QN = torch.stack(
        [
            knn_shapley_values((states_NH - state_H).square().sum(1), labels_N == label, neighbours)
            for state_H, label in zip(states_QH, labels_Q, strict=True)
        ]
    )
    method = f"KNN-Shapley (K {neighbours}, input of {layer})"
    unit = "share of nearest neighbours with the query's label"
    return ScoreTable(values_QN, queries.ids, train.ids, unit, method, values="knn-shapley")


def knn_shapley_values(distances_N: Tensor, is_alike_N: Tensor, neighbours: int) -> Tensor:
    """The Shapley value of every example for one query (Jia et al. 2019, theorem 1), shape (N,), float64.

    Args:
        distances_N: From the query; of equal ones the first is the nearer.
        is_alike_N: Whether an example has the query's label.
        neighbours: K.

    >>> knn_shapley_values(torch.tensor([0.0, 1.0]), torch.tensor([True, False]), 1)
    tensor([1., 0.], dtype=torch.float64)
    """
    order_N = distances_N.argsort(stable=True)
    alike_N = is_alike_N[order_N].double()
    count = len(order_N)
    ranks_N = torch.arange(1, count + 1, dtype=torch.float64)
    # The farthest counts where it is among the first K; each nearer one differs from its successor by what a swap of the two would change.
    share_N = ranks_N.clamp(max=neighbours) / ranks_N / neighbours
    steps_N = torch.cat([(alike_N[:-1] - alike_N[1:]) * share_N[:-1], alike_N[-1:] * share_N[-1:]])
    values_N = steps_N.flip(0).cumsum(0).flip(0)
    return torch.empty(count, dtype=torch.float64).index_copy_(0, order_N, values_N)
