"""TRAK and GraSS as stores: scores equal the formulas as written."""

import pytest
import torch

import whence
from tests import zoo
from tests.reference import raw
from tests.reference.gradients import dense_gradients, unit_gradients
from tests.settings import QUIET
from whence.capture import plan_units
from whence.data import Dataset
from whence.errors import BadInput, Unsupported
from whence.pipeline import forecast_build
from whence.pipeline.stored.encoders import stored_encoder
from whence.pipeline.stored.prepared import PreparedQuery
from whence.score import token_scores
from whence.store import verify_store

MODELS = ("linear", "gpt2", "two_inputs", "tied", "lone_parameter", "regression")
OPTIONS = {"dtype": "float64", "rows_per_shard": 4, "batch_positions": 40}


def made(tmp_path, name, count=14, queries=3, **options):
    task, dataset = zoo.make(name, count=count)
    examples = list(dataset.examples)
    train, asked = Dataset(examples[queries:]), Dataset(examples[:queries])
    return (
        task,
        train,
        asked,
        whence.build(task, train, tmp_path / "store", config=whence.BuildConfig(**OPTIONS, **options), runtime=QUIET),
    )


def naive_output(task):
    """TRAK's output function by its formula, and 1 - p from its value."""
    if task.kind == "regression":
        return lambda model, batch: -((model(batch["inputs"]["inputs"]) - batch["target"]).square().sum(1).sqrt())
    return raw.odds_of_tokens if task.kind == "causal_lm" else raw.odds_of_labels


def naive_weights(task, example):
    with torch.no_grad():
        loss = task.loss(task.model.eval(), task.collate([example]))[0]
    if task.kind == "regression":
        return (2 * loss).sqrt()
    count = sum(label != -100 for label in example.fields["labels"][1:]) if task.kind == "causal_lm" else 1
    return 1 - torch.exp(-loss / count)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("trak", {"rank": 8}),
        ("trak", {"rank": 8, "projection": "sparse"}),
        ("grass", {"rank": 6}),
        ("grass-selective", {"rank": 4}),
        ("factgrass", {"rank": 2}),
    ],
)
def test_scores_equal_the_naive_formula(tmp_path, name, method, options):
    task, train, asked, store = made(tmp_path, name, method=method, **options)
    table = whence.score_table(store, task, asked, damping=whence.Damping(relative=0.2), runtime=QUIET)
    plan = plan_units(task)
    encoder = stored_encoder(store, plan, task)
    if method == "factgrass":
        wanted = torch.zeros(3, 11).double()
        train_units = unit_gradients(task, plan, dense_gradients(task, train.examples))
        query_units = unit_gradients(task, plan, dense_gradients(task, asked.examples, "measurement"))
        for channels, g, q in zip(encoder.channels, train_units, query_units, strict=True):
            rows = [raw.channel_rows(part, channels) for part in (g, q)]
            if rows[0].any():
                wanted -= raw.trak_scores(rows[:1], rows[1:], [torch.ones(11).double()], 0.2)
    else:
        output, weights = naive_output(task), torch.stack([naive_weights(task, example) for example in train.examples])
        if method == "trak":
            kind = options.get("projection", "rademacher")
            matrix = raw.whole_projection(plan, kind, 8, 0, lambda unit: unit.outputs)
        else:
            size = sum(unit.outputs * unit.inputs for unit in plan.units)
            matrix = raw.entry_matrix(size, encoder.places_M, encoder.sketch, encoder.scale)
        features = raw.whole_gradients(task, plan, train.examples, output) @ matrix
        queries = raw.whole_gradients(task, plan, asked.examples, "measurement") @ matrix
        wanted = raw.trak_scores([features], [queries], [weights], 0.2)
    torch.testing.assert_close(table.scores, wanted, rtol=1e-7, atol=1e-10)
    assert verify_store(store) == []


@pytest.mark.parametrize("name", MODELS)
def test_rows_times_weights_are_gradients_of_the_loss(tmp_path, name):
    task, train, _, store = made(tmp_path, name, method="trak", rank=8)
    shards = [tensors for _, tensors in store.shards()]
    rows, weights = (torch.cat([shard[key] for shard in shards]) for key in ("slab.0", "weights"))
    plan = plan_units(task)
    matrix = raw.whole_projection(plan, "rademacher", 8, 0, lambda unit: unit.outputs)
    torch.testing.assert_close(rows * weights[:, None], raw.whole_gradients(task, plan, train.examples) @ matrix)


