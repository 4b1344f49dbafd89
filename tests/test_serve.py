"""The service: answers are those of `whence.query`, limits hold, nothing leaves that should not, nothing kept is lost."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from starlette.testclient import TestClient

import whence
from tests.settings import QUIET
from whence.cli import main
from whence.errors import BadInput, Unsupported
from whence.load import load_task
from whence.pipeline import with_words
from whence.serve import queue as line_module
from whence.serve.answer import Masks
from whence.serve.app import create_app
from whence.serve.catalog import Catalog, Filter
from whence.serve.client import HitFilter
from whence.serve.config import ServeConfig, check_token
from whence.serve.hosted_store import HostedStore
from whence.serve.log import QueryLog
from whence.serve.metrics import Metrics
from whence.serve.question import Question
from whence.serve.queue import Full, Job, QuestionQueue
from whence.serve.run import named_folders, run_app
from whence.settings import Writing
from whence.store import reader as reader_module

SOURCE = Path(__file__).parent.parent / "src"
HOSTILE = "<script>alert(1)</script> é🙂"
TEXTS = {
    "book": ["a cat sat", "the dog ran off", "one bird sleeps", "a cat sleeps here"],
    "web/news": ["the dog sat", HOSTILE, "a bird ran"],
    "": ["no source at all", "a dog, a cat"],
}
METADATA = [{"id": "t0", "time": "2024-01-01"}, {"id": "t4", "time": "2024-03-05T12:00:00Z", "url": "x"}]
BUILD = {"method": "logra", "rank": 8, "dtype": "float32", "rows_per_shard": 4}
ASKED = {"prompt": "a cat", "completion": " sat"}


def records():
    pairs = [(source, text) for source, texts in TEXTS.items() for text in texts]
    return [{"id": f"t{number}", "source": source, "text": text} for number, (source, text) in enumerate(pairs)]


@pytest.fixture(scope="module")
def task(model_folder):
    return load_task(str(model_folder))[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, task, model_folder):
    place = tmp_path_factory.mktemp("served") / "store"
    whence.build(
        task,
        records(),
        place,
        origin={"model": str(model_folder), "task": "causal_lm", "options": {}},
        config=whence.BuildConfig(**BUILD),
        runtime=QUIET,
    )
    return place


@pytest.fixture(scope="module")
def store(folder):
    return whence.open_store(folder)


@pytest.fixture(scope="module")
def desk(store, task):
    return HostedStore.load("store", store, task, metadata=METADATA, questions=[{"prompt": "a cat", "completion": ""}])


@pytest.fixture
def service(desk):
    """Makes clients of services with some options; stops them after the test."""
    opened = []

    def make(desks=(desk,), token=None, accounts=(), **options):
        client = TestClient(
            create_app(desks, ServeConfig(**{"log": ":memory:", **options}), token=token, accounts=accounts),
            base_url="http://127.0.0.1", raise_server_exceptions=False,
        )  # fmt: skip
        opened.append(client)
        return client.__enter__()

    yield make
    for client in opened:
        client.__exit__(None, None, None)


def posted(client, body, verb="attribute", store="store", status=200):
    response = client.post(f"/v1/stores/{store}/{verb}", json=body)
    assert response.status_code == status, response.text
    return response.json()


def ranking(scores_N, allowed, k, sign):
    """By a sort that anyone can read."""
    pairs = sorted(((float(scores_N[row]), row) for row in allowed), key=lambda pair: (-sign * pair[0], pair[1]))
    return [row for score, row in pairs[:k] if score * sign > 0]


# --- answers


def test_an_answer_is_that_of_query(service, store, task):
    found = posted(service(), {**ASKED, "k": 3, "tokens": True})
    wanted = whence.query(store, task, [ASKED], k=3, tokens=True, runtime=QUIET).to_dict()
    (query,) = wanted["queries"]
    for side in ("proponents", "opponents"):
        assert [hit["id"] for hit in found[side]] == [hit["id"] for hit in query[side]]
        assert [hit["score"] for hit in found[side]] == pytest.approx([hit["score"] for hit in query[side]], rel=1e-5)
        assert [hit["text"] for hit in found[side]] == [hit["text"] for hit in query[side]]
        for mine, theirs in zip(found[side], query[side], strict=True):
            assert ("tokens" in mine) == ("tokens" in theirs)
            total = sum(token["score"] for token in theirs.get("tokens", ()))
            assert sum(token["score"] for token in mine.get("tokens", ())) == pytest.approx(total, rel=1e-5)
    assert any("tokens" in hit for hit in found["proponents"])
    assert found["measurement"] == pytest.approx(query["measurement"], rel=1e-5)
    assert (found["unit"], found["method"], found["notes"]) == (wanted["unit"], wanted["method"], wanted["notes"])


def test_why_this_and_not_that(service, store, task):
    client = service()
    found = posted(client, {**ASKED, "foil": " ran", "k": 3})
    (query,) = whence.query(store, task, [{**ASKED, "foil": " ran"}], k=3, runtime=QUIET).to_dict()["queries"]
    for side in ("proponents", "opponents"):
        assert [hit["id"] for hit in found[side]] == [hit["id"] for hit in query[side]]
        assert [hit["score"] for hit in found[side]] == pytest.approx([hit["score"] for hit in query[side]], rel=1e-5)
    assert found["measurement"] == pytest.approx(query["measurement"], rel=1e-5) and found["foil"] == " ran"
    alone = posted(client, {**ASKED, "k": 3})
    assert "foil" not in alone and alone["measurement"] != pytest.approx(found["measurement"])
    text = json.dumps(posted(client, {**ASKED, "foil": " sat"}, status=400))
    assert "a foil that is the completion itself" in text
    assert "a foil for one token" in json.dumps(posted(client, {**ASKED, "foil": " ran", "token": 2}, status=400))


def test_a_whole_text_may_be_asked_about(service, store, task):
    found = posted(service(), {"completion": "the dog sat", "k": 2})
    (query,) = whence.query(store, task, ["the dog sat"], k=2, runtime=QUIET).to_dict()["queries"]
    assert [hit["id"] for hit in found["proponents"]] == [hit["id"] for hit in query["proponents"]]
    assert [token["is_scored"] for token in found["tokens"]] == [False] + [True] * 10


def test_the_scores_of_tokens_add_up_to_the_completions(service, store, task):
    """The measurement is a sum over tokens, and so is each example's score."""
    client = service()
    whole = posted(client, {**ASKED, "k": 9})
    singles = [posted(client, {**ASKED, "k": 9, "token": place + 1}) for place in range(4)]
    assert [(token["start"], token["stop"]) for token in whole["tokens"]] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert sum(one["measurement"] for one in singles) == pytest.approx(whole["measurement"], rel=1e-5)

    def scores(answer):
        return {hit["row"]: hit["score"] for hit in answer["proponents"] + answer["opponents"]}

    for row, score in scores(whole).items():
        assert sum(scores(one)[row] for one in singles) == pytest.approx(score, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("chosen", "allowed"),
    [
        ({"sources": ["book"]}, [0, 1, 2, 3]),
        ({"sources": ["web*", ""]}, None),
        ({"sources": ["web*"]}, [4, 5, 6]),
        ({"text": "CAT"}, [0, 3, 8]),
        ({"text": "<script>"}, [5]),
        ({"since": "2024-01-02"}, [4]),
        ({"until": "2024-03-05T12:00:00Z"}, [0]),
        ({"since": "2024-01-01", "text": "sat", "sources": ["*o*"]}, [0]),
        ({"sources": ["book"], "text": "nowhere"}, []),
    ],
)
def test_filters(service, store, task, chosen, allowed):
    client = service()
    if allowed is None:  # an empty name is no name
        posted(client, {**ASKED, "filter": chosen}, status=422)
        return
    scores = whence.score_table(store, task, [ASKED], runtime=QUIET).scores[0]
    found = posted(client, {**ASKED, "k": 2, "filter": chosen})
    assert [hit["row"] for hit in found["proponents"]] == ranking(scores, allowed, 2, 1)
    assert [hit["row"] for hit in found["opponents"]] == ranking(scores, allowed, 2, -1)
    assert found["num_allowed"] == len(allowed)


