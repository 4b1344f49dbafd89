"""Representer points: what the output layer alone says of who speaks for an answer.

Axes: Q queries, N training examples, M scored positions, H features, C outputs, U different outputs that queries ask about.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from whence.capture import frozen, in_halves
from whence.data import Dataset, Example, batches
from whence.errors import Unsupported
from whence.progress import meter
from whence.records import ScoreTable
from whence.tasks import AbstractTask, CausalLM
from whence.tasks.token_loss import IGNORED

__all__ = ["representer_scores"]


def representer_scores(
    task: AbstractTask, train: Dataset, queries: Dataset, *, max_positions: int = 4096, quiet: bool = False
) -> ScoreTable:
    """Representer points of a language model's output layer (Yeh et al. 2018, arXiv 1811.09720, equation 3), up to their scale.

    With features f of a position, logits z = W f and weight decay on W, a trained W is the sum of alpha_i f_i^T over training positions,
    with alpha_i = -(1 / 2 lambda N) dL_i/dz_i. So the logit of a token y at a query's position is the sum of alpha_i[y] f_i^T f. A
    document's score is its part of the logits of the query's tokens, added up over positions of both; 1 / 2 lambda is left out. W need not
    be at its optimum here, and the features are taken as given: that makes it a baseline.

    Args:
        task: A causal language model whose output layer `get_output_embeddings` names.
        train: The training examples.
        queries: The queries.
        max_positions: Positions per batch.
        quiet: No progress on stderr.

    Returns:
        Scores; positive for documents that raise the logits of the query's tokens.

    Raises:
        Unsupported: If the task is no such language model.
    """
    model: Any = task.model
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not isinstance(task, CausalLM) or head is None:
        raise Unsupported(
            found=f"a {type(task.model).__name__} of the task {task.kind!r}",
            needed="a causal language model with an output layer",
            do="compare with representation_similarity instead",
        )
    asked_QUH, tokens_U = _queries(task, head, queries.examples)
    scores_QN = torch.empty(len(queries), len(train), dtype=torch.float64)
    with meter("representers", len(train), quiet=quiet) as progress:

        def run(items: Sequence[int]) -> None:
            for item, (features_MH, logits_MC, targets_M) in zip(
                items, _positions(task, head, [train.examples[item] for item in items]), strict=True
            ):
                slopes_MC = logits_MC.softmax(1)
                slopes_MC[torch.arange(len(targets_M)), targets_M] -= 1.0
                own_UH = -slopes_MC[:, tokens_U].T @ features_MH / len(train)
                scores_QN[:, item] = torch.einsum("quh,uh->q", asked_QUH, own_UH).cpu()

        for batch in batches([example.length for example in train.examples], max_positions=max_positions):
            in_halves(batch, run, task.model)
            progress.advance(len(batch))
    method = "representer points of the output layer"
    return ScoreTable(scores_QN, queries.ids, train.ids, "part of the logits x 2 lambda", method)


def _queries(task: CausalLM, head: Any, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """For each query the sum of features by the token that was to be predicted, shape (Q, U, H), and these tokens."""
    read = [next(_positions(task, head, [example])) for example in examples]
    tokens_U = torch.cat([targets_M for *_, targets_M in read]).unique()
    sums = []
    for features_MH, _, targets_M in read:
        sum_UH = features_MH.new_zeros(len(tokens_U), features_MH.shape[1])
        sums.append(sum_UH.index_add_(0, torch.searchsorted(tokens_U, targets_M), features_MH))
    return torch.stack(sums), tokens_U


def _positions(task: CausalLM, head: Any, examples: Sequence[Example]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Features, logits and tokens of the scored positions of each example, float64.

    Yields:
        Example by example.
    """
    batch = task.collate(examples)
    with _inputs_of(head) as seen, frozen(task.model), torch.no_grad():
        outputs = task.outputs(task.model, batch)
    is_scored_BT = batch["labels"][:, 1:] != IGNORED
    features_MH = seen[-1][:, :-1][is_scored_BT].double()
    for row in range(len(examples)):
        of_row_M = outputs.owners_M == row
        yield features_MH[of_row_M], outputs.values_MC[of_row_M].double(), outputs.targets[of_row_M]


@contextmanager
def _inputs_of(layer: Any) -> Iterator[list[Tensor]]:
    """What enters a layer while the block runs.

    Yields:
        A list that grows with each call.
    """
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()
