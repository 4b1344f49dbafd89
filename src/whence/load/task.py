"""Models and data by name: folders, files, hub names, or a function in a Python file."""

import inspect
import logging
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from whence.distributed import Ranks
from whence.errors import BadInput, UnknownOption, first_line
from whence.functions import absolute, function_at, is_function
from whence.load.diffusion import diffusion_task
from whence.load.model_folder import ADAPTER, model_folder
from whence.load.placement import check_device, in_turn, load_options, placed
from whence.plain_files import read_plain
from whence.records import Recipe
from whence.settings import Placement, records_only
from whence.strict_json import parse_json
from whence.tasks import (
    AbstractTask,
    CausalLM,
    Classification,
    MaskedLM,
    Preference,
    Regression,
    RewardWeighted,
    Seq2Seq,
    TextLimits,
    TokenClassification,
)

__all__ = ["TASKS", "load_task"]

TASKS = (
    "causal_lm", "classification", "masked_lm", "regression", "seq2seq", "token_classification", "preference", "reward", "reward_weighted",
    "diffusion",
)  # fmt: skip
_MAKERS: dict[str, Any] = {
    "causal_lm": CausalLM,
    "classification": Classification,
    "masked_lm": MaskedLM,
    "regression": Regression,
    "seq2seq": Seq2Seq,
    "token_classification": TokenClassification,
    "preference": Preference,
    "reward": Preference,
    "reward_weighted": RewardWeighted,
}


@records_only(placement=Placement)
def load_task(
    model: str,
    *,
    kind: str = "causal_lm",
    placement: Placement = Placement(),
    ranks: Ranks = Ranks(),
    is_plain: bool = False,
    **options: Any,
) -> tuple[AbstractTask, dict[str, Any]]:
    """A task from a Hugging Face folder or hub name, or from a function that returns one.

    Of a diffusion model it is the folder of a pipeline of Hugging Face diffusers, and `diffusion` among the options holds what of `Draws`,
    `Measured` and `Guidance` is not the default, under the names that the command line has for it.
    A folder with a LoRA adapter of the peft package loads the model that it was trained on; the adapter is what is attributed.
    A file `recipe.json` in a model's folder, with the fields of `Recipe`, is taken as its training recipe. Code that comes with a model is
    never run.

    Args:
        model: A folder, a hub name, or "file.py:function".
        kind: One of `TASKS`; not used for a function.
        placement: Where its weights go, and in which type.
        ranks: Connected processes that it is split over, if the placement says so; all of them load it.
        is_plain: Take a folder on this machine with weights as safetensors only, for a name that nobody vouches for.
        **options: Passed to the task; where it has `TextLimits`, `long` and `max_length` become those. The `reference` of preferences is a
            folder or hub name, too.

    Returns:
        The task, and what is needed to load it again.

    Raises:
        BadInput: If it cannot be loaded.
        UnknownOption: If there is no such kind of task.
    """
    origin = {"model": model, "task": kind, "options": dict(options)}
    if is_plain and (is_function(model) or not Path(model).is_dir()):
        raise BadInput(found=f"the model {model!r}", needed="a folder on this machine", do="name the model yourself")
    check_device(placement.device)
    if is_function(model):
        others = [field for field in fields(Placement) if field.name != "device"]
        unused = next((field.name for field in others if getattr(placement, field.name) != field.default), None)
        if unused is not None:
            raise BadInput(
                found=f"{unused} for {model}",
                needed="a model by its folder or name: a function loads its model itself",
                do="load and place the model in that function",
            )
        task = function_at(model)()
        if not isinstance(task, AbstractTask):
            raise BadInput(
                found=f"{model} returning a {type(task).__name__}",
                needed="a whence task, such as whence.Classification(model)",
                do="return the task from that function",
            )
        if placement.device is not None:
            task.model.to(placement.device)
        return task, {"model": absolute(model), "task": task.kind, "options": {}}
    if kind not in TASKS:
        raise UnknownOption(found=f"task {kind!r}", needed=f"one of: {', '.join(TASKS)}", do="pick one")
    folder = Path(model) if kind == "diffusion" else model_folder(model)
    if folder.exists():
        origin["model"] = str(folder.resolve())
    if kind == "diffusion":
        if placement.model_dtype != "auto":
            origin["dtype"] = placement.model_dtype
        return diffusion_task(folder, placement, recipe=_recipe(folder / "recipe.json"), **options), origin
    recipe = _recipe(folder / "recipe.json")
    if placement.model_dtype != "auto":
        origin["dtype"] = placement.model_dtype

    def load() -> tuple[Any, Any]:
        is_adapter = (folder / ADAPTER).exists()
        network, tokenizer = (
            _adapted(folder, kind, placement, is_plain) if is_adapter else _pretrained(model, kind, placement, is_plain)
        )
        return placed(network, placement, ranks), tokenizer

    network, tokenizer = in_turn(load, placement, ranks)
    make = _MAKERS[kind]
    if "texts" in inspect.signature(make).parameters:
        limits = {name: options.pop(name) for name in ("long", "max_length") if name in options}
        options["texts"] = TextLimits(**limits)
    if kind in ("preference", "reward"):
        options["form"] = "dpo" if kind == "preference" else "bradley-terry"
    if options.get("reference") is not None:
        options["reference"] = in_turn(lambda: _reference(options["reference"], placement, ranks, is_plain), placement, ranks)
    return make(network, tokenizer, recipe=recipe, **options), origin


