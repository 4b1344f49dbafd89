"""Answers as files of a report: one of what they are and each one's credit, and one of the ids of the examples that these number."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from whence.errors import BadInput
from whence.ledger import Period, canonical, read_credit
from whence.shares.answers import Answers, checked_answers
from whence.store import record_of
from whence.store.files import read_lines

__all__ = ["ANSWERS", "EXAMPLES", "answers_files", "read_answers"]

ANSWERS, EXAMPLES = "answers.jsonl", "examples.jsonl"
_FORMAT = "whence answers 2"


@dataclass(frozen=True)
class _Version:
    """A version of the store, and the numbers of its rows in the list of examples: first and behind the last of each run."""

    store: str
    rows: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Header:
    format: str
    versions: tuple[_Version, ...]
    period: Period
    single: int
    notes: tuple[str, ...]


def answers_files(answers: Answers) -> dict[str, Iterator[bytes]]:
    """The files by name, line by line."""
    versions = tuple(_Version(digest, _runs(rows)) for digest, rows in answers.versions.items())
    header = _Header(_FORMAT, versions, answers.period, answers.single, answers.notes)
    lines = (canonical(asdict(header)), *(credit.line() for credit in answers.credits))
    return {
        ANSWERS: (line + b"\n" for line in lines),
        EXAMPLES: (canonical(name) + b"\n" for name in answers.train_ids),
    }


def read_answers(folder: Path) -> Answers:
    """What `answers_files` gave.

    Raises:
        BadInput: If there are no such files.
    """
    try:
        return _read(folder)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise BadInput(
            found=f"{folder / ANSWERS}, or {EXAMPLES} beside it, which holds no answers of a service ({error})",
            needed="the files that the report was made with",
            do="restore them from a copy",
        ) from error


def _read(folder: Path) -> Answers:
    """The same, with whatever is raised.

    Raises:
        ValueError: If they hold something else.
    """
    lines = read_lines(folder / ANSWERS)
    header = record_of(_Header, next(lines))
    if header.format != _FORMAT:
        raise ValueError(f"format {header.format[:40]!r}")
    credits = tuple(map(read_credit, lines))
    train_ids = tuple(read_lines(folder / EXAMPLES))
    if not credits or not all(isinstance(name, str) for name in train_ids):
        raise ValueError("no answers, or an id that is no text")
    versions = {version.store: _numbers(version.rows, len(train_ids)) for version in header.versions}
    if len(versions) < len(header.versions):
        raise ValueError("a version of the store that is there twice")
    return checked_answers(Answers(versions, header.period, train_ids, credits, header.single, header.notes))


def _runs(numbers_N: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Places as runs of numbers that follow each other."""
    if not len(numbers_N):
        return ()
    ends = np.flatnonzero(np.diff(numbers_N) != 1) + 1
    return tuple((int(run[0]), int(run[-1]) + 1) for run in np.split(numbers_N, ends))


def _numbers(runs: tuple[tuple[int, int], ...], count: int) -> np.ndarray:
    """Places from runs.

    Raises:
        ValueError: If there is no such place, or one is named twice.
    """
    if any(not 0 <= first < stop <= count for first, stop in runs) or sum(stop - first for first, stop in runs) > count:
        raise ValueError("rows of a version that are no examples")
    numbers_N = np.concatenate([np.arange(first, stop) for first, stop in runs] or [np.zeros(0, dtype=np.int64)])
    if len(np.unique(numbers_N)) < len(numbers_N):
        raise ValueError("an example that is two rows of a version")
    return numbers_N
