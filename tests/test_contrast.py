"""Why this and not that: a contrast's gradient, scores and parts are the differences of two questions' own."""

import json

import pytest
import torch

import whence
from tests.reference.gradients import dense_gradients, unit_gradients
from tests.settings import QUIET
from tests.test_capture import assert_same_sum, captured
from tests.test_lm_records import bytes_task
from whence.capture import check_task
from whence.errors import BadInput
from whence.score import RELATIVE
from whence.settings import Contrast

TRAIN = [
    {"id": f"d{number}", "source": "book", "text": text}
    for number, text in enumerate(
        ["a cat sat on a mat", "the dog ran off", "é cat", "one bird sleeps", "cats and dogs", "what is it"]
    )
]
THIS, THAT = {"prompt": "a cat ", "completion": "sat é"}, {"prompt": "a cat ", "completion": "ran far off"}
QUESTION = {**THIS, "foil": THAT["completion"], "id": "why"}


@pytest.fixture(scope="module")
def task():
    return bytes_task(length=48)


def test_gradients_are_autograds_beside_plain_queries(task):
    dataset = task.prepare([QUESTION, {"text": "a bird"}, {"text": "it is", "foil": "it was what"}, THIS])
    plan, found = captured(task, dataset, objective="measurement")
    wanted = unit_gradients(task, plan, dense_gradients(task, dataset.examples, "measurement"))
    for actual, expected in zip(found, wanted, strict=True):
        assert_same_sum(actual, expected, terms=4096)
    check_task(task, plan, dataset.examples, objective="measurement")
    values = task.measurement(task.model, task.collate(dataset.examples))
    plain = task.prepare([THIS, THAT, {"text": "a bird"}, {"text": "it is"}, {"text": "it was what"}])
    this, that, bird, there, was = task.measurement(task.model, task.collate(plain.examples))
    torch.testing.assert_close(values, torch.stack([this - that, bird, there - was, this]))


@pytest.mark.parametrize("method", ["ekfac", "grad-dot-exact"])
def test_scores_are_differences(task, method):
    table = whence.attribute(task, TRAIN, [QUESTION, THIS, THAT], method=method, runtime=QUIET)
    torch.testing.assert_close(table.scores[0], table.scores[1] - table.scores[2], rtol=1e-8, atol=1e-12)
    assert any(
        note.startswith("1 of 3 queries are contrasts: measured is the log-probability of the completion less")
        for note in table.notes
    )


@pytest.mark.parametrize("method", ["logra", "aligned"])
def test_a_store_answers_contrasts(task, tmp_path, method):
    store = whence.build(task, TRAIN, tmp_path / "s", config=whence.BuildConfig(method=method), runtime=QUIET)
    table = whence.score_table(store, task, [QUESTION, THIS, THAT], runtime=QUIET)
    torch.testing.assert_close(
        table.scores[0], table.scores[1] - table.scores[2], rtol=1e-4, atol=1e-5 * float(table.scores.abs().max())
    )
    hits = whence.query(store, task, [QUESTION], k=2, runtime=QUIET)
    scores = dict(zip(table.train_ids, table.scores[0].tolist(), strict=True))
    assert hits.proponents[0][0].score == pytest.approx(max(scores.values()), rel=1e-4)
    assert hits.queries[0].endswith("\n(and not: ran far off)") and hits.facts[0].record["foil"] == "ran far off"
    assert any(note.startswith("the query is a contrast") for note in hits.notes)
    if method == "aligned":
        again = whence.query(store, task, [QUESTION], k=2, rerank=whence.Rerank(train=TRAIN), runtime=QUIET)
        exact = whence.attribute(
            task, TRAIN, [QUESTION], method=whence.EKFAC(factors=None, damping=whence.Damping(relative=0.1)), runtime=QUIET
        )
        assert {hit.id for hit in again.proponents[0]} <= {
            name for name, score in zip(exact.train_ids, exact.scores[0].tolist(), strict=True) if score > 0
        }


def why_of(task, completion, **options):
    return whence.why.why(task, THIS["prompt"], completion, **{"train": TRAIN, "k": 6, "runtime": QUIET, **options})


