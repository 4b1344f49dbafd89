"""Stores of known queries: exact for any document on the anchors and what they span, and they say what they are not exact for."""

import json

import pytest
import torch

import whence
from tests import zoo
from tests.reference.aligned import whitened_rows
from tests.settings import QUIET
from tests.test_aligned import fitted, split
from tests.test_store import contents, make_records, make_task
from whence.capture import plan_units
from whence.clusters.directions import directions
from whence.data import Dataset
from whence.errors import BadInput, StoreMismatch

DAMPING = 0.1


def build(task, train, folder, anchors=None, **more):
    config = whence.BuildConfig(anchors=anchors, dtype="float64", rows_per_shard=4, batch_positions=64)
    return whence.build(task, train, folder, config=config, runtime=QUIET, **more)


@pytest.mark.parametrize("name", ["linear", "gpt2", "conv2d_groups", "tied"])
def test_anchors_and_what_they_span_are_scored_exactly_for_unseen_documents(tmp_path, name):
    task, train, queries = split(name)
    seen, unseen = Dataset(train.examples[:6]), Dataset(train.examples[6:])
    build(task, seen, tmp_path, queries)
    store = build(task, unseen, tmp_path, append=True)
    assert store.blueprint.rank == len(queries) == 3 and len(store) == len(train)
    table = whence.score_table(store, task, queries, runtime=QUIET)
    # By dense square roots of EK-FAC's damped inverse, fitted on what the store was first built from.
    curvature, plan = fitted(task, seen), plan_units(task)
    documents, asked = (
        torch.cat(whitened_rows(task, plan, curvature, DAMPING, some.examples, objective), 1)
        for some, objective in ((train, "loss"), (queries, "measurement"))
    )
    wanted = -asked @ documents.T / len(train)
    torch.testing.assert_close(table.scores, wanted, rtol=1e-9, atol=1e-12 * float(wanted.abs().max()))
    assert any("all queries lie in the span of the store's anchors" in note for note in table.notes)
    assert any("axes span the gradients of anchors, 3 directions" in note for note in table.notes)
    # Others are scored by their part in the span, which is told.
    other = Dataset(train.examples[:2])
    table = whence.score_table(store, task, other, runtime=QUIET)
    basis = torch.linalg.qr(asked.T).Q
    others = torch.cat(whitened_rows(task, plan, curvature, DAMPING, other.examples, "measurement"), 1)
    inside = others @ basis
    torch.testing.assert_close(table.scores, -inside @ (documents @ basis).T / len(train), rtol=1e-9, atol=1e-12)
    shares = inside.square().sum(1) / others.square().sum(1)
    told = next(note for note in table.notes if "lies in the span" in note)
    assert told.startswith(f"{float(shares[0]):.3g}, {float(shares[1]):.3g} of the squared norm of the queries' preconditioned")


def test_a_store_of_anchors_agrees_with_attribution_without_a_store(tmp_path):
    task, train, queries = make_task(), make_records(12), make_records(2, first=50)
    anchored = whence.BuildConfig(anchors=queries, factors=tmp_path / "factors", dtype="float64")
    store = whence.build(task, train, tmp_path / "store", config=anchored, runtime=QUIET)
    exact = whence.attribute(
        task, train, queries,
        method=whence.EKFAC(factors=tmp_path / "factors", damping=whence.Damping(relative=DAMPING)), runtime=QUIET,
    )  # fmt: skip
    table = whence.score_table(store, task, queries, runtime=QUIET)
    torch.testing.assert_close(table.scores.double(), exact.scores.double(), rtol=1e-9, atol=1e-13)