def test_shares_are_sums_per_source(service, store, task):
    found = posted(service(), {**ASKED, "filter": {"sources": ["book"]}})["shares"]
    scores = whence.score_table(store, task, [ASKED], runtime=QUIET).scores[0].tolist()
    wanted = {}
    for record, score in zip(records(), scores, strict=True):
        up, down = wanted.get(record["source"], (0.0, 0.0))
        wanted[record["source"]] = (up + max(score, 0), down + min(score, 0))
    total = sum(up for up, _ in wanted.values())
    assert {one["source"] for one in found} == set(wanted)
    for one in found:
        assert (one["positive"], one["negative"]) == pytest.approx(wanted[one["source"]], rel=1e-5, abs=1e-9)
        assert one["share"] == pytest.approx(one["positive"] / total, rel=1e-5)


def test_sources_beyond_those_listed_are_one_line(service, task, tmp_path):
    many = [{"id": str(number), "source": f"s{number}", "text": f"text {number}"} for number in range(60)]
    client = service(
        [
            HostedStore.load(
                "many", whence.build(task, many, tmp_path / "many", config=whence.BuildConfig(**BUILD), runtime=QUIET), task
            )
        ]
    )
    found = posted(client, ASKED, store="many")["shares"]
    assert len(found) == 51 and found[-1]["source"] == "(other sources)"
    assert sum(one["share"] for one in found) == pytest.approx(1)


def test_the_model_writes_the_likeliest_tokens(service, task):
    ids = task.tokenizer("a cat")["input_ids"]
    for _ in range(4):
        with torch.no_grad():
            ids.append(int(task.model(torch.tensor([ids])).logits[0, -1].argmax()))
    wanted = task.tokenizer.decode(ids)[len("a cat") :].split("\ufffd")[0]
    client = service()
    found = posted(client, {"prompt": "a cat", "max_tokens": 4, "k": 2}, "ask")
    assert found["completion"] == wanted
    again = posted(client, {"prompt": "a cat", "completion": wanted, "k": 2})
    assert [hit["row"] for hit in again["proponents"]] == [hit["row"] for hit in found["proponents"]]


def test_the_model_draws_where_it_is_told_to(service, task, monkeypatch):
    client = service()
    body = {"prompt": "a cat", "max_tokens": 6, "k": 1, "temperature": 1.5}
    before = torch.random.get_rng_state()
    found = posted(client, {**body, "seed": 22}, "ask")
    assert torch.equal(torch.random.get_rng_state(), before)
    ids = task.tokenizer("a cat")["input_ids"]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(22)
        for _ in range(6):
            ids.append(int(torch.multinomial((task.model(torch.tensor([ids])).logits[0, -1] / 1.5).softmax(-1), 1)))
    assert found["completion"] == task.tokenizer.decode(ids)[len("a cat") :].split("\ufffd")[0]
    assert (found["temperature"], found["seed"]) == (1.5, 22)
    monkeypatch.setattr("secrets.randbelow", lambda most: 16)
    named = posted(client, body, "ask")
    assert named["seed"] == 16 and named["completion"] != found["completion"]
    again = posted(client, {**body, "seed": named["seed"]}, "ask")
    assert again["completion"] == named["completion"]
    assert (
        posted(client, {**body, "temperature": 0, "seed": 3}, "ask", status=400)["error"]["found"]
        == "seed 3 with temperature 0"
    )


# --- together


