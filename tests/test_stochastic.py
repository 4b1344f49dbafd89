"""LiSSA and ASTRA against what their iterations converge to, by dense matrices."""

import pytest
import torch

from tests.test_solve import assert_measured, assert_solves, dense_inverse_of, formed_problem, objective, problem, solved
from whence.curvature import Damped, flatten, scaled, split
from whence.errors import BadInput
from whence.solve import solve_astra, solve_lissa
from whence.solve.stochastic import Batches, safe_step, walk


def block_inverse_of(matrix, right):
    """What EK-FAC approximates: each unit's own part of the matrix, inverted."""
    sizes = [block[0].numel() for block in right]
    parts, start = [], 0
    for size in sizes:
        parts.append(torch.linalg.inv(matrix[start : start + size, start : start + size]))
        start += size
    inverse = torch.block_diag(*parts)
    return lambda blocks: split(flatten(blocks) @ inverse, right)


def energy(matrix, rows):
    return ((rows @ matrix) * rows).sum(1).sqrt()


def error(solution, matrix, right):
    """Distance to the dense solution in the matrix's own norm, relative, per query."""
    exact = solved(matrix, right)
    return energy(matrix, flatten(solution.blocks) - exact) / energy(matrix, exact)


@pytest.mark.parametrize("name", ["softmax", "linear", "tied", "conv2d"])
def test_lissa_on_all_examples_is_the_truncated_neumann_series(name):
    operator, right, damping, matrix = problem(name)
    solution = solve_lissa(operator, right, damping, batch_size=6, iterations=30)
    step = float(solution.notes[-1].split()[1].rstrip(";"))
    top = float(torch.linalg.eigvalsh(matrix)[-1])
    assert 1 - 1e-3 < step * top < 1.1, "one over the top eigenvalue, which is measured from below"
    values, vectors = torch.linalg.eigh(matrix)
    exact_step, _ = safe_step(Damped(operator, damping), None, Batches(6, 6, 0), 0)
    expected = (flatten(right) @ vectors * ((1 - (1 - exact_step * values) ** 30) / values)) @ vectors.T
    torch.testing.assert_close(flatten(solution.blocks), expected)
    assert_measured(solution, right, matrix)
    assert solution.notes[-1].endswith(f"{1 / (exact_step * 30):.3g}")
    assert solution.products.tolist() == [10 + 30 + 1] * 3
    torch.testing.assert_close(solution.history[0], torch.zeros(3).double())
    assert bool((solution.history.diff(dim=0) <= 1e-12).all())


def test_lissa_reaches_the_dense_solution_in_the_end():
    operator, right, damping, matrix = formed_problem("softmax", scale=1.0)
    solution = solve_lissa(operator, right, damping, batch_size=6, iterations=2000, tolerance=1e-9)
    assert_solves(solution, right, matrix)
    assert float(solution.products.max()) < 1000, "each query stops at its tolerance"


def test_repeats_of_lissa_average_out_the_batches():
    operator, right, damping, matrix = formed_problem("linear", count=24, scale=1.0)
    one = [solve_lissa(operator, right, damping, batch_size=4, iterations=60, seed=seed) for seed in range(4)]
    four = solve_lissa(operator, right, damping, batch_size=4, iterations=60, repeats=4)
    assert float(error(four, matrix, right).mean()) < 0.8 * sum(float(error(s, matrix, right).mean()) for s in one) / 4
    assert_measured(four, right, matrix)
    assert torch.equal(
        flatten(one[0].blocks), flatten(solve_lissa(operator, right, damping, batch_size=4, iterations=60).blocks)
    )


@pytest.mark.parametrize("name", ["linear", "tied", "conv2d"])
def test_astra_on_all_examples_gives_the_dense_solution(name):
    operator, right, damping, matrix = formed_problem(name, scale=0.5)
    preconditioner = block_inverse_of(matrix, right)
    solution = solve_astra(operator, right, damping, preconditioner, batch_size=6, iterations=3000, tolerance=1e-9)
    assert_solves(solution, right, matrix, rtol=1e-5)


