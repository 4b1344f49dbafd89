"""Two stages: a shortlist by small codes, then exact influence or a larger store; whatever is shortlisted, its score is the better one."""

import json
import random

import pytest
import torch

import whence
from tests import zoo
from tests.settings import QUIET
from tests.test_store import make_records, make_task
from whence.data import Dataset
from whence.errors import BadInput, StoreMismatch
from whence.pipeline.stored import code_size as sizes
from whence.pipeline.stored import rerank as rerank_module
from whence.score import RELATIVE
from whence.store import open_store

MODELS = ["linear", "gpt2", "conv2d_groups", "two_inputs", "tied", "lone_parameter", "applied_twice", "regression"]
# Codes so small that their own ranking is wrong.
CRUDE = {"method": "aligned", "rank": 3, "dtype": "int1", "batch_positions": 40, "rows_per_shard": 4}


def split(name, count=14, queries=3):
    task, dataset = zoo.make(name, count=count)
    return task, Dataset(dataset.examples[queries:]), Dataset(dataset.examples[:queries])


def exact(task, train, queries, relative=0.1):
    return whence.attribute(
        task,
        train,
        queries,
        method=whence.EKFAC(damping=whence.Damping(relative=relative)),
        runtime=whence.Runtime(batch_positions=40, quiet=True),
    ).scores


def ranking(scores, k, sign):
    """By a sort that anyone can read: (row, score) of one query's side, strongest first, equal scores in row order."""
    pairs = sorted(scores.items(), key=lambda item: (-sign * item[1], item[0]))
    return [(row, score) for row, score in pairs[:k] if score * sign > 0]


def assert_hits(hits, wanted_of, k):
    """Both sides of every query are the ranking of `wanted_of(place)`, which maps rows to scores."""
    for place in range(len(hits.queries)):
        for side, sign in ((hits.proponents[place], 1), (hits.opponents[place], -1)):
            wanted = ranking(wanted_of(place), k, sign)
            assert [hit.row for hit in side] == [row for row, _ in wanted]
            assert [hit.score for hit in side] == pytest.approx([score for _, score in wanted], rel=1e-9, abs=1e-13)


def shortlisted(table_QN, place, size):
    order = sorted(range(table_QN.shape[1]), key=lambda row: (-float(table_QN[place, row]), row))
    back = sorted(range(table_QN.shape[1]), key=lambda row: (float(table_QN[place, row]), row))
    return sorted({*order[:size], *back[:size]})


@pytest.mark.parametrize("name", MODELS)
def test_a_shortlist_of_everything_is_the_exact_method(tmp_path, name):
    task, train, queries = split(name)
    store = whence.build(task, train, tmp_path / "s", config=whence.BuildConfig(relative_damping=0.2, **CRUDE), runtime=QUIET)
    hits = whence.query(store, task, queries, k=11, rerank=whence.Rerank(train=train), runtime=QUIET)
    wanted = exact(task, train, queries, 0.2)
    assert_hits(hits, lambda place: dict(enumerate(wanted[place].tolist())), 11)
    assert (hits.stage, hits.method) == ("exact", "aligned, then exact EK-FAC")
    is_told = any("sizes are relative" in note for note in hits.notes)
    assert hits.unit == (RELATIVE if is_told else task.unit) and hits.measurement_unit == task.unit
    plain = whence.query(store, task, queries, k=11, runtime=QUIET)
    assert plain.stage == "scan" and [h.row for h in plain.proponents[0]] != [h.row for h in hits.proponents[0]]
    assert plain.measurements == hits.measurements


@pytest.mark.parametrize("at_once", [1, 2, 9])
@pytest.mark.parametrize("name", ["linear", "gpt2"])
def test_a_query_is_answered_from_its_own_shortlist(tmp_path, monkeypatch, name, at_once):
    task, train, queries = split(name, count=20)
    store = whence.build(task, train, tmp_path / "s", config=whence.BuildConfig(**CRUDE), runtime=QUIET)
    monkeypatch.setattr(rerank_module.ExactStage, "at_once", at_once)
    hits = whence.query(store, task, queries, k=2, rerank=whence.Rerank(train=train, shortlist=3), runtime=QUIET)
    first = whence.score_table(store, task, queries, runtime=QUIET).scores
    wanted = exact(task, train, queries)
    lists = [shortlisted(first, place, 3) for place in range(3)]
    assert_hits(hits, lambda place: {row: float(wanted[place, row]) for row in lists[place]}, 2)
    count = sum(len(set().union(*lists[start : start + at_once])) for start in range(0, 3, at_once))
    assert f"the strongest 3 of each side of each query by aligned rows of 3 bytes, {count} examples in all" in "; ".join(
        hits.notes
    )


