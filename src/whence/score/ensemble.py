"""Scores averaged over several models: seeds, checkpoints.

Axes: Q queries, N training examples.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whence.errors import BadInput, NonFinite, StoreCorrupt, StoreMismatch
from whence.methods import METHODS
from whence.records import ScoreTable, Values, values_by_unit
from whence.store import (
    check_name,
    damaged,
    disk_errors,
    fitted,
    locked,
    read_json,
    read_tensors,
    record_of,
    write_record,
    write_tensors,
)
from whence.tasks import Structure, differences

__all__ = ["Ensemble", "mean_table"]

# The second has the weights of TRAK and GraSS beside the scores; a reader that knows only the first would leave them out.
_FORMAT, _WEIGHTED_FORMAT = "whence ensemble 1", "whence ensemble 2"
# What a table must share with the members that are already in.
_SHARED = ("query_ids", "train_ids", "unit", "method", "values")


@dataclass(frozen=True)
class _Record:
    """What `ensemble.json` holds."""

    format: str
    settings: dict[str, Any] | None
    members: dict[str, dict[str, Any]]
    notes: tuple[str, ...]
    query_ids: tuple[str, ...]
    train_ids: tuple[str, ...]
    unit: str
    method: str
    sum: str
    sha256: str
    values: Values | None = None


class Ensemble:
    """The mean of tables that are made one after another, kept on disk as their sum.

    Only the sum is kept, in double precision, so that any number of models takes the space of one. A member counts from the moment
    `ensemble.json` names it, which is replaced in one step: a run that is killed leaves the members it had. Several processes may add to one
    folder. Parts of scores by unit and token are not kept.

    Of TRAK and GraSS scores and weights are averaged apart and then multiplied (Park et al. 2023, section 3), so their tables have to be made
    with `score_table(..., weighted=False)`.

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
        record = self._record()
        if record is not None and self._settings is not None and record["settings"] != self._settings:
            theirs = record["settings"] or {}
            name = next(name for name in {**theirs, **self._settings} if theirs.get(name) != self._settings.get(name))
            raise BadInput(
                found=f"{name}={self._settings.get(name)!r} for the ensemble in {self.folder}, made with {theirs.get(name)!r}",
                needed="members made alike",
                do="use the same settings, or another folder",
            )

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the models that are in, in the order in which they came."""
        record = self._record()
        return () if record is None else tuple(record["members"])

    def __len__(self) -> int:
        return len(self.members)

    def __contains__(self, member: str) -> bool:
        return member in self.members

    def add(self, table: ScoreTable, *, member: str, structure: Structure | None = None) -> None:
        """Count a model's table in.

        Args:
            table: Its scores, for the same queries and examples in the same order as the other members', of the same method and unit.
            member: A name for the model, such as its seed, step or digest.
            structure: What the model computes besides its weights, for `check_structure`.

        Raises:
            BadInput: If the member is already in, the table is of other queries, examples, unit or method, or weights are multiplied into
                its scores.
            NonFinite: If a score is NaN or infinite, which no later member could repair.
            StoreCorrupt: If the sum so far is not what was written.
        """
        if not bool(torch.isfinite(table.scores).all()):
            raise NonFinite(found=f"NaN or infinite scores of {member!r}", needed="finite scores", do="leave this model out")
        _refuse_weighted([table])
        with locked(self.folder, wait=True):
            record = self._record()
            if record is None:
                form = _FORMAT if table.weights is None else _WEIGHTED_FORMAT
                record = {"format": form, "settings": self._settings, "members": {}, "notes": table.notes}
                record |= {name: getattr(table, name) for name in _SHARED}
                total = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in _summed(table).items()}
            else:
                self._check(record, table, member)
                total = self._sum(record)
            for name, value in _summed(table).items():
                total[name] = total[name] + value.double().cpu()
            structure_entry = {} if structure is None else {"structure": asdict(structure)}
            record["members"] = {**record["members"], member: _member_facts(table) | structure_entry}
            record["sum"] = f"sum-{len(record['members'])}.safetensors"
            record["sha256"] = write_tensors(self.folder / record["sum"], total)
            write_record(self.folder / "ensemble.json", record)
            self._clean(record)

    def check_structure(self, member: str, structure: Structure) -> None:
        """Refuse a model with a member's weights that computes something else.

        Args:
            member: One that is in.
            structure: What the model at hand computes besides its weights.

        Raises:
            BadInput: If it does.
        """
        record = self._record()
        there = {} if record is None else record["members"][member].get("structure")
        changes = differences(Structure.from_json(there), structure) if there else []
        if changes and changes[0].is_certain:
            raise BadInput(
                found=f"a model with the weights of a member of {self.folder} that computes something else: {changes[0].what}",
                needed="the model that was added, or one with other weights",
                do="load it with the configuration and the code that it had then, or use another folder",
            )

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
            record = self._record()
            assert record is not None
            total = self._sum(record)
            self._clean(record)
        query_ids, train_ids, notes = (tuple(record[name]) for name in ("query_ids", "train_ids", "notes"))
        facts = record["unit"], record["method"], notes
        first = ScoreTable(total["scores"], query_ids, train_ids, *facts, values=record["values"])
        members = list(record["members"].values())
        return _averaged(first, {name: value / len(members) for name, value in total.items()}, members)

    def _record(self) -> dict[str, Any] | None:
        path = self.folder / "ensemble.json"
        if not os.path.lexists(path):
            return None
        content = read_json(path)
        form = content.get("format") if isinstance(content, dict) else None
        if form not in (_FORMAT, _WEIGHTED_FORMAT):
            raise StoreCorrupt(**damaged(path, f"the format {str(form)[:40]!r}"))
        try:
            record = record_of(_Record, content)
            for member in record.members.values():
                _check_member(member)
            check_name(record.sum)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreCorrupt(**damaged(path, f"it is incomplete: {error}")) from error
        if not record.members:
            raise StoreCorrupt(**damaged(path, "it has no members"))
        return {**content, "values": record.values or values_by_unit(record.unit)}

    def _clean(self, record: Mapping[str, Any]) -> None:
        """Remove sums from before the last member, and what a killed run left."""
        with disk_errors(self.folder):
            for old in self.folder.glob("sum-*.safetensors"):
                if old.name != record["sum"]:
                    old.unlink()

    def _sum(self, record: Mapping[str, Any]) -> dict[str, Tensor]:
        """Sums over the members: `scores` and, of methods with weights, `weights`.

        Raises:
            StoreCorrupt: If they are not what was written.
            StoreMismatch: If an earlier version has added up scores with weights multiplied in.
        """
        path = self.folder / record["sum"]
        method = METHODS.get((record["settings"] or {}).get("method", ""))
        if method is not None and method.objective == "output" and record["format"] == _FORMAT:
            raise StoreMismatch(
                found=f"an ensemble of {method.name} in {self.folder} whose members' weights are multiplied into their scores",
                needed="sums of scores and of weights, which are averaged apart",
                do="add the members again to another folder",
            )
        tensors = read_tensors(path, sha256=record["sha256"])
        queries, examples = len(record["query_ids"]), len(record["train_ids"])
        shapes = {"scores": (queries, examples), **({} if record["format"] == _FORMAT else {"weights": (examples,)})}
        if {name: tuple(value.shape) for name, value in tensors.items()} != shapes:
            raise StoreCorrupt(**damaged(path, "it has other sums than its record speaks of"))
        if not all(value.is_floating_point() and bool(torch.isfinite(value).all()) for value in tensors.values()):
            raise StoreCorrupt(**damaged(path, "it has sums that are not finite"))
        return tensors

    def _check(self, record: Mapping[str, Any], table: ScoreTable, member: str) -> None:
        if member in record["members"]:
            raise BadInput(
                found=f"{member!r} a second time for the ensemble in {self.folder}",
                needed="a model that is not in yet",
                do="leave it out, or give another model another name",
            )
        if (table.weights is None) != (record["format"] == _FORMAT):
            raise BadInput(
                found=f"a table with{'out' if table.weights is None else ''} weights for the ensemble in {self.folder}",
                needed="members made alike",
                do="score every model with the same method",
            )
        for name in _SHARED:
            mine, theirs = getattr(table, name), record[name]
            if (list(mine) if isinstance(mine, tuple) else mine) != theirs:
                raise BadInput(
                    found=f"a table with other {name.replace('_', ' ')} than the ensemble in {self.folder}",
                    needed=f"{str(theirs)[:80]}",
                    do="score the same data with the same method for every model",
                )


def _check_member(member: Mapping[str, Any]) -> None:
    """Refuse what `_told` does not say of a member.

    Raises:
        TypeError: If something is of another type.
        KeyError: If something is missing.
    """
    fitted(tuple[str, ...], member["tuned_on"], "tuned_on")
    fitted(float | None, member["bytes_per_example"], "bytes_per_example")
    fitted(float | None, member["seconds"], "seconds")
    fitted(dict[str, str], member.get("provenance", {}), "provenance")


def mean_table(tables: Sequence[ScoreTable]) -> ScoreTable:
    """Mean of the scores of several models trained alike (the ensembles of Park et al. 2023, section 3.2).

    Tables with `weights` have scores and weights averaged apart and then multiplied.

    Args:
        tables: Of one method, for the same queries and examples in the same order.

    Returns:
        A table whose method says how many models; seconds and bytes add up, queries that any was tuned on stay marked. Without parts by unit
        or token.

    Raises:
        BadInput: If there are none, their ids or what their values are differ, or weights are multiplied into their scores.
    """
    _refuse_weighted(tables)
    if not tables or len({(table.query_ids, table.train_ids) for table in tables}) != 1:
        raise BadInput(
            found=f"{len(tables)} tables, not all with the same ids in the same order",
            needed="one or more that do",
            do="score the same data with every model",
        )
    if len({table.weights is None for table in tables}) > 1:
        raise BadInput(
            found="tables with and without weights", needed="tables of one method", do="score every model with the same method"
        )
    kinds = sorted({table.values for table in tables})
    if len(kinds) > 1:
        raise BadInput(
            found=f"tables of {' and of '.join(kinds)}", needed="tables of one kind", do="average each kind by itself"
        )
    parts = [_summed(table) for table in tables]
    means = {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}
    return _averaged(tables[0], means, [_member_facts(table) for table in tables])


def _refuse_weighted(tables: Sequence[ScoreTable]) -> None:
    """Refuse products of scores and weights, from which neither can be averaged any more.

    Raises:
        BadInput: If a table has them.
    """
    for table in tables:
        if table.is_weighted:
            raise BadInput(
                found=f"a table of {table.method} with the examples' weights multiplied into its scores",
                needed="scores and weights apart, since an ensemble averages each by itself",
                do="make it with score_table(..., weighted=False), or take whence.pipeline.ensemble_table",
            )


def _summed(table: ScoreTable) -> dict[str, Tensor]:
    """What is added up over models."""
    return {"scores": table.scores} | ({} if table.weights is None else {"weights": table.weights})


def _member_facts(table: ScoreTable) -> dict[str, Any]:
    """What a mean has to know of a member besides its scores."""
    return {name: getattr(table, name) for name in ("tuned_on", "bytes_per_example", "seconds", "provenance")}


def _averaged(first: ScoreTable, means: Mapping[str, Tensor], members: Sequence[Mapping[str, Any]]) -> ScoreTable:
    scores_QN, weights_N = means["scores"], means.get("weights")
    sizes, times = [each["bytes_per_example"] for each in members], [each["seconds"] for each in members]
    return replace(
        first,
        scores=scores_QN if weights_N is None else scores_QN * weights_N.to(scores_QN),
        is_weighted=weights_N is not None,
        weights=None,
        method=f"{first.method}, {len(members)} models",
        parts={},
        tokens={},
        tuned_on=tuple(dict.fromkeys(query for each in members for query in each["tuned_on"])),
        bytes_per_example=None if None in sizes else sum(sizes),
        seconds=None if None in times else sum(times),
        provenance=_common([each.get("provenance", {}) for each in members]),
        notes=first.notes if weights_N is None else (*first.notes, "scores and the examples' weights are averaged apart"),
    )


def _common(records: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Who attributed for whom in several tables: what differs is listed, once each."""
    names = dict.fromkeys(name for record in records for name in record)
    return {name: ", ".join(dict.fromkeys(record[name] for record in records if name in record)) for name in names}
