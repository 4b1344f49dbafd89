"""Curvature followed along a run: the moving average that it stands for, and scores in its bases."""

import contextlib

import pytest
import torch
from torch import nn

import whence
from tests.test_source import COUNT, agreement, data, network, queries_of, source_table
from whence.curvature import SpectralFactor
from whence.errors import BadInput


def moment(seed, size=6, rows=40):
    generator = torch.Generator().manual_seed(seed)
    rows_RN = torch.randn(rows, size, generator=generator, dtype=torch.float64) * torch.arange(1, size + 1).double()
    return rows_RN.T @ rows_RN / rows


def test_one_update_is_the_moving_average_to_first_order():
    start = moment(0)
    errors = []
    for share in (0.02, 0.01, 0.005):
        factor = SpectralFactor.of(start)
        factor.update(moment(1), share)
        wanted = (1 - share) * start + share * moment(1)
        errors.append(float((factor.matrix - wanted).norm()))
        torch.testing.assert_close(factor.basis_NN.T @ factor.basis_NN, torch.eye(6).double(), rtol=0, atol=1e-12)
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2) and errors[1] / errors[2] == pytest.approx(4, rel=0.2)


def test_it_follows_a_moving_average_for_long():
    factor, average = SpectralFactor.of(moment(0)), moment(0)
    for seed in range(1, 300):
        factor.update(moment(seed), 0.02)
        average = 0.98 * average + 0.02 * moment(seed)
    assert float((factor.matrix - average).norm() / average.norm()) < 0.05
    torch.testing.assert_close(factor.basis_NN.T @ factor.basis_NN, torch.eye(6).double(), rtol=0, atol=1e-10)
    inside_NN = factor.basis_NN.T @ average @ factor.basis_NN
    assert float((inside_NN - torch.diag(inside_NN.diagonal())).norm() / inside_NN.norm()) < 0.05


def test_roots_are_those_of_the_matrix():
    factor = SpectralFactor.of(moment(0))
    fourth = factor.root(-4)
    torch.testing.assert_close(fourth @ fourth @ fourth @ fourth @ moment(0), torch.eye(6).double(), rtol=0, atol=1e-9)


def test_equal_eigenvalues_turn_little():
    factor = SpectralFactor(torch.eye(3).double(), torch.tensor([1.0, 1.0, 1.0 + 1e-12]).double())
    factor.update(moment(0, 3), 0.5)
    turned = (factor.basis_NN - torch.eye(3)).abs().max()
    assert turned < 0.2 and bool(torch.isfinite(factor.values_N).all())


def recorded(folder, *, curvature=True, stop=None):
    """A run, recorded from the start or from where it was stopped."""
    inputs, labels = data()
    model = network("mlp")
    task = whence.Classification(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    online = whence.runs.OnlineCurvature(task, every=1, first=4) if curvature else None
    generator = torch.Generator().manual_seed(1)
    batches = [one for _ in range(5) for one in torch.randperm(COUNT, generator=generator).split(10)]
    with (
        contextlib.suppress(KeyboardInterrupt),
        whence.Recorder(folder, model, optimizer, every=6, curvature=online) as run,
    ):
        for batch in batches[run.restore() :]:
            if run.steps == stop:
                raise KeyboardInterrupt
            run.batch(f"t{place}" for place in batch.tolist())
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    return model, task


def examples_of(task):
    inputs, labels = data()
    return task.prepare(
        [{"id": f"t{n}", "inputs": x, "label": y} for n, (x, y) in enumerate(zip(inputs, labels.tolist(), strict=True))]
    )


def test_watching_changes_nothing_and_its_bases_serve_source(tmp_path):
    plain, _ = recorded(tmp_path / "plain", curvature=False)
    model, task = recorded(tmp_path / "online")
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    run, train_set, queries = whence.runs.open_run(tmp_path / "online"), examples_of(task), queries_of(task)
    bases = run.bases(run.steps)
    for unit, (outputs, inputs) in enumerate(((5, 5), (3, 6))):
        assert bases[f"outputs.{unit}"].shape == (outputs, outputs) and bases[f"inputs.{unit}"].shape == (inputs, inputs)
    fitted = source_table(task, run.folder, train_set, queries)
    online = source_table(task, run.folder, train_set, queries, online_bases=True, factors=tmp_path / "factors")
    assert agreement(online.scores, fitted.scores) > 0.97
    assert [any("followed along the run" in note for note in table.notes) for table in (online, fitted)] == [True, False]
    assert not list((tmp_path / "factors").rglob("factors*.safetensors"))  # no pass over the data was made for them
    again = source_table(task, run.folder, train_set, queries, online_bases=True, factors=tmp_path / "factors")
    assert torch.equal(again.scores, online.scores)
    with pytest.raises(BadInput, match="found online_bases for a run without bases after step 30"):
        source_table(task, tmp_path / "plain", train_set, queries, online_bases=True, segments=5)


def test_a_stopped_run_keeps_the_same_bases(tmp_path):
    recorded(tmp_path / "whole")
    recorded(tmp_path / "cut", stop=15)
    recorded(tmp_path / "cut")
    whole, cut = (whence.runs.open_run(tmp_path / name) for name in ("whole", "cut"))
    for step in (12, 18, 30):
        for name, value in whole.bases(step).items():
            torch.testing.assert_close(cut.bases(step)[name], value)


def test_numbers_out_of_range_are_refused():
    task = whence.Classification(network("mlp"))
    for options in ({"every": 0}, {"share": 1.0}, {"first": 0}):
        with pytest.raises(BadInput, match="needed at least one step and look, and a share between 0 and 1"):
            whence.runs.OnlineCurvature(task, **options)


def test_a_batch_that_is_named_after_its_forward_pass_is_refused(tmp_path):
    inputs, labels = data()
    model = network("mlp")
    curvature = whence.runs.OnlineCurvature(whence.Classification(model), every=2, first=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.raises(BadInput, match="no forward and backward pass after batch.*needed batch.ids. before the forward pass"),
        whence.Recorder(tmp_path, model, optimizer, every=5, curvature=curvature) as run,
    ):
        loss = nn.functional.cross_entropy(model(inputs[:4]), labels[:4])
        run.batch([0, 1, 2, 3])
        loss.backward()
        optimizer.step()
