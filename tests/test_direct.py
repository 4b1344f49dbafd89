"""Nystroem, Arnoldi and DataInf against their formulas with every matrix formed."""

import pytest
import torch

import whence
from tests.reference import solvers as reference
from tests.reference.gradients import dense_gradients, unit_gradients
from tests.test_solve import assert_measured, assert_solves, formed_problem, problem
from whence.capture import plan_units
from whence.curvature import Curvature, flatten, random_like
from whence.errors import BadInput
from whence.solve import fit_arnoldi, fit_nystroem, solve_arnoldi, solve_cg, solve_datainf, solve_nystroem


def undamped(matrix, right, damping):
    return matrix - torch.diag(flatten([torch.full_like(b[:1], value) for b, value in zip(right, damping, strict=True)])[0])


def own_blocks(matrix, right):
    """The matrix with nothing between units."""
    kept, start = torch.zeros_like(matrix), 0
    for block in right:
        stop = start + block[0].numel()
        kept[start:stop, start:stop] = matrix[start:stop, start:stop]
        start = stop
    return kept


@pytest.mark.parametrize("name", ["softmax", "linear", "tied", "conv2d"])
def test_nystroem_and_arnoldi_of_full_rank_are_exact(name):
    operator, right, damping, matrix = formed_problem(name)
    solution = solve_nystroem(operator, right, damping, rank=len(matrix))
    assert_solves(solution, right, matrix)
    assert solution.products.tolist() == [len(matrix) + 1.0] * 3
    assert_solves(solve_arnoldi(operator, right, damping, rank=len(matrix), iterations=len(matrix)), right, matrix)


def test_nystroem_per_unit_of_full_rank_inverts_each_unit_alone():
    operator, right, damping, matrix = formed_problem("tied")
    solution = solve_nystroem(operator, right, damping, rank=1000, per_unit=True)
    expected = torch.linalg.solve(own_blocks(matrix, right), flatten(right).T).T
    torch.testing.assert_close(flatten(solution.blocks), expected, rtol=1e-6, atol=1e-8)
    assert_measured(solution, right, matrix)
    assert solution.products.tolist() == [len(matrix) + 1.0] * 3


def test_nystroem_of_low_rank_is_its_formula():
    operator, right, _, matrix = formed_problem("tied")
    damping = [0.01] * len(right)
    matrix = undamped(matrix, right, formed_problem("tied")[2])
    generator = torch.Generator().manual_seed(4)
    vectors = torch.randn(7, len(matrix), generator=generator, dtype=torch.float64).T
    solution = solve_nystroem(operator, right, damping, rank=7, seed=4)
    expected = flatten(right) @ reference.nystroem_inverse(matrix, 0.01, vectors)
    torch.testing.assert_close(flatten(solution.blocks), expected, rtol=1e-6, atol=1e-8)


def test_nystroem_makes_conjugate_gradients_faster():
    operator, right, damping, matrix = formed_problem("tied", count=24, scale=0.01)
    plain = solve_cg(operator, right, damping, tolerance=1e-8, max_iterations=500)
    helped = solve_cg(
        operator, right, damping, preconditioner=fit_nystroem(operator, damping, rank=20), tolerance=1e-8, max_iterations=500
    )
    assert_solves(helped, right, matrix, rtol=1e-5)
    assert float(helped.products.mean()) < 0.7 * float(plain.products.mean())


def test_arnoldi_keeps_the_leading_eigenvectors_only():
    operator, right, damping, matrix = formed_problem("tied")
    matrix = undamped(matrix, right, damping)
    solution = solve_arnoldi(operator, right, [0.02] * len(right), rank=5, iterations=40)
    expected = flatten(right) @ reference.leading_inverse(matrix, 0.02, 5)
    torch.testing.assert_close(flatten(solution.blocks), expected, rtol=1e-6, atol=1e-8)
    assert solution.notes == () and solution.history.shape == (0, 3)
    assert_measured(solution, right, matrix + 0.02 * torch.eye(len(matrix)))


def test_arnoldi_names_negative_curvature():
    operator, right, damping, matrix = formed_problem("tied", "hessian", scale=0.001)
    solution = solve_arnoldi(operator, right, damping, rank=len(matrix), iterations=len(matrix))
    below = int((torch.linalg.eigvalsh(matrix) < 0).sum())
    assert solution.notes == (f"negative curvature: {below} of {len(matrix)} directions, beyond the damping",)
    assert_solves(solution, right, matrix, rtol=1e-5)


