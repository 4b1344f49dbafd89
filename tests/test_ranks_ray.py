"""Builds and fits by Ray actors: the bytes of one process, whatever is killed on the way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import torch

import whence
from tests.test_store import SMALL, contents, make_records, make_task
from whence.cli import main
from whence.errors import BadInput, RankLost, StoreMismatch, WorkerLost
from whence.progress import Meter, Stage, staged
from whence.settings import OnRay
from whence.store import check_shared, read_tensors, starter
from whence.workers.engine import READY, LostWorker
from whence.workers.rank_process import News, RankOrder, RankProcess
from whence.workers.ranks_on_ray import SharedJob, _Crew, _Shown

ROOT = Path(__file__).parents[1]
JOBS = ROOT / "tests" / "ray_jobs.py"
CONFIG = whence.BuildConfig(method="logra-pca", batch_positions=16, **SMALL)
RECORDS = 42  # eleven shards of four rows, the last of two


def origin_of(function):
    return {"model": f"{JOBS}:{function}", "task": "classification", "options": {}}


def build(folder, function="plain", **more):
    return whence.build(
        make_task(),
        make_records(RECORDS),
        folder,
        origin=origin_of(function),
        config=CONFIG,
        runtime=whence.Runtime(quiet="ray" in more),
        **more,
    )


def bytes_of(folder):
    return {name: data for name, data in contents(Path(folder)).items() if name != ".leases"}


# The driver, with actors that only say what they are told to


class Worker:
    def __init__(self, number):
        self.number = number
        self.orders = []
        self.is_ended = False

    def send(self, order):
        self.orders.append(order)

    def end(self):
        self.is_ended = True


class Engine:
    """Plays what actors say: at each look a list of (number of the actor, answer); actors are numbered as they start."""

    def __init__(self, *looks):
        self.looks = list(looks)
        self.workers = []
        self.news = {}

    def start(self):
        self.workers.append(Worker(len(self.workers)))
        return self.workers[-1]

    def answers(self, workers, seconds):
        return [(self.workers[number], answer) for number, answer in self.looks.pop(0)]

    def aside(self, workers, question, seconds):
        return {worker: ("host", 7) if question == "meeting" else self.news.pop(worker.number, News()) for worker in workers}


@pytest.fixture
def crew(monkeypatch):
    """A driver that looks at the news every time."""
    monkeypatch.setattr("whence.workers.ranks_on_ray._NEWS_SECONDS", 0.0)
    stack = ExitStack()

    def made(engine, *, talks, parts_done=lambda: 0, rooms=lambda: 9):
        job = SharedJob(run=print, folder=Path(), talks=talks, parts_done=parts_done)
        return _Crew(engine, job, _Shown(stack, False), rooms)

    with stack:
        yield made


def orders_of(engine):
    return [[(order.rank, order.count) for order in worker.orders] for worker in engine.workers]


LOST = LostWorker("its node has died")


def test_ranks_that_do_not_talk_begin_and_are_replaced_one_by_one(crew, caplog):
    engine = Engine([(0, READY)], [(0, LOST), (1, READY)], [(2, READY)], [(2, "the store")])
    assert crew(engine, talks=False).result(2) == "the store"
    assert orders_of(engine) == [[(0, 2)], [(1, 2)], [(0, 2)]]
    assert "rank 0 is lost (its node has died); another actor takes its place, and others go on" in caplog.text


def test_ranks_that_talk_begin_together_and_again_with_those_that_there_is_room_for(crew):
    rooms = [9, 1]  # asked while some are not ready
    engine = Engine(
        [(0, READY)],
        [(1, READY)],
        [(0, RankLost(found="rank 0 waiting", do="run again")), (1, LOST)],
        [(2, READY)],
        [(2, "the fit")],
    )
    assert crew(engine, talks=True, rooms=lambda: rooms.pop(0)).result(2) == "the fit"
    assert orders_of(engine) == [[(0, 2)], [(1, 2)], [(0, 1)], []]
    assert [worker.is_ended for worker in engine.workers] == [True, True, False, True]
    assert engine.workers[0].orders[0].meeting == ("host", 7)


def test_ranks_that_are_lost_again_and_again_are_an_error_unless_something_was_finished(crew):
    looks = [look for number in range(5) for look in ([(number, READY)], [(number, LOST)])]
    with pytest.raises(WorkerLost, match=r"found 3 actors that ended .*\(the last: its node has died\); needed one that gets"):
        crew(Engine(*looks), talks=False).result(1)
    parts = iter(range(9))
    engine = Engine(*looks, [(5, READY)], [(5, "done")])
    assert crew(engine, talks=False, parts_done=lambda: next(parts)).result(1) == "done"


def test_an_actor_that_does_not_find_whence_is_an_error_at_once(crew):
    with pytest.raises(
        BadInput, match=r"found an actor that cannot import what it runs \(ModuleNotFoundError: No module named 'wh"
    ):
        crew(Engine([(0, LostWorker("ModuleNotFoundError: No module named 'whence'"))]), talks=False).result(1)


def test_another_version_of_whence_is_refused(tmp_path):
    with pytest.raises(BadInput, match="found whence .* on .*, and 0 where the command was started; needed the same version"):
        RankProcess(print, tmp_path, None, 1, 0)(RankOrder(0, 1, version="0"))


def test_the_driver_says_what_ranks_say_once_and_adds_up_their_meters(crew, capsys, monkeypatch):
    seen, advance = [], Meter.advance

    def seen_too(self, steps):
        seen.append((self.title, self.total, steps))
        advance(self, steps)

    monkeypatch.setattr(Meter, "advance", seen_too)
    engine = Engine([(0, READY), (1, READY)], [], [(1, "done")])
    engine.news = {
        0: News(("3 examples",), {"gradients (rank 0 of 2)": (3, 10)}),
        1: News(("3 examples", "a note"), {"axes": (5, 5), "gradients (rank 1 of 2)": (4, 10)}),
    }
    # What one rank did alone is shown before what the other has gone on to.
    stages = [Stage("learning", ("axes",)), Stage("compressing", ("gradients",))]
    with staged(stages):
        crew(engine, talks=False).result(2)
    assert capsys.readouterr().err.splitlines() == ["1 of 2: learning", "3 examples", "a note", "2 of 2: compressing"]
    assert seen == [("gradients", 20, 7)]


# What is refused


@pytest.mark.parametrize("origin", [None, {}, {"data": "x"}])
def test_a_model_that_only_this_process_has(tmp_path, origin):
    said = pytest.raises(
        BadInput, match=r"found a model that only this process has; needed a name by .*load_task\('path/to/model"
    )
    with said:
        whence.build(make_task(), make_records(4), tmp_path, origin=origin, config=CONFIG, ray=OnRay(address="nowhere"))
    with said:
        whence.pipeline.fit_curvature(make_task(), make_records(4), tmp_path, origin=origin, ray=OnRay(address="nowhere"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--workers", "2"], ["--worker-cpus", "2"], ["--worker-gpus", "1"]])
@pytest.mark.parametrize("verb", ["build", "curvature"])
def test_actors_without_a_cluster(run, verb, words):
    assert f"found {words[0]} without --ray; needed a Ray cluster" in run(verb, "m", "d", "-o", "s", *words, status=2)


def test_ray_beside_what_it_cannot_be_beside(run, monkeypatch):
    words = ["build", "m", "d", "-o", "s", "--ray", "local"]
    assert "found --shard-model with --ray; needed a model that each actor has whole" in run(*words, "--shard-model", status=2)
    assert "found 0 actors of 1 processors and 0 GPUs; needed 1 actor or more" in run(*words, "--workers", "0", status=2)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "found --ray in a process of torchrun" in run(*words, status=2)


def test_a_folder_that_another_machine_does_not_see(tmp_path):
    said = pytest.raises(
        BadInput, match="that is not the one of the same name where the command was started; .*that all machines see"
    )
    with said:  # not there
        check_shared(tmp_path, seconds=0)
    (tmp_path / ".leases").touch()
    with said:  # of an earlier build, or no lock is seen
        check_shared(tmp_path, seconds=0)
    look = f"from whence.store import check_shared; from pathlib import Path; check_shared(Path({str(tmp_path)!r}))"
    with starter(tmp_path):
        subprocess.run([sys.executable, "-c", look], check=True)


# Real actors, of a cluster of two nodes of this machine

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """A head that has room for one actor, and a node for another that can be killed; and the folder of what jobs note."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    notes = tmp_path_factory.mktemp("notes")
    os.environ["RAY_JOBS_NOTES"] = str(notes)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    yield cluster, node, notes
    cluster.shutdown()


