"""The query log in bad times: clocks that jump, disks that are full, files that are gone, stores that are not what they were."""

import sqlite3
import time
from types import SimpleNamespace

import pytest

import whence
from tests.settings import QUIET
from tests.test_serve import ASKED, BUILD, desk, folder, logged, posted, records, service, store, task  # noqa: F401
from whence.errors import BadInput, NonFinite, StoreCorrupt
from whence.serve import app as app_module
from whence.serve import log_clock
from whence.serve import queue as line_module
from whence.serve.hosted_store import HostedStore
from whence.serve.log import QueryLog
from whence.serve.responses import Refused

DAY = 86_400.0


@pytest.fixture
def clock(monkeypatch):
    """A wall clock and one that only goes on, for the log."""
    found = SimpleNamespace(wall=time.time(), passed=1000.0)
    monkeypatch.setattr(log_clock, "time", SimpleNamespace(time=lambda: found.wall, monotonic=lambda: found.passed))

    def wait(days):
        found.wall, found.passed = found.wall + days * DAY, found.passed + days * DAY

    found.wait = wait
    return found


def opened(tmp_path, days=30):
    return QueryLog(str(tmp_path / "log.sqlite"), retention_days=days)


def kept(log):
    log.purge()
    return [name for name in ("a", "b", "c") if log.answer(name)]


# --- time


@pytest.mark.parametrize("jump", [0.9, 40, 3650])
def test_a_clock_that_jumps_ahead_deletes_nothing(tmp_path, clock, jump):
    log = opened(tmp_path)
    log.add([logged("a", clock.wall, [])])
    clock.wall += jump * DAY
    assert kept(log) == ["a"]
    log.add([logged("b", clock.wall, [])])
    clock.wait(0.1)
    assert kept(log) == ["a", "b"]
    log.close()
    for _ in range(3):  # and a new start believes it no more
        log = opened(tmp_path)
        assert kept(log) == ["a", "b"]
        log.close()
    clock.wall -= jump * DAY  # set right again
    log = opened(tmp_path)
    clock.wait(0.5)
    assert kept(log) == ["a", "b"]
    clock.wait(30)
    assert kept(log) == []


def test_answers_that_a_wrong_clock_dated_age_like_others(tmp_path, clock):
    log = opened(tmp_path)
    clock.wall -= 3000 * DAY
    log.add([logged("a", clock.wall, [])])
    clock.wall += 6000 * DAY
    log.add([logged("b", clock.wall, [])])
    clock.wall -= 3000 * DAY
    assert kept(log) == ["a", "b"]
    clock.wait(29)
    assert kept(log) == ["a", "b"]
    clock.wait(2)
    assert kept(log) == []


def test_a_clock_that_was_set_is_believed_after_a_day(tmp_path, clock):
    log = opened(tmp_path)
    log.add([logged("a", clock.wall, [])])
    clock.wall += 40 * DAY
    assert kept(log) == ["a"]
    clock.wait(0.9)
    assert kept(log) == ["a"]
    clock.wait(0.2)
    assert kept(log) == []


def test_time_passes_while_nothing_runs(tmp_path, clock):
    log = opened(tmp_path)
    log.add([logged("a", clock.wall, [])])
    log.close()
    clock.wall += 29 * DAY
    log = opened(tmp_path)
    log.add([logged("b", clock.wall, [])])
    assert kept(log) == ["a", "b"]
    log.close()
    clock.wall += 2 * DAY
    assert kept(opened(tmp_path)) == ["b"]


# --- room


def test_a_log_that_grows_too_large_loses_its_oldest_answers(tmp_path):
    log = QueryLog(str(tmp_path / "log.sqlite"), retention_days=1, max_bytes=1_000_000)
    for number in range(400):
        log.add([{**logged(f"n{number}", time.time() - number, [("x", 1.0, 0.0)]), "notes": "x" * 10_000}])
    assert log.answer("n399") and not log.answer("n0")
    assert (tmp_path / "log.sqlite").stat().st_size < 5_000_000
    log.close()
    log = QueryLog(str(tmp_path / "log.sqlite"), retention_days=1, max_bytes=100_000)
    assert not log.answer("n300")  # a smaller limit holds from the start
    with sqlite3.connect(tmp_path / "log.sqlite") as known:
        assert known.execute("SELECT count(*) FROM shares WHERE query NOT IN (SELECT id FROM queries)").fetchone() == (0,)


@pytest.fixture
def logs(monkeypatch):
    """The logs of the services of this test, in order."""
    made = []
    monkeypatch.setattr(app_module, "QueryLog", lambda *args, **options: made.append(QueryLog(*args, **options)) or made[-1])
    return made


