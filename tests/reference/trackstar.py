"""TrackStar with every matrix formed: second moments entry by entry, R and its root."""

import torch
from torch import Tensor


def factored_moments(gradients_BOI: Tensor) -> Tensor:
    """Row times column means of the mean square, over the mean of all (Adafactor), means raised to a hundredth of theirs."""
    squares_OI = gradients_BOI.square().mean(0)
    mean = squares_OI.mean()
    if mean == 0:
        return torch.ones_like(squares_OI)
    rows, columns = squares_OI.mean(1).clamp_min(0.01 * mean), squares_OI.mean(0).clamp_min(0.01 * mean)
    return torch.outer(rows, columns) / mean


def root(rows_ND: Tensor, queries_QD: Tensor, share: float, relative_damping: float) -> Tensor:
    """(a R_query + (1 - a) R_train + damping)^-1/2."""
    mixed = share * queries_QD.T @ queries_QD / len(queries_QD) + (1 - share) * rows_ND.T @ rows_ND / len(rows_ND)
    damping = max(relative_damping * float(mixed.diagonal().mean()), 1e-30)
    values, vectors = torch.linalg.eigh(mixed + damping * torch.eye(len(mixed)).to(mixed))
    return vectors @ torch.diag(values.rsqrt()) @ vectors.T


def share_where_spectra_cross(rows: list[Tensor], queries: list[Tensor]) -> float:
    """a such that a x the queries' eigenvalue equals (1 - a) x the rows' at 1.5 % of all directions, or the queries' last one."""
    spectra = []
    for units in (queries, rows):
        values = torch.cat([torch.linalg.eigvalsh(unit.T @ unit / len(unit)) for unit in units]).clamp_min(0)
        spectra.append(values.sort(descending=True).values)
    rank = int((spectra[0] > spectra[0][0] * 1e-10).sum())
    place = max(1, min(round(len(spectra[0]) * 1000 / 65536), rank)) - 1
    return float(spectra[1][place] / (spectra[0][place] + spectra[1][place]))


def cosines(rows: list[Tensor], queries: list[Tensor], roots: list[Tensor]) -> Tensor:
    """Cosine of minus the whitened measurement's and the whitened loss's gradients, shape (Q, N)."""
    left, right = (torch.cat([unit @ root for unit, root in zip(units, roots, strict=True)], 1) for units in (queries, rows))
    return -(left / left.norm(dim=1, keepdim=True)) @ (right / right.norm(dim=1, keepdim=True)).T
