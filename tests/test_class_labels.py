"""Answers about classifiers show labels and mark what the model disputes; answers keep what was asked with."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import whence
from tests.settings import QUIET
from whence.load import load_records, load_task
from whence.pipeline.class_labels import class_labels, given_labels
from whence.report import ClassLabel, hits_fragment
from whence.score import Batching
from whence.store.examples import read_example

NAMES = ["red", "green", "blue"]
BUILD = {"method": "logra", "rank": 4}


class Odd(nn.Module):
    """A classifier with dropout, so that a pass in training mode would say something else each time."""

    def __init__(self):
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, inputs):
        return self.last(self.drop(torch.tanh(self.first(inputs))))


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A task, its records (one of four labels is not what the model sees), and their store."""
    torch.manual_seed(0)
    task = whence.Classification(Odd().train(), labels=NAMES)
    inputs = torch.randn(21, 4, generator=torch.Generator().manual_seed(1))
    task.model.eval()
    seen = task.model(inputs).argmax(1).tolist()
    task.model.train()
    labels = [(number + (row % 4 == 0)) % 3 for row, number in enumerate(seen)]
    records = [
        {"id": f"r{row}", "inputs": inputs[row], "label": NAMES[label], "text": f"row {row}"}
        for row, label in enumerate(labels)
    ]
    store = whence.build(
        task,
        records,
        tmp_path_factory.mktemp("labels") / "store",
        config=whence.BuildConfig(rows_per_shard=5, batch_positions=4, **BUILD),
    )
    return task, records, [NAMES[number] for number in seen], store


def test_predictions_are_those_of_one_example_at_a_time(setting):
    task, records, seen, _ = setting
    examples = task.prepare(records).examples
    for batching in (Batching(1), Batching(7), Batching(100, calls=9)):
        labels = class_labels(task, examples, batching=batching)
        assert [label.predicted for label in labels] == seen
        assert [label.label for label in labels] == [record["label"] for record in records]
    assert given_labels(task, examples[:2]) == [ClassLabel(record["label"]) for record in records[:2]]
    assert not given_labels(task, examples[:1])[0].is_disputed and task.model.training
    regression = whence.Regression(nn.Linear(4, 1))
    numbers = regression.prepare([(torch.zeros(4), 1.0)]).examples
    assert class_labels(regression, numbers, batching=Batching(1)) == given_labels(regression, numbers) == []


def test_an_answer_shows_labels_and_marks_what_the_model_disputes(setting, capsys):
    task, records, seen, store = setting
    answer = whence.query(store, task, [{**records[4], "id": "mine"}, records[1]], k=21, runtime=QUIET)
    (first, second) = answer.to_dict()["queries"]
    assert (first["label"], first["predicted"], first["is_disputed"]) == (records[4]["label"], seen[4], True)
    assert second["label"] == second["predicted"] == seen[1] and not second["is_disputed"]
    hits = [*first["proponents"], *first["opponents"]]
    assert len(hits) == 21
    for hit in hits:
        label, model_says = records[hit["row"]]["label"], seen[hit["row"]]
        assert (hit["label"], hit["predicted"], hit["is_disputed"]) == (label, model_says, hit["row"] % 4 == 0)
    answer.show()
    shown = capsys.readouterr().out
    assert f"label asked about  {records[4]['label']}  ! the model says {seen[4]}" in shown
    disputed = [hit for sides in zip(answer.proponents, answer.opponents, strict=True) for side in sides for hit in side[:3]]
    assert any(
        f"label {hit.label.label}  ! the model says {hit.label.predicted}" in shown for hit in disputed if hit.label.is_disputed
    )
    page = hits_fragment(answer)
    assert page.count('<b class="disputed">the model says') == 1 + 2 * sum(row % 4 == 0 for row in range(21))
    assert f'Asked about the <span class="label-name">label <b>{records[4]["label"]}</b></span>' in page


def test_names_of_classes_cannot_be_markup(setting, capsys):
    task, records, _, store = setting
    answer = whence.query(store, task, [records[0]], k=1, runtime=QUIET)
    hostile = ClassLabel("<script>\x1b[31m", "<b>")
    hit = replace(answer.proponents[0][0], label=hostile)
    changed = replace(answer, proponents=((hit,),), facts=(replace(answer.facts[0], label=hostile),))
    changed.show()
    assert "\x1b[31m" not in capsys.readouterr().out
    assert "<script>" not in hits_fragment(changed) and "&lt;script&gt;" in hits_fragment(changed)