@pytest.mark.parametrize("method", ["trak", "grass"])
def test_ensembles_average_scores_and_weights_apart(tmp_path, method):
    """Means of the two are not the mean of the products."""
    parts = []
    for place in range(3):
        task, dataset = zoo.make("linear", count=12)
        with torch.no_grad():
            for parameter in task.model.parameters():
                parameter.mul_(1 + 2 * place)
        train, asked = Dataset(dataset.examples[2:]), Dataset(dataset.examples[:2])
        store = whence.build(
            task, train, tmp_path / f"{place}", config=whence.BuildConfig(method=method, rank=5, **OPTIONS), runtime=QUIET
        )
        parts.append((task, train, asked, store))
    tasks, stores = [part[0] for part in parts], [part[3] for part in parts]
    table = whence.pipeline.ensemble_table(stores, tasks, parts[0][2], damping=whence.Damping(relative=0.3), runtime=QUIET)
    features, queries, weights = [], [], []
    for task, train, asked, store in parts:
        plan = plan_units(task)
        encoder = stored_encoder(store, plan, task)
        if method == "trak":
            matrix = raw.whole_projection(plan, "rademacher", 5, 0, lambda unit: unit.outputs)
        else:
            matrix = raw.entry_matrix(encoder.units[0].inputs, encoder.places_M, encoder.sketch, encoder.scale)
        features.append(raw.whole_gradients(task, plan, train.examples, raw.odds_of_labels) @ matrix)
        queries.append(raw.whole_gradients(task, plan, asked.examples, "measurement") @ matrix)
        weights.append(torch.stack([naive_weights(task, example) for example in train.examples]))
    torch.testing.assert_close(table.scores, raw.trak_scores(features, queries, weights, 0.3), rtol=1e-7, atol=1e-10)
    assert table.method.endswith("3 models")


@pytest.mark.parametrize("name", ["gpt2", "linear", "two_inputs"])
@pytest.mark.parametrize("method", ["trak", "grass", "factgrass"])
def test_token_scores_add_up(tmp_path, name, method):
    task, _, asked, _ = made(tmp_path, name, method=method, rank=3)
    store = whence.open_store(tmp_path / "store")
    ready = PreparedQuery.prepare(store, task, asked, whence.Damping(relative=0.1), True)
    table = whence.score_table(store, task, asked, damping=whence.Damping(relative=0.1), runtime=QUIET)
    weights = torch.cat([tensors.get("weights", torch.ones(len(tensors["norms"]))) for _, tensors in store.shards()])
    examples = zoo.make(name, count=14)[1].examples[3:]
    for row, example in enumerate(examples):
        # The parts are of the loss's gradient, weights included.
        parts = token_scores(task, ready.plan, ready.encoder, example, [unit[0] for unit in ready.preconditioned])
        assert float(parts.sum()) == pytest.approx(float(table.scores[0, row]), rel=1e-8, abs=1e-12), weights[row]


def test_ensembles_need_as_many_tasks_as_stores(tmp_path):
    task, _, asked, store = made(tmp_path, "linear", method="trak", rank=3)
    for tasks, stores in (([task, task], [store]), ([], [])):
        with pytest.raises(BadInput, match=f"found {len(stores)} stores .* and {len(tasks)} tasks; needed as many of both"):
            whence.pipeline.ensemble_table(stores, tasks, asked, runtime=QUIET)


def test_a_task_without_an_output_function_is_refused(tmp_path):
    task, _ = zoo.make("linear")
    custom = whence.Custom(task.model, lambda model, batch: model(batch["x"]).square().sum(1))
    records = [{"x": torch.randn(4, 6).double()} for _ in range(3)]
    with pytest.raises(
        Unsupported, match="a Custom task without an output function; needed classification, regression or a causal"
    ):
        whence.build(custom, records, tmp_path / "s", config=whence.BuildConfig(method="trak"), runtime=QUIET)
    with pytest.raises(Unsupported, match="a Custom task without output weights; needed what its loss changes by"):
        custom.output_weights(torch.ones(1), {})


@pytest.mark.parametrize("method", ["trak", "grass-selective", "factgrass"])
def test_forecasts_know_the_row_size(method):
    task, dataset = zoo.make("gpt2", count=6)
    found = forecast_build(task, dataset, whence.BuildConfig(method=method, rank=3, dtype="float32"))
    expected = 4 * (3 if method != "factgrass" else sum(min(9, unit.inputs * unit.outputs) for unit in plan_units(task).units))
    assert found.row_bytes == expected
