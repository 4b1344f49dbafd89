"""Agreement of tables against loops, and what it refuses."""

import json

import pytest
import torch

from tests.reference.measures import overlap
from whence.errors import BadInput, NonFinite
from whence.evaluate import agreement, spearman
from whence.records import ScoreTable


def table(scores, *, queries=None, train=None, method="m"):
    queries = tuple(f"q{number}" for number in range(len(scores))) if queries is None else queries
    train = tuple(f"t{number}" for number in range(scores.shape[1])) if train is None else train
    return ScoreTable(scores, queries, train, "nats", method)


def random_scores(seed, shape=(4, 30)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_numbers_are_those_of_the_loops():
    a, b = random_scores(0), random_scores(1)
    found = agreement(table(a), table(b, method="n"), k=7)
    assert found.methods == ("m", "n")
    torch.testing.assert_close(found.spearman_Q, spearman(a, b))
    assert found.top_Q.tolist() == pytest.approx([overlap(x, y, 7) for x, y in zip(a, b, strict=True)])
    assert found.bottom_Q.tolist() == pytest.approx([overlap(-x, -y, 7) for x, y in zip(a, b, strict=True)])
    assert found.spearman.low < found.spearman.mean < found.spearman.high
    assert found.chance == 7 / 30


def test_ids_decide_not_places():
    a = random_scores(0)
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.randperm(30, generator=torch.Generator().manual_seed(2))
    queries, train = table(a).query_ids, table(a).train_ids
    shuffled = table(
        a[rows][:, columns], queries=tuple(queries[row] for row in rows), train=tuple(train[column] for column in columns)
    )
    found = agreement(table(a), shuffled, k=5)
    assert found.spearman_Q.tolist() == found.top_Q.tolist() == found.bottom_Q.tolist() == [1.0] * 4


def test_only_the_order_counts_and_turning_it_turns_the_sign():
    a, b = random_scores(0), random_scores(1)
    found = agreement(table(a), table(b.exp()), k=5)
    torch.testing.assert_close(found.spearman_Q, agreement(table(a), table(b), k=5).spearman_Q)
    assert agreement(table(a), table(-a), k=5).spearman.mean == -1.0
    assert agreement(table(a), table(-a), k=5).top.mean == 0.0


def test_random_tables_agree_by_chance():
    found = agreement(table(random_scores(3, (60, 100))), table(random_scores(4, (60, 100))), k=10)
    assert found.spearman.low < 0 < found.spearman.high
    assert found.top.low < found.chance < found.top.high


def test_result_is_json():
    found = agreement(table(random_scores(0, (1, 9))), table(random_scores(1, (1, 9))), k=2)
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["spearman"]["low"] is None and set(record["queries"]) == {"q0"}


def test_what_does_not_match_is_refused():
    a = random_scores(0)
    for other, text in [
        (
            table(a, train=("x", *table(a).train_ids[1:])),
            r"30 train ids in the table of m and 30 to match, 29 of them in both \('t0' is not\)",
        ),
        (table(a[:3]), "3 query ids in the table of m and 4 to match, 3 of them in both"),
        (table(a, queries=("q0", "q0", "q1", "q2")), "query ids repeat"),
        (table(a, train=table(a).train_ids[1:]), r"scores of shape \(4, 30\) for 4 query and 29 train ids"),
    ]:
        with pytest.raises(BadInput, match=text):
            agreement(table(a), other)
    with pytest.raises(NonFinite, match="a NaN or infinite score in the table of odd"):
        agreement(table(a), table(a / 0, method="odd"))
    for k in (0, 31):
        with pytest.raises(BadInput, match=f"k={k} for 30 training examples"):
            agreement(table(a), table(a), k=k)
