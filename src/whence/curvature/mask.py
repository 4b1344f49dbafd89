"""A learned choice of entries of the gradient: those whose inner products rank training examples as all entries do (GraSS).

Axes: N sampled examples, C candidate entries.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from whence.capture import Plan, capture, in_halves
from whence.compress import BLOW_UP, EntryMask, SparseSketch, WholeProjection, joined_unit, random_places
from whence.data import Example, batches
from whence.progress import Meter
from whence.records import Pair
from whence.tasks import AbstractTask

__all__ = ["fit_mask", "mask_objective"]

# The authors' code: weight of the penalty, learning rate.
_PENALTY = 0.1
_LEARNING_RATE = 0.01
# Ours: the choice is made among random candidates, by few examples, since every step multiplies all pairs of them.
_CANDIDATES_PER_KEPT = 4
_EXAMPLES = 128
_STEPS = 100
# Raw inner products come from a sketch this wide: within about a hundredth of the norms' product.
_SKETCH = 8192


def fit_mask(
    task: AbstractTask,
    plan: Plan,
    examples: Sequence[Example],
    *,
    width: int,
    seed: int,
    max_positions: int,
    progress: Meter,
    autocast: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Entries of the whole gradient of the output function, four for every number of a row (Hu et al. 2025).

    A soft mask of candidates starts from the entries' sizes, is improved by Adam on `mask_objective`, and the largest are taken. The
    candidates are a random share of all entries, four times as many as are kept; where there are no more than are kept, all are.

    Args:
        task: Model and loss.
        plan: Its units.
        examples: A sample of the training data, of which at most 128 are used.
        width: Numbers of a row.
        seed: The run's seed.
        max_positions: Positions per batch.
        progress: Advanced once an example.
        autocast: As in `capture`.

    Returns:
        `places`, rising, int64: entries counted over all units one after the other, each row by row.
    """
    num_candidates = BLOW_UP * width
    size = joined_unit(plan.units).inputs
    candidates_C = random_places(size, _CANDIDATES_PER_KEPT * num_candidates, seed=seed, name="candidates for the mask")
    if len(candidates_C) <= num_candidates:
        progress.advance(len(examples))
        return {"places": candidates_C}
    chosen = examples[:: max(1, len(examples) // _EXAMPLES)][:_EXAMPLES]
    progress.advance(len(examples) - len(chosen))
    entries_NC, raw_NN = _gradients(task, plan, chosen, candidates_C, seed, max_positions, progress, autocast)
    logits_C = _by_size(entries_NC).requires_grad_()
    optimizer = torch.optim.Adam([logits_C], lr=_LEARNING_RATE)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        with torch.enable_grad():
            (-mask_objective(entries_NC, raw_NN, logits_C)).backward()
        optimizer.step()
    best = logits_C.detach().cpu().topk(num_candidates).indices
    return {"places": candidates_C[best].sort().values}


def mask_objective(entries_NC: Tensor, raw_NN: Tensor, logits_C: Tensor) -> Tensor:
    """How well masked inner products agree with raw ones, less a penalty for keeping much.

    The mean over examples of the correlation, over all examples, between the raw inner products with it and those of entries weighted by
    sigmoid(logits); minus .1 times the mean of the weights (a mean, not a sum, so that the penalty does not drown the rest in many entries).

    Args:
        entries_NC: Candidate entries of every example's gradient.
        raw_NN: Inner products of whole gradients.
        logits_C: The mask's logits.

    Returns:
        A scalar.
    """
    weights_C = torch.sigmoid(logits_C)
    masked_NN = (entries_NC * weights_C) @ entries_NC.T
    left_NN, right_NN = masked_NN - masked_NN.mean(1, keepdim=True), raw_NN - raw_NN.mean(1, keepdim=True)
    # Two examples' gradients may both be zero.
    norms_N = (left_NN.norm(dim=1) * right_NN.norm(dim=1)).clamp_min(torch.finfo(raw_NN.dtype).tiny)
    return ((left_NN * right_NN).sum(1) / norms_N).mean() - _PENALTY * weights_C.mean()


def _by_size(entries_NC: Tensor) -> Tensor:
    """Logits to start from: the logarithm of each entry's mean square, brought to mean 0 and variance 1.

    From equal logits the correlation is at its maximum already, and only the penalty would move them, all alike.
    """
    size_C = entries_NC.square().mean(0).clamp_min(torch.finfo(entries_NC.dtype).tiny).log()
    return (size_C - size_C.mean()) / size_C.std().clamp_min(1e-6)


def _gradients(
    task: AbstractTask,
    plan: Plan,
    examples: Sequence[Example],
    candidates_C: Tensor,
    seed: int,
    max_positions: int,
    progress: Meter,
    autocast: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """Candidate entries of every example's gradient, and inner products of the whole gradients."""
    device = task.device
    candidates_C = candidates_C.to(device)
    # As many slots as candidates and no signs: the entries themselves.
    count = len(candidates_C)
    identity = SparseSketch(torch.arange(count, device=device), torch.ones(count, device=device), count)
    entries = EntryMask(plan.units, candidates_C, identity, 1.0, device)
    sketch = WholeProjection(plan.units, _SKETCH, "sparse", seed, device)
    order: list[int] = []
    parts: list[tuple[Tensor, Tensor]] = []

    def run(items: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = [examples[item] for item in items]
        entry_rows, sums = entries.rows(len(chosen)), sketch.rows(len(chosen))

        def consume(index: int, pair: Pair) -> None:
            entry_rows(index, pair)
            sums(index, pair)

        batch = task.collate(chosen)
        capture(
            task,
            plan,
            batch,
            consume,
            num_examples=len(chosen),
            alone=lambda number: task.collate([chosen[number]]),
            objective="negated output",
            autocast=autocast,
        )
        progress.advance(len(chosen))
        return entry_rows.finished()[0][:, 0], sums.finished()[0][:, 0]

    for batch in batches([example.length for example in examples], max_positions=max_positions):
        parts.extend(in_halves(batch, run, task.model))
        order.extend(batch)
    back = torch.tensor(order).argsort()
    entries_NC, whole_NK = (torch.cat([part[which] for part in parts])[back.to(device)] for which in range(2))
    return entries_NC, whole_NK @ whole_NK.T
