"""From the log of a service to a payout: the same shares as from a table of all scores, nothing paid twice, nothing missing in silence."""

import json
import math
import shutil
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

import whence
from tests.settings import QUIET
from tests.test_serve import ASKED, desk, folder, logged, posted, service, store, task  # noqa: F401
from tests.test_shares import SOURCES, drawn, table
from whence.cli import main
from whence.errors import BadInput, StoreMismatch
from whence.ledger import Credit, Period, credit_of, paid_out, period_of, read_credit
from whence.ledger.canonical import canonical
from whence.serve.log import QueryLog
from whence.settings import SharesConfig
from whence.shares.answers import Answers
from whence.store import parse_json, sha256_of, write_json

OCTOBER, DAY = period_of("2026-10").since - 365 * 86_400, 86_400.0  # October 2025, which is over
MONTH = "2025-10"
FACTS = {"store": "d", "method": "m", "unit": "nats", "tokens": 3, "token": None}


def answers(scores, **facts):
    credits = tuple(credit_of(row.numpy(), {**FACTS, "id": f"q{n}", "time": 1.0 + n, **facts}) for n, row in enumerate(scores))
    return Answers(
        {"d": np.arange(scores.shape[1])}, Period("p", 0.0, 1e6), tuple(f"d{n}" for n in range(scores.shape[1])), credits, 0
    )


def heavy(queries=6, examples=400, seed=3):
    return drawn(queries, examples, seed) * (1 + 20 * (drawn(queries, examples, seed + 1) > 2.2))


# --- the same shares as from a table


@pytest.mark.parametrize("size", [0, 1, 49, 50, 51, 400, 401])
def test_a_credit_is_what_the_slow_way_writes_down(size):
    """The median by NumPy in float64, sums one after another."""
    for seed in range(6):
        scores = (
            drawn(1, size, seed)[0].numpy() if seed < 4 else np.round(drawn(1, size, seed)[0].numpy())
        )  # with ties and zeros
        scores = -np.abs(scores) if seed == 3 else scores
        wide = scores.astype(np.float64)
        floor = 1.482602218505602 * float(np.median(np.abs(wide))) * math.sqrt(2 * math.log(size)) if size >= 50 else 0.0
        below, kept = [0.0, 0.0], []
        for row, score in enumerate(wide.tolist()):
            if abs(score) < floor:
                below[score < 0] += score
            elif score:
                kept.append((row, score))
        credit = credit_of(scores, {**FACTS, "id": "a", "time": 1.0})
        assert (credit.floor, credit.below) == (floor, tuple(below))
        assert list(zip(credit.rows_K.tolist(), credit.scores_K.tolist(), strict=True)) == kept


@pytest.mark.parametrize("config", [{}, {"rule": "signed"}, {"floor": 6.0}])
def test_shares_of_a_log_are_those_of_a_table_with_all_scores(config):
    scores, sources = heavy(), {f"d{n}": f"s{n % 7}" if n % 11 else "" for n in range(390)}
    weights = {f"q{n}": float(n) for n in range(6)}
    config = SharesConfig(payout="1000.00 EUR", minimum="5", **config)
    mine, theirs = (
        whence.shares.shares(given, sources, config=config, weights=weights) for given in (answers(scores), table(scores))
    )
    if config.rule == "positive" and config.floor is None:  # else the line of noise is added up in another order
        assert mine.lines == theirs.lines
    assert [line.settled for line in mine.lines] == [line.settled for line in theirs.lines]
    assert np.allclose(mine.shares, theirs.shares, rtol=0, atol=1e-15) and mine.floors == theirs.floors
    assert mine.noise_floor == theirs.noise_floor
    # It is not all of the scores that were written down.
    assert all(0 < len(credit.rows_K) < 40 for credit in answers(scores).credits)


def test_below_fifty_examples_every_score_counts():
    scores = drawn()
    mine, theirs = (whence.shares.shares(given, SOURCES) for given in (answers(scores), table(scores)))
    assert mine.lines == theirs.lines and mine.floors == (0.0,) * 5


