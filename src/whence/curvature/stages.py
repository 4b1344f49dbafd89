"""A fit in stages, each written whole or not at all, so that it goes on where it stopped."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from whence.errors import StoreCorrupt, StoreMismatch
from whence.store import check_writable, read_tensors, sha256_of, write_tensors
from whence.store.files import locked, read_json, write_json

__all__ = ["RunStage", "stages"]

RunStage = Callable[[str, Callable[[], dict[str, Tensor]]], dict[str, Tensor]]
"""Takes the name of a stage and what makes its tensors; returns them, from the folder if they are there."""


@contextmanager
def stages(folder: Path | None, identity: Callable[[], Mapping[str, Any]]) -> Iterator[RunStage]:
    """Keep the results of stages in a folder.

    Args:
        folder: Where; None keeps nothing.
        identity: Makes what the results depend on, as JSON; recorded at first and compared afterwards.

    Yields:
        The function that runs a stage.

    Raises:
        StoreMismatch: If the folder holds a fit of something else.
        StoreCorrupt: If a stage's file is not what was written.
    """
    if folder is None:
        yield lambda name, make: make()
        return
    check_writable(folder)
    with locked(folder):
        path = folder / "fit.json"
        wanted = json.loads(json.dumps(dict(identity())))
        record = read_json(path) if path.exists() else {"identity": wanted, "stages": {}}
        different = sorted(
            key for key in wanted.keys() | record["identity"].keys() if wanted.get(key) != record["identity"].get(key)
        )
        if different:
            raise StoreMismatch(
                found=f"a curvature fit with another {', another '.join(different)} in {folder}",
                needed="one of the same model, data and settings",
                do="fit into another folder, or ask as it was fitted",
            )
        write_json(path, record)

        def run(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
            file = folder / f"{name}.safetensors"
            if name in record["stages"]:
                if not file.exists() or sha256_of(file) != record["stages"][name]:
                    raise StoreCorrupt(
                        found=f"a damaged file {file} (it is missing or its checksum is another)",
                        needed="the bytes that the fit wrote",
                        do="delete the folder and fit again",
                    )
                return read_tensors(file)
            tensors = make()
            record["stages"][name] = write_tensors(file, tensors)
            write_json(path, record)
            return tensors

        yield run
