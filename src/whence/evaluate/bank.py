"""Banks of retrained models: which examples each run saw, and what the queries measured afterwards.

Axes: M subsets, S seeds, N training examples, Q queries.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from whence.errors import BadInput, StoreCorrupt
from whence.evaluate.retrain import Measure, Retraining, Run, Train, finished_runs
from whence.store import locked, read_array, read_record
from whence.store.file_sets import array_chunks, check_set, path_in_set, write_set

__all__ = ["Bank", "Values", "finished_bank", "make_bank", "open_bank", "save_bank"]

FORMAT = "whence bank 1"
# Two subsets have no ranks to speak of.
_FEWEST = 3


@dataclass(frozen=True)
class _Record:
    """What `bank.json` holds."""

    format: str
    unit: str
    seeds: tuple[int, ...]
    has_full: bool
    facts: dict[str, Any]
    train_ids: tuple[str, ...]
    query_ids: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)


Values = Literal["loss", "measurement"]
"""What a training function reports: a loss, lower for a better fit, or a measurement, which proponents raise."""


@dataclass(frozen=True)
class Bank:
    """Measurements of the same queries after training on many subsets, every subset with every seed.

    Args:
        masks_MN: True where an example was trained on.
        values_MSQ: Measurement of each query after each run; higher is a better fit (minus the loss, for losses). float64.
        seeds: Of the training runs, S of them.
        train_ids: One per example, in the order of the masks.
        query_ids: One per query.
        unit: What the measurement is counted in.
        full_SQ: The same after training on everything, one row per seed; None if not known.
        facts: Where it comes from: fingerprints, recipe, how the subsets were drawn.
        repeated: Some of the subsets with more seeds, for the noise ceiling of a bank that has one; not written with the bank.
    """

    masks_MN: Tensor
    values_MSQ: Tensor
    seeds: tuple[int, ...]
    train_ids: tuple[str, ...]
    query_ids: tuple[str, ...]
    unit: str
    full_SQ: Tensor | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    repeated: "Bank | None" = field(default=None, repr=False)

    def __post_init__(self):
        shapes = (len(self.masks_MN), len(self.seeds), len(self.query_ids))
        wrong = tuple(self.values_MSQ.shape) != shapes or tuple(self.masks_MN.shape) != (shapes[0], len(self.train_ids))
        if wrong or self.masks_MN.dtype != torch.bool or self.full_SQ is not None and tuple(self.full_SQ.shape) != shapes[1:]:
            raise BadInput(
                found=f"masks {tuple(self.masks_MN.shape)} and values {tuple(self.values_MSQ.shape)} for {shapes[1]} seeds, "
                f"{len(self.train_ids)} examples and {shapes[2]} queries",
                needed="boolean masks (subsets, examples) and values (subsets, seeds, queries)",
                do="check the arrays and the ids",
            )
        measured = [self.values_MSQ] if self.full_SQ is None else [self.values_MSQ, self.full_SQ]
        if not all(bool(torch.isfinite(values).all()) for values in measured):
            raise BadInput(found="values that are NaN or infinite", needed="finite values", do="drop the subsets that failed")

    @property
    def actual_MQ(self) -> Tensor:
        """Mean measurement over the seeds."""
        return self.values_MSQ.mean(1)

    @property
    def fraction(self) -> float:
        """Mean share of the examples that a subset keeps."""
        return float(self.masks_MN.double().mean())

    def of_queries(self, query_ids: Sequence[str]) -> "Bank":
        """The same bank for some of its queries, in the order given.

        Raises:
            BadInput: If one is not in the bank.
        """
        index_of = {query: index for index, query in enumerate(self.query_ids)}
        missing = [query for query in query_ids if query not in index_of]
        if missing:
            raise BadInput(
                found=f"{len(missing)} queries that the bank has no measurements of, such as {missing[0]!r}",
                needed=f"queries among its {len(index_of)}",
                do="score the queries of the bank: their ids are in bank.json",
            )
        chosen = torch.tensor([index_of[query] for query in query_ids], dtype=torch.long)
        full_SQ = None if self.full_SQ is None else self.full_SQ[:, chosen]
        repeated = None if self.repeated is None else self.repeated.of_queries(query_ids)
        values_MSQ = self.values_MSQ[:, :, chosen]
        return replace(self, values_MSQ=values_MSQ, query_ids=tuple(query_ids), full_SQ=full_SQ, repeated=repeated)

    def with_repeats(self, again: "Bank") -> "Bank":
        """The same bank with further seeds for some of its subsets, which say how much of it is noise.

        Args:
            again: Subsets of this bank retrained with other seeds, for the same examples and queries; one that this lacks is left out.

        Raises:
            BadInput: If the seeds are not others, examples or queries are not the same, or no subset is in both.
        """
        row_of = {mask_N.numpy().tobytes(): row for row, mask_N in enumerate(self.masks_MN)}
        pairs = [(row_of.get(mask_N.numpy().tobytes()), row) for row, mask_N in enumerate(again.masks_MN)]
        mine, theirs = [row for row, _ in pairs if row is not None], [other for row, other in pairs if row is not None]
        same = (self.train_ids, self.query_ids) == (again.train_ids, again.query_ids)
        if not mine or not same or set(self.seeds) & set(again.seeds):
            raise BadInput(
                found=f"{len(mine)} subsets in both banks, with the seeds {list(self.seeds)} and {list(again.seeds)}",
                needed="some subsets of this bank, retrained with other seeds, for the same examples and queries",
                do="check where both come from",
            )
        both_MSQ = torch.cat([self.values_MSQ[mine], again.values_MSQ[theirs]], 1)
        seeds = (*self.seeds, *again.seeds)
        repeated = replace(self, masks_MN=self.masks_MN[mine], values_MSQ=both_MSQ, seeds=seeds, full_SQ=None, repeated=None)
        return replace(self, repeated=repeated)


@dataclass(frozen=True, kw_only=True)
class BankConfig:
    """What is measured of the runs of a bank, and what it says of itself.

    Args:
        train_ids: Ids of the examples; their numbers if None.
        query_ids: Ids of the queries; their numbers if None.
        values: Whether losses are measured, which are negated, or measurements.
        unit: What the measurement is counted in.
        full: Whether to train on everything too, once a seed.
        facts: More to be written into bank.json, such as the recipe.
    """

    train_ids: Sequence[str] | None = None
    query_ids: Sequence[str] | None = None
    values: Values = "loss"
    unit: str = ""
    full: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Plan:
    """The runs of a bank.

    Args:
        masks_MN: The subsets.
        seeds: Of each of them.
        has_full: Whether everything is trained on, too.
    """

    masks_MN: Tensor
    seeds: tuple[int, ...]
    has_full: bool

    @cached_property
    def subsets(self) -> list[tuple[int, ...]]:
        """What each subset leaves out."""
        return [tuple(torch.nonzero(~mask_N).flatten().tolist()) for mask_N in self.masks_MN]

    @property
    def runs(self) -> list[Run]:
        """Seeds outermost: a bank that is stopped halfway has every subset once rather than half of them often."""
        everything: list[tuple[int, ...]] = [()] if self.has_full else []
        return [Run(removed, seed) for seed in self.seeds for removed in everything + self.subsets]

    def bank(self, measured: Mapping[Run, Tensor], fingerprint: str, config: BankConfig) -> Bank:
        """The bank of what was measured, which has to be all of it."""
        sign = -1.0 if config.values == "loss" else 1.0
        rows = [torch.stack([measured[Run(removed, seed)] for seed in self.seeds]) for removed in self.subsets]
        values_MSQ = torch.stack(rows) * sign
        full_SQ = torch.stack([measured[Run((), seed)] for seed in self.seeds]) * sign if self.has_full else None
        return Bank(
            self.masks_MN,
            values_MSQ,
            self.seeds,
            tuple(map(str, range(self.masks_MN.shape[1]))) if config.train_ids is None else tuple(config.train_ids),
            tuple(map(str, range(values_MSQ.shape[2]))) if config.query_ids is None else tuple(config.query_ids),
            config.unit,
            full_SQ,
            {"fingerprint": fingerprint, **config.facts},
        )


def make_bank(
    train: Train, measure: Measure, masks_MN: Tensor, retraining: Retraining, config: BankConfig = BankConfig()
) -> Bank:
    """Train on every subset with every seed, measure the queries, and keep the bank in a folder.

    Each run is kept as it ends (`measure_runs`): a kill loses those in flight, and the same call goes on with the rest. More subsets or
    seeds later cost only the new runs.

    Args:
        train: Called with a mask of shape (N,), True for what is kept, and a seed; returns a model.
        measure: Called with the model; returns one number per query.
        masks_MN: The subsets, True for what is kept.
        retraining: Seeds, the same for every subset, so that seeds can be told from subsets; workers; and the folder of the bank.
        config: What is measured, and what the bank says of itself.

    Returns:
        The bank, as `open_bank` reads it.

    Raises:
        BadInput: If another process makes this bank, or the folder holds a finished one with subsets or seeds that
            this one lacks.
    """
    folder, num_examples = Path(retraining.folder), masks_MN.shape[1]
    plan = _Plan(masks_MN, tuple(retraining.seeds), config.full)
    with locked(folder):
        _check_growth(folder, masks_MN, retraining.seeds)
        runs_there = replace(retraining, folder=folder / "runs")
        bank = plan.bank(runs_there.measured(train, measure, plan.runs, num_examples), retraining.fingerprint, config)
        save_bank(bank, folder)
        return bank


def finished_bank(masks_MN: Tensor, retraining: Retraining, config: BankConfig = BankConfig()) -> Bank:
    """The part of a bank that `make_bank` has made so far, also while it goes on; nothing is trained and nothing written.

    Args:
        masks_MN: All subsets of the bank.
        retraining: Its seeds and folder.
        config: As for the whole bank.

    Returns:
        The subsets of which the first seeds are measured: as many seeds as make for the most runs. What training on everything gave is in it
        if it is there with these seeds.

    Raises:
        BadInput: If fewer than three subsets are measured with any seed, which is too few to rank.
    """
    whole = _Plan(masks_MN, tuple(retraining.seeds), config.full)
    measured = finished_runs(whole.runs, masks_MN.shape[1], Path(retraining.folder) / "runs", retraining.fingerprint)

    def with_seeds(count: int) -> _Plan:
        seeds = whole.seeds[:count]
        is_there = [all(Run(removed, seed) in measured for seed in seeds) for removed in whole.subsets]
        return _Plan(masks_MN[torch.tensor(is_there)], seeds, config.full and all(Run((), seed) in measured for seed in seeds))

    largest = max(map(with_seeds, range(1, len(whole.seeds) + 1)), key=lambda plan: len(plan.masks_MN) * len(plan.seeds))
    if len(largest.masks_MN) < _FEWEST:
        raise BadInput(
            found=f"{len(largest.masks_MN)} of {len(masks_MN)} subsets retrained in {retraining.folder}",
            needed=f"{_FEWEST} or more",
            do="let the bank be made for longer",
        )
    return largest.bank(measured, retraining.fingerprint, config)


def _check_growth(folder: Path, masks_MN: Tensor, seeds: Sequence[int]) -> None:
    if not os.path.lexists(path_in_set(folder, "bank.json")):
        return
    try:
        there = open_bank(folder)
    except BadInput:
        if not (folder / "runs").is_dir():
            raise
        return  # it is made again from its runs, of which all are kept
    masks = {mask_N.numpy().tobytes() for mask_N in masks_MN}
    missing = sum(mask_N.numpy().tobytes() not in masks for mask_N in there.masks_MN)
    if missing or not set(there.seeds) <= set(seeds):
        raise BadInput(
            found=f"a finished bank of {len(there.masks_MN)} subsets and {len(there.seeds)} seeds in {folder}, not all of them in this one",
            needed="the same subsets and seeds, or more",
            do="choose another folder, or ask for what is there and more",
        )


def save_bank(bank: Bank, folder: str | Path) -> None:
    """Write a bank: `masks.npy`, `values.npy`, `full.npy` in NumPy's format, and `bank.json`; one that is there is replaced as a whole."""
    arrays = {"masks.npy": bank.masks_MN, "values.npy": bank.values_MSQ, "full.npy": bank.full_SQ}
    parts = {name: array_chunks(array.numpy()) for name, array in arrays.items() if array is not None}
    content = {
        "format": FORMAT,
        "unit": bank.unit,
        "seeds": list(bank.seeds),
        "has_full": bank.full_SQ is not None,
        "facts": dict(bank.facts),
        "train_ids": list(bank.train_ids),
        "query_ids": list(bank.query_ids),
    }
    write_set(Path(folder), parts, "bank.json", content)