def test_a_credit_is_read_back_to_the_last_bit():
    credit = answers(heavy()).credits[0]
    again = read_credit(parse_json(credit.line()))
    assert again.line() == credit.line() and again.scores_K.tolist() == credit.scores_K.tolist()
    for change in ({"rows": [3, 3]}, {"rows": [1]}, {"below": [1.0]}, {"scores": ["a"]}, {"floor": None}, {"more": 1}):
        with pytest.raises(BadInput, match="cannot be read"):
            read_credit({**credit.to_json(), "rows": [1, 2], "scores": [1.0, 2.0], **change})


@pytest.mark.parametrize("config", [{"rule": "softmax", "temperature": 1.0}, {"floor": 0.1}, {"floor": "off"}])
def test_what_needs_the_scores_below_the_floor_is_refused(config):
    with pytest.raises(BadInput, match="which a log has as two sums only"):
        whence.shares.shares(answers(heavy()), SOURCES, config=SharesConfig(**config))


def test_answers_count_alike_or_by_tokens_or_by_price():
    given = answers(heavy(2))
    assert given.weights("answer") == {"q0": 1.0, "q1": 1.0} and given.weights("token") == {"q0": 3.0, "q1": 3.0}
    with pytest.raises(BadInput, match="without prices"):
        given.weights("price")
    with pytest.raises(BadInput, match="2 answers without a token"):
        answers(heavy(2), tokens=0).weights("token")


# --- what the service keeps


def test_the_service_keeps_all_scores(service, store, task, tmp_path):  # noqa: F811
    path = tmp_path / "log.sqlite"
    client = service(log=str(path), credits=True)
    found = posted(client, {**ASKED, "filter": {"sources": ["book"]}})
    posted(client, {**ASKED, "token": 1})
    assert "scores" not in found and "credit" not in client.get(f"/v1/answers/{found['id']}").json()
    time.sleep(0.01)
    until = datetime.now(UTC).isoformat()
    given = whence.shares.answers_of(path, store, period=f"2026-01-01/{until}")
    assert given.query_ids == (found["id"],) and given.single == 1 and given.credits[0].tokens == 4
    assert given.unit == found["unit"] and given.notes == tuple(found["notes"])
    (wanted_N,) = whence.score_table(store, task, task.prepare([{"id": "q", **ASKED}])).scores
    scores_N = torch.zeros(len(store))
    scores_N[given.credits[0].rows_K] = torch.tensor(given.credits[0].scores_K, dtype=torch.float32)
    assert torch.allclose(scores_N, wanted_N, rtol=1e-5, atol=1e-9)


# --- a month


class Log:
    """A log of last October, and the store that answered."""

    def __init__(self, path, store):  # noqa: F811
        self.path, self.store = path, store
        self.scores = torch.randn(9, len(store), generator=torch.Generator().manual_seed(1))
        self.log = QueryLog(str(self.path), retention_days=1e5)

    def add(self, *days, **facts):
        for day in days:
            name, at = f"a{day}", OCTOBER + day * DAY
            credit = credit_of(
                self.scores[int(day) % 9].numpy(), {**FACTS, "store": self.store.digest, "id": name, "time": at, **facts}
            )
            self.log.add(
                [
                    {
                        **logged(name, at, []),
                        "digest": self.store.digest,
                        "notes": ["n"],
                        "token": credit.token,
                        "credit": credit.line(),
                    }
                ]
            )


@pytest.fixture
def october(tmp_path, store):  # noqa: F811
    made = Log(tmp_path / "log.sqlite", store)
    made.add(0, 3, 14.5, 30.9)
    yield made
    made.log.close()


def paid(log, output, *more, period=MONTH, status=0):
    words = ["shares", "--log", log.path, "--store", log.store.folder, "--period", period, "-o", output, "--by", "id", *more]
    assert main(list(map(str, words))) == status
    return output


def content(report):
    return {path.relative_to(report).as_posix(): path.read_bytes() for path in sorted(report.rglob("*")) if path.is_file()}


MONEY = ("--payout", "1000 EUR", "--minimum", "90")