def test_the_inverse_is_whole_where_codes_leave_coordinates_out(tmp_path, monkeypatch):
    task, train, queries = split("gpt2")
    monkeypatch.setattr(sizes, "AXES_BYTES", 200)
    store = whence.build(task, train, tmp_path / "s", config=whence.BuildConfig(**CRUDE), runtime=QUIET)
    assert "kept.0" in store.file("codes.safetensors")
    hits = whence.query(store, task, queries, k=11, rerank=whence.Rerank(train=train), runtime=QUIET)
    wanted = exact(task, train, queries)
    assert_hits(hits, lambda place: dict(enumerate(wanted[place].tolist())), 11)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "aligned", "dtype": "float64"},
        {"method": "lorif", "rank": 4, "dtype": "float64"},
        {"method": "trak", "rank": 16, "dtype": "int4"},
        {"method": "trackstar", "rank": 4},
        {"method": "grad-cos", "rank": 4, "dtype": "int1"},
    ],
    ids=lambda options: options["method"],
)
def test_a_second_store_scores_the_shortlist(tmp_path, options):
    task, train, queries = split("gpt2", count=20)
    store = whence.build(task, train, tmp_path / "s", config=whence.BuildConfig(**CRUDE), runtime=QUIET)
    larger = whence.build(
        task,
        train,
        tmp_path / "l",
        config=whence.BuildConfig(rows_per_shard=5, batch_positions=40, **options),
        runtime=QUIET,
    )
    hits = whence.query(store, task, queries, k=3, rerank=whence.Rerank(by=tmp_path / "l", shortlist=4), runtime=QUIET)
    first, second = (whence.score_table(one, task, queries, runtime=QUIET) for one in (store, larger))
    lists = [shortlisted(first.scores, place, 4) for place in range(3)]
    for place, rows in enumerate(lists):
        for side, sign in ((hits.proponents[place], 1), (hits.opponents[place], -1)):
            wanted = ranking({row: float(second.scores[place, row]) for row in rows}, 3, sign)
            assert [hit.row for hit in side] == [row for row, _ in wanted]
            assert [hit.score for hit in side] == pytest.approx([score for _, score in wanted], rel=1e-4, abs=1e-9)
    assert (hits.stage, hits.method) == ("store", f"aligned, then {options['method']}")
    is_told = any("sizes are relative" in note for note in hits.notes)
    assert hits.unit == (RELATIVE if is_told else second.unit)


@pytest.mark.parametrize("options", [{}, {"dtype": "int4"}, {"method": "logra", "dtype": "int1"}])
def test_some_rows_are_read_as_the_whole(tmp_path, options):
    store = whence.build(
        make_task(), make_records(10), tmp_path / "s", config=whence.BuildConfig(rows_per_shard=4, **options), runtime=QUIET
    )
    whole = [tensors for _, tensors in store.shards()]
    parts = list(store.rows([1, 2, 9]))
    assert len(parts) == 2
    for name, tensor in whole[0].items():
        assert torch.equal(parts[0][name], tensor[1:3]) and torch.equal(parts[1][name], whole[2][name][1:2])


