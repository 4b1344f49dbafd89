"""Documents come and go while the service answers: as on the command line, by a token of their own, whole or not at all."""

import gc
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

import whence
from tests.settings import QUIET
from tests.test_serve import ASKED, BUILD, records
from whence.errors import BadInput
from whence.load import load_task
from whence.serve.app import create_app
from whence.serve.config import ServeConfig, check_write_token
from whence.serve.hosted_store import HostedStore
from whence.serve.versions import Versions
from whence.store import open_store, verify_store

WRITE = {"Authorization": "Bearer a-token-for-changes"}
NEW = [{"text": "a cat ran", "source": "web/new"}, {"text": "the bird sat", "source": "web/new", "id": "mine"}]


@pytest.fixture(scope="module")
def task(model_folder):
    return load_task(str(model_folder))[0]


@pytest.fixture
def folder(tmp_path, task, model_folder):
    origin = {"model": str(model_folder), "task": "causal_lm", "options": {}}
    whence.build(task, records(), tmp_path / "store", origin=origin, config=whence.BuildConfig(**BUILD), runtime=QUIET)
    return tmp_path / "store"


@pytest.fixture
def client(folder, task):
    hosted = HostedStore.load("store", open_store(folder), task)
    app = create_app([hosted], ServeConfig(log=":memory:"), write_token=WRITE["Authorization"].split()[1])
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def add(client, documents=NEW):
    return client.post("/v1/stores/store/documents", json={"documents": documents}, headers=WRITE)


def delete(client, *ids):
    return client.delete("/v1/stores/store/documents", params={"id": list(ids)}, headers=WRITE)


def ask(client, k=20):
    return client.post("/v1/stores/store/attribute", json={**ASKED, "k": k}).json()


def hits(answer):
    return {hit["id"]: round(hit["score"], 9) for side in ("proponents", "opponents") for hit in answer[side]}


def test_what_is_added_is_answered_with_as_by_a_build(client, folder, task):
    before = ask(client)
    added = add(client).json()
    assert added["added"] == added["ids"] and added["ids"][1] == "mine" and added["num_examples"] == 11
    after = ask(client)
    assert after["digest"] == added["digest"] != before["digest"]
    table = whence.score_table(folder, task, [ASKED], runtime=QUIET)
    assert hits(after) == pytest.approx(dict(zip(table.train_ids, table.scores[0].tolist(), strict=True)), abs=1e-6)
    assert not verify_store(open_store(folder))
    assert client.get("/v1/stores/store/examples/mine").json()["text"] == "the bird sat"


def test_adding_again_changes_nothing_and_another_text_under_an_id_is_refused(client):
    first = add(client).json()
    second = add(client).json()
    assert second["added"] == [] and second["ids"] == first["ids"] and second["digest"] == first["digest"]
    refused = add(client, [{"text": "something else", "id": "mine"}])
    assert refused.status_code == 409 and "another document with the id" in refused.json()["error"]["found"]
    assert add(client, [{"text": "x y", "id": "d"}, {"text": "z", "id": "d"}]).status_code == 400


def test_what_is_deleted_is_gone_at_once_and_may_come_again(client, folder):
    add(client)
    gone = delete(client, "t0", "mine").json()
    assert gone["deleted"] == ["t0", "mine"] and gone["num_examples"] == 9
    assert not {"t0", "mine"} & set(hits(ask(client))) and open_store(folder).num_deleted == 2
    assert client.get("/v1/stores/store/examples/t0").status_code == 404
    assert delete(client, "t0").status_code == 404
    assert add(client, NEW[1:]).json()["added"] == ["mine"] and "mine" in hits(ask(client))


def test_answers_of_earlier_versions_can_be_read_without_what_was_deleted(client):
    answer = ask(client)
    add(client)
    assert hits(client.get(f"/v1/answers/{answer['id']}").json()) == hits(answer)
    delete(client, "t1", "t3")
    again = client.get(f"/v1/answers/{answer['id']}").json()
    assert hits(again) == {name: score for name, score in hits(answer).items() if name not in ("t1", "t3")}
    assert again["notes"][-1] == "2 of its hits were deleted since it was given"
    ask(client)
    assert client.get("/v1/stores/store/shares").json()["questions"] == 2


