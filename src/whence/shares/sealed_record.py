"""The record of a share report, read as a stranger's word."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whence.errors import BadInput
from whence.plain_files import check_name, read_plain
from whence.shares.files import FORMAT
from whence.shares.record import RECORD
from whence.strict_json import parse_json, record_of

__all__ = ["Record", "read_report"]

_TABLE = re.compile(r"tables/[0-9]{1,6}")
# Of a bootstrap; ten times what a figure for an interval needs.
_MOST_DRAWS = 100_000


@dataclass(frozen=True)
class Settings:
    """The arguments of `whence.shares.shares` that make the same again."""

    rule: str
    temperature: float | None
    floor: float | str | None
    floor_errors: float | None
    robust: bool
    several: str | None
    weights: dict[str, float]
    payout: str | None
    minimum: str | None
    carried: dict[str, str] | None
    draws: int
    seed: int
    # Reports from before there was a control do not name it.
    norm_control: bool = False


@dataclass(frozen=True)
class Input:
    """What the report was made from, besides tables in its folder."""

    path: str
    sha256: str | None


@dataclass(frozen=True)
class StoreFacts:
    """What `store_facts` keeps of a store."""

    folder: str
    blueprint: str
    manifest: str
    model: str
    data: list[Any]


@dataclass(frozen=True)
class AnswersFacts:
    """Which answers of a service a report is of."""

    stores: tuple[str, ...]
    period: str
    since: str
    until: str
    count: int
    single_tokens: int


@dataclass(frozen=True)
class Record:
    """What `record.json` holds."""

    format: str
    settings: Settings
    inputs: dict[str, Input]
    outputs: dict[str, str]
    tables: dict[str, str]
    store: StoreFacts | None
    method: str = ""
    unit: str = ""
    models: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    evidence: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    command: str | None = None
    made_at: str = ""
    signed_off_by: str = ""
    answers: AnswersFacts | None = None
    unnamed: str = ""


def read_report(folder: Path) -> Record:
    """The record, complete enough to be checked. It names files inside its folder only.

    Raises:
        BadInput: If it is not.
    """
    content = None
    try:
        content = parse_json(read_plain(folder / RECORD))
        if not isinstance(content, dict) or content.get("format", FORMAT) != FORMAT:
            why = "it is incomplete" if not isinstance(content, dict) else "it is incomplete, or of another format"
        else:
            record = record_of(Record, content)
            _check_names(record)
            return record
    except OSError:
        why = "it cannot be read"
    except KeyError:
        why = "it is incomplete"
    except TypeError as error:
        why = f"it is incomplete ({error})"
    except ValueError as error:
        why = "it is not JSON" if content is None else f"it names what no report has ({error})"
    raise BadInput(
        found=f"{folder / RECORD}, which is no record of shares: {why}",
        needed=f"a folder by `whence shares`, of the format {FORMAT!r}",
        do="check the path, or restore the folder from a copy",
    )


def _check_names(record: Record) -> None:
    """Refuse files elsewhere, and more draws than anybody makes.

    Raises:
        ValueError: If there are any.
    """
    wrong = [path for path in record.tables.values() if not _TABLE.fullmatch(path)]
    for name in record.outputs:
        folder, _, file = name.rpartition("/")
        check_name(file)
        if folder and not _TABLE.fullmatch(folder):
            wrong.append(name)
    if wrong:
        raise ValueError(f"{wrong[0][:80]!r} is no place in a report")
    if not 0 <= record.settings.draws <= _MOST_DRAWS:
        raise ValueError(f"{record.settings.draws:,} draws")