def test_training_data_may_be_in_any_order_and_more_than_needed(tmp_path):
    task, first, more = make_task(), make_records(8), make_records(5, first=20)
    whence.build(task, first, tmp_path / "s", config=whence.BuildConfig(**CRUDE), runtime=QUIET)
    store = whence.build(task, more, tmp_path / "s", append=True, config=whence.BuildConfig(**CRUDE), runtime=QUIET)
    assert [rows for _, rows in store.datasets()] == [8, 5]
    train = [*first, *more, *make_records(3, first=40)]
    random.Random(0).shuffle(train)
    hits = whence.query(store, task, first[:2], k=13, rerank=whence.Rerank(train=train), runtime=QUIET)
    # The fit is that of the first build, so the whole of it is asked for at once.
    again = whence.build(task, first, tmp_path / "f", config=whence.BuildConfig(**CRUDE), runtime=QUIET)
    wanted = whence.query(again, task, first[:2], k=13, rerank=whence.Rerank(train=first), runtime=QUIET)
    for got, had in zip(hits.proponents, wanted.proponents, strict=True):
        scores = {hit.id: hit.score * 13 / 8 for hit in got}  # per example of the larger N
        assert all(scores[hit.id] == pytest.approx(hit.score, rel=1e-6) for hit in had)


@pytest.mark.parametrize("second", ["exact", "store"])
def test_tokens_add_up_to_the_better_score(tmp_path, model_folder, second):
    from whence.load import load_task

    task, _ = load_task(str(model_folder))
    train = [{"id": f"t{i}", "text": text} for i, text in enumerate(["a cat sat", "the dog ran", "a dog sat", "é cat", "one"])]
    store = whence.build(task, train, tmp_path / "s", config=whence.BuildConfig(**CRUDE), runtime=QUIET)
    rerank, data = "exact", train
    if second == "store":
        rerank, data = (
            whence.build(
                task, train, tmp_path / "l", config=whence.BuildConfig(method="aligned", dtype="float32"), runtime=QUIET
            ),
            None,
        )
    asked = [{"text": "a cat"}, {"text": "dogs"}]
    hits = whence.query(store, task, asked, k=5, tokens=True, rerank=whence.Rerank(by=rerank, train=data), runtime=QUIET)
    plain = whence.query(store, task, asked, k=5, rerank=whence.Rerank(by=rerank, train=data), runtime=QUIET)
    found = [hit for side in (*hits.proponents, *hits.opponents) for hit in side]
    assert [hit.score for hit in found] == [hit.score for side in (*plain.proponents, *plain.opponents) for hit in side]
    for hit in found:
        assert sum(hit.token_scores) == pytest.approx(hit.score, rel=1e-3, abs=1e-6) and hit.token_spans[-1][1] == len(hit.text)


# Refusals


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, r"found Rerank\(by='exact'\) without training data; needed the data that the store was built from"),
        ({"train": "data", "shortlist": 2}, "found shortlist=2 for k=3; needed at least k"),
        ({"by": "store", "train": "data"}, "found train for a second store"),
        ({"by": "nowhere"}, "found no store at nowhere"),
    ],
)
def test_what_has_no_use_is_refused(tmp_path, options, text):
    task, records = make_task(), make_records()
    store = whence.build(task, records, tmp_path / "s", config=whence.BuildConfig(**CRUDE), runtime=QUIET)
    known = {"data": records, "store": store}
    with pytest.raises(BadInput, match=text):
        whence.query(
            store,
            task,
            records[:1],
            k=3,
            rerank=whence.Rerank(**{n: known.get(v, v) if isinstance(v, str) else v for n, v in options.items()}),
            runtime=QUIET,
        )


def test_a_store_without_ekfac_cannot_be_reranked_exactly(tmp_path):
    task, records = make_task(), make_records()
    store = whence.build(task, records, tmp_path / "s", config=whence.BuildConfig(method="logra"), runtime=QUIET)
    with pytest.raises(BadInput, match=r"found Rerank\(by='exact'\) for a store of logra; needed a store of aligned"):
        whence.query(store, task, records[:1], rerank=whence.Rerank(train=records), runtime=QUIET)


