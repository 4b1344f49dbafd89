"""Gaming of payouts: robust rules against the slow twin, planted attacks that are found, near-duplicates."""

import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

import whence
from tests.reference.gaming import alike, near, robust_shares, robust_weights
from tests.test_payout import answers
from tests.test_serve import folder, store, task  # noqa: F401
from tests.test_shares import table
from whence.errors import BadInput
from whence.evaluate import save_table
from whence.settings import SharesConfig
from whence.shares import ExampleFacts, gaming_of, gradient_lengths, lengths_of, store_texts, verify_shares, write_shares
from whence.shares.alike_queries import alike_queries, profile
from whence.shares.example_facts import of_parts
from whence.shares.near_texts import leaders_of

ROBUST = SharesConfig(robust=True, floor=1.5, draws=60)
WORDS = [f"w{n}" for n in range(400)]


def text(seed, length=30):
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def edited(words, every=10):
    return " ".join("other" if n % every == every - 1 else word for n, word in enumerate(words.split()))


def by_line(found):
    return {line.name if line.kind == "source" else line.kind: line.share for line in found.lines}


owners = st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=8, max_size=8).filter(any)
scores = st.lists(st.lists(st.integers(-8, 8), min_size=8, max_size=8), min_size=1, max_size=5)


eight = {"min_size": 8, "max_size": 8}
lengths = st.none() | st.lists(st.sampled_from([0, 0.5, 1, 1.25, 3, 40]), **eight).filter(any)


@given(scores, owners, st.lists(st.integers(0, 7), **eight), st.lists(st.integers(0, 9), min_size=5, max_size=5), lengths)
@settings(max_examples=200, deadline=None)
def test_robust_shares_equal_the_slow_twin(scores, owners, leaders, weights, lengths):
    weights = weights[: len(scores)] if any(weights[: len(scores)]) else [1] * len(scores)
    sets = [leader if leader < n and leaders[leader] >= leader else n for n, leader in enumerate(leaders)]
    known = {f"d{n}": float(length) for n, length in enumerate(lengths or ())}
    facts = ExampleFacts({f"d{n}": f"d{leader}" for n, leader in enumerate(sets) if leader != n}, known)
    sources = {f"d{n}": owner for n, owner in enumerate(owners)}
    named = {f"q{n}": weight for n, weight in enumerate(weights)}
    found = whence.shares.shares(
        table(torch.tensor(scores).float()), sources, config=ROBUST, weights=named, facts=facts, quiet=True
    )
    per_query = [robust_shares(row, owners, sets, 1.5, lengths) for row in scores]
    assert found.has_control == bool(lengths) == (not found.without_control)
    counted = robust_weights(weights, alike([[max(score, 0) if abs(score) >= 1.5 else 0 for score in row] for row in scores]))
    assert found.counted == pytest.approx([float(each) for each in counted])
    for name, share in by_line(found).items():
        mean = sum(weight * shares.get(name, 0) for weight, shares in zip(counted, per_query, strict=True)) / sum(counted)
        assert share == pytest.approx(float(mean), abs=2e-12)


def test_near_duplicates_equal_the_slow_twin():
    texts = [text(n % 7, 8 + n % 3) if n % 4 else edited(text(n % 5), 3 + n % 6) for n in range(40)] + [
        "",
        "one",
        "One!",
        "...",
    ]
    expected = []
    for place, one in enumerate(texts):
        leaders = [n for n in range(place) if expected[n] == n]
        best = max(leaders, key=lambda n: (near(one, texts[n]), -n), default=place)
        expected.append(best if best != place and near(one, texts[best]) >= 0.3 else place)
    assert leaders_of(texts) == expected and len(set(expected)) < len(texts) - 5


# Planted attacks


def honest(examples=60, queries=6):
    """Scores of chance, and three documents for every query, of three of seven sources."""
    scores = 0.1 * torch.randn(queries, examples, generator=torch.Generator().manual_seed(0))
    for query in range(queries):
        scores[query, [query, query + 10, query + 20]] = torch.tensor([5.0, 4.0, 3.0])
    return scores, {f"d{n}": f"s{n % 7}" for n in range(examples)}, {f"d{n}": text(n) for n in range(examples)}


def split(scores, sources, texts, lengths=None, **options):
    config = SharesConfig(draws=3, **options)
    return whence.shares.shares(table(scores), sources, config=config, facts=ExampleFacts.of(texts, lengths), quiet=True)


