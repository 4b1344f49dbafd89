"""Workers that scan a store together: the answer of one process, whatever is killed on the way."""

import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch

import whence
from tests import scanners
from tests.reference.scanning import group_sums, strongest
from tests.settings import QUIET
from tests.test_store import SMALL, flip, make_records, make_task
from whence.cli import main
from whence.distributed import Ranks
from whence.errors import BadInput, NonFinite, StoreCorrupt, StoreMismatch, WorkerLost
from whence.load import load_task
from whence.pipeline.stored.prepared import PreparedQuery
from whence.progress import meter
from whence.score import all_scores, top_scores
from whence.workers import Processes, RowChoice, Workers, pieces
from whence.workers.pieces import pieces_of

METHODS = {
    "lorif": {"method": "lorif", "factor_rank": 1},
    "aligned": {"method": "aligned", "rank": 8, "dtype": "int8"},
    "trackstar": {"method": "trackstar"},
    "trak": {"method": "trak", "rank": 8},
}
ROOT = Path(__file__).parents[1]
RECORDS = 42  # eleven shards of four rows, the last of two
QUERIES = make_records(3, first=50)


@pytest.fixture(scope="session", autouse=True)
def forks():
    """One process that has imported everything, for these and for the ranks of other tests, which share it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_distributed", "tests.scanners", "whence.pipeline", "whence.runs"])
    forkserver.ensure_running()


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return {
        name: whence.build(
            make_task(), make_records(RECORDS), folder / name, config=whence.BuildConfig(**{**SMALL, **options}), runtime=QUIET
        )
        for name, options in METHODS.items()
    }


@pytest.fixture(scope="module")
def pool():
    with Workers(2) as workers:
        yield workers


def asked_of(store, queries=QUERIES):
    return PreparedQuery.prepare(store, make_task(), queries, whence.Damping(), True)


def alone(asked, k):
    with meter("", len(asked.store), quiet=True) as progress:
        return top_scores(asked.store, asked.preconditioned, k, norms_Q=asked.norms_Q, progress=progress, roots=asked.roots)


def by(workers, asked, k, **more):
    return workers.top_scores(asked.store, asked.preconditioned, k, norms_Q=asked.norms_Q, roots=asked.roots, **more)


def is_same(found, wanted):
    pairs = zip((found.high, found.low), wanted, strict=True)
    return all(torch.equal(a.scores_QK, b.scores_QK) and torch.equal(a.rows_QK, b.rows_QK) for a, b in pairs)


@contextmanager
def workers_of(scanner, count, monkeypatch, ray=None):
    """Workers that run another scanner, with a piece a shard."""
    with monkeypatch.context() as patch:
        patch.setattr("whence.workers.workers.Scanner", scanner)
        patch.setattr(pieces, "_PIECE_BYTES", 1)
        patch.setattr(pieces, "_MOST_PIECES", 10**6)
        with Workers(count, ray=ray) as workers:
            yield workers


def processes_of(workers):
    return [slot.worker.process for slot in workers._assignment.slots if slot.worker is not None]


def kill_after(seconds, workers, number):
    def kill():
        time.sleep(seconds)
        os.kill(processes_of(workers)[number].pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


# The same answer


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [1, 7, 100])
def test_workers_find_what_one_process_finds(stores, pool, method, k):
    asked = asked_of(stores[method])
    assert is_same(by(pool, asked, k), alone(asked, k))


@pytest.mark.parametrize("method", METHODS)
def test_every_score_is_that_of_one_process(stores, pool, method):
    asked = asked_of(stores[method])
    with meter("", RECORDS, quiet=True) as progress:
        wanted = all_scores(asked.store, asked.preconditioned, norms_Q=asked.norms_Q, progress=progress, roots=asked.roots)
    assert torch.equal(pool.all_scores(asked.store, asked.preconditioned, norms_Q=asked.norms_Q, roots=asked.roots), wanted)


def test_masks_and_sums_are_those_of_a_sort(stores, pool):
    asked = asked_of(stores["lorif"])
    scores_QN = pool.all_scores(asked.store, asked.preconditioned, norms_Q=None)
    draw = np.random.default_rng(0)
    keep = {0: draw.random(RECORDS) < 0.5, 2: np.arange(RECORDS) == 41}
    group_N, advanced = draw.integers(0, 5, RECORDS), []
    found = by(pool, asked, 6, choice=RowChoice(keep, (group_N, 7), True), advance=advanced.append)
    assert found is not None and sum(advanced) == RECORDS and torch.equal(found.scores_QN, scores_QN)
    for top, sign in ((found.high, 1), (found.low, -1)):
        pairs = [
            [pair for pair in zip(scores, rows, strict=True) if abs(pair[0]) < torch.inf]
            for scores, rows in zip(top.scores_QK.tolist(), top.rows_QK.tolist(), strict=True)
        ]
        assert pairs == strongest(scores_QN, 6, sign, keep)
    for sums, wanted in zip(found.sums_QG2.unbind(2), group_sums(scores_QN, group_N, 7), strict=True):
        assert sums is not None and sums.shape == (3, 7)
        torch.testing.assert_close(sums, torch.tensor(wanted, dtype=torch.float64), rtol=1e-14, atol=0)


@pytest.mark.parametrize("owners", [1, 2, 3, 20])
@pytest.mark.parametrize("piece_bytes", [1, 300, 1 << 30])
def test_every_shard_is_in_one_piece(stores, monkeypatch, owners, piece_bytes):
    monkeypatch.setattr(pieces, "_PIECE_BYTES", piece_bytes)
    store = stores["lorif"]
    found = pieces_of(store, owners)
    assert [place for piece in found for place in piece.shards] == list(range(11))
    assert [row for piece in found for row in piece.rows] == list(range(RECORDS))
    assert [piece.number for piece in found] == list(range(len(found)))
    for owner in range(owners):
        mine = [place for piece in found if piece.owner == owner for place in piece.shards]
        assert mine == list(Ranks(owner, owners).part(11))
    assert len(found) == (11 if piece_bytes == 1 else min(owners, 11)) or piece_bytes == 300


def test_query_and_score_table_take_workers(stores, pool):
    store = stores["lorif"]
    alone = whence.query(store, make_task(), QUERIES, k=4, runtime=QUIET).to_dict()
    assert whence.query(store, make_task(), QUERIES, k=4, runtime=whence.Runtime(quiet=True, workers=pool)).to_dict() == alone
    table = whence.score_table(store.folder, make_task(), QUERIES, runtime=whence.Runtime(quiet=True, workers=pool))
    assert torch.equal(table.scores, whence.score_table(store, make_task(), QUERIES, runtime=QUIET).scores)


def test_a_second_stage_gets_the_same_shortlist(stores, pool):
    rerank = whence.Rerank(by=stores["lorif"], shortlist=5)
    found, alone_found = (
        whence.query(stores["aligned"], make_task(), QUERIES, k=3, rerank=rerank, runtime=runtime)
        for runtime in (whence.Runtime(quiet=True, workers=pool), QUIET)
    )
    assert found.to_dict() == alone_found.to_dict()


def test_more_workers_than_shards(stores, tmp_path):
    store = whence.build(
        make_task(),
        make_records(7),
        tmp_path / "store",
        config=whence.BuildConfig(**{**SMALL, **METHODS["lorif"]}),
        runtime=QUIET,
    )
    asked = asked_of(store)
    with Workers(3) as workers:
        assert is_same(by(workers, asked, 9), alone(asked, 9))


def test_the_commands_take_workers(model_folder, tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": f"a cat sat {number}"}) + "\n" for number in range(12)))
    assert main(["build", str(model_folder), str(data), "-o", str(tmp_path / "s"), "--rows-per-shard", "4", "--rank", "4"]) == 0
    capsys.readouterr()
    answers = []
    for more in ([], ["--workers", "2"]):
        assert main(["query", str(tmp_path / "s"), "--text", "a cat sat", "-k", "3", "--json", *more]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1]
    for more, name in (([], "a"), (["--workers", "2"], "b")):
        assert main(["score", str(tmp_path / "s"), str(data), "-o", str(tmp_path / name), *more]) == 0
    assert (np.load(tmp_path / "a" / "scores.npy") == np.load(tmp_path / "b" / "scores.npy")).all()
    capsys.readouterr()
    for arguments, said in (
        (["--ray", "local"], "found --ray without --workers"),
        (["--workers", "0"], "found 0 workers; needed 1 or more"),
        (["--url", "http://127.0.0.1:1", "--workers", "2"], "found --workers with --url"),
    ):
        assert main(["query", str(tmp_path / "s"), "--text", "a", *arguments]) == 2
        captured = capsys.readouterr()
        assert said in captured.err and "Traceback" not in captured.err and captured.out == ""


def test_the_page_shows_what_works(model_folder, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "scale.md").read_text("utf-8").split("## Scanning processes and Ray")[1].split("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(tmp_path)
    task = load_task(str(model_folder))[0]
    whence.build(
        task,
        ["a cat sat", "the dog ran off", "one bird sleeps"],
        "store",
        config=whence.BuildConfig(method="logra", rank=4),
        runtime=QUIET,
    )
    exec(compile(block, "scale.md", "exec"), {"whence": whence, "task": task})
    assert capsys.readouterr().out.count("Hits(") == 2


# Lost workers


@pytest.mark.parametrize("seed", range(3))
def test_a_worker_killed_in_the_middle_costs_nothing_but_time(stores, monkeypatch, seed):
    asked, draw = asked_of(stores["trackstar"]), random.Random(seed)
    group_N = np.arange(RECORDS) % 3
    with workers_of(scanners.Slow, 2, monkeypatch) as workers:
        calm = by(workers, asked, 5, choice=RowChoice(groups=(group_N, 3)))
        thread = kill_after(draw.random() * 5 * scanners.PAUSE, workers, draw.randrange(2))
        found = by(workers, asked, 5, choice=RowChoice(groups=(group_N, 3)))
        thread.join()
        assert workers.losses == 1
        assert is_same(found, alone(asked, 5)) and is_same(by(workers, asked, 5), alone(asked, 5))
        assert torch.equal(found.sums_QG2, calm.sums_QG2)


def test_a_lone_worker_is_replaced(stores, monkeypatch):
    asked = asked_of(stores["lorif"])
    with workers_of(scanners.Slow, 1, monkeypatch) as workers:
        by(workers, asked, 5)
        thread = kill_after(5 * scanners.PAUSE, workers, 0)
        assert is_same(by(workers, asked, 5), alone(asked, 5))
        thread.join()
        assert workers.losses == 1


def test_workers_killed_between_questions_are_replaced(stores, monkeypatch):
    asked = asked_of(stores["lorif"])
    with Workers(2) as workers:
        by(workers, asked, 5)
        for process in processes_of(workers):
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        assert is_same(by(workers, asked, 5), alone(asked, 5))
        assert workers.losses == 2


def test_a_shard_that_kills_every_worker_is_given_up(stores, tmp_path, monkeypatch):
    store = stores["lorif"]
    with workers_of(scanners.Deadly, 2, monkeypatch) as workers:
        with pytest.raises(WorkerLost) as caught:
            by(workers, asked_of(store), 5)
        said = str(caught.value)
        assert f"found 3 workers that ended over shards 3 to 3 of {store.folder} (the last: exit status -9)" in said
        assert "needed one that gets through" in said and "whence verify" in said
        assert workers.losses == 3
        # What others were still at does not get into the next answer.
        other = whence.build(
            make_task(),
            make_records(7),
            tmp_path / "store",
            config=whence.BuildConfig(**{**SMALL, **METHODS["lorif"]}),
            runtime=QUIET,
        )
        assert is_same(by(workers, asked_of(other), 9), alone(asked_of(other), 9))


def test_a_mistake_in_a_worker_is_a_loss(stores, monkeypatch):
    with workers_of(scanners.Failing, 1, monkeypatch) as workers, pytest.raises(WorkerLost, match="exit status 1"):
        by(workers, asked_of(stores["lorif"]), 5)


def test_workers_that_cannot_begin(stores, monkeypatch):
    with workers_of(scanners.Unready, 1, monkeypatch) as workers:
        with pytest.raises(
            WorkerLost, match="found 3 workers that ended before they were ready; needed one at least; .*memory"
        ):
            by(workers, asked_of(stores["lorif"]), 5)
        with pytest.raises(WorkerLost, match="found 3 workers"):  # tried again, then given up again
            by(workers, asked_of(stores["lorif"]), 5)


SCRIPT = """
import time
from whence.workers import Processes
from whence.workers.pieces import Scanner

