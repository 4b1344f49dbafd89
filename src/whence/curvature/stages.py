"""Work in stages, each written whole or not at all, so that it goes on where it stopped.

A stage may be cut into runs of neighbouring items (units of parameters, queries), each of which is kept on its own.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from whence.capture import ModelRecord, check_model, give_back
from whence.distributed import Ranks
from whence.errors import StoreCorrupt, StoreMismatch
from whence.store import check_writable, damaged, read_record, write_tensors
from whence.store.files import locked, read_mapped, write_json

__all__ = ["MODEL", "Stages", "check_identity", "finished_stages", "ranges_of", "stages"]

MODEL = "model"
"""Under this name an identity has a `ModelRecord`, which is compared with a tolerance; all else has to be equal."""


# With the ending of a run of neighbours, first and last.
_STAGE = re.compile(r"[a-z]+(-[0-9]{1,12}-[0-9]{1,12})?")


@dataclass(frozen=True)
class _Record:
    identity: dict[str, Any]
    stages: dict[str, str]


@dataclass(frozen=True)
class Stages:
    """The stages of one piece of work.

    Args:
        folder: Where their tensors are kept; None keeps nothing.
        record: What is in the folder: under "stages" the checksum of every finished one.
        ranks: Connected processes that make each stage together; the first one writes it, and all of them see the folder.
    """

    folder: Path | None
    record: dict[str, Any]
    ranks: Ranks = Ranks()

    @property
    def notes(self) -> list[str]:
        """What a reader should know of what is kept there."""
        if self.folder is None or MODEL in self.record["identity"]:
            return []
        return [
            f"{self.folder} was made before it was recorded what the model computes: only weights, data and settings were compared"
        ]

    def run(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a stage, made or read.

        With a folder they are mapped from a copy of its file that nobody else can reach, made just now or not: the system reads what is
        touched and may drop it again, so they take no memory that is needed elsewhere.

        Args:
            name: Of the stage.
            make: What makes them.

        Returns:
            The tensors by name.

        Raises:
            StoreCorrupt: If the stage's file is not what was written.
        """
        if self.folder is None:
            tensors = make()
            give_back()
            return tensors
        file = self.folder / f"{name}.safetensors"
        if name not in self.record["stages"]:
            tensors = make()
            if self.ranks.rank == 0:
                self.record["stages"][name] = write_tensors(file, tensors)
                write_json(self.folder / "fit.json", self.record)
            del tensors
            give_back()
            # Also waits until the file is there.
            self.record["stages"][name] = self.ranks.of_first(self.record["stages"].get(name))
        try:
            return read_mapped(file, self.record["stages"][name])
        except StoreCorrupt as error:
            raise StoreCorrupt(
                found=error.found, needed="the bytes that the fit wrote", do="delete the folder and fit again"
            ) from error

    def parts(self, stage: str, costs: Sequence[int], room: float) -> dict[str, range]:
        """A stage cut into runs of neighbours that fit, finished runs as they were cut when they were made.

        Args:
            stage: Its name, which is that of a single run over everything, too.
            costs: What each item takes.
            room: What the items of a run may take together; a single item is a run of its own whatever it takes.

        Returns:
            By name the runs, in order; together they have every item once.
        """
        whole = range(len(costs))
        finished = {} if stage not in self.record["stages"] else {stage: whole}
        if not finished:
            for name in self.record["stages"]:
                first, *numbers = name.split("-")
                if first == stage and numbers:
                    finished[name] = range(int(numbers[0]), int(numbers[1]))
        missing = ranges_of(costs, room, [item for part in finished.values() for item in part])
        named = {stage if part == whole else f"{stage}-{part.start}-{part.stop}": part for part in missing}
        return dict(sorted((finished | named).items(), key=lambda item: item[1].start))


def finished_stages(folder: Path) -> tuple[str, ...]:
    """Names of the stages that are finished in a folder, as it says itself; none where nothing was begun."""
    path = folder / "fit.json"
    with suppress(StoreCorrupt):  # which is refused when the stages are read
        return tuple(_read(path)["stages"]) if path.exists() else ()
    return ()


