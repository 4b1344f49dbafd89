"""The work that is killed: whatever leaves files that later commands go on with or trust."""

import functools
import itertools
import os
import random
import signal
import sqlite3
import tempfile
import time
import traceback
from pathlib import Path
from typing import cast

import numpy as np
import torch

import whence
from tests.conftest import save_language_model
from tests.settings import QUIET
from tests.test_bank import Additive, same
from tests.test_record import batch_of, problem, step
from tests.test_select import table as planted
from tests.test_serve import logged
from tests.test_shares import SOURCES, drawn, table
from tests.test_store import SMALL, make_records, make_task
from tests.torture.kills import Job, contents
from whence.distributed import Ranks
from whence.errors import BadInput, StoreCorrupt, WhenceError
from whence.evaluate import BankConfig, Retraining, load_table, make_bank, open_bank, random_subsets, save_table
from whence.ledger import credit_of, new_key, read_signer, verify_chain
from whence.load import load_task
from whence.pipeline import refit, spool
from whence.serve.documents import with_documents, without_documents
from whence.serve.hosted_store import HostedStore
from whence.serve.log import QueryLog
from whence.store import open_store, verify_store

METHODS = {
    "lorif": {"method": "lorif", "factor_rank": 1},
    "logra-pca": {"method": "logra-pca"},
    "grass": {"method": "grass-selective"},
    "aligned": {"method": "aligned"},
}
ROWS, MORE = 18, 9
_NOW, _OCTOBER = time.time(), 1.76e9


def build(folder: Path, method: str, records: list, *, append: bool = False, ranks: Ranks = Ranks()) -> whence.Store:
    return whence.build(
        make_task(),
        records,
        folder / "store",
        append=append,
        config=whence.BuildConfig(**METHODS[method], **SMALL),
        runtime=whence.Runtime(quiet=True, ranks=ranks),
    )


def _whole_store_or_none(sizes: set[int]):
    def look(folder: Path) -> None:
        try:
            store = open_store(folder / "store")
        except WhenceError:
            return
        assert len(store) in sizes and verify_store(store) == []

    return look


def _built(method: str) -> Job:
    return Job(f"build {method}", lambda folder: build(folder, method, make_records(ROWS)), look=_whole_store_or_none({ROWS}))


def _appended(method: str) -> Job:
    return Job(
        f"append {method}",
        lambda folder: build(folder, method, make_records(MORE, first=ROWS), append=True),
        prepare=lambda folder: build(folder, method, make_records(ROWS)),
        look=_whole_store_or_none({ROWS, ROWS + MORE}),
    )


def _deleted() -> Job:
    """Rows are deleted, and more of them: whoever looks finds those of a call that was finished left out, or those of none."""

    def run(folder: Path) -> None:
        for ids in (["r1", "r5", "r6"], ["r5", "r12", "r13", "r14", "r15"]):
            whence.store.delete_rows(folder / "store", ids)

    def look(folder: Path) -> None:
        store = open_store(folder / "store")
        without = {f"r{row}" for row in range(ROWS)} - set(store.ids())
        assert without in (set(), {"r1", "r5", "r6"}, {"r1", "r5", "r6", "r12", "r13", "r14", "r15"})
        faults = [fault for fault in verify_store(store) if "does not name this list" not in fault]
        assert not faults, faults

    return Job("delete", run, lambda folder: build(folder, "lorif", make_records(ROWS)), look)


def _refitted() -> Job:
    """A grown store is learned again: whoever looks finds the old one or the new one, never another and never none."""
    left = [record for record in make_records(ROWS + MORE) if record["id"] not in ("r1", "r20")]

    def prepare(folder: Path) -> None:
        build(folder, "aligned", make_records(ROWS))
        build(folder, "aligned", make_records(MORE, first=ROWS), append=True)
        whence.store.delete_rows(folder / "store", ["r1", "r20"])

    def run(folder: Path) -> None:
        refit(folder / "store", make_task(), make_records(ROWS + MORE), quiet=True)

    def look(folder: Path) -> None:
        store = open_store(folder / "store")
        assert store.ids() == tuple(record["id"] for record in left) and verify_store(store) == []
        assert (store.num_deleted, len(store.datasets())) in ((2, 2), (0, 1))

    return Job("refit", run, prepare, look)


