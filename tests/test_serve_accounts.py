"""Clients with a token each: quotas that outlive the process, handles that nobody else can join, answers that are their own."""

import json
import sqlite3
import time

import pytest

from tests.test_serve import ASKED, desk, folder, logged, service, store, task  # noqa: F401
from whence.cli import main
from whence.errors import BadInput
from whence.serve.accounts import Account, Quotas, check_access, read_accounts
from whence.serve.config import ServeConfig
from whence.serve.log import QueryLog
from whence.serve.responses import Refused

PRESS = Account(name="press", token="the-token-of-press", per_day=2, salt="the-salt-of-press")
RADIO = Account(name="radio", token="the-token-of-radio", salt="the-salt-of-radio")
OTHER = Account(name="other", token="the-token-of-other")
ALL = (PRESS, RADIO, OTHER)
HIDDEN = {"redacted": True, "hide_ids": True}


def ask(client, account, body=ASKED):
    headers = {"Authorization": f"Bearer {account.token}"}
    return client.post("/v1/stores/store/attribute", json={**body, "k": 3}, headers=headers)


def get(client, account, path):
    return client.get(path, headers={"Authorization": f"Bearer {account.token}"})


def ids(answer):
    return [hit["id"] for hit in answer.json()["proponents"]]


def test_a_quota_is_of_a_client_and_a_day_and_outlives_the_process(service, tmp_path, monkeypatch):  # noqa: F811
    log = str(tmp_path / "log.sqlite")
    assert [ask(service(accounts=ALL, log=log), PRESS).status_code for _ in range(2)] == [200, 200]
    client = service(accounts=ALL, log=log)  # another process, which counts on
    refused = ask(client, PRESS)
    assert refused.status_code == 429 and refused.json()["error"] == {
        "found": "2 questions of this client today", "needed": "2 in a day of UTC at most",
        "do": "ask again tomorrow, or ask whoever runs the service for more",
    }  # fmt: skip
    assert 0 < int(refused.headers["Retry-After"]) <= 86_401
    assert ask(client, RADIO).status_code == 200
    with sqlite3.connect(log) as rows:
        assert rows.execute("SELECT client, count(*) FROM queries GROUP BY 1").fetchall() == [("press", 2), ("radio", 1)]
        rows.execute("DELETE FROM queries")  # what is deleted has been asked all the same
    assert ask(service(accounts=ALL, log=log), PRESS).status_code == 429


def test_a_new_day_begins_anew_and_failures_count(tmp_path, monkeypatch):
    log = QueryLog(str(tmp_path / "log.sqlite"), retention_days=30)
    quotas, now = Quotas(ALL, log), 86_400 * 20_000 + 50_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    for _ in range(2):
        quotas.check("press")
        quotas.count("press")  # nothing came of it
    with pytest.raises(Refused):
        quotas.check("press")
    assert Quotas(ALL, log).check("press") is None  # only answers are on disk
    now += 86_400
    quotas.check("press")
    for _ in range(5):
        quotas.check("radio")
        quotas.count("radio")
    log.add([{**logged(f"a{n}", now, []), "client": "press"} for n in range(2)])
    with pytest.raises(Refused):
        Quotas(ALL, log).check("press")
    log.close()


def test_what_counts_as_a_question(service):  # noqa: F811
    client = service(accounts=ALL)
    assert ask(client, PRESS, {**ASKED, "filter": {"sources": ["nobody"]}}).status_code == 400
    assert (
        client.post("/v1/stores/none/attribute", json=ASKED, headers={"Authorization": f"Bearer {PRESS.token}"}).status_code
        == 404
    )
    assert [ask(client, PRESS).status_code for _ in range(2)] == [
        200,
        429,
    ]  # what the thread that answers looks at, counts


