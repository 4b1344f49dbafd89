"""The synthetic facts keep their promises, and tracing agrees with a sorted list."""

import json

import pytest
import torch

from tests.reference.measures import gold_ranks
from whence.data import Dataset, Example
from whence.errors import BadInput, NonFinite
from whence.evaluate import fact_tracing, synthetic_facts
from whence.evaluate.facts import _ABOUT_PERSON, _FIRST, _LAST, _RELATIONS
from whence.records import ScoreTable

FULL = {"num_relations": 5, "num_paraphrases": 5, "num_distractors": 6}


@pytest.fixture(scope="module")
def facts():
    return synthetic_facts(60, **FULL)


def test_counts_and_ids(facts):
    assert len(facts.queries) == len(facts.gold) == 300 and len(facts.train) == 300 * (5 + 6)
    assert len({record["id"] for record in facts.train}) == len(facts.train)
    assert all(len(found) == 5 for found in facts.gold.values())
    assert {record["source"] for record in facts.train} == {"fact", "person", "object"}
    assert list(facts.gold) == [record["id"] for record in facts.queries]
    assert all(set(record) == {"id", "text", "source"} for record in facts.train)


def test_gold_documents_state_the_fact_and_others_do_not(facts):
    text = {record["id"]: record["text"] for record in facts.train}
    for query in facts.queries:
        kind = next(relation for relation in _RELATIONS if query["id"].endswith(relation.name))
        person = query["prompt"].removeprefix(kind.prompt.split("{0}")[0]).split(" is")[0]
        thing = query["completion"].strip().lower()
        gold = facts.gold[query["id"]]
        stating = {key for key, words in text.items() if person in words and thing in words.lower()}
        assert stating == gold
        assert len({text[key] for key in gold}) == 5
        own = [key for key in text if key.startswith(query["id"] + "-") and key not in gold]
        assert len(own) == 6
        assert sum(person in text[key] for key in own) == 3 == sum(thing in text[key].lower() for key in own)


def test_names_are_unique_and_wordings_of_queries_new(facts):
    people = {query["prompt"].split(" of ")[1].split(" is")[0] for query in facts.queries}
    assert len(people) == 60
    assert not any(record["text"].startswith(query["prompt"]) for query in facts.queries for record in facts.train)


def test_no_word_of_one_list_is_inside_another():
    """An object whose name is part of a person's would make a stated fact of every document on that person."""
    names = [f"{first} {last}".lower() for first in _FIRST for last in _LAST]
    for relation in _RELATIONS:
        assert len(set(relation.objects)) == len(relation.objects)
        for thing in relation.objects:
            assert not any(thing.lower() in name for name in names), thing
            assert not any(thing in other for other in relation.objects if other != thing), thing
            assert not any(thing.lower() in text.lower() for text in _ABOUT_PERSON)
    assert len(set(names)) == len(names)


def test_seeded():
    assert synthetic_facts(5, seed=1) == synthetic_facts(5, seed=1) != synthetic_facts(5, seed=2)
    assert [query["prompt"] for query in synthetic_facts(5).queries] != sorted(
        query["prompt"] for query in synthetic_facts(5).queries
    )
    Dataset([Example(record["id"], {}, text=record["text"]) for record in synthetic_facts(5).train])


def test_numbers_beyond_the_lists_are_refused():
    for name, value, text in [
        ("num_relations", 6, "num_relations=6; needed 1 to 5"),
        ("num_paraphrases", 0, "num_paraphrases=0"),
        ("num_distractors", 7, "num_distractors=7; needed 0 to 6"),
    ]:
        with pytest.raises(BadInput, match=text):
            synthetic_facts(3, **{name: value})
    with pytest.raises(BadInput, match="num_people=0"):
        synthetic_facts(0)


def table(scores, gold_of):
    train = tuple(f"t{number}" for number in range(scores.shape[1]))
    queries = tuple(f"q{number}" for number in range(len(scores)))
    gold = {query: frozenset(f"t{place}" for place in places) for query, places in zip(queries, gold_of, strict=True)}
    return ScoreTable(scores, queries, train, "nats", "toy"), gold


@pytest.mark.parametrize("ties", [False, True])
def test_tracing_is_a_sorted_list(ties):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(20, 40, generator=generator, dtype=torch.float64)
    scores = scores.round() if ties else scores
    gold_of = [torch.randperm(40, generator=generator)[: 1 + number % 4].tolist() for number in range(20)]
    found = fact_tracing(*table(scores, gold_of), ks=(10, 1, 3))
    ranks = [gold_ranks(row.tolist(), set(places)) for row, places in zip(scores, gold_of, strict=True)]
    assert found.ks == (1, 3, 10)
    assert found.first_rank_Q.tolist() == [row[0] for row in ranks]
    assert found.mrr.mean == pytest.approx(sum(1 / row[0] for row in ranks) / 20)
    for k in found.ks:
        assert found.recall(k).mean == pytest.approx(sum(row[0] <= k for row in ranks) / 20)
        assert found.strict_recall(k).mean == pytest.approx(sum(sum(r <= k for r in row) / len(row) for row in ranks) / 20)
    assert found.mrr.low < found.mrr.mean < found.mrr.high


def test_scores_that_say_nothing_get_nothing():
    scores = torch.zeros(2, 40)
    found = fact_tracing(*table(scores, [[0], [0, 1]]))
    assert found.first_rank_Q.tolist() == [40, 39] and found.recall(10).mean == 0.0
    scores[0, 0], scores[1, :2] = 1.0, 1.0
    perfect = fact_tracing(*table(scores, [[0], [0, 1]]))
    assert perfect.mrr.mean == 1.0 and perfect.strict_recall(3).mean == 1.0 and perfect.strict_recall(1).mean == 0.75
    record = json.loads(json.dumps(perfect.to_dict(), allow_nan=False))
    assert record["recall"]["1"]["mean"] == 1.0 and record["first_ranks"] == {"q0": 1, "q1": 1}


def test_what_cannot_be_traced_is_refused():
    scores, gold = table(torch.randn(2, 5, generator=torch.Generator().manual_seed(0)), [[0], [1]])
    with pytest.raises(BadInput, match="0 gold documents of the query 'q1'"):
        fact_tracing(scores, {"q0": gold["q0"]})
    with pytest.raises(BadInput, match="2 gold documents of the query 'q0', 1 of them not in the table"):
        fact_tracing(scores, {**gold, "q0": frozenset({"t0", "x"})})
    for ks in ((), (0, 1), (2, 2)):
        with pytest.raises(BadInput, match="needed positive numbers, all different"):
            fact_tracing(scores, gold, ks=ks)
    with pytest.raises(NonFinite, match="a NaN or infinite score in the table of toy"):
        fact_tracing(ScoreTable(scores.scores / 0, scores.query_ids, scores.train_ids, "", "toy"), gold)