def fill(log):
    """From now on the file may not grow: SQLite says what it says of a full disk."""
    (pages,) = log.writer.execute("PRAGMA page_count").fetchone()
    log.writer.execute(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_is_told_and_over_once_there_is_room(service, logs, tmp_path):  # noqa: F811
    client = service(log=str(tmp_path / "log.sqlite"))
    before = posted(client, ASKED)
    fill(logs[0])
    responses = []
    while not responses or responses[-1].status_code == 200:  # until the last page is used up
        responses.append(client.post("/v1/stores/store/attribute", json={**ASKED, "k": 9}))
    full = responses[-1]
    assert full.status_code == 507 and int(full.headers["retry-after"]) > 0
    assert full.json()["error"]["found"] == "no space left for the query log"
    assert str(tmp_path) not in full.text
    health = client.get("/health")
    assert health.status_code == 503 and (health.json()["status"], health.json()["log"]) == ("failing", "full")
    assert client.get(f"/v1/answers/{before['id']}").status_code == 200  # what is there is read all the same
    logs[0].writer.execute("PRAGMA max_page_count = 1000000")
    after = posted(client, ASKED)
    assert client.get(f"/v1/answers/{after['id']}").status_code == 200
    assert client.get("/health").json()["log"] == "ok"
    # Whoever was answered is in the log, and nobody else.
    answered = {response.json()["id"] for response in responses if response.status_code == 200} | {before["id"], after["id"]}
    with sqlite3.connect(tmp_path / "log.sqlite") as known:
        assert {name for (name,) in known.execute("SELECT id FROM queries")} == answered


def test_a_full_disk_costs_no_scans(service, logs, tmp_path, monkeypatch):  # noqa: F811
    client = service(log=str(tmp_path / "log.sqlite"))
    scans, real = [], line_module.answered
    monkeypatch.setattr(line_module, "answered", lambda *rest: (scans.append(1), real(*rest))[1])
    monkeypatch.setattr(logs[0], "writer", broken(logs[0].writer, "disk I/O error"))
    monkeypatch.setattr(logs[0], "_open", lambda: None)
    monkeypatch.setattr(logs[0], "_close", lambda: None)
    for _ in range(3):
        assert client.post("/v1/stores/store/attribute", json=ASKED).status_code == 503
    assert len(scans) == 1 and client.get("/health").json()["log"] == "not writable"


def broken(connection, message):
    class Broken:
        def __enter__(self):
            return connection.__enter__()

        def __exit__(self, *told):
            return connection.__exit__(*told)

        def execute(self, *_):
            raise sqlite3.OperationalError(message)

        executemany = execute

    return Broken()


def test_a_log_that_lost_its_file_is_opened_anew(tmp_path):
    log = opened(tmp_path)
    log.writer.close()
    with pytest.raises(Refused, match="a query log that cannot be written"):
        log.add([logged("a", time.time(), [])])
    assert log.trouble
    log.try_again()
    log.add([logged("b", time.time(), [])])
    assert kept(log) == ["b"] and not log.trouble


def test_logs_of_the_first_version_are_taken_over(tmp_path):
    path = tmp_path / "log.sqlite"
    with sqlite3.connect(path) as known:
        known.executescript("""
            CREATE TABLE queries (id TEXT PRIMARY KEY, time REAL NOT NULL, store TEXT NOT NULL, digest TEXT NOT NULL, prompt TEXT NOT NULL,
                completion TEXT NOT NULL, measurement REAL NOT NULL, seconds REAL NOT NULL, answer TEXT NOT NULL) WITHOUT ROWID;
            CREATE INDEX queries_by_time ON queries (store, time);
            CREATE TABLE shares (query TEXT NOT NULL REFERENCES queries (id) ON DELETE CASCADE, source TEXT NOT NULL,
                positive REAL NOT NULL, negative REAL NOT NULL, PRIMARY KEY (query, source)) WITHOUT ROWID;
            PRAGMA user_version = 1;
        """)
        for name, days in (("a", 1), ("b", 40)):
            known.execute("INSERT INTO queries VALUES (?, ?, 's', 'd', '', '', 0, 0, '{}')", (name, time.time() - days * DAY))
            known.execute("INSERT INTO shares VALUES (?, 'x', 1, 0)", (name,))
    log = opened(tmp_path)
    assert log.answer("a") == {} and log.answer("b") is None
    assert log.shares("d", 0, time.time(), 9)["shares"] == [{"source": "x", "positive": 1.0, "negative": 0.0, "answers": 1}]
    log.add([logged("c", time.time(), [("x", 2.0, 0.0)])])
    assert log.shares("d", 0, time.time() + 1, 9)["questions"] == 2


# --- other stores


@pytest.fixture(scope="module")
def rebuilt(task, model_folder, tmp_path_factory):  # noqa: F811
    """The store built anew, alike in all but its texts."""
    origin = {"model": str(model_folder), "task": "causal_lm", "options": {}}
    other = [{**record, "text": record["text"][::-1]} for record in records()]
    return whence.build(
        task,
        other,
        tmp_path_factory.mktemp("rebuilt") / "store",
        origin=origin,
        config=whence.BuildConfig(**BUILD),
        runtime=QUIET,
    )


def test_answers_are_of_the_very_store_that_was_asked(service, desk, task, rebuilt, tmp_path):  # noqa: F811
    path = str(tmp_path / "log.sqlite")
    found = posted(service(log=path), ASKED)
    assert rebuilt.blueprint.digest() == desk.prepared.store.blueprint.digest()
    other = service([HostedStore.load("store", rebuilt, task)], log=path)
    told = other.get(f"/v1/answers/{found['id']}")
    assert told.status_code == 404
    assert told.json()["error"]["found"] == "an answer of a store that has changed since, or is not served any more"
    shares = other.get("/v1/stores/store/shares").json()
    assert (shares["questions"], shares["shares"]) == (0, [])
    posted(other, ASKED)
    assert other.get("/v1/stores/store/shares").json()["questions"] == 1
    # The same store under another name is the same store.
    named = service([HostedStore.load("store", rebuilt, task), HostedStore.load("first", desk.prepared.store, task)], log=path)
    again = named.get(f"/v1/answers/{found['id']}").json()
    assert again["store"] == "first" and again["proponents"] == [
        {key: value for key, value in hit.items() if key != "time"} for hit in found["proponents"]
    ]
    assert named.get("/v1/stores/first/shares").json()["questions"] == 1


def test_a_store_that_cannot_be_read_is_told_and_nobody_is_told_where_it_is(service, monkeypatch):  # noqa: F811
    client = service()
    found = posted(client, ASKED)

    def gone(*_, **__):
        raise StoreCorrupt(found="a damaged file /secret/place", needed="the bytes that were sealed", do="restore it")

    paths = ("/v1/stores/store/examples/t1", f"/v1/answers/{found['id']}")
    with monkeypatch.context() as patch:
        patch.setattr(line_module, "answered", gone)
        patch.setattr(whence.Store, "examples_of", gone)
        responses = [client.post("/v1/stores/store/attribute", json=ASKED), *map(client.get, paths)]
        for response in responses:
            assert response.status_code == 503 and "secret" not in response.text
            assert response.json()["error"]["found"].startswith("the store store, which cannot be read")
        health = client.get("/health")
        assert health.status_code == 503 and health.json()["unreadable"] == ["store"] and health.json()["status"] == "failing"
        # A mistake of the library's that would be the asker's elsewhere names files as well.
        patch.setattr(line_module, "answered", lambda *_: (_ for _ in ()).throw(BadInput(found="/secret", do="no")))
        response = client.post("/v1/stores/store/attribute", json=ASKED)
        assert response.status_code == 503 and "secret" not in response.text
    posted(client, ASKED)
    assert client.get("/health").json()["status"] == "ok"


def test_health_sees_that_a_store_is_gone_before_anybody_asks(service, task, tmp_path):  # noqa: F811
    client = service(
        [
            HostedStore.load(
                "gone",
                whence.build(task, records(), tmp_path / "gone", config=whence.BuildConfig(**BUILD), runtime=QUIET),
                task,
            )
        ]
    )
    assert client.get("/health").json()["unreadable"] == []
    (tmp_path / "gone").rename(tmp_path / "elsewhere")
    until = time.monotonic() + 20
    while client.get("/health").status_code == 200 and time.monotonic() < until:
        time.sleep(0.1)
    assert client.get("/health").json()["unreadable"] == ["gone"]
    assert client.post("/v1/stores/gone/attribute", json=ASKED).status_code == 503
    (tmp_path / "elsewhere").rename(tmp_path / "gone")
    while client.get("/health").status_code != 200 and time.monotonic() < until:
        time.sleep(0.1)
    assert client.get("/health").json()["status"] == "ok"
    posted(client, ASKED, store="gone")


def test_a_question_without_numbers_is_the_askers_alone(service, monkeypatch):  # noqa: F811
    client, real = service(), line_module.answered

    def breaks(desk, askers, *rest):  # noqa: F811
        if any(asker.question.completion == " bad" for asker in askers):
            raise NonFinite(found="NaN in /secret", needed="numbers", do="no")
        return real(desk, askers, *rest)

    monkeypatch.setattr(line_module, "answered", breaks)
    response = client.post("/v1/stores/store/attribute", json={**ASKED, "completion": " bad"})
    assert response.status_code == 422 and "secret" not in response.text
    assert client.get("/health").json()["status"] == "ok"
