"""Stores along a recorded run: against ordinary stores of its weights, added up by hand."""

import shutil

import pytest
import torch

import whence
from tests.settings import QUIET
from tests.test_along import at_step
from tests.test_source import queries_of, train, train_in_stages
from whence.data import Dataset
from whence.errors import BadInput, StoreCorrupt, StoreMismatch
from whence.pipeline import build, build_along, forecast_along, query_along, score_along, score_table
from whence.pipeline.through.along import points_of
from whence.store import delete_rows


@pytest.mark.parametrize("method", ["logra", "aligned"])
def test_scores_are_sums_over_stores_of_each_stage(tmp_path, method):
    stages = {"first": range(30), "second": range(20, 50)}
    task, train_set = train_in_stages(tmp_path / "run", stages, lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    queries, before = queries_of(task, 2), [value.detach().clone() for value in task.model.parameters()]
    config = whence.BuildConfig(method=method)
    stores = build_along(
        task, train_set, tmp_path / "stores", run=tmp_path / "run", checkpoints=1, config=config, runtime=QUIET
    )
    table = score_along(tmp_path / "stores", task, queries, runtime=QUIET)
    assert all(torch.equal(value, was) for value, was in zip(task.model.parameters(), before, strict=True))
    points = points_of(whence.runs.open_run(tmp_path / "run"), 1)
    assert [store.folder.name for store in stores] == [f"step-{point.step}" for point in points] == ["step-3", "step-9"]
    wanted = dict.fromkeys(table.train_ids, torch.zeros(2, dtype=torch.float64))
    for point in points:
        other = whence.Classification(at_step(tmp_path / "run", "mlp", point.step))
        met = Dataset([example for example in train_set.examples if example.id in point.shares])
        store = build(other, met, tmp_path / "alone" / str(point.step), config=config, runtime=QUIET)
        part = score_table(store, other, queries, runtime=QUIET)
        for name, column in zip(part.train_ids, part.scores.T, strict=True):
            wanted[name] = wanted[name] + column.double() / 2  # two stages alike, whose examples are met alike often
    assert set(table.train_ids) == {str(place) for place in range(50)}
    torch.testing.assert_close(table.scores, torch.stack([wanted[name] for name in table.train_ids], 1), check_dtype=False)
    assert table.notes[0] == "sum over stores after 3, 9 of a recorded run's 12 steps, weighted by the learning rate"
    assert table.bytes_per_example == pytest.approx(sum(store.codec.row_bytes() * 30 for store in stores) / 50)


def test_a_build_goes_on_and_what_is_missing_is_refused(tmp_path):
    _, task, train_set, _ = train(tmp_path / "run", "sgd", epochs=1, every=2)
    options = {"run": tmp_path / "run", "checkpoints": 2}
    config = whence.BuildConfig(method="logra", factors=None)
    stores = build_along(task, train_set, tmp_path / "stores", **options, config=config, runtime=QUIET)
    written = {path: path.stat().st_mtime_ns for store in stores for path in store.folder.glob("*.safetensors")}
    build_along(task, train_set, tmp_path / "stores", **options, config=config, runtime=QUIET)
    assert written == {path: path.stat().st_mtime_ns for path in written}
    stored, queries = tmp_path / "stores", queries_of(task, 2)
    with pytest.raises(
        StoreMismatch, match="found stores with checkpoints=2 in .*; needed those of the run in .* checkpoints=3"
    ):
        build_along(task, train_set, stored, run=tmp_path / "run", config=config, runtime=QUIET)
    with pytest.raises(BadInput, match="found stores along a recorded run in .*; needed a new folder"):
        build(task, train_set, stored, config=config, runtime=QUIET)
    with pytest.raises(BadInput, match="found stores along a recorded run at .*; needed a single store"):
        whence.query(stored, task, queries, runtime=QUIET)
    build(task, train_set, tmp_path / "single", config=config, runtime=QUIET)
    with pytest.raises(BadInput, match="found a single store in .*; needed a new folder"):
        build_along(task, train_set, tmp_path / "single", **options, config=config, runtime=QUIET)
    with pytest.raises(BadInput, match="found no stores along a run at .*single"):
        score_along(tmp_path / "single", task, queries, runtime=QUIET)
    with pytest.raises(BadInput, match="found k=0"):
        query_along(stored, task, queries, k=0, runtime=QUIET)
    for count in (0, "2", True):
        with pytest.raises(BadInput, match=f"found checkpoints={count!r}; needed 1 or more"):
            build_along(task, train_set, tmp_path / "other", run=tmp_path / "run", checkpoints=count, runtime=QUIET)
    for answer in (score_along, query_along):
        with pytest.raises(BadInput, match="where a task belongs"):
            answer(stored, task.model, queries, runtime=QUIET)
    with pytest.raises(BadInput, match="where a task belongs"):
        build_along(task.model, train_set, tmp_path / "other", **options, runtime=QUIET)
    train(tmp_path / "second", "momentum", epochs=1, every=2)
    with pytest.raises(StoreMismatch, match="is not what the run in .* ended with"):
        build_along(task, train_set, tmp_path / "other", run=tmp_path / "second", runtime=QUIET)
    with pytest.raises(StoreMismatch, match="found another run in .*second than the one that the stores were built along"):
        score_along(stored, task, queries, run=tmp_path / "second", runtime=QUIET)
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(BadInput, match=r"found no run at .*run, where it was .*; do this: pass run \(--run\)"):
        score_along(stored, task, queries, runtime=QUIET)
    score_along(stored, task, queries, run=tmp_path / "moved", runtime=QUIET)
    (stored / stores[1].folder.name / "manifest.json").unlink()
    with pytest.raises(BadInput, match=f"found no finished store {stores[1].folder.name} in .*; needed one at each of 2"):
        score_along(stored, task, queries, run=tmp_path / "moved", runtime=QUIET)


def in_stages(folder):
    """A run of two stages that share some examples; 10 of the data are never met."""
    stages = {"first": range(30), "second": range(20, 50)}
    return train_in_stages(folder, stages, lambda parameters: torch.optim.SGD(parameters, lr=0.1))


def test_foreign_stores_are_refused_in_a_line(tmp_path):
    task, train_set = in_stages(tmp_path / "run")
    config, queries = whence.BuildConfig(method="grad-dot"), queries_of(task, 2)
    options = {"run": tmp_path / "run", "checkpoints": 1, "config": config, "runtime": QUIET}
    stores = build_along(task, train_set, tmp_path / "stores", **options)
    other, spare = stores[1].folder, tmp_path / "spare"
    other.rename(spare)
    build(task, train_set, other, config=config, runtime=QUIET)
    with pytest.raises(StoreMismatch, match="found a store in .*step-9 that was not built along this run; needed the one"):
        score_along(tmp_path / "stores", task, queries, runtime=QUIET)
    shutil.rmtree(other)
    shutil.copytree(stores[0].folder, other)
    with pytest.raises(StoreMismatch, match="found a store in .*step-9 that was not built along this run"):
        score_along(tmp_path / "stores", task, queries, runtime=QUIET)
    shutil.rmtree(other)
    # Of the same checkpoint, with examples that its stage never met.
    run = whence.runs.open_run(tmp_path / "run")
    with run.weights(task.model, [9], at="measurements"):
        build(task, train_set, other, origin={"run": {"digest": run.digest, "step": 9}}, config=config, runtime=QUIET)
    with pytest.raises(StoreCorrupt, match="found a store of 60 examples in .*step-9; needed the 30 that the"):
        score_along(tmp_path / "stores", task, queries, runtime=QUIET)
    shutil.rmtree(other)
    with run.weights(task.model, [9], at="measurements"):
        met = Dataset(train_set.examples[30:])
        build(task, met, other, origin={"run": {"digest": run.digest, "step": 9}}, config=config, runtime=QUIET)
    with pytest.raises(
        StoreMismatch, match="found 10 examples in .* that the stage of step 9 never met, the first '50'; needed a store"
    ):
        score_along(tmp_path / "stores", task, queries, runtime=QUIET)


def test_hits_are_the_largest_scores_and_deleted_examples_leave(tmp_path):
    task, train_set = in_stages(tmp_path / "run")
    queries = queries_of(task, 3)
    options = {"run": tmp_path / "run", "checkpoints": 2, "config": whence.BuildConfig(method="logra"), "runtime": QUIET}
    stores = build_along(task, train_set, tmp_path / "stores", **options)
    table = score_along(tmp_path / "stores", task, queries, runtime=QUIET)
    hits = query_along(tmp_path / "stores", task, queries, k=4, runtime=QUIET)
    assert hits.num_examples == 50 and hits.notes[: len(table.notes)] == table.notes
    for query, scores in enumerate(table.scores.tolist()):
        ranked = sorted(zip(scores, table.train_ids, strict=True))
        for side, wanted in ((hits.proponents[query], ranked[::-1]), (hits.opponents[query], ranked)):
            assert [(hit.score, hit.id) for hit in side] == wanted[:4]
            assert all(table.train_ids[hit.row] == hit.id and hit.label is not None for hit in side)
    with torch.no_grad():
        value = -task.loss(task.model, task.collate(queries.examples))
    torch.testing.assert_close(torch.tensor(hits.measurements, dtype=value.dtype), value)
    first = hits.proponents[0][0].id
    for store in stores:
        if first in store.ids():
            delete_rows(store.folder, [first])
    after = score_along(tmp_path / "stores", task, queries, runtime=QUIET)
    left = [column for column, name in enumerate(table.train_ids) if name != first]
    assert after.train_ids == tuple(table.train_ids[column] for column in left)
    torch.testing.assert_close(after.scores, table.scores[:, left])
    assert any("deleted" in note for note in after.notes)


def test_it_says_what_it_could_not_compare_and_what_no_store_has(tmp_path, capsys):
    task, train_set = in_stages(tmp_path / "run")
    config = whence.BuildConfig(method="logra")
    build_along(task, train_set, tmp_path / "stores", run=tmp_path / "run", checkpoints=1, config=config)
    said = capsys.readouterr().err
    table = score_along(tmp_path / "stores", task, queries_of(task, 2), runtime=QUIET)
    hits = query_along(tmp_path / "stores", task, queries_of(task, 2), runtime=QUIET)
    for note in (
        "examples were compared with the run's by id only",
        "10 examples that the run never met are in no store, the first '50'",
    ):
        assert note in said
        for notes in (table.notes, hits.notes):
            assert any(line.startswith(note) for line in notes)
    forecast = forecast_along(task, train_set, config, run=tmp_path / "run", checkpoints=2)
    assert len(forecast.steps) == 4 and forecast.builds[0].rows == forecast.builds[3].rows == 30
    assert forecast.disk_bytes == 2 * sum(forecast.builds[at].disk_bytes.total for at in (0, 3))
    assert str(forecast).startswith("4 stores along the run, one after the other\neach after 3, 6 steps:")
