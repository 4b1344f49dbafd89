"""LESS through a recorded run: against the next step of torch's own optimizer, made of one example at a time."""

import copy

import pytest
import torch
from torch import nn

import whence
from tests.settings import keywords_of
from tests.test_source import COUNT, OPTIMIZERS, data, queries_of, train
from whence.data import Dataset
from whence.errors import BadInput, Unsupported


def scored(task, folder, train_set, queries, **options):
    return whence.attribute(task, train_set, queries, **keywords_of(method="less", run=folder, **options))


def gradient(model, row, label):
    model.zero_grad()
    nn.functional.cross_entropy(model(row[None]), label[None]).backward()
    return torch.cat([value.grad.flatten() for value in model.parameters()])


def updates(model, name, tensors, inputs, labels):
    """What a step of the optimizer, loaded with a checkpoint's state, does to the weights, for each example alone, over the learning rate."""
    rows = []
    for row, label in zip(inputs, labels, strict=True):
        other = copy.deepcopy(model)
        optimizer = OPTIMIZERS[name](other.parameters())
        group = optimizer.param_groups[0]
        group["weight_decay"] = 0.0
        for key, value in other.named_parameters():
            value.data.copy_(tensors[f"model.{key}"])
            state = {
                kind.removeprefix("state_").removesuffix(f".{key}"): part
                for kind, part in tensors.items()
                if kind.endswith(f".{key}")
            }
            optimizer.state[value] = {kind: part.clone() for kind, part in state.items() if not kind.startswith("model")}
        before = nn.utils.parameters_to_vector(other.parameters()).detach().clone()
        gradient(other, row, label)
        optimizer.step()
        rows.append((before - nn.utils.parameters_to_vector(other.parameters()).detach()) / group["lr"])
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw"])
def test_scores_are_cosines_with_the_optimizers_own_next_step(tmp_path, name):
    model, task, train_set, (_, _, rates) = train(tmp_path, name, kind="mlp", epochs=2, every=5, falling=True)
    run, queries = whence.runs.open_run(tmp_path), queries_of(task, 3)
    table = scored(task, tmp_path, train_set, queries, per_segment=True)
    (inputs, labels), (asked, answers) = data(), data(5, 3)
    expected, before, parts = 0, 0, []
    for step in run.checkpoints[1:]:
        tensors, there = run.tensors(step), copy.deepcopy(model)
        for key, value in there.named_parameters():
            value.data.copy_(tensors[f"model.{key}"])
        wanted = torch.stack([gradient(there, row, label) for row, label in zip(asked, answers, strict=True)])
        ways = updates(model, name, tensors, inputs, labels)
        cosines = nn.functional.cosine_similarity(wanted[:, None], ways[None], dim=2)
        parts.append(sum(rates[before:step]) * cosines)
        expected, before = expected + parts[-1], step
    torch.testing.assert_close(table.scores, expected, rtol=1e-6, atol=1e-9)
    for part, wanted in zip(table.parts.values(), parts, strict=True):
        torch.testing.assert_close(part, wanted, rtol=1e-6, atol=1e-9)
    assert table.unit == "cosine, times learning rates" and table.method == "less, 3 checkpoints"
    assert len(train_set) == COUNT and any("LESS over 3 checkpoints of 12 steps" in note for note in table.notes)


def test_examples_that_the_run_never_met_are_scored_as_the_others(tmp_path):
    """A short run on a sample ranks all candidates, as its authors use it; groups of queries are one gradient."""
    _, task, train_set, _ = train(tmp_path, "adamw", epochs=1, every=6)
    queries, inputs, labels = queries_of(task, 3), *data(3, 4)
    more = task.prepare([{"id": f"new{row}", "inputs": one, "label": int(labels[row])} for row, one in enumerate(inputs)])
    both = Dataset([*train_set.examples, *more.examples])
    table = scored(task, tmp_path, both, queries)
    torch.testing.assert_close(table.scores[:, :COUNT], scored(task, tmp_path, train_set, queries).scores)
    assert bool((table.scores[:, COUNT:] != 0).all()) and not any("score 0" in note for note in table.notes)
    grouped = scored(task, tmp_path, both, queries, groups={"all": dict.fromkeys(queries.ids, 1.0)})
    assert grouped.scores.shape == (1, COUNT + 4) and float(grouped.scores.abs().max()) > 0


def test_what_less_cannot_do_is_told(tmp_path):
    _, task, train_set, _ = train(tmp_path / "run", "adamw", epochs=1)
    with pytest.raises(BadInput, match="found per_unit for less; needed whole examples"):
        scored(task, tmp_path / "run", train_set, queries_of(task, 1), per_unit=True)
    with pytest.raises(BadInput, match="found method='less' without a run"):
        whence.attribute(task, train_set, queries_of(task, 1), method="less")
    inputs, labels = data()
    model = nn.Linear(4, 3, bias=False)
    optimizer = torch.optim.Muon(model.parameters(), lr=0.1)
    with whence.Recorder(tmp_path / "muon", model, optimizer, every=3) as run:
        for _ in range(3):
            run.batch(range(COUNT))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs.float()), labels).backward()
            optimizer.step()
    task = whence.Classification(model)
    own = list(zip(inputs.float(), labels.tolist(), strict=True))
    with pytest.raises(Unsupported, match="found less for a run with the optimizer rule 'muon.*needed Adam, AdamW or SGD"):
        scored(task, tmp_path / "muon", own, own[:1])
