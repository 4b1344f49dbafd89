"""What is expected: scores by the formulas, from gradients of plain autograd, one example at a time, with every matrix formed.

Axes: Q queries, N training examples, D numbers of the attributed parameters, L labels of one output row.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.stateless import _reparametrize_module

from tests.fuzz.losses import LOSSES
from tests.fuzz.program import Program, make_program, with_dtype

__all__ = [
    "Expected",
    "NotPlain",
    "expected_gradients",
    "fisher_scores",
    "has_forward_mode",
    "label_gradients",
    "preconditioned_scores",
]

_UNKNOWN_NOISE = 1e-3
Gradients = dict[str, Tensor]
"""By parameter name, shape (examples, *parameter), float64."""


class NotPlain(Exception):
    """The program itself does not run one example at a time."""


@dataclass(frozen=True)
class Expected:
    """Gradients of every parameter, one example at a time.

    Args:
        train: Of the training examples' losses.
        queries: Of the queries' measurements.
        wide: Both of the same model and data in float64: how far away they are is what rounding does. None if they are not known.
        warnings: What Python warns of meanwhile.
        is_finite: Whether every loss, measurement and gradient is.
    """

    train: Gradients
    queries: Gradients
    wide: tuple[Gradients, Gradients] | None
    warnings: frozenset[str]
    is_finite: bool

    def rows(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Gradients by some of the parameters, side by side: shapes (N, D) and (Q, D)."""
        return joined(self.train, names), joined(self.queries, names)

    def noise(self, names: Sequence[str]) -> float:
        """What rounding moves gradients by at most, as a share of their norms."""
        if self.wide is None:
            return _UNKNOWN_NOISE
        pairs = zip((self.train, self.queries), self.wide, strict=True)
        return max(_distance(joined(narrow, names), joined(wide, names)) for narrow, wide in pairs)


def expected_gradients(program: Program, train: Sequence[Any], queries: Sequence[Any]) -> Expected:
    """The gradients of a program's examples, on a model of its own.

    Args:
        program: The program.
        train: Its training records, or for language models the fields of whence's examples.
        queries: The same of the queries.

    Raises:
        NotPlain: If plain autograd fails.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = make_program(program.case).model
        narrow, finite = _both(program, model, train, queries)
    wide, is_rounding_known = narrow, True
    if program.case.dtype != "float64":
        broad = replace(program, shared=_wide(program.shared))
        model = with_dtype(make_program(program.case).model, torch.float64)
        try:
            wide, _ = _both(broad, model, [_wide(record) for record in train], [_wide(record) for record in queries])
        except NotPlain:  # kernels that float64 has none of
            is_rounding_known = False
    return Expected(*narrow, wide if is_rounding_known else None, frozenset(str(item.message) for item in caught), finite)


def label_gradients(program: Program, model: nn.Module, records: Sequence[Any]) -> list[Gradients]:
    """For every example the gradients of every output row's loss at every label, times the root of the label's probability.

    Their second moment is the Fisher information, and the Gauss-Newton matrix. Gaussian: a unit residual in every output.

    Returns:
        By name, shape (rows * L, *parameter), for each example.
    """
    parameters = _ready(model)
    is_categorical = program.case.kind == "language" or LOSSES[program.case.loss].likelihood == "categorical"
    found = []
    for record in records:
        values_ML = program.plain_values(model, record)
        eye_LL = torch.eye(values_ML.shape[1]).to(values_ML)
        rows: dict[str, list[Tensor]] = {name: [] for name in parameters}
        for values_L in values_ML:
            p_L = values_L.detach().softmax(-1)
            for label in range(len(values_L)):
                weight_L = p_L[label].sqrt() * (p_L - eye_LL[label]) if is_categorical else eye_LL[label]
                _clear(parameters)
                if values_ML.requires_grad:
                    (values_L * weight_L).sum().backward(retain_graph=True)
                for name, parameter in parameters.items():
                    rows[name].append(_gradient(parameter))
        found.append(
            {name: torch.stack(parts) if parts else torch.zeros(0, *parameters[name].shape) for name, parts in rows.items()}
        )
    return found


def fisher_scores(rows_ND: Tensor, asked_QD: Tensor, relative_damping: float) -> Tensor:
    """One unit's part of the scores with the Fisher of the rows, damped relative to its mean eigenvalue."""
    fisher_DD = rows_ND.T @ rows_ND / len(rows_ND)
    damping = max(relative_damping * float(fisher_DD.diagonal().mean()), 1e-30)
    return preconditioned_scores(rows_ND, asked_QD, fisher_DD, damping)


