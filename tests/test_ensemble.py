"""Ensembles on disk equal the mean of the tables, survive a kill, and refuse what does not belong to them."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

import whence
from tests import zoo
from tests.settings import QUIET
from whence.cli import main
from whence.data import Dataset
from whence.errors import BadInput, NonFinite, StoreCorrupt, StoreMismatch
from whence.evaluate import load_table, save_table
from whence.evaluate.tables import checked
from whence.load import load_task
from whence.records import ScoreTable
from whence.score import ensemble as room
from whence.score import mean_table


def member(seed, **facts):
    scores_QN = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))
    ids = tuple("abc"), tuple("vwxyz")
    return ScoreTable(scores_QN, *ids, "nats", "m", ("note",), **facts)


def same(found, expected):
    torch.testing.assert_close(found.scores, expected.scores.double(), rtol=0, atol=1e-6)
    assert replace(found, scores=expected.scores) == expected


def test_the_mean_is_that_of_the_tables(tmp_path):
    tables = [
        member(0, seconds=1.0, bytes_per_example=4.0),
        member(1, seconds=2.0, bytes_per_example=5.0, tuned_on=("b",)),
        member(2),
    ]
    for count in (1, 2, 3):
        whence.score.Ensemble(tmp_path / "e").add(tables[count - 1], member=f"seed {count}")
        found = whence.score.Ensemble(tmp_path / "e")
        same(found.table(), mean_table(tables[:count]))
        assert len(found) == count and found.members == tuple(f"seed {number + 1}" for number in range(count))
    assert "seed 2" in found and "seed 4" not in found
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == [".lock", "ensemble.json", "sum-3.safetensors"]


def test_a_mean_has_no_parts_of_its_first_member():
    parts = {"weight": torch.zeros(3, 5)}
    assert not mean_table([member(0, parts=parts), member(1)]).parts


def models_of_one_kind(name):
    """Two models with other weights, and their data."""
    task, dataset = zoo.make(name, count=8)
    other, _ = zoo.make(name, count=8)
    with torch.no_grad():
        for number, parameter in enumerate(other.model.parameters()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)).to(parameter)
    return (task, other), Dataset(dataset.examples[3:]), Dataset(dataset.examples[:3])


@pytest.mark.parametrize("name", ["regression", "conv2d_groups", "gpt2"])
@pytest.mark.parametrize("method", ["ekfac", "logra"])
def test_exact_and_stored_scores_are_averaged_in_their_own_unit(tmp_path, name, method):
    tasks, train, queries = models_of_one_kind(name)
    ensemble, tables = whence.score.Ensemble(tmp_path / "e"), []
    for number, task in enumerate(tasks):
        if method == "ekfac":
            tables.append(whence.attribute(task, train, queries, runtime=QUIET))
        else:
            store = whence.build(
                task,
                train,
                tmp_path / f"{number}",
                config=whence.BuildConfig(method=method, rank=4, dtype="float64"),
                runtime=QUIET,
            )
            tables.append(whence.score_table(store, task, queries, runtime=QUIET))
        ensemble.add(tables[-1], member=task.weights)
    found = ensemble.table()
    torch.testing.assert_close(
        found.scores, (tables[0].scores.double() + tables[1].scores.double()) / 2, rtol=1e-12, atol=1e-12
    )
    assert not torch.allclose(tables[0].scores, tables[1].scores)
    assert (found.unit, found.method) == (tables[0].unit, f"{tables[0].method}, 2 models")


@pytest.mark.parametrize("last_write", ["write_tensors", "write_record"])
def test_a_kill_leaves_the_members_that_were_in(tmp_path, monkeypatch, last_write):
    ensemble = whence.score.Ensemble(tmp_path / "e")
    ensemble.add(member(0), member="0")

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(room, last_write, killed)
        with pytest.raises(KeyboardInterrupt):
            ensemble.add(member(1), member="1")
    assert ensemble.members == ("0",)
    same(ensemble.table(), mean_table([member(0)]))
    for seed in (2, 1):
        ensemble.add(member(seed), member=str(seed))
    same(ensemble.table(), mean_table([member(seed) for seed in (0, 2, 1)]))
    assert len(list((tmp_path / "e").glob("sum-*"))) == 1


def test_several_writers_lose_nothing(tmp_path):
    def add(seed):
        whence.score.Ensemble(tmp_path / "e").add(member(seed), member=str(seed))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(16)))
    found = whence.score.Ensemble(tmp_path / "e").table()
    torch.testing.assert_close(
        found.scores, mean_table([member(seed) for seed in range(16)]).scores.double(), rtol=0, atol=1e-6
    )


def test_what_does_not_belong_is_refused(tmp_path):
    ensemble = whence.score.Ensemble(tmp_path / "e", settings={"seed": 0})
    with pytest.raises(BadInput, match="no member in"):
        ensemble.table()
    ensemble.add(member(0), member="0")
    for table, name, text in (
        (member(1), "0", "'0' a second time for the ensemble"),
        (replace(member(1), query_ids=("a", "c", "b")), "1", "other query ids"),
        (replace(member(1), train_ids=tuple("vwxzy")), "1", "other train ids"),
        (replace(member(1), unit="bits"), "1", "other unit"),
        (replace(member(1), method="n"), "1", "other method than the ensemble"),
    ):
        with pytest.raises(BadInput, match=text):
            ensemble.add(table, member=name)
    with pytest.raises(NonFinite, match="NaN or infinite scores of '1'"):
        ensemble.add(replace(member(1), scores=torch.full((3, 5), torch.nan)), member="1")
    with pytest.raises(BadInput, match="seed=1 for the ensemble in .* made with 0"):
        whence.score.Ensemble(tmp_path / "e", settings={"seed": 1})
    same(whence.score.Ensemble(tmp_path / "e").table(), mean_table([member(0)]))


def test_damage_is_seen(tmp_path):
    ensemble = whence.score.Ensemble(tmp_path / "e")
    ensemble.add(member(0), member="0")
    path = tmp_path / "e" / "sum-1.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreCorrupt, match="a damaged file .*sum-1"):
        ensemble.table()
    with pytest.raises(StoreCorrupt, match="a damaged file .*sum-1"):
        ensemble.add(member(1), member="1")
    (tmp_path / "e" / "ensemble.json").write_text('{"format": "something else"}')
    with pytest.raises(StoreCorrupt, match="the format 'something else'"):
        whence.score.Ensemble(tmp_path / "e")


def test_the_command_line_averages_models(tmp_path, capsys, model_folder, other_model_folder, data_file):
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"id": "q0", "text": "a cat sat"}\n')

    def run(*words):
        capsys.readouterr()
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    folders = [model_folder, other_model_folder]
    for number, folder in enumerate(folders):
        run("attribute", folder, data_file, queries, "-o", tmp_path / f"exact{number}", "--method", "kfac")
        run("build", folder, data_file, "-o", tmp_path / f"store{number}", "--method", "logra", "--rank", "4")
        run("score", tmp_path / f"store{number}", queries, "-o", tmp_path / f"stored{number}")
    for number in (0, 0, 1, 1):  # again and again: a model counts once
        exact = ["attribute", folders[number], data_file, queries, "-o", tmp_path / "exact", "--method", "kfac"]
        assert run(*exact, "--ensemble", tmp_path / "e")[0] == 0
        stored = ["score", tmp_path / f"store{number}", queries, "-o", tmp_path / "stored", "--ensemble", tmp_path / "s"]
        status, out, err = run(*stored)
        assert status == 0 and json.loads(out)["queries"] == 1
    assert "this model is one of the 2 in" in err
    for name in ("exact", "stored"):
        tables = [load_table(tmp_path / f"{name}{number}") for number in range(2)]
        found = load_table(tmp_path / name)
        torch.testing.assert_close(found.scores, (tables[0].scores + tables[1].scores) / 2)
        assert found.method == f"{tables[0].method}, 2 models"
    exact[5] = tmp_path / "other"
    status, _, err = run(*exact, "--ensemble", tmp_path / "e", "--relative-damping", "0.5")
    assert status == 2 and "relative_damping=0.5 for the ensemble" in err


WEIGHTED = ("trak", "grass", "grass-selective")


def stores_of(tmp_path, method, **options):
    """Two models whose examples weigh differently, a store of each, and queries."""
    tasks, train, queries = models_of_one_kind("linear")
    with torch.no_grad():
        for parameter in tasks[1].model.parameters():
            parameter *= 4
    stores = [
        whence.build(
            task,
            train,
            tmp_path / f"{number}",
            config=whence.BuildConfig(method=method, rank=4, dtype="float64", **options),
            runtime=QUIET,
        )
        for number, task in enumerate(tasks)
    ]
    return tasks, stores, queries


@pytest.mark.parametrize("method", WEIGHTED)
def test_scores_and_weights_are_averaged_apart(tmp_path, method):
    """Park et al. 2023, section 3: the mean of the models' kernels times the mean of their weights, on every road alike."""
    tasks, stores, queries = stores_of(tmp_path, method)
    pairs = list(zip(stores, tasks, strict=True))
    apart = [whence.score_table(store, task, queries, weighted=False, runtime=QUIET) for store, task in pairs]
    inside = [whence.score_table(store, task, queries, runtime=QUIET) for store, task in pairs]
    expected = sum(table.scores for table in apart) / 2 * sum(table.weights for table in apart) / 2
    products = sum(table.scores for table in inside) / 2
    assert float((products - expected).abs().max() / expected.abs().max()) > 0.01  # or the test could not tell
    ensemble = whence.score.Ensemble(tmp_path / "e")
    for number, table in enumerate(apart):
        torch.testing.assert_close(table.scores * table.weights, inside[number].scores)
        ensemble.add(table, member=str(number))
    for found in (ensemble.table(), mean_table(apart), whence.pipeline.ensemble_table(stores, tasks, queries, runtime=QUIET)):
        torch.testing.assert_close(found.scores, expected, rtol=1e-12, atol=0)
        assert found.is_weighted and found.weights is None and "averaged apart" in found.notes[-1]
    with whence.workers.Workers(1) as workers:
        found = whence.score_table(
            stores[0], tasks[0], queries, weighted=False, runtime=whence.Runtime(quiet=True, workers=workers)
        )
        torch.testing.assert_close(found.scores, apart[0].scores, rtol=0, atol=0)


