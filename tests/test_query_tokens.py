"""Scores by the tokens of the query, beside those by the tokens of the documents: each against a query of that token alone."""

import json
from dataclasses import replace

import pytest
import torch

import whence
from tests.settings import QUIET
from tests.test_lm_records import bytes_task
from whence.pipeline.stored.query_tokens import query_tokens_note, texts_of_tokens, with_query_tokens
from whence.report import Hit
from whence.settings import Rerank
from whence.tasks.causal_lm import token_queries

TEXTS = ["a cat sat", "the dog ran off", "one bird sleeps", "a cat sleeps here", "no source at all", "a dog, a cat", "rain"]
QUERY = {"prompt": "a cat", "completion": " sat"}
CONTRAST = {**QUERY, "foil": " ran"}
METHODS = {
    "logra": {"rank": 6},
    "lorif": {"rank": 6, "factor_rank": 1},
    "trackstar": {"rank": 6},
    "trak": {"rank": 32},
    "grad-cos": {"rank": 6},
    "aligned": {"bytes_per_example": 64},
}


@pytest.fixture(scope="module")
def task():
    return bytes_task(length=24)


@pytest.fixture(scope="module")
def store_of(task, tmp_path_factory):
    made = {}

    def make(method):
        if method not in made:
            config = whence.BuildConfig(method=method, **METHODS[method])
            made[method] = whence.build(task, train(), tmp_path_factory.mktemp("s") / method, config=config, runtime=QUIET)
        return made[method]

    return make


def train():
    return [{"id": f"d{row}", "text": text} for row, text in enumerate(TEXTS)]


def test_queries_of_tokens_add_up_to_the_query(task):
    for record, count in ((QUERY, 4), (CONTRAST, 8), ("a cat", 4)):
        (example,) = task.prepare([record]).examples
        parts = token_queries(example)
        assert len(parts) == count == len(texts_of_tokens(task, example))
        value, *values = (float(task.measurement(task.model, task.collate([each])).detach()) for each in (example, *parts))
        assert sum(values) == pytest.approx(value, rel=1e-5)
    (example,) = task.prepare([CONTRAST]).examples
    assert texts_of_tokens(task, example) == (" ", "s", "a", "t", "not  ", "not r", "not a", "not n")


@pytest.mark.parametrize("method", METHODS)
def test_a_hits_parts_are_the_scores_of_the_tokens_alone(task, store_of, method):
    """A cosine's parts are of the whole query's norm, and whitening of the whole query's moments: these are held against sums only."""
    store = store_of(method)
    hits = whence.query(store, task, [QUERY, CONTRAST], k=3, tokens=True, runtime=QUIET)
    assert not any("no scores of their own tokens" in note for note in hits.notes)
    for number, record in enumerate((QUERY, CONTRAST)):
        (example,) = task.prepare([record]).examples
        alone = task.prepare([record])
        parts = token_queries(example)
        table = None
        if method not in ("trackstar", "grad-cos"):
            queries = type(alone)([replace(part, id=f"part {index}") for index, part in enumerate(parts)])
            table = whence.score_table(store, task, queries, runtime=QUIET).scores
        assert len(hits.tokens_of(number)) == len(parts)
        for hit in (*hits.proponents[number], *hits.opponents[number]):
            assert sum(hit.query_scores) == pytest.approx(hit.score, abs=1e-4 * sum(map(abs, hit.query_scores)))
            if table is not None:
                torch.testing.assert_close(
                    torch.tensor(hit.query_scores).double(), table[:, hit.row].double(), rtol=1e-3, atol=1e-9
                )


def test_exact_parts_in_two_stages(task, store_of):
    store = store_of("aligned")
    rerank = Rerank(train=train(), shortlist=7)
    hits = whence.query(store, task, [QUERY], k=3, tokens=True, rerank=rerank, runtime=QUIET)
    (example,) = task.prepare([QUERY]).examples
    for hit in (*hits.proponents[0], *hits.opponents[0]):
        assert sum(hit.query_scores) == pytest.approx(hit.score, rel=1e-4, abs=1e-12)
        # Both sides of the same score.
        assert sum(hit.token_scores) == pytest.approx(sum(hit.query_scores), rel=1e-3, abs=1e-12)
    assert len(hits.tokens_of(0)) == len(token_queries(example))


def test_both_sides_stand_on_the_page_and_in_the_terminal(task, store_of, capsys):
    hits = whence.query(store_of("logra"), task, [QUERY, "rain"], k=2, tokens=True, runtime=QUIET)
    page = hits._repr_html_()
    assert page.count('<p class="says"') == sum(len(side) for sides in (hits.proponents, hits.opponents) for side in sides)
    hits.show()
    assert "says for" in capsys.readouterr().out
    content = json.loads(json.dumps(hits.to_dict()))["queries"][0]
    assert content["query_tokens"] == [" ", "s", "a", "t"] and len(content["proponents"][0]["query_scores"]) == 4
    plain = whence.query(store_of("logra"), task, [QUERY], k=2, runtime=QUIET)
    assert "query_tokens" not in plain.to_dict()["queries"][0] and '<p class="says"' not in plain._repr_html_()


def test_parts_that_do_not_add_up_are_withheld_and_it_is_said(task):
    class Stage:
        def query_parts(self, query, rows):
            return torch.tensor([[1.0, 2.0], [1.0, 2.0]])

    hits = [Hit("a", 3, 2.0), Hit("b", 5, 4.0)]
    assert [hit.query_scores for hit in with_query_tokens(Stage(), 0, hits)] == [(1.0, 1.0), (2.0, 2.0)]
    off = with_query_tokens(Stage(), 0, [hits[0], Hit("b", 5, 4.1)])
    assert [hit.query_scores for hit in off] == [(), ()]
    (example, single) = task.prepare([QUERY, {"prompt": "a", "completion": "b"}]).examples
    assert query_tokens_note(task, [example], [hits]) == (
        "1 queries have no scores of their own tokens: they have more than 512 of them, or the parts do not add up to the scores",
    )
    assert query_tokens_note(task, [single], [hits]) == ()  # one token is the whole query
    own = whence.CausalLM(task.model, task.tokenizer, measure=lambda model, batch: torch.zeros(1), unit="x")
    assert "not a language model's sum" in query_tokens_note(own, [example], [hits])[0]
