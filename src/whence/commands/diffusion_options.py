"""Options of diffusion models: what their training drew, and what queries are measured with."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

__all__ = ["Measuring", "MeasuringOptions", "Drawn", "DrawnOptions", "given_of"]


@dataclass(frozen=True, kw_only=True)
class DrawnOptions:
    """Of diffusion models (--task diffusion): what the training loss is a mean over. The schedule is that of the pipeline's folder.

    Args:
        draws: Draws of time and noise per example; 16 if left out.
        draws_at_once: Of these, so many go through the network together, a divisor of them; all if left out. Bounds an example's memory.
        own_noise: Give each example times and noise of its own, instead of the same to all.
        min_snr: What the signal-to-noise ratio is cut to in the weight of a time, where training weighs times so.
        augment: What training did to images: flip, or file.py:function of an image and a generator.
        drop_condition: How probable it was in training that label and condition were hidden, for classifier-free guidance.
        null_label: The label that stands for nothing, where records have no null_label.
        null_condition: File (.npy) of the condition that stands for nothing, where records have no null_condition.
        draw_seed: Of the draws; 0 if left out.
    """

    draws: int | None = None
    draws_at_once: int | None = None
    own_noise: bool = False
    min_snr: float | None = None
    augment: str | None = None
    drop_condition: float | None = None
    null_label: int | None = None
    null_condition: str | None = None
    draw_seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class MeasuringOptions:
    """Of diffusion models: what a query asks about.

    Args:
        measure: What is measured of the query; the training loss, negated, if left out.
        time: For --measure loss_at: a step number, or from 0 to 1 for flow matching.
        query_draws: Whose times and noise queries are measured with: those of training, good for ranks, or their own, for amounts.
        guidance: The scale of classifier-free guidance that queries are measured with; 1, which is none, if left out.
        clip: Where estimates of the image are cut off, for --measure trajectory.
    """

    measure: Literal["loss", "loss_at", "simple_elbo", "elbo", "square_norm", "trajectory"] | None = None
    time: float | None = None
    query_draws: Literal["training", "own"] | None = None
    guidance: float | None = None
    clip: float | None = None


Drawn = Annotated[DrawnOptions, Parameter(name="*")]
Measuring = Annotated[MeasuringOptions, Parameter(name="*")]


def given_of(*options: DrawnOptions | MeasuringOptions) -> dict[str, Any]:
    """What was said, by name, as a store records it: files by where they are."""
    values = {field.name: getattr(each, field.name) for each in options for field in fields(each)}
    given = {name: value for name, value in values.items() if value is not None and value is not False}  # 0 was said
    if "null_condition" in given:
        given["null_condition"] = str(Path(given["null_condition"]).resolve())
    if ".py:" in given.get("augment", ""):
        path, _, function = given["augment"].rpartition(":")
        given["augment"] = f"{Path(path).resolve()}:{function}"
    return given
