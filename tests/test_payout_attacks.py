"""Who pays, is paid or checks a payout may be anybody: what cannot be is refused in a line, and nothing is paid twice."""

import json
import shutil

import pytest

import whence
from tests.test_payout import DAY, MONEY, MONTH, OCTOBER, content, october, paid  # noqa: F401
from tests.test_serve import folder, store, task  # noqa: F401
from whence.cli import main
from whence.ledger import paid_out
from whence.shares import verify_shares
from whence.store import sha256_of

NAMES = (
    "below the noise floor",
    "withheld by the robust rule",
    "unknown source",
    "é\u0301\u202e",
    "=1+1",
    "'a",
    "日本",
    "a\nb",
    'x,"y',
)


def resealed(report, where, name, change):
    """A copy of a report with one file changed, its digests made to fit by who changed it."""
    shutil.copytree(report, where)
    lines = [json.loads(line) for line in (where / name).read_text().splitlines()] if name.endswith("l") else None
    given = json.loads((where / name).read_text()) if lines is None else lines
    change(given)
    text = json.dumps(given) if lines is None else "".join(json.dumps(line) + "\n" for line in given)
    (where / name).write_text(text)
    record = json.loads((where / "record.json").read_text())
    record["outputs"] |= {file: sha256_of(where / file) for file in record["outputs"]}
    (where / "record.json").write_text(json.dumps(record))
    (where / "record.sha256").write_text(f"{sha256_of(where / 'record.json')}  record.json\n")
    return where


def of_all(**fields):
    return lambda lines: [line.update({name: value(line) for name, value in fields.items()}) for line in lines[1:]]


def setting(**given):
    return "record.json", lambda record: record["settings"].update(given)


def to_november(lines):
    lines[0]["period"] = {"name": "2025-11", "since": OCTOBER + 31 * DAY, "until": OCTOBER + 61 * DAY}


