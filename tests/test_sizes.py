"""Scores that cannot be changes of the measurement are told as an order, in every way to ask."""

import pytest
import torch
from torch import nn

import whence
from tests.settings import QUIET
from whence.score import RELATIVE, impossible_sizes


def certain(scale):
    """A classifier whose certainty of ten examples of two classes grows with `scale`."""
    torch.manual_seed(0)
    inputs, labels = torch.randn(10, 4, dtype=torch.float64), torch.arange(10) % 2
    model = nn.Linear(4, 2, dtype=torch.float64)
    with torch.no_grad():
        model.weight[:] = torch.linalg.lstsq(inputs, nn.functional.one_hot(labels, 2).double()).solution.T * scale
    return model, list(zip(inputs, labels.tolist(), strict=True))


def test_the_note_names_the_query_that_is_farthest_off():
    values, largest = torch.tensor([-1.0, -2.0, -9.0]), torch.tensor([0.9, 5.0, 9.5])
    (note,) = impossible_sizes(values, largest, 0.0)
    assert note.startswith(
        "sizes are relative for 2 of 3 queries: a score of 5 stands beside a measurement of -2, which can rise by 2 "
    )
    assert impossible_sizes(values, largest, None) == () == impossible_sizes(values, torch.tensor([1.0, 2.0, 9.0]), 0.0)
    assert "1 of 1 query:" in impossible_sizes(values[1:2], largest[1:2], 0.0)[0]


@pytest.mark.parametrize(("measure", "is_told"), [("loss", True), ("margin", False)])
def test_stores_and_tables_say_so(measure, is_told, tmp_path):
    model, records = certain(8.0)
    task = whence.Classification(model, measure=measure)
    table = whence.attribute(task, records, records[:3], runtime=QUIET)
    with torch.no_grad():
        room = -float(task.measurement(model, task.collate(task.prepare(records[:3]).examples)).min())
    assert (float(table.scores.abs().max()) > room) or not is_told
    assert any(note.startswith("sizes are relative for") for note in table.notes) == is_told
    assert table.unit == task.unit, "tables are held against others, and keep what they are counted in"
    store = whence.build(task, records, tmp_path, config=whence.BuildConfig(method="logra"), runtime=QUIET)
    hits = whence.query(store, task, records[:3], k=2, runtime=QUIET)
    assert (hits.unit == RELATIVE) == is_told == any("sizes are relative" in note for note in hits.notes)
    assert hits.measurement_unit == task.unit


def test_scores_that_are_possible_keep_their_unit(tmp_path):
    model, records = certain(0.0)
    task = whence.Classification(model)
    table = whence.attribute(
        task, records, records[:3], method=whence.EKFAC(damping=whence.Damping(relative=10.0)), runtime=QUIET
    )
    assert not any("sizes are relative" in note for note in table.notes)
    store = whence.build(task, records, tmp_path, config=whence.BuildConfig(method="logra"), runtime=QUIET)
    hits = whence.query(store, task, records[:3], k=2, damping=whence.Damping(relative=10.0), runtime=QUIET)
    assert hits.unit == task.unit
    plain = whence.attribute(task, records, records[:3], method="grad-dot-exact", runtime=QUIET)
    assert not any("sizes are relative" in note for note in plain.notes)


def test_sums_of_queries_are_not_held_against_one():
    model, records = certain(8.0)
    task = whence.Classification(model)
    queries = task.prepare(records[:2])
    groups = {"both": dict.fromkeys(queries.ids, 1.0)}
    table = whence.attribute(task, records, queries, groups=groups, runtime=QUIET)
    assert not any("sizes are relative" in note for note in table.notes)
