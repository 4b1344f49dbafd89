"""Tail-patch against steps on a copy of the model, and weights that come back to the bit."""

import json
from dataclasses import replace

import pytest
import torch

import whence
from tests.reference.patching import step_and_measure
from tests.zoo import make
from whence.data import Dataset
from whence.errors import BadInput, NonFinite
from whence.evaluate import TailSteps, tail_patch
from whence.records import ScoreTable

RATE = 0.05


def case(name, num_train=8, num_queries=2):
    task, examples = make(name, num_train + num_queries)
    train, queries = Dataset(examples.examples[:num_train]), Dataset(examples.examples[num_train:])
    scores = torch.randn(num_queries, num_train, generator=torch.Generator().manual_seed(0))
    ids = (tuple(example.id for example in dataset.examples) for dataset in (queries, train))
    return task, train, queries, ScoreTable(scores, *ids, "nats", "toy")


def state(task):
    return {name: value.clone() for name, value in task.model.state_dict().items()}


def assert_unchanged(task, before):
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())


@pytest.mark.parametrize(
    "name", ["linear", "tied", "conv2d", "batch_norm", "dropout", "checkpoint_reentrant", "gpt2", "regression"]
)
@pytest.mark.parametrize("together", [False, True])
def test_increases_are_those_of_a_step_on_a_copy(name, together):
    task, train, queries, table = case(name)
    task.model.train()
    before = state(task)
    found = tail_patch(task, train, queries, table, TailSteps(learning_rate=RATE, ks=(3, 1), together=together), quiet=True)
    assert found.ks == (1, 3) and task.model.training
    assert_unchanged(task, before)
    for row, (query, scores) in enumerate(zip(queries.examples, table.scores, strict=True)):
        best = [train.examples[place] for place in scores.argsort(descending=True)[:3]]
        first = step_and_measure(task, best[:1], query, RATE)
        alone = sum(step_and_measure(task, [example], query, RATE) for example in best) / 3
        third = step_and_measure(task, best, query, RATE) if together else alone
        assert found.increases_QK[row].tolist() == pytest.approx([first, third], rel=1e-8, abs=1e-12)


def test_a_step_on_the_query_itself_raises_it_and_random_ones_are_others():
    task, examples = make("linear", 12)
    own = torch.eye(12)
    ids = tuple(example.id for example in examples.examples)
    found = tail_patch(
        task, examples, examples, ScoreTable(own, ids, ids, "", "self"), TailSteps(learning_rate=RATE, ks=(1,)), quiet=True
    )
    assert (found.increases_QK > 0).all()
    assert found.over_random(1).low > 0
    # The control is never the proponent, or the difference would be zero somewhere.
    assert ((found.increases_QK - found.random_QK) != 0).all()
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["increase"]["1"]["mean"] == pytest.approx(float(found.increases_QK.mean()))
    assert record["over_random"]["1"]["mean"] == pytest.approx(record["increase"]["1"]["mean"] - record["random"]["1"]["mean"])


def test_small_steps_are_linear():
    """For a short step the increase is the learning rate times the inner product of gradients."""
    task, train, queries, table = case("linear")
    steps = [
        tail_patch(task, train, queries, table, TailSteps(learning_rate=rate, ks=(2,)), quiet=True).increases_QK
        for rate in (1e-5, 2e-5)
    ]
    torch.testing.assert_close(2 * steps[0], steps[1], rtol=1e-3, atol=1e-9)


def test_tables_are_matched_by_id_and_controls_seeded():
    task, train, queries, table = case("linear")
    turned = ScoreTable(table.scores.flip(1), table.query_ids, table.train_ids[::-1], "nats", "toy")
    steps = TailSteps(learning_rate=RATE, ks=(2,))
    found = tail_patch(task, train, queries, table, steps, quiet=True)
    assert torch.equal(found.increases_QK, tail_patch(task, train, queries, turned, steps, quiet=True).increases_QK)
    assert torch.equal(found.random_QK, tail_patch(task, train, queries, table, steps, quiet=True).random_QK)
    assert not torch.equal(
        found.random_QK, tail_patch(task, train, queries, table, replace(steps, seed=1), quiet=True).random_QK
    )


def test_only_tracked_parameters_move():
    model = torch.nn.Linear(3, 2).double()
    records = [(torch.randn(3, dtype=torch.float64), number % 2) for number in range(6)]
    task = whence.Classification(model, track=["bias"])
    dataset = task.prepare(records)
    ids = tuple(example.id for example in dataset.examples)
    found = tail_patch(
        task,
        dataset,
        dataset,
        ScoreTable(torch.eye(6), ids, ids, "", "self"),
        TailSteps(learning_rate=RATE, ks=(1,)),
        quiet=True,
    )
    expected = [step_and_measure(task, [example], example, RATE) for example in dataset.examples]
    assert found.increases_QK[:, 0].tolist() == pytest.approx(expected)


def test_weights_come_back_whatever_happens():
    task, train, queries, table = case("regression")
    before = state(task)
    for parameter in task.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(NonFinite, match="a measurement of .* for the query '8'"):
        tail_patch(task, train, queries, table, TailSteps(learning_rate=1e308, ks=(1,)), quiet=True)
    assert_unchanged(task, before)

    calls = []

    def failing(model, batch):
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return whence.Regression.measurement(task, model, batch)

    task.measurement = failing
    with pytest.raises(KeyboardInterrupt):
        tail_patch(task, train, queries, table, TailSteps(learning_rate=RATE, ks=(1,)), quiet=True)
    assert_unchanged(task, before)
    assert all(parameter.grad.eq(1).all() and parameter.requires_grad for parameter in task.model.parameters())


def test_impossible_requests_are_refused():
    task, train, queries, table = case("linear")
    for rate in (0.0, float("nan")):
        with pytest.raises(BadInput, match=f"learning_rate={rate}"):
            tail_patch(task, train, queries, table, TailSteps(learning_rate=rate))
    for ks in ((), (0,), (1, 1)):
        with pytest.raises(BadInput, match="needed positive numbers, all different"):
            TailSteps(learning_rate=RATE, ks=ks)
    with pytest.raises(BadInput, match="for 8 training examples; needed twice as many examples as the largest"):
        tail_patch(task, train, queries, table, TailSteps(learning_rate=RATE, ks=(5,)))
    with pytest.raises(BadInput, match="8 train ids in the table of toy and 7 to match"):
        tail_patch(task, Dataset(train.examples[1:]), queries, table, TailSteps(learning_rate=RATE, ks=(1,)))