HOSTILE = {
    "an endless amount": (*setting(payout="1e400000000 EUR"), "the amount '1e400000000'"),
    "an endless minimum": (*setting(minimum="1" * 19), "the amount '1111111111111111111'"),
    "weights beyond numbers": (*setting(weights={f"a{day}": 1e308 for day in (0, 3, 14.5, 30.9)}), "none above 1e100"),
    "weights of nothing": (*setting(weights={f"a{day}": 5e-324 for day in (0, 3, 14.5, 30.9)}), "one of them 1e-100 or above"),
    "robust afterwards": (*setting(robust=True), "does not follow from the scores"),
    "a control that is no word": (*setting(norm_control="yes"), "no record of shares"),
    "an unknown setting": (*setting(surplus=1), "an unknown field 'surplus'"),
    "scores beyond numbers": ("answers.jsonl", of_all(scores=lambda line: [1e308] * len(line["rows"])), "scores that no table has"),
    "scores of doubles": ("answers.jsonl", of_all(scores=lambda line: [0.1] * len(line["rows"])), "scores that no table has"),
    "a floor above its scores": ("answers.jsonl", of_all(floor=lambda line: 1e9), "the wrong side of its floor"),
    "a floor below zero": ("answers.jsonl", of_all(floor=lambda line: -1.0), "the wrong side of its floor"),
    "sums with the wrong sign": ("answers.jsonl", of_all(below=lambda line: [-5.0, 7.0]), "the wrong side of its floor"),
    "an unknown field": ("answers.jsonl", of_all(surplus=lambda line: 1), "other fields than a credit's"),
    "no answers": ("answers.jsonl", lambda lines: lines.__delitem__(slice(1, None)), "no answers"),
    "an answer twice": ("answers.jsonl", lambda lines: lines.append(lines[-1]), "an answer that is there twice"),
    "a replayed month": ("answers.jsonl", to_november, "of another time"),
    "lengths beyond numbers": (
        "facts.jsonl",
        lambda lines: [line.update(length=1e308 if n else 1e-308) for n, line in enumerate(lines[1:])],
        "by_length_alone",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_report_that_fits_itself_and_cannot_be_is_refused_in_a_line(october, tmp_path, name, capsys):  # noqa: F811
    file, change, why = HOSTILE[name]
    report = paid(october, tmp_path / "report", *MONEY)
    assert not verify_shares(report).faults
    try:
        faults = verify_shares(resealed(report, tmp_path / "hostile", file, change)).faults
    except whence.WhenceError as error:
        faults = (str(error),)
    assert any(why in fault for fault in faults), faults


@pytest.mark.parametrize("amount", ["1e3", "1_000", "١٠٠", "1e400000000", "1" * 19, "+5", ".5", "NaN", "0x10"])
def test_an_amount_that_can_be_misread_is_refused(october, tmp_path, capsys, amount):  # noqa: F811
    paid(october, tmp_path / "report", "--payout", f"{amount} EUR", status=2)
    assert f"found the amount {amount!r}" in capsys.readouterr().err
    assert not (tmp_path / "report").exists() and not paid_out(october.log.writer)


def test_a_payout_of_nothing_is_one(october, tmp_path, capsys):  # noqa: F811
    report = paid(october, tmp_path / "report", "--payout", "0 EUR", "--minimum", "5")
    shown = json.loads((report / "shares.json").read_text())
    assert {shown["payout"][name] for name in ("amount", "paid", "held", "kept")} == {"0.00"}
    assert not verify_shares(report).faults and len(paid_out(october.log.writer)) == 1
    paid(october, tmp_path / "later", "--payout", "5 EUR", status=2)
    assert "was paid out by another report" in capsys.readouterr().err


@pytest.mark.parametrize("is_same", [True, False])
def test_of_two_payouts_at_once_one_counts(october, tmp_path, monkeypatch, capsys, is_same):  # noqa: F811
    """The other process is done after this one looked, and before it writes."""
    real, first = whence.shares.write_shares, tmp_path / "first"
    second = first if is_same else tmp_path / "second"

    def meanwhile(report, folder, **given):  # noqa: F811
        monkeypatch.undo()
        paid(october, first, *MONEY)
        return real(report, folder, **given)

    monkeypatch.setattr(whence.shares, "write_shares", meanwhile)
    paid(october, second, *(MONEY if is_same else ("--payout", "2000 EUR")), status=0 if is_same else 2)
    assert [payout.seal for payout in paid_out(october.log.writer)] == [sha256_of(first / "record.json")]
    assert not verify_shares(first).faults
    if not is_same:
        assert not second.exists() and "was paid out by another report" in capsys.readouterr().err


def test_months_of_any_names_robust_and_plain_carry_on(october, tmp_path, capsys):  # noqa: F811
    october.add(40, 41)
    records = tmp_path / "records.jsonl"
    lines = [
        {"id": name, "text": f"w{n} {n * n} {n + 5} x{n} y", "source": NAMES[n % len(NAMES)]}
        for n, name in enumerate(october.store.ids())
    ]
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def month(name, *more, period=MONTH, status=0):
        words = [
            "--log",
            october.path,
            "--store",
            october.store.folder,
            "--records",
            records,
            "--payout",
            "100 EUR",
            "--minimum",
            "30",
        ]
        assert main(["shares", *map(str, [*words, "--period", period, "-o", tmp_path / name, *more])]) == status
        return tmp_path / name

    robust, again = month("october", "--robust"), month("again", "--robust")
    assert content(robust) == content(again) and not verify_shares(robust).faults
    shown = json.loads((robust / "shares.json").read_text())
    assert {line["name"] for line in shown["lines"] if line["kind"] == "source"} == {name.strip() for name in NAMES}
    plain = month("november", "--carry", robust, period="2025-11")
    assert not verify_shares(plain).faults
    assert json.loads((plain / "shares.json").read_text())["payout"]["carried"] == shown["payout"]["held"]
    capsys.readouterr()
    for more in ((), ("--robust", "--no-norm-control")):
        month("other", *more, status=2)
        assert "was paid out by another report" in capsys.readouterr().err