def together(client, bodies):
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: client.post("/v1/stores/store/attribute", json=body), bodies))


def batches(client):
    text = client.get("/metrics").text
    return tuple(int(float(re.search(rf"whence_batch_questions_{name} (\S+)", text)[1])) for name in ("count", "sum"))


@pytest.fixture
def gate(monkeypatch):
    """Holds the line's thread at its first scan until it is opened."""
    inside, opened = threading.Event(), threading.Event()
    real = line_module.answered

    def held(*arguments):
        inside.set()
        assert opened.wait(20)
        return real(*arguments)

    monkeypatch.setattr(line_module, "answered", held)
    held.inside, held.open = inside, opened.set
    yield held
    opened.set()


def test_questions_that_wait_together_share_a_scan(service, gate):
    client = service()
    bodies = [
        {"prompt": "a cat", "completion": f" {word}", "k": 1 + place}
        for place, word in enumerate(("sat", "ran", "off", "here"))
    ]
    with ThreadPoolExecutor(1) as first:
        waiting = first.submit(posted, client, ASKED)
        assert gate.inside.wait(20)
        with ThreadPoolExecutor(1) as others:
            found = others.submit(together, client, bodies)
            while client.get("/health").json()["waiting"] < 4:
                time.sleep(0.01)
            gate.open()
            shared = [response.json() for response in found.result()]
        waiting.result()
    assert batches(client) == (2, 5)
    for body, answer in zip(bodies, shared, strict=True):
        alone = posted(client, body)
        assert [hit["row"] for hit in answer["proponents"]] == [hit["row"] for hit in alone["proponents"]]
        assert [hit["score"] for hit in answer["proponents"]] == pytest.approx(
            [hit["score"] for hit in alone["proponents"]], rel=1e-4
        )


def test_those_who_were_answered_together_are_waited_for(desk):
    metrics = Metrics()
    line = QuestionQueue({"store": desk}, QueryLog(":memory:", retention_days=1), metrics, max_waiting=9, batch=9)

    def seconds_of(count, company, patience):
        line.company, line.patient_until = company, time.monotonic() + patience
        started = time.monotonic()
        jobs = [Job(f"{started}{place}", desk, Question(**ASKED), started + 60) for place in range(count)]
        for job in jobs:
            line.put(job)
            time.sleep(0.05)
        for job in jobs:
            job.future.result(40)
        return time.monotonic() - started

    assert seconds_of(3, company=3, patience=30) < 20  # nobody else is waited for
    assert 'whence_batch_questions_bucket{le="2.0"} 0.0' in metrics.text().decode()
    assert 0.5 < seconds_of(1, company=3, patience=0.5) < 20  # nor for longer
    assert line.company == 1
    assert seconds_of(1, company=1, patience=30) < 20
    line.close(20)


def test_where_answers_depend_on_each_other_nothing_is_shared(task, tmp_path):
    whitened = whence.build(
        task, records(), tmp_path / "w", config=whence.BuildConfig(**{**BUILD, "method": "trackstar"}), runtime=QUIET
    )
    assert HostedStore.load("w", whitened, task).at_once == 1


def test_one_bad_question_does_not_take_others_along(service, gate, monkeypatch, desk):
    client = service()
    real = gate

    def breaks(desk, askers, *rest):
        if any(asker.question.completion == " bad" for asker in askers):
            raise RuntimeError("secret /etc/path")
        return real(desk, askers, *rest)

    monkeypatch.setattr(line_module, "answered", breaks)
    gate.open()
    responses = together(client, [{"prompt": "a", "completion": f" {word}"} for word in ("good", "bad", "fine", "bad")])
    assert [response.status_code for response in responses] == [200, 500, 200, 500]
    assert "secret" not in responses[1].text and "Traceback" not in responses[1].text
    assert responses[1].json()["error"]["found"] == "an error inside the service"


def test_a_full_service_says_when_to_come_back(service, gate):
    client = service(max_waiting=1)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(posted, client, ASKED)
        assert gate.inside.wait(20)
        second = pool.submit(posted, client, ASKED)
        while client.get("/health").json()["waiting"] < 1:
            time.sleep(0.01)
        response = client.post("/v1/stores/store/attribute", json=ASKED)
        assert response.status_code == 503 and int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["found"] == "a service with too many questions waiting"
        gate.open()
        assert first.result()["proponents"] == second.result()["proponents"]


def test_what_takes_too_long_is_given_up(service, gate):
    client = service(seconds=0.3)
    found = posted(client, ASKED, status=504)
    assert found["error"]["found"] == "no answer in time"


def test_closing_finishes_what_waits(desk, gate, tmp_path):
    path = str(tmp_path / "log.sqlite")
    log = QueryLog(path, retention_days=1)
    line = QuestionQueue({"store": desk}, log, Metrics(), max_waiting=9, batch=1)
    jobs = [Job(f"j{number}", desk, Question(**ASKED), time.monotonic() + 20) for number in range(3)]
    for job in jobs:
        line.put(job)
    assert gate.inside.wait(20)
    threading.Timer(0.2, gate.open).start()
    line.close(20)
    assert [job.future.result(0)["id"] for job in jobs] == ["j0", "j1", "j2"]
    with pytest.raises(Full):
        line.put(jobs[0])
    with sqlite3.connect(path) as known:
        assert known.execute("SELECT count(*) FROM queries").fetchone() == (3,)


def test_nothing_piles_up_with_requests(service, desk, monkeypatch):
    """Each read of a safetensors tensor keeps some bytes for good, so a shard is read once; benchmarks/serve_load.py watches the memory."""
    client = service()
    posted(client, {**ASKED, "k": 9, "tokens": True})
    read = []
    monkeypatch.setattr(reader_module, "read_tensors", lambda path, *_: read.append(path))
    posted(client, {**ASKED, "k": 9, "tokens": True})
    assert read == []
    masks = Masks(desk)
    for number in range(40):
        masks.of(Question(**ASKED, filter=Filter(since=float(number))))
    assert len(masks.masks) == 32


