"""SOURCE against training again: predicted against actual change, short runs, several stages, the page for users."""

import pytest
import torch
from torch import nn

import whence
from tests.pages import run_blocks
from tests.reference.unroll import exact_unrolling
from tests.settings import QUIET
from tests.test_source import COUNT, OPTIMIZERS, _exact_carry, agreement, data, network, queries_of, source_table, train, truth


def losses_of(model):
    """Loss of all examples as a function of flat parameters."""
    inputs, labels = data()
    shapes = [(name, value.shape) for name, value in model.named_parameters()]

    def named(values):
        parts = values.split([shape.numel() for _, shape in shapes])
        return {name: part.view(shape) for (name, shape), part in zip(shapes, parts, strict=True)}

    def losses(values, x=inputs, y=labels):
        return nn.functional.cross_entropy(torch.func.functional_call(model, named(values), (x,)), y, reduction="none")

    return losses


def without(losses, place, start, batches, rates, decay=0.0):
    """Parameters of the same SGD run with one example's weight at zero."""
    theta = start.clone()
    for batch, rate in zip(batches, rates, strict=True):
        weights = (batch != place).double()
        theta = theta - rate * (torch.func.grad(lambda v, b=batch, w=weights: (w * losses(v)[b]).mean())(theta) + decay * theta)
    return theta


@pytest.mark.parametrize(("epochs", "size", "every"), [(1, COUNT, 1), (20, 20, 10)])
def test_predicted_and_actual_changes_lie_on_one_line(tmp_path, monkeypatch, epochs, size, every):
    """One step, and a convex problem near its end with its exact curvature: the slope of actual on predicted changes is 1."""
    model, task, train_set, (start, batches, rates) = train(tmp_path, "sgd", epochs=epochs, size=size, every=every)
    if epochs > 1:
        monkeypatch.setattr("whence.pipeline.through.source.carry", _exact_carry(model, whence.runs.open_run(tmp_path)))
    queries, places = queries_of(task, 6), range(0, COUNT, 4)
    predicted = source_table(task, tmp_path, train_set, queries).removal_effect()[:, ::4]
    losses, asked = losses_of(model), data(5, 6)
    final = nn.utils.parameters_to_vector(model.parameters()).detach()
    actual = torch.stack(
        [losses(final, *asked) - losses(without(losses, place, start, batches, rates), *asked) for place in places], 1
    )
    slope = float((predicted * actual).sum() / predicted.square().sum())
    assert slope == pytest.approx(1.0, abs=0.15)
    assert torch.corrcoef(torch.stack([predicted.flatten(), actual.flatten()]))[0, 1] > 0.95


@pytest.mark.parametrize(("kind", "epochs"), [("softmax", 3), ("softmax", 10), ("mlp", 3), ("mlp", 10)])
def test_the_full_form_follows_adamw(tmp_path, kind, epochs):
    model, task, train_set, rest = train(tmp_path, "adamw", kind=kind, epochs=epochs, every=epochs)
    queries = queries_of(task)
    wanted = truth("adamw", kind, task, queries, *rest, model)
    full, diagonal = (
        agreement(source_table(task, tmp_path, train_set, queries, form=form).scores, wanted) for form in ("full", "diagonal")
    )
    influence = agreement(whence.attribute(task, train_set, queries, runtime=QUIET).scores, wanted)
    assert full >= 0.75 and full > influence and full > diagonal - 0.02


def test_with_several_stages_it_beats_influence_by_far(tmp_path):
    """Half of the data in each stage: what was met first is partly forgotten."""
    inputs, labels = data()
    model = network("softmax")
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    generator = torch.Generator().manual_seed(1)
    batches = []
    with whence.Recorder(tmp_path, model, optimizer := OPTIMIZERS["sgd"](model.parameters()), every=6) as run:
        for stage in (0, 1):
            run.stage(f"stage {stage}")
            for _ in range(6):
                for batch in (torch.randperm(COUNT // 2, generator=generator) + stage * COUNT // 2).split(10):
                    run.batch(f"t{place}" for place in batch.tolist())
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
                    optimizer.step()
                    batches.append(batch)
    task = whence.Classification(model)
    records = [{"id": f"t{n}", "inputs": x, "label": y} for n, (x, y) in enumerate(zip(inputs, labels.tolist(), strict=True))]
    train_set, queries = task.prepare(records), queries_of(task)
    losses = losses_of(model)
    final, tangent_PN = exact_unrolling(losses, start, batches, [0.3] * len(batches))
    wanted = torch.func.jacrev(lambda values: -losses(values, *data(5, 12)))(final) @ tangent_PN
    found = source_table(task, tmp_path, train_set, queries).scores
    influence = whence.attribute(task, train_set, queries, runtime=QUIET).scores
    assert agreement(found, wanted) > 0.9 and agreement(found, wanted) > agreement(influence, wanted) + 0.05
    sizes = [part[:, : COUNT // 2].abs().mean() / part[:, COUNT // 2 :].abs().mean() for part in (found, wanted)]
    assert sizes[0] == pytest.approx(float(sizes[1]), rel=0.25)  # by how much the first stage was forgotten


def test_the_page_for_users_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_blocks("docs/unrolling.md", 2)
    out = capsys.readouterr().out
    assert "torch.Size([3, 60])" in out and "steps 0 to 40" in out
