"""From the log of a service to a payout: the part of `whence shares` that knows periods, and what was paid before."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from whence.commands.credit import (
    LogOptions,
    ReportOptions,
    ScoredOptions,
    SourceOptions,
    carried_over,
    show_shares,
    weights_in,
)
from whence.errors import BadInput
from whence.settings import SharesConfig
from whence.terminal import tell, tell_json

__all__ = ["log_shares"]


def log_shares(
    output: Path,
    origin: SourceOptions,
    scored: ScoredOptions,
    config: SharesConfig,
    reported: ReportOptions,
    logged: LogOptions,
    as_json: bool,
) -> None:
    """Make the report of a period, or find the same one there.

    Args:
        output: The folder of the report.
        origin: Whose an example is.
        scored: The store.
        config: How scores become shares, and shares money.
        reported: What else goes into the report.
        logged: The log and the period.
        as_json: Print shares.json instead of a table.

    Raises:
        BadInput: If options do not fit each other, or something would be paid twice.
    """
    from whence.ledger import PaidOut, check_payout, existing_log, paid_out, write_payout
    from whence.shares import answers_of, content_of
    from whence.shares import shares as make_shares
    from whence.store import open_store

    assert logged.log is not None and logged.period is not None and scored.store is not None
    _check_weights(reported, logged)
    opened = open_store(scored.store)
    answers = answers_of(logged.log, opened, period=logged.period)
    with existing_log(logged.log) as log:
        payout = PaidOut(answers.stores, answers.period, "", _seal_of(reported.carry), "")
        earlier = paid_out(log)
        if config.payout is not None:
            check_payout(earlier, payout, replace=logged.replace)
        sources = _sources(answers, opened, origin)
        carried = None if reported.carry is None else carried_over(reported.carry, config.payout)
        _check_carried(reported.carry, answers.period)
        weights = answers.weights(logged.per) if reported.weights is None else weights_in(reported.weights)
        facts = origin.facts(opened)
        report = make_shares(answers, sources, config=config, weights=weights, carried=carried, facts=facts)
        seal, is_new = _written(report, output, opened, origin, reported)
        if config.payout is not None:
            try:
                write_payout(log, replace(payout, seal=seal, held_back=_held_in(report)), replace=logged.replace)
            except BadInput:
                # Another process was paid for it meanwhile: a report that is no payout must not pass for one.
                if is_new:
                    shutil.rmtree(output)
                raise
    if as_json:
        tell_json({"report": str(output), "seal": seal, **content_of(report)})
    else:
        show_shares(report, output, seal)
        tell(*_left_behind(earlier, payout))


def _sources(answers: Any, opened: Any, origin: SourceOptions) -> Any:
    """Whose each example is, those that are not in the store any more included.

    Raises:
        BadInput: If an example had several sources, and it is not said whose it is.
    """
    sources = origin.names(opened)
    if origin.records is not None:
        return sources
    if answers.disputed:
        name = sorted(answers.disputed)[0]
        raise BadInput(
            found=f"{len(answers.disputed):,} documents, such as {name[:80]!r}, that were deleted and added again with another source",
            needed="one source for each",
            do="say whose they are with --records, or make a report of each part of the time (FROM/TO)",
        )
    if origin.by not in ("source", "id"):
        return sources
    return {name: name if origin.by == "id" else source for name, source in answers.former.items()} | sources


def _check_weights(reported: ReportOptions, logged: LogOptions) -> None:
    """Refuse prices that are not given, or given for nothing.

    Raises:
        BadInput: If so.
    """
    if (logged.per == "price") != (reported.weights is not None):
        raise BadInput(
            found=f"--per {logged.per} {'with' if reported.weights is not None else 'without'} --weights",
            needed="a file with id and weight of every answer for --per price, and for nothing else",
            do="add --per price, or leave --weights out" if reported.weights is not None else "add --weights",
        )


def _written(report: Any, output: Path, opened: Any, origin: SourceOptions, reported: ReportOptions) -> tuple[str, bool]:
    """The seal of the report, and whether it was written now; it may be there already, the same byte for byte.

    Raises:
        BadInput: If something else is there.
    """
    from whence.shares import check_new, is_share_report, verify_shares, write_shares
    from whence.store import sha256_of
    from whence.store.file_sets import removed_after

    inputs = {"records": origin.records, "weights": reported.weights, "carried": reported.carry, "lengths": origin.lengths}
    given = {
        "store": opened, "inputs": {name: path for name, path in inputs.items() if path is not None},
        "validated": reported.validated, "signed_off_by": reported.signed_off_by,
    }  # fmt: skip
    if not is_share_report(output):
        check_new(output)
        try:
            return write_shares(report, output, **given), True
        except BadInput:
            if not is_share_report(output):  # else another process wrote it meanwhile
                raise
    with removed_after(output.with_name(f".{output.name}.again")) as beside:
        seal = write_shares(report, beside, **given)
    # The record names the digests of all other files.
    if seal != sha256_of(output / "record.json") or verify_shares(output).faults:
        check_new(output)  # which says that something is there
    return seal, False


def _check_carried(folder: Path | None, period: Any) -> None:
    """Refuse to carry from a report of the same time or a later one.

    Raises:
        BadInput: If it is one.
    """
    from whence.ledger import period_of
    from whence.shares.sealed_record import read_report

    facts = None if folder is None else read_report(folder).answers
    if facts is not None and period_of(f"{facts.since}/{facts.until}").until > period.since:
        raise BadInput(
            found=f"a report of {facts.period} to carry from into {period.name}",
            needed="one of an earlier time, or the same answers would count twice",
            do="carry from the payout before, or leave --carry out",
        )


def _seal_of(folder: Path | None) -> str:
    from whence.store import sha256_of

    return "" if folder is None or not (folder / "record.json").is_file() else sha256_of(folder / "record.json")


def _held_in(report: Any) -> str:
    total = sum(line.settled.held for line in report.lines if line.settled is not None)
    return f"{report.payout.text(total)} {report.payout.currency}" if total else ""


def _left_behind(earlier: Any, payout: Any) -> list[str]:
    """What an earlier payout held back that nobody carries on."""
    before = [
        other for other in earlier if set(other.stores) & set(payout.stores) and other.period.until <= payout.period.since
    ]
    taken = {other.carried for other in earlier} | {payout.carried}
    return [
        f"note: the payout of {other.period.name} held back {other.held_back}, which no payout has carried on yet (--carry)"
        for other in before
        if other.held_back and other.seal not in taken
    ]
