"""One payout for a time in which documents came and went: answers of all versions of a store, whose rows are numbered differently."""

import json
import shutil
import sqlite3
import time
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

import whence
from tests.settings import QUIET
from tests.test_serve import ASKED, BUILD
from tests.test_serve_documents import WRITE, add, ask, delete, folder, task  # noqa: F401
from whence.cli import main
from whence.errors import BadInput, StoreMismatch
from whence.ledger import StoreVersion, new_key, prepared_log, read_signer, rows_of_versions, verify_chain, write_version
from whence.ledger.canonical import canonical
from whence.serve.app import create_app
from whence.serve.config import ServeConfig
from whence.serve.hosted_store import HostedStore
from whence.settings import SharesConfig
from whence.shares import named_sources
from whence.store import open_store, sha256_of, write_json

CHANGES = st.lists(st.tuples(st.sets(st.integers(0, 30)), st.integers(0, 4)), max_size=6)


def in_memory():
    connection = sqlite3.connect(":memory:")
    prepared_log(connection, ":memory:")
    return connection


@given(CHANGES, st.integers(1, 6), st.integers(0, 6))
def test_rows_of_all_versions_equal_lists_that_are_changed_one_by_one(changes, size, at_hand):
    log, names, versions = in_memory(), [f"d{n}" for n in range(size)], []
    write_version(log, StoreVersion(digest="v0", model="m", added=[(name, "s") for name in names]))
    versions.append(list(names))
    for number, (deleted, count) in enumerate(changes):
        gone = sorted(row for row in deleted if row < len(names))
        new = [f"n{number}-{n}" for n in range(count)]
        names = [name for row, name in enumerate(names) if row not in gone] + new
        write_version(
            log,
            StoreVersion(
                digest=f"v{number + 1}", model="m", before=f"v{number}", deleted=gone, added=[(name, "s") for name in new]
            ),
        )
        versions.append(list(names))
    hand = at_hand % len(versions)
    digests = [f"v{n}" for n in range(len(versions))]
    found = rows_of_versions(log, digests, (f"v{hand}", [(name, "s") for name in versions[hand]]))
    for digest, expected in zip(digests, versions, strict=True):
        assert [found.ids[place] for place in found.rows[digest]] == expected
    assert list(found.ids[: len(versions[hand])]) == versions[hand] and len(set(found.ids)) == len(found.ids)


def test_a_version_that_comes_out_of_none_is_not_noted():
    log = in_memory()
    assert not write_version(log, StoreVersion(digest="b", model="m", before="a"))
    with pytest.raises(BadInput, match="b is not noted"):
        rows_of_versions(log, ["b"], ("x", []))


class Month:
    """A service with credits and receipts, and the table of all scores that each of its answers should come to."""

    def __init__(self, folder, task, place):  # noqa: F811
        self.folder, self.task, self.place, self.tables = folder, task, place, []
        new_key(place / "key")
        self.begun = datetime.now(UTC).isoformat()

    def serve(self):
        hosted = HostedStore.load("store", open_store(self.folder), self.task)
        config = ServeConfig(
            log=str(self.place / "log.sqlite"), credits=True, receipts=str(self.place / "receipts.jsonl"), sign_with=str(self.place / "key")
        )  # fmt: skip
        app = create_app([hosted], config, write_token=WRITE["Authorization"].split()[1])
        return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)

    def ask(self, client):
        ask(client)
        self.tables.append(whence.score_table(self.folder, self.task, [ASKED], runtime=QUIET))

    def period(self):
        time.sleep(0.01)
        return f"{self.begun}/{datetime.now(UTC).isoformat()}"

    def pay(self, output, *more, period, status=0):
        words = ["shares", "--log", self.place / "log.sqlite", "--store", self.folder, "--period", period, "-o", output, *more]
        assert main([str(word) for word in words]) == status
        return output

    def whole(self):
        """One table over all documents that ever were there: those that a version had not score nothing in its answers."""
        ids = list(dict.fromkeys(name for table in self.tables for name in table.train_ids))
        scores = torch.zeros(len(self.tables), len(ids))
        for query, table in enumerate(self.tables):
            scores[query, [ids.index(name) for name in table.train_ids]] = table.scores[0]
        names = tuple(f"q{n}" for n in range(len(self.tables)))
        return whence.ScoreTable(scores, names, tuple(ids), self.tables[0].unit, self.tables[0].method)


@pytest.fixture
def month(folder, task, tmp_path):  # noqa: F811
    made = Month(folder, task, tmp_path)
    made.sources = named_sources(open_store(folder).examples())
    with made.serve() as client:
        made.ask(client)
        add(client)
        made.ask(client)
        delete(client, "mine", "t1")
        made.ask(client)
    with made.serve() as client:  # another process, and no change
        made.ask(client)
    more = [{"id": "later", "text": "the dog sat", "source": "web/later"}]
    whence.build(task, more, folder, append=True, config=whence.BuildConfig(**BUILD), runtime=QUIET)
    with made.serve() as client:  # changed on the command line
        made.ask(client)
    made.sources |= named_sources(open_store(folder).examples()) | {"mine": "web/new"}
    return made