def open_bank(folder: str | Path) -> Bank:
    """Read what `save_bank` wrote.

    Raises:
        BadInput: If the folder holds no finished bank, or a damaged one.
    """
    folder = Path(folder)
    record = path_in_set(folder, "bank.json")
    if not os.path.lexists(record):
        unfinished = (folder / "runs").is_dir()
        raise BadInput(
            found=f"{'an unfinished bank' if unfinished else 'no bank'} in {folder}",
            needed="a folder that `whence bank` finished",
            do="run the same `whence bank` command again to finish it" if unfinished else "check the path",
        )
    try:
        recorded = read_record(_Record, record)
        if recorded.format != FORMAT:
            raise BadInput(found=f"format {recorded.format[:40]!r} in {folder}", needed=FORMAT, do="make the bank again")
        names = ("masks", "values", "full") if recorded.has_full else ("masks", "values")
        arrays = {name: read_array(path_in_set(folder, f"{name}.npy")) for name in names}
    except StoreCorrupt as error:
        raise BadInput(
            found=f"{folder}, which cannot be read ({error.found})", needed="whole files", do="copy it again"
        ) from error
    bank = Bank(
        arrays["masks"], arrays["values"], recorded.seeds, recorded.train_ids, recorded.query_ids, recorded.unit,
        arrays.get("full"), recorded.facts,
    )  # fmt: skip
    check_set(folder, recorded.files)
    return bank
