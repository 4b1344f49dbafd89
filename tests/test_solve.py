"""Solvers against the inverse of the formed matrix."""

import functools
from dataclasses import replace

import pytest
import torch

import whence
from tests.reference.gradients import dense_gradients, unit_gradients
from tests.zoo import make
from whence.capture import plan_units
from whence.curvature import Curvature, dense, flatten, scaled, split
from whence.errors import BadInput
from whence.solve import solve_cg

MODELS = ("softmax", "linear", "tied", "conv2d", "gpt2")


@functools.cache
def problem(name, kind="gauss_newton", count=6, queries=3, scale=0.1):
    """A curvature matrix, gradients of queries as right sides, damping that differs from unit to unit, and the damped dense matrix."""
    if name == "softmax":
        torch.manual_seed(0)
        task = whence.Classification(torch.nn.Linear(4, 3).double())
        examples = task.prepare([(torch.randn(4, dtype=torch.float64), index % 3) for index in range(count)])
    else:
        task, examples = make(name, count)
    if name == "gpt2":  # fewer parameters, the tied table among them, for speed
        task = whence.CausalLM(task.model, tokenizer=None, track=["*wte*", "*h.1.mlp*", "*ln_f*"])
    plan = plan_units(task)
    operator = Curvature(task, plan, examples.examples, kind)
    right = unit_gradients(task, plan, dense_gradients(task, examples.examples[:queries], "measurement"))
    matrix = dense(operator)
    mean = float(matrix.diagonal().mean())
    damping = [scale * mean * (1 + index % 3) for index in range(len(plan.units))]
    diagonal = flatten([torch.full_like(block[:1], value) for block, value in zip(right, damping, strict=True)])[0]
    return operator, right, damping, matrix + torch.diag(diagonal)


class Formed:
    """The same mean of per-example matrices, each formed: thousands of iterations in a moment."""

    def __init__(self, operator):
        self.like = operator.zeros(1)
        singles = [replace(operator, examples=[example]) for example in operator.examples]
        self.matrices = torch.stack([dense(single) for single in singles])

    def __len__(self):
        return len(self.matrices)

    def zeros(self, count):
        return [block.new_zeros(count, *block.shape[1:]) for block in self.like]

    def times(self, blocks, chosen=None):
        return split(flatten(blocks) @ self.matrices[slice(None) if chosen is None else chosen].mean(0), self.like)


@functools.cache
def formed_problem(*args, **options):
    operator, *rest = problem(*args, **options)
    return Formed(operator), *rest


def solved(matrix, right):
    return torch.linalg.solve(matrix, flatten(right).T).T


def assert_solves(solution, right, matrix, rtol=1e-6):
    """Equal to the dense solution, and the residuals are those of the dense matrix."""
    expected = solved(matrix, right)
    found = flatten(solution.blocks)
    assert float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max()) < rtol
    assert_measured(solution, right, matrix)


