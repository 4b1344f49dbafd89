"""The page of a share report, for people who have to act on it and never read the paper."""

from collections.abc import Mapping
from html import escape
from typing import Any

from whence.report import bars_section, page, table_section
from whence.shares.gaming import gaming_of
from whence.shares.robust import robust_words
from whence.shares.rules import RULES
from whence.shares.shares import ShareLine, Shares

__all__ = ["share_page"]

# More bars than this no one reads; shares.csv has all lines.
_BARS = 25
_ROWS = 200
_QUERIES = 50
_TOP = 3


def share_page(report: Shares, record: Mapping[str, Any]) -> str:
    """A self-contained page: shares with intervals, money, what was not attributed, the queries, what the figures are worth, the record.

    Args:
        report: What to show.
        record: What `whence.shares.write_shares` writes down of the run, before its seal.

    Returns:
        HTML that loads nothing and runs nothing.
    """
    sources = [line for line in report.lines if line.kind == "source"]
    sections = [("Shares", _bars(report, sources))]
    if report.payout is not None:
        sections.append(("Payout", _money(report)))
    sections += [
        ("Not attributed", _unattributed(report)),
        ("All sources", _sources(report, sources)),
        ("Queries", _queries(report)),
        ("Signs of gaming", _gaming(report)),
        ("What these figures are", _meaning(report, record)),
        ("Record of the run", _record(report, record)),
    ]
    intro = (
        f"{len(sources):,} sources in what a model did on {len(report.query_ids):,} queries. {report.attributed:.2%} of the total is "
        f"attributed to a source; {1 - report.attributed:.2%} is not, and stands on lines of its own."
    )
    return page("Shares of the sources", sections, intro=intro)


def _bars(report: Shares, sources: list[ShareLine]) -> str:
    shown = [*sources[:_BARS], *(line for line in report.lines if line.kind != "source" and line.share > 0)]
    rows = []
    for line in shown:
        low, high = line.over_models or line.over_queries or (line.share, line.share)
        # Rounding may leave the share itself a trillionth outside of its interval.
        rows.append((line.name, 100 * line.share, 100 * min(low, line.share), 100 * max(high, line.share)))
    more = len(sources) - _BARS
    rest = f"<p>{more:,} more sources stand in the table below and in shares.csv.</p>" if more > 0 else ""
    return f"<p>{_intervals(report)}</p>" + bars_section("Share of the total", rows, "percent") + rest


def _intervals(report: Shares) -> str:
    models, queries = report.tables.num_models, len(report.query_ids)
    if models > 1:
        return f"The interval is of 95 % over models (jackknife over {models}): how far a share may move with other models trained alike."
    if report.over_queries != "bootstrap":
        return f"No interval is given: {report.over_queries}."
    if queries > 1:
        return (
            f"The interval is of 95 % over queries (bootstrap over {queries:,}): how far a share may move with other queries of the same "
            "kind. It does not say how far another training run would move it: for that, give tables of several models."
        )
    return "One query and one model: there is no interval, and nothing is known of how far these shares may move."


def _money(report: Shares) -> str:
    payout = report.payout
    assert payout is not None
    settled = [line.settled for line in report.lines if line.settled is not None]
    sums = {name: sum(getattr(each, name) for each in settled) for name in ("amount", "carried", "paid", "held", "kept")}
    cash = payout.currency
    facts = [
        ("This payout", payout.text(sums["amount"])),
        ("Carried from before", payout.text(sums["carried"])),
        ("Together", payout.text(sums["amount"] + sums["carried"])),
        (f"Paid to {sum(each.paid > 0 for each in settled):,} sources", payout.text(sums["paid"])),
        (
            f"Held back for {sum(each.held > 0 for each in settled):,} below {payout.text(payout.minimum)}",
            payout.text(sums["held"]),
        ),
        ("Kept, as nobody's: not attributed", payout.text(sums["kept"])),
    ]
    return (
        table_section(("", cash), facts)
        + f"<p>The last three rows add up to the third exactly. Every line gets its share of {payout.text(payout.total)} {cash} rounded "
        "down to the smallest coin; what is left goes, one coin each, to the largest remainders. Shares are rounded to 12 digits first, so "
        "that anyone can redo the split from shares.csv by hand.</p>"
    )


def _unattributed(report: Shares) -> str:
    meaning = {
        "unknown": f"Training examples without a named source ({report.unlisted:,} of them are not in the list of sources at all).",
        "withheld": "Near-duplicates under several sources, and what is above the cap of one document.",
        "noise": report.noise_floor[0].upper() + report.noise_floor[1:] + ".",
        "none": "Queries for which the rule found nothing to count.",
    }
    header = ("line", "share, %", *(("amount",) if report.payout else ()), "what it is")
    rows = [
        (line.name, 100 * line.share, *_amount(report, line), meaning[line.kind])
        for line in report.lines
        if line.kind != "source"
    ]
    return "<p>None of this is spread over the sources.</p>" + table_section(header, rows)


