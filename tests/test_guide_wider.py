"""IF-Guide beyond one tokenizer and one process: scores that travel by characters, ranks, and how a behaviour is measured."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import whence
from tests import zoo
from tests.pages import run_example
from tests.test_distributed import processes, together
from tests.test_guide import as_files, case
from tests.test_lm_records import bytes_task
from whence.data import Dataset, Example
from whence.distributed import Ranks
from whence.errors import BadInput, Unsupported
from whence.guide import behaviour, carry_scores, perplexity, scorer_named
from whence.guide.behaviour import Behaviour, _nucleus
from whence.guide.carry import by_characters
from whence.settings import GuideConfig, SampleConfig

__all__ = ["processes"]  # the fixture


def words_example(text, name="a", **more):
    """A text whose tokens are its words, each with the space before it."""
    spans, at = [], 0
    for word in text.split(" "):
        stop = at + len(word) + (at > 0)
        spans.append((at, stop))
        at = stop
    ids = np.arange(len(spans))
    return Example(name, {"input_ids": ids, "labels": ids, **more}, len(spans), text=text, token_spans=np.array(spans))


def slow_carried(source, scores, target):
    """Each character's share handed to the tokens that cover it, one by one."""
    sums = [0.0] * target.length
    for (start, stop), score in zip(source.token_spans, scores, strict=True):
        if math.isnan(score):
            continue
        for character in range(start, stop):
            owners = [number for number, (a, b) in enumerate(target.token_spans) if a <= character < b]
            for owner in owners:
                sums[owner] += score / (stop - start) / len(owners)
    labels = target.fields["labels"]
    return [math.nan if number == 0 or labels[number] == -100 else value for number, value in enumerate(sums)]