def test_a_month_is_paid_out_and_holds(october, tmp_path, capsys):
    october.add(31, -0.5)  # not of this month
    report = paid(october, tmp_path / "report", *MONEY)
    shown = json.loads((report / "shares.json").read_text())
    assert [query["query"] for query in shown["queries"]] == ["a0", "a3", "a14.5", "a30.9"]
    assert shown["payout"]["amount"] == "1000.00" and float(shown["payout"]["held"]) > 0
    record = json.loads((report / "record.json").read_text())
    assert record["answers"] == {
        "stores": [october.store.digest], "period": MONTH, "since": "2025-10-01T00:00:00+00:00", "until": "2025-11-01T00:00:00+00:00",
        "count": 4, "single_tokens": 0,
    }  # fmt: skip
    elsewhere = tmp_path / "elsewhere" / "published"
    shutil.copytree(report, elsewhere)
    check = whence.shares.verify_shares(elsewhere)
    assert not check.faults and check.queries == 4
    assert "answers" in (report / "report.html").read_text()


def test_the_same_period_twice_is_the_same_byte_for_byte(october, tmp_path, capsys):
    report, other = paid(october, tmp_path / "report", *MONEY), paid(october, tmp_path / "other" / "report", *MONEY)
    before = content(report)
    assert before == content(other)
    paid(october, report, *MONEY)
    assert content(report) == before and not list(tmp_path.glob(".*"))
    (report / "shares.csv").write_text("x")
    paid(october, report, *MONEY, status=2)
    assert "something at" in capsys.readouterr().err


def test_a_period_is_paid_once(october, tmp_path, capsys):
    paid(october, tmp_path / "one", *MONEY)
    paid(october, tmp_path / "two", "--payout", "2000 EUR", status=2)
    assert "was paid out by another report" in capsys.readouterr().err
    paid(october, tmp_path / "half", *MONEY, period="2025-10-01/2025-10-15", status=2)
    assert "part of which was paid out as 2025-10" in capsys.readouterr().err
    paid(october, tmp_path / "shares", period="2025-10-01/2025-10-15")  # shares alone are no payout
    paid(october, tmp_path / "three", "--payout", "2000 EUR", "--replace")
    paid(october, tmp_path / "one again", *MONEY, status=2)


def test_amounts_held_back_are_carried_once(october, tmp_path, capsys):
    october.add(40, 41, 72)
    first = paid(october, tmp_path / "october", *MONEY)
    capsys.readouterr()
    paid(october, tmp_path / "without", *MONEY, period="2025-11")
    assert "which no payout has carried on yet" in capsys.readouterr().out
    paid(october, tmp_path / "november", *MONEY, "--carry", first, "--replace", period="2025-11")
    held, november = (json.loads((tmp_path / name / "shares.json").read_text())["payout"] for name in ("october", "november"))
    assert held["held"] == november["carried"]
    capsys.readouterr()
    paid(october, tmp_path / "december", *MONEY, "--carry", first, period="2025-12", status=2)
    assert "whose amounts the payout of 2025-11 took" in capsys.readouterr().err
    paid(october, tmp_path / "back", *MONEY, "--carry", tmp_path / "november", period="2025-09", status=2)
    october.add(-3)
    paid(october, tmp_path / "back", *MONEY, "--carry", tmp_path / "november", period="2025-09", status=2)
    assert "a report of 2025-11 to carry from into 2025-09" in capsys.readouterr().err


def test_two_stores_cannot_carry_the_same_amounts(october, tmp_path, task, capsys):  # noqa: F811
    """Both in the very same month, which is where one report takes another's place, were they of one store."""
    train = [{"id": text, "text": text, "source": "x"} for text in ("a cat sat", "the dog ran")]
    other = whence.build(task, train, tmp_path / "other", config=whence.BuildConfig(method="grad-dot"), runtime=QUIET)
    october.add(40, 41)
    first = paid(october, tmp_path / "october", *MONEY)
    paid(october, tmp_path / "november", *MONEY, "--carry", first, period="2025-11")
    before = paid_out(october.log.writer)
    credit = credit_of(np.ones(2), {**FACTS, "store": other.digest, "id": "b", "time": OCTOBER + 40 * DAY})
    october.log.add(
        [{**logged("b", credit.time, []), "store": "o", "digest": other.digest, "notes": [], "credit": credit.line()}]
    )
    october.store = other
    paid(october, tmp_path / "again", *MONEY, "--carry", first, period="2025-11", status=2)
    assert "whose amounts the payout of 2025-11 took" in capsys.readouterr().err
    assert not (tmp_path / "again").exists() and paid_out(october.log.writer) == before


