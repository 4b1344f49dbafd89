"""What an earlier build has left in a store's folder, which a build goes on with."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from whence.errors import BadInput, StoreCorrupt, StoreMismatch
from whence.methods import method_named
from whence.pipeline.stored.same_model import PROBE_FILE
from whence.settings import BuildConfig
from whence.store import (
    ALONG_FILE,
    Blueprint,
    Seal,
    Store,
    check_same,
    damaged,
    listed_files,
    open_store,
    read_tensors,
    sha256_of,
)

__all__ = ["earlier_build", "earlier_probe_of", "whole_store"]


def earlier_build(folder: Path, weights: str, config: BuildConfig) -> Blueprint | None:
    """What an earlier build in the folder has decided.

    Raises:
        BadInput: If the folder has stores along a run.
        StoreMismatch: If it was of another model or method; the method is refused here, before another one's code is learned.
    """
    if (folder / ALONG_FILE).exists():
        raise BadInput(
            found=f"stores along a recorded run in {folder}",
            needed="a new folder, or one with a single store",
            do="choose another folder, or add --run (build_along) to go on with them",
        )
    if not (folder / "blueprint.json").exists():
        return None
    earlier = Blueprint.read(folder)
    if earlier.model != weights:
        raise StoreMismatch(
            found=f"a store of other weights in {folder}",
            needed=f"weights {earlier.model[:8]}, not {weights[:8]}",
            do="build into another folder, or load the model that this store was built with",
        )
    check_same("method", earlier.method, method_named(config.method).name, folder)
    return earlier


def whole_store(folder: Path, seals: Mapping[int, Seal]) -> Store | None:
    """The finished store in a folder; None where there is none, or a part of it has to be made again."""
    if listed_files(folder) is None:
        return None
    with suppress(StoreCorrupt):
        store = open_store(folder, check=False)
        return store if len(store.sealed) == len(seals) else None
    return None


def earlier_probe_of(folder: Path, earlier: Blueprint | None) -> dict[str, Tensor] | None:
    """What an earlier build in the folder kept of its model.

    Raises:
        StoreCorrupt: If it is not what was sealed.
    """
    path = folder / PROBE_FILE
    if earlier is None or not path.exists():
        return None
    sealed = (listed_files(folder) or {}).get(PROBE_FILE)
    if sealed is not None and sha256_of(path) != sealed:
        raise StoreCorrupt(**damaged(path, "its checksum is not the sealed one"))
    return dict(read_tensors(path))