def test_handles_of_two_clients_cannot_be_joined(service, store):  # noqa: F811
    client = service(accounts=ALL, **HIDDEN)
    answers = {account.name: [ask(client, account) for _ in range(2)] for account in ALL}
    press, radio, other = ([ids(answer) for answer in answers[account.name]] for account in ALL)
    assert press[0] == press[1] and radio[0] == radio[1]  # each its own, the same each time
    assert not set(press[0]) & set(radio[0]) and not set(other[0]) & set(other[1]) and len(set(press[0])) == 3
    assert not set(press[0] + radio[0] + other[0]) & set(store.ids())
    first = answers["press"][0].json()
    assert get(client, PRESS, f"/v1/answers/{first['id']}").json()["proponents"] == first["proponents"]
    assert "client" not in first and "client" not in get(client, PRESS, f"/v1/answers/{first['id']}").json()


def test_answers_and_sums_are_their_clients_alone(service):  # noqa: F811
    client = service(accounts=ALL)
    name = ask(client, PRESS).json()["id"]
    ask(client, RADIO)
    assert [get(client, account, f"/v1/answers/{name}").status_code for account in (PRESS, RADIO)] == [200, 404]
    assert get(client, RADIO, f"/v1/answers/{name}/image").status_code == 404
    assert [get(client, account, "/v1/stores/store/shares").json()["questions"] for account in ALL] == [1, 1, 0]


def test_who_has_no_token_is_refused(service):  # noqa: F811
    client = service(accounts=ALL)
    stranger = Account(name="stranger", token="the-token-of-nobody")
    assert ask(client, stranger).status_code == 401 and client.get("/v1/stores").status_code == 401
    assert client.get("/health").status_code == 200 and get(client, OTHER, "/v1/stores").status_code == 200


def test_a_receipt_does_not_tell_who_asked(service, tmp_path):  # noqa: F811
    from whence.ledger import new_key

    new_key(tmp_path / "key")
    client = service(
        accounts=ALL, log=str(tmp_path / "log.sqlite"), receipts=str(tmp_path / "r.jsonl"), sign_with=str(tmp_path / "key")
    )
    assert ask(client, PRESS).json()["receipt"]["number"] == 0 and "press" not in (tmp_path / "r.jsonl").read_text()


WRONG = {
    "short token": ('{"a": {"token": "x"}}', "a token of 1 characters"),
    "short salt": ('{"a": {"token": "0123456789abcdef", "salt": "x"}}', "a salt of 1 characters"),
    "no quota": ('{"a": {"token": "0123456789abcdef", "per_day": 0}}', "per_day=0 for the client a"),
    "one token": ('{"a": {"token": "0123456789abcdef"}, "b": {"token": "0123456789abcdef"}}', "two clients with one token"),
    "a list": ("[]", "no clients in"),
    "another field": ('{"a": {"token": "0123456789abcdef", "quota": 1}}', "an unknown field 'quota'"),
    "no name": ('{"": {"token": "0123456789abcdef"}}', "a client without a printable name"),
    "nobody": ("{}", "no clients in"),
}


@pytest.mark.parametrize("name", WRONG)
def test_files_of_clients_that_are_wrong(tmp_path, name):
    text, why = WRONG[name]
    (tmp_path / "clients.json").write_text(text)
    with pytest.raises(BadInput, match=why):
        read_accounts(tmp_path / "clients.json")


def test_a_file_of_clients_is_read(tmp_path, folder, capsys):  # noqa: F811
    path = tmp_path / "clients.json"
    path.write_text(json.dumps({each.name: {"token": each.token, "per_day": each.per_day, "salt": each.salt} for each in ALL}))
    assert read_accounts(path) == ALL
    (tmp_path / "token").write_text("a-token-for-everybody")
    assert main(["serve", str(folder), "--clients", str(path), "--token-file", str(tmp_path / "token")]) == 2
    assert "one token for all and clients" in capsys.readouterr().err
    with pytest.raises(BadInput, match="one token for questions and for changes"):
        check_access(ServeConfig(), None, PRESS.token, ALL)
    with pytest.raises(BadInput, match="without a token"):
        check_access(ServeConfig(host="0.0.0.0"), None, None, ())
    check_access(ServeConfig(host="0.0.0.0"), None, None, ALL)