def test_copies_of_its_own_documents_gain_nothing():
    scores, sources, texts = honest()
    more = torch.cat([scores, scores[:, [0] * 4]], 1)  # four edited copies of d0, which speak as it does
    sources |= {f"d{n}": "s0" for n in range(60, 64)}
    copied = texts | {f"d{60 + n}": edited(texts["d0"], 8 + n) for n in range(4)}
    before = {robust: by_line(split(scores, sources, texts, robust=robust))["s0"] for robust in (False, True)}
    after = {robust: by_line(split(more, sources, copied, robust=robust))["s0"] for robust in (False, True)}
    assert after[False] > 1.3 * before[False] and after[True] == pytest.approx(before[True], rel=0.02)
    (sign,) = gaming_of(split(more, sources, copied)).signs
    assert (sign.kind, sign.source, sign.count, sign.such_as[0]) == ("copies", "s0", 5, "d0")


def test_copies_of_others_pay_nobody_and_are_named():
    scores, sources, texts = honest()
    more = torch.cat([scores, scores[:, :3]], 1)
    thief = sources | {f"d{n}": "thief" for n in range(60, 63)}
    copied = texts | {f"d{60 + n}": texts[f"d{n}"] for n in range(3)}
    assert by_line(split(more, thief, copied))["thief"] > 0.1
    found = split(more, thief, copied, robust=True)
    assert by_line(found)["thief"] < 0.001 and by_line(found)["withheld"] > 0.1
    signs = {(sign.kind, sign.source): sign.count for sign in gaming_of(found).signs}
    assert signs == {("copied", "thief"): 3, ("copied", "s0"): 1, ("copied", "s1"): 1, ("copied", "s2"): 1}


def test_a_document_written_for_a_query_is_capped():
    scores, sources, texts = honest()
    scores[0, 59] = 1000.0
    plain, robust = (by_line(split(scores, sources, texts, robust=robust))["s3"] for robust in (False, True))
    assert plain > 0.2 and robust < plain - 0.7 / 6


def test_stuffed_queries_count_as_one_and_are_named():
    scores, sources, texts = honest()
    again = scores[[0] * 30] * (1 + 0.02 * torch.randn(30, 60, generator=torch.Generator().manual_seed(1)))
    more = torch.cat([scores, again])
    once = by_line(split(scores, sources, texts, robust=True))["s0"]
    stuffed, robust = split(more, sources, texts), split(more, sources, texts, robust=True)
    assert by_line(stuffed)["s0"] > 2 * once and by_line(robust)["s0"] == pytest.approx(once, rel=0.01)
    (sign,) = gaming_of(stuffed).signs
    assert sign.kind == "stuffed" and sign.count == 31 and sign.source == "s0" and sign.part == pytest.approx(31 / 36)


def test_long_gradients_are_named():
    scores, sources, texts = honest()
    lengths = {f"d{n}": float(np.exp(0.2 * np.sin(n))) for n in range(60)} | {"d7": 9.0, "d14": 8.0}
    (sign,) = gaming_of(split(scores, sources, texts, lengths)).signs
    assert (sign.kind, sign.source, sign.count, set(sign.such_as)) == ("long", "s0", 2, {"d7", "d14"})


def outlying(times=10.0):
    """Twelve documents of a thief that speak for nothing, with gradients so many times as long as the others'."""
    scores, sources, texts = honest()
    noise = 0.1 * times * torch.randn(6, 12, generator=torch.Generator().manual_seed(2))
    names = [f"d{n}" for n in range(60, 72)]
    lengths = {f"d{n}": 1 + 0.02 * (n % 7) for n in range(60)} | dict.fromkeys(names, times)
    texts |= {name: text(name) for name in names}
    return torch.cat([scores, noise], 1), sources | dict.fromkeys(names, "thief"), texts, lengths


def test_what_length_alone_gives_is_subtracted():
    given = outlying()
    shown, without = (by_line(split(*given, robust=True, norm_control=control)) for control in (True, False))
    assert without["thief"] > 0.05 and shown["thief"] < without["thief"] / 20
    assert shown["withheld"] - without["withheld"] > 0.9 * without["thief"]
    for name in (f"s{n}" for n in range(7)):
        assert 0.97 * without[name] < shown[name] <= without[name]


def test_the_control_is_subtracted_where_it_can_be_and_it_is_said_where_not():
    scores, sources, texts, lengths = outlying()
    for options, known, why in (
        ({}, lengths, ""),
        ({"norm_control": False}, lengths, "it was not asked for"),
        ({"floor": "off"}, lengths, "there is no noise floor"),
        ({}, None, "lengths of gradients are not at hand"),
    ):
        found = split(scores, sources, texts, known, robust=True, **options)
        assert found.has_control == (not why) and why in found.without_control
    assert not split(scores, sources, texts, lengths).without_control