# --- what is closed


def test_training_text_is_data_and_never_markup(service):
    client = service()
    response = client.post("/v1/stores/store/attribute", json={**ASKED, "filter": {"text": "<script>"}})
    hits = response.json()["proponents"] + response.json()["opponents"]
    assert [hit["text"] for hit in hits] == [HOSTILE]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"
    page = client.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    script = client.get("/page.js").text
    for dangerous in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert dangerous not in script
    for content in (page.text, script, client.get("/page.css").text):
        assert not re.search(r"(src|href)=.https?:|url\(|@import|fetch\(.http", content)
    assert not re.search(r"<script>|style=|\son\w+=", page.text)


@pytest.mark.parametrize("path", ["/", "/health", "/v1/stores", "/nowhere", "/v1/stores/store/examples/nope"])
def test_every_response_carries_the_policy(service, path):
    assert "frame-ancestors 'none'" in service().get(path).headers["content-security-policy"]


def test_redacted_answers_hold_no_training_text(service, tmp_path):
    path = str(tmp_path / "log.sqlite")
    open_service, closed = service(log=path), service(log=path, redacted=True)
    found = posted(open_service, {**ASKED, "tokens": True, "k": 9})
    for answer in (posted(closed, {**ASKED, "k": 9}), closed.get(f"/v1/answers/{found['id']}").json()):
        assert {hit["id"] for hit in answer["proponents"]} == {hit["id"] for hit in found["proponents"]}
        assert answer["shares"] and answer["redacted"]
        for hit in answer["proponents"] + answer["opponents"]:
            assert set(hit) == {"id", "row", "score", "source"}
    known = closed.get("/v1/stores/store/examples/t4").json()
    assert set(known) == {"id", "row", "source", "redacted"}
    told = posted(closed, {**ASKED, "filter": {"text": "cat"}}, status=400)
    assert told["error"]["found"] == "a filter by text on a redacted service"
    assert posted(closed, {**ASKED, "tokens": True}, status=400)["error"]["found"] == "token scores on a redacted service"
    for chosen in ({"since": "2024-01-01"}, {"until": "2024-01-01"}):  # by halves, a filter finds the time of any example
        told = posted(closed, {**ASKED, "filter": chosen}, status=400)
        assert told["error"]["found"] == "a filter by time on a redacted service"


def test_redacted_services_tell_nothing_made_from_examples(service, tmp_path):
    path = str(tmp_path / "log.sqlite")
    open_service, closed = service(log=path), service(log=path, redacted=True)
    for chosen in ({"text": "cat"}, {"since": "2024-01-01"}):  # what was asked openly is not opened again
        found = posted(open_service, {**ASKED, "filter": chosen})
        assert open_service.get(f"/v1/answers/{found['id']}").status_code == 200
        told = closed.get(f"/v1/answers/{found['id']}")
        assert told.status_code == 404
        assert told.json()["error"]["found"] == "an answer to a question that a redacted service does not take"
    assert open_service.get("/v1/stores/store").json()["has_times"] and not closed.get("/v1/stores/store").json()["has_times"]
    answer = posted(closed, {**ASKED, "k": 9})
    for facts in (answer, closed.get("/v1/stores/store").json(), closed.get("/v1/stores").json()["stores"][0]):
        assert "digest" not in facts  # made from every text
    paths = ("/metrics", "/health", "/openapi.json", "/v1/stores/store/shares", "/v1/stores/store/examples/t99", "/page.js")
    said = [json.dumps(answer), *(closed.get(path).text for path in paths)]
    words = {text for texts in TEXTS.values() for text in texts} | {"1709640000", "2024-03-05"}
    assert not [word for word in words for text in said if word in text]


def test_examples_by_id(service):
    client = service()
    assert client.get("/v1/stores/store/examples/t4").json() == {
        "id": "t4", "row": 4, "source": "web/news", "length": 11, "time": 1709640000.0, "text": "the dog sat", "span": [0, 11],
        "metadata": {"time": "2024-03-05T12:00:00Z", "url": "x"}, "redacted": False,
    }  # fmt: skip
    for name in ("t99", "../../etc/passwd", "%2e%2e/blueprint.json"):
        response = client.get(f"/v1/stores/store/examples/{name}")
        assert response.status_code == 404 and "error" in response.json()


def test_limits(service):
    client = service(max_body_bytes=2000, max_characters=50, max_k=5, max_new_tokens=3)
    assert client.post("/v1/stores/store/attribute", json={**ASKED, "prompt": "a" * 3000}).status_code == 413
    told = [
        posted(client, {**ASKED, "prompt": "a" * 51}, status=400),
        posted(client, {**ASKED, "k": 6}, status=400),
        posted(client, {"prompt": "a", "k": 2, "max_tokens": 4}, "ask", status=400),
        posted(client, {"prompt": "a" * 33, "completion": "b", "k": 2}, status=400),
        posted(client, {"prompt": "a" * 40, "k": 2, "max_tokens": 2}, "ask", status=400),
        posted(client, {**ASKED, "k": 2, "token": 5}, status=400),
        posted(client, {"completion": "cat", "k": 2, "token": 1}, status=400),
        posted(client, {**ASKED, "k": 2, "filter": {"sources": ["nobody"]}}, status=400),
        posted(client, {**ASKED, "k": 2, "filter": {"since": "yesterday"}}, status=400),
    ]
    assert [one["error"]["found"] for one in told] == [
        "51 characters", "6 hits on each side", "4 tokens to write", "example 'question' of 34 tokens", "a prompt of 40 tokens",
        "token 5 of a completion with 4", "token 1 of a completion with 3", "no source 'nobody'", "the time 'yesterday'",
    ]  # fmt: skip
    for body in (
        {"completion": ""},
        {**ASKED, "k": 0},
        {**ASKED, "path": "/etc"},
        {**ASKED, "prompt": "a\x00"},
        [],
        {**ASKED, "k": "x"},
    ):
        assert posted(client, body, status=422)["error"]["do"] == "see /openapi.json"
    text = client.post("/v1/stores/store/attribute", content=json.dumps(ASKED), headers={"content-type": "text/plain"})
    assert text.status_code == 415  # what a form of another site could send without asking
    posted(client, {**ASKED, "k": 2}, store="other", status=404)


