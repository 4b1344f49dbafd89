"""Expected recall: as drawn scores have it, and what queries in two stages make of it."""

from dataclasses import asdict, replace

import pytest

import whence
from tests.reference.recall import drawn_recall
from tests.settings import QUIET
from tests.test_fidelity import records, task
from whence.pipeline.stored.shortlist import shortlist_wanted
from whence.score import expected_recall, shortlist_for
from whence.settings import Rerank
from whence.store import read_fidelity


@pytest.mark.parametrize(
    ("correlation", "documents", "best", "shortlist"), [(0.3, 500, 50, 100), (0.73, 1000, 100, 100), (0.95, 4000, 40, 80)]
)
def test_expected_recall_is_that_of_drawn_scores(correlation, documents, best, shortlist):
    found = expected_recall(correlation, documents, best, shortlist)
    assert found == pytest.approx(drawn_recall(correlation, documents, best, shortlist), abs=0.02)
    assert expected_recall(correlation, documents, best, documents) == 1.0


def test_the_shortest_that_is_long_enough():
    for correlation in (0.2, 0.8, 0.99):
        length = shortlist_for(0.95, correlation, 3000, 100)
        assert expected_recall(correlation, 3000, 100, length) >= 0.95 > expected_recall(correlation, 3000, 100, length - 1)


def test_a_shortlist_grows_to_a_tenth_at_most():
    exact = Rerank(train=[1])
    assert exact.rows_kept(10, 100_000, 3000) == 3000 and exact.rows_kept(10, 100_000, 30_000) == 10_000
    assert exact.rows_kept(10, 100_000, 20) == 400 and exact.rows_kept(100, 2000, 20) == 1000
    assert replace(exact, shortlist=50).rows_kept(10, 100_000, 3000) == 50


def test_answers_say_what_they_are_expected_to_hold(tmp_path):
    asked = task()
    store = whence.build(
        asked, records(60), tmp_path / "s", config=whence.BuildConfig(method="aligned", bytes_per_example=16), runtime=QUIET
    )
    hits = whence.query(store, asked, records(2, seed=9), rerank=whence.Rerank(train=records(60), shortlist=12), runtime=QUIET)
    fidelity = asdict(next(iter(read_fidelity(store).values())))
    correlation = (fidelity["others"] or fidelity["learned"])["pearson"][0]
    wanted = f"expected to hold {expected_recall(correlation, 60, 60, 12):.0%} of the 60 strongest of each side"
    assert any(wanted in note for note in hits.notes), hits.notes
    assert 0 < shortlist_wanted(store) <= 60
    assert not any("expected to hold" in note for note in whence.query(store, asked, records(2, seed=9), runtime=QUIET).notes)
