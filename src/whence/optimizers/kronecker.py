"""Optimizers that multiply a gradient with a matrix on each side: Shampoo, and SOAP, which is Adam in Shampoo's bases.

Axes: S a side of the parameter.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from whence.optimizers.rule import Group, Rule, State, flag

__all__ = ["SHAMPOO", "SOAP", "inverse_root"]


class _InverseRoot(torch.autograd.Function):
    """A symmetric matrix to the power -1 / p, with the derivative that holds where eigenvalues are equal, too (Daleckii and Krein 1965)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix_SS: Tensor, order: int) -> tuple[Tensor, Tensor, Tensor]:
        values_S, vectors_SS = torch.linalg.eigh(matrix_SS)
        values_S = values_S.clamp_min(torch.finfo(matrix_SS.dtype).tiny)
        powers_S = values_S ** (-1.0 / order)
        slope_S = -powers_S / values_S / order
        apart_SS = values_S[..., :, None] - values_S[..., None, :]
        between_SS = (powers_S[..., :, None] - powers_S[..., None, :]) / torch.where(apart_SS == 0, 1.0, apart_SS)
        near_SS = apart_SS.abs() <= 1e-6 * (values_S[..., :, None] + values_S[..., None, :])
        slopes_SS = torch.where(near_SS, (slope_S[..., :, None] + slope_S[..., None, :]) / 2, between_SS)
        return vectors_SS @ (powers_S[..., :, None] * vectors_SS.mT), vectors_SS, slopes_SS

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, vectors_SS, slopes_SS = output
        ctx.mark_non_differentiable(vectors_SS, slopes_SS)
        ctx.save_for_backward(vectors_SS, slopes_SS)
        ctx.save_for_forward(vectors_SS, slopes_SS)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_SS, *others):
        return _through(grad_SS, *ctx.saved_tensors), None

    @staticmethod
    def jvp(ctx, tangent_SS, *others):
        vectors_SS, slopes_SS = ctx.saved_tensors
        return _through(tangent_SS, vectors_SS, slopes_SS), None, None


def _through(change_SS: Tensor, vectors_SS: Tensor, slopes_SS: Tensor) -> Tensor:
    """The derivative, which is its own transpose."""
    return vectors_SS @ (slopes_SS * (vectors_SS.mT @ change_SS @ vectors_SS)) @ vectors_SS.mT


def inverse_root(matrix_SS: Tensor, order: int) -> Tensor:
    """A symmetric positive matrix to the power -1 / order, differentiable once in either direction.

    >>> inverse_root(torch.eye(2, dtype=torch.float64) * 16, 4)
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]], dtype=torch.float64)
    """
    factors = _InverseRoot.apply(matrix_SS, order)
    assert factors is not None
    return factors[0]


def _shampoo(before: State, gradient: Tensor, group: Group, count: int) -> dict[str, Tensor]:
    """Shampoo with roots of every step (Gupta et al. 2018, arXiv 1802.09568, algorithm 1)."""
    weight, rate, decay = before["weights"], group["lr"], group["weight_decay"]
    if group["weight_decouple"]:
        weight = weight * (1 - rate * decay)
    else:
        gradient = gradient + decay * weight
    moved, factors = gradient, {}
    for axis in range(gradient.ndim):
        rows = gradient.movedim(axis, 0).flatten(1) if gradient.ndim > 1 else gradient[:, None]
        # Where nothing is kept yet it begins with a small multiple of the identity.
        earlier = before[f"pre_cond_{axis}"] if count else group["matrix_eps"] * torch.eye(len(rows)).to(rows)
        factor = earlier + rows @ rows.mT
        inverse = inverse_root(factor, 2 * gradient.ndim)
        moved = _applied(inverse, moved, axis)
        factors |= {f"pre_cond_{axis}": factor, f"inv_pre_cond_{axis}": inverse}
    return {"weights": weight - rate * moved, **factors}


def _soap(before: State, gradient: Tensor, group: Group, count: int) -> dict[str, Tensor]:
    """SOAP (Vyas et al. 2024, arXiv 2409.11321, algorithm 3), without the bases' own step, which nothing here differentiates."""
    beta1, beta2 = group["betas"]
    bases = [before.get(f"Q[{axis}]") for axis in range(gradient.ndim)]
    first = beta1 * before["exp_avg"] + (1 - beta1) * gradient
    turned = _turned(gradient, bases, 0)
    second = beta2 * before["exp_avg_sq"] + (1 - beta2) * turned.square()
    moved = _turned(_turned(first, bases, 0) / (second.sqrt() + group["eps"]), bases, 1)
    # The first step only makes the bases, and is counted.
    steps = max(1, count)
    rate = group["lr"] * math.sqrt(1 - beta2**steps) / (1 - beta1**steps)
    weight = (before["weights"] - rate * moved) * (1 - group["lr"] * group["weight_decay"])
    return {"weights": weight, "exp_avg": first, "exp_avg_sq": second}


def _applied(matrix_SS: Tensor, values: Tensor, axis: int) -> Tensor:
    """A matrix applied along one axis."""
    if values.ndim == 1:
        return matrix_SS @ values
    front = values.movedim(axis, 0)
    return (matrix_SS @ front.flatten(1)).view(front.shape).movedim(0, axis)


def _turned(values: Tensor, bases: list[Tensor | None], side: int) -> Tensor:
    for axis, basis in enumerate(bases):
        if basis is not None:
            values = _applied(basis.mT if side == 0 else basis, values, axis)
    return values


def _soap_accepts(group: Group) -> bool:
    return bool(group["correct_bias"]) and not group["normalize_gradient"] and not group["merge_dims"]


def _soap_keys(axes: int) -> tuple[str, ...]:
    return ("exp_avg", "exp_avg_sq", *(f"Q[{axis}]" for axis in range(axes) if axes > 1))


SHAMPOO = Rule(
    "shampoo", ("weight_decay", "weight_decouple", "matrix_eps", "momentum"),
    lambda axes: tuple(f"{kind}_{axis}" for kind in ("pre_cond", "inv_pre_cond") for axis in range(axes)), _shampoo,
    accepts=lambda group: not group["momentum"] and not group.get("fixed_decay"), is_decoupled=flag("weight_decouple"),
    tolerance=1e-3,  # roots of a matrix that is nearly singular
)  # fmt: skip
SOAP = Rule(
    "soap", ("betas", "eps", "weight_decay", "correct_bias", "normalize_gradient", "merge_dims"), _soap_keys, _soap,
    accepts=_soap_accepts, is_decoupled=lambda group: True, is_differentiable=False, checked=("exp_avg",),
)  # fmt: skip