def test_a_report_from_which_was_carried_is_not_replaced(october, tmp_path, capsys):
    october.add(40, 41)
    first = paid(october, tmp_path / "october", *MONEY)
    paid(october, tmp_path / "november", *MONEY, "--carry", first, period="2025-11")
    before = paid_out(october.log.writer)
    capsys.readouterr()
    paid(october, tmp_path / "again", "--payout", "2000 EUR", "--replace", status=2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "whose amounts held back the payout of 2025-11 took" in line and paid_out(october.log.writer) == before
    paid(october, tmp_path / "november without", *MONEY, "--replace", period="2025-11")
    paid(october, tmp_path / "again 2", "--payout", "2000 EUR", "--replace")


def no_database(log):
    log.log.close()
    Path(log.path).write_bytes(b"no database " * 99)


def locked(log):
    log.log.close()
    log.other = sqlite3.connect(log.path)
    log.other.execute("PRAGMA journal_mode = DELETE")
    log.other.execute("BEGIN EXCLUSIVE")


def without_a_table(log):
    log.log.writer.execute("DROP TABLE credits")


@pytest.mark.parametrize("damage", [no_database, locked, without_a_table])
def test_a_log_that_cannot_be_used_is_told_in_one_line(october, tmp_path, capsys, monkeypatch, damage):
    monkeypatch.setattr("whence.ledger.log_schema._WAIT_SECONDS", 0.1)
    damage(october)
    paid(october, tmp_path / "report", *MONEY, status=2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"the query log {october.path}, which cannot be used" in line


def test_what_a_record_says_of_its_answers_is_held_against_them(october, tmp_path):
    """The header was changed, and all sums that depend on it made to fit again."""
    report = paid(october, tmp_path / "report", *MONEY)
    lines = (report / "answers.jsonl").read_bytes().splitlines(keepends=True)
    header = json.loads(lines[0])
    header["period"]["since"] -= DAY
    (report / "answers.jsonl").write_bytes(b"".join([canonical(header) + b"\n", *lines[1:]]))
    record = json.loads((report / "record.json").read_text())
    record["outputs"]["answers.jsonl"] = sha256_of(report / "answers.jsonl")
    seal = write_json(report / "record.json", record)
    (report / "record.sha256").write_text(f"{seal}  record.json\n")
    (fault,) = whence.shares.verify_shares(report).faults
    assert "record.json: answers.since is 2025-10-01T00:00:00+00:00, and 2025-09-30T00:00:00+00:00 in answers.jsonl" in fault


def lose(log):
    with log.log.writer:
        log.log.writer.execute("DELETE FROM queries WHERE id = 'a3'")


def answer_without_credit(log, **facts):
    log.log.add([{**logged("x", OCTOBER, []), "notes": [], **facts}])


REFUSED = {
    "a period that is not over": (lambda log: None, "2999-01", "which is over at 2999-02-01"),
    "no period": (lambda log: None, "October", "the period 'October'"),
    "an empty period": (lambda log: None, "2025-08", "no answer of this store in 2025-08"),
    "single tokens only": (lambda log: log.add(40, token=1), "2025-11", "but 1 about single tokens"),
    "deleted answers": (lose, MONTH, "1 answers of 2025-10 that are not in"),
    "no credits": (
        lambda log: answer_without_credit(log, digest=log.store.digest),
        MONTH,
        "1 of 5 answers of 2025-10 without credits",
    ),
    "another version": (answer_without_credit, MONTH, "1 answers of 2025-10 by a store of digest d"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_paid_is_refused_in_one_line(october, tmp_path, capsys, name):
    change, period, why = REFUSED[name]
    change(october)
    paid(october, tmp_path / "report", *MONEY, period=period, status=2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert why in lines[-1] and not (tmp_path / "report").exists()


def test_options_that_do_not_fit_are_refused(october, tmp_path, capsys):
    for more, why in (
        (("--per", "price"), "--per price without --weights"),
        (("--weights", "x.csv"), "--per answer with --weights"),
        (("--queries", "x"), "--log with 0 tables, a store, some queries"),
    ):
        paid(october, tmp_path / "report", *more, status=2)
        assert why in capsys.readouterr().err
    assert main(["shares", "t", "--period", MONTH, "-o", str(tmp_path / "r")]) == 2
    assert "without --log" in capsys.readouterr().err
    (tmp_path / "empty.sqlite").touch()
    with pytest.raises(BadInput, match="a database of another kind"):
        whence.shares.answers_of(tmp_path / "empty.sqlite", october.store, period=MONTH)


def test_a_log_of_another_store_is_refused(october, tmp_path, task):  # noqa: F811
    train = [{"id": text, "text": text, "source": "x"} for text in ("a cat sat", "the dog ran")]
    other = whence.build(task, train, tmp_path / "other", config=whence.BuildConfig(method="grad-dot"), runtime=QUIET)
    with pytest.raises(StoreMismatch, match="4 answers of 2025-10 by a store of digest"):
        whence.shares.answers_of(october.path, other, period=MONTH)


def test_prices_and_tokens_weigh_answers(october, tmp_path):
    prices = tmp_path / "prices.jsonl"
    prices.write_text(
        "".join(json.dumps({"id": f"a{day}", "weight": price}) + "\n" for day, price in ((0, 2), (3, 0), (14.5, 1), (30.9, 5)))
    )
    report = paid(october, tmp_path / "report", *MONEY, "--per", "price", "--weights", prices)
    assert [query["weight"] for query in json.loads((report / "shares.json").read_text())["queries"]] == [2.0, 0.0, 1.0, 5.0]
    report = paid(october, tmp_path / "tokens", "--per", "token")
    assert [query["weight"] for query in json.loads((report / "shares.json").read_text())["queries"]] == [3.0] * 4


@pytest.mark.parametrize("version", [2, 3, 4])
def test_a_log_of_an_earlier_version_is_taken_over(tmp_path, version):
    from whence.ledger import log_schema

    with sqlite3.connect(tmp_path / "log.sqlite") as log:
        tables = "".join(getattr(log_schema, f"_VERSION_{number}") for number in range(2, version + 1))
        log.executescript(f"BEGIN; {tables} PRAGMA user_version = {version}; COMMIT;")
        columns = "id, time, store, digest, prompt, completion, measurement, seconds, answer, kept_at"
        log.execute(f"INSERT INTO queries ({columns}) VALUES ('a', 5.0, 's', 'd', '', '', 0, 0, '{{\"id\": \"a\"}}', 5e9)")
    log = QueryLog(str(tmp_path / "log.sqlite"), retention_days=1e5)
    assert log.answer("a") == {"id": "a"} and not log.writer.execute("SELECT * FROM heads").fetchall()
    log.writer.execute("DELETE FROM queries")
    assert log.writer.execute("SELECT * FROM removed").fetchall() == [("d", 0, 1)]
    log.close()


@pytest.mark.parametrize("name", ["answers.jsonl", "examples.jsonl", "shares.json", "sources.jsonl"])
def test_a_changed_file_is_told(october, tmp_path, name, run):
    report = paid(october, tmp_path / "report", *MONEY)
    text = (report / name).read_bytes()
    (report / name).write_bytes(text[:-3] + bytes([text[-3] ^ 1]) + text[-2:])
    assert any(name in fault for fault in whence.shares.verify_shares(report).faults)


def test_canonical_json_is_one_text():
    assert canonical({"b": 1.0, "a": ["é", None]}) == b'{"a":["\\u00e9",null],"b":1.0}'
    assert isinstance(answers(heavy()).credits[0], Credit)
