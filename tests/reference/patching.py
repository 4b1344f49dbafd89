"""One training step on a copy of the model, with torch's own optimizer."""

import copy

import torch


def step_and_measure(task, examples, query, learning_rate):
    """Increase of the query's measurement after one SGD step on the mean loss of the examples."""
    model = copy.deepcopy(task.model).eval()
    parameters = [value for name, value in model.named_parameters() if name in task.tracked]
    optimizer = torch.optim.SGD(parameters, lr=learning_rate)
    before = task.measurement(model, task.collate([query])).item()
    task.loss(model, task.collate(examples)).mean().backward()
    optimizer.step()
    return task.measurement(model, task.collate([query])).item() - before
