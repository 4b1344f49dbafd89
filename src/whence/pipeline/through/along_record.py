"""What a folder of stores along a recorded run says of itself, and opening it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from whence.errors import BadInput, StoreCorrupt, StoreMismatch
from whence.pipeline.through.along import Point
from whence.store import ALONG_FILE, Store, located, open_store, read_record, verify_store, write_record
from whence.unroll import Run, open_run

__all__ = ["AlongRecord", "AlongStores", "StoredPoint", "is_along", "open_along", "origin_of", "read_along", "write_along"]

_VERSION = 1


@dataclass(frozen=True)
class StoredPoint:
    """A checkpoint that a store is built at.

    Args:
        step: Steps before it.
        weight: Its share of the run's learning rates.
        rows: Examples that its stage met.
    """

    step: int
    weight: float
    rows: int

    @property
    def name(self) -> str:
        """Of its subfolder."""
        return f"step-{self.step}"


@dataclass(frozen=True)
class AlongRecord:
    """What stores along a run are of.

    Args:
        version: Of this record.
        run: Folder of the run when they were built.
        digest: Of the run.
        steps: Of the run.
        checkpoints: Per stage, as asked.
        points: In order of steps.
        notes: What could not be compared, and which examples no store has.
    """

    version: int
    run: str
    digest: str
    steps: int
    checkpoints: int
    points: tuple[StoredPoint, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, run: Run, checkpoints: int, points: Sequence[Point], notes: Sequence[str]) -> "AlongRecord":
        """Of a run that stores are about to be built along."""
        stored = tuple(StoredPoint(point.step, point.weight, len(point.shares)) for point in points)
        return cls(_VERSION, str(run.folder.resolve()), run.digest, run.steps, checkpoints, stored, tuple(notes))

    def opened_run(self, folder: str | Path | None) -> Run:
        """The run.

        Args:
            folder: Where it is now; None for where it was.

        Raises:
            BadInput: If it is not there.
            StoreMismatch: If it is another run.
        """
        is_there = Path(self.run).is_absolute() and (Path(self.run) / "run.json").exists()
        if folder is None and not is_there:
            raise BadInput(
                found=f"no run at {self.run}, where it was when the stores were built",
                needed="the recorded run, whose weights queries are asked at",
                do="pass run (--run) with the folder where it is now",
            )
        run = open_run(folder or self.run)
        if run.digest != self.digest:
            raise StoreMismatch(
                found=f"another run in {run.folder} than the one that the stores were built along",
                needed=f"the run of {self.steps:,} steps with the digest {self.digest[:12]}",
                do="pass the folder of that run, or build stores along this one into another folder",
            )
        return run


def origin_of(record: AlongRecord, point: StoredPoint) -> Mapping[str, Any]:
    """What the store of a checkpoint records of the run."""
    return {"digest": record.digest, "step": point.step}


@dataclass(frozen=True)
class AlongStores:
    """Finished stores along a run.

    Args:
        folder: Where they are.
        record: What they are of.
        stores: In order of steps.
    """

    folder: Path
    record: AlongRecord
    stores: tuple[Store, ...]

    def __len__(self) -> int:
        return len(self.ids())

    def ids(self) -> tuple[str, ...]:
        """Of the examples that are in any store, each once."""
        return tuple(dict.fromkeys(name for store in self.stores for name in store.ids()))

    def pairs(self) -> Iterator[tuple[StoredPoint, Store]]:
        """Checkpoints and their stores.

        Yields:
            A pair each.
        """
        yield from zip(self.record.points, self.stores, strict=True)

    def to_json(self) -> dict[str, Any]:
        """What `whence inspect --json` shows beside each store."""
        return {"folder": str(self.folder), **asdict(self.record), "notes": list(self.record.notes)}

    def faults(self) -> list[str]:
        """What is not as it was sealed, a line each, of all stores."""
        return [fault for _, store in self.pairs() for fault in verify_store(store)]


def is_along(folder: str | Path) -> bool:
    """Whether a folder has stores along a run."""
    return (located(folder) / ALONG_FILE).exists()


def read_along(folder: Path) -> AlongRecord:
    """What stores along a run are of.

    Args:
        folder: Where they are.

    Raises:
        BadInput: If there are none.
        StoreCorrupt: If the record is not what was written.
        StoreMismatch: If another version wrote it.
    """
    if not (folder / ALONG_FILE).exists():
        raise BadInput(
            found=f"no stores along a run at {folder}",
            needed="a folder made by `whence build --run` or build_along",
            do="check the path",
        )
    record = read_record(AlongRecord, folder / ALONG_FILE)
    if record.version != _VERSION:
        raise StoreMismatch(
            found=f"stores along a run of version {record.version} in {folder}",
            needed=f"version {_VERSION}",
            do="build them again",
        )
    return record


def write_along(folder: Path, record: AlongRecord) -> None:
    """Write down what stores are about to be built; the same again is a build that goes on.

    Args:
        folder: Where they go.
        record: What they are of.

    Raises:
        BadInput: If there is a single store.
        StoreMismatch: If the folder has stores along another run, or at other checkpoints.
    """
    if (folder / "blueprint.json").exists():
        raise BadInput(
            found=f"a single store in {folder}",
            needed="a new folder for stores along a run, or one of the same run",
            do="choose another folder",
        )
    if (folder / ALONG_FILE).exists():
        earlier = read_along(folder)
        if (earlier.digest, earlier.points) != (record.digest, record.points):
            what = "along another run" if earlier.digest != record.digest else f"with checkpoints={earlier.checkpoints}"
            raise StoreMismatch(
                found=f"stores {what} in {folder}",
                needed=f"those of the run in {record.run} with checkpoints={record.checkpoints}",
                do="choose another folder, or the same run and checkpoints to go on",
            )
        if earlier == record:
            return
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder / ALONG_FILE, asdict(record))


def open_along(folder: str | Path, *, check: bool = True, **options: Any) -> AlongStores:
    """Open finished stores along a run.

    Args:
        folder: Where they are.
        check: As in `whence.open_store`.
        options: The same.

    Returns:
        The stores.

    Raises:
        BadInput: If there are none, or one is missing.
        StoreCorrupt: If one is damaged.
        StoreMismatch: If one was not built along this run.
    """
    folder = located(folder)
    record, stores = read_along(folder), []
    for point in record.points:
        if not (folder / point.name / "manifest.json").exists():
            raise BadInput(
                found=f"no finished store {point.name} in {folder}",
                needed=f"one at each of {len(record.points)} checkpoints of the run",
                do="run the same `whence build --run` (build_along) again: it goes on where it stopped",
            )
        store = open_store(folder / point.name, check=check, **options)
        if store.blueprint.task.get("run") != origin_of(record, point):
            raise StoreMismatch(
                found=f"a store in {folder / point.name} that was not built along this run",
                needed=f"the one that was built at its checkpoint after {point.step:,} steps",
                do="take it away and run the same `whence build --run` (build_along) again",
            )
        if (rows := len(store) + store.num_deleted) != point.rows:
            raise StoreCorrupt(
                found=f"a store of {rows:,} examples in {folder / point.name}",
                needed=f"the {point.rows:,} that the checkpoint's stage met",
                do="take it away and run the same `whence build --run` (build_along) again",
            )
        stores.append(store)
    return AlongStores(folder, record, tuple(stores))