def test_a_report_says_whether_the_control_was_subtracted_and_one_of_before_holds(tmp_path):
    given = outlying()
    write_shares(split(*given, robust=True, norm_control=False), tmp_path / "before")
    write_shares(split(*given, robust=True), tmp_path / "now")
    before, now = (json.loads((tmp_path / name / "record.json").read_text()) for name in ("before", "now"))
    assert "norm_control" not in before["settings"] and now["settings"]["norm_control"] is True
    for name, words in (("before", "than one of them"), ("now", "longer than the median one")):
        assert not verify_shares(tmp_path / name).faults
        assert json.loads((tmp_path / name / "shares.json").read_text())["robust"].endswith(words)
    assert "control is not subtracted: it was not asked for" in (tmp_path / "before" / "report.html").read_text()
    del now["settings"]["norm_control"]
    (tmp_path / "now" / "record.json").write_text(json.dumps(now))
    assert any("shares.json" in fault and "does not follow" in fault for fault in verify_shares(tmp_path / "now").faults)


def test_what_lengths_alone_would_pay_is_told():
    scores, sources, texts = honest()
    lengths = {name: 1.0 + (name == "d0") for name in sources}
    gaming = gaming_of(found := split(scores, sources, texts, lengths))
    owned = {source: sum(lengths[name] for name in sources if sources[name] == source) for source in set(sources.values())}
    assert gaming.by_length == pytest.approx({source: value / 61 for source, value in owned.items()})
    shares = {line.name: line.share for line in found.lines if line.kind == "source"}
    pairs = [(owned[name], shares[name]) for name in shares]
    assert gaming.agreement == pytest.approx(spearmanr(*zip(*pairs, strict=True)).statistic)
    by_shares = {name: 1e3 * shares[source] + 1e-3 for name, source in sources.items()}
    assert gaming_of(split(scores, sources, texts, by_shares)).agreement > 0.9
    for none in (None, dict.fromkeys(sources, 0.0)):
        assert gaming_of(split(scores, sources, texts, none)).control == ""


def test_an_honest_month_has_no_sign_and_what_is_not_known_is_told():
    scores, sources, texts = honest()
    assert not gaming_of(split(scores, sources, texts, dict.fromkeys(sources, 1.0))).signs
    found = gaming_of(whence.shares.shares(table(scores), sources))
    assert [words.partition(":")[0] for words in found.missing] == ["near-duplicates among the documents", "outlying gradients"]


# Files, refusals


def test_a_robust_report_is_verified_and_an_altered_fact_is_found(tmp_path):
    scores, sources, texts = honest()
    found = split(torch.cat([scores, scores[:, :1]], 1), sources | {"d60": "s0"}, texts | {"d60": texts["d0"]}, robust=True)
    write_shares(found, tmp_path / "r")
    assert not verify_shares(tmp_path / "r").faults
    content = json.loads((tmp_path / "r" / "shares.json").read_text())
    assert content["robust"].startswith("near-duplicates") and content["gaming"]["signs"][0]["kind"] == "copies"
    page = (tmp_path / "r" / "report.html").read_text()
    assert "2 of 10 documents of s0 nearly repeat each other" in page and "Not looked for: outlying gradients" in page
    facts = tmp_path / "r" / "facts.jsonl"
    facts.write_bytes(facts.read_bytes().splitlines(keepends=True)[0])
    faults = verify_shares(tmp_path / "r").faults
    assert any("facts.jsonl" in fault for fault in faults) and any(
        "does not follow from the scores" in fault for fault in faults
    )


def test_parts_of_long_texts_are_traced_to_their_records(tmp_path, run):
    """Records have texts by their own ids, the table has parts of them; near-duplicates pool and are named all the same."""
    scores, _, texts = honest()
    names = [f"book{n // 3}#{n % 3}" for n in range(60)]
    many = whence.ScoreTable(
        torch.cat([scores, scores[:, :3]], 1),
        tuple(f"q{n}" for n in range(6)),
        (*names, *(f"copy#{n}" for n in range(3))),
        "nats",
        "m",
    )
    save_table(many, tmp_path / "t")
    books = {f"book{n}": text(n, 90) for n in range(20)} | {"copy": edited(text(0, 90))}
    lines = [{"id": name, "source": "thief" if name == "copy" else name, "text": words} for name, words in books.items()]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["shares", tmp_path / "t", "--records", tmp_path / "train.jsonl", "--floor", 0.5]
    plain, robust = (json.loads(run(*words, *more, "-o", tmp_path / f"r{len(more)}", "--json")) for more in ((), ("--robust",)))
    assert [line["share"] > 0.1 for line in plain["lines"] if line["name"] == "thief"] == [True]
    assert [line["share"] for line in robust["lines"] if line["name"] in ("thief", "book0")] == [0.0, 0.0]
    assert ("copied", "thief", 3) in [(sign["kind"], sign["source"], sign["count"]) for sign in robust["gaming"]["signs"]]
    assert not verify_shares(tmp_path / "r1").faults


