"""Shares: rules against the slow twin, money to the cent, what is not attributed, intervals."""

import csv
import io
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import whence
from tests.reference.shares import largest_remainders, query_shares, total_shares
from whence.errors import BadInput, NonFinite, UnknownOption
from whence.settings import SharesConfig
from whence.shares import WHOLE
from whence.shares.files import content_of, csv_text, queries_rows, shares_rows
from whence.shares.payout import Payout, apportion

RULES = [{"rule": "positive"}, {"rule": "signed"}, {"rule": "softmax", "temperature": 0.5}]


def table(scores, *, name="m", queries=None, unit="nats"):
    scores = torch.as_tensor(scores)
    names = queries or tuple(f"q{n}" for n in range(len(scores)))
    return whence.ScoreTable(scores, names, tuple(f"d{n}" for n in range(scores.shape[1])), unit, name)


def drawn(queries=5, examples=40, seed=0):
    return torch.randn(queries, examples, generator=torch.Generator().manual_seed(seed))


SOURCES = {f"d{n}": f"source {n % 4}" if n % 9 else "" for n in range(38)}  # two of forty are not listed at all
OWNERS = [SOURCES.get(f"d{n}") or None for n in range(40)]


def by_line(found):
    return {(line.kind, line.name if line.kind == "source" else ""): line for line in found.lines}


# Rules


@pytest.mark.parametrize("options", RULES)
@pytest.mark.parametrize("floor", [{}, {"floor": 0.7}, {"floor_errors": 1.5}])
def test_rules_equal_the_slow_twin(options, floor):
    models = [drawn(seed=seed) + drawn(seed=9) for seed in range(4)]
    weights = [1.0, 0.5, 2.0, 0.0, 3.25]
    several = "models"
    found = whence.shares.shares(
        [table(scores) for scores in models],
        SOURCES,
        config=SharesConfig(several=several, **options, **floor),
        weights={f"q{n}": weight for n, weight in enumerate(weights)},
        quiet=True,
    )
    per_query = [query_shares([scores[q].tolist() for scores in models], OWNERS, **options, **floor) for q in range(5)]
    expected = total_shares(per_query, weights)
    shown = by_line(found)
    assert set(expected) <= set(shown) and len(expected) >= 5
    for name, line in shown.items():
        assert line.share == pytest.approx(float(expected.get(name, 0)), abs=2e-12)
    for q, shares in enumerate(per_query):
        for place, name in enumerate(shown):
            assert found.shares[q, place] == pytest.approx(float(shares.get(name, 0)), abs=1e-12)


def test_rules_by_hand():
    scores = table([[3.0, 1.0, -2.0, -1.0]])
    sources = {"d0": "a", "d1": "b", "d2": "a", "d3": "b"}
    assert [line.share for line in whence.shares.shares(scores, sources).lines[:2]] == [0.75, 0.25]
    signed = whence.shares.shares(scores, sources, config=SharesConfig(rule="signed")).lines
    assert [(line.name, line.share) for line in signed[:2]] == [("a", 1.0), ("b", 0.0)]  # a: 3 - 2; b: 1 - 1
    assert (signed[0].raised, signed[0].lowered) == (3.0, -2.0)
    softmax = whence.shares.shares(scores, sources, config=SharesConfig(rule="softmax", temperature=1.0)).lines
    powers = np.exp(np.array([3.0, 1.0, -2.0, -1.0]) / np.std([3.0, 1.0, -2.0, -1.0]))
    assert softmax[0].share == pytest.approx((powers[0] + powers[2]) / powers.sum(), abs=1e-12)


def test_scale_and_order_change_nothing():
    scores = drawn()
    first = {line.name: line.share for line in whence.shares.shares(table(scores), SOURCES).lines}
    assert first == {line.name: line.share for line in whence.shares.shares(table(scores * 8), SOURCES).lines}
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    turned = whence.ScoreTable(scores[:, order], table(scores).query_ids, tuple(f"d{n}" for n in order.tolist()), "nats", "m")
    assert {line.name: line.share for line in whence.shares.shares(turned, SOURCES).lines} == pytest.approx(first, abs=2e-12)