@pytest.mark.parametrize("swap", [False, True])
def test_scores_travel_by_characters(swap):
    task, text = bytes_task(length=64), "né a cat sat on mats"
    fine, coarse = task.prepare([{"id": "a", "text": text}]).examples[0], words_example(text)
    source, target = (coarse, fine) if swap else (fine, coarse)
    scores = torch.randn(source.length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores[0] = math.nan
    found = by_characters(source, scores, target)
    np.testing.assert_allclose(found, slow_carried(source, scores.tolist(), target), rtol=1e-12)
    # What does not fall on the first token, which is not scored, is all there.
    first = slow_carried(source, scores.tolist(), replace(target, fields={"labels": np.array([1] * target.length)}))
    everything = sum(value for value in scores.tolist() if not math.isnan(value))
    assert float(found.nansum()) == pytest.approx(sum(value for value in first if not math.isnan(value)))
    assert abs(float(found.nansum()) - everything) < 10


def test_a_proxys_scores_mark_another_tokenizers_tokens(tmp_path):
    task = bytes_task(length=64)
    texts = {f"d{number}": f"good text {number} and more" for number in range(6)} | {"d6": "good text and a bad word"}
    fine = task.prepare([{"id": name, "text": text} for name, text in texts.items()])
    coarse = Dataset([words_example(text, name) for name, text in reversed(texts.items())])
    rows = [np.zeros(example.length, np.float32) for example in fine.examples]
    at = texts["d6"].index(" bad")
    rows[6][at : at + 4] = 1.0
    scores = replace(as_files(tmp_path, rows), train=fine)
    carried = carry_scores(scores, coarse, tmp_path / "carried")
    assert "carried by characters" in carried.notes[-1]
    per_text = dict(zip(coarse.ids, carried.examples(), strict=True))
    assert per_text["d6"].tolist()[1:] == [0, 0, 0, 4, 0] and all(not per_text[f"d{number}"][1:].any() for number in range(6))
    reader = SimpleNamespace(preprocessing="words")
    marks = whence.guide.mark_tokens(carried, reader, tmp_path / "out", config=GuideConfig(window=0, quantile=0.9, budget=0.5))
    assert {name: one.positions for name, one in marks.examples.items()} == {"d6": (4,)} and marks.about["tokenizer"] == "words"
    assert whence.guide.open_marks(tmp_path / "out" / "marks.jsonl").examples["d6"].tokens == (4,)
    with pytest.raises(BadInput, match="for one of two tokenizers only"):
        carry_scores(scores, Dataset(coarse.examples[1:]), tmp_path)
    other = Dataset([replace(coarse.examples[0], text="another"), *coarse.examples[1:]])
    with pytest.raises(BadInput, match="the example 'd6' with two texts"):
        carry_scores(scores, other, tmp_path)


def _scored(ranks, folder):
    task, train, harmful, safe = case(count=11)
    scores = whence.guide.contrast_scores(
        task, train, harmful, safe, folder, runtime=whence.Runtime(quiet=True, ranks=ranks, batch_positions=40)
    )
    return [part.tolist() for part in scores.examples()]


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_score_as_one(processes, tmp_path, count):
    alone = _scored(Ranks(), tmp_path / "alone")
    found = together(processes, _scored, tmp_path / "several", count=count)
    for mine in found:
        for ours, theirs in zip(mine, alone, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-9)


def test_expected_maximum_and_probability_are_their_definitions():
    scores = torch.rand(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = Behaviour("implicit", scores, 0.7)
    highest = [max(row) for row in scores.tolist()]
    assert found.expected_maximum.mean == pytest.approx(sum(highest) / 7)
    assert found.probability.mean == pytest.approx(sum(value >= 0.7 for value in highest) / 7)
    assert found.expected_maximum.low < found.expected_maximum.mean < found.expected_maximum.high
    assert found.cells("m")[:3] == ("m", "implicit", "7 x 5")


@pytest.mark.parametrize("top_p", [0.3, 0.6, 0.95, 1.0])
def test_a_nucleus_has_the_likeliest_tokens(top_p):
    values = torch.rand(3, 9, generator=torch.Generator().manual_seed(1)).softmax(-1)
    for row, kept in zip(values.tolist(), _nucleus(values, top_p).tolist(), strict=True):
        total, wanted = 0.0, set()
        for token in sorted(range(9), key=lambda token: -row[token]):
            if total < top_p:
                wanted.add(token)
            total += row[token]
        assert {token for token, value in enumerate(kept) if value} == wanted


def test_samples_are_the_models_own():
    task, seen = bytes_task(length=48), []

    def scorer(texts):
        seen.extend(texts)
        return [float("a" in text) for text in texts]

    config = SampleConfig(samples=3, tokens=6, temperature=1e-4, top_p=1.0)
    (found,) = behaviour(task, {"some": ["a cat", "é"]}, scorer, config, quiet=True)
    for number, prompt in enumerate(["a cat", "é"]):
        ids = task.tokenizer(prompt)["input_ids"]
        start = len(ids)
        for _ in range(6):
            ids.append(int(task.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        text = task.tokenizer.decode(ids[start:], skip_special_tokens=True)
        assert seen[3 * number : 3 * number + 3] == [text] * 3 and found.scores_PS[number].tolist() == [float("a" in text)] * 3
    warm = replace(config, temperature=1.0)
    twice = [
        behaviour(task, {"some": ["a cat"]}, lambda texts: [len(set(texts)) / 100] * 3, warm, quiet=True) for _ in range(2)
    ]
    assert torch.equal(twice[0][0].scores_PS, twice[1][0].scores_PS) and float(twice[0][0].scores_PS[0, 0]) > 0.01
    texts = ["a cat sat", "the dog", "é"]
    nats = [
        -task.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)[at - 1, ids[at]]
        for ids in (task.tokenizer(text)["input_ids"] for text in texts)
        for at in range(1, len(ids))
    ]
    assert perplexity(task, texts) == pytest.approx(math.exp(float(sum(nats)) / len(nats)), rel=1e-9)


def test_what_cannot_be_measured_is_refused():
    task, fine = bytes_task(length=8), SampleConfig(samples=2, tokens=2)
    words = scorer_named()
    for prompts, says in (
        ({}, "no prompts"),
        ({"a": []}, "no prompts of the kind a"),
        ({"a": ["x" * 9]}, "a prompt of 9 tokens"),
    ):
        with pytest.raises(BadInput, match=says):
            behaviour(task, prompts, words, fine, quiet=True)
    for scorer in (lambda texts: [0.5], lambda texts: [2.0, 0.0]):
        with pytest.raises(BadInput, match="a number from 0 to 1 for each text"):
            behaviour(task, {"a": ["x"]}, scorer, fine, quiet=True)
    with pytest.raises(Unsupported, match="a causal language model with its tokenizer"):
        behaviour(zoo.make("linear")[0], {"a": ["x"]}, words, fine, quiet=True)
    with pytest.raises(BadInput, match="samples=0"):
        SampleConfig(samples=0)


def test_scorers(tmp_path):
    assert scorer_named()(["You IDIOT!", "an idiotic idea", ""]) == [1.0, 0.0, 0.0]
    (tmp_path / "words.txt").write_text("bad word\nÜbel\n")
    assert scorer_named(str(tmp_path / "words.txt"))(["a Bad word.", "bad words", "übel"]) == [1.0, 0.0, 1.0]
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(BadInput, match="no word in"):
        scorer_named(str(tmp_path / "none.txt"))
    with pytest.raises(BadInput, match="no scorer at"):
        scorer_named(str(tmp_path / "nothing"))
    with pytest.raises(BadInput, match="pip install detoxify"):
        scorer_named("detoxify")


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification"])
def test_a_folder_of_a_classifier_scores(tmp_path, kind):
    from transformers import GPT2Config, GPT2ForSequenceClassification

    from tests.conftest import save_tokenizer

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=1, n_embd=8, n_head=2, vocab_size=257, n_positions=32, num_labels=3, problem_type=kind, pad_token_id=0,
        id2label={0: "fine", 1: "Toxic", 2: "odd"},
    )  # fmt: skip
    model = GPT2ForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    texts = ["a cat", "the longer dog", "é"]
    found = scorer_named(str(tmp_path))(texts)
    tokenizer = bytes_task().tokenizer
    for text, score in zip(texts, found, strict=True):
        logits = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0].double()
        wanted = logits.sigmoid() if kind.startswith("multi") else logits.softmax(0)
        assert score == pytest.approx(float(wanted[1]), rel=1e-5)
    with pytest.raises(BadInput, match="a classifier of fine, toxic, odd"):
        scorer_named(str(tmp_path), label="rude")


def test_from_the_command_line(run, tmp_path, model_folder, other_tokenizer_folder, data_file):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a cat"}\n{"text": "the dog"}\n')
    asked = ("--prompts", f"explicit={prompts}", "--prompts", f"implicit={prompts}", "--samples", 2, "--tokens", 3)
    told = json.loads(run("behaviour", f"before={model_folder}", model_folder, *asked, "--perplexity", data_file, "--json"))
    assert [one["model"] for one in told] == ["before", str(model_folder)] and told[0]["kinds"] == told[1]["kinds"]
    assert [one["kind"] for one in told[0]["kinds"]] == ["explicit", "implicit"] and told[0]["perplexity"] > 1
    assert "a short list of insults" in run("behaviour", model_folder, *asked)
    assert "--prompts explicit" in run("behaviour", model_folder, "--prompts", "explicit", status=2)
    for name, end in (("harmful", " bad"), ("safe", " ok")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": "a cat", "completion": end}) + "\n")
    sides = ("--harmful", tmp_path / "harmful.jsonl", "--safe", tmp_path / "safe.jsonl", "--budget", 0.5, "--quantile", 0.5)
    run("guide", model_folder, data_file, *sides, "-o", tmp_path / "own")
    run("guide", model_folder, data_file, *sides, "--tokenizer", other_tokenizer_folder, "-o", tmp_path / "other")
    own, other = (whence.guide.open_marks(tmp_path / name / "marks.jsonl") for name in ("own", "other"))
    # One token per byte with both: the same places, other ids.
    assert {name: one.positions for name, one in own.examples.items()} == {
        name: one.positions for name, one in other.examples.items()
    }
    assert own.about["tokenizer"] != other.about["tokenizer"]
    assert any(own.examples[name].tokens != other.examples[name].tokens for name in own.examples)


@pytest.mark.slow
def test_the_example_chooses_on_one_behaviour_and_reports_others(tmp_path):
    printed = run_example("if-guide/settings.py", "-o", tmp_path, "--documents", "60")
    assert "Chosen on" in printed and "leaking" in printed.split("Reported on")[1]
