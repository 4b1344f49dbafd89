"""The verb about credit: shares per source, and money by them."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from whence.commands.recorded import Trust, task_of_store
from whence.commands.shared import TYPED, Json
from whence.errors import BadInput
from whence.terminal import tell, tell_json

__all__ = ["shares"]

# Rows of the table that is printed; shares.csv has all.
_ROWS = 20


def shares(
    *tables: Path,
    output: Annotated[Path, Parameter(alias="-o")],
    records: str | None = None,
    by: str = "source",
    split: str = "train",
    store: Path | None = None,
    queries: str | None = None,
    model: str | None = None,
    trust: Trust = False,
    several: Literal["queries", "models"] | None = None,
    rule: Literal["positive", "softmax", "signed"] = "positive",
    temperature: float | None = None,
    floor: float | None = None,
    floor_errors: float | None = None,
    weights: str | None = None,
    payout: str | None = None,
    minimum: str | None = None,
    carry: Path | None = None,
    validated: Path | None = None,
    signed_off_by: str = "",
    draws: int = 1000,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Turn scores into shares per source, and a payout into amounts, with a record that `whence verify` can check.

    Writes shares.csv, queries.csv, shares.json, report.html, and record.json with copies of the scores and digests of everything. What has no
    known source, or is noise, is a line of its own and never spread over the others. docs/shares.md says what the figures mean.

    Args:
        tables: Folders by `whence score` or `whence attribute`; or none, with --store and --queries.
        output: A new folder for the report.
        records: Training data in any form that build takes, for the source of each example; the store's own list of sources if left out.
        by: Field of the records: source, author, licence; id makes every document a source of its own.
        split: Split of a Hugging Face dataset.
        store: Store that the scores come from; without tables, the store to score.
        queries: Without tables: queries to score.
        model: With --queries: load the model from here instead of from where it was at the build.
        trust: Also load a recorded model or data that is Python code, a relative path or a name on the hub: code that the store names is run.
        several: What several tables are: of more queries (a month), or of the same queries by several models (an interval).
        rule: positive: negative scores count nothing; softmax: exponentials of all; signed: negative against positive within a source.
        temperature: Of softmax, in standard deviations of a query's scores.
        floor: Noise floor: smaller scores go to a line of their own; in the table's unit.
        floor_errors: Noise floor as a number of standard errors over three models or more.
        weights: File with id and weight of each query; all count alike if left out.
        payout: Amount to split, with its currency, such as "1000.00 EUR".
        minimum: Who is due less is not paid but held back.
        carry: Report of the last payout, whose amounts held back are due now as well.
        validated: What `whence evaluate -o FILE` wrote for this method, for the report to say how true the scores are.
        signed_off_by: Who answers for the report; goes into the record.
        draws: Bootstrap draws of the queries.
        seed: Of the draws.
        as_json: Print shares.json instead of a table.

    Raises:
        BadInput: If options do not fit each other.
    """
    from whence.apply.shares import shares as make_shares
    from whence.apply.shares.files import content_of
    from whence.apply.shares.record import check_new, write_shares
    from whence.apply.shares.sources import named_sources
    from whence.load import load_records
    from whence.store import open_store

    if bool(tables) == (queries is not None) or queries is not None and store is None or model is not None and queries is None:
        raise BadInput(
            found=f"{len(tables)} tables, {'no' if store is None else 'a'} store and {'no' if queries is None else 'some'} queries",
            needed="tables, or a store and queries to score (--model goes with the latter)",
            do="such as: whence shares TABLE --records FILE -o report",
        )
    if trust and queries is None:
        raise BadInput(found="--trust without --queries", needed="queries, for which a model is loaded", do="leave --trust out")
    if split != "train" and records is None:
        raise BadInput(
            found="--split without --records",
            needed="records of a Hugging Face dataset",
            do="add --records, or leave --split out",
        )
    if records is None and store is None:
        raise BadInput(found="nothing that says whose an example is", needed="--records or --store", do="add one")
    check_new(output)
    opened = None if store is None else open_store(store)
    data = load_records(records, split=split) if records is not None else opened.examples() if opened is not None else ()
    sources = named_sources(data, by)
    carried = None if carry is None else _held(carry, payout)
    weighing = None if weights is None else _weights(weights)
    scored: Any = [str(table) for table in tables]
    if opened is not None and store is not None and queries is not None:
        from whence.pipeline import score_table

        task = task_of_store(opened, store, model, trust=trust)
        scored = [score_table(opened, task, task.prepare(load_records(queries)))]
    found = make_shares(
        scored, sources, rule=rule, temperature=temperature, floor=floor, floor_errors=floor_errors, several=several,
        weights=weighing, payout=payout, minimum=minimum, carried=carried, draws=draws, seed=seed,
    )  # fmt: skip
    inputs = {"records": records, "queries": queries, "weights": weights, "carried": carry}
    seal = write_shares(
        found, output, store=opened, inputs={name: place for name, place in inputs.items() if place is not None},
        validated=validated, command=TYPED.get(), signed_off_by=signed_off_by,
    )  # fmt: skip
    if as_json:
        tell_json({"report": str(output), "seal": seal, **content_of(found)})
    else:
        _show(found, output, seal)


def _show(found: Any, output: Path, seal: str) -> None:
    from whence.report import print_table

    header = ["source", "examples", "share"]
    sources = [line for line in found.lines if line.kind == "source"]
    shown = [*sources[:_ROWS], *(line for line in found.lines if line.kind != "source")]
    cells = [[line.name, f"{line.examples:,}", f"{line.share:.4%}"] for line in shown]
    if found.payout is not None:
        header += [f"amount, {found.payout.currency}", "paid", "held back"]
        for row, line in zip(cells, shown, strict=True):
            row += [found.payout.text(getattr(line.settled, name)) for name in ("amount", "paid", "held")]
    more = f", the first {_ROWS} of {len(sources):,} sources" if len(sources) > _ROWS else ""
    print_table(header, cells, title=f"Shares in {len(found.query_ids):,} queries{more}")
    tell(f"report: {output / 'report.html'}", f"seal, to be kept elsewhere: {seal}")


def _held(folder: Path, payout: str | None) -> dict[str, str]:
    """What a report held back, by name of a source.

    Raises:
        BadInput: If the report is damaged, or of another currency.
    """
    from whence.apply.shares.verify import verify_shares
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


def _weights(source: str) -> dict[str, float]:
    """Weights of queries by name.

    Raises:
        BadInput: If a record has no id, or no number as its weight.
    """
    from whence.load import load_records

    found: dict[str, float] = {}
    for number, record in enumerate(load_records(source)):
        try:
            name, weight = str(record["id"]), float(record["weight"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                found=f"record {number} of {source} without id or weight",
                needed="both, the weight being a number",
                do="add them, a record per query",
            ) from error
        if name in found:
            raise BadInput(found=f"two weights for {name!r} in {source}", needed="one for each query", do="leave one out")
        found[name] = weight
    return found