def test_times_have_to_be_known(service, store, task):
    client = service([HostedStore.load("plain", store, task)])
    found = posted(client, {**ASKED, "filter": {"since": "2024-01-01"}}, store="plain", status=400)
    assert found["error"]["found"] == "a filter by time for a store without times"


def test_a_token_opens_the_service(service):
    client = service(token="0123456789abcdef", host="0.0.0.0")
    assert client.get("/").status_code == client.get("/health").status_code == 200
    for headers in ({}, {"Authorization": "Bearer 0123456789abcdeg"}, {"Authorization": "Basic x"}):
        response = client.get("/v1/stores", headers=headers)
        assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["found"] == "no token, or another"
    assert client.get("/metrics").status_code == client.get("/openapi.json").status_code == 401
    assert client.get("/v1/stores", headers={"Authorization": "Bearer 0123456789abcdef", "Host": "any"}).status_code == 200


def test_another_name_for_this_machine_is_refused(service):
    client = service()
    for host, status in (("evil.example", 403), ("127.0.0.1:99", 200), ("localhost", 200), ("[::1]:8", 200), ("[", 403)):
        assert client.get("/v1/stores", headers={"Host": host}).status_code == status
    assert (
        client.get("/v1/stores", headers={"Host": "evil"}).json()["error"]["found"] == "a host name that is not this machine's"
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_other_addresses_need_a_token(host):
    with pytest.raises(BadInput, match=f"found the address {host} without a token"):
        check_token(host, None)
    check_token(host, "0123456789abcdef")
    for local in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        check_token(local, None)


def test_mistakes_are_told(desk, tmp_path, store):
    with pytest.raises(BadInput, match="found a token of 5 characters"):
        check_token("127.0.0.1", "short")
    with pytest.raises(BadInput, match="found batch=0; needed more than 0"):
        ServeConfig(batch=0)
    with pytest.raises(BadInput, match="found port 70000"):
        ServeConfig(port=70000)
    with pytest.raises(BadInput, match="found stores named store, store"):
        create_app([desk, desk])
    with pytest.raises(BadInput, match="found stores named nothing"):
        create_app([])
    with pytest.raises(BadInput, match="found a store named 'b' twice; .*write NAME=FOLDER"):
        named_folders(["a/b", "c/b"])
    with pytest.raises(BadInput, match="found metadata record 0 without an id"):
        Catalog.of(store, [{"time": "2024-01-01"}])
    with pytest.raises(BadInput, match="found metadata record 0, which JSON cannot hold"):
        Catalog.of(store, [{"id": "t0", "value": float("nan")}])
    with pytest.raises(BadInput, match="found metadata of 1 ids, none of which"):
        Catalog.of(store, [{"id": "unknown"}])
    with pytest.raises(BadInput, match="found the time 'soon'"):
        Catalog.of(store, [{"id": "t0", "time": "soon"}])
    (tmp_path / "other.sqlite").write_text("no database")
    for path in (tmp_path / "other.sqlite", tmp_path):
        with pytest.raises(BadInput, match="found the query log .*, which cannot be opened"):
            QueryLog(str(path), retention_days=1)
    with sqlite3.connect(tmp_path / "foreign.sqlite") as known:
        known.execute("CREATE TABLE t (x)")
    with pytest.raises(BadInput, match="a database of another kind or version"):
        QueryLog(str(tmp_path / "foreign.sqlite"), retention_days=1)


def test_what_cannot_be_asked_is_not_served(task, store, tmp_path):
    from tests import zoo

    other, dataset = zoo.make("linear")
    built = whence.build(other, dataset, tmp_path / "c", config=whence.BuildConfig(method="logra", rank=2), runtime=QUIET)
    with pytest.raises(Unsupported, match="does not say in which files its images are; .*pass --train"):
        HostedStore.load("c", built, other)
    two, pairs = zoo.make("two_inputs")
    with pytest.raises(Unsupported, match="found training examples with the inputs ids, values"):
        HostedStore.load(
            "t",
            whence.build(two, pairs, tmp_path / "t", config=whence.BuildConfig(method="logra", rank=2), runtime=QUIET),
            two,
            train=pairs,
        )
    with pytest.raises(BadInput, match="found --train for a store of a language model"):
        HostedStore.load("s", store, task, train=dataset)
    with pytest.raises(BadInput, match="found --pixels for a store of a language model"):
        HostedStore.load("s", store, task, pixels=(0.0, 1.0))
    regression, targets = zoo.make("regression")
    built = whence.build(regression, targets, tmp_path / "r", config=whence.BuildConfig(method="logra", rank=2), runtime=QUIET)
    with pytest.raises(Unsupported, match="found a store of a regression task"):
        HostedStore.load("r", built, regression)
    ids = [{"id": text, "input_ids": task.tokenizer(text)["input_ids"]} for text in ("a cat", "a dog")]
    with pytest.raises(Unsupported, match="found a store without texts"):
        HostedStore.load("i", whence.build(task, ids, tmp_path / "i", config=whence.BuildConfig(**BUILD), runtime=QUIET), task)


def test_ids_are_found_even_where_digests_agree(store, monkeypatch):
    from whence.serve import catalog

    monkeypatch.setattr(catalog, "_mark", lambda name: 7)
    found = Catalog.of(store)
    assert [found.row_of(f"t{row}") for row in range(9)] == list(range(9)) and found.row_of("t9") is None
    assert found.rows_of(Filter()).all()


# --- the log


def test_answers_are_found_again(service, desk, tmp_path):
    path = str(tmp_path / "log.sqlite")
    client = service(log=path)
    found = posted(client, {**ASKED, "tokens": True})
    assert client.get(f"/v1/answers/{found['id']}").json() == found
    assert client.get("/v1/answers/nope").status_code == 404
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b" sat" in content and not any(text.encode() in content for text in ("one bird sleeps", "ran off", "<script>"))
    assert os.stat(path).st_mode & 0o077 == 0


def test_an_answer_of_a_store_that_changed_is_not_shown(service, task, tmp_path):
    path = str(tmp_path / "log.sqlite")
    old = whence.build(task, records(), tmp_path / "old", config=whence.BuildConfig(**BUILD), runtime=QUIET)
    found = posted(service([HostedStore.load("store", old, task)], log=path), ASKED)
    other = whence.build(task, records(), tmp_path / "other", config=whence.BuildConfig(**{**BUILD, "rank": 4}), runtime=QUIET)
    assert service([HostedStore.load("store", other, task)], log=path).get(f"/v1/answers/{found['id']}").status_code == 404


def logged(name, time, shares):
    return {
        "id": name, "time": time, "store": "s", "digest": "d", "prompt": "", "completion": "c", "measurement": 0.0, "seconds": 0.1,
        "shares": [{"source": source, "positive": up, "negative": down} for source, up, down in shares],
    }  # fmt: skip


def test_shares_over_some_time_are_one_query(tmp_path):
    log = QueryLog(str(tmp_path / "log.sqlite"), retention_days=30)
    now = time.time()
    log.add([logged("a", now - 100, [("x", 1.0, -0.5), ("y", 2.0, 0.0)]), logged("b", now - 50, [("x", 4.0, 0.0)])])
    log.add([logged("c", now, [("x", 100.0, 0.0)])])
    assert log.shares("d", now - 200, now - 10, 10) == {
        "questions": 2,
        "shares": [
            {"source": "x", "positive": 5.0, "negative": -0.5, "answers": 2},
            {"source": "y", "positive": 2.0, "negative": 0.0, "answers": 1},
        ],
    }
    assert log.shares("other", 0, now + 1, 10) == {"questions": 0, "shares": []}


def test_old_answers_are_deleted_with_their_shares(tmp_path):
    path = str(tmp_path / "log.sqlite")
    log = QueryLog(path, retention_days=1)
    log.add([logged("old", time.time() - 2 * 86_400, [("x", 1.0, 0.0)]), logged("new", time.time(), [("x", 2.0, 0.0)])])
    log.close()
    log = QueryLog(path, retention_days=1)
    assert log.answer("old") is None and log.answer("new")["id"] == "new"
    with sqlite3.connect(path) as known:
        assert known.execute("SELECT positive FROM shares").fetchall() == [(2.0,)]


def test_shares_over_the_log_come_out(service):
    client = service()
    found = [posted(client, ASKED), posted(client, {**ASKED, "completion": " ran"})]
    answer = client.get("/v1/stores/store/shares").json()
    book = next(one for one in answer["shares"] if one["source"] == "book")
    assert answer["questions"] == book["answers"] == 2
    mine = sum(one["positive"] for each in found for one in each["shares"] if one["source"] == "book")
    assert book["positive"] == pytest.approx(mine)
    assert client.get("/v1/stores/store/shares?since=2999-01-01&until=2999-02-01").json()["questions"] == 0


# --- live


@pytest.fixture
def live(desk, tmp_path):
    """A service behind a real socket, in a thread of this process."""
    from whence.serve import run as run_module

    started, servers = [], []
    real = run_module.uvicorn.Server

    def server(config):
        servers.append(real(config))
        return servers[-1]

    def start(desks=(desk,), **options):
        config = ServeConfig(port=0, **{"log": ":memory:", **options})
        ready, urls = threading.Event(), []
        app = create_app(desks, config)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_module.uvicorn, "Server", server)
            thread = threading.Thread(
                target=run_app, args=(app, config, lambda url: (urls.append(url), ready.set())), daemon=True
            )
            thread.start()
            assert ready.wait(20)
            while not servers or not servers[-1].started:
                time.sleep(0.01)
        started.append(thread)
        return urls[0]

    yield start
    for one in servers:
        one.should_exit = True
    for thread in started:
        thread.join(20)