def test_products_of_scores_and_weights_are_not_averaged(tmp_path):
    tasks, stores, queries = stores_of(tmp_path, "trak")
    inside = whence.score_table(stores[0], tasks[0], queries, runtime=QUIET)
    apart = whence.score_table(stores[0], tasks[0], queries, weighted=False, runtime=QUIET)
    save_table(inside, tmp_path / "inside")
    for table in (inside, load_table(tmp_path / "inside")):
        with pytest.raises(BadInput, match="a table of trak .* with the examples' weights multiplied into its scores"):
            whence.score.Ensemble(tmp_path / "e").add(table, member="0")
        with pytest.raises(BadInput, match="weights multiplied into its scores"):
            mean_table([table, table])
        with pytest.raises(BadInput, match="as one of several models"):
            whence.shares.shares(
                {"a": table, "b": table},
                dict.fromkeys(table.train_ids, "x"),
                quiet=True,
                config=whence.settings.SharesConfig(several="models"),
            )
    with pytest.raises(BadInput, match="weights that are not multiplied in"):
        save_table(apart, tmp_path / "apart")
    with pytest.raises(BadInput, match="weights that are not multiplied in"):
        checked(apart)
    with pytest.raises(BadInput, match="tables with and without weights"):
        mean_table([apart, replace(apart, weights=None)])
    ensemble = whence.score.Ensemble(tmp_path / "e")
    ensemble.add(apart, member="0")
    with pytest.raises(BadInput, match="a table without weights for the ensemble"):
        ensemble.add(replace(apart, weights=None), member="1")


