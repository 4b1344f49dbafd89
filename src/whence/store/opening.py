"""Opening a store: refusing what is not whole."""

from pathlib import Path

from whence.distributed import Ranks
from whence.errors import BadInput, StoreChanged, StoreCorrupt, is_question
from whence.plain_files import open_plain
from whence.store.deleted import listed_deleted
from whence.store.files import damaged, file_sizes, reason, refuse_linked
from whence.store.format import Blueprint
from whence.store.manifest import Manifest, read_manifest
from whence.store.reader import Store
from whence.store.remote import is_remote, located
from whence.store.resume import BEFORE, read_seals

__all__ = ["ALONG_FILE", "open_store"]

ALONG_FILE = "along.json"
"""In a folder with a store for each of some checkpoints of a recorded run, what they are of."""

_TRIES = 3


def open_store(folder: str | Path, *, check: bool = True, ranks: Ranks = Ranks()) -> Store:
    """Open a finished store.

    Args:
        folder: Its folder, or a URL; see docs/remote.md.
        check: Whether missing, shortened and altered files are looked for; see `Store.check_unchanged`.
        ranks: Processes that read it together; each looks at its own shards.

    Returns:
        The store.

    Raises:
        BadInput: If there is no store.
        StoreCorrupt: If it is unfinished or damaged.
        StoreChanged: If it is being written to.
    """
    try:
        folder = located(folder)
    except TypeError:
        raise BadInput(
            found=f"a {type(folder).__name__} where a store belongs",
            needed="a store, or the name of its folder",
            do="pass what `whence.build` returned, or the folder",
        ) from None
    for _ in range(_TRIES):
        before = None if is_remote(folder) or not folder.exists() else folder.stat().st_ino
        try:
            return _opened(folder, check, ranks)
        except (StoreCorrupt, StoreChanged):
            # A refit puts another folder in the place of this one, which may be between two of its files.
            if before is None or folder.stat().st_ino == before:
                raise
    return _opened(folder, check, ranks)


def _opened(folder: Path, check: bool, ranks: Ranks) -> Store:
    """The store in a folder; arguments and errors as in `open_store`.

    Raises:
        BadInput: If there is no store.
        StoreCorrupt: If it is unfinished or damaged.
        StoreChanged: If it is being written to.
    """
    if (folder / ALONG_FILE).exists():
        raise BadInput(
            found=f"stores along a recorded run at {folder}",
            needed="a single store",
            do="name one of its subfolders; whence query, score, inspect and verify (query_along, score_along) take them together",
        )
    if not (folder / "blueprint.json").exists() and (folder / "factors").is_dir():
        raise StoreCorrupt(
            found=f"an unfinished store at {folder} (its curvature is being fitted)",
            needed="a finished one",
            do="run the same `whence build` again: it goes on where it stopped",
        )
    if not (folder / "blueprint.json").exists():
        do = "name the store first, and pass a question as --text" if is_question(str(folder)) else "check the path"
        raise BadInput(found=f"no store at {folder}", needed="a folder made by `whence build`", do=do)
    blueprint = Blueprint.read(folder)
    is_whole = (folder / "manifest.json").exists()
    path = folder / ("manifest.json" if is_whole else BEFORE)
    if not path.exists():
        raise StoreCorrupt(**_unfinished(folder))
    if not is_remote(folder):
        refuse_linked(folder / "shards")
    try:
        manifest = read_manifest(path, blueprint)
        deleted = listed_deleted(folder, manifest.shards, manifest.files)
        store = Store.of(folder, blueprint, manifest.shards, manifest.files, deleted).held_open()
        if not is_whole:  # documents are being added, or a damaged store is repaired: only then something of it is missing
            _check_whole(store, ranks)
    except StoreCorrupt as error:
        if is_whole and not path.exists():  # an addition has begun since
            return _opened(folder, check, ranks)
        raise (error if is_whole else StoreCorrupt(**_unfinished(folder))) from error
    if check and is_whole:
        try:
            _check_whole(store, ranks)
        except StoreCorrupt as error:
            if _is_as_read(manifest, folder, blueprint):
                raise
            raise StoreChanged(
                found=f"a store at {folder} that is being written to",
                needed="a finished build",
                do="wait until it is finished and open it again",
            ) from error
    return store


def _unfinished(folder: Path) -> dict[str, str]:
    return {
        "found": f"an unfinished store at {folder} ({len(read_seals(folder))} shards so far)",
        "needed": "a finished build",
        "do": "run the same `whence build` again: it goes on where it stopped",
    }


def _check_whole(store: Store, ranks: Ranks) -> None:
    """Refuse missing, shortened and altered files.

    Raises:
        StoreCorrupt: If there is one.
    """
    sizes = file_sizes(store.folder / "shards")
    for seal in store.seals:
        for name, size in ((seal.tensors_file, seal.tensors_bytes), (seal.examples_file, seal.examples_bytes)):
            path = store.folder / name
            if path.name not in sizes:
                raise StoreCorrupt(**damaged(path, _why_absent(path)))
            if sizes[path.name] != size:
                raise StoreCorrupt(**damaged(path, f"{sizes[path.name]:,} of {size:,} bytes are there"))
    store.check_unchanged(ranks)


def _why_absent(path: Path) -> str:
    try:
        path.open("rb").close() if is_remote(path) else open_plain(path).close()
    except FileNotFoundError:
        pass
    except OSError as error:
        return reason(error)
    return "it is missing"


def _is_as_read(manifest: Manifest, folder: Path, blueprint: Blueprint) -> bool:
    """Whether the manifest is still the one that was read."""
    try:
        return read_manifest(folder / "manifest.json", blueprint) == manifest
    except StoreCorrupt:
        return False
