"""The encoders of the raw stores, with the whole gradient formed, and TRAK as its paper writes it."""

import torch
from torch import Tensor

from tests.reference.gradients import dense_gradients, unit_gradients
from whence.compress import SparseSketch, random_matrix


def whole_gradients(task, plan, examples, objective="loss") -> Tensor:
    """All units of every example's gradient in one row, shape (B, parameters)."""
    return torch.cat([unit.flatten(1) for unit in unit_gradients(task, plan, dense_gradients(task, examples, objective))], 1)


def whole_projection(plan, kind, width, seed, rows_per_block) -> Tensor:
    """The matrix that a whole projection never forms, shape (parameters, K)."""
    blocks = []
    for unit in plan.units:
        for start in range(0, unit.outputs, rows_per_block(unit)):
            size = min(rows_per_block(unit), unit.outputs - start) * unit.inputs
            name = f"{unit.name}:rows from {start}"
            if kind == "sparse":
                blocks.append(sketch_matrix(SparseSketch.random(size, width, seed=seed, name=name, device=torch.device("cpu"))))
            else:
                blocks.append(random_matrix(kind, size, width, seed=seed, name=name).double())
    return torch.cat(blocks)


def sketch_matrix(sketch) -> Tensor:
    """A sparse sketch written out entry by entry, shape (N, K)."""
    matrix = torch.zeros(len(sketch.slots_N), sketch.width_K).double()
    for place, (slot, sign) in enumerate(zip(sketch.slots_N.tolist(), sketch.signs_N.tolist(), strict=True)):
        matrix[place, slot] = sign
    return matrix


def entry_matrix(size, places, sketch, scale) -> Tensor:
    """GraSS: a row of the identity for each kept entry, then the sketch."""
    return torch.eye(size).double()[:, places] @ sketch_matrix(sketch) * scale


def channel_rows(gradient_BOI, channels) -> Tensor:
    """FactGraSS on one unit: a sub-matrix of the gradient, then the sketch; shape (B, K)."""
    kept = gradient_BOI if channels.outputs_P is None else gradient_BOI[:, channels.outputs_P]
    kept = (kept if channels.inputs_R is None else kept[:, :, channels.inputs_R]).flatten(1) * channels.scale
    return kept if channels.sketch is None else kept @ sketch_matrix(channels.sketch)


def odds_of_labels(model, batch) -> Tensor:
    """log p / (1 - p) of each class label."""
    logits = model(**batch["inputs"]) if set(batch["inputs"]) != {"inputs"} else model(batch["inputs"]["inputs"])
    p = getattr(logits, "logits", logits).softmax(-1).gather(-1, batch["target"][:, None])[:, 0]
    return torch.log(p / (1 - p))


def odds_of_tokens(model, batch) -> Tensor:
    """Per sequence n log q / (1 - q), q the geometric mean of its n scored tokens' probabilities."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    found = []
    for row, labels in zip(logits, batch["labels"], strict=True):
        p = torch.stack([row[at - 1].softmax(-1)[label] for at, label in enumerate(labels) if at > 0 and label != -100])
        q = p.prod() ** (1 / len(p))
        found.append(len(p) * torch.log(q / (1 - q)))
    return torch.stack(found)


def trak_scores(features: list[Tensor], asked: list[Tensor], weights: list[Tensor], relative_damping: float) -> Tensor:
    """Scores of several models: mean of phi_q (Phi^T Phi / N + damping)^-1 phi_i, times the mean of 1 - p_i, over N; shape (Q, N)."""
    parts = []
    for phi_NK, phi_QK in zip(features, asked, strict=True):
        kernel = phi_NK.T @ phi_NK / len(phi_NK)
        damping = relative_damping * kernel.diagonal().mean()
        parts.append(phi_QK @ torch.linalg.inv(kernel + damping * torch.eye(len(kernel)).to(kernel)) @ phi_NK.T)
    return torch.stack(parts).mean(0) * torch.stack(weights).mean(0) / len(features[0])


def mask_objective(entries_NC, raw_NN, logits_C) -> Tensor:
    """Mean correlation of masked with raw inner products, example by example, less a tenth of the mask's mean."""
    mask = 1 / (1 + torch.exp(-logits_C))
    found = []
    for query in range(len(entries_NC)):
        masked = torch.stack([(entries_NC[query] * mask * other).sum() for other in entries_NC])
        found.append(torch.corrcoef(torch.stack([masked, raw_NN[query]]))[0, 1])
    return torch.stack(found).mean() - 0.1 * mask.mean()
