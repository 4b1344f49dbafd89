"""A service in front of workers: the answers of one process, given up when nobody waits, and whole after a kill."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import whence
from tests import scanners
from tests.settings import QUIET
from tests.test_serve import BUILD, METADATA, records
from tests.test_workers import forks, is_running, kill_after, processes_of, workers_of  # noqa: F401
from whence.errors import BadInput
from whence.load import load_task
from whence.serve.answer import Masks, answered
from whence.serve.catalog import Filter
from whence.serve.config import ServeConfig
from whence.serve.hosted_store import HostedStore, Question
from whence.store import open_store

SOURCE = Path(__file__).parents[1] / "src"
QUESTIONS = (
    Question(prompt="a cat", completion=" sat", k=3),
    Question(prompt="a cat", completion=" sat", k=20, filter=Filter(sources=("book",))),
    Question(prompt="", completion="the dog ran off", k=1, filter=Filter(sources=("web/*",), text="dog")),
)


@dataclasses.dataclass
class Asker:
    question: Question
    patience: float = float("inf")
    told: list = dataclasses.field(default_factory=list)

    @property
    def is_wanted(self):
        return len(self.told) < self.patience

    def report(self, phase, done, total):
        if phase == "scan":
            self.told.append((done, total))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_folder):
    place = tmp_path_factory.mktemp("served") / "store"
    origin = {"model": str(model_folder), "task": "causal_lm", "options": {}}
    whence.build(
        load_task(str(model_folder))[0],
        records(),
        place,
        origin=origin,
        config=whence.BuildConfig(**{**BUILD, "rows_per_shard": 1}),
        runtime=QUIET,
    )
    return place


@pytest.fixture(scope="module")
def desk(folder, model_folder):
    return HostedStore.load("store", open_store(folder), load_task(str(model_folder))[0], metadata=METADATA)


def answers(desk, workers=None, patience=float("inf")):
    desk = dataclasses.replace(desk, prepared=dataclasses.replace(desk.prepared, workers=workers))
    askers = [Asker(question, patience) for question in QUESTIONS]
    found = answered(desk, askers, [desk.example(question) for question in QUESTIONS], Masks(desk))
    return askers, [answer and {key: value for key, value in answer.items() if key != "seconds"} for answer in found]


def without_shares(answer):
    return {key: value for key, value in answer.items() if key != "shares"}


def assert_same(found, wanted):
    """Hits to the last bit; sums of sources in another order of adding."""
    for mine, theirs in zip(found, wanted, strict=True):
        assert without_shares(mine) == without_shares(theirs)
        for line, other in zip(mine["shares"], theirs["shares"], strict=True):
            assert line["source"] == other["source"]
            for key in ("positive", "negative", "share"):
                assert line[key] == pytest.approx(other[key], rel=1e-12, abs=1e-300)


def test_answers_are_those_of_one_process(desk, monkeypatch):
    _, wanted = answers(desk)
    with workers_of(scanners.Slow, 2, monkeypatch) as workers:
        askers, found = answers(desk, workers)
        assert_same(found, wanted)
        assert askers[0].told == [(done, 9) for done in range(1, 10)] == askers[2].told
        # Killed while they scan.
        thread = kill_after(2 * scanners.PAUSE, workers, 1)
        _, found = answers(desk, workers)
        thread.join()
        assert_same(found, wanted)
        assert workers.losses == 1
        # Nobody waits any more after a few shards; whoever asks next is answered.
        askers, found = answers(desk, workers, patience=2)
        assert found == [None] * 3 and len(askers[0].told) < 9
        assert_same(answers(desk, workers)[1], wanted)


def test_a_cluster_needs_a_number_of_workers():
    with pytest.raises(BadInput, match="found ray='auto' without workers; needed how many; do this: say how many workers"):
        ServeConfig(ray="auto")


def test_the_service_starts_and_ends_its_workers(folder, tmp_path):
    command = [sys.executable, "-m", "whence.cli", "serve", str(folder), "--port", "0", "--json", "--workers", "2"]
    service = subprocess.Popen(
        [*command, "--log", str(tmp_path / "log.sqlite")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert service.stdout is not None
        client = whence.serve.Client(json.loads(service.stdout.readline())["url"], seconds=60)
        wanted = client.attribute(" sat", prompt="a cat", k=3)
        for pid in workers_below(service.pid):
            os.kill(pid, signal.SIGKILL)
        found = client.attribute(" sat", prompt="a cat", k=3)
        assert found["proponents"] == wanted["proponents"] and found["shares"] == wanted["shares"]
        workers = workers_below(service.pid)
        assert len(workers) == 2
    finally:
        service.send_signal(signal.SIGTERM)
        _, errors = service.communicate(timeout=60)
    assert errors.count("another takes its place") == 2 and "Traceback" not in errors
    assert not any(is_running(pid) for pid in workers)


def workers_below(service):
    """Processes that a child of the service forked off."""
    children = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rsplit(")", 1)[1].split()[:2]
        except OSError:
            continue
        if state != "Z":
            children.setdefault(int(parent), []).append(int(path.parent.name))
    return [pid for child in children.get(service, []) for pid in children.get(child, [])]