def ranges_of(costs: Sequence[int], room: float, done: Sequence[int] = ()) -> list[range]:
    """Runs of neighbouring items that fit.

    Args:
        costs: What each item takes.
        room: What a run may take; a single item is a run whatever it takes.
        done: Items to leave out.

    Returns:
        The runs, in order.

    >>> ranges_of([3, 3, 3, 9, 1, 1], 6, done=[4])
    [range(0, 2), range(2, 3), range(3, 4), range(5, 6)]
    """
    ranges: list[range] = []
    total, left_out = 0.0, set(done)
    for item, cost in enumerate(costs):
        if item in left_out:
            continue
        total += cost
        if ranges and ranges[-1].stop == item and total <= room:
            ranges[-1] = range(ranges[-1].start, item + 1)
        else:
            ranges.append(range(item, item + 1))
            total = cost
    return ranges


def check_identity(recorded: Mapping[str, Any], current: Mapping[str, Any], what: str, folder: Path) -> list[str]:
    """Refuse to go on with results that depend on something else.

    Args:
        recorded: What they depend on, as recorded.
        current: What they would depend on now; under "model" a `ModelRecord` as JSON, which rounding may change.
        what: They, for the message.
        folder: Where they are kept.

    Returns:
        What a reader should know.

    Raises:
        StoreMismatch: If they do.
        StoreCorrupt: If what is recorded is no record.
    """
    if not isinstance(recorded, dict):
        raise StoreCorrupt(
            found=f"an unreadable record of {what} in {folder}",
            needed="what it was made with",
            do="delete the folder and make it again",
        )
    keys = (recorded.keys() | current.keys()) - {MODEL}
    different = sorted(key for key in keys if recorded.get(key) != current.get(key))
    if different:
        raise StoreMismatch(
            found=f"{what} with another {', another '.join(different)} in {folder}",
            needed="one of the same model, data and settings",
            do="choose another folder, or ask as it was made",
        )
    if MODEL not in recorded or MODEL not in current:
        return []
    return check_model(ModelRecord.from_json(recorded[MODEL]), ModelRecord.from_json(current[MODEL]), f"{what} in {folder}")


@contextmanager
def stages(
    folder: Path | None,
    identity: Callable[[], Mapping[str, Any]],
    ranks: Ranks = Ranks(),
    *,
    what: str = "a curvature fit",
) -> Iterator[Stages]:
    """Keep the results of stages in a folder.

    Args:
        folder: Where; None keeps nothing.
        identity: Makes what the results depend on, as JSON; recorded at first and compared afterwards, under "model" a `ModelRecord`.
        ranks: Connected processes that do the work together.
        what: What is kept there, for errors.

    Yields:
        What runs a stage.

    Raises:
        StoreMismatch: If the folder holds a fit of something else.
    """
    if folder is None:
        yield Stages(None, {"stages": {}}, ranks)
        return
    # Weights that are split over ranks in step are read by all of them together.
    identity_now = json.loads(json.dumps(dict(identity()))) if ranks.in_step or ranks.rank == 0 else {}
    if ranks.rank > 0:
        yield Stages(folder, ranks.of_first(None), ranks)
        return
    check_writable(folder)
    with locked(folder):
        path = folder / "fit.json"
        record = _read(path) if path.exists() else {"identity": identity_now, "stages": {}}
        check_identity(record["identity"], identity_now, what, folder)
        write_json(path, record)
        ranks.of_first(record)
        yield Stages(folder, record, ranks)


def _read(path: Path) -> dict[str, Any]:
    """What `fit.json` says.

    Raises:
        StoreCorrupt: If it is not what is written there.
    """
    record = read_record(_Record, path)
    names = [name for name in record.stages if not _STAGE.fullmatch(name)]
    if names:
        raise StoreCorrupt(**damaged(path, f"a stage {names[0][:80]!r}"))
    return {"identity": record.identity, "stages": record.stages}
