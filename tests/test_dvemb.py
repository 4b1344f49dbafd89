"""Data value embeddings through a recorded run: against the paper's recursion, and against the derivative of the run carried forwards."""

import pytest
import torch
from torch import nn

import whence
from tests import zoo
from tests.reference.gradients import dense_gradients
from tests.reference.unroll import data_value_embeddings
from tests.settings import QUIET, keywords_of
from tests.test_source import COUNT, OPTIMIZERS, data, queries_of, train, truth
from whence.cli import main
from whence.data import Dataset
from whence.errors import BadInput
from whence.pipeline import forecast_exact
from whence.unroll import measure_sweep


def embedded(task, folder, train_set, queries, **options):
    return whence.attribute(task, train_set, queries, **keywords_of(method="dvemb", run=folder, **options))


def flat(gradients):
    return torch.cat([gradients[name].flatten(1) for name in sorted(gradients)], 1)


def by_recursion(task, run, train_set, queries):
    """The paper's embeddings of a run of plain descent that kept every step, times the queries' gradients."""
    row_of = {name: row for row, name in enumerate(train_set.ids)}
    gradients, batches = [], []
    for step in range(run.steps):
        batches.append(torch.tensor([row_of[run.ids[member]] for member in run.log.members[step]]))
        with run.weights(task.model, [step]):
            rows = flat(dense_gradients(task, [train_set.examples[place] for place in batches[-1]]))
        gradients.append(rows.double() * torch.tensor(run.log.weights[step], dtype=torch.float64)[:, None])
    rates = [rates[0] for rates in run.log.rates]
    wanted_QP = flat(dense_gradients(task, queries.examples, "measurement")).double()
    return -wanted_QP @ data_value_embeddings(gradients, batches, rates, len(train_set))


