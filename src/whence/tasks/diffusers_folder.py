"""A diffusion model from a folder of Hugging Face diffusers."""

import inspect
import json
from pathlib import Path
from typing import Any

from whence.errors import BadInput, Unsupported
from whence.tasks.diffusion import Diffusion

__all__ = ["load_diffusion"]

_NETWORKS = ("unet", "transformer")
_KNOWN = {"self", "sample", "hidden_states", "timestep", "class_labels"}


def load_diffusion(folder: str | Path, **options: Any) -> Diffusion:
    """The task of a pipeline that `save_pretrained` of Hugging Face diffusers wrote: its UNet or transformer, with its scheduler's schedule.

    For latent diffusion the images of records are latents, as the pipeline's autoencoder makes them.

    Args:
        folder: With a `model_index.json`.
        **options: As of `whence.Diffusion`; a `schedule` among them is taken instead of the scheduler's.

    Returns:
        The task.

    Raises:
        BadInput: If the folder holds no such pipeline, or diffusers is not installed.
        Unsupported: If the network needs more than noisy images, times and class labels.
    """
    folder = Path(folder)
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        part = next(name for name in _NETWORKS if index.get(name))
        kinds = {name: index[name][1] for name in (part, "scheduler")}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, StopIteration):
        raise BadInput(
            found=f"{folder}, which is no pipeline with a denoiser and a scheduler",
            needed="a folder with a model_index.json that names a unet or transformer, and a scheduler",
            do="save it with pipeline.save_pretrained(folder), or pass network and scheduler to whence.Diffusion",
        ) from None
    try:
        import diffusers
    except ImportError as error:
        raise BadInput(
            found="no diffusers", needed="it, to load a pipeline", do="pip install 'whence-tda[diffusion]'"
        ) from error
    missing = [kind for kind in kinds.values() if not hasattr(diffusers, kind)]
    if missing:
        raise BadInput(
            found=f"a pipeline with a {missing[0]}",
            needed="classes that diffusers has",
            do="update diffusers, or load it yourself",
        )
    network = getattr(diffusers, kinds[part])
    needed = {
        name
        for name, parameter in inspect.signature(network.forward).parameters.items()
        if parameter.default is parameter.empty
    }
    if needed - _KNOWN:
        raise Unsupported(
            found=f"a {kinds[part]}, which is also given {', '.join(sorted(needed - _KNOWN))}",
            needed="a network of noisy images, times and class labels",
            do="wrap it in a module that is called as model(images, times), with the rest inside, and pass that to whence.Diffusion",
        )
    model = network.from_pretrained(folder / part)
    schedule = options.pop("schedule", None) or getattr(diffusers, kinds["scheduler"]).from_pretrained(folder / "scheduler")
    return Diffusion(model, schedule=schedule, **options)
