"""Verbs that change a store after it was built."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from whence.errors import BadInput
from whence.plain_files import read_plain
from whence.terminal import tell_json

__all__ = ["delete"]


def delete(
    store: Path,
    *,
    ids: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    ids_file: Path | None = None,
) -> None:
    """Delete training examples from a store: from now on nothing that reads it shows, scores or counts them.

    Their bytes stay in the files, and what was learned with them is still used, until a store is built anew.

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
