"""Solving with a curvature matrix: from queries to preconditioned queries, iteratively or by low rank."""

from whence.solve.arnoldi import fit_arnoldi, solve_arnoldi
from whence.solve.astra import solve_astra
from whence.solve.cg import solve_cg
from whence.solve.datainf import solve_datainf
from whence.solve.lissa import solve_lissa
from whence.solve.nystroem import fit_nystroem, solve_nystroem
from whence.solve.solution import Solution
from whence.solve.stochastic import PROBE_PRODUCTS, PROBES

__all__ = [
    "PROBE_PRODUCTS",
    "PROBES",
    "Solution",
    "fit_arnoldi",
    "fit_nystroem",
    "solve_arnoldi",
    "solve_astra",
    "solve_cg",
    "solve_datainf",
    "solve_lissa",
    "solve_nystroem",
]
