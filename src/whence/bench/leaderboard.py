"""All settings of a bench on one page: every method's LDS with its interval, the ceiling, cost, bytes, and the controls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence.errors import StoreCorrupt
from whence.report import bars_section, table_section, write_page
from whence.store import damaged, read_json
from whence.strict_json import fitted

__all__ = ["write_leaderboard"]

_INTRO = (
    "Linear datamodeling score (LDS): the rank correlation between what scores predict of models retrained on random halves of the data and "
    "what those models do. The ceiling is what a perfect prediction would reach against runs with their noise. Controls know nothing of the "
    "question, or nothing of the model's gradients: a method that is not above them says nothing. Or they are a method's scores of the same "
    "queries in another format: one that follows content rather than format loses little there."
)
# Bars of a setting, controls apart.
_SHOWN = 15


@dataclass(frozen=True)
class _Row:
    """A method on one setting.

    Args:
        method: Name and settings.
        lds: Mean, and the low and high end of its interval.
        share: Of the ceiling; None where that is not known.
        ceiling: Of the setting; None where it is not known.
        bytes_per_example: Of a store.
        seconds: What its table took.
        is_control: Whether it is there to be beaten.
    """

    method: str
    lds: tuple[float, float, float]
    share: float | None
    ceiling: float | None
    bytes_per_example: float | None
    seconds: float | None
    is_control: bool

    @property
    def name(self) -> str:
        """As it is shown."""
        return f"{self.method} (control)" if self.is_control else self.method


def write_leaderboard(folder: Path) -> Path:
    """Write the page of all settings whose results lie in a bench's folder, whichever call made them.

    Args:
        folder: Of the bench, with a folder per setting.

    Returns:
        The page, index.html in that folder.

    Raises:
        StoreCorrupt: If a setting's results are not what a bench wrote.
    """
    by_setting = {path.parent.name: _rows(path) for path in sorted(folder.glob("*/results.json"))}
    sections = [] if len(by_setting) < 2 else [("All settings", _over_all(by_setting))]
    sections += [(name, _of_setting(rows)) for name, rows in by_setting.items()]
    return write_page(folder / "index.html", "Attribution held against retraining", sections, intro=_INTRO, tab="bench")


def _rows(path: Path) -> list[_Row]:
    """A setting's methods, best first.

    Raises:
        StoreCorrupt: If the file holds something else.
    """
    try:
        results = fitted(Mapping[str, Any], read_json(path), "results")
        controls = set(fitted(tuple[str, ...], results.get("controls", []), "controls"))
        rows = fitted(tuple[Mapping[str, Any], ...], results["evaluation"]["rows"], "rows")
        return [
            _Row(
                fitted(str, row["method"], "method"),
                tuple(fitted(float, row["lds"][end], end) for end in ("mean", "low", "high")),
                fitted(float | None, row["share_of_ceiling"], "share_of_ceiling"),
                fitted(float | None, row["ceiling"], "ceiling"),
                fitted(float | None, row["bytes_per_example"], "bytes_per_example"),
                fitted(float | None, row["seconds"], "seconds"),
                row["method"] in controls,
            )
            for row in rows
        ]
    except (KeyError, TypeError) as error:
        raise StoreCorrupt(**damaged(path, f"it is no result of a bench: {error}")) from error


def _over_all(by_setting: Mapping[str, Sequence[_Row]]) -> str:
    """Methods that ran on several settings by their mean share of the ceiling, those on more settings first."""
    by_method: dict[str, dict[str, _Row]] = {}
    for setting, rows in by_setting.items():
        for row in rows:
            if row.share is not None:
                by_method.setdefault(row.method, {})[setting] = row
    several = [rows for rows in by_method.values() if len(rows) > 1]
    several.sort(key=lambda rows: (-len(rows), -_mean(rows)))
    cells = [
        (
            next(iter(rows.values())).name,
            f"{len(rows)} of {len(by_setting)}",
            f"{_mean(rows):.0%}",
            *(f"{rows[name].share:.0%}" if name in rows else "" for name in by_setting),
        )
        for rows in several
    ]
    text = "<p>Share of the ceiling; methods that ran on more settings first, then the higher mean over their settings.</p>"
    return text + table_section(("method", "settings", "mean", *by_setting), cells)


def _mean(rows: Mapping[str, _Row]) -> float:
    return sum(row.share or 0.0 for row in rows.values()) / len(rows)


def _of_setting(rows: Sequence[_Row]) -> str:
    best = [row for row in rows if not row.is_control][:_SHOWN]
    bars = [(row.name, *row.lds) for row in rows if row in best or row.is_control]
    ceiling = next((row.ceiling for row in rows if row.ceiling is not None), None)
    if ceiling is not None:
        bars.append(("noise ceiling", ceiling, ceiling, ceiling))
    cells = [
        (
            row.name,
            f"{row.lds[0]:.3f}",
            f"{row.lds[1]:.3f} to {row.lds[2]:.3f}",
            "?" if row.share is None else f"{row.share:.0%}",
            "" if row.bytes_per_example is None else f"{row.bytes_per_example:,.0f}",
            "" if row.seconds is None else f"{row.seconds:,.1f}",
        )
        for row in rows
    ]
    header = ("method", "LDS", "95 % interval", "of ceiling", "bytes per example", "seconds")
    return bars_section("Spearman over halves, mean over queries", bars, "95 % interval") + table_section(header, cells)
