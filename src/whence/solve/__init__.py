"""Solving with a curvature matrix: from queries to preconditioned queries, iteratively or by low rank."""

from whence.solve.cg import solve_cg
from whence.solve.solution import Solution

__all__ = ["Solution", "solve_cg"]