def test_a_month_in_which_documents_came_and_went_is_one_payout(month, tmp_path, capsys, run):
    period = month.period()
    report = month.pay(tmp_path / "report", "--payout", "1000 EUR", period=period)
    assert "answers of 4 versions of the store" in capsys.readouterr().out
    shown = json.loads((report / "shares.json").read_text())
    expected = whence.shares.shares(month.whole(), month.sources, config=SharesConfig(payout="1000 EUR"))
    mine = {line["name"]: line["share"] for line in shown["lines"] if line["kind"] == "source"}
    assert mine == pytest.approx({line.name: line.share for line in expected.lines if line.kind == "source"}, abs=1e-6)
    assert {"web/new", "web/later"} <= mine.keys()  # one of them is of documents that are not there any more
    before = {path.name: path.read_bytes() for path in report.iterdir()}
    month.pay(report, "--payout", "1000 EUR", period=period)
    assert {path.name: path.read_bytes() for path in report.iterdir()} == before

    shutil.copytree(report, tmp_path / "elsewhere" / "report")
    signer, heads = read_signer(tmp_path / "key"), verify_chain(tmp_path / "receipts.jsonl").heads
    check = whence.shares.verify_shares(tmp_path / "elsewhere" / "report", receipts=heads)
    assert not check.faults and check.queries == 5
    assert "all figures computed again" in run(
        "verify", report, "--receipts", tmp_path / "receipts.jsonl", "--key", signer.public, "--inputs", f"store={month.folder}"
    )
    (missing,) = whence.shares.verify_shares(report, receipts=[head for head in heads if head.number != 1]).faults
    assert "it has no receipt" in missing
    month.pay(tmp_path / "half", "--payout", "5 EUR", period=f"{period.split('/')[0]}/{month.period().split('/')[1]}", status=2)
    assert "part of which was paid out" in capsys.readouterr().err


def test_an_example_under_another_name_is_found_where_the_store_is_at_hand(month, tmp_path):
    report = month.pay(tmp_path / "report", period=month.period())
    lines = (report / "examples.jsonl").read_bytes().splitlines(keepends=True)
    lines[0], lines[2] = lines[2], lines[0]
    (report / "examples.jsonl").write_bytes(b"".join(lines))
    record = json.loads((report / "record.json").read_text())
    record["outputs"]["examples.jsonl"] = sha256_of(report / "examples.jsonl")
    seal = write_json(report / "record.json", record)
    (report / "record.sha256").write_text(f"{seal}  record.json\n")
    assert any("is one of other examples" in fault for fault in whence.shares.verify_shares(report).faults)


@pytest.mark.parametrize("rows", [[[0, 99]], [[0, 2], [1, 3]], [[3, 3]], [[-1, 3]], [[0, 12], [0, 12]]])
def test_rows_of_a_version_that_cannot_be_are_refused(month, tmp_path, rows):
    report = month.pay(tmp_path / "report", period=month.period())
    lines = (report / "answers.jsonl").read_bytes().splitlines(keepends=True)
    header = json.loads(lines[0])
    assert len(header["versions"]) == 4
    header["versions"][0]["rows"] = rows
    (report / "answers.jsonl").write_bytes(b"".join([canonical(header) + b"\n", *lines[1:]]))
    faults = whence.shares.verify_shares(report).faults
    assert any("cannot be computed again" in fault for fault in faults)


def test_a_document_that_came_back_with_another_source_has_to_be_named(folder, task, tmp_path, capsys):  # noqa: F811
    month = Month(folder, task, tmp_path)
    with month.serve() as client:
        for source in ("one", "other"):
            add(client, [{"id": "mine", "text": f"a cat ran {source}", "source": source}])
            month.ask(client)
            delete(client, "mine")
    period = month.period()
    month.pay(tmp_path / "report", period=period, status=2)
    assert "such as 'mine', that were deleted and added again with another source" in capsys.readouterr().err
    (tmp_path / "train.jsonl").write_text(json.dumps({"id": "mine", "source": "one"}))
    month.pay(tmp_path / "report", "--records", tmp_path / "train.jsonl", period=period)


def test_a_version_whose_examples_are_not_noted_is_refused(month):
    with sqlite3.connect(month.place / "log.sqlite") as log:
        (digest,) = log.execute("SELECT digest FROM versions WHERE before != '' LIMIT 1").fetchone()
        log.execute("UPDATE versions SET digest = 'x' WHERE digest = ?", (digest,))
        log.execute("UPDATE versions SET before = 'x' WHERE before = ?", (digest,))
    with pytest.raises(StoreMismatch, match="1 answers of .* by a store of digest"):
        whence.shares.answers_of(month.place / "log.sqlite", open_store(month.folder), period=month.period())


def test_answers_that_an_earlier_version_gave_and_the_log_lost_are_missed(month):
    with sqlite3.connect(month.place / "log.sqlite") as log:
        log.execute("PRAGMA foreign_keys = ON")
        log.execute("DELETE FROM queries WHERE number = 1")
    with pytest.raises(BadInput, match="1 answers of .* that are not in"):
        whence.shares.answers_of(month.place / "log.sqlite", open_store(month.folder), period=month.period())


def test_places_in_files_are_runs():
    from whence.shares.answers_file import _numbers, _runs

    for places in ([], [0], [0, 1, 2], [5, 6, 0, 9, 8]):
        assert _numbers(_runs(np.array(places, dtype=np.int64)), 10).tolist() == places
