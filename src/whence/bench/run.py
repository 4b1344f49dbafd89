"""Every method on a setting, held against its bank.

Axes: Q queries, N training examples.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from whence.bench.entries import Entry, controls_of, entries_of
from whence.bench.extras import brittle, curves, mislabels
from whence.bench.settings import Setting
from whence.data import digest_of
from whence.errors import Unsupported
from whence.evaluate import (
    Agreement,
    Brittleness,
    Evaluation,
    MislabelReport,
    RemovalCurve,
    Tuned,
    agreement,
    evaluate,
    load_table,
    save_table,
    tune,
)
from whence.progress import say
from whence.records import ScoreTable
from whence.score import mean_table

__all__ = ["DAMPINGS", "Bench", "run_setting"]

DAMPINGS = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
"""Shares of the mean eigenvalue that the sweep tries."""

_MEMBERS = 5
_REMOVED = ("pcg", "ekfac", "lorif-rank32-factorrank2", "similarity")


@dataclass(frozen=True)
class Bench:
    """What one setting gave.

    Args:
        evaluation: Every method with the damping it chooses by itself, on all queries.
        tuned: The choice on the tuning queries, by the name of the table with the damping chosen without tuning.
        tuning: Chosen against tuned damping, on the other queries; None if nothing could be tuned.
        curves: What retraining without the highest scored shares does, for some methods.
        brittleness: How few proponents carry a class, for the same methods and a classifier.
        mislabels: Wrong labels found, for noisy labels.
        controls: Names of the tables that know nothing of the question, or nothing of the model's gradients, or of queries in another format.
        formats: By method, how alike its scores of the queries and of the same in another format are.
    """

    evaluation: Evaluation
    tuned: Mapping[str, Tuned]
    tuning: Evaluation | None
    curves: Sequence[RemovalCurve] = ()
    brittleness: Sequence[Brittleness] = ()
    mislabels: MislabelReport | None = None
    controls: tuple[str, ...] = ()
    formats: Sequence[Agreement] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "evaluation": self.evaluation.to_dict(),
            "tuned": {
                name: {"label": entry.label, "method": entry.table.method, "tuning_lds": dict(entry.tuning_lds)}
                for name, entry in self.tuned.items()
            },
            "tuning": None if self.tuning is None else self.tuning.to_dict(),
            "curves": [curve.to_dict() for curve in self.curves],
            "brittleness": [entry.to_dict() for entry in self.brittleness],
            "mislabels": None if self.mislabels is None else self.mislabels.to_dict(),
            "controls": list(self.controls),
            "formats": [each.to_dict() for each in self.formats],
        }


def run_setting(
    setting: Setting,
    *,
    entries: Sequence[Entry] | None = None,
    own: Sequence[Entry] = (),
    extra: Path | None = None,
    removal: Collection[str] = _REMOVED,
    workers: int = 1,
    only_finished: bool = False,
    quiet: bool = False,
) -> Bench:
    """Make the bank and every table that is not in the setting's folder yet, and compare.

    Args:
        setting: What to run.
        entries: The rows; None for those of the setting.
        own: Rows of methods that the bench does not know. Beside them only controls are made, and of `entries` those are shown whose
            tables are there already.
        extra: Folder with tables of other systems, for the same examples and queries.
        removal: Names of the entries that are also tested by removing what they rank highest.
        workers: Processes for retraining.
        only_finished: Make nothing: hold the tables that are there against the halves that are retrained.
        quiet: No progress on stderr.

    Returns:
        The comparison.
    """
    bank = setting.bank(workers=workers, only_finished=only_finished, quiet=quiet)
    tables: list[ScoreTable] = []
    removed: list[ScoreTable] = []
    sweeps: dict[str, dict[str, ScoreTable]] = {}
    table_of = partial(_table, setting, only_finished=only_finished)
    controls: list[str] = []
    formats: list[Agreement] = []
    rows = entries_of(setting) if entries is None else entries
    beaten = controls_of(setting)
    if own:
        there = [entry for entry in rows if (_folder(setting, entry, "chosen") / "table.json").exists()]
        rows, removal = [*own, *{entry.name: entry for entry in (*beaten, *there)}.values()], ()
        rows = [
            replace(entry, has_damping=False, is_ensembled=False, has_format=entry.has_format and entry in own)
            for entry in rows
        ]
    control_names = {entry.name for entry in beaten}
    for entry in rows:
        if setting.name in entry.not_on:
            continue
        table = table_of(entry, "chosen")
        if table is None:
            continue
        tables.append(table)
        removed += [table] if entry.name in removal else []
        controls += [table.method] if entry.name in control_names else []
        if entry.has_control:
            tables.append(replace(table, scores=table.scores.roll(1, 0), method=f"{table.method}, scores of another query"))
            controls.append(tables[-1].method)
        if entry.has_format and (other := _in_other_format(setting, entry, only_finished=only_finished)) is not None:
            tables.append(other)
            controls.append(other.method)
            formats.append(agreement(table, other))
        if entry.has_damping:
            dampings = {f"{value:g} x mean": {"relative_damping": value} for value in DAMPINGS}
            by_damping = {label: table_of(entry, label, damping=damping) for label, damping in dampings.items()}
            sweeps[table.method] = {label: swept for label, swept in by_damping.items() if swept is not None}
        if entry.is_ensembled:
            members = [table_of(entry, f"member {seed}", member=seed) for seed in range(1, _MEMBERS)]
            tables.append(mean_table([table, *(member for member in members if member is not None)]))
    if extra is not None and extra.is_dir():
        tables += [load_table(folder) for folder in sorted(extra.iterdir()) if (folder / "table.json").is_file()]
    tuned = {name: tune(sweep, bank) for name, sweep in sweeps.items()}
    pairs = [table for table in tables if table.method in tuned] + [by_damping.table for by_damping in tuned.values()]
    # Curves and the rest are training runs, too.
    removed = [] if only_finished else removed
    return Bench(
        evaluate(tables, bank),
        tuned,
        evaluate(pairs, bank) if pairs else None,
        curves(setting, removed, workers=workers, quiet=quiet),
        brittle(setting, removed, workers=workers, quiet=quiet),
        None if only_finished or own else mislabels(setting),
        tuple(controls),
        formats,
    )


def _in_other_format(setting: Setting, entry: Entry, *, only_finished: bool) -> ScoreTable | None:
    """Scores of the queries in the setting's other format, if it has one, to be held against the truth of the queries as they are."""
    if setting.other_format is None:
        return None
    name, _ = setting.other_format
    table = _table(setting.in_other_format, entry, f"queries {name}", only_finished=only_finished)
    return None if table is None else replace(table, method=f"{table.method}, queries {name}")


