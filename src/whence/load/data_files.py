"""Data by name: a file, a folder, a hub name or a function, as records."""

import csv
import io
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from whence.errors import BadInput, first_line, is_question
from whence.functions import function_at, is_function
from whence.load.arrays import read_npz
from whence.load.harness_tasks import task_records
from whence.load.tar_shards import records_of_file
from whence.load.unpacked import lines_of
from whence.plain_files import open_plain, read_plain
from whence.strict_json import parse_json

__all__ = ["load_records"]

# The csv module refuses fields above 131,072 characters; documents are longer.
_LONGEST_FIELD = 1 << 30
# Of what is read as a whole.
_LONGEST_FILE = 8 << 30
_TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".npz")
_EXPLAINS = ("readme", "license", "licence")
_IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def load_records(data: str, *, split: str = "train") -> Iterable[Any]:
    """Records from a file, a folder, a hub name or a function.

    `.jsonl`, `.jsonl.gz` and `.json` hold mappings, `.parquet` and `.arrow` rows (with pyarrow, extra `datasets`), `.csv` and `.tsv` rows
    with a header, `.txt` one text per paragraph (blank lines between), `.npz` the arrays `X`, `y` and, if there are any, `ids`; a folder
    holds text files (one example each), images in one folder per class, whose name is the label, or a dataset saved by Hugging Face
    `datasets`. An `image` in a file of mappings is a path from that file's folder. `lm_eval:TASK` and `inspect:TASK` are the documents of an
    evaluation's task, see `task_records`.

    Args:
        data: The name.
        split: Which split of a Hugging Face dataset.

    Returns:
        The records, each with a source where the file gives one.

    Raises:
        BadInput: If it cannot be read.
    """
    if (records := task_records(data)) is not None:
        return records
    if is_function(data):
        return function_at(data)()
    path = Path(data)
    if path.is_file():
        suffix = ".jsonl.gz" if path.name.endswith(".jsonl.gz") else path.suffix
        if suffix not in _READERS:
            raise BadInput(found=f"data file {path}", needed=f"one of: {', '.join(_READERS)}", do="convert it")
        with _readable(path):
            return [_with_image(path.parent, record) for record in _READERS[suffix](path)]
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
    elif not path.exists() and (data.startswith((".", "/", "~")) or path.suffix in (*_READERS, ".gz")):
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
    except (ValueError, csv.Error, OSError, EOFError, zlib.error, RecursionError) as error:
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
    with lines_of(path, is_packed=path.suffix == ".gz") as lines:
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


_READERS: Mapping[str, Callable[[Path], Iterable[Any]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".txt": _paragraphs,
    ".npz": read_npz,
    ".jsonl.gz": _jsonl,
    ".parquet": records_of_file,
    ".arrow": records_of_file,
}
"""What reads a file, by how its name ends."""
