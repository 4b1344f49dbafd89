"""Scores averaged over several models: seeds, checkpoints.

Axes: Q queries, N training examples.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whence.errors import BadInput, NonFinite, StoreCorrupt
from whence.records import ScoreTable
from whence.store import damaged, disk_errors, locked, read_tensors, sha256_of, write_json, write_tensors

__all__ = ["Ensemble", "mean_table"]

_FORMAT = "whence ensemble 1"
# What a table must share with the members that are already in.
_SHARED = ("query_ids", "train_ids", "unit", "method")


class Ensemble:
    """The mean of tables that are made one after another, kept on disk as their sum.

    Only the sum is kept, in double precision, so that any number of models takes the space of one. A member counts from the moment
    `ensemble.json` names it, which is replaced in one step: a run that is killed leaves the members it had. Several processes may add to one
    folder. Parts of scores by unit and token are not kept.

    Args:
        folder: Made at the first member.
        settings: What else members have to have in common, in words and numbers; None asks for nothing.

    Raises:
        BadInput: If the members there were made with other settings.
        StoreCorrupt: If the folder's record cannot be read.
    """

    def __init__(self, folder: str | Path, *, settings: Mapping[str, Any] | None = None):
        self.folder = Path(folder)
        self._settings = None if settings is None else json.loads(json.dumps(dict(settings)))
        known = self._record()
        if known is not None and self._settings is not None and known["settings"] != self._settings:
            theirs = known["settings"] or {}
            name = next(name for name in {**theirs, **self._settings} if theirs.get(name) != self._settings.get(name))
            raise BadInput(
                found=f"{name}={self._settings.get(name)!r} for the ensemble in {self.folder}, made with {theirs.get(name)!r}",
                needed="members made alike",
                do="use the same settings, or another folder",
            )

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the models that are in, in the order in which they came."""
        known = self._record()
        return () if known is None else tuple(known["members"])

    def __len__(self) -> int:
        return len(self.members)

    def __contains__(self, member: str) -> bool:
        return member in self.members

    def add(self, table: ScoreTable, *, member: str) -> None:
        """Count a model's table in.

        Args:
            table: Its scores, for the same queries and examples in the same order as the other members', of the same method and unit.
            member: A name for the model, such as its seed, step or digest.

        Raises:
            BadInput: If the member is already in, or the table is of other queries, examples, unit or method.
            NonFinite: If a score is NaN or infinite, which no later member could repair.
            StoreCorrupt: If the sum so far is not what was written.
        """
        if not bool(torch.isfinite(table.scores).all()):
            raise NonFinite(found=f"NaN or infinite scores of {member!r}", needed="finite scores", do="leave this model out")
        with locked(self.folder, wait=True):
            known = self._record()
            if known is None:
                known = {"format": _FORMAT, "settings": self._settings, "members": {}, "notes": table.notes}
                known |= {name: getattr(table, name) for name in _SHARED}
                total_QN = torch.zeros(table.scores.shape, dtype=torch.float64)
            else:
                self._check(known, table, member)
                total_QN = self._sum(known)
            total_QN += table.scores.double().cpu()
            known["members"] = {**known["members"], member: _told(table)}
            known["sum"] = f"sum-{len(known['members'])}.safetensors"
            known["sha256"] = write_tensors(self.folder / known["sum"], {"scores": total_QN})
            write_json(self.folder / "ensemble.json", known)
            with disk_errors(self.folder):
                for old in self.folder.glob("sum-*.safetensors"):  # also what a run left that was killed
                    if old.name != known["sum"]:
                        old.unlink()

    def table(self) -> ScoreTable:
        """The mean of the members that are in.

        Returns:
            A table as `mean_table` makes it.

        Raises:
            BadInput: If there are none.
            StoreCorrupt: If the sum is not what was written.
        """
        if not len(self):
            raise BadInput(found=f"no member in {self.folder}", needed="at least one", do="add a table first")
        with locked(self.folder, wait=True):
            known = self._record()
            assert known is not None
            total_QN = self._sum(known)
        query_ids, train_ids, notes = (tuple(known[name]) for name in ("query_ids", "train_ids", "notes"))
        first = ScoreTable(total_QN, query_ids, train_ids, known["unit"], known["method"], notes)
        told = list(known["members"].values())
        return _averaged(first, total_QN / len(told), told)

    def _record(self) -> dict[str, Any] | None:
        path = self.folder / "ensemble.json"
        if not path.exists():
            return None
        try:
            known = json.loads(path.read_bytes())
            if known["format"] != _FORMAT:
                raise ValueError(f"the format {known['format']!r}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreCorrupt(**damaged(path, str(error))) from error
        return known

    def _sum(self, known: Mapping[str, Any]) -> Tensor:
        path = self.folder / known["sum"]
        if not path.is_file() or sha256_of(path) != known["sha256"]:
            raise StoreCorrupt(**damaged(path, "not what was written"))
        return read_tensors(path)["scores"]

    def _check(self, known: Mapping[str, Any], table: ScoreTable, member: str) -> None:
        if member in known["members"]:
            raise BadInput(
                found=f"{member!r} a second time for the ensemble in {self.folder}",
                needed="a model that is not in yet",
                do="leave it out, or give another model another name",
            )
        for name in _SHARED:
            mine, theirs = getattr(table, name), known[name]
            if (list(mine) if isinstance(mine, tuple) else mine) != theirs:
                raise BadInput(
                    found=f"a table with other {name.replace('_', ' ')} than the ensemble in {self.folder}",
                    needed=f"{str(theirs)[:80]}",
                    do="score the same data with the same method for every model",
                )


def mean_table(tables: Sequence[ScoreTable]) -> ScoreTable:
    """Mean of the scores of several models trained alike (the ensembles of Park et al. 2023, section 3.2).

    Args:
        tables: Of one method, for the same queries and examples in the same order.

    Returns:
        A table whose method says how many models; seconds and bytes add up, queries that any was tuned on stay marked. Without parts by unit
        or token.

    Raises:
        BadInput: If there are none, or their ids differ.
    """
    if not tables or len({(table.query_ids, table.train_ids) for table in tables}) != 1:
        raise BadInput(
            found=f"{len(tables)} tables, not all with the same ids in the same order",
            needed="one or more that do",
            do="score the same data with every model",
        )
    scores_QN = torch.stack([table.scores for table in tables]).mean(0)
    return _averaged(tables[0], scores_QN, [_told(table) for table in tables])


def _told(table: ScoreTable) -> dict[str, Any]:
    """What a mean has to know of a member besides its scores."""
    return {name: getattr(table, name) for name in ("tuned_on", "bytes_per_example", "seconds", "provenance")}


def _averaged(first: ScoreTable, scores_QN: Tensor, told: Sequence[Mapping[str, Any]]) -> ScoreTable:
    sizes, times = [each["bytes_per_example"] for each in told], [each["seconds"] for each in told]
    return replace(
        first,
        scores=scores_QN,
        method=f"{first.method}, {len(told)} models",
        parts={},
        tokens={},
        tuned_on=tuple(dict.fromkeys(query for each in told for query in each["tuned_on"])),
        bytes_per_example=None if None in sizes else sum(sizes),
        seconds=None if None in times else sum(times),
        provenance=_common([each.get("provenance", {}) for each in told]),
    )


def _common(known: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Who attributed for whom in several tables: what differs is listed, once each."""
    names = dict.fromkeys(name for one in known for name in one)
    return {name: ", ".join(dict.fromkeys(one[name] for one in known if name in one)) for name in names}
