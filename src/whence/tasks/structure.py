"""What a model computes besides its weights: its modules' classes and settings, and its configuration.

Two models with one set of weights differ if an activation, a norm's epsilon or the number of heads does. What cannot change a gradient in
evaluation mode is left out: dropout, caches, the kernel of attention. A forward written in Python does not show here; that takes a probe.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from whence.functions import identity_of
from whence.internals import BATCH_NORMS, COMPILED, DROPOUTS

__all__ = ["Difference", "Module", "Structure", "differences", "structure_of"]

# Modules that do nothing in evaluation mode, and containers, whose class says nothing of what is computed.
_IDLE = (nn.Identity, *DROPOUTS, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
# Settings that change no gradient in evaluation mode, or the last bits only.
_IDLE_SETTINGS = {
    "training", "inplace", "sparse", "enable_nested_tensor", "use_nested_tensor", "mask_check", "gradient_checkpointing",
    "name_or_path", "kernel_config", "loss_type", "layer_idx", "forward",
    "to", "cuda", "xpu", "npu", "mlu", "sdaa", "musa",  # refused by accelerate on a model that is laid out over devices
}  # fmt: skip
_IDLE_CONFIG = {
    "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache", "output_attentions", "output_hidden_states",
    "output_router_logits", "output_scores", "return_dict", "return_dict_in_generate", "id2label", "label2id", "num_labels", "problem_type",
    "gradient_checkpointing", "torchscript", "tokenizer_class", "task_specific_params", "finetuning_task", "prefix", "name_or_path",
    "chunk_size_feed_forward", "pretraining_tp", "reorder_and_upcast_attn", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id",
    "mask_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "attn_implementation", "tf_legacy_loss",
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k",
    "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "suppress_tokens", "begin_suppress_tokens", "exponential_decay_length_penalty", "remove_invalid_values",
}  # fmt: skip
_IDLE_NAMES = re.compile(r"drop|^initializer|loss_coef|aux_loss")
# What may change without another gradient; whether it did, a probe tells.
_UNCERTAIN = re.compile(r"pad_token_id|padding_idx|quantization_config")
# Earlier versions of transformers had a class for every kernel of attention.
_KERNELS = re.compile(r"(Sdpa|Flash|FlexAttn|Flex|Eager)(?=Attention|SelfAttention)|Attention2$|(?<=Attention)2$")
_LONGEST_TEXT, _MOST_ITEMS = 200, 64


@dataclass(frozen=True)
class Module:
    """One module, or several that are equal.

    Args:
        kind: Its class, with the library's name where it is of torch.nn.
        settings: The numbers, words and functions that it holds.
        count: How many.
    """

    kind: str
    settings: dict[str, Any]
    count: int = 1


@dataclass(frozen=True)
class Structure:
    """What a model's modules and configuration say; `asdict` of it is JSON.

    Args:
        modules: By path; a path with * stands for equal modules whose paths differ in numbers only.
        config: By path of the module that has it, entries by name, nested ones with dots.
    """

    modules: dict[str, Module]
    config: dict[str, dict[str, Any]]

    @classmethod
    def from_json(cls, content: Any) -> "Structure":
        """What `asdict` made, after a detour through JSON.

        Raises:
            KeyError: If a part is missing.
            TypeError: If it is something else.
        """
        modules = {
            str(path): Module(str(entry["kind"]), dict(entry["settings"]), int(entry["count"]))
            for path, entry in dict(content["modules"]).items()
        }
        return cls(modules, {str(path): dict(entry) for path, entry in dict(content["config"]).items()})


@dataclass(frozen=True)
class Difference:
    """One thing that two models do not share.

    Args:
        what: In words: what it is, there and here.
        is_certain: Whether it makes another model of the two for sure; else a newer version of a library or a counter in somebody's module
            may be all there is to it.
    """

    what: str
    is_certain: bool


def structure_of(model: nn.Module) -> Structure:
    """What a model computes, as far as its modules and its configuration say.

    Args:
        model: The model, compiled or wrapped or not.

    Returns:
        Plain values, the same before and after a detour through JSON.
    """
    modules: dict[str, Module] = {}
    configs: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        path = ".".join(part for part in path.split(".") if part != COMPILED)
        config = getattr(module, "config", None)
        if config is not None and id(config) not in seen and (entries := _config(config)):
            seen.add(id(config))
            if entries not in configs.values():  # every part of a model may have a copy
                configs[path] = entries
        if not isinstance(module, _IDLE) and not hasattr(module, COMPILED):
            modules[path] = Module(_class_of(module), dict(_settings(module)))
    return Structure(_joined(modules), configs)


def differences(there: Structure, here: Structure) -> list[Difference]:
    """What two models do not share, the certain first.

    Args:
        there: As recorded.
        here: The model at hand.
    """
    changes = [*_of_modules(there.modules, here.modules), *_of_configs(there.config, here.config)]
    return sorted(changes, key=lambda change: not change.is_certain)


def _of_modules(there: Mapping[str, Module], here: Mapping[str, Module]) -> Iterator[Difference]:
    for path in sorted({*there, *here}):
        old, new = (side.get(path, side.get(_starred(path))) for side in (there, here))
        parents = (side.get(path.rpartition(".")[0]) for side in (there, here))
        # A chain runs whatever is in it; another module may have parts that it does not use.
        is_chain = all(parent is not None and parent.kind == "torch.nn.Sequential" for parent in parents)
        if old is None or new is None:
            if any(_starred(key) == path for key in (here if new is None else there)):
                continue  # on that side there is one entry for each
            sides = ["no module" if side is None else side.kind for side in (old, new)]
            yield Difference(f"{path!r} is {sides[0]} there and {sides[1]} here", is_chain)
        elif old.kind != new.kind:
            yield Difference(f"{path!r} is {old.kind} there and {new.kind} here", _is_known(old.kind) and _is_known(new.kind))
        else:
            if path in there and path in here and old.count != new.count:
                yield Difference(f"there are {old.count} modules {path!r} there and {new.count} here", is_chain)
            yield from _of_settings(path, old, new)


def _of_settings(path: str, old: Module, new: Module) -> Iterator[Difference]:
    for name in sorted(old.settings.keys() | new.settings.keys()):
        is_shared = name in old.settings and name in new.settings
        if is_shared and old.settings[name] == new.settings[name]:
            continue
        texts = [f"{name}={side.settings[name]!r}" if name in side.settings else f"no {name}" for side in (old, new)]
        is_certain = is_shared and _is_known(old.kind) and not _UNCERTAIN.search(name)
        yield Difference(f"{path!r} ({old.kind}) has {texts[0]} there and {texts[1]} here", is_certain)


def _of_configs(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[Difference]:
    for path in sorted(there.keys() & here.keys()):
        old, new = there[path], here[path]
        for name in sorted(old.keys() & new.keys()):  # what only one has is of another version
            if old[name] != new[name]:
                is_certain = not _UNCERTAIN.search(name)
                whose = f" of {path!r}" if path else ""
                yield Difference(f"the configuration{whose} has {name}={old[name]!r} there and {new[name]!r} here", is_certain)


def _is_known(name: str) -> bool:
    """Whether a class is of a library that keeps the meaning of its classes and their settings."""
    return name.startswith(("torch.nn.", "transformers.activations."))


def _class_of(module: nn.Module) -> str:
    kind = type(module)
    if kind.__name__.startswith("FSDP") and any(base.__name__ == "FSDPModule" for base in kind.__mro__):
        kind = kind.__mro__[2]  # what fully_shard made it from
    if kind.__module__.startswith("torch.nn."):
        return f"torch.nn.{kind.__name__}"
    if kind.__module__ == "transformers.activations":
        return f"transformers.activations.{kind.__name__}"
    return _KERNELS.sub("", kind.__name__)


def _settings(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The numbers, words and functions that a module holds.

    Yields:
        Name and value, as JSON has it.
    """
    is_norm = isinstance(module, (*BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d))
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or name in _IDLE_SETTINGS or _IDLE_NAMES.search(name) or (is_norm and name == "momentum"):
            continue
        is_plain, plain = _plain(value)
        if is_plain:
            yield name, plain