@functools.cache
def _language_model() -> whence.CausalLM:
    with tempfile.TemporaryDirectory() as place:
        return cast(whence.CausalLM, load_task(str(save_language_model(Path(place) / "model")))[0])


def _served_documents() -> Job:
    """Documents come and go as at a service, each request sent again after a kill: what was told to be there is there."""
    texts = [{"id": f"t{number}", "text": f"the cat sat {number} times"} for number in range(6)]
    changes = (("n1", "n2"), ("n3",)), (("t1", "t2"), ("t4",))

    def prepare(folder: Path) -> None:
        config = whence.BuildConfig(method="logra", rank=8, rows_per_shard=4)
        whence.build(_language_model(), texts, folder / "store", config=config, runtime=QUIET)

    def run(folder: Path) -> None:
        hosted = HostedStore.load("store", open_store(folder / "store"), _language_model())
        for coming, going in zip(*changes, strict=True):
            hosted, _ = with_documents(hosted, [{"id": name, "text": f"a dog ran {name}", "source": "new"} for name in coming])
            there = [name for name in going if hosted.catalog.row_of(name) is not None]
            hosted = without_documents(hosted, there)[0] if there else hosted

    def look(folder: Path) -> None:
        store = open_store(folder / "store")
        states = [{f"t{number}" for number in range(6)}]
        for coming, going in zip(*changes, strict=True):
            states += [states[-1] | set(coming), (states[-1] | set(coming)) - set(going)]
        assert set(store.ids()) in states
        faults = [fault for fault in verify_store(store) if "does not name this list" not in fault]
        assert not faults, faults

    return Job("documents", run, prepare, look)


def _repaired() -> Job:
    """Shards of both datasets are gone; the killed process repairs one after the other."""

    def prepare(folder: Path) -> None:
        build(folder, "lorif", make_records(ROWS))
        build(folder, "lorif", make_records(MORE, first=ROWS), append=True)
        for number in (1, 3, 6):
            for path in (folder / "store" / "shards").glob(f"{number:05d}.*"):
                path.unlink()

    def run(folder: Path) -> None:
        for first, count in ((ROWS, MORE), (0, ROWS)):
            try:
                build(folder, "lorif", make_records(count, first=first), append=True)
            except StoreCorrupt as error:
                if "of other data" not in error.found:
                    raise
        open_store(folder / "store")

    return Job("repair", run, prepare, _whole_store_or_none({ROWS + MORE}))


def _by_two() -> Job:
    """Two processes build one store; whichever comes to the moment first is killed, and the other ends with it."""

    def run(folder: Path) -> None:
        parent = os.getpid()
        if (pid := os.fork()) == 0:
            try:
                build(folder, "lorif", make_records(ROWS), ranks=Ranks(1, 2))
            except BaseException:
                folder.with_name(f"{folder.name}.other").write_text(traceback.format_exc(limit=-6))
                os._exit(1)
            os._exit(0)
        build(folder, "lorif", make_records(ROWS), ranks=Ranks(0, 2))
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):  # it came to the moment first
            os.kill(os.getpid(), signal.SIGKILL)
        assert status == 0 and parent == os.getpid(), folder.with_name(f"{folder.name}.other").read_text()

    return Job("two ranks", run, look=_whole_store_or_none({ROWS}))


MASKS = random_subsets(12, 6)


def bank(folder: Path, count: int):
    retraining = Retraining(seeds=(0, 1), fingerprint="f", folder=folder / "bank", quiet=True)
    return make_bank(Additive(0.1), same, MASKS[:count], retraining, BankConfig(values="measurement"))


def _old_or_new_bank(sizes: set[int]):
    def look(folder: Path) -> None:
        try:
            found = open_bank(folder / "bank")
        except BadInput:
            assert 0 in sizes
            return
        assert len(found.masks_MN) in sizes and torch.equal(found.masks_MN, MASKS[: len(found.masks_MN)])

    return look


def _grown_bank() -> Job:
    return Job("grown bank", lambda folder: bank(folder, 6), lambda folder: bank(folder, 2), _old_or_new_bank({2, 6}))


def recorded(folder: Path) -> None:
    """Ten steps, from wherever the run stopped; one that was finished is not recorded again."""
    if _is_finished(folder):
        return
    model, inputs, labels = problem()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with whence.Recorder(folder / "run", model, optimizer, every=3, seed=7) as run:
        for number in range(run.restore(), 10):
            optimizer.param_groups[0]["lr"] = 0.01 * (1 - number / 10)
            run.batch(batch_of(number))
            step(model, optimizer, inputs, labels, batch_of(number))


