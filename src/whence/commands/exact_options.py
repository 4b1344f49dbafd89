"""Options of verbs that attribute without a store: the settings of the exact methods, flat."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from whence.settings import ExactSettings, checked_settings, exact_settings, final_settings

__all__ = ["Exact", "ExactOptions", "Factored", "FactoredOptions", "Final", "FinalOptions"]


@dataclass(frozen=True, kw_only=True)
class FactoredOptions:
    """Settings of an exact method that go into its fit and its damping; what is left out takes the method's own.

    Args:
        method: One of the exact methods of `whence methods`.
        relative_damping: Damping as a share of each layer's mean curvature; without any .1 of it for Kronecker factors, and for solvers what
            the training recipe says, or 1 of it without one.
        absolute_damping: Damping in units of the loss's curvature.
        labels: Over which labels the curvature is averaged.
        samples: Draws of labels where they are drawn; 1 if left out.
        sharing: For positions that share a weight, in the Kronecker factors.
        largest_side: A longer side of a weight gets its leading eigenvectors only; by memory and time if left out.
        directions: How many eigenvectors such a side gets; 1,024 if left out, and 0 for the axes themselves.
        seed: Of everything random; 0 if left out.
        fit_on: Fit the curvature on so many training examples instead of all.
        factors: Folder where the fitted curvature is kept, to go on after a stop and to use again.
        query_rank: Singular directions kept of every query's gradient of a weight: less memory.
    """

    method: str = "ekfac"
    relative_damping: float | None = None
    absolute_damping: float | None = None
    labels: Literal["auto", "exact", "sampled", "dataset"] | None = None
    samples: int | None = None
    sharing: Literal["expand", "reduce"] | None = None
    largest_side: int | None = None
    directions: int | None = None
    seed: int | None = None
    fit_on: int | None = None
    factors: Path | None = None
    query_rank: int | None = None

    def given(self) -> dict[str, Any]:
        """What was said, by name, without the method."""
        return _given(self)

    def settings(self) -> ExactSettings:
        """The method's settings; commands ask for them before anything is loaded.

        Raises:
            BadInput: If the method does not take something that was said, or is no method of the final weights.
        """
        return final_settings(exact_settings(self.method, self.given()))


Factored = Annotated[FactoredOptions, Parameter(name="*")]


@dataclass(frozen=True, kw_only=True)
class FinalOptions:
    """Settings of an exact method of the final weights.

    Args:
        factored: Those of its fit and its damping.
        matrix: What a solver inverts.
        iterations: Of the method's solver, at most.
        repeats: Independent walks of lissa.
        tolerance: Relative residual at which a solver stops.
        examples: Training examples that a solver's matrix is the mean over.
        batch_examples: Training examples per iteration of astra and lissa.
        rank: Directions kept by nystroem and arnoldi.
    """

    factored: Factored = FactoredOptions()
    matrix: Literal["gauss_newton", "hessian"] | None = None
    iterations: int | None = None
    repeats: int | None = None
    tolerance: float | None = None
    examples: int | None = None
    batch_examples: int | None = None
    rank: int | None = None

    @property
    def method(self) -> str:
        """Its name."""
        return self.factored.method

    def given(self) -> dict[str, Any]:
        """What was said, by name, without the method."""
        return self.factored.given() | _given(self)

    def settings(self) -> ExactSettings:
        """As of `FactoredOptions`."""
        return final_settings(exact_settings(self.method, self.given()))


Final = Annotated[FinalOptions, Parameter(name="*")]


@dataclass(frozen=True, kw_only=True)
class ExactOptions:
    """Settings of an exact method, of those too that go back through a recorded run.

    Args:
        final: Those of methods of the final weights.
        normalize: Divide scores by norms.
        run: Folder of a recorded training run: needed by source, astra-source, tracin, less, dvemb and unroll; ekfac, kfac, pcg and astra are
            averaged over it.
        checkpoints: Of that run, per stage, that ekfac, kfac, pcg and astra are averaged over; 3 if left out.
        members: Short runs that ekfac, kfac, pcg and astra are averaged over in place of checkpoints: further models, each trained for a
            tenth of that run's steps, 50 at least.
        segments: Per stage of that run, within which curvature and gradients are taken as constant; 3 if left out.
        average_weights: One fit and one pass per segment, at its mean weights, instead of one per checkpoint.
        form: Of the exponential for Adam and its kin: of the whole product of what it multiplies gradients with and the curvature, or of
            its diagonal, which takes fewer products.
        per_segment: Write the part of each segment of that run, too: a table each, in a subfolder of the output.
        online_bases: For source, take the curvature's bases that the recorder of that run followed.
        any_loss: Do not hold the task's loss against what that run lowered: where examples were augmented it was another one.
    """

    final: Final = FinalOptions()
    normalize: Literal["cosine", "relatif", "theta-relatif"] | None = None
    run: Path | None = None
    checkpoints: int | None = None
    members: int | None = None
    segments: int | None = None
    average_weights: Annotated[bool, Parameter(negative="")] = False
    form: Literal["full", "diagonal"] | None = None
    per_segment: Annotated[bool, Parameter(negative="")] = False
    any_loss: Annotated[bool, Parameter(negative="")] = False
    online_bases: Annotated[bool, Parameter(negative="")] = False

    @property
    def method(self) -> str:
        """Its name."""
        return self.final.method

    def given(self) -> dict[str, Any]:
        """What was said, by name, without the method."""
        return self.final.given() | _given(self)

    def settings(self) -> ExactSettings:
        """The method's settings.

        Raises:
            BadInput: If the method does not take something that was said, or needs a run.
        """
        return checked_settings(exact_settings(self.method, self.given()))


Exact = Annotated[ExactOptions, Parameter(name="*")]


def _given(options: FactoredOptions | FinalOptions | ExactOptions) -> dict[str, Any]:
    own = (field.name for field in fields(options) if field.name not in ("method", "factored", "final"))
    values = {name: getattr(options, name) for name in own}
    return {name: value for name, value in values.items() if value is not None and value is not False}
