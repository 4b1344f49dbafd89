"""A folder that a model was saved in, or the checkpoints that a trainer left beside it."""

from pathlib import Path

from whence.errors import BadInput

__all__ = ["ADAPTER", "model_folder"]

ADAPTER = "adapter_config.json"
"""What a folder with an adapter of the peft package holds."""


def model_folder(model: str) -> Path:
    """The folder of a model; a path that is not there where the name is one of the hub.

    Args:
        model: A folder or hub name.

    Raises:
        BadInput: If it is a folder without a model, or none.
    """
    folder = Path(model)
    if folder.exists():
        if not _is_model(folder):
            raise BadInput(
                found=f"no config.json in {folder}",
                needed="a folder written by save_pretrained",
                do=_checkpoint(folder) or "check the path",
            )
    elif model.startswith((".", "/", "~")) or model.count("/") > 1 or ("/" in model and _checkpoint(folder.parent)):
        raise BadInput(
            found=f"no model folder at {model}",
            needed="a folder written by save_pretrained",
            do=_checkpoint(folder.parent) or "check the path",
        )
    return folder


def _is_model(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("config.json", ADAPTER))


def _checkpoint(folder: Path) -> str:
    """What to name instead, if a trainer left checkpoints in a folder: the last of them; empty if there are none."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*") if _is_model(path)}
    checkpoints = sorted(steps, key=lambda path: (steps[path].isdecimal(), int(steps[path]) if steps[path].isdecimal() else 0))
    if not checkpoints:
        return ""
    return f"name {checkpoints[-1]}, the last checkpoint there"