def test_other_training_data_is_refused(tmp_path, model_folder):
    task, records = make_task(), make_records()
    store = whence.build(task, records, tmp_path / "s", config=whence.BuildConfig(**CRUDE), runtime=QUIET)
    with pytest.raises(StoreMismatch, match=f"found training data of 9 examples without '{store.ids()[-1]}'; needed all 10"):
        whence.query(store, task, records[:1], rerank=whence.Rerank(train=records[:-1]), runtime=QUIET)
    changed = [*records[:-1], {**records[-1], "inputs": records[-1]["inputs"] + 1}]
    with pytest.raises(StoreMismatch, match="found the ids but not the contents of rows 0 to 9 in the training data"):
        whence.query(store, task, records[:1], rerank=whence.Rerank(train=changed), runtime=QUIET)

    from whence.load import load_task

    task, _ = load_task(str(model_folder))
    texts = [{"id": f"t{i}", "text": text} for i, text in enumerate(["a cat sat", "the dog ran", "a dog sat"])]
    store = whence.build(task, texts, tmp_path / "t", config=whence.BuildConfig(**CRUDE), runtime=QUIET)
    with pytest.raises(StoreMismatch, match="found another text or length of the training example 't1'"):
        other = [texts[0], {**texts[1], "text": "the dog sat"}, texts[2]]
        whence.query(store, task, texts[:1], rerank=whence.Rerank(train=other), runtime=QUIET)


def test_a_second_store_of_other_data_is_refused(tmp_path):
    task = make_task()
    store = whence.build(task, make_records(8), tmp_path / "s", config=whence.BuildConfig(**CRUDE), runtime=QUIET)
    other = whence.build(task, make_records(7), tmp_path / "o", config=whence.BuildConfig(**CRUDE), runtime=QUIET)
    with pytest.raises(
        StoreMismatch, match="found a store of 7 examples in .* to rerank 8 of .*; needed two stores built from the same"
    ):
        whence.query(store, task, make_records(1), rerank=whence.Rerank(by=other), runtime=QUIET)


# Command line


def test_from_the_command_line(run, tmp_path, model_folder, data_file):
    data = tmp_path / "train.jsonl"
    data.write_bytes(data_file.read_bytes())
    run("build", model_folder, data, "-o", tmp_path / "s", "--method", "aligned", "--bytes-per-example", 16)
    run("build", model_folder, data, "-o", tmp_path / "l", "--method", "aligned", "--dtype", "float32")
    ask = ["query", tmp_path / "s", "--text", "a cat sat", "-k", 3, "--json"]
    plain, both, stored = (
        json.loads(run(*ask, *more)) for more in ([], ["--rerank", "exact"], ["--rerank", tmp_path / "l", "--shortlist", 12])
    )
    assert [found["stage"] for found in (plain, both, stored)] == ["scan", "exact", "store"]
    from whence.load import load_records, load_task

    task, _ = load_task(str(model_folder))
    table = whence.attribute(
        task, load_records(str(data)), ["a cat sat"], method=whence.EKFAC(damping=whence.Damping(relative=0.1)), runtime=QUIET
    )
    task_scores = dict(zip(table.train_ids, table.scores[0].tolist(), strict=True))
    for found in (both, stored):
        for side, sign in (("proponents", 1), ("opponents", -1)):
            wanted = ranking(task_scores, 3, sign)
            hits = found["queries"][0][side]
            assert [hit["id"] for hit in hits] == [name for name, _ in wanted]
            assert [hit["score"] for hit in hits] == pytest.approx([score for _, score in wanted], rel=2e-3)
    moved = data.rename(tmp_path / "moved.jsonl")
    error = run(*ask, "--rerank", "exact", status=2)
    assert f"found no training data at {data}, where it was when" in error and "do this: pass --train" in error
    assert json.loads(run(*ask, "--rerank", "exact", "--train", moved)) == both
    shown = run("query", tmp_path / "s", "--text", "a cat sat", "--rerank", "exact", "--train", moved, "--tokens")
    assert "aligned, then exact EK-FAC" in shown and "scores by exact EK-FAC, of the strongest 12 of each side" in shown


def test_a_store_built_from_python_does_not_know_its_data(run, tmp_path, model_folder, data_file):
    from whence.load import load_records, load_task

    task, _ = load_task(str(model_folder))
    whence.build(task, load_records(str(data_file)), tmp_path / "s", config=whence.BuildConfig(**CRUDE), runtime=QUIET)
    ask = ["query", tmp_path / "s", "--model", model_folder, "--text", "a cat", "-k", 2, "--json", "--rerank", "exact"]
    assert "that does not say where its training data is; needed the data" in run(*ask, status=2)
    assert json.loads(run(*ask, "--train", data_file))["stage"] == "exact"
    assert open_store(tmp_path / "s").blueprint.task.keys() == {"kind", "build"}
