"""Workers as Ray actors, two real ones on this machine: the answer of one process, whatever is killed on the way."""

import builtins
import json
import os
import signal
import threading
import time

import pytest

from tests import scanners
from tests.test_store import make_records
from tests.test_workers import alone, asked_of, by, is_same, stores, workers_of  # noqa: F401
from whence.cli import main
from whence.errors import BadInput, StoreMismatch, WorkerLost
from whence.workers import RayCluster, Workers

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    """Two processors, nothing listens to the outside, nothing is asked of it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def pool(cluster):
    with Workers(1, ray="local") as workers:
        yield workers


def actors_of(workers):
    return [slot.worker.actor for slot in workers._assignment.slots if slot.worker is not None]


def kill_after(seconds, kill):
    def wait():
        time.sleep(seconds)
        kill()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("method", ["lorif", "trackstar", "aligned"])
def test_actors_find_what_one_process_finds(stores, pool, method):  # noqa: F811
    asked = asked_of(stores[method])
    assert is_same(by(pool, asked, 7), alone(asked, 7))


def test_what_an_actor_finds_wrong_is_said_here(stores, pool):  # noqa: F811
    import dataclasses

    asked = asked_of(stores["lorif"])
    other = dataclasses.replace(asked, store=dataclasses.replace(asked.store, files={}))
    with pytest.raises(StoreMismatch, match="found another store in"):
        by(pool, other, 4)
    assert is_same(by(pool, asked, 4), alone(asked, 4))


def test_killed_actors_cost_nothing_but_time(stores, pool, monkeypatch):  # noqa: F811
    pool.close()  # its processor is needed
    asked = asked_of(stores["lorif"])
    with workers_of(scanners.Slow, 2, monkeypatch, ray="local") as workers:
        assert is_same(by(workers, asked, 5), alone(asked, 5))
        victim = actors_of(workers)[0]
        thread = kill_after(2.5 * scanners.PAUSE, lambda: ray.kill(victim))
        assert is_same(by(workers, asked, 5), alone(asked, 5))
        thread.join()
        assert workers.losses == 1
        # The system's own kill, as when memory runs out.
        pid = ray.get(actors_of(workers)[1].do.remote("pid"))
        thread = kill_after(2.5 * scanners.PAUSE, lambda: os.kill(pid, signal.SIGKILL))
        assert is_same(by(workers, asked, 5), alone(asked, 5))
        thread.join()
        assert workers.losses == 2
        done = []
        assert by(workers, asked, 5, advance=done.append, is_wanted=lambda: not done) is None
        # Killed while it has nothing to do.
        ray.kill(actors_of(workers)[0])
        other = asked_of(stores["lorif"], make_records(2, first=54))
        assert is_same(by(workers, other, 5), alone(other, 5))


def test_a_mistake_in_an_actor_is_a_loss(stores, cluster, monkeypatch):  # noqa: F811
    monkeypatch.setattr("whence.workers.assignment._MOST_LOSSES", 1)
    said = pytest.raises(WorkerLost, match=r"found 1 workers that ended over shards 0 to 0 .*KeyError: 'a mistake'")
    with workers_of(scanners.Failing, 1, monkeypatch, ray="local") as workers, said:
        by(workers, asked_of(stores["lorif"]), 5)


def test_more_actors_than_processors(cluster):
    with pytest.raises(
        BadInput, match="found 3 workers for a Ray cluster of 2 processors; needed a processor for each; .*fewer workers"
    ):
        Workers(3, ray="local")
    assert ray.is_initialized()  # it was not started there


def test_the_command_asks_a_cluster(model_folder, cluster, tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": f"a cat sat {number}"}) + "\n" for number in range(12)))
    assert main(["build", str(model_folder), str(data), "-o", str(tmp_path / "s"), "--rows-per-shard", "4", "--rank", "4"]) == 0
    capsys.readouterr()
    answers = []
    for more in ([], ["--workers", "1", "--ray", "local"]):
        assert main(["query", str(tmp_path / "s"), "--text", "a cat sat", "-k", "3", "--json", *more]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1]


def test_without_ray_it_is_said_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def without(name, *more):
        if name == "ray":
            raise ImportError("No module named 'ray'")
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BadInput, match=r"found no package ray; .*do this: pip install 'whence-tda\[ray\]'"):
        RayCluster("local")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere"])
def test_no_cluster_at_the_address(monkeypatch, address):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(BadInput, match=f"found no Ray cluster at '{address}' .*`ray start --head`"):
        RayCluster(address)
