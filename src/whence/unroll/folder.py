"""The folder of a run that is being recorded: what is written when, and how a stopped run is taken up again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from whence.errors import BadInput, StoreMismatch
from whence.store.files import read_json, read_tensors, write_json, write_tensors
from whence.unroll.steps import Steps

__all__ = ["VERSION", "RunFolder"]

VERSION = 1


class RunFolder:
    """Files of a run. `run.json` is written last: without it nothing of the rest counts.

    Args:
        folder: Where it is.
        seed: Of the run, for the record.
    """

    def __init__(self, folder: Path, seed: int | None):
        self.folder = folder
        self.log = Steps()
        self.record: dict[str, Any] = {
            "version": VERSION, "seed": seed, "finished": False, "steps": 0,
            "checkpoints": [], "logs": [], "settings": [], "stages": [],
        }  # fmt: skip

    @property
    def is_new(self) -> bool:
        """Whether there is no run in it yet."""
        return not (self.folder / "run.json").exists()

    def has_checkpoint(self, step: int) -> bool:
        """Whether the weights after a step are kept."""
        return any(kept["step"] == step for kept in self.record["checkpoints"])

    def add_checkpoint(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep the weights after a step."""
        file = f"checkpoint-{step:09d}.safetensors"
        digest = write_tensors(self.folder / file, tensors)
        self.record["checkpoints"].append({"step": step, "file": file, "sha256": digest})

    def last_checkpoint(self) -> tuple[int, dict[str, Tensor]]:
        """The last step whose weights are kept, and what is kept of it."""
        last = self.record["checkpoints"][-1]
        return last["step"], read_tensors(self.folder / last["file"])

    def flush(self) -> None:
        """Write the steps since the last time, then the record."""
        start, stop = self.record["steps"], self.log.stop
        if stop > start:
            file = f"steps-{start:09d}-{stop:09d}.safetensors"
            digest = write_tensors(self.folder / file, self.log.tensors(start))
            self.record["logs"].append({"start": start, "stop": stop, "file": file, "sha256": digest})
            write_json(self.folder / "ids.json", list(self.log.ids))
        self.record["steps"] = stop
        self.record["settings"] = self.log.settings
        write_json(self.folder / "run.json", self.record)

    def cut(self, step: int) -> None:
        """Forget what came after a step."""
        self.log.cut(step)
        record = self.record
        record["checkpoints"] = [kept for kept in record["checkpoints"] if kept["step"] <= step]
        record["stages"] = [kept for kept in record["stages"] if kept["start"] <= step]
        record["logs"] = [kept for kept in record["logs"] if kept["stop"] <= step]
        record["steps"] = max((kept["stop"] for kept in record["logs"]), default=0)
        self.flush()

    def take_up(self, tensors: Mapping[str, Tensor]) -> None:
        """Read an earlier, unfinished run of the same model.

        Args:
            tensors: What a checkpoint of the model would keep now.

        Raises:
            BadInput: If it was finished.
            StoreMismatch: If it is of another model or version.
        """
        record = read_json(self.folder / "run.json")
        if record.get("version") != VERSION:
            raise StoreMismatch(
                found=f"a run of version {record.get('version')} in {self.folder}",
                needed=f"version {VERSION}",
                do="record into another folder",
            )
        if record["finished"]:
            raise BadInput(
                found=f"a finished run of {record['steps']:,} steps in {self.folder}",
                needed="a folder of its own for every run",
                do="record into another folder, or delete this one",
            )
        kept = read_tensors(self.folder / record["checkpoints"][0]["file"])
        if _shapes(kept) != _shapes(tensors):
            raise StoreMismatch(
                found=f"a run of a model with other weights in {self.folder}",
                needed="the model whose run it is",
                do="record into another folder",
            )
        self.log = Steps.read(self.folder, record)
        self.record = record


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items() if name.startswith("model.")}
