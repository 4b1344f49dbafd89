"""Fits on fewer positions than a side is long: the span of the rows against all eigenvectors, and how the default comes to it."""

from importlib import import_module

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import whence
from tests.reference.spanned import spanned_scores
from tests.settings import QUIET
from whence.capture import plan_units
from whence.curvature import class_count, few_rows, resolved
from whence.curvature.sides import directions_of
from whence.data import Dataset
from whence.pipeline.forecast.exact import forecast_exact
from whence.records import Unit
from whence.settings import EKFAC, FitConfig

CPU = torch.device("cpu")


def setting(texts, track=None, vocabulary=23):
    """Two layers of width 16 in float64, with sides of up to 65, and classes; texts of six tokens, and three queries."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=vocabulary, n_positions=6, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0,
    )  # fmt: skip
    task = whence.CausalLM(GPT2LMHeadModel(config).double().eval(), tokenizer=None, track=track)
    examples = task.prepare([{"input_ids": torch.randint(vocabulary, (6,)).tolist()} for _ in range(texts + 3)]).examples
    return task, Dataset(examples[:texts]), Dataset(examples[texts:])


@pytest.fixture
def short_sides(monkeypatch):
    """Sides count as long from 9 on, and a sketch has a column for every row."""
    for module in ("sides", "few_rows"):
        monkeypatch.setattr(import_module(f"whence.curvature.{module}"), "LONG_SIDE", 8)
    for name, value in (("DIRECTIONS", 1), ("_SPARE", 0), ("_WORTH", 2)):
        monkeypatch.setattr(import_module("whence.curvature.sides"), name, value)


def scored(task, train, queries, **fit):
    return whence.attribute(task, train, queries, method=EKFAC(fit=FitConfig(**fit)), runtime=QUIET)


def close(found, wanted):
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))


def test_the_span_of_few_rows_is_all_eigenvectors():
    task, train, queries = setting(5)
    exact = scored(task, train, queries, labels="dataset", largest_side=10**6).scores
    close(spanned_scores(task, plan_units(task), train.examples, queries.examples, labels="dataset"), exact)


@pytest.mark.parametrize("labels, track", [("dataset", None), ("sampled", ["*mlp*"])])
def test_the_default_spans_few_rows(short_sides, labels, track):
    """With drawn labels where no short side has a null space: there a basis is a rule's."""
    task, train, queries = setting(2 if labels == "dataset" else 3, track)
    table = scored(task, train, queries, labels=labels)
    close(table.scores, spanned_scores(task, plan_units(task), train.examples, queries.examples, labels=labels))
    assert any("directions with 100.0% of the trace" in note for note in table.notes)


def test_the_default_spans_the_classes_of_few_rows(short_sides):
    """Likely classes would be a part of what a sketch with a column for every row holds all of."""
    task, train, queries = setting(2, ["lm_head*"], vocabulary=90)
    table = scored(task, train, queries, labels="dataset")
    close(table.scores, spanned_scores(task, plan_units(task), train.examples, queries.examples, labels="dataset"))
    assert any("of 90 directions with 100.0% of the trace" in note for note in table.notes)
    whole, cut, plan = FitConfig(largest_side=50, directions=12), FitConfig(largest_side=50, directions=11), plan_units(task)
    assert class_count(task, plan, train.examples, whole) == 0 and class_count(task, plan, train.examples, cut) == 90


def test_rows_of_all_labels_count_for_the_classes():
    """With every label taken a text has as many rows as there are classes: more than a sketch of so many columns would hold."""
    task = whence.Classification(torch.nn.Linear(4, 9))
    train = task.prepare([(torch.randn(4), label) for label in (0, 3)])
    plan, few = plan_units(task), {"largest_side": 6, "directions": 5}
    for labels, classes in (("dataset", 0), ("sampled", 0), ("exact", 9)):
        assert class_count(task, plan, train.examples, FitConfig(labels=labels, **few)) == classes


@pytest.mark.parametrize("labels", ["dataset", "sampled"])
def test_a_side_that_is_mostly_null_has_an_isotropic_rest(monkeypatch, labels):
    monkeypatch.setattr(import_module("whence.curvature.eigenvectors"), "SETTLED_SIDE", 8)
    task, train, queries = setting(1)
    table = scored(task, train, queries, labels=labels)
    close(table.scores, spanned_scores(task, plan_units(task), train.examples, queries.examples, labels=labels))
    assert any("directions with 100.0% of the trace" in note for note in table.notes)


def test_a_forecast_says_that_it_does_not_know_how_many_directions_few_positions_have(monkeypatch):
    task, train, _ = setting(2)
    assert "not known here" not in str(forecast_exact(task, train, 1, runtime=QUIET))
    monkeypatch.setattr("whence.pipeline.forecast.exact_time.SETTLED_SIDE", 8)
    assert "not known here" in str(forecast_exact(task, train, 1, runtime=QUIET))


def test_rows_are_counted_where_layers_are_applied(short_sides):
    task, train, _ = setting(2)
    plan, config = plan_units(task), FitConfig()
    assert few_rows(task, plan, train, config) == 12
    assert few_rows(task, plan, train, FitConfig(samples=2)) == 24
    assert few_rows(task, plan, setting(6)[1], config) is None  # more positions than half of a side
    assert few_rows(task, plan, train, FitConfig(largest_side=5)) is None
    # Applied twice at every position, as layers that a model shares are.
    block, forward = task.model.transformer.h[0].mlp, type(task.model.transformer.h[0].mlp).forward
    block.forward = lambda hidden: forward(block, forward(block, hidden))
    assert few_rows(task, plan, train, config) == 24


def test_few_rows_choose_directions_of_long_sides_only():
    units = [Unit("a", 4096, 4097, ("a",)), Unit("b", 16384, 4097, ("b",)), Unit("head", 6000, 4096, ("head",))]
    # Of sides from twice the directions on.

    def chosen(rows, **options):
        found = resolved(None, units, device=CPU, positions=1000, rows=rows, **options)
        return found.directions, [directions_of(size, found) for size in (4096, 4097, 6000, 16384)]

    assert chosen(None) == chosen(9000) == (1024, [4096, 4097, 6000, 16384])
    assert chosen(2040) == (2072, [4096, 4097, 2072, 2072])
    assert chosen(100) == (1024, [1024, 1024, 1024, 1024])
    units.append(Unit("head", 50_000, 4096, ("head",)))
    assert chosen(10_000) == chosen(None)  # sketches that take longer than what they are for
    # Where not even a sketch fits, nor the sides below, it is as it would be.
    assert chosen(2000, room_bytes=2**28) == chosen(None, room_bytes=2**28)
