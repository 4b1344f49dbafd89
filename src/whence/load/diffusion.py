"""The task of a pipeline of Hugging Face diffusers, from settings by the names that the command line has for them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from whence.errors import BadInput
from whence.records import Recipe
from whence.settings import Placement
from whence.tasks import Diffusion, Draws, Guidance, Measured, load_diffusion

__all__ = ["SETTINGS", "diffusion_task"]

SETTINGS: dict[str, tuple[type, str]] = {
    "draws": (Draws, "draws"),
    "draws_at_once": (Draws, "at_once"),
    "own_noise": (Draws, "shared"),
    "min_snr": (Draws, "min_snr"),
    "augment": (Draws, "augment"),
    "draw_seed": (Draws, "seed"),
    "drop_condition": (Guidance, "drop"),
    "null_label": (Guidance, "null_label"),
    "null_condition": (Guidance, "null_condition"),
    "guidance": (Guidance, "scale"),
    "measure": (Measured, "measure"),
    "time": (Measured, "time"),
    "query_draws": (Measured, "draws"),
    "clip": (Measured, "clip"),
}
"""By name on the command line, the record and its field."""


def diffusion_task(
    folder: Path, placement: Placement, *, recipe: Recipe | None, diffusion: Mapping[str, Any] = {}, **options: Any
) -> Diffusion:
    """The task, its network where it is to be.

    Args:
        folder: Of the pipeline.
        placement: A device and a type; a denoiser is loaded whole.
        recipe: Of its training.
        diffusion: Settings, by the names in `SETTINGS`.
        **options: See `whence.tasks.AbstractTask`.

    Raises:
        BadInput: If it is to be split over devices or processes, or an option is unknown.
    """
    others = ("device_map", "shard_model", "offload_folder", "gradient_checkpointing")
    unused = next((name for name in others if getattr(placement, name)), None)
    if unused is not None:
        raise BadInput(
            found=f"{unused} for a diffusion model", needed="one device", do="leave it out; --draws-at-once saves memory"
        )
    records: dict[type, dict[str, Any]] = {Draws: {}, Guidance: {}, Measured: {}}
    for name, value in diffusion.items():
        if name not in SETTINGS:
            raise BadInput(
                found=f"{name}={value!r} for a diffusion model", needed=f"some of {', '.join(SETTINGS)}", do="drop it"
            )
        kind, field = SETTINGS[name]
        records[kind][field] = not value if name == "own_noise" else value
    task = load_diffusion(
        folder, noised=Draws(**records[Draws]), guidance=Guidance(**records[Guidance]), measured=Measured(**records[Measured]),
        recipe=recipe, **options,
    )  # fmt: skip
    if placement.model_dtype != "auto":
        task.model.to(getattr(torch, placement.model_dtype))
    if placement.device is not None:
        task.model.to(placement.device)
    return task
