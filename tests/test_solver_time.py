"""Forecasts of solvers: the products that they are counted with are those that they do, and times add up."""

import pytest

import whence
from tests import zoo
from tests.settings import QUIET
from tests.test_source import queries_of, train
from whence.curvature import Curvature
from whence.data import Dataset
from whence.errors import BadInput
from whence.pipeline import forecast_exact
from whence.pipeline.forecast import exact_time
from whence.pipeline.forecast.solver_time import Products, ProductSeconds, products_of
from whence.settings import ASTRA, CG, PCG, Arnoldi, DataInf, LiSSA, Nystroem, TracIn

NEVER = 1e-12
SOLVERS = [
    PCG(iterations=3, tolerance=NEVER),
    CG(iterations=4, tolerance=NEVER),
    Nystroem(rank=5),
    Arnoldi(rank=3, iterations=6),
    DataInf(),
    ASTRA(iterations=7, batch_examples=4, tolerance=NEVER),
    ASTRA(iterations=7, batch_examples=64, tolerance=NEVER),
    LiSSA(iterations=6, repeats=2, batch_examples=4, tolerance=NEVER),
    PCG(iterations=3, tolerance=NEVER, examples=8),
]


@pytest.mark.parametrize("settings", SOLVERS, ids=lambda settings: settings.name)
def test_products_are_those_that_a_solver_does(settings, monkeypatch):
    """Each counted as a vector times an example's share of the data."""
    task, dataset = zoo.make("linear", count=14)
    train_set, queries = Dataset(dataset.examples[3:]), Dataset(dataset.examples[:3])
    examples = getattr(settings, "examples", None) or len(train_set)
    spent, times = [], Curvature.times

    def counted(matrix, blocks, chosen=None):
        spent.append(len(blocks[0]) * (1 if chosen is None else len(chosen) / len(matrix)))
        return times(matrix, blocks, chosen)

    monkeypatch.setattr(Curvature, "times", counted)
    whence.attribute(task, train_set, queries, method=settings, runtime=QUIET)
    wanted = products_of(settings, examples)
    with_queries = wanted.queries - (settings.name == "datainf")  # whose first pass is over gradients
    total = with_queries * len(queries) + wanted.single + wanted.directions
    # At most: a walk that has converged to the last bit stops, and so does one that goes astray.
    assert sum(spent) == pytest.approx(total) or (wanted.may_stop and 0.5 * total <= sum(spent) < total)


def test_seconds_add_up():
    seconds = ProductSeconds(first=1.0, each=0.5, inverse=0.25, positions=10)
    assert seconds.total(Products(queries=3), 1, 10) == 3.0
    assert seconds.total(Products(queries=3), 5, 20) == 3 * (1.0 + 4 * 0.5) * 2
    assert seconds.total(Products(queries=1, single=7, directions=3), 1, 10) == 1.0 + 7.0 + (1.0 + 2 * 0.5)
    assert seconds.total(Products(queries=1, inverses=4), 2, 10) == 1.5 + 4 * 0.25 * 2


@pytest.mark.parametrize("settings", SOLVERS, ids=lambda settings: settings.name)
def test_forecasts_tell_the_time_of_solvers(settings, monkeypatch):
    task, dataset = zoo.make("linear", count=14)
    product = ProductSeconds(first=2.0, each=1.0, inverse=0.0, positions=14)
    monkeypatch.setattr(exact_time, "product_seconds", lambda *_: product)
    told = forecast_exact(task, dataset, 3, method=settings, runtime=QUIET)
    share = (getattr(settings, "examples", None) or 14) / 14
    wanted = product.total(products_of(settings, round(14 * share)), 3, 14) * share
    assert told.seconds is not None and wanted <= told.seconds.queries < wanted + 5
    assert told.seconds.may_stop == ("time: at most, about" in str(told)) == products_of(settings, 14).may_stop


@pytest.mark.parametrize(("settings", "queries", "most"), [(CG(), 1, 1), (CG(), 2, 2), (CG(), 9, 4), (Nystroem(rank=3), 1, 3)])
def test_no_more_vectors_are_timed_than_a_run_multiplies_at_once(settings, queries, most, monkeypatch):
    task, dataset = zoo.make("linear", count=14)
    seen, times = [], Curvature.times

    def counted(matrix, blocks, chosen=None):
        seen.append(len(blocks[0]))
        return times(matrix, blocks, chosen)

    monkeypatch.setattr(Curvature, "times", counted)
    forecast_exact(task, dataset, queries, method=settings, runtime=QUIET)
    assert {*seen} == {1, most}


def test_a_run_takes_its_checkpoints_times_as_long(tmp_path, monkeypatch):
    _, task, data, _ = train(tmp_path / "run", "adamw")
    one = exact_time.ExactSeconds(fit=1.0, queries=2.0, scan=3.0, timed=2)
    monkeypatch.setattr("whence.pipeline.forecast.exact.timed_exact", lambda *_: one)
    queries = len(queries_of(task, 2))
    along = forecast_exact(task, data, queries, method=whence.EKFAC(run=tmp_path / "run", checkpoints=2), runtime=QUIET)
    assert along.seconds == exact_time.ExactSeconds(fit=2.0, queries=4.0, scan=3.0, timed=2)
    tracin = forecast_exact(task, data, queries, method=TracIn(run=tmp_path / "run"), runtime=QUIET)
    assert tracin.seconds is not None and tracin.seconds.queries == 2.0 * tracin.footprint.passes > 2.0
    source = forecast_exact(task, data, queries, method=whence.settings.Source(run=tmp_path / "run"), runtime=QUIET)
    assert source.seconds is None and "time: not told of segments of a run" in str(source)
    with pytest.raises(BadInput, match="a forecast of unroll"):
        forecast_exact(task, data, queries, method="unroll", runtime=QUIET)
