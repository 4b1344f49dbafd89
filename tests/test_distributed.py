"""Several processes on one job: the same bytes and scores as one, whatever is killed on the way."""

import contextlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch

import whence
from tests import zoo
from tests.settings import QUIET
from tests.test_store import SMALL, contents, flip, make_records, make_task
from whence.capture import plan_units
from whence.cli import main
from whence.curvature import fit_ekfac
from whence.distributed import Ranks
from whence.errors import BadInput, RankLost, StoreCorrupt, StoreMismatch
from whence.settings import FitConfig
from whence.store import leases, open_store, read_tensors, verify_store

METHODS = {
    "lorif": {"method": "lorif", "factor_rank": 1},
    "logra-pca": {"method": "logra-pca"},
    "aligned": {"method": "aligned", "rank": 8, "dtype": "int8"},
}
ROOT = Path(__file__).parents[1]
RECORDS = 42  # eleven shards of four rows, the last of two


def build(folder, method="lorif", ranks=Ranks(), records=None, *, append=False, **more):
    options = {**SMALL, **METHODS[method], **more}
    return whence.build(
        make_task(),
        records or make_records(RECORDS),
        folder,
        append=append,
        config=whence.BuildConfig(**options),
        runtime=whence.Runtime(quiet=True, ranks=ranks),
    )


def bytes_of(folder):
    return {name: data for name, data in contents(Path(folder)).items() if name != ".leases"}


# Processes


@pytest.fixture(scope="module")
def processes():
    """Children of one process that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_distributed", "whence.pipeline", "whence.runs"])
    return context


def _run(function, ranks, place, port, arguments, pipe):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        pipe.send((True, function(ranks, place, *arguments)))
    except whence.WhenceError as error:
        pipe.send((False, error))
    except BaseException:  # the assertion that failed there is shown here
        pipe.send((False, traceback.format_exc()))


def start(processes, function, place, *arguments, count=2):
    """As many processes as there are ranks, each with the pipe that its result comes from."""
    port = _free_port()
    running = []
    for rank in range(count):
        here, there = processes.Pipe(duplex=False)
        child = processes.Process(target=_run, args=(function, Ranks(rank, count), place, port, arguments, there))
        child.start()
        there.close()
        running.append((child, here))
    return running


def _free_port():
    """Below the ports that the system hands out by itself, one of which the first rank could find taken while the others wait for it."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


def results(running, timeout=120):
    found = []
    for child, pipe in running:
        assert pipe.poll(timeout), "a rank hangs"
        try:
            is_well, value = pipe.recv()
        except EOFError:
            is_well, value = False, None  # killed
        found.append(value if is_well else (value if isinstance(value, whence.WhenceError) else AssertionError(value)))
        child.join()
    return found


def together(processes, function, place, *arguments, count=2):
    found = results(start(processes, function, place, *arguments, count=count))
    for value in found:
        if isinstance(value, BaseException):
            raise value
    return found


def _build(ranks, folder, method, pause=0.0, records=None):
    """One rank's part; says which shards it wrote."""
    from whence.store.writer import Writer

    written, write = [], Writer.write

    def slowly(self, shard, *more):
        time.sleep(pause)
        write(self, shard, *more)
        written.append(shard.number)

    Writer.write = slowly
    build(folder, method, ranks, records=records)
    return written