def test_the_client_gives_what_query_gives(live, store, task):
    client = whence.serve.Client(live())
    found = client.query([ASKED, "the dog sat"], k=3, tokens=True)
    wanted = whence.query(store, task, [ASKED, "the dog sat"], k=3, tokens=True, runtime=QUIET)
    assert found.queries == wanted.queries and found.method == wanted.method and found.num_examples == 9
    (theirs, more), wanted_facts = found.facts, wanted.facts
    assert theirs.record.items() >= wanted_facts[0].record.items() - {("id", "0")} and more.record == {
        "id": "1",
        "text": "the dog sat",
    }
    for mine, theirs in zip(found.proponents + found.opponents, wanted.proponents + wanted.opponents, strict=True):
        assert [hit.id for hit in mine] == [hit.id for hit in theirs]
        assert [hit.score for hit in mine] == pytest.approx([hit.score for hit in theirs], rel=1e-4)
    events = []
    answer = client.ask("a cat", writing=Writing(max_new_tokens=3), k=2, tokens=True, on_progress=events.append)
    assert [event["event"] for event in events][0] == "begun"
    assert {event.get("phase") for event in events} >= {"writing", "written", "gradients", "scan", "tokens"}
    assert client.answer(answer["id"])["completion"] == answer["completion"] == events_of(events, "written")["completion"]
    assert client.example("t5")["text"] == HOSTILE
    assert client.shares()["questions"] == 3 and client.stores()[0]["num_examples"] == 9
    assert client.attribute(" sat", prompt="a cat", among=HitFilter(sources=["book"]), k=9)["num_allowed"] == 4