def test_why_splits_a_contrast_into_tokens_of_both(task):
    both = why_of(task, Contrast(completion=THIS["completion"], foil=THAT["completion"]))
    this, that = why_of(task, THIS["completion"]), why_of(task, THAT["completion"])
    assert "".join(both.foil.tokens) == THAT["completion"] and len(both.asked) == len(both.completion) + len(both.foil.tokens)
    assert both.hits.measurements[0] == pytest.approx(this.hits.measurements[0] - that.hits.measurements[0], rel=1e-9)
    assert both.hits.unit != RELATIVE  # a difference of log-probabilities has no bound
    for hit in (*both.hits.proponents[0], *both.hits.opponents[0]):
        parts = both.parts[hit.id]
        expected = torch.cat([this.parts[hit.id].scores_AT, -that.parts[hit.id].scores_AT])
        torch.testing.assert_close(parts.scores_AT, expected, rtol=1e-8, atol=1e-10 * float(expected.abs().max()))
        assert float(parts.scores_AT.sum()) == pytest.approx(hit.score, rel=1e-8)
        assert sum(parts.layers.values()) == pytest.approx(hit.score, rel=1e-8)
    first = len(both.completion) + 1
    alone = why_of(task, Contrast(completion=THIS["completion"], foil=THAT["completion"]), token=first)
    one = why_of(task, THAT["completion"], token=1)
    assert alone.asked == (first,) and alone.asked_tokens == ("not r",)
    assert alone.hits.measurements[0] == pytest.approx(-one.hits.measurements[0])
    for name in alone.parts.keys() & one.parts.keys():
        torch.testing.assert_close(alone.parts[name].scores_AT, -one.parts[name].scores_AT)


def test_why_shows_a_contrast(task, tmp_path, capsys):
    both = why_of(task, Contrast(completion=" sat", foil=" ran"), k=1)
    both.show()
    assert "and not" in capsys.readouterr().out
    page = both.page(tmp_path / "why.html").read_text("utf-8")
    assert "and not</span>  ran" in page or "and not</span> " in page and "the completion less its foil" in page
    content = both.to_dict()
    assert [token["text"] for token in content["foil"]] == list(" ran") and content["foil"][0]["number"] == 5


def test_from_the_command_line(run, tmp_path, model_folder, data_file):
    words = ["why", "--model", model_folder, "--train", data_file, "--prompt", "a cat", "--completion", " sat"]
    answer = json.loads(run(*words, "--foil", " ran", "--json", "-k", 1))
    assert [token["text"] for token in answer["foil"]] == list(" ran")
    assert "found --foil without --completion" in run(*words[:-2], "--foil", " ran", status=2)
    assert "needed two texts that differ" in run(*words, "--foil", " sat", status=2)
    run("build", model_folder, data_file, "-o", tmp_path / "s", "--method", "logra")
    questions = tmp_path / "q.jsonl"
    questions.write_text(json.dumps({"prompt": "a cat", "completion": " sat", "foil": " ran"}) + "\n")
    answer = json.loads(run("query", tmp_path / "s", "--file", questions, "--json"))
    assert answer["queries"][0]["question"]["foil"] == " ran"
    assert "found a training example with a foil" in run(
        "attribute", model_folder, questions, questions, "-o", tmp_path / "t", status=2
    )


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"prompt": "a", "foil": "b"}, "record 0 with a 'foil' and neither 'completion' nor 'text'"),
        ({"prompt": "ab", "completion": "b", "foil": ""}, "with no scored token"),
        ({"prompt": "a", "completion": "b", "foil": 3}, "record 0 with a 'completion' of type int"),
        ({"prompt": "a", "completion": "b", "foil": "c" * 60}, "of 61 tokens; needed at most 48"),
    ],
)
def test_bad_contrasts(task, record, says):
    with pytest.raises(BadInput, match=says):
        task.prepare([record])


def test_a_measurement_of_ones_own_is_no_contrast(task):
    own = whence.CausalLM(task.model, task.tokenizer, measure=lambda model, batch: -task.loss(model, batch))
    with pytest.raises(BadInput, match="a query with a foil for a measurement of one's own"):
        whence.attribute(own, TRAIN, [QUESTION], method="grad-dot-exact", runtime=QUIET)