def test_an_ensemble_of_products_on_disk_is_refused(tmp_path):
    """As earlier versions made them, with what the command line records of its members."""
    old = whence.score.Ensemble(tmp_path / "e", settings={"method": "trak"})
    old.add(member(0), member="0")
    with pytest.raises(StoreMismatch, match="an ensemble of trak in .* whose members' weights are multiplied"):
        old.table()


@pytest.mark.parametrize("method", ["trak", "grass"])
def test_the_command_line_gives_the_numbers_of_ensemble_table(
    tmp_path, run, model_folder, other_model_folder, data_file, method
):
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"id": "q0", "text": "a cat sat"}\n{"id": "q1", "text": "one bird"}\n')
    tasks, stores = [], []
    for number, folder in enumerate((model_folder, other_model_folder)):
        stores.append(tmp_path / f"store{number}")
        run("build", folder, data_file, "-o", stores[-1], "--method", method, "--rank", "16", "--dtype", "float32")
        run("score", stores[-1], queries, "-o", tmp_path / "mean", "--ensemble", tmp_path / "e")
        tasks.append(load_task(str(folder))[0])
    expected = whence.pipeline.ensemble_table(stores, tasks, whence.load_records(str(queries)), runtime=QUIET)
    found = load_table(tmp_path / "mean")
    torch.testing.assert_close(found.scores, expected.scores.float(), rtol=1e-5, atol=0)
    assert (found.method, found.notes, found.is_weighted) == (expected.method, expected.notes, True)
