"""What a case asks of whence, and how far the answer is from what is expected.

Axes: Q queries, N training examples, D numbers of the attributed parameters.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import whence
from tests.fuzz.oracle import Expected, joined, label_gradients, preconditioned_scores
from tests.fuzz.program import Program, make_program
from tests.reference.ekfac import corrected_values, dense_inverse
from tests.reference.gradients import unit_gradients
from tests.settings import QUIET, keywords_of
from whence.capture import Plan, plan_units
from whence.curvature import KroneckerCurvature
from whence.data import Dataset

__all__ = ["STORES", "Asked", "ask", "wrong"]

_TOLERANCE = {"float64": 1e-8, "float32": 2e-4, "bfloat16": 3e-2}
# Norms of Hugging Face compute in float32 whatever the model.
_LANGUAGE_TOLERANCE = 2e-5
_DAMPING = 0.1
_RANK = 512
"""More than any side of a layer, so that nothing is projected."""
STORES = {"grad-dot": {}, "grad-cos": {}, "logra": {}, "lorif": {"factor_rank": _RANK, "curvature_rank": 4 * _RANK}}
"""Methods of stores, set up so that nothing is left out."""


@dataclass(frozen=True)
class Asked:
    """A task with its data, and what whence says.

    Args:
        program: The program.
        task: The task.
        train: Its training data.
        queries: Its queries.
        scores: Shape (Q, N).
        parts: By unit, for the method "units".
    """

    program: Program
    task: whence.tasks.AbstractTask
    train: Dataset
    queries: Dataset
    scores: Tensor = field(default_factory=lambda: torch.zeros(0))
    parts: dict[str, Tensor] = field(default_factory=dict)


def ask(asked: Asked) -> Asked:
    """The same with the scores that whence gives."""
    case = asked.program.case
    options: dict[str, Any] = {"batch_positions": case.positions} if case.positions else {}
    if case.method in STORES:
        return _store(asked, options)
    method = case.method
    if method == "units":
        options, method = {**options, "per_unit": True}, "grad-dot-exact"
    elif method == "cosine":
        options, method = {**options, "normalize": "cosine"}, "grad-dot-exact"
    elif method != "grad-dot-exact":
        options["absolute_damping"] = _DAMPING
    if method == "self-influence":
        table = whence.self_influence(asked.task, asked.train, **keywords_of(**options))
        return Asked(asked.program, asked.task, asked.train, asked.queries, table.scores.double())
    if method in ("pcg", "cg"):
        options |= {"iterations": 1000, "tolerance": 1e-10 if case.dtype == "float64" else 1e-5}
    table = whence.attribute(asked.task, asked.train, asked.queries, **keywords_of(method=method, **options))
    return Asked(asked.program, asked.task, asked.train, asked.queries, table.scores.double(), dict(table.parts))


def wrong(asked: Asked, known: Expected) -> str:
    """What is wrong with the answer; empty if nothing is.

    Args:
        asked: The answer.
        known: Gradients one example at a time.
    """
    names = sorted(asked.task.tracked)
    method = asked.program.case.method
    shape = (1 if method == "self-influence" else len(asked.queries), len(asked.train))
    if asked.scores.shape != shape:
        return f"scores of shape {tuple(asked.scores.shape)} instead of {shape}"
    if not bool(torch.isfinite(asked.scores).all()):
        return f"{int((~torch.isfinite(asked.scores)).sum())} scores that are not finite" if known.is_finite else ""
    if not known.is_finite:
        return "finite scores where plain autograd has none"
    checks: dict[str, Callable[[Asked, Expected, list[str]], str]] = {
        "grad-dot-exact": _products,
        "grad-dot": _products,
        "units": _units,
        "cosine": _cosines,
        "grad-cos": _cosines,
        "logra": _fisher,
        "lorif": _fisher,
        "ekfac": _kronecker,
        "self-influence": _kronecker,
        "kfac": _kronecker,
        "pcg": _gauss_newton,
        "cg": _gauss_newton,
    }
    return checks[method](asked, known, names)


def _store(asked: Asked, options: dict[str, Any]) -> Asked:
    method = asked.program.case.method
    options |= {"method": method, "rank": _RANK, "dtype": "float64", **STORES[method]}
    with tempfile.TemporaryDirectory() as folder:
        store = whence.build(asked.task, asked.train, f"{folder}/store", config=whence.BuildConfig(**options), runtime=QUIET)
        damping = whence.Damping(relative=_DAMPING if method in ("logra", "lorif") else None)
        scores = whence.score_table(store, asked.task, asked.queries, damping=damping, runtime=QUIET).scores
    return Asked(asked.program, asked.task, asked.train, asked.queries, scores.double())


def _products(asked: Asked, known: Expected, names: list[str]) -> str:
    rows_ND, asked_QD = known.rows(names)
    return _difference(asked, known, names, asked.scores, -asked_QD @ rows_ND.T / len(rows_ND), _scale(rows_ND, asked_QD))


def _units(asked: Asked, known: Expected, names: list[str]) -> str:
    for unit in plan_units(asked.task).units:
        rows_ND, asked_QD = known.rows(unit.parameters)
        scale_QN = _scale(*known.rows(names))
        if text := _difference(
            asked, known, names, asked.parts[unit.name].double(), -asked_QD @ rows_ND.T / len(rows_ND), scale_QN
        ):
            return f"part of a unit: {text}"
    return _products(asked, known, names)


def _cosines(asked: Asked, known: Expected, names: list[str]) -> str:
    rows_ND, asked_QD = known.rows(names)
    norms_QN = _scale(rows_ND, asked_QD) * len(rows_ND)
    is_clear_QN = norms_QN > 1e-9 * norms_QN.max()
    wanted_QN = -asked_QD @ rows_ND.T / norms_QN.clamp_min(1e-300)
    wanted_QN, found_QN = (torch.where(is_clear_QN, values, 0.0) for values in (wanted_QN, asked.scores))
    return _difference(asked, known, names, found_QN, wanted_QN, torch.ones_like(wanted_QN))


def _fisher(asked: Asked, known: Expected, names: list[str]) -> str:
    """A share of each unit's mean eigenvalue is added, of no less than what rounding makes of the largest."""
    rows = [known.rows(unit.parameters) for unit in plan_units(asked.task).units]
    precision = torch.finfo(torch.float64 if asked.program.case.dtype == "float64" else torch.float32).eps
    least = max(float(rows_ND.square().mean()) for rows_ND, _ in rows) * (30 * precision) ** 2
    wanted_QN, scale_QN, noise_QN = (torch.zeros_like(asked.scores) for _ in range(3))
    for rows_ND, asked_QD in rows:
        damping = max(_DAMPING * float(rows_ND.square().mean()), least, 1e-30)
        wanted_QN += preconditioned_scores(rows_ND, asked_QD, rows_ND.T @ rows_ND / len(rows_ND), damping)
        scale_QN += _scale(rows_ND, asked_QD) / damping
        # A gradient that is zero but for rounding is other numbers here and there.
        noise_QN += _scale(rows_ND, asked_QD) / damping if damping == least else 0.0
    error_QN = asked.scores - wanted_QN
    near_QN = wanted_QN + error_QN.sign() * (error_QN.abs() - 2 * noise_QN).clamp_min(0)
    return _difference(asked, known, names, near_QN, wanted_QN, scale_QN)