def _reference(model: str, placement: Placement, ranks: Ranks, is_plain: bool) -> Any:
    """The frozen model of preferences, placed as the policy is.

    Raises:
        BadInput: If it is none that can be loaded.
    """
    if is_function(model) or (is_plain and not Path(model).is_dir()):
        raise BadInput(found=f"the reference {model!r}", needed="a folder, or a hub name that you give yourself", do="name it")
    folder = model_folder(model)
    is_adapter = (folder / ADAPTER).exists()
    load = (
        _adapted(folder, "causal_lm", placement, is_plain)
        if is_adapter
        else _pretrained(model, "causal_lm", placement, is_plain)
    )
    return placed(load[0], placement, ranks)


def _recipe(path: Path) -> Recipe | None:
    if not path.exists():
        return None
    try:
        recipe = Recipe(**parse_json(read_plain(path, is_named=True)))
        for field in fields(Recipe):
            value = getattr(recipe, field.name)
            numbers = value.values() if isinstance(value, dict) else [value]
            fits = isinstance(value, dict) == (field.name == "inverse_preconditioner") and all(
                isinstance(number, int | float) for number in numbers
            )
            if field.name != "optimizer" and not fits and value != field.default:
                raise ValueError(f"{field.name} is {value!r}, not {'numbers by name' if field.default is None else 'a number'}")
        return recipe
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(
            found=f"{path}, which is no recipe ({error})",
            needed=f"the fields {', '.join(field.name for field in fields(Recipe))}",
            do="mend or remove the file",
        ) from error


def _pretrained(model: str, kind: str, placement: Placement, is_plain: bool) -> tuple[Any, Any]:
    try:
        import transformers
    except ImportError as error:
        raise BadInput(
            found="no transformers package", needed="it, to load Hugging Face models", do="pip install 'whence-tda[hf]'"
        ) from error
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if not sys.stderr.isatty() or Path(model).exists():  # of a download it says how far it is
        transformers.utils.logging.disable_progress_bar()
    options = load_options(placement)
    if "device_map" in options and find_spec("accelerate") is None:
        raise BadInput(
            found="no accelerate package for device_map",
            needed="it, to lay a model out over devices",
            do="pip install 'whence-tda[large]'",
        )
    automatic = {
        "causal_lm": transformers.AutoModelForCausalLM,
        "classification": transformers.AutoModelForSequenceClassification,
        "masked_lm": transformers.AutoModelForMaskedLM,
        "regression": transformers.AutoModelForSequenceClassification,
        "seq2seq": transformers.AutoModelForSeq2SeqLM,
        "token_classification": transformers.AutoModelForTokenClassification,
        "preference": transformers.AutoModelForCausalLM,
        "reward": transformers.AutoModelForSequenceClassification,
        "reward_weighted": transformers.AutoModelForCausalLM,
    }[kind]
    try:
        network, report = automatic.from_pretrained(model, output_loading_info=True, **options, **_without_code(is_plain))
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, trust_remote_code=False, local_files_only=is_plain)
    except Exception as error:  # a damaged folder fails in as many ways as there are files in it
        raise BadInput(
            found=f"model {model!r}, which cannot be loaded ({first_line(error)})",
            needed="a folder written by save_pretrained with its tokenizer, or a hub name within reach",
            do="check the path, and that all files were copied",
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        # Without its files the library makes a tokenizer of special tokens alone, which turns every text into nothing.
        raise BadInput(
            found=f"no tokenizer with {model!r}",
            needed="tokenizer.json, or the tokenizer's own files, beside the weights",
            do="save it there with tokenizer.save_pretrained",
        )
    if report["missing_keys"]:
        # Left alone these would be random numbers, and every score with them.
        raise BadInput(
            found=f"no values for {len(report['missing_keys'])} weights of {model!r}, such as {sorted(report['missing_keys'])[0]!r}",
            needed="a complete checkpoint",
            do=f"check that the model was trained for the task {kind}, and that all files were copied",
        )
    return network, tokenizer


def _without_code(is_plain: bool) -> dict[str, Any]:
    """How weights are read: never with code that comes with them; left unsaid, transformers would ask on the terminal."""
    return {"trust_remote_code": False} | ({"use_safetensors": True, "local_files_only": True} if is_plain else {})


def _adapted(folder: Path, kind: str, placement: Placement, is_plain: bool) -> tuple[Any, Any]:
    try:
        import peft
    except ImportError as error:
        raise BadInput(
            found=f"no peft package for the adapter in {folder}",
            needed="it, to load adapters",
            do="pip install 'whence-tda[lora]'",
        ) from error
    try:
        base = str(parse_json(read_plain(folder / ADAPTER, is_named=True), any_number=True)["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            found=f"{folder / ADAPTER}, which does not name the adapter's base model",
            needed="a folder written by peft",
            do="save it again",
        ) from error
    network, tokenizer = _pretrained(base, kind, placement, is_plain)
    try:
        adapted = peft.PeftModel.from_pretrained(network, str(folder), is_trainable=True)
        if (folder / "tokenizer_config.json").exists():
            import transformers

            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(folder), trust_remote_code=False, local_files_only=is_plain
            )
    except Exception as error:  # as above
        raise BadInput(
            found=f"an adapter in {folder} that does not load onto {base!r} ({first_line(error)})",
            needed="an adapter of that model, whole",
            do="check that all of its files were copied, and that the base model is the one it was trained on",
        ) from error
    return adapted, tokenizer
