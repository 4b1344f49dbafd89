"""Stores along a recorded run: against ordinary stores of its weights, added up by hand."""

import pytest
import torch

import whence
from tests.settings import QUIET
from tests.test_along import at_step
from tests.test_source import queries_of, train, train_in_stages
from whence.data import Dataset
from whence.errors import BadInput, StoreMismatch
from whence.pipeline import build, build_along, score_along, score_table
from whence.pipeline.through.along import points_of


@pytest.mark.parametrize("method", ["logra", "aligned"])
def test_scores_are_sums_over_stores_of_each_stage(tmp_path, method):
    stages = {"first": range(30), "second": range(20, 50)}
    task, train_set = train_in_stages(tmp_path / "run", stages, lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    queries, before = queries_of(task, 2), [value.detach().clone() for value in task.model.parameters()]
    config = whence.BuildConfig(method=method)
    stores = build_along(
        task, train_set, tmp_path / "stores", run=tmp_path / "run", checkpoints=1, config=config, runtime=QUIET
    )
    table = score_along(tmp_path / "stores", task, queries, run=tmp_path / "run", checkpoints=1, runtime=QUIET)
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
    with pytest.raises(BadInput, match="found no finished store step-6 in .*; needed one at each of 3 checkpoints"):
        score_along(tmp_path / "stores", task, queries_of(task, 2), run=tmp_path / "run", runtime=QUIET)
    for count in (0, "2", True):
        with pytest.raises(BadInput, match=f"found checkpoints={count!r}; needed 1 or more"):
            build_along(task, train_set, tmp_path / "other", run=tmp_path / "run", checkpoints=count, runtime=QUIET)
    with pytest.raises(BadInput, match="where a task belongs"):
        build_along(task.model, train_set, tmp_path / "other", **options, runtime=QUIET)
    with pytest.raises(BadInput, match="where a task belongs"):
        score_along(tmp_path / "stores", task.model, queries_of(task, 2), **options, runtime=QUIET)
    train(tmp_path / "second", "momentum", epochs=1, every=2)
    with pytest.raises(StoreMismatch, match="is not what the run in .* ended with"):
        build_along(task, train_set, tmp_path / "other", run=tmp_path / "second", runtime=QUIET)
    with pytest.raises(StoreMismatch):
        score_along(tmp_path / "stores", task, queries_of(task, 2), run=tmp_path / "second", checkpoints=2, runtime=QUIET)


def test_it_says_what_it_could_not_compare_and_what_no_store_has(tmp_path, capsys):
    stages = {"first": range(30), "second": range(20, 50)}
    task, train_set = train_in_stages(tmp_path / "run", stages, lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    config = whence.BuildConfig(method="logra")
    build_along(task, train_set, tmp_path / "stores", run=tmp_path / "run", checkpoints=1, config=config)
    said = capsys.readouterr().err
    assert "examples were compared with the run's by id only" in said
    assert "10 examples that the run never met are in no store, the first '50'" in said
