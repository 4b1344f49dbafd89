"""The page of a comparison: LDS with intervals, quality per byte and per second, calibration, removal curves."""

from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path

from whence.evaluate import Evaluation, Row
from whence.report import Point, bars_section, plot_section, table_section, write_page

__all__ = ["write_evaluation"]

# A calibration plot is read one method at a time; the best few are what people look at.
_CALIBRATED = 3


def write_evaluation(
    path: str | Path,
    evaluation: Evaluation,
    *,
    title: str = "Attribution against retraining",
    curves: Mapping[str, Sequence[Point]] | None = None,
    curve_unit: str = "rise of the queries' mean loss",
) -> Path:
    """Write the page of an evaluation.

    Args:
        path: The file.
        evaluation: What to show.
        title: Heading.
        curves: Removal curves by method: share of the examples removed, and what it did.
        curve_unit: What the curves count.

    Returns:
        The path written.
    """
    bars = [(row.method, row.lds.interval.mean, row.lds.interval.low, row.lds.interval.high) for row in evaluation.rows]
    ceiling = evaluation.ceiling.reachable
    if not isnan(ceiling):
        bars.append(("noise ceiling", ceiling, ceiling, ceiling))
    sections = [
        ("Linear datamodeling score", bars_section("Spearman over subsets, mean over queries", bars, "95 % interval")),
        ("All figures", table_section(evaluation.header, evaluation.cells())),
    ]
    for heading, across, value in (
        ("Quality per byte", "bytes per training example", lambda row: row.bytes_per_example),
        ("Quality per second", "seconds for the whole table", lambda row: row.seconds),
    ):
        series = {row.method: [_point(row, value(row))] for row in evaluation.rows if value(row)}
        if series:
            plot = plot_section("LDS with its interval", series, across=across, upwards="LDS", log_across=True)
            sections.append((heading, plot))
    calibrated = [row for row in evaluation.rows if row.calibration is not None][:_CALIBRATED]
    for row in calibrated:
        sections.append((f"Calibration: {row.method}", _calibration(row, evaluation.unit)))
    if curves:
        plot = plot_section("Retrained without the examples", curves, across="share removed", upwards=curve_unit)
        sections.append(("Removal", plot))
    return write_page(path, title, sections, intro=evaluation.summary())


def _point(row: Row, x: float) -> Point:
    return Point(x, row.lds.interval.mean, row.lds.interval.low, row.lds.interval.high)


def _calibration(row: Row, unit: str) -> str:
    assert row.calibration is not None
    points = [
        Point(point.predicted, point.actual)
        if point.standard_error is None
        else Point(
            point.predicted, point.actual, point.actual - 2 * point.standard_error, point.actual + 2 * point.standard_error
        )
        for point in row.calibration.bins
    ]
    slope = row.calibration.slope
    caption = f"Slope {slope.mean:.3g} [{slope.low:.3g}, {slope.high:.3g}]; on the line, a score is worth what it says"
    return plot_section(
        caption,
        {"measured": points},
        across=f"predicted change{f' ({unit})' if unit else ''}",
        upwards="measured change",
        diagonal=0.2 < slope.mean < 5,
    )