def preconditioned_scores(rows_ND: Tensor, asked_QD: Tensor, matrix_DD: Tensor, damping: float) -> Tensor:
    """-(1/N) grad m^T (matrix + damping)^-1 grad loss_i, shape (Q, N)."""
    damped_DD = matrix_DD + damping * torch.eye(len(matrix_DD)).to(matrix_DD)
    return -asked_QD @ torch.linalg.solve(damped_DD, rows_ND.T) / len(rows_ND)


def joined(gradients: Gradients, names: Sequence[str]) -> Tensor:
    """Gradients by some of the parameters side by side, shape (examples, D)."""
    return torch.cat([gradients[name].reshape(len(gradients[name]), -1) for name in names], 1)


def has_forward_mode(program: Program, record: Any) -> bool:
    """Whether PyTorch can push tangents through a program, several side by side, as products with the Gauss-Newton matrix need it."""
    model = make_program(program.case).model.eval().requires_grad_(False)
    values = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def outputs(chosen: dict[str, Tensor]) -> Tensor:
        with _reparametrize_module(model, chosen, tie_weights=True):
            return program.plain_values(model, record)

    try:
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            twice = {name: torch.stack([value, value]) for name, value in values.items()}
            torch.func.vmap(lambda vector: torch.func.jvp(outputs, (values,), (vector,))[1])(twice)
            torch.func.vjp(outputs, values)[1](program.plain_values(model, record))
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        return False
    return True


def _both(program: Program, model: nn.Module, train: Sequence[Any], queries: Sequence[Any]):
    try:
        rows = _one_by_one(program.plain_loss, model, train)
        asked = _one_by_one(program.plain_measurement, model, queries)
    except Exception as error:
        raise NotPlain(f"{type(error).__name__}: {error}") from error
    return (rows[0], asked[0]), rows[1] and asked[1]


def _one_by_one(
    function: Callable[[nn.Module, Any], Tensor], model: nn.Module, records: Sequence[Any]
) -> tuple[Gradients, bool]:
    parameters = _ready(model)
    rows: dict[str, list[Tensor]] = {name: [] for name in parameters}
    is_finite = True
    for record in records:
        _clear(parameters)
        value = function(model, record).sum()
        if value.requires_grad:
            value.backward()
        is_finite = is_finite and bool(torch.isfinite(value))
        for name, parameter in parameters.items():
            rows[name].append(_gradient(parameter))
            is_finite = is_finite and bool(torch.isfinite(rows[name][-1]).all())
    return {name: torch.stack(parts) for name, parts in rows.items()}, is_finite


def _ready(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a model in evaluation mode, all asking for gradients."""
    return dict(model.eval().requires_grad_(True).named_parameters())


def _clear(parameters: dict[str, nn.Parameter]) -> None:
    for parameter in parameters.values():
        parameter.grad = None


def _gradient(parameter: nn.Parameter) -> Tensor:
    """A parameter's gradient in float64, zeros where there is none; a complex number as its two parts."""
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    gradient = torch.view_as_real(gradient) if gradient.is_complex() else gradient
    return gradient.detach().double().clone()


def _distance(narrow_BD: Tensor, wide_BD: Tensor) -> float:
    norms_B = wide_BD.norm(dim=1)
    return float(((narrow_BD - wide_BD).norm(dim=1) / norms_B.clamp_min(1e-6 * float(norms_B.max()) + 1e-30)).max())


def _wide(record: Any) -> dict[str, Any]:
    """A record's real numbers in float64."""
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in record.items()
    }