def test_repeated_anchors_are_one_direction_and_a_stopped_build_has_the_same_bytes(tmp_path, monkeypatch):
    task, train = make_task(), make_records(10)
    twice = [{**record, "id": f"{record['id']}{place}"} for place in "ab" for record in make_records(2, first=50)]
    store = build(task, train, tmp_path / "one", twice)
    assert store.blueprint.rank == 2 and "fidelity.json" not in store.files
    with pytest.raises(BadInput, match="found a store of anchors in .*, whose rows say how examples act on these queries only"):
        directions(store)
    with monkeypatch.context() as patch:
        patch.setattr("whence.pipeline.stored.write_rows.class_labels", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(task, train, tmp_path / "two", twice)
    build(task, train, tmp_path / "two", twice)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_command_takes_a_file_of_anchors(model_folder, data_file, tmp_path, run):
    anchors = tmp_path / "anchors.jsonl"
    anchors.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a cat ran", "the bird")))
    words = ["build", model_folder, data_file, "--anchors", anchors]
    run(*words, "-o", tmp_path / "store")
    note = json.loads(run("query", tmp_path / "store", "--text", "a cat ran", "--json"))["notes"]
    assert any("all queries lie in the span" in line for line in note)
    assert json.loads(run("inspect", tmp_path / "store", "--json"))["rank"] == 2
    told = json.loads(run("forecast", model_folder, data_file, "--anchors", anchors, "--json"))
    assert told["row_bytes"] == 8 and told["fidelity_seconds"] == 0
    assert "whose axes are those of anchors; needed axes that are learned" in run(
        "refit", tmp_path / "store", "--train", data_file, status=2
    )


TASK, TRAIN = make_task(), make_records(6)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"method": "logra"}, "found anchors for the method logra; needed method aligned"),
        ({"rank": 4}, "found rank=4 with anchors; needed neither"),
        ({"bytes_per_example": "2k"}, "found bytes_per_example=2048 with anchors"),
        ({"dtype": "int4"}, "found dtype=int4 with anchors; needed float32"),
        ({"anchors": []}, "found no anchors; needed one query or more"),
        ({"anchors": [{"wrong": 1}]}, "record 0"),
        ({"anchors": [{"inputs": torch.zeros(9).double(), "label": 1}]}, "found anchors that are no queries of this model: .*1x9 and 6x8"),
        ({"anchors": zoo.make("gpt2")[1]}, "found anchors that are no queries of this model: inputs 'input_ids' of different shapes"),
        ({"shared_bytes": 2800}, "found 2 anchors, which with the curvature take 3 KiB; needed at most 3 KiB that all rows share, as asked"),
        ({"shared_bytes": 2800}, "do this: pass shared_bytes=3024, or 1 anchors at most"),
    ],
)  # fmt: skip
def test_what_cannot_be_anchored_is_refused_in_one_line(tmp_path, options, text):
    with pytest.raises(BadInput, match=text):
        config = whence.BuildConfig(**{"anchors": make_records(2, first=50), **options})
        whence.build(TASK, TRAIN, tmp_path / "store", config=config, runtime=QUIET)


def test_other_anchors_are_refused(tmp_path):
    build(TASK, TRAIN, tmp_path, make_records(2, first=50))
    with pytest.raises(StoreMismatch, match="found a code of other anchors in .*; needed the one of these anchors"):
        build(TASK, TRAIN, tmp_path, make_records(3, first=50))
    whence.build(TASK, TRAIN, tmp_path / "plain", config=whence.BuildConfig(dtype="float64"), runtime=QUIET)
    with pytest.raises(StoreMismatch, match="found a code of no anchors in"):
        build(TASK, TRAIN, tmp_path / "plain", make_records(2, first=50))
    with pytest.raises(StoreMismatch, match="found a code of anchors in .*, of 2 numbers of float64; needed no other size"):
        whence.build(TASK, TRAIN, tmp_path, config=whence.BuildConfig(rank=1), runtime=QUIET)


def test_anchors_that_another_kind_of_task_prepared(tmp_path):
    task, train, _ = split("gpt2")
    with pytest.raises(
        BadInput, match="found anchors that are no queries of this model: examples without the field 'input_ids'"
    ):
        build(task, train, tmp_path, TASK.prepare(TRAIN))


def test_anchors_without_a_gradient(tmp_path):
    task = whence.Classification(torch.nn.Linear(6, 3, bias=False).double())
    silent = [{"inputs": torch.zeros(6).double(), "label": 1}]
    with pytest.raises(
        BadInput, match="found gradients that are zero for all 1 anchors; needed queries that the model's tracked"
    ):
        build(task, TRAIN, tmp_path / "zero", silent)
    # Beside others they add no direction.
    assert build(task, TRAIN, tmp_path / "some", [*silent, *make_records(2, first=50)]).blueprint.rank == 2
