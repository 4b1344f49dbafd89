"""The verb about credit: shares per source, and money by them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from whence.commands.recorded import task_of_store
from whence.commands.shared import TYPED, Json
from whence.commands.work_options import DeviceOptions, OnDevice, Recorded, RecordedOptions, refuse_given
from whence.errors import BadInput
from whence.settings import SharesConfig
from whence.terminal import tell, tell_json

__all__ = [
    "LogOptions",
    "ReportOptions",
    "ScoredOptions",
    "SourceOptions",
    "carried_over",
    "shares",
    "show_shares",
    "weights_in",
]

# Rows of the table that is printed; shares.csv has all.
_ROWS = 20
_SIGNS = 8


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Whose an example is.

    Args:
        records: Training data in any form that build takes, for the source of each example; the store's own list of sources if left out.
        by: Field of the records: source, author, licence; id makes every document a source of its own.
        split: Split of a Hugging Face dataset.
        lengths: Table of self-influence, for lengths of gradients; those of --store if left out.
    """

    records: str | None = None
    by: str = "source"
    split: str = "train"
    lengths: Path | None = None

    def facts(self, opened: Any) -> Any:
        """What is known of the examples besides: which texts repeat others, how long gradients are; as far as it is at hand."""
        from whence.evaluate import load_table
        from whence.load import load_records
        from whence.shares import ExampleFacts, gradient_lengths, lengths_of, store_texts

        texts = None if opened is None else store_texts(opened)
        if texts is None and self.records is not None:
            texts = _texts_in(load_records(self.records, split=self.split))
        lengths = None if opened is None else gradient_lengths(opened)
        if self.lengths is not None:
            lengths = lengths_of(load_table(self.lengths))
        return ExampleFacts.of(texts, lengths)

    def names(self, opened: Any) -> Any:
        """By id of an example the name of its source.

        Raises:
            BadInput: If nothing says that.
        """
        from whence.load import load_records
        from whence.shares import named_sources

        if self.records is not None:
            return named_sources(load_records(self.records, split=self.split), self.by)
        if self.split != "train":
            raise BadInput(
                found="--split without --records",
                needed="records of a Hugging Face dataset",
                do="add --records, or leave --split out",
            )
        if opened is None:
            raise BadInput(found="nothing that says whose an example is", needed="--records or --store", do="add one")
        return named_sources(opened.examples(), self.by)


