"""Baselines against loops over pairs and examples."""

import pytest
import torch
from torch import nn

import whence
from tests.reference.baselines import bm25_score, representation
from tests.zoo import make
from whence.data import Dataset, Example
from whence.errors import BadInput, Unsupported
from whence.evaluate import fact_tracing, synthetic_facts
from whence.score import bm25, loss_scores, random_scores, representation_similarity, tf_idf


def texts(*lines, prefix="t"):
    return Dataset([Example(f"{prefix}{number}", {}, text=line) for number, line in enumerate(lines)])


def split(name, count=9, num_train=6):
    task, examples = make(name, count)
    return task, Dataset(examples.examples[:num_train]), Dataset(examples.examples[num_train:])


LINES = ("The cat sat on the mat.", "A dog sat", "the THE the cat", "rain; rain again", "Un été à la mer", "?!")
QUESTIONS = ("the cat", "Cat rain cat", "nothing shared", "été", "...")


@pytest.mark.parametrize("settings", [{}, {"k1": 0.0}, {"k1": 2.0, "b": 0.0}, {"b": 1.0}])
def test_bm25_over_words(settings):
    table = bm25(texts(*LINES), texts(*QUESTIONS, prefix="q"), **settings)
    documents = [
        line.split()
        for line in ("the cat sat on the mat", "a dog sat", "the the the cat", "rain rain again", "un été à la mer", "")
    ]
    queries = [line.split() for line in ("the cat", "cat rain cat", "nothing shared", "été", "")]
    k1, b = settings.get("k1", 1.2), settings.get("b", 0.75)
    expected = [[bm25_score(query, document, documents, k1, b) for document in documents] for query in queries]
    torch.testing.assert_close(table.scores, torch.tensor(expected, dtype=torch.float64))
    assert (table.query_ids[0], table.train_ids[5], table.unit) == ("q0", "t5", "BM25")
    assert table.method == f"bm25 over words (k1={k1:g}, b={b:g})"


def test_tf_idf_is_scikit_learns():
    sklearn = pytest.importorskip("sklearn.feature_extraction.text")
    questions = [*QUESTIONS, "words that nobody has"]
    vectors = sklearn.TfidfVectorizer(token_pattern=r"\w+").fit(LINES)
    expected = (vectors.transform(questions) @ vectors.transform(LINES).T).toarray()
    table = tf_idf(texts(*LINES), texts(*questions, prefix="q"))
    assert table.scores.numpy() == pytest.approx(expected, abs=1e-12) and table.method == "tf-idf over words"


def test_bm25_over_token_ids():
    _, train, queries = split("gpt2", 12, 8)
    table = bm25(train, queries)
    documents, asked = ([example.fields["input_ids"].tolist() for example in part.examples] for part in (train, queries))
    expected = [[bm25_score(query, document, documents, 1.2, 0.75) for document in documents] for query in asked]
    torch.testing.assert_close(table.scores, torch.tensor(expected, dtype=torch.float64))
    assert table.method == "bm25 over token ids (k1=1.2, b=0.75)"


def test_bm25_finds_facts_by_their_words():
    facts = synthetic_facts(20)
    train = Dataset([Example(record["id"], {}, text=record["text"]) for record in facts.train])
    queries = Dataset([Example(record["id"], {}, text=record["prompt"] + record["completion"]) for record in facts.queries])
    found, chance = (fact_tracing(table, facts.gold) for table in (bm25(train, queries), random_scores(train, queries)))
    assert found.mrr.low > 0.9 > 0.1 > chance.mrr.high


def test_bm25_without_a_word_in_the_data_gives_zeros():
    assert not bm25(texts("?", "!"), texts("cat", "...", prefix="q")).scores.any()


