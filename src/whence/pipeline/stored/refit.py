"""A store learned again from all documents that are left in it: curvature, axes, code and rows.

The new store is built beside the old one, which is read until they change names in one step. What was built is found again by the next call.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from whence.data import Dataset
from whence.errors import BadInput, StoreChanged, StoreCorrupt, WhenceError
from whence.methods import method_named
from whence.pipeline.inputs import as_dataset, refuse_bare_model
from whence.pipeline.stored.anchors import is_anchored
from whence.pipeline.stored.build import build
from whence.pipeline.stored.prepared import PreparedStore
from whence.pipeline.stored.rerank import matched
from whence.progress import say
from whence.settings import BuildConfig, Runtime
from whence.sharded_weights import refuse_sharded
from whence.store import (
    Store,
    check_exchange,
    damaged,
    delete_rows,
    exchange_folders,
    fitted,
    is_remote,
    located,
    locked,
    open_store,
    read_record,
    with_deleted,
    write_record,
)
from whence.tasks import AbstractTask

__all__ = ["refit", "settings_of", "unfinished_refit"]

_RECORD = "refit.json"
# Of a task's origin: what a build writes there by itself.
_BY_BUILD = ("kind", "bases", "code", "build")


@dataclass(frozen=True)
class _Progress:
    """What is being made beside a store.

    Args:
        source: Digest of the store that it is made from.
        data: Fingerprint of the documents that are left in it.
        result: Digest of the new store; empty until it is whole.
    """

    source: str
    data: str
    result: str = ""


def refit(
    store: str | Path,
    task: AbstractTask,
    train: Dataset | Iterable[Any],
    *,
    origin: dict[str, Any] | None = None,
    quiet: bool = False,
) -> Store:
    """Learn a store's curvature, axes and code again from all documents that are left in it, and write all rows anew.

    For stores that grew by documents unlike the first ones, and to be rid of deleted rows. The result has the bytes of a build from those
    documents in the order of the rows, with the settings of the first build. It takes as long as that, and as much room on the disk besides
    the old store, which is read as before until the new one is whole. A call after a stop goes on.

    Args:
        store: Its folder, on a disk; a hidden folder beside it is used.
        task: The model that it was built with.
        train: At least the documents that are left, in any order; see `whence.query` with `rerank`.
        origin: What is to be recorded of model and data otherwise than at the build, such as where the data lies now.
        quiet: No progress on stderr.

    Returns:
        The store, in the same folder.

    Raises:
        BadInput: If it lies in an object store, its rows were logged while training, or the file system cannot exchange folders.
        StoreMismatch: If documents are missing or changed, or the model is another.
        StoreChanged: If the store grew in the meantime.
    """
    refuse_bare_model(task)
    refuse_sharded(task.model, "a refit")
    folder = located(store)
    _refuse_what_cannot_be_made_again(folder)
    folder = Path(os.path.realpath(folder))
    report = (lambda text: None) if quiet else say
    work = _work_of(folder)
    with _beside(work):
        opened = open_store(folder)
        progress = _progress(work)
        if progress is not None and progress.result == opened.digest:  # they changed names, and then it was stopped
            shutil.rmtree(work / "store", ignore_errors=True)
            return opened
        PreparedStore.load(opened, task)  # refuses another model
        if not opened.num_deleted and len(opened.datasets()) == 1:
            report(f"{folder} was learned from all of its documents, and none was deleted: nothing to do")
            shutil.rmtree(work / "store", ignore_errors=True)
            return opened
        check_exchange(folder, work)
        dataset = _left(opened, as_dataset(task, train), report)
        wanted = _Progress(opened.digest, dataset.fingerprint)
        if progress is None or (progress.source, progress.data) != (wanted.source, wanted.data):
            if (work / "store").exists():
                report(f"{folder} has changed since a refit of it was stopped: it begins anew")
                shutil.rmtree(work / "store")
            write_record(work / _RECORD, asdict(wanted))
        recorded = {name: value for name, value in opened.blueprint.task.items() if name not in _BY_BUILD}
        learned = build(
            task, dataset, work / "store",
            origin={**recorded, **(origin or {})}, config=settings_of(opened), runtime=Runtime(quiet=quiet),
        )  # fmt: skip
        _exchange(folder, opened, learned, wanted, work)
        shutil.rmtree(work / "store")
    return open_store(folder)


def unfinished_refit(store: str | Path) -> Path | None:
    """Where a refit of a store was stopped, which another call goes on with.

    Args:
        store: Its folder, or a URL, where there is none.

    Returns:
        The hidden folder beside it; None if there is none.
    """
    folder = located(store)
    if is_remote(folder):
        return None
    work = _work_of(Path(os.path.realpath(folder)))
    return work if (work / "store").exists() else None


def _work_of(folder: Path) -> Path:
    """The hidden folder in which a store is made anew."""
    return folder.with_name(f".{folder.name}.refit")


def settings_of(store: Store) -> BuildConfig:
    """The settings that a store was built with, for a build like it.

    Raises:
        StoreCorrupt: If it records others than a build does.
    """
    blueprint, method = store.blueprint, method_named(store.blueprint.method)
    always = {"method": method.name, "batch_positions": blueprint.batch_positions}
    if "build" in blueprint.task:
        try:
            return BuildConfig(**always, **fitted(dict[str, int | float | str], blueprint.task["build"], "build"))
        except (TypeError, WhenceError) as error:
            why = f"its settings are not those of a build: {error}"
            raise StoreCorrupt(**damaged(store.folder / "blueprint.json", why)) from error
    # Built before settings were recorded: what the rows say of them.
    settings: dict[str, Any] = {
        "rank": blueprint.rank,
        "dtype": blueprint.dtype,
        "factor_rank": blueprint.factor_rank or 0,
        "curvature_rank": blueprint.curvature_rank or 0,
        "projection": "method" if blueprint.projection == method.projection else blueprint.projection,
        "seed": blueprint.seed,
        "rows_per_shard": blueprint.rows_per_shard,
        "autocast": blueprint.autocast or "none",
    }
    if method.encoder == "aligned":
        settings["relative_damping"] = float(store.file("codes.safetensors")["damping"])
        if len(blueprint.units) > 1:
            settings |= {"rank": 0, "dtype": "method", "bytes_per_example": store.codec.row_bytes()}
    return BuildConfig(**always, **settings)


def _refuse_what_cannot_be_made_again(folder: Path) -> None:
    """Refuse stores that a build cannot make.

    Raises:
        BadInput: If it is one.
    """
    if is_remote(folder):
        raise BadInput(
            found=f"a refit of {folder}",
            needed="a store on a disk, where two folders can change names",
            do="build a new store under another URL, which is what a refit makes",
        )
    opened = open_store(folder, check=False)
    if is_anchored(opened):
        raise BadInput(
            found=f"a store in {folder} whose axes are those of anchors",
            needed="axes that are learned from documents",
            do="build a store with the same anchors from the documents that are left",
        )
    if "logged" in opened.blueprint.task:
        raise BadInput(
            found=f"a store in {folder} whose rows were logged while the model was trained",
            needed="rows of the weights at hand, since those of earlier weights cannot be made again",
            do="build a store with `whence build`",
        )


@contextlib.contextmanager
def _beside(work: Path) -> Iterator[None]:
    """Keep a folder to this process, and remove it unless a store has been begun in it.

    Yields:
        Nothing.
    """
    with locked(work):
        try:
            yield
        finally:
            if not (work / "store").exists():
                shutil.rmtree(work)


def _progress(work: Path) -> _Progress | None:
    """What an earlier call left; None if it left nothing that can be read."""
    try:
        return read_record(_Progress, work / _RECORD)
    except StoreCorrupt:
        return None


def _left(store: Store, train: Dataset, report: Callable[[str], object]) -> Dataset:
    """The documents that are left in a store, in the order of its rows."""
    dataset = Dataset(matched(store, train), train.skipped)
    more = len(set(train.ids) - set(with_deleted(store).ids()))
    if more:
        report(
            f"note: {more:,} examples of the data are not in {store.folder} and stay out of it; `whence build --append` adds them"
        )
    return dataset


def _exchange(folder: Path, before: Store, learned: Store, progress: _Progress, work: Path) -> None:
    """Put the new store into the place of the old one, without what was deleted from that in the meantime.

    Raises:
        StoreChanged: If more than that was done to it.
    """
    with locked(folder, wait=True):
        now = open_store(folder, check=False)
        if now.digest != before.digest:
            ids = set(now.ids())
            newly_deleted = [name for name in before.ids() if name not in ids]
            if not newly_deleted or now.ids() != tuple(name for name in before.ids() if name in ids):
                raise StoreChanged(
                    found=f"a store at {folder} that was added to while it was refit",
                    needed="the documents that it began with, or fewer",
                    do="run the refit again, with the added documents too",
                )
            learned = delete_rows(learned.folder, newly_deleted)
        write_record(work / _RECORD, {**asdict(progress), "result": learned.digest})
        exchange_folders(folder, learned.folder)