def _table(
    setting: Setting,
    entry: Entry,
    label: str,
    *,
    member: int = 0,
    damping: Mapping[str, float] | None = None,
    only_finished: bool = False,
) -> ScoreTable | None:
    """One table, made if it is not there and may be; None if the method does not apply to this setting."""
    work = setting.folder / "work" / f"{entry.name}-{_key(setting)}-{member}"
    folder = _folder(setting, entry, label)
    if (folder / "table.json").exists():
        return load_table(folder)
    if only_finished:
        say(f"{setting.name}: {entry.name}, {label} is not there yet")
        return None
    task = setting.member(member)
    say(f"{setting.name}: {entry.name}, {label}")
    timed = _timed(lambda: entry.make(setting, task, work, **(damping or {})))
    if timed is not None:
        save_table(timed, folder)
    return timed


def _folder(setting: Setting, entry: Entry, label: str) -> Path:
    return setting.folder / "tables" / f"{entry.name}-{_key(setting)}-{label.replace(' ', '')}"


def _key(setting: Setting) -> str:
    """What tells its models and measurements from those of another version of it."""
    return digest_of(setting.retrain.fingerprint, setting.measure.fingerprint).hex()[:8]


def _timed(make: Callable[[], ScoreTable]) -> ScoreTable | None:
    started = time.monotonic()
    try:
        return replace(make(), seconds=time.monotonic() - started)
    except Unsupported as error:
        say(f"   left out: {error.found}")
        return None
