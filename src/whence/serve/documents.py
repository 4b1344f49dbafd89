"""Documents that come and go while a service answers: appended to the store on disk, or deleted from it, as the command line does it.

A service that is killed in between has the store as it was before, or as it is after: building and deleting see to that.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whence.data import Example
from whence.errors import BadInput, WhenceError
from whence.pipeline import build
from whence.pipeline.stored.refit import settings_of
from whence.serve.hosted_store import HostedStore
from whence.serve.responses import Refused
from whence.settings import Runtime
from whence.store import delete_rows, open_store, take_back_unfinished

__all__ = ["id_of", "with_documents", "without_documents"]

_DIGITS = 20


def id_of(document: Mapping[str, Any]) -> str:
    """The id of a document that comes without one: of its text, source and label, so that sending it again is no second one."""
    content = "\0".join(str(document.get(name) or "") for name in ("text", "source", "label"))
    return f"added-{hashlib.sha256(content.encode()).hexdigest()[:_DIGITS]}"


def _folder_to_change(hosted: HostedStore) -> Path:
    """Where a store lies, without what a change that was stopped left: whoever sent that was told nothing, and sends it again.

    Raises:
        BadInput: If a service cannot change this store.
        StoreChanged: If somebody else deleted documents from it.
    """
    if hosted.reopen is None or hosted.kind == "image":
        raise BadInput(
            found=f"documents for the store {hosted.name} of images",
            needed="a store of texts",
            do="change it with `whence build --append` and `whence delete`, and start the service again",
        )
    if "logged" in hosted.prepared.store.blueprint.task:
        raise BadInput(
            found=f"documents for the store {hosted.name}, whose rows were logged while the model was trained",
            needed="a store of `whence build`",
            do="build one",
        )
    hosted.check_not_deleted()
    folder = hosted.prepared.store.folder
    take_back_unfinished(folder)
    return folder


def with_documents(hosted: HostedStore, documents: Sequence[Mapping[str, Any]]) -> tuple[HostedStore, list[str]]:
    """Append documents to a store.

    Args:
        hosted: The store.
        documents: Mappings with `id` and `text`, perhaps `source` and `label`.

    Returns:
        The store with them, and the ids of those that were not in it before.

    Raises:
        BadInput: If an id comes twice, or a service cannot change this store.
        Refused: If an id is that of another text, or of the same document that was deleted before.
    """
    ids = [str(document["id"]) for document in documents]
    twice = next((name for name in ids if ids.count(name) > 1), None)
    if twice is not None:
        raise BadInput(found=f"the id {twice[:80]!r} twice", needed="an id for each document", do="give another one")
    task, folder = hosted.prepared.task, _folder_to_change(hosted)
    new = [example for example in task.prepare(documents).examples if not _is_there(hosted, example)]
    if not new:
        return hosted, []
    added = [example.id for example in new]
    records = [document for document in documents if document["id"] in set(added)]
    build(task, records, folder, append=True, config=settings_of(hosted.prepared.store), runtime=Runtime(quiet=True))
    later = _reopened(hosted)
    missing = next((name for name in added if later.catalog.row_of(name) is None), None)
    if missing is not None:  # a build of the same data adds nothing, and what was deleted stays deleted
        raise Refused(
            409,
            found=f"the document {missing[:80]!r}, which was deleted from the store {hosted.name} and is the same as it was",
            needed="an id that this store never had for that text",
            do="add it with another id",
        )
    return later, added


def without_documents(hosted: HostedStore, ids: Sequence[str]) -> tuple[HostedStore, list[int]]:
    """Delete documents from a store.

    Args:
        hosted: The store.
        ids: Of the documents.

    Returns:
        The store without them, and the rows that they had.

    Raises:
        BadInput: If a service cannot change this store.
        Refused: If there is no document of an id.
    """
    rows = {name: hosted.catalog.row_of(name) for name in ids}
    missing = next((name for name, row in rows.items() if row is None), None)
    if missing is not None:
        raise Refused(
            404, found=f"no document {missing[:80]!r} in the store {hosted.name}", needed="the id of one", do="check it"
        )
    delete_rows(_folder_to_change(hosted), list(rows))
    return _reopened(hosted), [row for row in rows.values() if row is not None]


def _is_there(hosted: HostedStore, example: Example) -> bool:
    """Whether a document is in the store already.

    Raises:
        Refused: If its id is that of another one.
    """
    row = hosted.catalog.row_of(example.id)
    if row is None:
        return False
    stored = hosted.prepared.store.example(row)
    if (stored.get("text", ""), stored.get("source", "")) != (example.text, example.source):
        raise Refused(
            409,
            found=f"another document with the id {example.id[:80]!r}",
            needed="an id of its own",
            do="delete that one first",
        )
    return True


def _reopened(hosted: HostedStore) -> HostedStore:
    assert hosted.reopen is not None  # `_folder_to_change` saw to it
    try:
        later = hosted.reopen(open_store(hosted.prepared.store.folder))
        return dataclasses.replace(later, words_folder=hosted.words_folder)
    except WhenceError as error:
        problem = f"the store {hosted.name}, which was changed and cannot be opened since"
        raise Refused(
            503, found=problem, needed="a store that is whole", do="run `whence verify`, and start the service again"
        ) from error
