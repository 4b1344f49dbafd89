"""Receipts: every changed byte is found and named, a kill loses nothing, and figures come out of the store again."""

import base64
import dataclasses
import hashlib
import json
import os
import shutil
import stat
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import whence
from tests.test_payout import FACTS, MONEY
from tests.test_serve import ASKED, desk, folder, logged, posted, service, store, task  # noqa: F401
from tests.test_shares import SOURCES, drawn, table
from tests.test_shares_record import saved
from whence.cli import main
from whence.durable import AppendedLines
from whence.errors import BadInput, DiskFull
from whence.ledger import (
    FIRST,
    Chain,
    Sealed,
    chained,
    credit_of,
    drafted,
    is_chain,
    new_key,
    read_public_key,
    read_signer,
    verify_chain,
)
from whence.ledger.canonical import canonical
from whence.ledger.keys import is_signed
from whence.serve.log import QueryLog
from whence.serve.recompute import recomputed
from whence.serve.responses import Refused


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "key.pem"
    new_key(path)
    return path


@pytest.fixture
def signer(key):
    return read_signer(key)


def sealed(number, **content):
    return Sealed(kind="answer", id=f"a{number}", time=1.5 * number, store="d", token=None, content={"n": number, **content})


@pytest.fixture
def chain(tmp_path, signer):
    path = tmp_path / "receipts.jsonl"
    chained(path, signer, [sealed(number) for number in range(3)])
    chained(path, signer, [sealed(3)])
    return path


# --- keys


def test_a_key_is_its_owners_alone(tmp_path, run, capsys):
    path = tmp_path / "key.pem"
    public = run("keys", path).strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and read_public_key(public) == read_public_key(f"{path}.pub") == public
    assert read_signer(path).public == public
    for words, why in ((["keys", path], "something at"), (["keys", tmp_path / "no" / ("x" * 300)], "cannot be written")):
        assert main(list(map(str, words))) == 2 and why in capsys.readouterr().err
    path.chmod(0o640)
    with pytest.raises(BadInput, match=r"which others may read or write \(mode 640\)"):
        read_signer(path)
    with pytest.raises(BadInput, match="no private key in"):
        read_signer(f"{path}.pub")
    other = path.with_name("other.pem")
    der = base64.b64decode("".join(path.read_text().splitlines()[1:-1])).replace(bytes([43, 101, 112]), bytes([43, 101, 1]))
    other.write_text(f"-----BEGIN PRIVATE KEY-----\n{base64.b64encode(der).decode()}\n-----END PRIVATE KEY-----\n")
    with pytest.raises(BadInput, match="no private key in"):  # of a kind that nobody knows
        read_signer(other)
    with pytest.raises(BadInput, match="no public key in"):
        read_public_key("abc")


# --- the chain


def test_a_chain_that_holds(chain, signer):
    check = verify_chain(chain, keys=[signer.public])
    assert not check.faults and len(check.heads) == 4 and check.contents[2] == {"n": 2}
    assert not verify_chain(chain, keys=[signer.public], published=check.head).faults
    assert not verify_chain(chain, published=check.heads[1].hash()).faults  # an earlier one is on the way
    assert "whoever has another key" in verify_chain(chain).notes[0]
    again = chain.with_name("again.jsonl")
    chained(again, signer, [sealed(number) for number in range(4)])
    assert again.read_bytes() == chain.read_bytes()  # the same receipts are the same bytes


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_one_changed_byte_anywhere_is_found(chain, signer, data):
    content = chain.read_bytes()
    head = verify_chain(chain).head
    at, flip = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(1, 255))
    broken = chain.with_name("broken.jsonl")
    broken.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
    check = verify_chain(broken, keys=[signer.public], published=head)
    assert check.faults and f"receipt {content[:at].count(10)}: " in check.faults[0]


def rewritten(change):
    """Lines of a chain as somebody without the key can write them."""

    def write(lines, signer):
        entries = [json.loads(line) for line in lines]
        change(entries)
        return [canonical(entry) for entry in entries]

    return write