@pytest.mark.parametrize("name", ["softmax", "tied", "gpt2", "conv2d_groups", "two_inputs"])
def test_datainf_is_its_formula(name):
    operator, right, damping, matrix = problem(name, "empirical_fisher", count=4, queries=2)
    solution = solve_datainf(operator, right, damping)
    gradients = unit_gradients(operator.task, operator.plan, dense_gradients(operator.task, operator.examples))
    for found, rows, side, value in zip(solution.blocks, gradients, right, damping, strict=True):
        expected = reference.datainf(rows.flatten(1), side.flatten(1), value)
        torch.testing.assert_close(found.flatten(1), expected, rtol=1e-7, atol=1e-9)
    assert_measured(solution, right, matrix)


def test_datainf_of_one_example_and_unit_is_the_inverse():
    operator, right, damping, matrix = problem("softmax", "empirical_fisher", count=1, queries=1)
    assert_solves(solve_datainf(operator, right, damping), right, matrix)


def test_they_go_through_a_network():
    operator, right, damping, matrix = problem("gpt2", count=3, scale=1.0)
    formed, *_ = formed_problem("gpt2", count=3, scale=1.0)
    for solve, options in ((solve_nystroem, {"rank": 10}), (solve_arnoldi, {"rank": 3, "iterations": 8})):
        found, expected = (solve(product, right, damping, **options) for product in (operator, formed))
        torch.testing.assert_close(flatten(found.blocks), flatten(expected.blocks), rtol=1e-6, atol=1e-8)
        assert_measured(found, right, matrix)


def test_what_they_cannot_do_is_refused():
    operator, right, damping, _ = formed_problem("tied")
    nothing = [0.0] * len(damping)
    with pytest.raises(BadInput, match="rank=0; needed at least 1"):
        solve_nystroem(operator, right, damping, rank=0)
    with pytest.raises(BadInput, match="rank=5, iterations=4; needed at least one direction"):
        fit_arnoldi(operator, damping, rank=5, iterations=4)
    with pytest.raises(BadInput, match="a damping of 0; needed a positive one"):
        solve_nystroem(operator, right, nothing)
    hessian, *_ = formed_problem("tied", "hessian", scale=0.001)
    with pytest.raises(BadInput, match="a matrix with negative curvature"):
        fit_nystroem(hessian, damping, rank=60)
    curvature, right, damping, _ = problem("tied")
    with pytest.raises(BadInput, match="the gauss_newton matrix with a smallest damping of .*; needed the empirical Fisher"):
        solve_datainf(curvature, right, damping)


def test_arnoldi_goes_on_where_a_krylov_space_ends():
    class Zero:
        def __len__(self):
            return 1

        def zeros(self, count):
            return [torch.zeros(count, 2, 3, dtype=torch.float64)]

        def times(self, blocks, chosen=None):
            return [torch.zeros_like(block) for block in blocks]

    right = [torch.arange(6.0, dtype=torch.float64).view(1, 2, 3)]
    solution = solve_arnoldi(Zero(), right, [0.5], rank=6, iterations=6)
    torch.testing.assert_close(solution.blocks[0], 2 * right[0])


@pytest.mark.parametrize("solve", [solve_cg, solve_nystroem])
def test_single_precision_is_kept(solve):
    torch.manual_seed(0)
    task = whence.Classification(torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)))
    examples = task.prepare([(torch.randn(4), index % 3) for index in range(12)])
    operator = Curvature(task, plan_units(task), examples.examples)
    right = random_like(operator.zeros(1), 2, torch.Generator().manual_seed(1))
    solution = solve(operator, right, [0.05, 0.02])
    assert {block.dtype for block in solution.blocks} == {torch.float32} and float(solution.residuals.max()) < 1e-3


def test_a_solution_no_better_than_zero_says_so():
    operator, right, _, _ = formed_problem("tied")
    solution = solve_nystroem(operator, right, [1e-6] * len(right), rank=2)
    assert solution.notes[0].startswith("no better than zero: queries 0, 1, 2, relative residual up to")
    assert bool((solution.objectives > 0).all())