def test_changes_need_their_own_token(client, folder, task):
    path, body = "/v1/stores/store/documents", {"documents": NEW}
    assert client.post(path, json=body).status_code == 401
    assert client.post(path, json=body, headers={"Authorization": "Bearer another-long-token"}).status_code == 401
    assert client.delete(path, params={"id": "t0"}).status_code == 401
    hosted = HostedStore.load("store", open_store(folder), task)
    with TestClient(create_app([hosted], ServeConfig(log=":memory:")), base_url="http://127.0.0.1") as closed:
        refused = closed.post(path, json=body, headers=WRITE)
        assert refused.status_code == 403 and "--write-token-file" in refused.json()["error"]["do"]
    for write, token, options, text in (
        ("short", None, {}, "a token of 5 characters"),
        ("one-token-for-both", "one-token-for-both", {}, "one token for questions and for changes"),
        ("a-token-for-changes", None, {"workers": 2}, "changes of documents with workers"),
    ):
        with pytest.raises(BadInput, match=text):
            check_write_token(write, token, ServeConfig(**options))


def test_questions_and_changes_at_the_same_time(client):
    """Every answer is of one version: its hits are all of that version's documents."""
    by_digest, answers, ends = {ask(client)["digest"]: 9}, [], threading.Event()

    def keep_asking():
        while not ends.is_set():
            answers.append(ask(client))

    threads = [threading.Thread(target=keep_asking) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(4):
            version = add(client, [{"text": f"the cat sat {number}"}]).json()
            by_digest[version["digest"]] = version["num_examples"]
    finally:
        ends.set()
        for thread in threads:
            thread.join(30)
    assert answers and all(by_digest[answer["digest"]] == answer["num_examples"] == len(hits(answer)) for answer in answers)


def test_earlier_versions_are_let_go(client, folder):
    """Files of a store stay open as long as something is answered from it: of all versions but the last one nothing is."""
    for number in range(4):
        add(client, [{"text": f"the cat sat {number}"}])
        ask(client)
    gc.collect()
    opened = [os.readlink(f"/dev/fd/{name}") for name in os.listdir("/dev/fd") if os.path.islink(f"/dev/fd/{name}")]
    assert 1 <= len([path for path in opened if path.startswith(f"{folder}{os.sep}probe")]) <= 2


def test_bad_documents_are_told(client):
    for body in ({"documents": []}, {"documents": [{"text": ""}]}, {"documents": [{"text": "a", "more": 1}]}, {}):
        answer = client.post("/v1/stores/store/documents", json=body, headers=WRITE)
        assert answer.status_code == 422
    assert delete(client).status_code == 422


@given(st.lists(st.one_of(st.none(), st.sets(st.integers(0, 30), max_size=4)), max_size=6), st.integers(0, 30))
def test_rows_of_versions_are_where_a_list_has_them(steps, row):
    """A list of documents, changed as the store is."""
    documents = [list(range(31))]
    versions = Versions("0")
    for number, step in enumerate(steps, start=1):
        now = documents[-1]
        deleted = sorted({index for index in step or () if index < len(now)})
        documents.append([name for index, name in enumerate(now) if index not in deleted] + ([] if step else [100 + number]))
        versions.add(str(number), deleted)
    for number, names in enumerate(documents):
        if row < len(names):
            place = versions.row_now(str(number), row)
            assert place == (documents[-1].index(names[row]) if names[row] in documents[-1] else None)


def test_a_document_that_was_deleted_does_not_come_back_unseen(client):
    add(client, NEW[1:])
    delete(client, "mine")
    again = add(client, NEW[1:])
    assert again.status_code == 409 and "'mine', which was deleted" in again.json()["error"]["found"]
    assert add(client, [{**NEW[1], "id": "mine again"}]).json()["added"] == ["mine again"]
    assert add(client, [{**NEW[1], "text": "another text"}]).json()["added"] == ["mine"]