def test_the_client_gives_the_second_column(live, desk, store, task, tmp_path):
    asked = [{"prompt": "so", "completion": " the dog ran off"}, {"prompt": "a", "completion": " cat", "foil": [" dog"]}]
    client = whence.serve.Client(live([replace(desk, words_folder=tmp_path)]))
    found = client.query(asked, k=3)
    wanted = with_words(whence.query(store, task, asked, k=3, runtime=QUIET), store, tmp_path)
    assert len(wanted.beside[0].spans) == 1 and wanted.beside[0].spans[0].words == 4
    for mine, theirs in zip(found.beside, wanted.beside, strict=True):
        assert mine.to_dict()["hits"] == [{**one, "bm25": pytest.approx(one["bm25"])} for one in theirs.to_dict()["hits"]]
        assert {**mine.to_dict(), "hits": 0} == {**theirs.to_dict(), "hits": 0}
        assert mine.num_documents == 9 and mine.completion == theirs.completion
    assert "copied" in found._repr_html_()
    assert whence.serve.Client(live()).query(asked[:1]).beside == ()
    with pytest.raises(BadInput, match="query 0 with a foil that is no text"):
        client.query([{"prompt": "a", "completion": " cat", "foil": [" dog", " bird"]}])


def test_a_second_column_that_is_none_is_foreign(live, desk, tmp_path, monkeypatch):
    client = whence.serve.Client(live([replace(desk, words_folder=tmp_path)]))
    answer = client.attribute(" sat", prompt="a cat", k=2)
    column = answer["beside"]
    for wrong in ({**column, "hits": []}, {**column, "spans": [{}]}, {**column, "related": [{"odd": 1}]}, []):
        monkeypatch.setattr(client, "attribute", lambda *args, wrong=wrong, **named: {**answer, "beside": wrong})
        with pytest.raises(BadInput):
            client.query([ASKED])


def events_of(events, name):
    return next(event for event in events if event["event"] == name)


def test_an_answer_can_be_cancelled(live, gate):
    client = whence.serve.Client(live())
    seen = threading.Event()
    begun = {}

    def listen(event):
        if event["event"] == "begun":
            begun.update(event)
            seen.set()

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.attribute, " sat", prompt="a cat", on_progress=listen)
        assert seen.wait(20) and gate.inside.wait(20)
        client.cancel(begun["id"])
        gate.open()
        with pytest.raises(BadInput, match="found an answer that was cancelled"):
            asked.result(20)
    with pytest.raises(BadInput, match="no such answer in the making"):
        client.cancel(begun["id"])
    with pytest.raises(BadInput, match="no such answer"):
        client.answer(begun["id"])


def test_whoever_goes_away_is_not_worked_for(live, gate, monkeypatch):
    import http.client
    from urllib.parse import urlsplit

    jobs = []
    real = line_module.QuestionQueue.put
    monkeypatch.setattr(line_module.QuestionQueue, "put", lambda self, job: (jobs.append(job), real(self, job))[1])
    for accept in ("application/json", "text/event-stream"):
        connection = http.client.HTTPConnection(urlsplit(live()).netloc)
        headers = {"Content-Type": "application/json", "Accept": accept}
        connection.request("POST", "/v1/stores/store/attribute", json.dumps(ASKED), headers)
        until = time.monotonic() + 20
        while not jobs and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)
        connection.close()
        while not jobs[0].is_cancelled and time.monotonic() < until:
            time.sleep(0.02)
        assert jobs.pop().is_cancelled


def test_the_client_tells_mistakes(live):
    url = live(max_k=5)
    client = whence.serve.Client(url, seconds=5)
    with pytest.raises(BadInput, match="found 6 hits on each side; needed at most 5; do this: ask for less"):
        client.attribute("a cat", k=6)
    with pytest.raises(BadInput, match="found no query"):
        client.query([])
    with pytest.raises(BadInput, match="found query 0 without a text"):
        client.query([{"prompt": "a"}])
    with pytest.raises(BadInput, match="found the address 'nowhere'"):
        whence.serve.Client("nowhere")
    with pytest.raises(BadInput, match=r"found no answer from http://127.0.0.1:9 \(.*refused"):
        whence.serve.Client("http://127.0.0.1:9").stores()


def test_several_stores_at_once(live, desk, task, tmp_path):
    other = HostedStore.load(
        "other", whence.build(task, records()[:4], tmp_path / "o", config=whence.BuildConfig(**BUILD), runtime=QUIET), task
    )
    client = whence.serve.Client(live([desk, other]))
    assert client.attribute("a cat", store="other")["num_examples"] == 4
    assert client.attribute("a cat", store="store")["num_examples"] == 9
    with pytest.raises(BadInput, match="found 2 stores at .*; needed one of: store, other"):
        client.attribute("a cat")