def _plain(value: Any) -> tuple[bool, Any]:
    """Whether a value can be told in a few words, and how."""
    if value is None or isinstance(value, bool | int | float):
        return True, value if value == value and value not in (float("inf"), float("-inf")) else str(value)
    if isinstance(value, str):
        return len(value) <= _LONGEST_TEXT, value
    if isinstance(value, tuple | list) and len(value) <= _MOST_ITEMS:
        items = [_plain(item) for item in value]
        return all(is_plain for is_plain, _ in items), [plain for _, plain in items]
    if isinstance(value, partial):
        is_plain, plain = _plain([value.func, *value.args, *(part for pair in sorted(value.keywords.items()) for part in pair)])
        return is_plain, plain
    if isinstance(value, Callable) and not isinstance(value, type | nn.Module) and hasattr(value, "__name__"):
        return True, f"function {value.__name__ if value.__name__ != '<lambda>' else identity_of(value)}"[:_LONGEST_TEXT]
    return False, None


def _config(config: Any) -> dict[str, Any]:
    """The entries of a configuration that say what is computed, nested ones with dots; empty if it is none."""
    content = config.to_dict() if callable(getattr(config, "to_dict", None)) else config
    return dict(_flat(content, "")) if isinstance(content, Mapping) else {}


def _flat(content: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        name = str(key)
        if name.startswith("_") or name in _IDLE_CONFIG or _IDLE_NAMES.search(name):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
            continue
        is_plain, plain = _plain(value)
        if is_plain:
            yield f"{prefix}{name}", plain


def _starred(path: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def _joined(modules: Mapping[str, Module]) -> dict[str, Module]:
    """Modules of which all that differ in numbers only are equal, as one: a model has hundreds of layers."""
    alike: dict[str, list[str]] = {}
    for path in modules:
        alike.setdefault(_starred(path), []).append(path)
    joined: dict[str, Module] = {}
    for star, paths in alike.items():
        if len(paths) > 1 and all(modules[path] == modules[paths[0]] for path in paths):
            joined[star] = replace(modules[paths[0]], count=len(paths))
        else:
            joined |= {path: modules[path] for path in paths}
    return joined