engine = Processes(Scanner, 1)
worker = engine.start()
engine.answers([worker], 60)
print(worker.process.pid, flush=True)
time.sleep(60)
"""


def test_workers_of_a_plain_script_end_with_it(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    parent = subprocess.Popen([sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(200):
        if not is_running(child):
            break
        time.sleep(0.05)
    assert not is_running(child)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# What is given up, what has changed, what is wrong


def test_a_scan_that_nobody_wants_is_given_up(stores, monkeypatch):
    asked, done = asked_of(stores["lorif"]), []
    with workers_of(scanners.Slow, 2, monkeypatch) as workers:
        assert by(workers, asked, 5, advance=done.append, is_wanted=lambda: not done) is None
        assert 0 < sum(done) < RECORDS
        # Another question at once, while workers are still at the one before.
        other = asked_of(stores["lorif"], make_records(2, first=54))
        assert is_same(by(workers, other, 5), alone(other, 5))
        assert workers.losses == 0


def test_a_store_that_changed_is_noticed(tmp_path, pool):
    folder = tmp_path / "store"
    options = {**SMALL, **METHODS["lorif"]}
    store = whence.build(make_task(), make_records(10), folder, config=whence.BuildConfig(**options), runtime=QUIET)
    asked = asked_of(store)
    assert is_same(by(pool, asked, 4), alone(asked, 4))
    more = whence.build(
        make_task(), make_records(9, first=10), folder, append=True, config=whence.BuildConfig(**options), runtime=QUIET
    )
    grown = asked_of(more)
    assert is_same(by(pool, grown, 19), alone(grown, 19)) and len(by(pool, grown, 19).high.rows_QK[0]) == 19
    with pytest.raises(StoreMismatch, match=f"found another store in {folder} than the one that was opened to be asked"):
        by(pool, asked, 4)
    assert is_same(by(pool, grown, 4), alone(grown, 4))


def test_what_a_worker_finds_wrong_is_said_here(tmp_path, pool):
    store = whence.build(
        make_task(),
        make_records(10),
        tmp_path / "store",
        config=whence.BuildConfig(**{**SMALL, **METHODS["lorif"]}),
        runtime=QUIET,
    )
    asked = asked_of(store)
    flip(tmp_path / "store" / "shards" / "00002.safetensors")
    with pytest.raises(StoreCorrupt, match=r"found a damaged file .*00002.safetensors \(its checksum is not the sealed one\)"):
        by(pool, asked, 4)
    good = asked_of(
        whence.build(
            make_task(),
            make_records(10),
            tmp_path / "good",
            config=whence.BuildConfig(**{**SMALL, **METHODS["lorif"]}),
            runtime=QUIET,
        )
    )
    with pytest.raises(NonFinite, match=r"found a score of query 1 for the example 'r\d' that is NaN or infinite"):
        pool.top_scores(
            good.store, [unit * torch.tensor([1, torch.nan, 1])[:, None, None] for unit in good.preconditioned], 4, norms_Q=None
        )
    assert is_same(by(pool, good, 4), alone(good, 4))


def test_workers_that_cannot_be(stores):
    with pytest.raises(BadInput, match="found 0 workers; needed 1 or more; do this: ask for some, or leave workers out"):
        Workers(0)
    workers = Workers(1)
    workers.close()
    workers.close()
    with pytest.raises(
        BadInput, match="found workers that were closed; needed running ones; do this: ask inside the `with` block"
    ):
        by(workers, asked_of(stores["lorif"]), 3)
    for ask in (whence.query, whence.score_table):
        with pytest.raises(BadInput, match="found workers for each of 2 ranks; needed ranks, which scan themselves"):
            ask(stores["lorif"], make_task(), QUERIES, runtime=whence.Runtime(workers=workers, ranks=Ranks(0, 2)))


def test_processes_share_the_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert [Processes(scanners.Slow, count).threads for count in (1, 2, 9)] == [5, 2, 1]
