"""What an optimizer keeps of a parameter, held against what its name promises: other packages have an AdamW, too."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from whence.errors import Unsupported

__all__ = ["check_moved", "state_of"]

# As torch.optim keeps them.
_NEEDED = {"Adam": ("exp_avg", "exp_avg_sq", "step"), "AdamW": ("exp_avg", "exp_avg_sq", "step"), "Muon": ("momentum_buffer",)}


def state_of(settings: Mapping[str, Any], name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The optimizer's state of a parameter in a checkpoint, by key; empty where it has none, as for one that never had a gradient.

    Args:
        settings: The optimizer's, as the run wrote them down.
        name: The parameter.
        tensors: The checkpoint.

    Returns:
        The state.

    Raises:
        Unsupported: If it lacks what an optimizer of that name has.
    """
    ending = f".{name}"
    keys = [
        key.partition(".")[0].removeprefix("state_") for key in tensors if key.startswith("state_") and key.endswith(ending)
    ]
    keys = [key for key in keys if f"state_{key}{ending}" in tensors]
    if keys and not set(_needed(settings, name)) <= set(keys):
        raise Unsupported(**_foreign(settings, f"whose state of {name!r} is {', '.join(sorted(keys))}", name))
    return {key: tensors[f"state_{key}{ending}"] for key in keys}


def check_moved(settings: Mapping[str, Any], name: str, before: Tensor, after: Tensor) -> None:
    """Refuse a parameter that moved though its optimizer, which divides by a state, keeps none of it.

    Args:
        settings: The optimizer's.
        name: The parameter.
        before: At the beginning of the run.
        after: At the checkpoint without a state.

    Raises:
        Unsupported: If it did.
    """
    if _needed(settings, name) and bool((before.to(after) != after).any()):
        raise Unsupported(**_foreign(settings, f"which moved {name!r} and keeps nothing of it as tensors", name))


def _needed(settings: Mapping[str, Any], name: str) -> tuple[str, ...]:
    if settings["optimizer"] == "SGD":
        group = next((group for group in settings["groups"] if name in group["parameters"]), {})
        return ("momentum_buffer",) if group.get("momentum") else ()
    return _NEEDED.get(settings["optimizer"], ())


def _foreign(settings: Mapping[str, Any], what: str, name: str) -> dict[str, str]:
    where = f" of {settings['module']}" if "module" in settings else ""
    return {
        "found": f"a run with {settings['optimizer']}{where}, {what}",
        "needed": f"{', '.join(_needed(settings, name))}, as {settings['optimizer']} of torch.optim keeps them",
        "do": "record a run with torch.optim, or choose another method, such as ekfac",
    }