def assert_measured(solution, right, matrix):
    rows = flatten(right)
    residuals = (rows - flatten(solution.blocks) @ matrix).norm(dim=1) / rows.norm(dim=1)
    torch.testing.assert_close(solution.residuals, residuals, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(solution.objectives, objective(matrix, flatten(solution.blocks), right))


def objective(matrix, rows, right):
    return 0.5 * ((rows @ matrix) * rows).sum(1) - (rows * flatten(right)).sum(1)


def diagonal_of(matrix, right):
    return lambda blocks: split(flatten(blocks) / matrix.diagonal(), right)


def dense_inverse_of(matrix, right):
    return lambda blocks: split(torch.linalg.solve(matrix, flatten(blocks).T).T, right)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("preconditioned", [False, True])
def test_conjugate_gradients_give_the_dense_solution(name, preconditioned):
    operator, right, damping, matrix = problem(name, scale=1.0 if name == "gpt2" else 0.1)
    preconditioner = diagonal_of(matrix, right) if preconditioned else None
    solution = solve_cg(operator, right, damping, preconditioner=preconditioner, tolerance=1e-10, max_iterations=400)
    assert solution.notes == ()
    assert_solves(solution, right, matrix)
    torch.testing.assert_close(solution.history[-1], objective(matrix, flatten(solution.blocks), right))
    assert bool((solution.history.diff(dim=0) <= 1e-12).all()), "the objective falls"


def test_a_better_preconditioner_needs_fewer_products():
    operator, right, damping, matrix = problem("tied")
    rough = torch.linalg.inv(matrix + 0.01 * torch.diag(matrix.diagonal()))
    spent = []
    for preconditioner in (None, diagonal_of(matrix, right), lambda blocks: split(flatten(blocks) @ rough, right)):
        solution = solve_cg(operator, right, damping, preconditioner=preconditioner, tolerance=1e-6, max_iterations=400)
        spent.append(float(solution.products.sum()))
    assert spent[2] < 0.5 * min(spent[:2])
    exact = solve_cg(operator, right, damping, preconditioner=dense_inverse_of(matrix, right), tolerance=1e-6)
    assert exact.products.tolist() == [2.0, 2.0, 2.0], "one step, and one product to measure"


def test_queries_stop_on_their_own():
    operator, right, damping, matrix = problem("linear")
    values, vectors = torch.linalg.eigh(matrix)
    rows = torch.stack([vectors[:, -1], torch.zeros(len(values)).double(), flatten(right)[0]])
    solution = solve_cg(operator, split(rows, right), damping, tolerance=1e-9, max_iterations=100)
    assert_solves_rows = flatten(solution.blocks)
    torch.testing.assert_close(assert_solves_rows[0], vectors[:, -1] / values[-1])
    assert solution.products[:2].tolist() == [2.0, 1.0] and solution.products[2] > 3
    assert float(assert_solves_rows[1].abs().max()) == 0 and float(solution.residuals[1]) == 0
    together = solve_cg(operator, right, damping, tolerance=1e-9, max_iterations=100)
    torch.testing.assert_close(assert_solves_rows[2], flatten(together.blocks)[0], rtol=1e-7, atol=1e-10)


def test_a_query_that_does_not_converge_says_so():
    operator, right, damping, matrix = problem("gpt2", scale=1e-4)
    solution = solve_cg(operator, right, damping, tolerance=1e-10, max_iterations=3)
    assert solution.notes[0].startswith("not converged after 3 iterations: queries 0, 1, 2, relative residual up to")
    assert solution.history.shape == (3, 3) and solution.products.tolist() == [4.0] * 3
    assert_measured(solution, right, matrix)
    assert str(solution).startswith("relative residual at most")


def test_negative_curvature_is_named():
    operator, right, damping, matrix = problem("tied", "hessian", scale=0.0)
    assert float(torch.linalg.eigvalsh(matrix)[0]) < 0
    solution = solve_cg(operator, right, damping, tolerance=1e-10, max_iterations=200)
    assert solution.notes[0].startswith("negative curvature: queries 0, 1, 2 stopped at it")
    assert bool(torch.isfinite(flatten(solution.blocks)).all())
    assert_measured(solution, right, matrix)


def test_a_hessian_with_enough_damping_is_solved():
    operator, right, damping, matrix = problem("tied", "hessian", scale=50.0)
    assert float(torch.linalg.eigvalsh(matrix)[0]) > 0
    assert_solves(solve_cg(operator, right, damping, tolerance=1e-10), right, matrix)


def test_a_preconditioner_that_is_not_positive_is_refused():
    operator, right, damping, _ = problem("linear")
    with pytest.raises(BadInput, match=r"a preconditioner with -.* for r\^T P r"):
        solve_cg(operator, right, damping, preconditioner=lambda blocks: scaled(blocks, -1.0))


def test_right_sides_have_to_fit():
    operator, right, damping, _ = problem("linear")
    with pytest.raises(BadInput, match=r"right sides of 1 blocks.*needed 2, one \(Q, O, I\) per unit"):
        solve_cg(operator, right[:1], damping)
    broken = [right[0].clone().fill_(float("nan")), *right[1:]]
    with pytest.raises(BadInput, match="NaN or infinite right sides"):
        solve_cg(operator, broken, damping)