def sealed(folder):
    return len(list(Path(folder).glob("shards/*.json")))


def when(is_time, do):
    """Do something in another thread as soon as it is time."""

    patience = time.monotonic() + 120

    def wait():
        while not is_time():
            if time.monotonic() > patience:
                return
            time.sleep(0.02)
        do()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def kill_node(cluster, node):
    """All of its processes at once, as when a machine loses its power."""
    raylet = node.all_processes["raylet"][0].process.pid
    workers = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended since
            name, _, rest = path.read_text().rpartition(")")
            workers += [int(name.split()[0])] if int(rest.split()[1]) == raylet else []
    assert workers
    for pid in [*workers, raylet]:
        os.kill(pid, signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)


def rows_of(folder):
    """Bytes of a store but for the name under which it has its model, which the manifest's digest has, too."""
    return {name: data for name, data in bytes_of(folder).items() if name not in ("blueprint.json", "manifest.json")}


@pytest.mark.skipif(sys.platform != "linux", reason="finds a node's processes in /proc")
def test_a_killed_node_costs_its_shard_and_nothing_else(nodes, tmp_path, capfd, caplog):
    cluster, node, notes = nodes
    build(tmp_path / "alone")
    capfd.readouterr()
    folder, on = tmp_path / "store", OnRay(address=cluster.address)
    thread = when(lambda: sealed(folder) >= 3, lambda: kill_node(cluster, node))
    store = build(folder, "slow", ray=on)
    thread.join()
    assert len(store) == RECORDS and rows_of(folder) == rows_of(tmp_path / "alone")
    # Every shard was made once, but for the one that the node may have had.
    made = [note.name.split(".") for note in notes.iterdir() if note.suffix != ".ready"]
    assert sorted({int(shard) for shard, _ in made}) == list(range(11)) and len(made) <= 12
    assert len({pid for _, pid in made}) == 2
    assert "is lost (The actor" in caplog.text and "another actor takes its place" in caplog.text
    assert capfd.readouterr() == ("", "")  # nothing of Ray's own
    with pytest.raises(
        StoreMismatch, match=r"found other weights in .*ray_jobs.py:other than those of the task that was passed"
    ):
        build(tmp_path / "other", "other", ray=on)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Two processors of this machine."""
    ray.shutdown()
    monkeypatch.setenv("RAY_JOBS_NOTES", str(tmp_path))  # where some jobs say who they are
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_the_command_builds_the_bytes_of_one_process(model_folder, data_file, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_bytes(data_file.read_bytes())
    words = ["build", str(model_folder), "data.jsonl", "--rows-per-shard", "2", "--batch-positions", "64", "--dtype", "float32"]
    assert main([*words, "-o", "one"]) == 0
    alone = capfd.readouterr().err
    assert main([*words, "-o", "two", "--ray", "local", "--workers", "2"]) == 0
    captured = capfd.readouterr()
    assert bytes_of("one") == bytes_of("two")
    assert json.loads(captured.out)["rows"] == 12
    stages = [[line for line in text.splitlines() if " of 5: " in line] for text in (alone, captured.err)]
    assert stages[0] == stages[1] and len(stages[1]) >= 4
    assert "2 actors on Ray" in captured.err and "12 examples; " in captured.err and "disk: " in captured.err
    assert "ray" not in captured.err.replace("on Ray", "").lower()
    # What is wrong is said in one line, and nothing is left that one would have to clean up.
    assert main(["build", str(model_folder), "none.jsonl", "-o", "three", "--ray", "local", "--workers", "1"]) == 2
    assert capfd.readouterr().err.splitlines()[-1] == (
        "whence: found no data at none.jsonl; needed a file or folder; do this: check the path"
    )


@pytest.mark.slow
def test_actors_that_end_over_a_shard_are_an_error_in_one_line(cluster, tmp_path):
    with pytest.raises(
        WorkerLost, match=r"found 3 actors that ended .*\(the last: The actor is dead because its worker process"
    ):
        build(tmp_path / "store", "deadly", ray=OnRay(address="local", actors=1))


@pytest.mark.slow
def test_a_fit_goes_on_after_a_killed_actor(cluster, tmp_path, caplog):
    records, task = make_records(RECORDS), make_task()
    fit = whence.pipeline.fit_curvature
    wanted = fit(task, records, tmp_path / "one", runtime=whence.Runtime(quiet=True, batch_positions=8))
    folder = tmp_path / "two"

    def kill():
        os.kill(int(next(tmp_path.glob("*.pid")).stem), signal.SIGKILL)

    thread = when((folder / "factors.safetensors").exists, kill)
    found = fit(
        task, records, folder,
        origin=origin_of("slow_passes"), ray=OnRay(address="local"), runtime=whence.Runtime(quiet=True, batch_positions=8),
    )  # fmt: skip
    thread.join()
    assert "all begin again after the last whole stage" in caplog.text
    assert len(found.blocks) == len(wanted.blocks) == 3
    for stage in ("factors", "values"):
        mine, theirs = (read_tensors(folder / f"{stage}.safetensors") for folder in (folder, tmp_path / "one"))
        for name, tensor in theirs.items():
            torch.testing.assert_close(mine[name], tensor, rtol=1e-9, atol=1e-12)