def test_query_speaks_to_a_service(live, folder, capsys, tmp_path):
    url = live()
    arguments = ["query", "store", "--text", "the dog sat", "--prompt", "a cat", "--completion", " sat", "-k", "2", "--json"]
    assert main([*arguments, "--url", url]) == 0
    remote = json.loads(capsys.readouterr().out)
    assert main([arguments[0], str(folder), *arguments[2:]]) == 0
    local = json.loads(capsys.readouterr().out)
    for mine, theirs in zip(remote["queries"], local["queries"], strict=True):
        assert [hit["id"] for hit in mine["proponents"]] == [hit["id"] for hit in theirs["proponents"]]
    for option in (["--model", "x"], ["--rerank", "exact"], ["--shortlist", "9"], ["--damping-rule", "mean"]):
        assert main([*arguments, "--url", url, *option]) == 2
        assert f"found {option[0]} with --url" in capsys.readouterr().err
    assert main([*arguments, "--token-file", "x"]) == 2
    assert "found --token-file without --url" in capsys.readouterr().err
    assert main([*arguments, "--url", url, "--token-file", str(tmp_path / "none")]) == 2
    assert "found no token in" in capsys.readouterr().err


def test_serve_tells_mistakes_in_a_line(folder, capsys, tmp_path, live):
    taken = live().rsplit(":", 1)[1].strip("/")
    (tmp_path / "bad.jsonl").write_text('{"prompt": 3}\n')
    log = ["--log", ":memory:"]
    for arguments, told in (
        ([], "found whence serve without STORES"),
        ([tmp_path / "none"], "found no store at"),
        ([folder, "--host", "0.0.0.0"], "found the address 0.0.0.0 without a token"),
        ([folder, "--k", "3"], "found the unknown option --k"),
        ([folder, "--questions", tmp_path / "bad.jsonl"], "found question 0 without a text"),
        ([folder, "--port", taken], f"found the address 127.0.0.1:{taken}, which cannot be listened on"),
    ):
        assert main(["serve", *map(str, arguments), *log]) == 2
        errors = capsys.readouterr().err
        assert told in errors and "Traceback" not in errors


def started(folder, log, *options):
    arguments = [sys.executable, "-m", "whence.cli", "serve", folder, "--port", "0", "--json", "--log", log, *options]
    process = subprocess.Popen(
        [str(one) for one in arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return process, whence.serve.Client(json.loads(line)["url"])


def test_nothing_is_lost_when_killed_and_a_stop_finishes_what_it_began(folder, tmp_path):
    log = tmp_path / "log.sqlite"
    process, client = started(folder, log)
    answered = []

    def ask_until_it_dies(number):
        while True:
            try:
                answered.append(client.attribute(" sat", prompt=f"a cat {number}", k=1)["id"])
            except BadInput:  # nothing else may come out of a service that is gone
                return

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask_until_it_dies, number) for number in range(4)]
        until = time.monotonic() + 30
        while len(answered) < 12 and time.monotonic() < until:
            time.sleep(0.01)
        process.kill()  # SIGKILL
        for one in asking:
            one.result(30)
    process.wait(20)
    with sqlite3.connect(log) as known:
        kept = {name for (name,) in known.execute("SELECT id FROM queries")}
        assert known.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert len(answered) >= 12 and set(answered) <= kept

    process, client = started(folder, log)
    assert client.answer(answered[0])["id"] == answered[0]
    with ThreadPoolExecutor(6) as pool:
        begun = [threading.Event() for _ in range(6)]
        asked = [
            pool.submit(
                client.ask,
                "a cat",
                writing=Writing(max_new_tokens=9),
                k=9,
                tokens=True,
                store="store",
                on_progress=lambda _, one=one: one.set(),
            )
            for one in begun
        ]
        assert all(one.wait(30) for one in begun)
        process.send_signal(signal.SIGTERM)
        assert len({one.result(30)["id"] for one in asked}) == 6
    process.wait(20)
    assert "Traceback" not in process.stderr.read()


# --- the description


def test_the_description_has_examples(service):
    description = service().get("/openapi.json").json()
    paths = description["paths"]
    assert set(paths) >= {
        "/health", "/metrics", "/v1/stores", "/v1/stores/{store}/ask", "/v1/stores/{store}/attribute",
        "/v1/stores/{store}/examples/{example}", "/v1/stores/{store}/shares", "/v1/answers/{answer}", "/v1/answers/{answer}/cancel",
    }  # fmt: skip
    for name in ("Ask", "Attribute"):
        assert description["components"]["schemas"][name]["examples"][0]["prompt"]
    assert all(call["summary"] for path in paths.values() for call in path.values())


def test_no_request_breaks_it(desk):
    """Whatever the description allows, and some of what it does not: never a 5xx."""
    schemathesis = pytest.importorskip("schemathesis")
    app = create_app([desk], ServeConfig(log=":memory:", seconds=10, max_new_tokens=4))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        description = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
        for operation in description.get_all_operations():

            @settings(
                max_examples=6,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(operation.ok().as_strategy())
            def check(case):
                arguments = case.as_transport_kwargs(base_url="http://127.0.0.1")
                arguments.pop("cookies", None)
                response = client.request(**arguments)
                assert response.status_code < 500, (response.status_code, response.text)

            check()


def test_the_documented_examples_run(live, capsys):
    """The page's Python runs as it stands, against a service on a free port; its SQL on a real log."""
    page = (SOURCE.parent / "docs" / "serve.md").read_text("utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    assert '"http://127.0.0.1:8420"' in block
    names = {"whence": whence}
    exec(compile(block.replace("http://127.0.0.1:8420", live()), "serve.md", "exec"), names)
    assert names["answer"]["num_allowed"] == 4 and names["shares"]["questions"] == 4
    assert len(names["hits"].proponents[0]) <= 5 and names["one_token"]["token"] == 1


def test_the_documented_sql_runs(service, tmp_path):
    path = str(tmp_path / "log.sqlite")
    found = posted(service(log=path), ASKED)
    (sql,) = re.findall(r"```sql\n(.*?)```", (SOURCE.parent / "docs" / "serve.md").read_text("utf-8"), re.S)
    with sqlite3.connect(path) as known:
        rows = {source: (up, count) for source, up, _, count in known.execute(sql)}
    assert rows == {one["source"]: (pytest.approx(one["positive"]), 1) for one in found["shares"]}