@dataclass(frozen=True, kw_only=True)
class ScoredOptions:
    """Where scores come from, if not from tables.

    Args:
        store: Store that the scores come from; without tables, the store to score.
        queries: Without tables: queries to score.
        recorded: With --queries: what is loaded of what the store records.
        machine: With --queries: where the model runs.
    """

    store: Path | None = None
    queries: str | None = None
    recorded: Recorded = RecordedOptions()
    machine: OnDevice = DeviceOptions()

    def tables(self, tables: tuple[Path, ...], opened: Any) -> list[Any]:
        """The tables, or one of the queries that are scored here."""
        from whence.load import load_records
        from whence.pipeline import score_table

        if self.store is None or self.queries is None:
            return [str(table) for table in tables]
        task = task_of_store(opened, self.store, self.recorded.model, self.machine.placement, trust=self.recorded.trust)
        return [score_table(opened, task, task.prepare(load_records(self.queries)))]


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """Answers of a service, instead of tables.

    Args:
        log: Query log of `whence serve --credits`: shares of what was answered from --store.
        period: With --log: which answers: 2026-10 (a month of UTC), 2026-10-05, 2026, or FROM/TO in ISO 8601; one that is over.
        per: With --log: what an answer counts: all alike, by the tokens of its completion, or by the price that --weights gives it.
        replace: With --log: this report takes the place of one for the same period that was never paid.
    """

    log: Path | None = None
    period: str | None = None
    per: Literal["answer", "token", "price"] = "answer"
    replace: Annotated[bool, Parameter(negative="")] = False


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What else goes into the report.

    Args:
        weights: File with id and weight of each query; all count alike if left out.
        carry: Report of the last payout, whose amounts held back are due now as well.
        validated: What `whence evaluate -o FILE` wrote for this method, for the report to say how true the scores are.
        signed_off_by: Who answers for the report; goes into the record.
    """

    weights: str | None = None
    carry: Path | None = None
    validated: Path | None = None
    signed_off_by: str = ""


def shares(
    *tables: Path,
    output: Annotated[Path, Parameter(alias="-o")],
    origin: Annotated[SourceOptions, Parameter(name="*")] = SourceOptions(),
    scored: Annotated[ScoredOptions, Parameter(name="*")] = ScoredOptions(),
    config: Annotated[SharesConfig, Parameter(name="*")] = SharesConfig(),
    reported: Annotated[ReportOptions, Parameter(name="*")] = ReportOptions(),
    logged: Annotated[LogOptions, Parameter(name="*")] = LogOptions(),
    as_json: Json = False,
) -> None:
    """Turn scores, or a service's log, into shares per source, and a payout into amounts, with a record that `whence verify` can check.

    Writes shares.csv, queries.csv, shares.json, report.html, and record.json with copies of the scores and digests of everything. What has no
    known source, or is noise, is a line of its own and never spread over the others. docs/shares.md says what the figures mean.

    Args:
        tables: Folders by `whence score` or `whence attribute`; or none, with --store and --queries.
        output: A new folder for the report.
        origin: Whose an example is.
        scored: Where scores come from, if not from tables.
        config: How scores become shares, and shares money.
        reported: What else goes into the report.
        logged: Answers of a service, instead of tables.
        as_json: Print shares.json instead of a table.

    Raises:
        BadInput: If options do not fit each other.
    """
    from whence.shares import check_new, content_of, write_shares
    from whence.shares import shares as make_shares
    from whence.store import open_store

    _check_options(tables, scored, logged)
    if not (config.robust or config.norm_control):
        raise BadInput(found="--no-norm-control without --robust", needed="rules that it is left out of", do="leave it out")
    if logged.log is not None:
        from whence.commands.payout import log_shares

        return log_shares(output, origin, scored, config, reported, logged, as_json)
    check_new(output)
    opened = None if scored.store is None else open_store(scored.store)
    sources = origin.names(opened)
    carried = None if reported.carry is None else carried_over(reported.carry, config.payout)
    weights = None if reported.weights is None else weights_in(reported.weights)
    report = make_shares(
        scored.tables(tables, opened), sources, config=config, weights=weights, carried=carried, facts=origin.facts(opened)
    )
    inputs = {
        "records": origin.records, "queries": scored.queries, "weights": reported.weights, "carried": reported.carry,
        "lengths": origin.lengths,
    }  # fmt: skip
    seal = write_shares(
        report, output, store=opened, inputs={name: path for name, path in inputs.items() if path is not None},
        validated=reported.validated, command=TYPED.get(), signed_off_by=reported.signed_off_by,
    )  # fmt: skip
    if as_json:
        tell_json({"report": str(output), "seal": seal, **content_of(report)})
    else:
        show_shares(report, output, seal)
    return None


def _check_options(tables: tuple[Path, ...], scored: ScoredOptions, logged: LogOptions) -> None:
    """Refuse what is not one source of scores.

    Raises:
        BadInput: If there is none, or more than one.
    """
    if logged.log is not None:
        if tables or scored.queries is not None or scored.store is None or logged.period is None:
            raise BadInput(
                found=f"--log with {len(tables)} tables, {'a' if scored.store is not None else 'no'} store, "
                f"{'some' if scored.queries is not None else 'no'} queries and {'a' if logged.period else 'no'} period",
                needed="the store that answered and a period, and no other scores",
                do="such as: whence shares --log queries.sqlite --store STORE --period 2026-10 -o report",
            )
        return
    if logged != LogOptions():
        raise BadInput(found="--period, --per or --replace without --log", needed="a query log", do="add --log")
    has_queries, has_store = scored.queries is not None, scored.store is not None
    if bool(tables) == has_queries or (has_queries and not has_store):
        raise BadInput(
            found=f"{len(tables)} tables, {'a' if has_store else 'no'} store and {'some' if has_queries else 'no'} queries",
            needed="tables, or a store and queries to score",
            do="such as: whence shares TABLE --records FILE -o report",
        )
    if not has_queries:
        refuse_given(scored.recorded, scored.machine, where="without --queries", needed="queries, for which a model is loaded")


def show_shares(report: Any, output: Path, seal: str) -> None:
    """Print the shares as a table, and where the report is."""
    from whence.report import print_table
    from whence.shares import gaming_of

    header = ["source", "examples", "share"]
    sources = [line for line in report.lines if line.kind == "source"]
    shown = [*sources[:_ROWS], *(line for line in report.lines if line.kind != "source")]
    cells = [[line.name, f"{line.examples:,}", f"{line.share:.4%}"] for line in shown]
    if report.payout is not None:
        header += [f"amount, {report.payout.currency}", "paid", "held back"]
        for row, line in zip(cells, shown, strict=True):
            row += [report.payout.text(getattr(line.settled, name)) for name in ("amount", "paid", "held")]
    more = f", the first {_ROWS} of {len(sources):,} sources" if len(sources) > _ROWS else ""
    print_table(header, cells, title=f"Shares in {len(report.query_ids):,} queries{more}")
    tell(
        *(f"note: {note}" for note in report.tables.notes),
        f"below the noise floor: {report.noise_floor}",
        *_signs(gaming_of(report)),
        *([f"note: {report.without_control}"] if report.without_control else []),
        f"report: {output / 'report.html'}",
        f"seal, to be kept elsewhere: {seal}",
    )


def _signs(gaming: Any) -> list[str]:
    """Signs of gaming, a line each, as many as anyone reads."""
    lines = [f"worth a look: {sign.words}" for sign in gaming.signs[:_SIGNS]]
    if len(gaming.signs) > _SIGNS:
        lines.append(f"worth a look: {len(gaming.signs) - _SIGNS:,} more such signs are in shares.json")
    lines += [f"not looked for: {words}" for words in gaming.missing]
    return lines + ([f"control: {gaming.control}"] if gaming.control else [])


def _texts_in(records: Any) -> dict[str, str] | None:
    """By id the text of each record; None if none has one."""
    texts = {}
    for number, record in enumerate(records):
        parts = [str(record[name]) for name in ("text", "prompt", "completion") if record.get(name)]
        if parts:
            texts[str(record.get("id", number))] = " ".join(parts)
    return texts or None


def carried_over(folder: Path, payout: str | None) -> dict[str, str]:
    """What a report held back, by name of a source.

    Raises:
        BadInput: If the report is damaged, or of another currency.
    """
    from whence.shares.verify import verify_shares
    from whence.store import parse_json, read_plain

    faults = verify_shares(folder).faults
    if faults:
        raise BadInput(found=f"a report to carry from with a fault ({faults[0]})", needed="one that holds", do="restore it")
    content = parse_json(read_plain(folder / "shares.json"))
    currency = (content["payout"] or {}).get("currency")
    if currency is None or payout is None or currency not in payout.split():
        raise BadInput(
            found=f"the payout {payout!r} and a report of {currency or 'shares without a payout'} to carry from",
            needed="a payout in the same currency as that of the report",
            do="carry by hand, or leave --carry out",
        )
    return {line["name"]: line["payout"]["held"] for line in content["lines"] if line["kind"] == "source"}


def weights_in(source: str) -> dict[str, float]:
    """Weights of queries by name.

    Raises:
        BadInput: If a record has no id, or no number as its weight.
    """
    from whence.load import load_records

    weights: dict[str, float] = {}
    for number, record in enumerate(load_records(source)):
        try:
            name, weight = str(record["id"]), float(record["weight"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                found=f"record {number} of {source} without id or weight",
                needed="both, the weight being a number",
                do="add them, a record per query",
            ) from error
        if name in weights:
            raise BadInput(found=f"two weights for {name!r} in {source}", needed="one for each query", do="leave one out")
        weights[name] = weight
    return weights