def _sources(report: Shares, sources: list[ShareLine]) -> str:
    header = ["source", "examples", "share, %"]
    has_models, has_queries = report.tables.num_models > 1, report.lines[0].over_queries is not None
    header += ["over models, %"] * has_models + ["over queries, %"] * has_queries + ["raised", "lowered"]
    header += ["amount", "carried", "paid", "held"] if report.payout else []
    rows = []
    for line in sources[:_ROWS]:
        ends = [line.over_models] * has_models + [line.over_queries] * has_queries
        spread = [f"{100 * pair[0]:.2f} to {100 * pair[1]:.2f}" for pair in ends if pair is not None]
        money = []
        if report.payout and line.settled:
            money = [report.payout.text(getattr(line.settled, name)) for name in ("amount", "carried", "paid", "held")]
        rows.append([line.name, line.examples, 100 * line.share, *spread, line.raised, line.lowered, *money])
    cut = f"<p>The first {_ROWS}; shares.csv has all {len(sources):,}.</p>" if len(sources) > _ROWS else ""
    words = (
        f"<p>Raised and lowered are the sums of a source's positive and negative scores, mean over queries by weight, in: "
        f"{escape(report.tables.unit)}.</p>"
    )
    return cut + table_section(header, rows) + words


def _queries(report: Shares) -> str:
    rows = []
    for name, weight, shares_L in list(zip(report.query_ids, report.weights, report.shares, strict=True))[:_QUERIES]:
        best = sorted(range(len(report.lines)), key=lambda index: -shares_L[index])[:_TOP]
        rows.append((name, weight, "; ".join(f"{report.lines[index].name} {shares_L[index]:.1%}" for index in best)))
    more = len(report.query_ids) - _QUERIES
    rest = f"<p>{more:,} more queries stand in queries.csv.</p>" if more > 0 else ""
    return table_section(("query", "weight", "largest lines"), rows) + rest


def _gaming(report: Shares) -> str:
    gaming = gaming_of(report)
    rows = [(sign.words, sign.part) for sign in gaming.signs[:_ROWS]]
    signs = table_section(("worth a look", "part"), rows) if rows else "<p>None was found.</p>"
    missing = "".join(f"<p>Not looked for: {escape(words)}.</p>" for words in gaming.missing)
    rule = "The robust rules were not used (--robust)."
    if report.is_robust:
        rule = (
            f"Robust rules: {'. '.join(filter(None, (robust_words(has_control=report.has_control), report.without_control)))}."
        )
    control = f"<p>Control: {escape(gaming.control)}. shares.json has each source's.</p>" if gaming.control else ""
    return f"<p>A sign proves no intention. {escape(rule)}</p>" + signs + missing + control


def _meaning(report: Shares, record: Mapping[str, Any]) -> str:
    evidence = record["evidence"]
    if evidence is None:
        proof = (
            "<b>Not validated by retraining.</b> Nothing in this report shows that the model would behave differently without these "
            "sources. Hold the scores against retrained models (whence bank, whence evaluate) and give the result with --validated."
        )
    else:
        proof = (
            f"Held against retraining: over {evidence['num_subsets']:,} subsets of the training data, predicted and measured change rank "
            f"alike with a correlation (linear datamodeling score) of {evidence['lds']:.3f} [{evidence['low']:.3f}, {evidence['high']:.3f}]; "
            "1 would be perfect, 0 is chance. That holds for the queries and the subsets of that test; whether it holds for leaving out "
            "exactly these sources is known only if the subsets were of that kind."
        )
    return "".join(
        f"<p>{text}</p>"
        for text in (
            "A share is the part of a <b>prediction</b>: how much a method of attribution expects each training example to have raised "
            "what the model did. It is no measurement of use, of copying, of quality or of a legal claim.",
            proof,
            f"Rule {escape(report.rule.name)}: {escape(RULES[report.rule.name])}. Another rule gives other shares; which one is fair is a "
            "decision of people, not a result.",
            "Every query's shares add up to one, whatever the size of its scores, and the total is the mean over queries by weight.",
            "The intervals say how far shares move with other models or other queries. They do not cover what the method itself gets wrong.",
        )
    )


def _record(report: Shares, record: Mapping[str, Any]) -> str:
    store, command = record["store"], record["command"]
    facts = [
        ("method", record["method"]),
        ("unit of the scores", record["unit"]),
        *(("note", note) for note in report.tables.notes),
        ("models (digest of the weights)", ", ".join(record["models"]) or "not recorded by the tables"),
        ("training data (fingerprint)", ", ".join(record["data"]) or "not recorded by the tables"),
        ("store", "none given" if store is None else f"{store['folder']} (blueprint {store['blueprint']})"),
        *(
            (f"input: {name}", f"{each['path']} (SHA-256 {each['sha256'] or 'not a file'})")
            for name, each in record["inputs"].items()
        ),
        ("versions", ", ".join(f"{name} {version}" for name, version in record["versions"].items())),
        *_origin_rows(record, command),
        ("signed off by", record["signed_off_by"] or "nobody"),
    ]
    words = (
        "<p>record.json holds this, every setting and the SHA-256 of every file of this folder. The command whence verify FOLDER computes "
        "all figures again from the scores in it. The seal, SHA-256 of record.json, tells whether the record itself was rewritten, if a "
        "copy of it is kept elsewhere.</p>"
    )
    return table_section(("what", "value"), facts) + words


def _origin_rows(record: Mapping[str, Any], command: str | None) -> list[tuple[str, str]]:
    answers = record.get("answers")
    if answers is None:
        return [("command", "from Python" if command is None else command), ("made at", record["made_at"])]
    more = f"; {answers['single_tokens']:,} about single tokens do not count" if answers["single_tokens"] else ""
    return [
        ("answers", f"{answers['count']:,} from {answers['since']} to {answers['until']}{more}"),
        ("digests of the store that answered, a version each", ", ".join(answers["stores"])),
    ]


def _amount(report: Shares, line: ShareLine) -> tuple[str, ...]:
    return () if report.payout is None or line.settled is None else (report.payout.text(line.settled.amount),)
