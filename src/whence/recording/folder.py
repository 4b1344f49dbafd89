"""The folder of a run that is being recorded: what is written when, and how a stopped run is taken up again."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from whence.capture import ModelRecord, check_model
from whence.errors import BadInput, StoreCorrupt, StoreMismatch
from whence.recording.ranks import Ranks, rank_folder
from whence.recording.record import VERSION, read_run
from whence.recording.steps import Steps
from whence.store.files import read_tensors, tensor_shapes, write_json, write_record, write_tensors
from whence.tasks import Structure

__all__ = ["RunFolder", "check_structure"]

_ANOTHER = "record into another folder"


class RunFolder:
    """Files of a run. `run.json` is written last: without it nothing of the rest counts.

    Of several processes the first writes the weights and the record, the others their steps, each in a folder inside. They write before
    the first does, so that its record never speaks of steps that are not there.

    Args:
        folder: Where the run is.
        ranks: The processes.
        known: What is known of the run from the start: goes into the record, and is compared where a run goes on.
    """

    def __init__(self, folder: Path, ranks: Ranks, identity: Mapping[str, Any]):
        self.run, self.ranks = folder, ranks
        self.folder = folder if ranks.rank == 0 else folder / rank_folder(ranks.rank)
        self.log = Steps()
        self._replaced: list[Path] = []
        self.record: dict[str, Any] = {
            "version": VERSION, "finished": False, "steps": 0, "ranks": ranks.count, "skipped": 0,
            "checkpoints": [], "logs": [], "settings": [], "stages": [], "losses": [], "rules": [], **identity,
        }  # fmt: skip

    @property
    def is_new(self) -> bool:
        """Whether there is no run in it yet, or one of which no step was written."""
        path = self.folder / "run.json"
        return not os.path.lexists(path) or read_run(self.folder, _ANOTHER)["steps"] == 0

    def add_checkpoint(self, step: int, tensors: Mapping[str, Tensor], kind: str = "checkpoint") -> None:
        """Keep the weights after a step; those that were kept of it before are replaced once the record is written."""
        file = f"{kind}-{step:09d}.safetensors"
        digest = write_tensors(self.folder / file, tensors)
        others = [entry for entry in self.record["checkpoints"] if entry["step"] != step]
        old = [entry["file"] for entry in self.record["checkpoints"] if entry["step"] == step]
        self._replaced = [self.folder / name for name in old if name != file]
        self.record["checkpoints"] = [*others, {"step": step, "file": file, "sha256": digest}]

    def add_bases(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep the curvature's bases after a step."""
        file = f"bases-{step:09d}.safetensors"
        others = [entry for entry in self.record.get("bases", []) if entry["step"] != step]
        self.record["bases"] = [*others, {"step": step, "file": file, "sha256": write_tensors(self.folder / file, tensors)}]

    def bases(self, step: int) -> dict[str, Tensor]:
        """The curvature's bases after a step; none where none were kept."""
        entries = [entry for entry in self.record.get("bases", []) if entry["step"] == step]
        return read_tensors(self.run / entries[0]["file"], sha256=entries[0]["sha256"]) if entries else {}

    def has_checkpoint(self, step: int) -> bool:
        """Whether the weights after a step are kept."""
        return any(entry["step"] == step for entry in self.record["checkpoints"])

    def add_rules(self, step: int, fitting: Sequence[list[str] | None], states: Sequence[list[str]], *, is_new: bool) -> None:
        """Keep which rules a step followed, or rules out some of those that earlier ones left possible.

        Args:
            step: That was watched.
            fitting: Per group of parameters the names of the rules, None where nothing moved.
            states: Per group the keys that its optimizer keeps of a parameter.
            is_new: Whether it is the first step that is watched of an optimizer: another may have made those before.
        """
        entries = self.record["rules"]
        begins = is_new and step in {0, *(stage["start"] for stage in self.record["stages"])}
        if entries and not begins and len(entries[-1]["groups"]) == len(fitting):
            both = [
                rule if new_rule is None else new_rule if rule is None else [name for name in rule if name in new_rule]
                for rule, new_rule in zip(entries[-1]["groups"], fitting, strict=True)
            ]
            is_other = is_new and any(not left and rule for left, rule in zip(both, entries[-1]["groups"], strict=True))
            if not is_other:
                entries[-1].update(groups=both, states=list(states))
                return
        entries.append({"start": step, "groups": list(fitting), "states": list(states)})

    def last_checkpoint(self) -> tuple[int, dict[str, Tensor]]:
        """The last step whose weights are kept, and what is kept of it.

        Raises:
            StoreCorrupt: If the file is not what was written.
        """
        last = self.ranks.of_first(self.record["checkpoints"][-1] if self.ranks.rank == 0 else None)
        try:
            return last["step"], read_tensors(self.run / last["file"], sha256=last["sha256"])
        except StoreCorrupt as error:
            do = "restore the folder from a copy, or record again from the start into another folder"
            raise StoreCorrupt(found=error.found, needed=error.needed, do=do) from error

    def write(self) -> None:
        """Write the steps since the last time, then the record; the first process after the others."""
        if self.ranks.rank == 0:
            self.ranks.wait()
            self._write()
        else:
            self._write()
            self.ranks.wait()

    def cut(self, step: int) -> None:
        """Forget what came after a step; the first process before the others."""
        if self.ranks.rank != 0:
            self.ranks.wait()
        self.log.cut(step)
        record = self.record
        record["checkpoints"] = [entry for entry in record["checkpoints"] if entry["step"] <= step]
        if "bases" in record:
            record["bases"] = [entry for entry in record["bases"] if entry["step"] <= step]
        record["stages"] = [entry for entry in record["stages"] if entry["start"] <= step]
        record["losses"] = [entry for entry in record.get("losses", []) if entry["step"] < step]
        record["rules"] = [entry for entry in record.get("rules", []) if entry["start"] < step]
        record["logs"] = [entry for entry in record["logs"] if entry["stop"] <= step]
        record["steps"] = max((entry["stop"] for entry in record["logs"]), default=0)
        self._write()
        if self.ranks.rank == 0:
            self.ranks.wait()

    def take_up(self, tensors: Mapping[str, Tensor]) -> None:
        """Read an earlier, unfinished run of the same model.

        Args:
            tensors: What a checkpoint of the model would keep now.

        Raises:
            BadInput: If it was finished.
            StoreMismatch: If it is of another model, version, number of processes or dataset.
        """
        record = read_run(self.folder, _ANOTHER)
        if record["finished"]:
            raise BadInput(
                found=f"a finished run of {record['steps']:,} steps in {self.folder}",
                needed="a folder of its own for every run",
                do="record into another folder, or delete this one",
            )
        if record.get("ranks", 1) != self.ranks.count:
            raise StoreMismatch(
                found=f"a run of {record.get('ranks', 1)} process(es) in {self.folder}",
                needed=f"one of {self.ranks.count}",
                do="go on with as many as it began with, or record into another folder",
            )
        if record["checkpoints"]:
            shapes = tensor_shapes(self.folder / record["checkpoints"][0]["file"])
            mine = {name: tuple(value.shape) for name, value in tensors.items() if name.startswith("model.")}
            if {name: shape for name, (shape, _) in shapes.items() if name.startswith("model.")} != mine:
                raise StoreMismatch(
                    found=f"a run of a model with other weights in {self.folder}",
                    needed="the model whose run it is",
                    do="record into another folder",
                )
        if record.get("data") != self.record["data"]:
            raise StoreMismatch(
                found=f"a run of other training data in {self.folder}",
                needed="examples with the ids that it began with",
                do="pass the same data, or record into another folder",
            )
        check_structure(record, Structure.from_json(self.record["structure"]), self.folder)
        self.log = Steps.read_own(self.folder, record)
        self.record = record

    def _write(self) -> None:
        start, stop = self.record["steps"], self.log.stop
        if stop > start:
            file = f"steps-{start:09d}-{stop:09d}.safetensors"
            digest = write_tensors(self.folder / file, self.log.tensors(start))
            self.record["logs"].append({"start": start, "stop": stop, "file": file, "sha256": digest})
            write_json(self.folder / "ids.json", list(self.log.ids))
        self.record["steps"] = stop
        self.record["settings"] = self.log.settings
        write_record(self.folder / "run.json", self.record)
        for path in self._replaced:
            with contextlib.suppress(OSError):  # left over: it does no harm
                path.unlink()
        self._replaced = []


def check_structure(record: Mapping[str, Any], here: Structure, folder: Path) -> list[str]:
    """Refuse a model that computes something else than the one that was recorded.

    Args:
        record: What `run.json` says.
        here: What the model at hand says of itself.
        folder: The run's.

    Returns:
        What a reader should know.

    Raises:
        StoreCorrupt: If the record cannot be read.
        StoreMismatch: If it does.
    """
    if record.get("structure") is None:
        return ["the run was recorded before it was kept what its model computes: only weights were compared"]
    there = ModelRecord.from_json({"structure": record["structure"], "probe": None})
    return check_model(there, ModelRecord(here, None), f"a run in {folder}")
