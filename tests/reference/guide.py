"""IF-Guide the slow way: one backward pass per token, loops over documents and tokens."""

import math
import statistics

import numpy as np
import torch

from tests.reference.gradients import dense_gradients, unit_gradients

IGNORED = -100


def token_gradients(task, plan, example):
    """Per unit, the gradient of each scored token's own loss, shape (scored, O * I); and the tokens' places."""
    labels = torch.as_tensor(example.fields["labels"])
    places = [place for place in range(1, example.length) if labels[place] != IGNORED]
    rows = []
    for place in places:

        def loss(model, batch, place=place):
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[0, place - 1]
            return -logits.log_softmax(-1)[labels[place]][None]

        rows.append([part.flatten(1)[0] for part in unit_gradients(task, plan, dense_gradients(task, [example], loss))])
    return [torch.stack(parts) for parts in zip(*rows, strict=True)], places


def evidence_floor(scores):
    """Each document's root mean square of positive scores, and how large chance makes the largest of as many, by the lower half."""
    evidence = []
    for row in scores:
        scored = [score for score in row if not np.isnan(score)]
        evidence.append(math.sqrt(sum(max(score, 0) ** 2 for score in scored) / len(scored)) if scored else 0.0)
    logs = [math.log(value) for value in evidence if value > 0]
    if len(logs) < 50:
        return evidence, 0.0
    middle = statistics.median(logs)
    spread = statistics.median(middle - value for value in logs if value <= middle) / statistics.NormalDist().inv_cdf(0.75)
    return evidence, math.exp(middle + spread * math.sqrt(2 * math.log(len(logs))))


def selection(scores, quantile, window, budget, floor=None):
    """What is marked, by place of the document, and the ranks; the paper's section 4.2 word by word, but for the floor."""
    evidence, least = evidence_floor(scores)
    least = {None: least, "off": 0.0}.get(floor, floor)
    everything = np.concatenate([row[~np.isnan(row)] for row in scores])
    tau = np.quantile(everything, quantile, method="inverted_cdf")
    n = np.array([sum(score > tau for score in row) for row in scores], float)
    f = np.array([sum(score for score in row if score > tau) for row in scores])
    n_scaled, f_scaled = ((values - values.min()) / (values.max() - values.min()) for values in (n, f))
    both = n_scaled + f_scaled
    ranks = np.divide(2 * n_scaled * f_scaled, both, out=np.zeros_like(both), where=both > 0)
    left, marked = int(budget * len(everything)), {}
    for document in np.argsort(-ranks, kind="stable"):
        row, own = scores[document], []
        if least and evidence[document] <= least:
            continue
        centres = [place for place in range(len(row)) if row[place] > tau]
        for centre in sorted(centres, key=lambda place: -row[place]):
            for place in [centre, *(centre + side * step for step in range(1, window + 1) for side in (-1, 1))]:
                if 0 <= place < len(row) and not np.isnan(row[place]) and place not in own and left > 0:
                    own.append(place)
                    left -= 1
        if own:
            marked[int(document)] = sorted(own)
    return tau, ranks, marked


def objective(logits, labels, marks, strength):
    """The loss, token by token."""
    total, count = 0.0, 0
    for row in range(labels.shape[0]):
        for place in range(1, labels.shape[1]):
            if labels[row, place] != IGNORED:
                loss = -logits[row, place - 1].log_softmax(-1)[labels[row, place]]
                total = total + loss * (-strength if marks[row, place] else 1.0)
                count += 1
    return total / count
