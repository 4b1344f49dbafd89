"""Gradients at the input of a language model's head: what a pass over the blocks needs, without logits in memory.

The loss depends on the blocks through the head's input h only, and its gradient there is p W - W_label, p the model's probabilities and W the
head's weight. It is made in blocks that stay in the processor's cache, so no tensor of the size of the logits exists, forth or back.

Axes: M scored rows, B examples, T positions, C width of the head's input, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from whence.capture.frozen import frozen
from whence.capture.units import Plan
from whence.data import Example
from whence.matmul import times_transposed
from whence.sharded_weights import is_offloaded, is_sharded
from whence.tasks import AbstractTask, Batch, CausalLM
from whence.tasks.outputs import drawn_classes, numbers_by_row, output_of
from whence.tasks.token_loss import IGNORED

__all__ = ["Head", "HeadRows", "separate_head"]

# Logits worked on at a time.
_CHUNK_NUMBERS = {"cpu": 1 << 19}
_DEVICE_CHUNK_NUMBERS = 1 << 26


@dataclass(frozen=True)
class HeadRows:
    """One batch's inputs of the head at scored positions; to curvature and scores the same as the `Outputs` behind it.

    Args:
        values_MC: The inputs, attached to the graph.
        owners_M: Index in the batch of the example that each row belongs to.
        targets_M: The labels.
        head: The head.
        drawn_MC: Gradients of the losses of drawn labels, once `sampled` has made them.
    """

    values_MC: Tensor
    owners_M: Tensor
    targets_M: Tensor
    head: nn.Linear
    drawn_MC: Tensor | None = None

    def sampled(self, generators: torch.Generator | Sequence[torch.Generator]) -> "HeadRows":
        """The same with labels drawn from the model; the draws are those of `Outputs.sampled`."""
        uniform_M1 = numbers_by_row(torch.rand, generators, self.owners_M, 1).to(self.values_MC.device)
        return replace(self, drawn_MC=self._gradients(uniform_M1))

    def residuals(self) -> Tensor:
        """Gradient of each row's loss by its values, shape (M, C), detached."""
        return self._gradients(None) if self.drawn_MC is None else self.drawn_MC

    def linearized(self, num_examples: int) -> Tensor:
        """A function of the values with the gradients of the examples' losses, shape (B,)."""
        products_M = (self.values_MC * self.residuals()).sum(1)
        return products_M.new_zeros(num_examples).index_add(0, self.owners_M, products_M)

    def _gradients(self, uniform_M1: Tensor | None) -> Tensor:
        """The gradients p W - W_label, for labels drawn with the given numbers, or the rows' own."""
        hidden_MC = self.values_MC.detach()
        weight_VC = self.head.weight.detach().to(hidden_MC)
        weight_CV = weight_VC.T.contiguous()
        found_MC = torch.empty_like(hidden_MC)
        size = _CHUNK_NUMBERS.get(hidden_MC.device.type, _DEVICE_CHUNK_NUMBERS)
        rows = max(1, size // len(weight_VC))
        for start in range(0, len(hidden_MC), rows):
            part = slice(start, start + rows)
            logits = times_transposed(hidden_MC[part], weight_VC)
            if self.head.bias is not None:
                logits += self.head.bias.detach()
            p = torch.softmax(logits, -1)
            labels = self.targets_M[part] if uniform_M1 is None else drawn_classes(p, uniform_M1[part])
            found_MC[part] = times_transposed(p, weight_CV) - weight_VC[labels]
        return found_MC


@dataclass(frozen=True)
class Head:
    """The head of a causal language model whose weight is not attributed.

    Args:
        module: The layer.
    """

    module: nn.Linear

    def rows(self, model: nn.Module, batch: Batch) -> HeadRows:
        """Run the model up to the head; the rows are in the order of the task's `outputs`."""
        with _left_out(self.module):
            hidden_BTC = output_of(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]))
        labels_BT = batch["labels"][:, 1:]
        is_scored_BT = labels_BT != IGNORED
        values_MC = hidden_BTC[:, :-1][is_scored_BT]
        wide = torch.promote_types(values_MC.dtype, torch.float32)
        return HeadRows(values_MC.to(wide), is_scored_BT.nonzero()[:, 0], labels_BT[is_scored_BT], self.module)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """A function with the gradients of the task's loss but not its values, shape (B,)."""
        return self.rows(model, batch).linearized(len(batch["labels"]))


def separate_head(task: AbstractTask, plan: Plan, examples: Sequence[Example]) -> Head | None:
    """The head of a task that can do without its logits.

    Args:
        task: A causal language model with a linear head whose parameters are not tracked, and nothing but a softmax after it; any other gets
            None.
        plan: Its units, all of them captured by hooks.
        examples: The first two are tried, so that logits which are capped or scaled after the head are noticed.

    Returns:
        The head, or None.
    """
    model: Any = task.model
    if not isinstance(task, CausalLM) or plan.functional or plan.route.twin or not hasattr(model, "get_output_embeddings"):
        return None
    if is_sharded(model) or is_offloaded(model):  # the head's weight is there while the head runs, and no longer
        return None
    module = model.get_output_embeddings()
    tracked = {id(value) for name, value in task.model.named_parameters() if name in task.tracked}
    if type(module) is not nn.Linear or any(id(parameter) in tracked for parameter in module.parameters()):
        return None
    head = Head(module)
    return head if all(_explains(task, head, example) for example in examples[:2]) else None


def _explains(task: AbstractTask, head: Head, example: Example) -> bool:
    """Whether the task's outputs are what the head makes of its inputs, number by number."""
    batch = task.collate([example])
    with frozen(task.model), torch.no_grad():
        found_MV = task.outputs(task.model, batch).values_MC
        expected_MV = head.module(head.rows(task.model, batch).values_MC.to(head.module.weight.dtype)).to(found_MV)
    tolerance = 64 * torch.finfo(head.module.weight.dtype).eps * float(expected_MV.abs().max())
    return found_MV.shape == expected_MV.shape and torch.allclose(found_MV, expected_MV, rtol=0, atol=tolerance)


@contextmanager
def _left_out(module: nn.Module) -> Iterator[None]:
    """The layer hands on its input for the moment.

    Yields:
        Nothing.
    """
    forward = module.__dict__.get("forward")
    module.forward = lambda hidden: hidden
    try:
        yield
    finally:
        if forward is None:
            del module.forward
        else:
            module.forward = forward
