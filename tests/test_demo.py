"""The demo's corpus and its training."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from whence.demo.corpus import docstrings, python_docs
from whence.demo.model import Settings, load, new_model, save, train_tokenizer
from whence.demo.train import QueryLosses, Retrain, train
from whence.errors import BadInput, NonFinite
from whence.records import Recipe
from whence.tasks import CausalLM

TINY = Settings(vocabulary=400, context=64, layers=1, heads=2, width=16, epochs=2, learning_rate=1e-2)


@pytest.fixture(scope="module")
def corpus():
    return python_docs()


@pytest.fixture(scope="module")
def tokenized(corpus):
    texts = corpus[::20]
    tokenizer = train_tokenizer([record["text"] for record in texts], TINY)
    task = CausalLM(new_model(len(tokenizer), 0, TINY), tokenizer, long="truncate")
    return task.prepare(texts), tokenizer


def test_corpus_is_the_same_every_time(corpus):
    assert python_docs() == corpus


def test_corpus_has_ids_sources_and_readable_lengths(corpus):
    assert len(corpus) == 1000
    assert len({record["id"] for record in corpus}) == len(corpus) == len({record["text"] for record in corpus})
    for record in corpus:
        assert record["id"].split("#")[0] == record["source"]
        assert 120 <= len(record["text"]) <= 280
    assert {record["source"].split("/")[0] == "topics" for record in corpus} == {True, False}


def test_known_passages_are_in_it(corpus):
    texts = [record["text"] for record in corpus if record["source"] == "json.dumps"]
    assert texts[0].startswith("json.dumps: Serialize ``obj`` to a JSON formatted ``str``.")
    assert any('"with" statement is used to wrap' in record["text"] for record in corpus if record["source"] == "topics/with")


def test_reading_docstrings_imports_nothing():
    code = "import sys; from whence.demo.corpus import docstrings; list(docstrings('xmlrpc')); print('xmlrpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_unknown_module_has_no_docstrings():
    assert list(docstrings("no_such_module")) == []


def test_a_python_without_sources_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("whence.demo.corpus._library", lambda: tmp_path)
    with pytest.raises(BadInput, match="no docstrings under"):
        python_docs()


def test_a_python_without_topics_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(BadInput, match=r"without pydoc_data\.topics"):
        python_docs()


def test_training_learns_and_repeats_to_the_bit(tokenized):
    dataset, tokenizer = tokenized
    first, second = (train(dataset, len(tokenizer), seed=3, settings=TINY) for _ in range(2))
    assert first.losses[1] < first.losses[0] - 0.3
    assert first.losses == second.losses and first.recipe == second.recipe
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert first.recipe.optimizer == "adamw"
    assert first.recipe.loss_divisor == pytest.approx(sum(e.length - 1 for e in dataset.examples) / len(dataset))
    # 14 steps: one up to the peak, then 13 that fall from it in equal parts, 13/13 to 1/13.
    assert len(dataset) == 50
    assert first.recipe.learning_rate_sum == pytest.approx(TINY.learning_rate * (1 + 7))
    assert all(value > 0 for value in first.recipe.inverse_preconditioner.values())


def test_one_step_is_the_mean_over_tokens(tokenized):
    """After one step the second moment is the squared gradient, so the preconditioner tells which loss was differentiated."""
    dataset, tokenizer = tokenized
    settings = dataclasses.replace(TINY, epochs=1, batch_examples=len(dataset))
    recipe = train(dataset, len(tokenizer), seed=0, settings=settings).recipe
    model = new_model(len(tokenizer), 0, settings).double()
    task = CausalLM(model, None)
    tokens = sum(example.length - 1 for example in dataset.examples)
    (task.loss(model, task.collate(dataset.examples)).sum() / tokens).backward()
    wanted = {name: float((parameter.grad.abs() + 1e-8).mean()) for name, parameter in model.named_parameters()}
    assert recipe.inverse_preconditioner == pytest.approx(wanted, rel=1e-3)


def test_leaving_out_examples(tokenized):
    dataset, tokenizer = tokenized
    retrain = Retrain(dataset, len(tokenizer), TINY)
    keep = torch.ones(len(dataset), dtype=torch.bool)
    losses = QueryLosses(CausalLM(retrain(keep, 0), tokenizer).prepare([{"prompt": "json", "completion": ".dumps"}] * 1))
    full = losses(retrain(keep, 0))
    torch.testing.assert_close(full, losses(train(dataset, len(tokenizer), settings=TINY).model), rtol=0, atol=0)
    keep[:10] = False
    assert losses(retrain(keep, 0)) != full
    assert retrain.fingerprint != Retrain(dataset, len(tokenizer), Settings()).fingerprint
    with pytest.raises(BadInput, match="0 kept examples"):
        train(dataset, len(tokenizer), keep=torch.zeros(len(dataset), dtype=torch.bool), settings=TINY)
    with pytest.raises(BadInput, match="a mask of 3"):
        train(dataset, len(tokenizer), keep=torch.ones(3, dtype=torch.bool), settings=TINY)


def test_a_diverging_run_stops(tokenized):
    dataset, tokenizer = tokenized
    with pytest.raises(NonFinite, match="lower the learning rate"):
        train(dataset, len(tokenizer), settings=dataclasses.replace(TINY, learning_rate=float("inf")))


def test_save_and_load(tokenized, tmp_path):
    dataset, tokenizer = tokenized
    model = new_model(len(tokenizer), 1, TINY)
    recipe = Recipe("adamw", 1.5, loss_divisor=60.0, inverse_preconditioner={"w": 12.0})
    for _ in range(2):
        save(model, tokenizer, recipe, tmp_path / "model")
    again, same_tokenizer, same_recipe = load(tmp_path / "model")
    assert same_recipe == recipe
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    first, second = CausalLM(model, tokenizer, long="truncate"), CausalLM(again, same_tokenizer, long="truncate")
    assert first.weights == second.weights and first.preprocessing == second.preprocessing
    assert second.prepare([{"text": dataset.examples[0].text}]).examples[0].length == dataset.examples[0].length
    assert same_tokenizer.model_max_length == 64 and same_tokenizer.eos_token == "<|endoftext|>"
    assert same_tokenizer.decode(same_tokenizer("with “x” as\ty:").input_ids) == "with “x” as\ty:"


def test_loading_a_folder_that_is_none(tmp_path):
    with pytest.raises(BadInput, match=r"recipe\.json"):
        load(tmp_path)