def _is_finished(folder: Path) -> bool:
    try:
        run = whence.runs.open_run(folder / "run")
    except WhenceError:
        return False
    assert run.steps == 10 and run.tensors(10)
    return True


def _run_of(folder: Path) -> dict[str, bytes]:
    """A finished run is what its record names; a run that was stopped may have other files beside."""
    run = whence.runs.open_run(folder / "run")
    named = {"run.json", "ids.json", *(kept["file"] for kept in (*run.record["checkpoints"], *run.record["logs"]))}
    return {name: (folder / "run" / name).read_bytes() for name in named}


def logs(folder: Path) -> None:
    """Answers that come one by one; what was told to be kept is written down."""
    log = QueryLog(str(folder / "log.sqlite"), retention_days=30)
    for number in range(12):
        if log.answer(f"a{number}") is None:
            log.add(
                [
                    logged(
                        f"a{number}", _NOW + number, [(f"s{source}", number + source, -source) for source in range(number % 4)]
                    )
                ]
            )
        with open(folder / "told", "a") as file:
            file.write(f"a{number}\n")
    log.close()


def _sealed_log(folder: Path) -> QueryLog:
    return QueryLog(
        str(folder / "log.sqlite"), retention_days=1e5, receipts=(folder / "receipts.jsonl", read_signer(folder / "key"))
    )


def _answer(number: int) -> dict:
    facts = {
        "id": f"a{number}",
        "time": _OCTOBER + number,
        "store": "d",
        "method": "m",
        "unit": "nats",
        "tokens": 2,
        "token": None,
    }
    credit = credit_of(np.random.default_rng(number).normal(size=60), facts)
    return {**logged(facts["id"], facts["time"], []), "salt": f"{number:032x}", "credit": credit.line()}


def receipted(folder: Path) -> None:
    """Answers with credits and receipts, some at a time; what was told is written down."""
    log = _sealed_log(folder)
    for first, stop in itertools.pairwise((0, 1, 4, 6, 7, 12)):
        batch = [_answer(number) for number in range(first, stop)]
        log.sync()
        (folder / "synced").write_text(f"{log.chain.lines.size:09d}")
        if any(log.answer(answer["id"]) is None for answer in batch):
            log.add(batch)
        with open(folder / "told", "a") as file:
            file.write("".join(f"{answer['id']}\n" for answer in batch))
    log.close()


def _receipts_hold(folder: Path) -> None:
    """Who was told of an answer finds it and its receipt; the chain is whole but for a torn end, which the next start mends."""
    told = (folder / "told").read_text().split() if (folder / "told").exists() else []
    path = folder / "receipts.jsonl"
    heads = verify_chain(path).heads if path.exists() else ()
    assert set(told) <= {head.id for head in heads}
    faults = verify_chain(path).faults if path.exists() else ()
    assert all("it is cut off" in fault for fault in faults), faults
    log = _sealed_log(folder)
    with sqlite3.connect(folder / "log.sqlite") as rows:
        ids = [name for (name,) in rows.execute("SELECT id FROM queries ORDER BY receipt")]
    log.close()
    check = verify_chain(path)
    assert not check.faults and [head.id for head in check.heads] == ids and check.heads[: len(heads)] == heads


def _receipts_hold_without_current(folder: Path) -> None:
    """The same where the machine stops, and the disk has of the chain's end what it likes: as little as was synced, zeros, anything."""
    path = folder / "receipts.jsonl"
    content = path.read_bytes() if path.exists() else b""
    synced = int((folder / "synced").read_text() or 0) if (folder / "synced").exists() else 0
    drawn = random.Random(content)
    at = drawn.randint(min(synced, len(content)), len(content))
    lost = [b"", bytes(len(content) - at), bytes(drawn.choices(b"\0{}\n", k=len(content) - at))]
    heads = verify_chain(path).heads if path.exists() else ()
    path.write_bytes(content[:at] + drawn.choice(lost))
    _sealed_log(folder).close()
    assert verify_chain(path).heads[: len(heads)] == heads
    _receipts_hold(folder)


