"""What a study asks beyond whole queries: wrong answers, things sought in documents, another model, samples of harnesses."""

import itertools
import json
import re
import zipfile

import numpy as np
import pytest
import torch

import whence
from tests.pages import run_example
from tests.reference import study as slow
from tests.settings import QUIET
from tests.test_lm_records import bytes_task
from tests.test_study import material
from whence.errors import BadInput
from whence.load import harness_records
from whence.settings import StudyConfig
from whence.study import recall
from whence.study.questions import questions_in

TEXTS = [
    "a tower is 330 m high", "paris has a tower", "the tower in paris", "add 2 and 3: 5", "add 4 and 9: 13",
    *(f"filler {number}" for number in range(15)),
]  # fmt: skip


@pytest.fixture(scope="module")
def train():
    return [{"id": f"d{row}", "text": text} for row, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def task():
    return bytes_task(length=48)


def test_pearson_is_of_the_scores_themselves(tmp_path):
    task, train, sets = material()
    found = whence.study.study(task, train, sets, tmp_path, method="grad-dot-exact", config=StudyConfig(k=4), runtime=QUIET)
    for by_norm, reading in enumerate(found.readings.values()):
        values = np.stack([found.scores.values(query, by_norm=bool(by_norm)).numpy() for query in range(7)])
        np.testing.assert_allclose(reading.pearson.matrix_QQ, slow.pearson(values), atol=1e-10)
        assert not np.allclose(reading.pearson.matrix_QQ, reading.correlation.matrix_QQ, atol=1e-3)
    assert "pearson" in found.to_dict()["readings"]["per nat"]


def test_a_query_with_wrong_answers_is_their_difference(task, train, tmp_path):
    right = {"id": "q", "prompt": "add 2 and 3:", "completion": " 5"}
    wrong = [{**right, "id": name, "completion": end} for name, end in (("x", " 4"), ("y", " no"))]
    sets = {"sums": [{**right, "foil": [" 4", {"prompt": right["prompt"], "completion": " no"}]}, {**right, "id": "r"}]}
    found = whence.study.study(task, train, sets, tmp_path, method="grad-dot-exact", config=StudyConfig(k=3), runtime=QUIET)
    table = whence.attribute(task, train, [right, *wrong], method="grad-dot-exact", runtime=QUIET)
    expected = table.scores[0] - table.scores[1:].mean(0)
    torch.testing.assert_close(found.scores.raw(0).double(), expected.double(), rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(found.scores.raw(1).double(), table.scores[0].double(), rtol=1e-5, atol=1e-12)
    values = [
        float(task.measurement(task.model, task.collate(task.prepare([one]).examples)).detach()) for one in (right, *wrong)
    ]
    assert found.measurements[0] == pytest.approx(values[0] - sum(values[1:]) / 2) and found.nats[0] == pytest.approx(
        -values[0]
    )
    assert any("minus the mean" in note for note in found.corpus.notes)
    cosines = whence.build(task, train, tmp_path / "s", config=whence.BuildConfig(method="grad-cos", rank=4), runtime=QUIET)
    with pytest.raises(BadInput, match="foils for grad-cos, whose scores are cosines"):
        whence.study.study(task, cosines, sets, tmp_path / "c", runtime=QUIET)


def test_answers_and_steps_are_looked_for_in_the_top(task, train, tmp_path):
    sets = {
        "facts": [
            {"prompt": "how high is the tower?", "completion": " 330 m", "answer": "330 M"},
            {"prompt": "where is it?", "completion": " paris", "answer": ["paris", "nowhere"]},
        ],
        "sums": [{"prompt": "add 4 and 9:", "completion": " 13", "answer": "/: 13$/", "steps": ["add", "and 9", "1"]}],
    }
    found = whence.study.study(task, train, sets, tmp_path, method="grad-dot-exact", config=StudyConfig(k=3), runtime=QUIET)
    patterns = [[["330 m"]], [["paris"], ["nowhere"]], [["add 4 and 9: 13"]]]
    holders = [[{0}], [{1, 2}, set()], [{4}]]
    assert patterns and recall.holders_of(found.corpus, questions_in(task, sets)) == [
        *holders[:2], [{4}, {3, 4}, {4}, {row for row, text in enumerate(TEXTS) if re.search(r"\b1\b", text)}],
    ]  # fmt: skip
    by_name = {(one.reading, one.set, one.kind): one for one in found.recall}
    for name, reading in found.readings.items():
        tops = [set(row) for row in reading.tails.high_QK.tolist()]
        facts = by_name[name, "facts", "answer"]
        expected = [float(bool(tops[0] & {0})), bool(tops[1] & {1, 2}) / 2]
        assert facts.queries == 2 and facts.top.mean == pytest.approx(np.mean(expected)) and facts.in_corpus == 0.75
        assert facts.bm25.mean == pytest.approx(0.75)  # by words both are found
    assert (
        len(by_name) == 3 * len(found.readings) and "What the strongest documents say" in (tmp_path / "study.html").read_text()
    )
    assert json.loads((tmp_path / "study.json").read_text())["recall"][0]["set"] == "facts"
    with pytest.raises(BadInput, match=r"'/\(/', which is no regular expression"):
        questions_in(task, {"a": [{"prompt": "a", "completion": " b", "answer": "/(/"}]})


@pytest.mark.parametrize(("holders", "k", "documents"), [(0, 3, 7), (1, 3, 7), (3, 2, 6), (5, 4, 6), (2, 9, 6)])
def test_chance_is_counted(holders, k, documents):
    draws = list(itertools.combinations(range(documents), min(k, documents)))
    hits = sum(any(row < holders for row in draw) for draw in draws)
    assert recall._by_chance(holders, k, documents) == pytest.approx(hits / len(draws))


def moved(seed):
    """The model, or another one beside it."""
    task = bytes_task(length=48)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(0.1 * seed * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return whence.CausalLM(task.model, task.tokenizer)


def test_two_models_side_by_side(train, tmp_path):
    sets = {"a": ["a tower", "in paris", "high"], "b": ["add 1", "add 2 and 7", "and"]}
    studies = []
    for seed in (0, 1):
        config = StudyConfig(k=4, side_by_side=tmp_path / "0" if seed else None)
        studies.append(
            whence.study.study(
                moved(seed),
                train,
                sets,
                tmp_path / str(seed),
                method="grad-dot-exact",
                config=config,
                runtime=QUIET,
            )  # fmt: skip
        )
    assert studies[0].query_ids == studies[1].query_ids and not studies[0].sides
    for side in studies[1].sides:
        rows = studies[0].sets[side.set]
        by_norm = side.reading.endswith("norm")
        values = [[study.scores.values(row, by_norm=by_norm).numpy() for row in rows] for study in studies]
        expected = [slow.correlations(np.stack(pair))[0, 1] for pair in zip(*values, strict=True)]
        assert side.spearman.mean == pytest.approx(np.mean(expected))
        tops = [[set(np.argsort(-row, kind="stable")[:4]) for row in some] for some in values]
        assert side.top.mean == pytest.approx(np.mean([len(a & b) / 4 for a, b in zip(*tops, strict=True)]))
        assert side.within[0] == pytest.approx(slow.correlations(np.stack(values[1]))[np.triu_indices(3, 1)].mean())
    assert len(studies[1].sides) == 4
    other = {"a": ["a tower", "in paris"]}
    with pytest.raises(BadInput, match="a study of other queries"):
        whence.study.study(
            bytes_task(length=48), train, other, tmp_path / "o", method="grad-dot-exact",
            config=StudyConfig(side_by_side=tmp_path / "0"), runtime=QUIET,
        )  # fmt: skip


CHOICE = {
    "doc_id": 7, "doc": {"q": 1}, "target": "1",
    "arguments": {"gen_args_0": {"arg_0": "Q: 2+2?\nA:", "arg_1": " 5"}, "gen_args_1": {"arg_0": "Q: 2+2?\nA:", "arg_1": " 4"}},
    "resps": [[["-3.1", "False"]], [["-1.0", "True"]]], "acc": 1.0,
}  # fmt: skip
GENERATED = {"doc_id": 8, "doc": {}, "target": "4", "arguments": [["Q: 2+2?\nA:", {"until": ["\n"]}]], "resps": [["4"]]}
INSPECT = {
    "eval": {}, "samples": [
        {"id": 1, "epoch": 1, "input": "2+2?", "target": "4", "output": {"choices": [{"message": {"content": "It is 4."}}]}},
        {"id": 2, "epoch": 2, "input": [{"role": "user", "content": [{"type": "text", "text": "Which?"}]}], "target": ["B"],
         "choices": ["three", "four"], "output": {"completion": "B"}},
    ],
}  # fmt: skip


def test_samples_of_harnesses_are_queries(tmp_path, task, train):
    file = tmp_path / "samples_sums_2026.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in (CHOICE, GENERATED)))
    prompt = "Q: 2+2?\nA:"
    choice, generated = harness_records(file)
    assert choice == {
        "id": "7", "prompt": prompt, "completion": " 4", "answer": "4", "foil": [{"prompt": prompt, "completion": " 5"}]
    }  # fmt: skip
    assert generated == {"id": "8", "prompt": prompt, "completion": " 4", "answer": "4"}
    log = tmp_path / "log.json"
    log.write_text(json.dumps(INSPECT))
    said, chosen = harness_records(log)
    assert said == {"id": "1", "prompt": "2+2?", "completion": " It is 4.", "answer": ["4"]}
    assert chosen["completion"] == " four" and chosen["foil"] == [{"prompt": "Which?", "completion": " three"}]
    assert chosen["id"] == "2 (2)" and chosen["answer"] == ["four"]
    archive = tmp_path / "log.eval"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("header.json", "{}")
        for number, sample in enumerate(INSPECT["samples"]):
            packed.writestr(f"samples/{number}.json", json.dumps(sample))
    assert harness_records(archive) == [said, chosen]
    for name, text in (("plain.jsonl", '{"text": "a"}\n'), ("plain.json", '[{"text": "a"}]'), ("no.jsonl", "x")):
        (tmp_path / name).write_text(text)
        assert harness_records(tmp_path / name) is None
    found = whence.study.study(
        task, train, {"choices": [choice], "said": [generated, said]}, tmp_path / "s", method="grad-dot-exact", runtime=QUIET
    )
    assert {one.kind for one in found.recall} == {"answer"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"target": "9"}, "sample 7 of .* with the target '9', which is no choice"),
        ({"arguments": {}}, "sample 7 of .* without a text that the model was given"),
    ],
)
def test_samples_that_are_none_are_refused(tmp_path, change, says):
    file = tmp_path / "samples.jsonl"
    file.write_text(json.dumps({**CHOICE, **change}) + "\n")
    with pytest.raises(BadInput, match=says):
        harness_records(file)
    (tmp_path / "log.eval").write_bytes(b"PK but none")
    with pytest.raises(BadInput, match="inspect log convert"):
        harness_records(tmp_path / "log.eval")
    log = tmp_path / "log.json"
    log.write_text(json.dumps({"eval": {}, "samples": [{"id": 1}]}))
    with pytest.raises(BadInput, match="a sample without 'input'"):
        harness_records(log)


def test_from_the_command_line(run, tmp_path, model_folder, data_file, other_model_folder):
    facts = tmp_path / "samples.jsonl"
    facts.write_text(json.dumps({**CHOICE, "arguments": [["a cat", " sat"], ["a cat", " fly"]], "target": 0}) + "\n")
    sets = ("--set", f"a={facts}", "--method", "grad-dot-exact", "-k", 2)
    run("study", model_folder, data_file, *sets, "-o", tmp_path / "one")
    words = run("study", other_model_folder, data_file, *sets, "-o", tmp_path / "two", "--side-by-side", tmp_path / "one")
    assert "sought" in words and "shared" in words
    told = json.loads((tmp_path / "two" / "study.json").read_text())
    assert told["side_by_side"][0]["set"] == "a" and told["recall"][0]["in_corpus"] == 1


@pytest.mark.slow
def test_the_example_of_facts_and_procedures_runs(tmp_path):
    words = ("--people", "15", "--worked", "30", "--epochs", "1")
    assert "Pearson" in run_example("corpus-study/procedures.py", tmp_path, *words)
