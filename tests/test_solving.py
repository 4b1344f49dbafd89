"""Attribution with a solver against the Gauss-Newton matrix formed row by row."""

import pytest
import torch
from scipy.stats import spearmanr

import whence
from tests import zoo
from tests.reference.curvature import empirical_fisher, flat_rows, gauss_newton
from tests.reference.gradients import dense_gradients, unit_gradients
from tests.settings import QUIET, keywords_of, settings_of
from whence.capture import plan_units
from whence.curvature import fit_ekfac
from whence.data import Dataset
from whence.errors import BadInput
from whence.settings import FitConfig

ABSOLUTE = 0.3


def case(name, queries=3, count=14):
    task, dataset = zoo.make(name, count=count)
    return task, plan_units(task), Dataset(dataset.examples[queries:]), Dataset(dataset.examples[:queries])


def formed(task, plan, train, queries, matrix, damping_D):
    rows_ND, rows_QD = (
        flat_rows(unit_gradients(task, plan, dense_gradients(task, data.examples, objective)))
        for data, objective in ((train, "loss"), (queries, "measurement"))
    )
    return -rows_QD @ torch.linalg.solve(matrix + torch.diag(damping_D), rows_ND.T) / len(train)


def constant(plan, value):
    return torch.full((sum(unit.outputs * unit.inputs for unit in plan.units),), value, dtype=torch.float64)


@pytest.mark.parametrize("method", ["pcg", "cg"])
@pytest.mark.parametrize("name", ["linear", "applied_twice", "tied", "conv2d"])
def test_converged_solvers_equal_the_dense_solve(name, method):
    task, plan, train, queries = case(name)
    solving = {"iterations": 400, "tolerance": 1e-10}
    table = whence.attribute(task, train, queries, **keywords_of(method=method, absolute_damping=ABSOLUTE, **solving))
    wanted = formed(task, plan, train, queries, gauss_newton(task, plan, train.examples), constant(plan, ABSOLUTE))
    torch.testing.assert_close(table.scores, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))
    assert table.method == f"{method}, damping 0.3" and "relative residual" in table.notes[-1]


def test_the_other_solvers_come_near():
    task, plan, train, queries = case("linear")
    wanted = formed(task, plan, train, queries, gauss_newton(task, plan, train.examples), constant(plan, ABSOLUTE))
    size = len(constant(plan, 0.0))
    whole = {"batch_examples": len(train)}
    settings = {
        "astra": (dict(iterations=200, tolerance=1e-8, **whole), 1e-3),
        "lissa": (dict(iterations=3000, tolerance=1e-8, **whole), 1e-2),
        "nystroem": ({"rank": size}, 1e-6),
        # Drops directions without curvature, so that only the ranking is held against the whole solution.
        "arnoldi": ({"rank": size, "iterations": size}, None),
    }
    for method, (solving, error) in settings.items():
        table = whence.attribute(task, train, queries, **keywords_of(method=method, absolute_damping=ABSOLUTE, **solving))
        assert error is None or (table.scores - wanted).norm() < error * wanted.norm(), method
        assert spearmanr(table.scores.flatten(), wanted.flatten()).statistic > 0.9, method


def test_datainf_is_damped_by_what_was_asked():
    task, plan, train, queries = case("linear")
    strong = 1e6
    table = whence.attribute(
        task, train, queries, method=whence.settings.DataInf(damping=whence.Damping(absolute=strong)), runtime=QUIET
    )
    fisher = empirical_fisher(task, plan, train.examples)
    wanted = formed(task, plan, train, queries, fisher, constant(plan, strong))
    torch.testing.assert_close(table.scores, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_relative_damping_is_a_share_of_each_units_mean_eigenvalue():
    task, plan, train, queries = case("linear")
    solving = {"iterations": 400, "tolerance": 1e-10}
    table = whence.attribute(task, train, queries, **keywords_of(method="pcg", relative_damping=0.5, **solving))
    blocks = fit_ekfac(task, plan, train, FitConfig(), max_positions=4096, quiet=True).blocks
    parts = [
        torch.full((unit.outputs * unit.inputs,), 0.5 * block.mean_eigenvalue)
        for unit, block in zip(plan.units, blocks, strict=True)
    ]
    wanted = formed(task, plan, train, queries, gauss_newton(task, plan, train.examples), torch.cat(parts).double())
    torch.testing.assert_close(table.scores, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_the_matrix_may_be_the_mean_over_some_examples():
    task, plan, train, queries = case("linear")
    solving = {"iterations": 400, "tolerance": 1e-10, "examples": 4}
    table = whence.attribute(task, train, queries, **keywords_of(method="pcg", absolute_damping=ABSOLUTE, **solving))
    chosen = [train.examples[place * len(train) // 4] for place in range(4)]
    wanted = formed(task, plan, train, queries, gauss_newton(task, plan, chosen), constant(plan, ABSOLUTE))
    torch.testing.assert_close(table.scores, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))


def test_one_that_does_not_converge_says_so(capsys):
    task, _, train, queries = case("linear")
    solving = {"iterations": 1, "tolerance": 1e-8}
    table = whence.attribute(task, train, queries, **keywords_of(method="cg", absolute_damping=1e-4, quiet=False, **solving))
    assert "not converged after 1 iterations" in table.notes[-1] and "not converged" in capsys.readouterr().err


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(BadInput, match="iterations=0"):
        whence.settings.PCG(iterations=0)
    with pytest.raises(BadInput, match="examples=0"):
        whence.settings.PCG(examples=0)
    task, _, train, queries = case("linear")
    with pytest.raises(BadInput, match="found normalize for pcg; needed what it takes"):
        whence.attribute(task, train, queries, method=settings_of(method="pcg", normalize="relatif"), runtime=QUIET)


def test_a_solvers_settings_need_a_solver_and_a_sweep_says_how_it_went():
    task, _, train, queries = case("linear")
    with pytest.raises(BadInput, match="found iterations for kfac; needed what it takes"):
        whence.attribute(task, train, queries, method=settings_of(method="kfac", iterations=5), runtime=QUIET)
    found = whence.pipeline.damping_sweep(task, train, queries, [0.1, 1.0], method="pcg", runtime=QUIET)
    assert all("pcg: relative residual" in table.notes[-1] for table in found.tables.values())
    assert whence.attribute(task, train, queries, runtime=QUIET).seconds > 0
    for groups in ({}, {"a": {}}, {"a": ["0"]}):
        with pytest.raises(BadInput, match="weights by id of a query"):
            whence.attribute(task, train, queries, groups=groups, runtime=QUIET)