def with_other_key(lines, signer):
    path = Path(os.environ["OTHER_KEY"])
    new_key(path)
    entry = json.loads(lines[2])
    other = Chain(path.with_name("other.jsonl"), read_signer(path))
    other.count, other.previous = 2, entry["previous"]
    other.append([sealed(2)])
    other.close()
    return [*lines[:2], path.with_name("other.jsonl").read_bytes().strip(), lines[3]]


BROKEN = {
    "a content": (rewritten(lambda entries: entries[1]["content"].update(n=9)), "receipt 1: its content is not what was sealed"),
    "a time": (rewritten(lambda entries: entries[1].update(time=9.0)), "receipt 1: its signature is not that of its head"),
    "left out": (lambda lines, _: [lines[0], *lines[2:]], "receipt 1: it has the number 2, not 1"),
    "out of order": (lambda lines, _: [lines[1], lines[0], *lines[2:]], "receipt 0: it has the number 1, not 0"),
    "another key": (with_other_key, "receipt 2: it was signed with another key"),
    "no receipt": (lambda lines, _: [lines[0], b"{}", *lines[2:]], "receipt 1: it cannot be read"),
    "spaces": (lambda lines, _: [lines[0], lines[1].replace(b",", b", "), *lines[2:]], "receipt 1: it is not written as it was"),
    "cut off": (lambda lines, _: [*lines[:3], lines[3][:-5]], "receipt 3: it cannot be read"),
    "cut": (lambda lines, _: lines[:3], "is that of none of its 3 receipts"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_was_done_to_a_chain_is_named(chain, signer, tmp_path, monkeypatch, name):
    monkeypatch.setenv("OTHER_KEY", str(tmp_path / "other.pem"))
    change, why = BROKEN[name]
    head = verify_chain(chain).head
    chain.write_bytes(b"".join(line + b"\n" for line in change(chain.read_bytes().splitlines(), signer)))
    assert why in verify_chain(chain, keys=[signer.public], published=head).faults[0]


def test_a_link_that_was_signed_again_is_found(chain, signer):
    """Who has the key can write another receipt; the next one tells."""
    lines = chain.read_bytes().splitlines()
    other = chain.with_name("other.jsonl")
    again = Chain(other, signer)
    again.append([sealed(0), sealed(1, other=True)])
    again.close()
    other.write_bytes(other.read_bytes() + lines[2] + b"\n")
    assert "receipt 2: it does not follow the receipt before" in verify_chain(other, keys=[signer.public]).faults[0]


def test_a_chain_holds_without_its_contents(chain, signer, run):
    entries = [json.loads(line) for line in chain.read_bytes().splitlines()]
    head = verify_chain(chain).head
    del entries[0]["content"], entries[2]["content"]
    chain.write_bytes(b"".join(canonical(entry) + b"\n" for entry in entries))
    check = verify_chain(chain, keys=[signer.public], published=head)
    assert not check.faults and check.notes == ("2 of 4 receipts are published without their content",)
    run("verify", chain, "--publish", chain.with_name("published.jsonl"))
    published = verify_chain(chain.with_name("published.jsonl"), keys=[signer.public], published=head)
    assert not published.faults and not published.contents and b'"n":1' not in chain.with_name("published.jsonl").read_bytes()


@pytest.mark.parametrize(
    "write", [str.upper, lambda text: f"{text} ", lambda text: f"{text[:2]} {text[2:]}", lambda text: f"{text}00"]
)
def test_a_signature_is_written_in_one_way(signer, write):
    signature = signer.sign(b"x")
    assert is_signed(signer.public, b"x", signature)
    assert not is_signed(signer.public, b"x", write(signature)) and not is_signed(write(signer.public), b"x", signature)


# --- the file


@pytest.mark.parametrize("torn", [b"x", b'{"a":1}\n{"b"', b"\0" * 3_000_000])
def test_a_torn_end_is_cut_off(tmp_path, torn):
    path = tmp_path / "lines"
    path.write_bytes(b'{"z":1}\n' + torn)
    lines = AppendedLines(path)
    whole = b'{"a":1}' if torn.startswith(b"{") else b'{"z":1}'
    assert lines.last() == whole and lines.torn == len(torn.rpartition(b"\n")[2])
    lines.append([b"1", b"2"])
    assert path.read_bytes().endswith(whole + b"\n1\n2\n") and lines.last() == b"2"
    with pytest.raises(BadInput, match="another process appends to it"):
        AppendedLines(path)
    lines.close()


def test_a_chain_that_was_cut_at_any_byte_goes_on(chain, signer):
    content = chain.read_bytes()
    for size in range(0, len(content) + 1, 7):
        chain.write_bytes(content[:size])
        opened = Chain(chain, signer)
        assert opened.count == content[:size].count(b"\n")
        opened.append([sealed(number) for number in range(opened.count, 4)])
        opened.close()
        assert chain.read_bytes() == content


def test_a_long_last_line_is_read(tmp_path):
    path = tmp_path / "lines"
    lines = AppendedLines(path)
    assert lines.last() == b"" and stat.S_IMODE(path.stat().st_mode) == 0o600
    lines.append([b"a", b"b" * 3_000_000])
    lines.close()
    assert AppendedLines(path).last() == b"b" * 3_000_000


def test_a_full_disk_leaves_whole_receipts(chain, signer, monkeypatch):
    before = chain.read_bytes()
    opened = Chain(chain, signer)
    real = os.write

    def write(file, content):
        if len(content) < 100:
            raise OSError(28, "No space left on device")
        return real(file, content[:50])

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(DiskFull):
        opened.append([sealed(4)])
    monkeypatch.undo()
    assert chain.read_bytes() == before
    opened.append([sealed(4)])
    opened.close()
    assert len(verify_chain(chain, keys=[signer.public]).heads) == 5


def test_a_chain_that_ends_in_something_else_is_refused(tmp_path, signer):
    (tmp_path / "notes.jsonl").write_bytes(b"{}\n")
    with pytest.raises(BadInput, match="whose last line is no receipt"):
        Chain(tmp_path / "notes.jsonl", signer)
    assert not is_chain(tmp_path) and is_chain(tmp_path / "notes.jsonl")


# --- the log


def logs(tmp_path, signer, name="log.sqlite"):
    return QueryLog(str(tmp_path / name), retention_days=30, receipts=(tmp_path / "receipts.jsonl", signer))


def full(*arguments, **options):
    raise OSError(28, "no space left on device")


def test_every_answer_of_a_log_has_a_receipt(tmp_path, signer):
    log, now = logs(tmp_path, signer), time.time()
    heads = log.add([logged("a", now, []), logged("b", now, [])])
    assert [heads[name].number for name in "ab"] == [0, 1] and heads["a"].credit is None
    credit = credit_of(drawn(1, 60)[0].numpy(), {**FACTS, "id": "c", "time": now})
    head = log.add([{**logged("c", now, []), "credit": credit.line()}])["c"]
    assert head.credit == hashlib.sha256(credit.line()).hexdigest()
    log.close()
    check = verify_chain(tmp_path / "receipts.jsonl", keys=[signer.public])
    assert not check.faults and [head.id for head in check.heads] == ["a", "b", "c"] and check.contents[1]["id"] == "b"


def test_what_a_killed_service_did_not_seal_is_sealed_by_the_next(tmp_path, signer):
    log, now = logs(tmp_path, signer), time.time()
    log.add([logged("a", now, [])])
    log.chain.lines.append = full
    with pytest.raises(Refused, match="no space"):
        log.add([logged("b", now, []), logged("c", now, [])])
    assert log.trouble == "full"
    del log.chain.lines.append
    log.try_again()
    assert log.chain.count == 3
    log.chain.lines.append = full
    with pytest.raises(Refused):
        log.add([logged("d", now, [])])
    log.close()
    log = logs(tmp_path, signer)
    assert log.chain.count == 4
    log.add([logged("e", now, [])])
    log.close()
    assert [head.id for head in verify_chain(tmp_path / "receipts.jsonl").heads] == list("abcde")
    other = logs(tmp_path, signer, "another.sqlite")  # a new log goes on with the chain
    assert other.add([logged("f", now, [])])["f"].number == 5
    other.close()
    lines = (tmp_path / "receipts.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "receipts.jsonl").write_bytes(b"".join(lines[:2]))
    log = QueryLog(str(tmp_path / "log.sqlite"), retention_days=30)
    log.writer.execute("DELETE FROM queries WHERE id = 'c'")
    log.writer.commit()
    log.close()
    with pytest.raises(BadInput, match="with 2 receipts, and a log whose answers without one begin at number 3"):
        logs(tmp_path, signer)


# --- a machine that stops


@pytest.fixture
def stopped(tmp_path, signer):
    """A log and its chain as a stop of the machine may leave them: answers c and d were told, their receipts not synced."""
    log, now = logs(tmp_path, signer), 1.0
    log.add([logged("a", now, []), logged("b", now, [("é", 1.0, -1.0)])])
    log.sync()
    synced = log.chain.lines.synced
    log.add([{**logged("c", now, []), "credit": b"{}"}, logged("d", now, [])])
    assert log.chain.lines.synced == synced < log.chain.lines.size
    for path in tmp_path.glob("log.sqlite*"):
        shutil.copy(path, tmp_path / path.name.replace("log", "left"))
    content = (tmp_path / "receipts.jsonl").read_bytes()
    log.close()
    return synced, content


def test_answers_wait_for_one_sync_and_receipts_follow(tmp_path, signer, monkeypatch):
    log, synced = logs(tmp_path, signer), []
    monkeypatch.setattr(os, "fsync", lambda file, real=os.fsync: (synced.append(file), real(file)))
    log.add([logged("a", 1.0, [])])
    assert not synced and log.writer.execute("SELECT count(*) FROM heads").fetchone() == (1,)
    log.sync()
    log.sync()
    assert synced == [log.chain.lines.file]
    memory = QueryLog(":memory:", retention_days=30, receipts=(tmp_path / "other.jsonl", signer))
    memory.add([logged("a", 1.0, [])])  # whose log cannot make them again
    assert synced[1:].count(memory.chain.lines.file) > 0 and memory.chain.lines.synced == memory.chain.lines.size


@pytest.mark.parametrize("what", ["nothing", "less", "zeros", "newlines", "more"])
def test_receipts_that_a_stopped_machine_lost_are_made_again(tmp_path, stopped, key, what):
    """Byte for byte, whatever the disk has in their place, and also with another key now."""
    synced, content = stopped
    new_key(tmp_path / "other.pem")
    for number, at in enumerate(range(synced, len(content), 1 + len(content) // 40)):
        rest = len(content) - at
        left = {"nothing": b"", "less": b"", "zeros": bytes(rest), "newlines": b"{}\n" * rest, "more": b"x" * rest + b"\n"}[
            what
        ]
        (tmp_path / "chain.jsonl").write_bytes(content[: synced if what == "nothing" else at] + left)
        for path in tmp_path.glob("left.sqlite*"):
            shutil.copy(path, tmp_path / path.name.replace("left", f"n{number}"))
        receipts = tmp_path / "chain.jsonl", read_signer(tmp_path / "other.pem")
        log = QueryLog(str(tmp_path / f"n{number}.sqlite"), retention_days=1e6, receipts=receipts)
        assert (tmp_path / "chain.jsonl").read_bytes() == content and log.chain.count == 4
        assert log.add([logged("e", 2.0, [])])["e"].number == 4
        log.close()
    assert [head.id for head in verify_chain(tmp_path / "receipts.jsonl", keys=[read_signer(key).public]).heads] == list("abcd")


def test_what_was_sealed_after_the_receipts_stays(tmp_path, stopped, signer):
    synced, content = stopped
    chained(tmp_path / "receipts.jsonl", signer, [sealed(9)])
    left = QueryLog(str(tmp_path / "left.sqlite"), retention_days=1e6, receipts=(tmp_path / "receipts.jsonl", signer))
    assert (tmp_path / "receipts.jsonl").read_bytes().startswith(content) and left.chain.count == 5
    left.close()


def test_other_receipts_in_their_place_are_refused_and_other_chains_left_alone(tmp_path, stopped, signer):
    synced, content = stopped
    for path in tmp_path.glob("left.sqlite*"):
        shutil.copy(path, tmp_path / path.name.replace("left", "again"))
    (tmp_path / "chain.jsonl").write_bytes(content[:synced])
    chained(tmp_path / "chain.jsonl", signer, [sealed(9)])  # by a command, before the service started again
    before = (tmp_path / "chain.jsonl").read_bytes()
    with pytest.raises(BadInput, match="whose receipt 2 is of 'a9', and of 'c' in the log"):
        QueryLog(str(tmp_path / "left.sqlite"), retention_days=1e6, receipts=(tmp_path / "chain.jsonl", signer))
    assert (tmp_path / "chain.jsonl").read_bytes() == before
    chained(tmp_path / "new.jsonl", signer, [sealed(number) for number in range(9)])
    other = (tmp_path / "new.jsonl").read_bytes()
    log = QueryLog(str(tmp_path / "again.sqlite"), retention_days=1e6, receipts=(tmp_path / "new.jsonl", signer))
    assert (tmp_path / "new.jsonl").read_bytes() == other
    log.close()


def test_a_disk_that_fails_after_an_answer_went_out_loses_no_receipt(tmp_path, stopped, signer, monkeypatch):
    _, content = stopped
    (tmp_path / "again").mkdir()
    log = logs(tmp_path / "again", signer)
    log.add([logged("a", 1.0, []), logged("b", 1.0, [("é", 1.0, -1.0)])])
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda file: full())
        with pytest.raises(Refused, match="no space left"):
            log.sync()
        assert log.trouble == "full" and log.chain.count == 0
        with pytest.raises(Refused):
            log.try_again()
    log.try_again()
    assert not log.trouble and log.chain.count == 2
    log.add([{**logged("c", 1.0, []), "credit": b"{}"}, logged("d", 1.0, [])])
    log.close()
    assert (tmp_path / "again" / "receipts.jsonl").read_bytes() == content


def test_a_synced_receipt_syncs_those_before_it(tmp_path, signer, monkeypatch):
    """A disk that failed says so once: were the earlier receipt left in the file, nothing would ever say that the disk lacks it."""
    chain = Chain(tmp_path / "receipts.jsonl", signer)
    chain.append_drafts(drafted([sealed(0)], 0, FIRST, signer), is_synced=False)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda file: full())
        with pytest.raises(DiskFull):
            chain.append([sealed(1)])
    assert chain.count == 0 and not (tmp_path / "receipts.jsonl").read_bytes()
    assert [head.number for head in chain.append([sealed(0), sealed(1)])] == [0, 1]
    chain.close()


# --- the service


@pytest.fixture
def answered(service, tmp_path, key):  # noqa: F811
    """A chain of a service's answers."""
    path = tmp_path / "receipts.jsonl"
    client = service(log=str(tmp_path / "log.sqlite"), receipts=str(path), sign_with=str(key), credits=True)
    found = posted(client, {**ASKED, "k": 3})
    posted(client, {"completion": "the dog sat", "k": 2})
    posted(client, {**ASKED, "token": 2, "k": 2})
    posted(client, {**ASKED, "k": 2, "filter": {"sources": ["book"]}})
    posted(client, {"prompt": "a cat", "max_tokens": 3}, "ask")
    return path, found


def test_answers_come_with_a_receipt_that_is_computed_again(answered, desk, store, signer, run, capsys):  # noqa: F811
    path, found = answered
    check = verify_chain(path, keys=[signer.public])
    assert not check.faults and dataclasses.asdict(check.heads[0]) == found["receipt"]
    content = check.contents[0]
    assert content["weights"] == store.blueprint.model and content["digest"] == store.digest and "seconds" in content
    faults, notes = recomputed(desk, check)
    assert not faults and notes == [f"5 receipts were computed again from {store.folder}"]
    assert "5 receipts, all signed and chained" in run("verify", path, "--key", signer.public, "--store", store.folder)


CHANGES = {
    "a score": (lambda content: content["proponents"][0].update(score=99.0), "proponents[0].score: 99 was sealed"),
    "a row": (lambda content: content["opponents"][0].update(row=10**6), "no such row comes out"),
    "left out": (lambda content: content["proponents"].pop(0), "proponents: an example of score"),
    "a share": (lambda content: content["shares"][0].update(positive=9.0), "shares[0].positive: 9 was sealed"),
    "a measurement": (lambda content: content.update(measurement=-0.5), "measurement: -0.5 was sealed"),
    "a completion": (lambda content: content.update(completion=" ran"), "comes out"),
    "a model": (lambda content: content.update(weights="0" * 64), "weights: 000000000000 were sealed"),
    "no answer": (lambda content: content.pop("k"), "its content is no answer"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_figures_that_do_not_come_out_again_are_named(answered, desk, signer, tmp_path, name):  # noqa: F811
    """Signed by the right key, and wrong all the same."""
    change, why = CHANGES[name]
    check = verify_chain(answered[0])
    content = check.contents[0]
    change(content)
    head = dataclasses.asdict(check.heads[0])
    facts = {name: head[name] for name in ("kind", "id", "time", "store", "token")}
    chained(tmp_path / "forged.jsonl", signer, [Sealed(**facts, content=content)])
    forged = verify_chain(tmp_path / "forged.jsonl", keys=[signer.public])
    assert not forged.faults
    (fault,) = recomputed(desk, forged)[0]
    assert fault.startswith("receipt 0: ") and why in fault


def test_options_go_together(run, capsys, folder, tmp_path, chain):  # noqa: F811
    for words, why in (
        (["serve", folder, "--receipts", "x"], "receipts without a key"),
        (["query", folder, "--text", "a", "--sign-with", "x"], "--sign-with without --receipts"),
        (["verify", chain, "--seal", "x"], "--seal for the file of receipts"),
        (["verify", folder, "--head", "x"], "--head for the store"),
        (["verify", folder, "--model", "x"], "--model for the store"),
        (["verify", chain, "--trust"], "without --store"),
        (["verify", chain, "--publish", chain], "over the receipts"),
        (["verify", chain, "--publish", chain.parent / "." / chain.name], "over the receipts"),
    ):
        assert main(list(map(str, words))) == 2 and why in capsys.readouterr().err
    chain.write_bytes(chain.read_bytes()[:-1])
    assert main(["verify", str(chain)]) == 1 and "receipt 3: it is cut off" in capsys.readouterr().out


def test_query_is_sealed_on_request(run, folder, tmp_path, key, signer, desk):  # noqa: F811
    path = tmp_path / "receipts.jsonl"
    words = [
        "query",
        folder,
        "--text",
        "the dog sat",
        "--text",
        "a bird ran",
        "-k",
        "3",
        "--receipts",
        path,
        "--sign-with",
        key,
        "--json",
    ]
    run(*words)
    check = verify_chain(path, keys=[signer.public])
    assert [head.kind for head in check.heads] == ["query", "query"] and not check.faults
    assert recomputed(desk, check)[0] == []
    assert json.loads(run("verify", path, "--key", f"{key}.pub", "--head", check.head, "--json"))["faults"] == []


# --- reports and tables


def test_a_report_is_held_against_receipts(tmp_path, store, signer, run):  # noqa: F811
    log = logs(tmp_path, signer)
    for number in range(4):
        facts = {**FACTS, "store": store.digest, "id": f"a{number}", "time": 1e9 + number, "token": 1 if number == 3 else None}
        credit = credit_of(drawn(1, len(store), number)[0].numpy(), facts)
        answer = {**logged(facts["id"], facts["time"], []), "digest": store.digest, "notes": [], "token": facts["token"]}
        log.add([{**answer, "credit": credit.line()}])
    log.close()
    words = ["shares", "--log", tmp_path / "log.sqlite", "--store", store.folder, "--by", "id", "--period", "2001"]
    run(*words, *MONEY, "-o", tmp_path / "report")
    chain_path = tmp_path / "receipts.jsonl"
    heads = verify_chain(chain_path).heads
    assert not whence.shares.verify_shares(tmp_path / "report", receipts=heads).faults
    assert "4 receipts" not in run("verify", tmp_path / "report", "--receipts", chain_path, "--key", signer.public)
    missing = whence.shares.verify_shares(tmp_path / "report", receipts=heads[:2]).faults
    assert len(missing) == 1 and "answer a2: it has no receipt" in missing[0]
    more = [*heads, dataclasses.replace(heads[0], id="b", number=4)]
    assert (
        "receipt 4 is of this period, and the report leaves it out"
        in whence.shares.verify_shares(tmp_path / "report", receipts=more).faults[0]
    )
    (twice,) = whence.shares.verify_shares(
        tmp_path / "report", receipts=[*heads, dataclasses.replace(heads[1], number=4)]
    ).faults
    assert "answer a1: it has 2 receipts (1, 4)" in twice
    other = [dataclasses.replace(heads[0], credit="0"), *heads[1:]]
    assert "its scores are not those of receipt 0" in whence.shares.verify_shares(tmp_path / "report", receipts=other).faults[0]


def test_tables_and_reports_are_sealed_with_their_origin(tmp_path, run, key, signer, capsys):
    folder = saved(tmp_path / "table", table(drawn()))  # noqa: F811
    head = json.loads(run("seal", folder, "--receipts", tmp_path / "r.jsonl", "--sign-with", key, "--json"))
    report = whence.shares.shares([folder], SOURCES)
    whence.shares.write_shares(report, tmp_path / "report")
    run("seal", tmp_path / "report", "--receipts", tmp_path / "r.jsonl", "--sign-with", key)
    check = verify_chain(tmp_path / "r.jsonl", keys=[signer.public])
    assert (
        not check.faults
        and [head.kind for head in check.heads] == ["table", "shares"]
        and check.heads[0].hash() == head["head"]
    )
    assert check.contents[0]["models"] == ["weights"] and check.contents[1]["record"]
    whence.evaluate.save_table(table(drawn()), tmp_path / "bare")
    assert main(["seal", str(tmp_path / "bare"), "--receipts", str(tmp_path / "r.jsonl"), "--sign-with", str(key)]) == 2
    assert "which does not say of which model and data" in capsys.readouterr().err


def test_a_record_of_tables_in_memory_names_their_origin_or_says_that_it_cannot(tmp_path):
    report = whence.shares.shares(table(drawn()), SOURCES)
    whence.shares.write_shares(report, tmp_path / "unnamed")
    assert "no digest of their models and data" in json.loads((tmp_path / "unnamed" / "record.json").read_text())["unnamed"]
    check = whence.shares.verify_shares(tmp_path / "unnamed")
    assert not check.faults and any("no digest of their models" in note for note in check.notes)
    whence.shares.write_shares(report, tmp_path / "named", origin={"models": ["w"], "data": ["f"]})
    record = json.loads((tmp_path / "named" / "record.json").read_text())
    assert (record["models"], record["data"], record["unnamed"]) == (["w"], ["f"], "")
    for origin in ({"model": ["w"]}, {"models": "w"}):
        with pytest.raises(BadInput, match="an origin whose"):
            whence.shares.write_shares(report, tmp_path / "x", origin=origin)


def test_answers_are_sealed_alike_at_once_and_from_the_log(tmp_path, signer, monkeypatch):
    """What a killed process left is read from the log; the chain has the bytes that it would have had anyway."""
    batch = [
        {
            **logged(f"a{n}", 1.0 + n, [("é", 0.1 * n, -1e-300)]),
            "tokens": [(0, n)],
            "salt": "s",
            "client": "press",
            "credit": b"{}" * n,
        }
        for n in range(3)
    ]
    chains = []
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        log = logs(tmp_path / name, signer)
        if name == "again":
            monkeypatch.setattr(log, "_seal", lambda *given, seal=log._seal: seal())
        log.add(batch)
        log.close()
        chains.append((tmp_path / name / "receipts.jsonl").read_bytes())
    assert chains[0] == chains[1] and chains[0].count(b"\n") == 3
    assert not verify_chain(tmp_path / "once" / "receipts.jsonl").faults