def _gauss_newton(asked: Asked, known: Expected, names: list[str]) -> str:
    labels = label_gradients(
        asked.program, make_program(asked.program.case).model, asked.program.plain(asked.program.train, asked.train)
    )
    rows_LD = torch.cat([joined(part, names) for part in labels])
    rows_ND, asked_QD = known.rows(names)
    wanted_QN = preconditioned_scores(rows_ND, asked_QD, rows_LD.T @ rows_LD / len(rows_ND), _DAMPING)
    return _difference(asked, known, names, asked.scores, wanted_QN, _scale(rows_ND, asked_QD) / _DAMPING)


def _kronecker(asked: Asked, known: Expected, names: list[str]) -> str:
    """Bases that are orthonormal, eigenvalues that are the gradients' mean squares in them, and scores of the inverse."""
    plan, case = plan_units(asked.task), asked.program.case
    with tempfile.TemporaryDirectory() as folder:
        runtime = whence.Runtime(batch_positions=case.positions or None, quiet=True)
        curvature = whence.pipeline.fit_curvature(asked.task, asked.train, f"{folder}/factors", runtime=runtime)
        curvature = curvature.uncorrected() if case.method == "kfac" else curvature
    model = make_program(case).model
    gradients = label_gradients(asked.program, model, asked.program.plain(asked.program.train, asked.train))
    if text := _eigenvalues(asked, plan, curvature, gradients, known.noise(sorted(asked.task.tracked))):
        return text
    itself = case.method == "self-influence"
    wanted_QN = torch.zeros_like(asked.scores)
    rows, queries = (unit_gradients(asked.task, plan, part) for part in (known.train, known.queries))
    for block, rows_NOI, asked_QOI in zip(curvature.blocks, rows, queries, strict=True):
        rows_ND, asked_QD = rows_NOI.flatten(1), asked_QOI.flatten(1)
        solved_ND = rows_ND @ dense_inverse(block, _DAMPING) / len(rows_ND)
        wanted_QN += (solved_ND * rows_ND).sum(1)[None] if itself else -asked_QD @ solved_ND.T
    rows_ND, asked_QD = known.rows(names)
    scale_QN = rows_ND.square().sum(1)[None] / len(rows_ND) if itself else _scale(rows_ND, asked_QD)
    return _difference(asked, known, names, asked.scores, wanted_QN, scale_QN / _DAMPING)