def test_parts_without_a_counterpart_repeat_the_last_one():
    facts = ExampleFacts({"b": "a", "c": "a", "d": "gone", "e": "gone"})
    names = ["a#0", "a#1", "b#0", "b#1", "b#2", "c", "d#0", "d#1", "e#0", "e#1"]
    found = of_parts(facts, names)
    assert found.repeats == {
        "b#0": "a#0", "b#1": "a#1", "b#2": "a#1", "c": "a#0", "d#0": "gone#0", "d#1": "gone#1", "e#0": "gone#0", "e#1": "gone#1",
    }  # fmt: skip
    assert of_parts(found, names) == found  # as a report is verified


@given(st.lists(st.lists(st.integers(0, 6), min_size=9, max_size=9), min_size=1, max_size=14))
@settings(max_examples=200, deadline=None)
def test_queries_that_are_alike_equal_the_slow_twin(scores):
    rows = np.arange(9)
    profiles = [profile(rows[np.array(each) > 0], np.array(each, float)[np.array(each) > 0]) for each in scores]
    assert alike_queries(profiles) == alike(scores)


def test_a_log_is_judged_as_a_table_is():
    scores, sources, texts = honest()
    lengths = {name: 1.0 + 0.3 * (n % 5) for n, name in enumerate(sources)}
    facts = ExampleFacts.of(texts | {"d10": texts["d0"], "d9": texts["d2"]}, lengths)
    config = SharesConfig(robust=True, draws=3)
    mine, theirs = (
        whence.shares.shares(given, sources, config=config, facts=facts) for given in (answers(scores), table(scores))
    )
    assert mine.has_control and by_line(mine) == pytest.approx(by_line(theirs), abs=2e-12) and mine.counted == theirs.counted
    assert gaming_of(mine) == gaming_of(theirs) and by_line(mine)["withheld"] > 0.05


def test_several_models_have_robust_intervals():
    scores, sources, texts = honest()
    noise = [0.1 * torch.randn(6, 60, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    config = SharesConfig(robust=True, several="models", draws=3)
    found = whence.shares.shares([table(scores + each) for each in noise], sources, config=config, facts=ExampleFacts.of(texts))
    assert all(line.over_models[0] - 1e-9 <= line.share <= line.over_models[1] + 1e-9 for line in found.lines)
    assert by_line(found)["withheld"] > 0.05


def test_the_command_tells_of_gaming(tmp_path, run):
    scores, sources, texts = honest()
    records = tmp_path / "train.jsonl"
    texts["d7"] = texts["d0"]
    lines = [json.dumps({"id": name, "source": source, "text": texts[name]}) for name, source in sources.items()]
    records.write_text("\n".join(lines) + "\n")
    save_table(table(scores), tmp_path / "t")
    values = whence.ScoreTable(torch.ones(1, 60), ("self",), tuple(sources), "nats", "m", values="self-influence")
    save_table(values, tmp_path / "lengths")
    words = ["shares", tmp_path / "t", "--records", records, "--lengths", tmp_path / "lengths", "--robust"]
    told = run(*words, "-o", tmp_path / "r")
    assert "worth a look: 2 of 9 documents of s0 nearly repeat each other, such as d0" in told and "not looked for" not in told
    assert "--no-norm-control without --robust" in run(*words[:-1], "--no-norm-control", "-o", tmp_path / "s", status=2)
    assert "withheld by the robust rule" in told and "all figures computed again" in run("verify", tmp_path / "r")
    records.write_text("\n".join(json.dumps({"id": name, "source": source}) for name, source in sources.items()))
    assert "robust rules without texts" in run(*words, "-o", tmp_path / "s", status=2)


def test_a_store_says_how_long_gradients_are(store):  # noqa: F811
    lengths, texts = gradient_lengths(store), store_texts(store)
    assert set(lengths) == set(store.ids()) and all(length > 0 for length in lengths.values())
    assert texts is not None and set(texts) <= set(lengths)


def test_settings_that_do_not_fit():
    scores, sources, _ = honest()
    with pytest.raises(BadInput, match="robust=True with the rule signed"):
        SharesConfig(robust=True, rule="signed")
    with pytest.raises(BadInput, match="robust rules without texts"):
        whence.shares.shares(table(scores), sources, config=SharesConfig(robust=True))
    with pytest.raises(BadInput, match="a table of scores for lengths of gradients"):
        lengths_of(table(scores))


def test_profiles_are_short():
    rows, kept = profile(np.arange(100), np.arange(100.0))
    assert rows.tolist() == list(range(36, 100)) and alike_queries([(rows, kept), (rows[1:], kept[1:])]) == [0, 0]