# Build


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Bytes of a build by one process, per method."""
    torch.set_num_threads(1)
    made = {}
    for method in METHODS:
        folder = tmp_path_factory.mktemp("alone") / method
        build(folder, method)
        made[method] = bytes_of(folder)
    return made


@pytest.mark.parametrize(("method", "count"), [("lorif", 2), ("logra-pca", 3), ("aligned", 2)])
def test_ranks_build_the_bytes_of_one_process(processes, tmp_path, alone, method, count):
    written = together(processes, _build, tmp_path / "store", method, 0.02, count=count)
    assert bytes_of(tmp_path / "store") == alone[method]
    assert sorted(number for mine in written for number in mine) == list(range(11))  # each once
    assert verify_store(open_store(tmp_path / "store")) == []


def _sealed(folder):
    return {int(path.stem): path.stat().st_mtime_ns for path in folder.glob("shards/*.json")}


@pytest.mark.parametrize("seed", range(3))
def test_what_a_killed_rank_had_is_made_by_the_others(processes, tmp_path, alone, seed):
    folder, chance = tmp_path / "store", random.Random(seed)
    running = start(processes, _build, folder, "lorif", 0.03)
    victim = chance.randrange(2)
    while len(_sealed(folder)) < chance.randrange(1, 6):
        time.sleep(0.002)
    time.sleep(chance.random() * 0.06)  # at any moment of making a shard
    os.kill(running[victim][0].pid, signal.SIGKILL)
    found = results(running)
    assert running[victim][0].exitcode == -signal.SIGKILL and isinstance(found[victim], AssertionError)
    assert len(found[1 - victim]) >= 5
    assert bytes_of(folder) == alone["lorif"]


@pytest.mark.parametrize("seed", range(4))
def test_after_all_were_killed_the_rerun_makes_only_what_is_missing(processes, tmp_path, alone, seed):
    folder, chance = tmp_path / "store", random.Random(seed)
    running = start(processes, _build, folder, "logra-pca", 0.1)
    enough = chance.randrange(1, 6)
    while len(_sealed(folder)) < enough:
        time.sleep(0.002)
    for child, _ in running:
        time.sleep(chance.random() * 0.05)  # at any moment of making a shard, another one for each
        os.kill(child.pid, signal.SIGKILL)
    results(running)
    before = _sealed(folder)
    assert enough <= len(before) < 11 and not (folder / "manifest.json").exists()
    written = together(processes, _build, folder, "logra-pca", count=1 + seed % 3)
    assert sorted(number for mine in written for number in mine) == sorted(set(range(11)) - set(before))
    assert {number: mark for number, mark in _sealed(folder).items() if number in before} == before
    assert bytes_of(folder) == alone["logra-pca"]


def test_ranks_go_on_with_what_one_process_began_and_append(processes, tmp_path):
    for folder in (tmp_path / "one", tmp_path / "two"):
        build(folder, records=make_records(6))
    more = make_records(9, first=6)
    build(tmp_path / "one", records=more, append=True)
    together(processes, _append, tmp_path / "two", more)
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "one")
    assert together(processes, _build, tmp_path / "two", "lorif", 0.0, make_records(6)) == [[], []]  # complete: nothing to do


def _append(ranks, folder, records):
    build(folder, ranks=ranks, records=records, append=True)


def test_one_process_and_several_keep_out_of_each_others_way(tmp_path):
    with leases(tmp_path, 0, 2), pytest.raises(BadInput, match="found another build writing to .*; needed one at a time"):
        build(tmp_path)
    with leases(tmp_path, 0, 1), pytest.raises(BadInput, match="found another build writing to .*; needed one at a time"):
        build(tmp_path, ranks=Ranks(1, 2))


def _hold(ranks, folder):
    with leases(folder, 1, 2) as held, held.shard(3) as is_mine:
        (folder / "held").touch()
        while not (folder / "go").exists():
            time.sleep(0.002)
        return is_mine


def test_a_lease_has_one_holder_and_ends_with_its_process(processes, tmp_path):
    running = start(processes, _hold, tmp_path, count=1)
    while not (tmp_path / "held").exists():
        time.sleep(0.002)
    with leases(tmp_path, 0, 2) as held:
        with held.shard(3) as is_mine:
            assert not is_mine
        with held.shard(2) as is_mine:
            assert is_mine
        os.kill(running[0][0].pid, signal.SIGKILL)
        with held.shard(3, wait=True) as is_mine:
            assert is_mine
    results(running)


def test_other_data_at_the_same_time_is_noticed(tmp_path, monkeypatch):
    from whence.store.writer import Writer

    folder, write = tmp_path / "store", Writer.write

    def beside(self, shard, *more):
        """Another job, with other data, whose ranks seal a shard that this one has not come to."""
        write(self, shard, *more)
        stem = folder / "shards"
        for suffix in (".safetensors", ".jsonl"):
            (stem / f"00005{suffix}").write_bytes((stem / f"{shard.number:05d}{suffix}").read_bytes())
        seal = json.loads((stem / f"{shard.number:05d}.json").read_bytes())
        (stem / "00005.json").write_text(json.dumps({**seal, "number": 5, "data": "other"}))

    monkeypatch.setattr(Writer, "write", beside)
    with pytest.raises(StoreMismatch, match="found a shard 5 of other data in .*, made since this build began"):
        build(folder, ranks=Ranks(0, 2))


# Who is who


def test_ranks_come_from_the_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Ranks.launched() == Ranks(0, 1)
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(BadInput, match="found RANK='3' in the environment; needed numbers in RANK and WORLD_SIZE, or neither"):
        Ranks.launched()
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert Ranks.launched() == Ranks(3, 8, 4)
    monkeypatch.setenv("RANK", "8")
    with pytest.raises(BadInput, match="found rank 8 of 8, 4 on this machine; needed ranks from 0 to one below"):
        Ranks.launched()


def test_talking_needs_a_connection(monkeypatch):
    with pytest.raises(
        BadInput, match="found rank 0 of 2, which is not connected; .*do this: do it inside `with ranks.connected"
    ):
        Ranks(0, 2).wait()
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(BadInput, match="found rank 0 of 2, which does not reach the others"), Ranks(0, 2).connected():
        pass


def _sums(ranks, place):
    with ranks.connected():
        mine = {"a": torch.full((2, 3), 1.0 + ranks.rank, dtype=torch.float64)} if ranks.rank != 1 else {"b": torch.ones(2)}
        sums = ranks.added_up(mine)
        ranks.wait()
        return {name: value.tolist() for name, value in sums.items()}, ranks.of_first(ranks.rank), ranks.gathered(ranks.rank)


def test_sums_over_ranks_know_names_that_a_rank_does_not_have(processes, tmp_path):
    found = together(processes, _sums, tmp_path, count=3)
    assert found == [({"a": [[4.0] * 3] * 2, "b": [1.0, 1.0]}, 0, [0, 1, 2])] * 3


def _leave(ranks, place):
    with ranks.connected():
        ranks.wait()
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.gathered(ranks.rank)


def test_a_rank_that_is_gone_is_an_error_on_the_others(processes, tmp_path):
    found = results(start(processes, _leave, tmp_path))
    assert isinstance(found[0], RankLost) and "found rank 0 of 2 waiting for one that is gone" in str(found[0])


# Query


def _query(ranks, folder):
    queries = make_records(3, first=50)
    hits = whence.query(folder, make_task(), queries, k=7, runtime=whence.Runtime(quiet=True, ranks=ranks))
    table = whence.score_table(folder, make_task(), queries, runtime=whence.Runtime(quiet=True, ranks=ranks))
    return hits.to_dict(), table.scores.tolist(), table.train_ids


@pytest.mark.parametrize(("method", "count"), [("lorif", 2), ("aligned", 3)])
def test_ranks_answer_as_one_process(processes, tmp_path, method, count):
    build(tmp_path, method)
    alone = _query(Ranks(), tmp_path)
    assert len(alone[0]["queries"][0]["proponents"]) == 7
    assert together(processes, _query, tmp_path, count=count) == [alone] * count


def test_more_ranks_than_shards(processes, tmp_path):
    build(tmp_path, records=make_records(7))
    assert together(processes, _query, tmp_path, count=3) == [_query(Ranks(), tmp_path)] * 3


def _open(ranks, folder):
    return len(open_store(folder, ranks=ranks))


def test_every_rank_checks_the_shards_that_it_reads(tmp_path):
    build(tmp_path)
    flip(tmp_path / "shards" / "00009.safetensors")
    assert _open(Ranks(0, 2), tmp_path) == RECORDS
    with pytest.raises(StoreCorrupt, match="found a damaged file .*00009.safetensors"):
        _open(Ranks(1, 2), tmp_path)


# Curvature


def _fit(ranks, folder, name, labels="auto"):
    """Curvature of a model of the zoo, as dense matrices."""
    task, dataset = zoo.make(name, count=7)
    plan = plan_units(task)
    config = FitConfig(labels=labels)
    found = fit_ekfac(task, plan, dataset, config, max_positions=12, folder=folder, quiet=True, ranks=ranks)
    eyes = [torch.eye(unit.outputs * unit.inputs).double().view(-1, unit.outputs, unit.inputs) for unit in plan.units]
    return [block.back(block.into(eye) * block.values_OI).tolist() for eye, block in zip(eyes, found.blocks, strict=True)]


@pytest.mark.parametrize("count", [2, 5])
def test_curvature_over_ranks_is_that_of_one_process(processes, tmp_path, count):
    """In float64, but for rounding; with more ranks than batches, too."""
    alone = _fit(Ranks(), None, "linear")
    found = together(processes, _fit, None, "linear", count=count)
    assert all(mine == found[0] for mine in found)  # to the bit
    for matrix, wanted in zip(found[0], alone, strict=True):
        torch.testing.assert_close(torch.tensor(matrix), torch.tensor(wanted), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "labels"), [("tied", "auto"), ("two_inputs", "sampled"), ("applied_twice", "sampled")])
def test_every_stage_of_a_fit_over_ranks(processes, tmp_path, name, labels):
    """Tied, looked-up and repeated weights; each stage from what one process made before it: bases turn where eigenvalues are equal."""
    alone = tmp_path / "alone"
    _fit(Ranks(), alone, name, labels)
    for place, stage in enumerate(("factors", "bases", "values")):
        folder = tmp_path / stage
        shutil.copytree(alone, folder)
        record = json.loads((folder / "fit.json").read_bytes())
        record["stages"] = {known: record["stages"][known] for known in ("factors", "bases")[:place]}
        (folder / "fit.json").write_text(json.dumps(record))
        (folder / f"{stage}.safetensors").unlink()
        together(processes, _fit, folder, name, labels)
        found, wanted = (read_tensors(place / f"{stage}.safetensors") for place in (folder, alone))
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            exact = stage == "bases"  # each unit is solved by one process, from the same factors
            torch.testing.assert_close(found[key], tensor, rtol=0 if exact else 1e-12, atol=0 if exact else 1e-15)


def _fit_and_build(ranks, folder):
    task, records = make_task(), make_records(RECORDS)
    whence.pipeline.fit_curvature(task, records, folder / "factors", runtime=whence.Runtime(quiet=True, ranks=ranks))
    options = {**SMALL, **METHODS["aligned"], "factors": folder / "factors"}
    whence.build(
        task,
        records,
        folder / "store",
        config=whence.BuildConfig(**options),
        runtime=whence.Runtime(quiet=True, ranks=ranks),
    )


def test_a_fit_by_ranks_is_what_build_and_attribute_look_for(processes, tmp_path):
    together(processes, _fit_and_build, tmp_path)
    before = (tmp_path / "factors" / "values.safetensors").stat().st_mtime_ns
    folder = tmp_path / "factors"
    build(tmp_path / "alone", "aligned", factors=folder)
    table = whence.attribute(
        make_task(), make_records(RECORDS), make_records(2, first=50), method=whence.EKFAC(factors=folder), runtime=QUIET
    )
    assert before == (folder / "values.safetensors").stat().st_mtime_ns
    assert bytes_of(tmp_path / "store") == bytes_of(tmp_path / "alone") and table.scores.shape == (2, RECORDS)


def test_a_fit_that_lost_a_rank_goes_on(processes, tmp_path):
    found = results(start(processes, _lose, tmp_path, "values"))
    assert isinstance(found[0], RankLost)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert sorted(before) == ["bases.safetensors", "factors.safetensors"]
    found = together(processes, _fit, tmp_path, "linear")
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before
    wanted = _fit(Ranks(), None, "linear")
    torch.testing.assert_close(torch.tensor(found[0][0]), torch.tensor(wanted[0]), rtol=1e-9, atol=1e-12)


def _lose(ranks, folder, stage):
    """Fit until a stage, in which the second rank is killed."""
    from whence.curvature import stages

    run = stages.Stages.run

    def killed(self, name, make):
        if name == stage and ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return run(self, name, make)

    stages.Stages.run = killed
    _fit(ranks, folder, "linear")


# The command line

JOB = """
from tests.test_store import make_records, make_task as task

