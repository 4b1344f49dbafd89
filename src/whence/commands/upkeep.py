"""Verbs that change a store after it was built, or take its rows elsewhere."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from whence.commands.recorded import task_of_store, train_records
from whence.commands.shared import Placed
from whence.commands.work_options import Recorded, RecordedOptions
from whence.errors import BadInput
from whence.plain_files import read_plain
from whence.settings import Placement
from whence.terminal import tell_json

__all__ = ["delete", "export", "refit"]


def delete(
    store: Path,
    *,
    ids: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    ids_file: Path | None = None,
) -> None:
    """Delete training examples from a store: from now on nothing that reads it shows, scores or counts them.

    Their bytes stay in the files, and what was learned with them is still used, until `whence refit` learns and writes all of it anew.

    Args:
        store: Folder or URL made by `whence build`.
        ids: Ids of the examples.
        ids_file: File with more of them, one on each line.

    Raises:
        BadInput: If an id is in no row of the store, no row would be left, or the file cannot be read.
    """
    from whence.store import delete_rows, open_store

    before = open_store(store).num_deleted
    opened = delete_rows(store, [*ids, *([] if ids_file is None else _ids_in(ids_file))])
    tell_json(
        {"store": str(opened.folder), "rows": len(opened), "deleted": opened.num_deleted, "now": opened.num_deleted - before}
    )


def refit(
    store: Path,
    *,
    train: tuple[str, ...] = (),
    recorded: Recorded = RecordedOptions(),
    placement: Placed = Placement(),
) -> None:
    """Learn a store's curvature, axes and code again from all documents that are left in it, and write all rows anew.

    For stores that grew by documents unlike the first ones, and to be rid of deleted rows. The old store is read until the new one is whole.
    Running it again after a stop goes on. It takes as long as a build, and as much room on the disk again.

    Args:
        store: Folder made by `whence build`.
        train: Where the training data is now, if not where it was at the build; repeated for data that was appended.
        recorded: What is loaded of what the store records.
        placement: How a model is loaded that is larger than a device.

    Raises:
        BadInput: If the model or the data are not known, or the store cannot be made again.
    """
    from whence.pipeline import refit as run
    from whence.store import open_store

    opened = open_store(store)
    records = train_records(opened, store, train, trust=recorded.trust)
    task = task_of_store(opened, store, recorded.model, placement, trust=recorded.trust)
    now_at = ({"model": recorded.model} if recorded.model else {}) | ({"data": train[0]} if len(train) == 1 else {})
    origin = {role: str(Path(name).resolve()) if Path(name).exists() else name for role, name in now_at.items()}
    fresh = run(store, task, records, origin=origin)
    tell_json({"store": str(store), "rows": len(fresh), "bytes_per_row": fresh.codec.row_bytes()})


def export(
    store: Path,
    output: Path,
    *,
    to: Literal["parquet", "lance", "faiss"],
    dtype: Literal["float32", "float16"] = "float32",
    texts: bool = False,
    factory: str = "",
) -> None:
    """Write a store's rows as vectors, with ids and sources, for engines that find the largest inner products with a query's vector.

    `whence query STORE --index OUTPUT` answers from FAISS indices and Lance tables. Deleted rows are left out.

    Args:
        store: Folder or URL made by `whence build`, of a method whose rows are vectors.
        output: Folder, new.
        to: The engine.
        dtype: Type of the vectors.
        texts: Write texts, too.
        factory: For faiss, kind of index as its index_factory names it, such as IVF1024,Flat or HNSW32; an exact one if left out.
    """
    from whence.pipeline import export as run

    tell_json(asdict(run(store, output, to=to, dtype=dtype, texts=texts, factory=factory)) | {"folder": str(output)})


def _ids_in(path: Path) -> list[str]:
    """The ids in a file.

    Raises:
        BadInput: If it is no text file.
    """
    try:
        lines = read_plain(path, is_named=True).decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(found=f"no ids in {path}", needed="a text file with one on each line", do="check the path") from error
    return [name for line in lines if (name := line.removesuffix("\r"))]
