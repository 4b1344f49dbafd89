"""Models and data by name: folders, files, hub names, or a function in a Python file."""

import csv
import inspect
import io
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from whence.distributed import Ranks
from whence.errors import BadInput, UnknownOption, first_line, is_question
from whence.functions import absolute, function_at, is_function
from whence.load.arrays import read_npz
from whence.load.model_folder import ADAPTER, model_folder
from whence.load.placement import check_device, in_turn, load_options, placed
from whence.load.unpacked import lines_of
from whence.plain_files import open_plain, read_plain
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

__all__ = ["TASKS", "load_records", "load_task"]

# The csv module refuses fields above 131,072 characters; documents are longer.
_LONGEST_FIELD = 1 << 30
# Of what is read as a whole.
_LONGEST_FILE = 8 << 30
TASKS = (
    "causal_lm", "classification", "masked_lm", "regression", "seq2seq", "token_classification", "preference", "reward", "reward_weighted",
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
_TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".npz")
_EXPLAINS = ("readme", "license", "licence")
_IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


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
    folder = model_folder(model)
    if folder.exists():
        origin["model"] = str(folder.resolve())
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


def load_records(data: str, *, split: str = "train") -> Iterable[Any]:
    """Records from a file, a folder, a hub name or a function.

    `.jsonl` and `.json` hold mappings, `.csv` and `.tsv` rows with a header, `.txt` one text per paragraph (blank lines between), `.npz` the
    arrays `X`, `y` and, if there are any, `ids`; a folder holds text files (one example each), images in one folder per class, whose name is
    the label, or a dataset saved by Hugging Face `datasets`. An `image` in a file of mappings is a path from that file's folder.

    Args:
        data: The name.
        split: Which split of a Hugging Face dataset.

    Returns:
        The records, each with a source where the file gives one.

    Raises:
        BadInput: If it cannot be read.
    """
    if is_function(data):
        return function_at(data)()
    path = Path(data)
    if path.is_file():
        readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv, ".txt": _paragraphs, ".npz": read_npz}
        if path.suffix not in readers:
            raise BadInput(found=f"data file {path}", needed=f"one of: {', '.join(readers)}", do="convert it")
        with _readable(path):
            return [_with_image(path.parent, record) for record in readers[path.suffix](path)]
    if path.is_dir() and not any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
        texts = sorted(file for pattern in ("*.txt", "*.md") for file in path.rglob(pattern))
        # What explains a folder of images or tables is none of its examples.
        if texts and (any(file.stem.lower() not in _EXPLAINS for file in texts) or not _holds_data(path)):
            return [_document(path, file) for file in texts]
        images = sorted(file for file in path.rglob("*") if file.suffix.lower() in _IMAGES)
        if images:
            return [_labelled_image(path, file) for file in images]
    elif path.exists() and not path.is_dir():
        raise BadInput(found=f"data at {path}, which is a pipe or a device", needed="a file or folder", do="save it as a file")
    elif not path.exists() and is_question(data):
        raise BadInput(
            found=f"the text {data!r} where a file is read",
            needed="a file or folder of records",
            do='pass a question as --text (whence query) or --prompt (whence why), or write it to a .jsonl file: {"text": "..."}',
        )
    elif not path.exists() and (
        data.startswith((".", "/", "~")) or path.suffix in (".jsonl", ".json", ".csv", ".tsv", ".txt", ".npz")
    ):
        raise BadInput(found=f"no data at {data}", needed="a file or folder", do="check the path")
    return _hub_dataset(data, split)


def _holds_data(folder: Path) -> bool:
    return any(file.suffix.lower() in (*_IMAGES, *_TABLES) for file in folder.rglob("*"))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever is wrong with the content of a file into one error.

    Yields:
        Nothing.

    Raises:
        BadInput: If something is.
    """
    try:
        yield
    except (ValueError, csv.Error, OSError, RecursionError) as error:
        raise BadInput(
            found=f"{path}, which cannot be read ({first_line(error)})", needed=f"valid {path.suffix}", do="mend the file"
        ) from error


def _document(folder: Path, file: Path) -> dict[str, str]:
    with _readable(file):
        name = str(file.relative_to(folder))
        return {"text": _text_of(file), "id": name, "source": name}


def _labelled_image(folder: Path, file: Path) -> dict[str, str]:
    name = str(file.relative_to(folder))
    label = {"label": file.parent.name} if file.parent != folder else {}
    return {"image": str(file), "id": name, "source": file.parent.name if label else "", **label}


def _with_image(folder: Path, record: Any) -> Any:
    if not isinstance(record, Mapping) or not isinstance(record.get("image"), str):
        return record
    return {"id": record["image"], **record, "image": str(folder / record["image"])}


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


def _hub_dataset(name: str, split: str) -> Iterable[Any]:
    try:
        import datasets
    except ImportError as error:
        raise BadInput(
            found=f"data {name!r}, which is neither a file nor a folder of texts",
            needed="the datasets package, to ask the hub or read its format",
            do="pip install 'whence-tda[datasets]', or check the path",
        ) from error
    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = False  # pyright: ignore[reportAttributeAccessIssue]  # else versions before 4 ask
    try:
        path = Path(name)
        saved = path.is_dir() and any((path / file).exists() for file in ("state.json", "dataset_dict.json"))
        dataset = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, split=split)
        return dataset[split] if isinstance(dataset, dict) else dataset
    except Exception as error:  # the hub, the format and the split can each fail in their own way
        raise BadInput(
            found=f"data {name!r}, which cannot be loaded ({first_line(error)})",
            needed="a file, a folder of texts, a saved dataset or a hub name within reach",
            do="check the path and the split",
        ) from error


def _jsonl(path: Path) -> Iterator[Any]:
    with lines_of(path, is_packed=False) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield parse_json(line, any_number=True)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from error


def _json(path: Path) -> Iterator[Any]:
    content = parse_json(_text_of(path), any_number=True)
    if not isinstance(content, list):
        raise ValueError("not a list of records")
    yield from content


def _text_of(path: Path) -> str:
    """A text that is read as a whole: at most so long as one record may be times a few, never a pipe or a device."""
    return read_plain(path, at_most=_LONGEST_FILE, is_named=True).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def _csv(path: Path) -> Iterator[Any]:
    csv.field_size_limit(_LONGEST_FIELD)
    with open_plain(path, is_named=True) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        header = reader.fieldnames or ()
        twice = next((name for column, name in enumerate(header) if name in header[:column]), None)
        if twice is not None:
            raise ValueError(f"two columns with the name {twice!r}")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"line {reader.line_num}: not as many fields as the header, {len(reader.fieldnames or ())}")
            yield {key: _number(key, value) for key, value in row.items()}


def _number(key: str, value: str) -> Any:
    if key in ("label", "target") and re.fullmatch(r"-?[0-9]+", value):
        return int(value)
    if key == "target":
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _paragraphs(path: Path) -> Iterator[Any]:
    parts = (part.strip() for part in re.split(r"\n[ \t]*\n", _text_of(path)))
    for number, part in enumerate(part for part in parts if part):
        yield {"text": part, "id": f"{path.name}#{number}", "source": path.name}
