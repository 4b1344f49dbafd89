"""A diffusion model from a folder of Hugging Face diffusers."""

import inspect
import re
from pathlib import Path
from typing import Any

from whence.errors import BadInput, Unsupported, first_line
from whence.plain_files import read_plain
from whence.strict_json import fitted, parse_json
from whence.tasks.diffusion import Diffusion

__all__ = ["load_diffusion"]

_NETWORKS = ("unet", "transformer")
_CLASS = re.compile("[A-Z][A-Za-z0-9]{0,80}")
_INPUTS_GIVEN = {"self", "sample", "hidden_states", "timestep", "class_labels", "encoder_hidden_states"}


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
        index = dict(parse_json(read_plain(folder / "model_index.json", is_named=True)))
        part = next(name for name in _NETWORKS if index.get(name))
        kinds = {name: fitted(tuple[str, str], index[name], name)[1] for name in (part, "scheduler")}
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
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
    network = _class_of(diffusers, kinds[part], "ModelMixin")
    scheduler = _class_of(diffusers, kinds["scheduler"], "SchedulerMixin")
    needed = {
        name
        for name, parameter in inspect.signature(network.forward).parameters.items()
        if parameter.default is parameter.empty
    }
    if needed - _INPUTS_GIVEN:
        raise Unsupported(
            found=f"a {kinds[part]}, which is also given {', '.join(sorted(needed - _INPUTS_GIVEN))}",
            needed="a network of noisy images, times, class labels and one condition",
            do="wrap it in a module that is called as model(images, times), with the rest inside, and pass that to whence.Diffusion",
        )
    try:
        # Never pickled weights, whose reading may run code, and never a name on the hub.
        model = network.from_pretrained(folder / part, use_safetensors=True, local_files_only=True)
        schedule = options.pop("schedule", None) or scheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    except Exception as error:  # a damaged folder fails in as many ways as there are files in it
        raise BadInput(
            found=f"{folder}, which cannot be loaded ({first_line(error)})",
            needed="the network's configuration and weights as safetensors, and the scheduler's configuration",
            do="save it with pipeline.save_pretrained(folder)",
        ) from error
    return Diffusion(model, schedule=schedule, **options)


def _class_of(diffusers: Any, name: str, kind: str) -> Any:
    """A class of diffusers by the name that a folder records: a network or a scheduler of its own, nothing else that it happens to hold.

    Raises:
        BadInput: If there is none.
    """
    class_found = getattr(diffusers, name, None) if _CLASS.fullmatch(name) else None
    if (
        not isinstance(class_found, type)
        or not issubclass(class_found, getattr(diffusers, kind))
        or not class_found.__module__.startswith("diffusers.")
    ):
        raise BadInput(
            found=f"a pipeline with a {name[:80]}",
            needed=f"a {kind} that diffusers has",
            do="update diffusers, or load it yourself",
        )
    return class_found
