"""Baselines one pair and one example at a time."""

import math

import torch


def bm25_score(query, document, documents, k1, b):
    """BM25 of one query and one document, both lists of terms."""
    mean_length = sum(map(len, documents)) / len(documents)
    score = 0.0
    for term in query:
        num_with = sum(term in other for other in documents)
        idf = math.log(1 + (len(documents) - num_with + 0.5) / (num_with + 0.5))
        times = document.count(term)
        if times == 0:
            continue
        score += idf * times * (k1 + 1) / (times + k1 * (1 - b + b * len(document) / mean_length))
    return score


def representation(task, layer, example):
    """Mean over positions of what enters the named layer, for one example alone."""
    seen = []
    module = task.model.get_submodule(layer)
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    task.model.eval()
    with torch.no_grad():
        task.loss(task.model, task.collate([example]))
    handle.remove()
    inputs = seen[-1]
    if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d):
        inputs = inputs.flatten(2).transpose(1, 2)
    return inputs.reshape(-1, inputs.shape[-1]).mean(0)
