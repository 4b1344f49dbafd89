"""What an exact run will take in memory and on disk, and how it is cut into parts that fit; refused before the work if it cannot."""

from collections.abc import Sequence
from dataclasses import dataclass

from whence.errors import DiskFull, OutOfMemory
from whence.records import Unit

__all__ = ["Demand", "FitBytes", "Footprint", "gib", "made_at_once"]

# Numbers of whole query gradients in a batch, besides those of the batches before it.
_MADE_NUMBERS = 1 << 21


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What is asked once the curvature is fitted.

    Args:
        rows: Of the score table: queries, or groups of them; 0 for norms only.
        queries: Whose gradients the rows are made of.
        dampings: With how many dampings each row is asked.
        query_rank: As in `attribute`.
        is_summed: Whether rows are sums of queries.
        per_unit: Whether the parts of units are kept.
        norms: Whether training gradients are measured, too.
        fits: Curvatures that are fitted one after the other, each kept in the folder: the segments of a run.
        passes: Sets of weights that are looked at, each with passes of its own.
        parts: Parts of the scores that are kept, if not those of units.
    """

    rows: int
    queries: int
    dampings: int = 1
    query_rank: int | None = None
    is_summed: bool = False
    per_unit: bool = False
    norms: bool = False
    fits: int = 1
    passes: int = 1
    parts: int = 0


@dataclass(frozen=True, kw_only=True)
class FitBytes:
    """What the fit of the curvature takes, in bytes.

    Args:
        at_once: The fit of all units in one go, at its highest.
        dearest: Name of the unit that takes most.
        dearest_bytes: What the fit of that unit alone takes.
        group_bytes: What the units of a group may take together; None for a fit in one go.
        factor_passes: Passes over the data for the factors.
        value_passes: Passes over the data for the eigenvalues.
        result: Curvature that stays in memory; with a folder most is mapped from there instead.
        disk: What the factors folder will hold; 0 without one.
    """

    at_once: int = 0
    dearest: str = ""
    dearest_bytes: int = 0
    group_bytes: int | None = None
    factor_passes: int = 0
    value_passes: int = 0
    result: int = 0
    disk: int = 0

    @property
    def peak(self) -> int:
        """The most at any time."""
        return self.at_once if self.group_bytes is None else min(self.at_once, self.dearest_bytes + self.group_bytes)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a run takes, in bytes besides the model's weights, and how it is cut.

    Args:
        room: What it may take.
        batch: One batch of training examples.
        fit: What the curvature takes.
        fixed: What is held besides, however many queries there are.
        whole: Whole gradients of some queries, where rows are their factors or sums; gone before the scan.
        scan: What a pass for the scores takes, a few examples at a time.
        row: A row of the table, at its highest, when it is preconditioned.
        per_row: What is left of it for the scan.
        table: The scores.
        rows: Rows of the table.
        rows_at_once: Rows per pass over the training data.
        whole_at_once: Whole query gradients held at a time where only their factors or sums are kept.
        passes: Passes over the training data for the scores of so many rows: one, or one per checkpoint of a run.
        free_disk: What is free where the factors folder is, finished parts counted in.
    """

    room: int
    batch: int
    fit: FitBytes
    fixed: int
    whole: int
    scan: int
    row: int
    per_row: int
    table: int
    rows: int
    rows_at_once: int
    whole_at_once: int
    passes: int = 1
    free_disk: int

    @property
    def peak(self) -> int:
        """The most at any time."""
        rows = self.rows_at_once if self.rows else 0
        solving = max(rows * self.row + self.whole, self.batch + rows * self.per_row + self.scan)
        return max(self.batch + self.fit.peak, self.fit.result + self.fixed + self.table + solving)

    @property
    def chunks(self) -> int:
        """Parts that the rows are done in."""
        return max(1, -(-self.rows // self.rows_at_once))

    def __str__(self) -> str:
        fit = self.fit
        passes = f", fit {gib(fit.peak)}, curvature kept {gib(fit.result)}" if fit.at_once else ""
        rows = f", {self.rows_at_once:,} of {self.rows:,} rows at a time of {gib(self.row)}" if self.rows else ""
        spent = f"{fit.factor_passes} + {fit.value_passes} passes to fit, " if fit.at_once else ""
        disk = f"; disk: {gib(fit.disk)} of {gib(self.free_disk)} free" if fit.disk else ""
        return (
            f"memory: about {gib(self.peak)} of {gib(self.room)} besides the model (batch {gib(self.batch)}{passes}{rows}); "
            f"{spent}{self.chunks * self.passes} to score{disk}"
        )

    def refuse(self) -> None:
        """Stop before the work if it cannot fit.

        Raises:
            OutOfMemory: If memory does not suffice even with everything cut as small as it goes.
            DiskFull: If the disk does not hold the factors.
        """
        fit, free = self.fit, self.room - self.batch
        rest = free - fit.result - self.fixed
        on_disk = (
            "write factors='folder' into the method, where the curvature is kept, or " if fit.result and not fit.disk else ""
        )
        if free < 0:
            raise OutOfMemory(
                found=f"{gib(self.batch)} of memory for a batch, with {gib(self.room)} to be had",
                needed="room for a forward and a backward pass",
                do="pass fewer batch_positions, shorter examples, or a larger memory_gib",
            )
        if fit.at_once > free and not fit.disk:
            raise OutOfMemory(
                found=f"{gib(fit.at_once)} of memory for the curvature of all units at once, with {gib(free)} to be had",
                needed="room for it, or a place on disk",
                do="write factors='folder' into the method, where it is fitted a few units at a time, or a smaller largest_side",
            )
        if fit.at_once > free and fit.dearest_bytes > free:
            raise OutOfMemory(
                found=f"{gib(fit.dearest_bytes)} of memory for the curvature of {fit.dearest!r} alone, with {gib(free)} to be had",
                needed="room for one unit at a time",
                do="pass a smaller largest_side, so that longer sides get their leading eigenvectors only, or ignore=[...] to the task",
            )
        if self.table > rest:
            raise OutOfMemory(
                found=f"{gib(self.table)} of memory for the scores, with {gib(max(rest, 0))} to be had",
                needed="room for the table",
                do=f"{on_disk}ask fewer queries at a time",
            )
        least = max(self.row + self.whole, self.per_row + self.scan)
        if self.rows and least > rest - self.table:
            raise OutOfMemory(
                found=f"{gib(least + self.fixed)} of memory for one query, with {gib(max(free - fit.result - self.table, 0))} to be had",
                needed="room for one query at a time",
                do=f"{on_disk}track fewer parameters, with ignore=[...] to the task",
            )
        if fit.disk > self.free_disk:
            raise DiskFull(
                found=f"{gib(fit.disk)} of factors, with {gib(self.free_disk)} free on disk",
                needed="room in the factors folder",
                do="pass another folder, or a smaller largest_side",
            )


def gib(number: int) -> str:
    """Bytes for people."""
    return f"{number / 2**30:,.1f} GiB" if number >= 2**30 else f"{number / 2**20:,.1f} MiB"


def made_at_once(units: Sequence[Unit]) -> int:
    """Queries per batch while their whole gradients are made."""
    return max(1, min(256, _MADE_NUMBERS // sum(unit.outputs * unit.inputs for unit in units)))
