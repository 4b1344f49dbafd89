"""Tests of tables without retraining: each metric by hand on small tables, and from the command line."""

import itertools
import json

import pytest
import torch

from whence.errors import BadInput
from whence.evaluate import battery, save_table, spearman
from whence.evaluate.battery import flagged_precision, topk_overlap
from whence.records import ScoreTable

TRAIN = [{"id": f"t{row}", "label": row % 2, "subclass": row % 4, "shortcut": row in (1, 4)} for row in range(6)]
QUERIES = [{"id": f"q{row}", "label": row % 2, "subclass": row, "shortcut": row == 1} for row in range(3)]


def table_of(seed=0):
    scores = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ScoreTable(scores, ("q0", "q1", "q2"), tuple(record["id"] for record in TRAIN), "nats", "mine")


def test_every_metric_by_hand():
    table, other = table_of(), table_of(1)
    found = battery(table, TRAIN, QUERIES, flags=["shortcut"], randomised=other, k=2)
    strongest = [max(range(6), key=lambda column, row=row: float(table.scores[row, column])) for row in range(3)]
    for name, field in (("class", "label"), ("subclass", "subclass")):
        hits = [TRAIN[best][field] == query[field] for best, query in zip(strongest, QUERIES, strict=True)]
        assert found[name].mean == pytest.approx(sum(hits) / 3)
    order = sorted(range(6), key=lambda column: -float(table.scores[1, column]))
    precisions = [
        sum(TRAIN[row]["shortcut"] for row in order[: place + 1]) / (place + 1)
        for place in range(6)
        if TRAIN[order[place]]["shortcut"]
    ]
    assert found["flag shortcut"].mean == pytest.approx(sum(precisions) / 2)
    top = [set(sorted(range(6), key=lambda column, row=row: -float(table.scores[row, column]))[:2]) for row in range(3)]
    pairs = [len(a & b) / 2 for a, b in itertools.combinations(top, 2)]
    assert found["overlap"].mean == pytest.approx(sum(pairs) / 3)
    assert found["randomised"].mean == pytest.approx(float(spearman(table.scores, other.scores).mean()))


def test_the_ends_of_the_scales():
    flagged = [{"x": row < 2} for row in range(5)]
    scores = torch.tensor([[5.0, 4.0, 1.0, 2.0, 3.0]])
    assert flagged_precision(scores, flagged, [{"x": True}], "x").mean == 1.0
    assert flagged_precision(-scores, flagged, [{"x": True}], "x").mean == pytest.approx((1 / 4 + 2 / 5) / 2)
    with pytest.raises(BadInput, match="two or more"):
        topk_overlap(scores[:1], 2)
    assert topk_overlap(scores.expand(3, -1), 2).mean == 1.0 and topk_overlap(torch.eye(3), 1).mean == 0.0


def test_what_does_not_fit_is_refused():
    with pytest.raises(BadInput, match="2 queries and 6 training records for a table of .3, 6."):
        battery(table_of(), TRAIN, QUERIES[:2])
    with pytest.raises(BadInput, match="0 queries and 0 of 6 training records with 'none' set"):
        battery(table_of(), TRAIN, QUERIES, flags=["none"])
    with pytest.raises(BadInput, match="a randomised table of .2, 6. beside one of .3, 6."):
        small = ScoreTable(torch.zeros(2, 6), ("a", "b"), table_of().train_ids, "nats", "x")
        battery(table_of(), TRAIN, QUERIES, randomised=small)
    assert "subclass" not in battery(table_of(), [{"label": 0}] * 6, QUERIES)


def test_from_the_command_line(run, tmp_path):
    save_table(table_of(), tmp_path / "t")
    save_table(table_of(1), tmp_path / "random")
    for name, records in (("train", TRAIN), ("queries", QUERIES)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    words = ["evaluate", tmp_path / "t", tmp_path / "random", "--battery", "--data", tmp_path / "train.jsonl"]
    more = ["--queries", tmp_path / "queries.jsonl", "--flag", "shortcut", "--randomised", tmp_path / "random", "-k", 2]
    content = json.loads(run(*words, *more, "--json"))
    assert set(content[str(tmp_path / "t")]) == {"class", "subclass", "flag shortcut", "overlap", "randomised"}
    assert content[str(tmp_path / "random")]["randomised"]["mean"] == 1.0
    shown = run(*words, *more)
    assert "subclass" in shown and "random" in shown.splitlines()[1]
    assert "found --battery without --data and --queries" in run(*words, status=2)
    assert "found --data without --battery" in run("evaluate", tmp_path / "t", "--data", "x", status=2)
    for flag in ("--html", "--calibrate", "--banzhaf"):
        assert f"found {flag} with --battery" in run(*words, *more, flag, tmp_path / "x", status=2)
    assert not (tmp_path / "x").exists()
