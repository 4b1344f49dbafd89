"""Which part of a score passes through which position: by moving the weights at that position alone, and asking autograd."""

import copy

import torch
from torch import Tensor

from tests.reference.gradients import unit_gradients


def label_parts(task, plan, blocks, ids, labels) -> Tensor:
    """Each label's part of the inner products of some blocks with a document's loss gradient, shape (Q, T).

    The weight that a layer uses at position t is moved by e_t times the block. The derivative of the loss by e_t is position t's part; it
    belongs to the token that position t predicts. Vectors have no positions: their whole part is spread over the labels.
    """
    found = [_of_one(task, plan, [block_QOI[place] for block_QOI in blocks], ids, labels) for place in range(len(blocks[0]))]
    return torch.stack(found)


def _of_one(task, plan, block, ids, labels) -> Tensor:
    model = copy.deepcopy(task.model).eval().requires_grad_(True)
    steps_T = torch.zeros(len(ids), dtype=torch.float64, requires_grad=True)
    vectors = []
    handles = []
    for unit, move_OI in zip(plan.units, block, strict=True):
        if unit.outputs == 1:
            vectors.append((unit, move_OI))
            continue
        for layer in unit.layers:
            handles.append(model.get_submodule(layer).register_forward_hook(_moved(move_OI, steps_T)))
    logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    loss = -sum(logits[t, labels[t + 1]] for t in range(len(ids) - 1) if labels[t + 1] != -100)
    loss.backward()
    parts = [0.0, *(float(part) for part in steps_T.grad[:-1])]
    grads = {name: (torch.zeros_like(p) if p.grad is None else p.grad)[None] for name, p in model.named_parameters()}
    gradients = dict(zip((unit.name for unit in plan.units), unit_gradients(task, plan, grads), strict=True))
    evenly = sum(float((gradients[unit.name][0] * move).sum()) for unit, move in vectors) / (len(ids) - 1)
    return torch.tensor([parts[0], *(part + evenly for part in parts[1:])], dtype=torch.float64)


def _moved(move_OI, steps_T):
    def hook(module, args, output):
        inputs = args[0]
        if isinstance(module, torch.nn.Embedding):
            step = move_OI[inputs]
        else:
            width = inputs.shape[-1]
            step = inputs @ move_OI[:, :width].T + (move_OI[:, width] if move_OI.shape[1] > width else 0.0)
        return output + steps_T[:, None] * step

    return hook
