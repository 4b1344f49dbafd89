"""What a fitted curvature and its damping depend on."""

from dataclasses import dataclass
from typing import Literal, get_args

from whence.errors import BadInput, UnknownOption
from whence.settings.checks import typed

__all__ = ["Damping", "DampingRule", "FitConfig", "LabelChoice", "Sharing"]

DampingRule = Literal["mean", "lorif", "lorif-paper", "lorif-tail", "recipe"]
"""Published rules for the rows of a store, see `whence.curvature.stored_damping`."""

LabelChoice = Literal["auto", "exact", "sampled", "dataset"]
"""Over which labels the curvature is averaged, see `whence.curvature.choose_labels`."""

Sharing = Literal["expand", "reduce"]
"""How positions that share a weight are treated in Kronecker factors."""


@dataclass(frozen=True, kw_only=True)
@typed
class Damping:
    """How much is added to every eigenvalue. At most one is given; with none of them the method's own is taken, and every answer says which.

    Args:
        relative: Share of each unit's mean eigenvalue.
        absolute: Value in units of the per-example loss's curvature.
        rule: For stores, a published rule instead of a number.

    Raises:
        BadInput: If more than one is given, or a number is not positive.
        UnknownOption: If there is no such rule.

    >>> Damping(relative=0.1)
    Damping(relative=0.1, absolute=None, rule=None)
    """

    relative: float | None = None
    absolute: float | None = None
    rule: DampingRule | None = None

    def __post_init__(self):
        given = [value for value in (self.relative, self.absolute, self.rule) if value is not None]
        if len(given) > 1 or any(not isinstance(value, str) and not value > 0 for value in given):
            raise BadInput(
                found=f"Damping(relative={self.relative}, absolute={self.absolute}"
                + (")" if self.rule is None else f", rule={self.rule!r})"),
                needed="at most one of them, and positive",
                do="leave them out to have it chosen",
            )
        if self.rule is not None and self.rule not in get_args(DampingRule):
            raise UnknownOption(
                found=f"Damping(rule={self.rule!r})", needed=f"one of: {', '.join(get_args(DampingRule))}", do="pick one"
            )


@dataclass(frozen=True, kw_only=True)
@typed
class FitConfig:
    """What a fit of Kronecker-factored curvature depends on besides model and data.

    Args:
        labels: Over which labels the curvature is averaged: "auto", "exact", "sampled", or "dataset" for the empirical Fisher.
        samples: Draws per scored row where labels are drawn; None for 1.
        seed: Of the draws.
        sharing: "expand" or "reduce", for positions that share a weight, in the factors; the eigenvalues of EK-FAC never depend on it, only
            its bases.
        largest_side: A longer side of a unit, a joined bias not counted, gets the leading eigenvectors of its second moment only, found from
            a sketch, and an isotropic rest. None chooses by memory and time.
        directions: Eigenvectors of a longer side; 0 keeps its axes. None takes 1,024; or, where the data has fewer positions than half of
            a side above 2,049 and neither is said, as many as there are positions, which leave nothing of the second moment to the rest.

    Raises:
        UnknownOption: If labels or sharing are none of the choices.
        BadInput: If `largest_side` or `samples` is not positive, or `directions` or `seed` is negative.
    """

    labels: LabelChoice = "auto"
    samples: int | None = None
    seed: int = 0
    sharing: Sharing = "expand"
    largest_side: int | None = None
    directions: int | None = None

    def __post_init__(self):
        for name, choices in (("labels", get_args(LabelChoice)), ("sharing", get_args(Sharing))):
            if getattr(self, name) not in choices:
                raise UnknownOption(
                    found=f"{name}={getattr(self, name)!r}", needed=f"one of: {', '.join(choices)}", do="pick one"
                )
        if self.seed < 0:
            raise BadInput(found=f"seed={self.seed}", needed="0 or more", do="correct it")
        if self.samples is not None and self.samples < 1:
            raise BadInput(found=f"samples={self.samples}", needed="1 or more", do="correct it")
        if self.directions is not None and self.directions < 0:
            raise BadInput(found=f"directions={self.directions}", needed="0 or more", do="correct it")
        if self.largest_side is not None and self.largest_side < 1:
            raise BadInput(found=f"largest_side={self.largest_side}", needed="1 or more", do="correct it")
