"""Whether a model's folder is nothing but weights, sizes and a tokenizer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["asks_for"]

_CONFIGS = ("config.json", "tokenizer_config.json", "generation_config.json")
# Of an adapter, given as mappings without asking for anything.
_PLAIN_SETTINGS = ("rank_pattern", "alpha_pattern", "auto_mapping")


def asks_for(folder: Path, *, is_base: bool = False) -> str:
    """What a model's folder asks for besides its own weights: code, pickles, or what lies elsewhere; empty if nothing.

    Args:
        folder: As `save_pretrained` of transformers or peft writes it.
        is_base: It is what an adapter stands on.
    """
    if (
        folder / "model_index.json"
    ).exists():  # a pipeline of diffusers, of which the denoiser is loaded, and the scheduler's numbers
        part = next((folder / name for name in ("unet", "transformer") if (folder / name).is_dir()), None)
        return asks_for(part) if part is not None and not is_base else "a pipeline without a denoiser"
    for name in _CONFIGS:
        content = _config(folder / name)
        if isinstance(content, str):
            return content
        for key, value in _settings(content):
            if key == "auto_map" and value:
                return f"whose {name} asks for code of its own"
            # Kernels are code that is fetched from the hub, by a name such as owner/kernel.
            if key.endswith("_implementation") and "/" in str(value):
                return f"whose {name} asks for code from the hub"
    if not any(folder.glob("*.safetensors")):
        return "whose weights are not safetensors and would be unpickled"
    if not (folder / "adapter_config.json").exists():
        return ""
    content = _config(folder / "adapter_config.json")
    if isinstance(content, str) or is_base:
        return content if isinstance(content, str) else "an adapter of an adapter"
    more = sorted(name for name, value in content.items() if isinstance(value, dict) and value and name not in _PLAIN_SETTINGS)
    if more or content.get("peft_type") not in ("LORA", "ADALORA"):
        return f"whose adapter_config.json asks for more than LoRA ({', '.join(more) or content.get('peft_type')})"
    base = Path(str(content.get("base_model_name_or_path", "")))
    if not base.is_absolute() or not base.is_dir():
        return f"an adapter of {str(base)!r}, which would be looked up where the command runs and on the hub"
    return asks_for(base, is_base=True)


def _settings(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Name and value of all settings, inner ones too.

    Yields:
        They, in no particular order.
    """
    for key, value in content.items():
        yield key, value
        if isinstance(value, dict):
            yield from _settings(value)


def _config(path: Path) -> dict[str, Any] | str:
    """The content of a file of a model's folder, empty if it is not there; a text that says why it cannot be read."""
    from whence.store import parse_json, read_plain

    if not path.exists():
        return {}
    try:
        content = parse_json(read_plain(path, is_named=True), any_number=True)
    except (OSError, ValueError) as error:
        return f"whose {path.name} cannot be read ({error})"
    return content if isinstance(content, dict) else f"whose {path.name} is no configuration"