def test_what_was_asked_with_is_in_the_answer(tmp_path, run, model_folder, data_file):
    store = tmp_path / "store"
    run("build", model_folder, data_file, "-o", store, "--method", "grad-dot", "--rank", "4")
    questions = [
        {"id": "mine", "prompt": "a cat ", "completion": "sat", "topic": "pets", "tags": ["a", 1]},
        {"text": "the dog ran off", "weight": 0.5},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, questions)) + "\n")
    answer = json.loads(run("query", store, "--file", tmp_path / "q.jsonl", "--json"))
    assert [query["question"] for query in answer["queries"]] == [questions[0], {"id": "1", **questions[1]}]
    assert "label" not in answer["queries"][0] and "label" not in answer["queries"][0]["proponents"][0]
    answer = json.loads(run("query", store, "--prompt", "a cat ", "--completion", "sat", "--json"))
    question = answer["queries"][0]["question"]
    assert (question["prompt"], question["completion"]) == ("a cat ", "sat") and question["id"]


def test_prepared_queries_tell_what_they_are(tmp_path, model_folder, data_file):
    task, _ = load_task(str(model_folder))
    store = whence.build(
        task,
        load_records(str(data_file)),
        tmp_path / "store",
        config=whence.BuildConfig(method="grad-dot", rank=4),
        runtime=QUIET,
    )
    dataset = task.prepare([{"id": "a", "prompt": "a cat ", "completion": "sat"}, "a bird"])
    answer = whence.query(store, task, dataset, k=1, runtime=QUIET)
    assert [facts.record for facts in answer.facts] == [
        {"id": "a", "prompt": "a cat ", "completion": "sat"},
        {"id": "1", "text": "a bird"},
    ]
    skipping = load_task(str(model_folder), skip_bad=True)[0]
    answer = whence.query(store, skipping, [{"text": 3, "n": 1}, {"text": "a cat", "n": 2}], k=1, runtime=QUIET)
    assert answer.facts[0].record == {"id": "1", "text": "a cat", "n": 2}


def test_a_store_without_labels_says_so(setting, monkeypatch, tmp_path):
    task, records, _, _ = setting
    monkeypatch.setattr("whence.pipeline.stored.write_rows.class_labels", lambda *given, **more: [])
    before = whence.build(task, records, tmp_path / "before", config=whence.BuildConfig(**BUILD), runtime=QUIET)
    notes = whence.query(before, task, records[:1], k=1, runtime=QUIET).notes
    assert "the store keeps no labels, being of an earlier version: build it again" in notes[-1]
    monkeypatch.setattr(
        "whence.pipeline.stored.write_rows.class_labels", lambda task, examples, **more: given_labels(task, examples)
    )
    logged = whence.build(task, records, tmp_path / "logged", config=whence.BuildConfig(**BUILD), runtime=QUIET)
    answer = whence.query(logged, task, records[:1], k=1, runtime=QUIET)
    assert "keeps no predictions" in answer.notes[-1] and "predicted" not in answer.to_dict()["queries"][0]["proponents"][0]


def test_lines_with_other_labels_are_refused():
    with pytest.raises(ValueError, match="label is not what an example has there"):
        read_example(b'{"id": "a", "length": 1, "label": 3}')


@pytest.mark.parametrize(("method", "says"), [("aligned", ", inside the rows"), ("logra", "")])
def test_every_answer_of_a_store_says_how_damping_was_chosen(setting, tmp_path, method, says):
    task, records, _, _ = setting
    rank = {} if method == "aligned" else {"rank": 4}
    store = whence.build(task, records, tmp_path / "store", config=whence.BuildConfig(method=method, **rank), runtime=QUIET)
    told = f"damping 0.1 x mean eigenvalue, the method's default{says}"
    assert told in whence.query(store, task, records[:1], k=1, runtime=QUIET).notes
    if method == "aligned":
        other = whence.build(
            task, records, tmp_path / "other", config=whence.BuildConfig(method=method, relative_damping=0.5), runtime=QUIET
        )
        notes = whence.query(other, task, records[:1], k=1, runtime=QUIET).notes
        assert "damping 0.5 x mean eigenvalue, as asked at the build, inside the rows" in notes
