"""The labels over which curvature is averaged, as functions to differentiate.

The Fisher information takes labels from the model's own likelihood: all of them, weighted, where there are few, else some draws.

Axes: B examples, M scored rows, C outputs per row.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from whence.capture import Head, Objective, Plan, frozen, telling_examples
from whence.curvature.sides import directions_of
from whence.data import Dataset, Example
from whence.errors import BadInput, Unsupported
from whence.settings import FitConfig, LabelChoice
from whence.tasks import AbstractTask, Batch, Outputs

__all__ = ["LabelRule", "check_outputs", "choose_labels", "class_count", "likely_classes", "numbered", "objectives"]

# Every class costs a backward pass, so beyond this many a draw is the better buy.
_FEW_CLASSES = 32
_LOOKED_AT = 32


@dataclass(frozen=True)
class LabelRule:
    """Which labels, decided for one dataset.

    Args:
        kind: "exact" (every label, weighted with its probability), "sampled" (draws from the model), "dataset" (the labels that the data has,
            which gives the empirical Fisher).
        passes: Backward passes per batch: classes or outputs, draws, or 1.
        seed: Of the draws.
    """

    kind: Literal["exact", "sampled", "dataset"]
    passes: int
    seed: int

    def __str__(self) -> str:
        if self.kind == "sampled":
            return f"{self.passes} sampled label{'s' if self.passes > 1 else ''} (seed {self.seed})"
        return "all labels, weighted" if self.kind == "exact" else "the dataset's labels (empirical Fisher)"


def choose_labels(
    task: AbstractTask, examples: Sequence[Example], labels: LabelChoice, *, samples: int | None, seed: int
) -> LabelRule:
    """The rule for a dataset.

    "auto" takes the expectation over labels exactly where every example has one row of at most 32 outputs and no number of samples is
    asked for, and one draw otherwise. The empirical Fisher is never chosen by itself: near a perfect fit it vanishes, and it does not have
    the second-order information that the Gauss-Newton matrix has (Kunstner, Balles and Hennig 2019).

    Args:
        task: Model and likelihood.
        examples: The data; the shortest and the longest example are looked at, and some between them before all labels are taken.
        labels: What was asked for.
        samples: Draws per row; None for 1.
        seed: Of the draws.

    Returns:
        The rule.

    Raises:
        BadInput: If the number of samples is not positive or would be ignored.
        Unsupported: If all labels are to be taken of examples with several rows.
    """
    if samples is not None and (samples < 1 or labels not in ("auto", "sampled")):
        raise BadInput(
            found=f"samples={samples} with labels={labels!r}",
            needed="a positive number, and labels that are drawn",
            do="leave samples out, or pass FitConfig(labels='sampled')",
        )
    if labels == "dataset":
        return LabelRule("dataset", 1, seed)
    if labels == "sampled" or samples is not None:
        return LabelRule("sampled", samples or 1, seed)
    ends = [min(examples, key=lambda example: example.length), max(examples, key=lambda example: example.length)]
    outputs = _outputs_alone(task, ends)
    width = outputs[0].values_MC.shape[1]
    is_one_row = all(len(of_example.values_MC) == 1 for of_example in outputs)
    if labels == "exact" and not is_one_row:
        raise Unsupported(**_several_rows(max(len(of_example.values_MC) for of_example in outputs)))
    if labels == "exact" or (is_one_row and width <= _FEW_CLASSES and _is_one_row_each(task, examples)):
        return LabelRule("exact", width, seed)
    return LabelRule("sampled", 1, seed)


def objectives(
    task: AbstractTask, rule: LabelRule, examples: Sequence[Example], *, stage: str, head: Head | None = None
) -> Iterator[Objective]:
    """Functions whose per-example gradients g have, summed over the functions, the Fisher's g g^T as expectation.

    Each is the inner product of the outputs with the residuals of some labels, which are constants: its gradient is that of the loss with
    these labels. An exact expectation takes, for class c, the residual times sqrt(p_c).

    Args:
        task: Model and likelihood.
        rule: Which labels.
        examples: The batch's examples. Draws are seeded by their ids, so that batches do not matter.
        stage: What the draws are for; every stage has its own.
        head: A head that can be left out, for labels that are not taken all.

    Yields:
        A function for `capture`, of the model and a `numbered` batch.
    """
    if rule.kind == "dataset":
        loss = task.loss if head is None else head.loss
        yield lambda model, batch: loss(model, batch[0])
        return
    for number in range(rule.passes):
        seeds = [_seed(rule.seed, stage, number, example.id) for example in examples]

        def objective(model: nn.Module, batch: Batch, number: int = number, seeds: list[int] = seeds) -> Tensor:
            inner, numbers_B = batch
            if rule.kind == "exact":
                outputs = task.outputs(model, inner)
                residuals_MC = _weighted_residuals(outputs, number, len(numbers_B))
            else:
                outputs = task.outputs(model, inner) if head is None else head.rows(model, inner)
                generators = [torch.Generator().manual_seed(seeds[drawn]) for drawn in numbers_B.tolist()]
                residuals_MC = outputs.sampled(generators).residuals()
            products_M = (outputs.values_MC * residuals_MC).sum(1)
            if rule.kind == "sampled":  # a mean over draws
                products_M = products_M / math.sqrt(rule.passes)
            return products_M.new_zeros(len(numbers_B)).index_add(0, outputs.owners_M, products_M)

        yield objective


def numbered(batch: Batch, num_examples: int, device: torch.device, *, first: int = 0) -> Batch:
    """A batch with its examples' numbers, which say whose draws are whose: the functional twin runs one example at a time."""
    return batch, torch.arange(first, first + num_examples, device=device)