def test_merging_two_sources_adds_their_shares_up():
    """A source gains nothing by going under two names."""
    found = by_line(whence.shares.shares(table(drawn()), SOURCES))
    merged = {name: source.replace("source 1", "source 0") for name, source in SOURCES.items()}
    together = by_line(whence.shares.shares(table(drawn()), merged))
    apart = found["source", "source 0"].share + found["source", "source 1"].share
    assert together["source", "source 0"].share == pytest.approx(apart, abs=2e-12)


# What is not attributed


def test_the_unknown_is_a_line_of_its_own_and_spread_over_nobody():
    scores = drawn()
    found = by_line(whence.shares.shares(table(scores), SOURCES))
    named = by_line(whence.shares.shares(table(scores), {f"d{n}": SOURCES.get(f"d{n}") or "nobody" for n in range(40)}))
    assert found["unknown", ""].share == named["source", "nobody"].share > 0.05
    for name in ("source 0", "source 1", "source 2", "source 3"):
        assert found["source", name] == named["source", name]
    assert found["unknown", ""].examples == 7 and whence.shares.shares(table(scores), SOURCES).unlisted == 2


def test_noise_and_queries_without_a_proponent():
    scores = table([[2.0, 0.1, 0.1, -1.0], [-1.0, -2.0, -0.5, -0.3]])
    found = by_line(whence.shares.shares(scores, {"d0": "a", "d1": "b", "d2": "b", "d3": "b"}, config=SharesConfig(floor=0.5)))
    assert found["none", ""].share == 0.5
    assert found["noise", ""].share == pytest.approx(0.5 * 0.2 / 2.2, abs=1e-7)
    assert found["source", "b"].share == 0.0 and sum(line.share for line in found.values()) == pytest.approx(1)


def planted(queries=6, examples=400, seed=0):
    """Chance scores with a few of ten times their spread: rows 0 to 3 of the source "press", rows 4 and 5 of "radio"."""
    scores = drawn(queries, examples, seed)
    scores[:, :6] = torch.tensor([14.0, 12.0, 10.0, 11.0, 9.0, 13.0])
    names = {f"d{n}": "press" if n < 4 else "radio" if n < 6 else f"other {n % 5}" for n in range(examples)}
    return scores, names


@pytest.mark.parametrize("options", RULES)
@pytest.mark.parametrize("models", [1, 3])
def test_the_default_floor_equals_the_slow_twin(options, models):
    drafts = [planted(2, 60)[0] + 0.1 * drawn(2, 60, seed) for seed in range(models)]
    names = planted(2, 60)[1]
    several = "models" if models > 1 else None
    found = whence.shares.shares([table(s) for s in drafts], names, config=SharesConfig(several=several, **options))
    per_query = [query_shares([s[q].tolist() for s in drafts], list(names.values()), **options) for q in range(2)]
    expected = total_shares(per_query, [1, 1])
    assert ("noise", "") in expected or options["rule"] == "signed"
    for name, line in by_line(found).items():
        assert line.share == pytest.approx(float(expected.get(name, 0)), abs=2e-12)


def test_by_default_chance_is_paid_to_nobody_and_what_was_planted_keeps_its_pay():
    scores, names = planted()
    found = whence.shares.shares(table(scores), names, config=SharesConfig(payout="1000.00 EUR"))
    lines, plain = (
        by_line(found),
        by_line(whence.shares.shares(table(scores), names, config=SharesConfig(floor="off", payout="1000.00 EUR"))),
    )
    for source in ("press", "radio"):
        line = lines["source", source]
        assert line.share == pytest.approx(plain["source", source].share, abs=2e-12)
        assert line.settled.paid == pytest.approx(plain["source", source].settled.paid, abs=1)
    others = [line for (_, name), line in lines.items() if name.startswith("other")]
    assert len(others) == 5 and sum(line.settled.paid for line in others) < 0.02 * 100_000
    assert lines["noise", ""].share > 0.65  # 394 halves of normal draws of about .8 each, beside 69
    assert lines["noise", ""].settled.kept == lines["noise", ""].settled.amount > 65_000
    assert sum(round(line.share * WHOLE) for line in found.lines) == WHOLE
    assert sum(line.settled.amount for line in found.lines) == 100_000