@pytest.mark.parametrize("kind", ["softmax", "mlp"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scores_are_the_derivative_with_outer_products_for_hessians(tmp_path, name, kind):
    """Carried forwards, every matrix formed: momentum, weight decay and Adam's second moments are differentiated as they are."""
    model, task, train_set, recipe = train(tmp_path, name, kind=kind, epochs=3, falling=True)
    queries = queries_of(task, 5)
    wanted = truth(name, kind, task, queries, *recipe, model, outer=True)
    found = embedded(task, tmp_path, train_set, queries)
    torch.testing.assert_close(found.scores, wanted, rtol=1e-8, atol=1e-12)
    assert found.method == "dvemb, 18 steps" and found.unit == task.unit
    assert "data value embeddings over 18 steps" in found.notes[0] and "outer products" in found.notes[1]


def test_scores_are_products_with_the_papers_embeddings(tmp_path):
    _, task, train_set, _ = train(tmp_path, "sgd", kind="mlp", epochs=2, every=1)
    queries, run = queries_of(task, 5), whence.runs.open_run(tmp_path)
    wanted = by_recursion(task, run, train_set, queries)
    torch.testing.assert_close(embedded(task, tmp_path, train_set, queries).scores, wanted, rtol=1e-9, atol=1e-13)
    # Not the first order alone, which every method has.
    first = whence.attribute(task, train_set, queries, **keywords_of(method="unroll", run=tmp_path)).scores
    assert float((first - wanted).norm() / wanted.norm()) > 0.01


def test_a_tied_language_model(tmp_path):
    """Units of several layers, token inputs, a sum over positions."""
    task, train_set = zoo.make("gpt2", 6)
    optimizer = torch.optim.SGD([p for p in task.model.parameters() if p.requires_grad], lr=0.05)
    task.model.eval()
    with whence.Recorder(tmp_path, task.model, optimizer, every=1) as run:
        for start in (0, 3, 0):
            batch = list(range(start, start + 3))
            run.batch(train_set.ids[place] for place in batch)
            optimizer.zero_grad()
            task.loss(task.model, task.collate([train_set.examples[place] for place in batch])).mean().backward()
            optimizer.step()
    queries = Dataset(train_set.examples[:3])
    wanted = by_recursion(task, whence.runs.open_run(tmp_path), train_set, queries)
    torch.testing.assert_close(embedded(task, tmp_path, train_set, queries).scores, wanted, rtol=1e-6, atol=1e-9)


def linear_run(folder, rate, scale=1.0):
    """Least squares, twelve steps, each on a third of the data."""
    inputs, _ = data()
    targets = scale * inputs @ torch.linspace(-1, 1, inputs.shape[1]).double()
    torch.manual_seed(0)
    model = nn.Linear(inputs.shape[1], 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    task = whence.Regression(model)
    train_set = task.prepare([(x, float(y)) for x, y in zip(inputs, targets, strict=True)])
    with whence.Recorder(folder, model, optimizer, every=4) as run:
        for step in range(12):
            batch = list(range(step % 3, COUNT, 3))
            run.batch(batch)
            optimizer.zero_grad()
            task.loss(model, task.collate([train_set.examples[place] for place in batch])).mean().backward()
            optimizer.step()
    return task, train_set


def test_tiny_steps_leave_the_exact_derivative(tmp_path):
    """What stands for the Hessian acts in the second order of the learning rate: a tenth of the rate, a tenth of the difference."""
    apart = []
    for rate in (1e-3, 1e-4):
        task, train_set = linear_run(tmp_path / str(rate), rate)
        queries = Dataset(train_set.examples[:6])
        exact = whence.attribute(task, train_set, queries, **keywords_of(method="unroll", run=tmp_path / str(rate))).scores
        found = embedded(task, tmp_path / str(rate), train_set, queries).scores
        apart.append(float((found - exact).norm() / exact.norm()))
    assert apart[1] < 1e-2 and 0.08 < apart[1] / apart[0] < 0.12


def test_steps_that_outer_products_make_unstable_are_told(tmp_path):
    """Residuals of 30 make outer products 900 times the Hessian, at a rate that the Hessian allows."""
    task, train_set = linear_run(tmp_path / "far", 0.1, scale=30.0)
    notes = embedded(task, tmp_path / "far", train_set, Dataset(train_set.examples[:2])).notes
    assert any("what is carried back grew to" in note for note in notes)
    task, train_set = linear_run(tmp_path / "near", 0.1, scale=0.1)
    notes = embedded(task, tmp_path / "near", train_set, Dataset(train_set.examples[:2])).notes
    assert not any("grew" in note for note in notes)


def test_neither_parts_nor_memory_change_the_scores(tmp_path):
    _, task, train_set, _ = train(tmp_path, "adamw", kind="mlp", epochs=2)
    queries = queries_of(task, 5)
    wanted = embedded(task, tmp_path, train_set, queries).scores
    for options in ({"batch_positions": 3}, {"memory_gib": 6e-5}, {"groups": {"a": {"1": 1.0}, "b": {"0": 2.0, "4": -1.0}}}):
        found = embedded(task, tmp_path, train_set, queries, **options).scores
        expected = torch.stack([wanted[1], 2 * wanted[0] - wanted[4]]) if "groups" in options else wanted
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    run = whence.runs.open_run(tmp_path)
    rooms = [measure_sweep(task, run, train_set.examples, 5, room_bytes=size, is_twice=False) for size in (30_000, 1 << 30)]
    assert rooms[0].rows < 5 and rooms[0].max_examples < 10 and (rooms[1].rows, rooms[1].max_examples) == (5, 10)
    assert "gradients of examples of 10 positions" in str(rooms[1])


def test_what_it_cannot_do_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # long cells wrap in a narrow terminal
    _, task, train_set, _ = train(tmp_path / "run", "sgd", epochs=1)
    queries = queries_of(task, 1)
    with pytest.raises(BadInput, match="found per_unit for dvemb; needed a run and nothing else"):
        embedded(task, tmp_path / "run", train_set, queries, per_unit=True)
    with pytest.raises(BadInput, match="found method='dvemb' without a run"):
        whence.attribute(task, train_set, queries, method="dvemb", runtime=QUIET)
    with pytest.raises(BadInput, match="found a forecast of dvemb"):
        forecast_exact(task, train_set, 2, method="dvemb")
    assert main(["methods"]) == 0 and "2412.09538" in capsys.readouterr().out
