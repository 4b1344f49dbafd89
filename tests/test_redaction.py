"""Redacted services that tell less: rounding, small sources, handles; settings that are refused."""

import pytest

from tests.test_serve import ASKED, desk, folder, posted, service, store, task  # noqa: F401
from whence.errors import BadInput
from whence.serve import ServeConfig
from whence.serve.redaction import SMALL, Redaction
from whence.serve.shares import OTHERS

LINES = [
    {"source": "large", "positive": 1.23456, "negative": -0.5, "share": 0.6},
    {"source": "a", "positive": 0.5, "negative": 0.0, "share": 0.25},
    {"source": OTHERS, "positive": 0.1, "negative": 0.0, "share": 0.05},
    {"source": "b", "positive": 0.25, "negative": -1.0, "share": 0.1},
]


def test_small_sources_are_one_line_and_nothing_is_lost():
    large, others, small = Redaction(3, 5).shares(LINES, {"large": 5, "a": 4, "b": 1})
    assert large == {"source": "large", "positive": 1.23, "negative": -0.5, "share": 0.6} and others["source"] == OTHERS
    assert small == {"source": SMALL, "positive": 0.75, "negative": -1.0, "share": 0.35}
    assert Redaction().shares(LINES, {"large": 5, "a": 4, "b": 1}) == LINES


def test_answers_of_a_service_that_tells_less(service, store):  # noqa: F811
    sizes = {}
    for example in store.examples():
        sizes[example.get("source", "")] = sizes.get(example.get("source", ""), 0) + 1
    least = max(sizes.values())
    client = service(redacted=True, round_to=2, least_group=least, hide_ids=True)
    first, again = posted(client, {**ASKED, "k": 3}), posted(client, {**ASKED, "k": 3})
    whole = posted(service(redacted=True), {**ASKED, "k": 3})
    assert [hit["score"] for hit in first["proponents"]] == [float(f"{hit['score']:.2g}") for hit in whole["proponents"]]
    ids = [{hit["id"] for hit in answer["proponents"]} for answer in (first, again, whole)]
    assert len(ids[0]) == 3 and not ids[0] & ids[1] and ids[2] <= set(store.ids()) and not ids[0] & ids[2]
    assert all("row" not in hit for side in ("proponents", "opponents") for hit in first[side])
    small = {name for name, size in sizes.items() if size < least}
    assert small and not small & {line["source"] for line in first["shares"]} and SMALL in str(first["shares"])
    assert not small & {line["source"] for line in client.get("/v1/stores/store/shares").json()["shares"]}
    narrow = posted(client, {**ASKED, "filter": {"sources": [sorted(small - {""})[0]]}})
    assert narrow["proponents"] == narrow["opponents"] == [] and narrow["num_allowed"] == 0
    nobody = posted(client, {**ASKED, "filter": {"sources": ["no such source"]}})  # not to be told from a small one
    for each in (narrow, nobody):
        for name in ("id", "time", "seconds", "filter"):
            del each[name]
    assert narrow == nobody
    posted(service(redacted=True), {**ASKED, "filter": {"sources": ["no such source"]}}, status=400)
    told = [client.get(f"/v1/stores/store/examples/{name}") for name in (store.ids()[0], "nobody")]
    assert [each.status_code for each in told] == [404, 404]
    again = client.get(f"/v1/answers/{first['id']}").json()
    assert again["proponents"] == first["proponents"] and again["measurement"] == first["measurement"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"round_to": 2}, "round_to without redacted"),
        ({"hide_ids": True}, "hide_ids without redacted"),
        ({"redacted": True, "round_to": 0}, "round_to=0, least_group=1; needed 1 to 15"),
        ({"redacted": True, "least_group": 0}, "least_group=0"),
        ({"redacted": True, "least_group": 5, "receipts": "r", "sign_with": "k"}, "least_group with receipts"),
    ],
)
def test_settings_that_do_not_fit(options, says):
    with pytest.raises(BadInput, match=says):
        ServeConfig(**options)