def check_outputs(task: AbstractTask, examples: Sequence[Example]) -> None:
    """Hold the likelihood of a task's outputs against its loss, on a few examples that differ, in one batch.

    Raises:
        BadInput: If they differ, since the curvature would be that of another loss.
    """
    chosen = telling_examples(examples, sum(parameter.numel() for parameter in task.model.parameters()))
    with frozen(task.model), torch.no_grad():
        batch = task.collate(chosen)
        losses_B, told_B = task.loss(task.model, batch), task.outputs(task.model, batch).losses(len(chosen))
    for example, loss, told_loss in zip(chosen, losses_B.tolist(), told_B.tolist(), strict=True):
        if abs(told_loss - loss) > 1e-2 * abs(loss) + 1e-3:
            raise BadInput(
                found=f"outputs whose likelihood gives example {example.id!r} a loss of {told_loss:.5g}, where the task's is {loss:.5g}",
                needed="the same loss, or the curvature would be that of another one",
                do="correct the outputs function (rows, owners, targets, likelihood), or pass FitConfig(labels='dataset')",
            )


def class_count(task: AbstractTask, plan: Plan, examples: Sequence[Example], config: FitConfig) -> int:
    """How many classes a task's outputs tell apart, if that is the length of a side too long for all of its eigenvectors; else 0.

    Of no more rows than a side has directions a sketch holds all, which the likely classes do not: then 0, too.
    """
    cut = {unit.outputs for unit in plan.units if directions_of(unit.outputs, config) not in (0, unit.outputs)}
    if not cut:
        return 0
    try:
        rule = choose_labels(task, examples, config.labels, samples=config.samples, seed=config.seed)
        if rule.passes * sum(example.length for example in examples) <= (config.directions or 0):
            return 0
        outputs = _outputs_alone(task, [min(examples, key=lambda example: example.length)])[0]
    except Unsupported:  # a loss that does not say what it is a likelihood of
        return 0
    classes = outputs.values_MC.shape[1]
    return classes if outputs.likelihood == "categorical" and classes in cut else 0


def likely_classes(task: AbstractTask, dataset: Dataset, count: int) -> Tensor:
    """The classes whose logits have the largest gradients, E[p (1 - p)], on some examples from all over the data; rising, shape (count,)."""
    total: Tensor | None = None
    for example in dataset.spread(min(_LOOKED_AT, len(dataset))).examples:
        p_MC = _outputs_alone(task, [example])[0].values_MC.float().softmax(-1)
        sums_C = (p_MC * (1 - p_MC)).sum(0).double().cpu()
        total = sums_C if total is None else total + sums_C
    assert total is not None
    return total.argsort(descending=True, stable=True)[:count].sort()[0]


def _outputs_alone(task: AbstractTask, examples: Sequence[Example]) -> list[Outputs]:
    with frozen(task.model), torch.no_grad():
        return [task.outputs(task.model, task.collate([example])) for example in examples]


def _is_one_row_each(task: AbstractTask, examples: Sequence[Example]) -> bool:
    """Whether examples from all over the data have one row: hidden tokens and completions do not grow with the length of a text."""
    chosen = Dataset(examples).spread(_LOOKED_AT).examples
    with frozen(task.model), torch.no_grad():
        return len(task.outputs(task.model, task.collate(chosen)).values_MC) == len(chosen)


def _weighted_residuals(outputs: Outputs, number: int, num_examples: int) -> Tensor:
    """Column c of a square root of the likelihood's Hessian.

    It is sqrt(p_c) (p - e_c) for classes, e_c for a unit Gaussian, and sqrt(p_c (1 - p_c)) e_c for yes or no.

    Raises:
        Unsupported: If an example has several rows.
    """
    values_MC = outputs.values_MC.detach()
    if len(values_MC) != num_examples:
        raise Unsupported(**_several_rows(len(values_MC) // num_examples + 1))
    one_C = torch.zeros_like(values_MC[0])
    one_C[number] = 1.0
    if outputs.likelihood == "gaussian":
        return one_C.expand_as(values_MC)
    if outputs.likelihood == "bernoulli":
        p_MC = values_MC.sigmoid()
        return (p_MC * (1 - p_MC)).sqrt() * one_C
    p_MC = values_MC.softmax(-1)
    return p_MC[:, number, None].sqrt() * (p_MC - one_C)


def _several_rows(rows: int) -> dict[str, str]:
    return {
        "found": f"an example with {rows} rows of outputs, all of whose labels are to be taken",
        "needed": "one row per example",
        "do": "pass FitConfig(labels='sampled'), on the command line --labels sampled",
    }


def _seed(seed: int, stage: str, number: int, name: str) -> int:
    key = hashlib.sha256(f"whence:labels:1:{seed}:{stage}:{number}:{name}".encode()).digest()
    return int.from_bytes(key[:8], "little") >> 1