def _log_and_chain(folder: Path) -> list:
    with sqlite3.connect(folder / "log.sqlite") as known:
        rows = [known.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall() for name in ("queries", "credits", "removed")]
    # When an answer was kept is the only thing that another run says otherwise.
    return [[row[:-3] + row[-2:] for row in rows[0]], *rows[1:], (folder / "receipts.jsonl").read_bytes()]


def _nothing_told_is_lost(folder: Path) -> None:
    told = (folder / "told").read_text().split() if (folder / "told").exists() else []
    if not (folder / "log.sqlite").exists():
        assert not told
        return
    log = QueryLog(str(folder / "log.sqlite"), retention_days=30)
    assert all(log.answer(name) is not None for name in told)
    for number in range(12):
        if log.answer(f"a{number}") is not None:
            shares = log.shares("d", _NOW + number, _NOW + number + 0.5, 10)
            assert shares["questions"] == 1 and len(shares["shares"]) == number % 4
    log.close()


def _rows_of_log(folder: Path) -> list:
    with sqlite3.connect(folder / "log.sqlite") as known:
        return [known.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall() for name in ("queries", "shares")]


def _table(seed: int):
    return table(drawn(queries=40, examples=400, seed=seed), name=f"m{seed}")


def _old_or_new_table(folder: Path) -> None:
    found = load_table(folder / "table")
    assert np.array_equal(found.scores, _table(int(found.method[1:])).scores)


def _selected(seed: int):
    scores = planted(torch.randn(2, 12, generator=torch.Generator().manual_seed(seed)))
    return whence.select.select(scores, config=whence.settings.SelectConfig(keep=4 + seed))


def _old_or_new_selection(folder: Path) -> None:
    found = whence.select.load_selection(folder / "chosen")
    assert sum(decision.decision == "keep" for decision in found.decisions) in (4, 5)


def _shared(folder: Path) -> None:
    if not (folder / "report").exists():
        whence.shares.write_shares(whence.shares.shares([folder / "table"], SOURCES), folder / "report")


def _whole_report_or_none(folder: Path) -> None:
    if (folder / "report").exists():
        assert whence.shares.verify_shares(folder / "report").faults == []


def _ensemble(folder: Path) -> None:
    ensemble = whence.score.Ensemble(folder / "ensemble")
    for seed in range(4):
        if f"m{seed}" not in ensemble.members:
            ensemble.add(table(drawn(seed=seed)), member=f"m{seed}")
    ensemble.table()


def jobs() -> list[Job]:
    """All work that is killed."""
    return [
        *map(_built, METHODS),
        *map(_appended, ("lorif", "logra-pca")),
        _deleted(),
        _refitted(),
        _served_documents(),
        _repaired(),
        _by_two(),
        Job("bank", lambda folder: bank(folder, 4), look=_old_or_new_bank({0, 4})),
        _grown_bank(),
        Job("recorder", recorded, look=_is_finished, content=_run_of),
        Job("fit", lambda folder: whence.pipeline.fit_curvature(make_task(), make_records(ROWS), folder / "factors", runtime=QUIET)),
        Job("query log", logs, look=_nothing_told_is_lost, content=_rows_of_log),
        Job("receipts", receipted, lambda folder: new_key(folder / "key"), _receipts_hold, _log_and_chain),
        Job("receipts without current", receipted, lambda folder: new_key(folder / "key"), _receipts_hold_without_current, _log_and_chain),
        Job("table", lambda folder: _saved(folder, 1), lambda folder: _saved(folder, 0), _old_or_new_table),
        Job("selection", lambda folder: _chosen(folder, 1), lambda folder: _chosen(folder, 0), _old_or_new_selection),
        Job("shares", _shared, lambda folder: save_table(table(drawn()), folder / "table"), _whole_report_or_none, _names_of_report),
        Job("ensemble", _ensemble),
        Job("spool", lambda folder: spool(make_task(), make_records(30), folder / "spool", quiet=True)),
        Job("study", lambda folder: _studied(folder), lambda folder: build(folder, "lorif", make_records(ROWS))),
    ]  # fmt: skip


def _studied(folder: Path) -> None:
    whence.study.study(make_task(), folder / "store", {"a": make_records(2, first=50)}, folder / "study", runtime=QUIET)


def _saved(folder: Path, seed: int) -> None:
    save_table(_table(seed), folder / "table")


def _chosen(folder: Path, seed: int) -> None:
    _selected(seed).save(folder / "chosen")


def _names_of_report(folder: Path) -> set[str]:
    return set(contents(folder / "report"))