def test_chance_alone_seldom_passes_the_floor():
    """Of 200 queries without anything to find, in at most one of four some example does; a promise of the threshold."""
    passed = 0
    for seed in range(200):
        lines = by_line(whence.shares.shares(table(drawn(1, 400, seed)), dict.fromkeys((f"d{n}" for n in range(400)), "a")))
        passed += lines["source", "a"].share > 0
    assert passed <= 60, passed  # .25 x 200, and two standard errors


def test_a_report_says_what_its_floor_is_and_how_it_was_found():
    scores, names = planted()
    made = whence.shares.shares(table(scores), names)
    content = content_of(made)
    floors = [entry["floor"] for entry in content["queries"]]
    assert floors == list(made.floors) and all(3 < floor < 6 for floor in floors)
    assert content["noise_floor"] == made.noise_floor
    assert "chance scores would be: " in made.noise_floor and "(nats), which is 1.4826 x the median size" in made.noise_floor
    assert "sqrt(2 ln 400)" in made.noise_floor and " by query" in made.noise_floor
    assert "no noise floor was set" in whence.shares.shares(table(scores), names, config=SharesConfig(floor="off")).noise_floor
    few = whence.shares.shares(table(drawn()), SOURCES)
    assert "among 40 examples it cannot be told which scores are chance, 50 are needed" in few.noise_floor
    assert set(few.floors) == {0.0} and by_line(few)["noise", ""].share == 0
    assert (
        "nearer to zero than 0.7 (nats)"
        in whence.shares.shares(table(scores), names, config=SharesConfig(floor=0.7)).noise_floor
    )


def test_a_query_without_differences_is_nobodys():
    for options in RULES[1:]:
        found = by_line(whence.shares.shares(table([[0.0] * 4]), {"d0": "a"}, config=SharesConfig(**options)))
        assert found["none", ""].share == 1.0
    found = by_line(whence.shares.shares(table([[0.1] * 7]), {"d0": "a"}, config=SharesConfig(rule="softmax", temperature=1.0)))
    assert found["none", ""].share == 1.0


def test_a_split_document_counts_for_its_record():
    scores = whence.ScoreTable(torch.ones(1, 4), ("q",), ("book#0", "book#1", "page", "note#2"), "nats", "m")
    found = by_line(whence.shares.shares(scores, {"book": "press", "page": "web", "note#2": "radio", "note": "web"}))
    assert {name: line.examples for (kind, name), line in found.items() if kind == "source"} == {
        "press": 2,
        "web": 1,
        "radio": 1,
    }


def test_sources_by_any_field():
    records = [{"id": "a", "licence": " MIT "}, {"licence": None}, {"id": "c", "licence": 7}]
    assert whence.shares.named_sources(records, by="licence") == {"a": "MIT", "1": "", "c": "7"}
    assert whence.shares.named_sources(records, by="id") == {"a": "a", "1": "1", "c": "c"}


# Money

parts = st.lists(st.one_of(st.integers(0, 10**9), st.floats(0, 1e9)), min_size=1, max_size=30).filter(any)


@given(total=st.integers(0, 10**12), parts=parts)
@settings(max_examples=200, deadline=None)
def test_apportioning(total, parts):
    given_ = apportion(total, parts)
    assert sum(given_) == total and given_ == largest_remainders(total, parts)
    assert apportion(total, [4 * part for part in parts]) == given_
    for part, each in zip(parts, given_, strict=True):
        assert each >= 0 and (part > 0 or each == 0)
        assert all(each >= other for less, other in zip(parts, given_, strict=True) if less < part)


cents = st.integers(0, 10**9)