def data(): return make_records(18)
def queries(): return make_records(3, first=50)
"""


def test_torchrun_and_the_command_line(processes, tmp_path):
    job, store = tmp_path / "job.py", tmp_path / "store"
    job.write_text(JOB)
    options = [
        f"{job}:task",
        f"{job}:data",
        "--method",
        "lorif",
        "--rank",
        "4",
        "--rows-per-shard",
        "4",
        "--batch-positions",
        "99",
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "whence", "build"]
    done = subprocess.run([*command, *options, "-o", str(store)], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 18  # printed once
    assert main(["build", *options, "-o", str(tmp_path / "alone")]) == 0
    assert bytes_of(store) == bytes_of(tmp_path / "alone")

    asked = ["query", str(store), "--file", f"{job}:queries", "--trust", "--json"]
    first, second = together(processes, _command, tmp_path, asked)
    assert second == "" and json.loads(first) == json.loads(_command(Ranks(), tmp_path, asked))
    scored = ["score", str(store), f"{job}:queries", "--trust", "-o", str(tmp_path / "table")]
    first, second = together(processes, _command, tmp_path, scored)
    assert second == "" and json.loads(first)["train"] == 18
    fit = ["curvature", f"{job}:task", f"{job}:data", "-o", str(tmp_path / "factors")]
    first, second = together(processes, _command, tmp_path, fit)
    assert second == "" and json.loads(first)["fitted"].endswith("18 examples")
    with pytest.raises(AssertionError, match="found --ensemble for 2 processes; needed one process, since tables are added up"):
        together(processes, _command, tmp_path, [*scored, "--ensemble", str(tmp_path / "all")])


def _command(ranks, place, words):
    """What a rank prints."""
    if ranks.count > 1:
        os.environ |= {"RANK": str(ranks.rank), "WORLD_SIZE": str(ranks.count)}
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as said:
        assert main(words) == 0, said.getvalue()
    return out.getvalue()