def test_bm25_refuses_what_has_no_terms():
    _, train, queries = split("linear")
    with pytest.raises(
        Unsupported, match="the example '0' without token ids, .* do this: compare with representation_similarity"
    ):
        bm25(train, queries)
    with pytest.raises(Unsupported, match="the example 'q0' without token ids"):
        bm25(Dataset([Example("a", {"input_ids": [1, 2]})]), texts("a cat", prefix="q"))
    for settings, text in (({"k1": -1.0}, "k1=-1.0, b=0.75"), ({"b": 1.5}, "k1=1.2, b=1.5")):
        with pytest.raises(BadInput, match=text):
            bm25(texts("a"), texts("a"), **settings)


def test_random_scores():
    _, train, queries = split("linear")
    table = random_scores(train, queries, seed=3)
    assert table.scores.shape == (3, 6) and table.method == "random (seed 3)"
    assert torch.equal(table.scores, random_scores(train, queries, seed=3).scores)
    assert not torch.equal(table.scores, random_scores(train, queries).scores)


@pytest.mark.parametrize("name", ["linear", "dropout", "gpt2", "regression", "bert"])
@pytest.mark.parametrize("max_positions", [4096, 9])
def test_losses_are_those_of_each_example_alone(name, max_positions):
    task, train, queries = split(name)
    task.model.train()
    table = loss_scores(task, train, queries, max_positions=max_positions, quiet=True)
    assert task.model.training
    task.model.eval()
    with torch.no_grad():
        alone = torch.cat([task.loss(task.model, task.collate([example])) for example in train.examples])
    torch.testing.assert_close(table.scores, alone.expand(3, -1))
    assert table.method == "loss" and table.train_ids == tuple(example.id for example in train.examples)


LAST = {
    "linear": "body.2", "tied": "head", "conv2d": "body.2", "conv1d": "body.2", "flattening": "head", "two_inputs": "head",
    "attention": "body.1", "gpt2": "lm_head", "llama": "lm_head", "bert": "classifier", "checkpoint_reentrant": "head",
}  # fmt: skip


@pytest.mark.parametrize("name", LAST)
@pytest.mark.parametrize("max_positions", [4096, 9])
def test_similarity_is_that_of_each_example_alone(name, max_positions):
    task, train, queries = split(name)
    table = representation_similarity(task, train, queries, max_positions=max_positions, quiet=True)
    left, right = (
        torch.stack([representation(task, LAST[name], example) for example in part.examples]) for part in (queries, train)
    )
    expected = nn.functional.cosine_similarity(left[:, None], right[None], dim=-1)
    torch.testing.assert_close(table.scores, expected, rtol=1e-9, atol=1e-9)
    assert table.method == f"representation similarity (input of {LAST[name]})" and table.unit == "cosine"


def test_similarity_of_an_example_with_itself_is_one():
    task, train, _ = split("gpt2")
    table = representation_similarity(task, train, train, quiet=True)
    torch.testing.assert_close(table.scores.diagonal(), torch.ones(6).double())
    assert not any(module._forward_pre_hooks for module in task.model.modules())


class Forked(nn.Module):
    """The sign of the first input decides which layer comes last."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, inputs):
        return self.left(inputs) if float(inputs[0, 0]) > 0 else self.right(inputs)


class Merging(nn.Module):
    """Puts two more rows in front."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, inputs):
        return self.head(torch.cat([inputs.new_zeros(2, 3), inputs]))[2:]


def test_similarity_refuses_what_has_no_last_layer():
    def task_of(model, *rows):
        task = whence.Classification(model)
        return task, task.prepare([(torch.tensor(row), 0) for row in rows])

    up, down = [1.0, 0.0, 2.0], [-1.0, 0.0, 2.0]
    task, train = task_of(Forked(), up, down)
    with pytest.raises(Unsupported, match="last layer is 'left' on some examples and 'right' on others"):
        representation_similarity(task, train, train, max_positions=1, quiet=True)
    task, train = task_of(Merging(), up, down, up)
    with pytest.raises(Unsupported, match="layer 'head' with 8 leading entries for a batch of 6 examples"):
        representation_similarity(task, train, train, quiet=True)
    task, train = task_of(nn.LayerNorm(3), up)
    with pytest.raises(Unsupported, match="a loss that calls no Linear, Conv1D or convolution layer"):
        representation_similarity(task, train, train, quiet=True)