@given(
    scores=st.lists(st.lists(st.integers(-9, 9), min_size=6, max_size=6), min_size=1, max_size=4),
    total=cents, minimum=cents, carried=st.lists(cents, min_size=3, max_size=3), rule=st.sampled_from(RULES),
    currency=st.sampled_from(["EUR", "JPY", "KWD"]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_a_payout_adds_up_to_the_cent(scores, total, minimum, carried, rule, currency):
    """Whatever the scores: nothing is lost, nothing made, in amounts, in shares and in the files."""
    money = Payout(0, currency)
    sources = {"d0": "a", "d1": "b", "d2": "c", "d3": "a", "d4": ""}
    found = whence.shares.shares(
        table(torch.tensor(scores).float()),
        sources,
        config=SharesConfig(payout=f"{money.text(total)} {currency}", minimum=money.text(minimum), draws=3, **rule),
        carried={name: money.text(units) for name, units in zip(("a", "c", "gone"), carried, strict=True)},
    )
    settled = [line.settled for line in found.lines]
    assert sum(each.amount for each in settled) == total
    assert sum(each.paid + each.held + each.kept for each in settled) == total + sum(carried)
    for line, each in zip(found.lines, settled, strict=True):
        assert each.amount + each.carried == each.paid + each.held + each.kept
        assert not each.paid or each.paid >= minimum
        assert not each.held or each.held < minimum
        assert (each.kept == each.amount and not each.paid + each.held) if line.kind != "source" else not each.kept
    assert sum(round(line.share * WHOLE) for line in found.lines) == WHOLE
    rows = list(csv.DictReader(io.StringIO(csv_text(shares_rows(found)))))
    for name, whole in (("amount", total), ("carried", sum(carried))):
        assert sum(money.units(row[name]) for row in rows) == whole
    written = list(csv.DictReader(io.StringIO(csv_text(queries_rows(found)))))
    for query in found.query_ids:
        assert sum(int(row["share"].replace(".", "")) for row in written if row["query"] == query) == WHOLE
    payout = content_of(found)["payout"]
    assert money.units(payout["paid"]) + money.units(payout["held"]) + money.units(payout["kept"]) == total + sum(carried)


def test_the_split_can_be_redone_from_the_file_by_hand():
    found = whence.shares.shares(table(drawn()), SOURCES, config=SharesConfig(payout="1234.56 EUR"))
    rows = list(csv.DictReader(io.StringIO(csv_text(shares_rows(found)))))
    whole = [int(row["share"].replace(".", "")) for row in rows]
    assert [Payout(0, "EUR").units(row["amount"]) for row in rows] == largest_remainders(123456, whole)


def test_what_is_held_back_is_due_next_time():
    scores = table([[90.0, 10.0]])
    sources = {"d0": "large", "d1": "small"}
    first = whence.shares.shares(scores, sources, config=SharesConfig(payout="100 EUR", minimum="15"))
    assert first.held() == {"small": "10.00"}
    second = by_line(
        whence.shares.shares(scores, sources, carried=first.held(), config=SharesConfig(payout="100 EUR", minimum="15"))
    )
    assert second["source", "small"].settled.paid == 2000 and whence.shares.shares(scores, sources).held() == {}


def test_who_is_owed_from_before_has_a_line_without_any_example():
    found = by_line(
        whence.shares.shares(
            table([[1.0, 1.0]]),
            {"d0": "a", "d1": "a"},
            carried={"gone": "7.50", "zero": "0"},
            config=SharesConfig(payout="1 EUR"),
        )
    )
    assert found["source", "gone"].settled.paid == 750 and ("source", "zero") not in found


def test_many_sources_of_a_query_end_in_one_row():
    scores = table(torch.arange(1, 151).float()[None])
    found = whence.shares.shares(scores, {f"d{n}": f"s{n}" for n in range(150)}, config=SharesConfig(floor="off"))
    rows = list(csv.DictReader(io.StringIO(csv_text(queries_rows(found)))))
    assert len(rows) == 101 and rows[-1]["kind"] == "others" and rows[-1]["name"] == "50 more sources"
    assert float(rows[-1]["share"]) == pytest.approx(sum(range(1, 51)) / sum(range(1, 151)))


# Weights and several tables


def test_a_month_of_tables():
    days = {"monday": table(drawn(2, seed=1)), "tuesday": table(drawn(3, seed=2))}
    found = whence.shares.shares(days, SOURCES, config=SharesConfig(several="queries"))
    assert found.query_ids == ("monday:q0", "monday:q1", "tuesday:q0", "tuesday:q1", "tuesday:q2")
    once = whence.shares.shares(table(torch.cat([one.scores for one in days.values()])), SOURCES)
    assert found.lines == once.lines


def test_weights_are_numbers_of_askings():
    scores = drawn(2)
    weighed = whence.shares.shares(table(scores), SOURCES, weights={"q0": 3, "q1": 1})
    asked = whence.shares.shares(table(scores[[0, 0, 0, 1]]), SOURCES)
    for one, other in zip(weighed.lines, asked.lines, strict=True):
        assert one.name == other.name and one.share == pytest.approx(other.share, abs=2e-12)


# Intervals


def test_the_interval_over_models_is_the_jackknife():
    models = [drawn(seed=seed) + 2 * drawn(seed=9) for seed in range(5)]
    found = by_line(whence.shares.shares([table(scores) for scores in models], SOURCES, config=SharesConfig(several="models")))

    def again(chosen):
        per_query = [query_shares([scores[q].tolist() for scores in chosen], OWNERS) for q in range(5)]
        return total_shares(per_query, [1] * 5)

    whole, without = again(models), [again(models[:m] + models[m + 1 :]) for m in range(5)]
    for name in [("source", "source 0"), ("source", "source 3"), ("unknown", "")]:
        left = np.array([float(each[name]) for each in without])
        error = np.sqrt(4 / 5 * ((left - left.mean()) ** 2).sum())
        low, high = found[name].over_models
        assert low == pytest.approx(float(whole[name]) - 2.7764 * error) and high == pytest.approx(
            float(whole[name]) + 2.7764 * error
        )


def test_the_interval_over_models_covers_what_more_models_say():
    """Half the noise of a model's scores is its own: of many ensembles of five, most intervals hold the share of all hundred."""
    shared, sources = drawn(3, 30, seed=7), {f"d{n}": f"s{n % 3}" for n in range(30)}
    models = [table(shared + drawn(3, 30, seed=100 + m)) for m in range(100)]
    truth = by_line(whence.shares.shares(models, sources, config=SharesConfig(several="models")))["source", "s0"].share
    held = 0
    for first in range(0, 100, 5):
        low, high = by_line(whence.shares.shares(models[first : first + 5], sources, config=SharesConfig(several="models")))[
            "source", "s0"
        ].over_models
        held += low <= truth <= high
    assert held >= 16  # of 20; 95 % would be 19, and a mean of five keeps some of the bias of noise


def test_the_interval_over_queries_is_the_bootstrap():
    weights = [1.0, 2.0, 0.0, 4.0, 1.0]
    named = {f"q{n}": weight for n, weight in enumerate(weights)}
    found = whence.shares.shares(table(drawn()), SOURCES, weights=named, config=SharesConfig(draws=200, seed=3))
    generator, means = random.Random(3), []
    for _ in range(200):
        chosen = [int(generator.random() * 5) for _ in range(5)]
        weight = sum(weights[q] for q in chosen)
        if weight:
            means.append(sum(weights[q] * found.shares[q] for q in chosen) / weight)
    low, high = np.quantile(np.stack(means), [0.025, 0.975], axis=0)
    for place, line in enumerate(found.lines):
        assert line.over_queries == pytest.approx((low[place], high[place]))
        assert line.over_models is None
    assert whence.shares.shares(table(drawn(1)), SOURCES).lines[0].over_queries is None


# Refusals


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rule": "fair"}, "the rule 'fair'; needed one of: positive, softmax, signed"),
        ({"rule": "softmax"}, "the rule softmax without a temperature"),
        ({"temperature": 1.0}, "the rule positive with a temperature"),
        ({"rule": "softmax", "temperature": 0.0}, "temperature=0.0; needed a number above zero"),
        ({"floor": -1.0}, "floor=-1.0; needed a number above zero, or off"),
        ({"floor": "auto"}, "floor='auto'; needed a number above zero, or off"),
        ({"draws": 0}, "draws=0; needed 1 or more"),
        ({"floor": 1.0, "floor_errors": 1.0}, "two noise floors"),
        ({"floor_errors": 1.0}, r"a noise floor in standard errors over 1 model\(s\)"),
        ({"minimum": "5"}, "a minimum without a payout"),
        ({"carried": {"a": "5"}}, "a carried amount without a payout"),
        ({"payout": "1000"}, "the payout '1000'; needed an amount and the three capital letters"),
        ({"payout": "1000 euro"}, "the payout '1000 euro'"),
        ({"payout": "1,000.00 EUR"}, "the amount '1,000.00'; needed a number of EUR that is not negative, with 2 digits"),
        ({"payout": "10.001 EUR"}, "the amount '10.001'"),
        ({"payout": "10.5 JPY"}, "the amount '10.5'; needed a number of JPY that is not negative, with 0 digits"),
        ({"payout": "-1 EUR"}, "the amount '-1'"),
        ({"payout": "NaN EUR"}, "the amount 'NaN'"),
        ({"payout": "1 EUR", "minimum": "much"}, "the amount 'much'"),
        ({"weights": {"q0": 1.0}}, "1 weights for 5 queries, of which 'q1' is only on one side"),
        ({"weights": dict.fromkeys(("q0", "q1", "q2", "q3", "q4"), 0.0)}, "one is negative or no number, or all are zero"),
        ({"weights": dict.fromkeys(("q0", "q1", "q2", "q3", "q4"), -1.0)}, "one is negative or no number"),
        ({"several": "models"}, r"1 table\(s\) and several='models'"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit(options, says):
    more = {name: value for name, value in options.items() if name in ("weights", "carried")}
    with pytest.raises((BadInput, UnknownOption), match=says):
        config = SharesConfig(**{name: value for name, value in options.items() if name not in more})
        whence.shares.shares(table(drawn()), SOURCES, config=config, **more)


def test_tables_that_do_not_fit(tmp_path):
    first = table(drawn())
    for others, several, says in (
        ([], None, r"0 table\(s\); needed one table"),
        ([first, first], None, r"2 table\(s\); needed one table, or more and whether"),
        ([first, table(drawn(), queries=tuple("abcde"))], "models", "other query ids in table 2 than in table 1"),
        ([first, table(drawn(), unit="bits")], "queries", "other unit in table 2"),
        ([first, table(drawn(), name="another")], "queries", "other method in table 2"),
        ([tmp_path, str(tmp_path)], "queries", "twice; needed every table once"),
        (tmp_path, None, "no score table"),
    ):
        with pytest.raises(BadInput, match=says):
            whence.shares.shares(others, SOURCES, config=SharesConfig(several=several))
    with pytest.raises(NonFinite, match="a NaN or infinite score"):
        whence.shares.shares(replace(first, scores=first.scores / 0), SOURCES)


def test_sources_that_do_not_fit():
    with pytest.raises(BadInput, match="no source for any of the 40 training examples, such as 'd0'; .* such as 'x'"):
        whence.shares.shares(table(drawn()), {"x": "a"})
    for records, says in (
        (["text"], "record 0, a str; needed a mapping"),
        ([{"id": "a"}, {"id": "a"}], "two records with the id 'a'"),
        ([{"source": ["a", "b"]}], "several values in the field 'source' of '0'"),
        ([{"text": "a"}], "no record with the field 'source', of 1"),
    ):
        with pytest.raises(BadInput, match=says):
            whence.shares.named_sources(records)


def test_parts_that_cannot_be_split_by():
    for total, bad in ((-1, [1]), (1, []), (1, [0, 0]), (1, [-1, 2]), (1, [float("nan")]), (1, [float("inf")])):
        with pytest.raises(BadInput, match="to be split by"):
            apportion(total, bad)


def test_draws_of_queries_without_weight_say_nothing(tmp_path):
    weights = {"q0": 1.0} | {f"q{n}": 0.0 for n in range(1, 5)}
    config = SharesConfig(draws=1, seed=next(n for n in range(99) if not drawn_first(n)))
    found = whence.shares.shares(table(drawn()), SOURCES, config=config, weights=weights)
    assert all(line.over_queries is None for line in found.lines)
    whence.shares.write_shares(found, tmp_path / "r")
    content = json.loads((tmp_path / "r" / "shares.json").read_text())
    assert content["intervals"]["over_queries"].startswith("none: all 1 draws were of queries without weight")
    assert "No interval is given" in (tmp_path / "r" / "report.html").read_text()
    assert not whence.shares.verify_shares(tmp_path / "r").faults


def drawn_first(seed):
    """Whether a draw of five queries has the first one."""
    generator = random.Random(seed)
    return 0 in [int(generator.random() * 5) for _ in range(5)]