def test_astra_on_fresh_batches_improves_on_its_start():
    operator, right, damping, matrix = formed_problem("tied", count=48)
    preconditioner = block_inverse_of(matrix, right)
    solution = solve_astra(operator, right, damping, preconditioner, batch_size=16, iterations=150)
    exact = solved(matrix, right)
    start = energy(matrix, flatten(preconditioner(right)) - exact) / energy(matrix, exact)
    found = error(solution, matrix, right)
    assert float(found.mean()) < 0.25 and float(found.mean()) < 0.3 * float(start.mean())
    assert_measured(solution, right, matrix)
    best, reached = objective(matrix, exact, right), solution.history[-50:].mean(0)
    assert bool(((reached - best).abs() < 0.2 * best.abs()).all()), "the objective on batches ends near that of the solution"
    assert float(solution.products.max()) == pytest.approx(30 * 16 / 48 + 150 * 16 / 48 + 1)


def test_astra_goes_through_a_network():
    operator, right, damping, matrix = problem("gpt2", count=3, scale=1.0)
    formed, *_ = formed_problem("gpt2", count=3, scale=1.0)
    preconditioner = block_inverse_of(matrix, right)
    options = {"batch_size": 2, "iterations": 4}
    found = solve_astra(operator, right, damping, preconditioner, **options)
    expected = solve_astra(formed, right, damping, preconditioner, **options)
    torch.testing.assert_close(flatten(found.blocks), flatten(expected.blocks))
    torch.testing.assert_close(found.history, expected.history)


def test_an_exact_preconditioner_leaves_nothing_to_do():
    operator, right, damping, matrix = problem("linear")
    solution = solve_astra(operator, right, damping, dense_inverse_of(matrix, right), batch_size=6, tolerance=1e-9)
    assert solution.products.tolist() == [10 + 1 + 1] * 3
    assert_solves(solution, right, matrix)


@pytest.mark.parametrize("batch_size", [2, 6])
def test_negative_curvature_makes_them_diverge_and_they_say_so(batch_size):
    operator, right, damping, _ = formed_problem("tied", "hessian", scale=0.05)
    solution = solve_lissa(operator, right, damping, batch_size=batch_size, iterations=5000)
    assert solution.notes[0].startswith("diverged: queries 0, 1, 2; use the Gauss-Newton matrix")
    assert bool(torch.isfinite(flatten(solution.blocks)).all()) and float(solution.residuals.min()) > 1
    assert float(solution.products.max()) < 5000


def test_a_solution_no_better_than_zero_says_so():
    operator, right, damping, matrix = problem("tied", count=48, scale=1e-3)
    solution = solve_astra(
        operator, right, damping, lambda blocks: [50.0 * block for block in blocks], batch_size=2, iterations=2
    )
    assert solution.notes[0].startswith("no better than zero: queries 0, 1, 2, relative residual up to")


def test_batches_are_fresh_and_seeded():
    drawn, again = Batches(100, 10, 3), Batches(100, 10, 3)
    first, second = drawn.draw(), drawn.draw()
    assert first != second and first == again.draw() and len(first) == 10 and drawn.cost == 0.1
    assert Batches(100, 100, 0).draw() is None


def test_settings_that_do_nothing_are_refused():
    operator, right, damping, _ = problem("linear")
    with pytest.raises(BadInput, match="batch_size=0; needed at least 1"):
        solve_lissa(operator, right, damping, batch_size=0)
    with pytest.raises(BadInput, match="iterations=0, repeats=1"):
        solve_lissa(operator, right, damping, iterations=0)
    with pytest.raises(BadInput, match="iterations=0; needed at least 1"):
        solve_astra(operator, right, damping, lambda blocks: blocks, iterations=0)


def test_a_zero_matrix_has_no_step():
    class Zero:
        def __len__(self):
            return 3

        def zeros(self, count):
            return [torch.zeros(count, 2, 2)]

        def times(self, blocks, chosen=None):
            return [torch.zeros_like(block) for block in blocks]

    with pytest.raises(BadInput, match="a matrix whose top eigenvalue is 0"):
        solve_lissa(Zero(), [torch.ones(1, 2, 2)], [0.0])


def test_a_query_that_turns_not_finite_stays_where_it_was():
    operator, right, damping, _ = formed_problem("linear")
    spoil = torch.tensor([1.0, float("nan"), 1.0]).double()
    path = walk(
        Damped(operator, damping), right, operator.zeros(3), lambda blocks: scaled(blocks, spoil[: len(blocks[0])]),
        Batches(6, 6, 0), step=0.1, iterations=1, tolerance=1e-3,
    )  # fmt: skip
    assert path.diverged == [1]
    assert bool((flatten(path.last)[1] == 0).all()) and bool((flatten(path.last)[0] != 0).any())
