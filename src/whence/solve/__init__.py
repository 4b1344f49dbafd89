"""Solving with a curvature matrix: from queries to preconditioned queries, iteratively or by low rank."""

from whence.solve.astra import solve_astra
from whence.solve.cg import solve_cg
from whence.solve.lissa import solve_lissa
from whence.solve.solution import Solution

__all__ = ["Solution", "solve_astra", "solve_cg", "solve_lissa"]