def _eigenvalues(
    asked: Asked, plan: Plan, curvature: KroneckerCurvature, gradients: list[dict[str, Tensor]], noise: float
) -> str:
    case = asked.program.case
    tolerance = {"float64": 1e-8, "float32": 1e-3, "bfloat16": 0.3}[case.dtype] + 20 * noise
    by_example = [unit_gradients(asked.task, plan, part) for part in gradients]
    # A unit whose gradient is zero but for rounding has other numbers here and there.
    eps = torch.finfo(torch.float64 if case.dtype == "float64" else torch.float32).eps
    rounded = (100 * eps) ** 2 * max(float(block.values_OI.max()) for block in curvature.blocks)
    for index, block in enumerate(curvature.blocks):
        for basis in (block.outputs_OO, block.inputs_II):
            if basis is not None and (basis.double().T @ basis.double() - torch.eye(len(basis))).abs().max() > 1e-4:
                return f"a basis that is not orthonormal: {block.unit.name}"
        if case.method == "kfac":
            continue
        bases = (None if basis is None else basis.double() for basis in (block.outputs_OO, block.inputs_II))
        wanted_OI = corrected_values([part[index] for part in by_example], *bases)
        if (block.values_OI - wanted_OI).abs().max() > tolerance * max(float(wanted_OI.max()), 1e-12) + rounded:
            return "eigenvalues that are not the mean squares of the gradients"
    return ""


def _scale(rows_ND: Tensor, asked_QD: Tensor) -> Tensor:
    return asked_QD.norm(dim=1)[:, None] * rows_ND.norm(dim=1)[None] / len(rows_ND)


def _difference(asked: Asked, known: Expected, names: list[str], found: Tensor, wanted: Tensor, scale: Tensor) -> str:
    """By how much scores differ, as a share of the norms; empty if by no more than rounding explains."""
    case = asked.program.case
    base = _TOLERANCE[case.dtype]
    tolerance = (max(base, _LANGUAGE_TOLERANCE) if case.kind == "language" else base) + 10 * known.noise(names)
    if tolerance > 0.5:
        return ""
    error = (found - wanted).abs() / (scale + 1e-3 * scale.max() + 1e-30)
    if float(error.max()) <= tolerance:
        return ""
    share = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
    return f"wrong scores: {share:.3g} of the largest off (tolerance {tolerance:.1g})"
