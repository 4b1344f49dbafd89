"""Selections against loops, quotas against a water level, weights against a general optimiser, and the proof against what was planted."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import whence
from tests.reference.selecting import choose, water_level
from tests.settings import QUIET
from tests.zoo import make
from whence.errors import BadInput, NonFinite, UnknownOption
from whence.evaluate import Retraining, load_table, save_table
from whence.score import Ensemble, mean_table
from whence.select.budget import Budget, allot, soft_weights
from whence.select.proof import random_twin
from whence.settings import SelectConfig
from whence.store.files import SEAL

SIZES = [3, 9, 4, 4, 7, 1, 2, 8, 5, 6, 3, 2]
NAMES = list("abbbccbbaccc")


def table(scores, **options):
    scores = torch.as_tensor(scores, dtype=torch.float64).reshape(-1, np.shape(scores)[-1])
    ids = tuple(f"t{number}" for number in range(scores.shape[1]))
    return whence.ScoreTable(scores, tuple(f"q{number}" for number in range(len(scores))), ids, "nats", "planted", **options)


def values(seed=0, size=12):
    return torch.randn(2, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kept(selection):
    return set(torch.nonzero(selection.keep).flatten().tolist())


@pytest.mark.parametrize("quota", ["proportional", "equal", {"a": 1, "b": 0, "c": 3}])
@pytest.mark.parametrize("unit", ["examples", "tokens"])
@pytest.mark.parametrize("prefer", ["high", "low"])
def test_what_is_kept_is_what_a_loop_keeps(quota, unit, prefer):
    scores = values()
    caps = {name: sum(SIZES[i] if unit == "tokens" else 1 for i in range(12) if NAMES[i] == name) for name in "abc"}
    amount = 25 if unit == "tokens" else 6
    weights = [1] * 3 if quota == "equal" else list(caps.values()) if quota == "proportional" else list(quota.values())
    quotas = dict(zip("abc", allot(amount, weights, list(caps.values())), strict=True))
    found = whence.select.select(
        table(scores),
        groups=NAMES,
        tokens=SIZES,
        config=SelectConfig(prefer=prefer, quota=quota, keep=f"{amount} tokens" if unit == "tokens" else 6),
    )
    signed = (scores.mean(0) * (1 if prefer == "high" else -1)).tolist()
    assert kept(found) == choose(signed, NAMES, SIZES if unit == "tokens" else [1] * 12, quotas)


def test_keeping_and_dropping_are_two_sides():
    scores = table(values())
    assert (
        kept(whence.select.select(scores, config=SelectConfig(keep=9)))
        == kept(whence.select.select(scores, config=SelectConfig(drop=3)))
        == kept(whence.select.select(scores, config=SelectConfig(keep="75%")))
    )
    assert kept(whence.select.select(scores, config=SelectConfig(keep=0.75))) == kept(
        whence.select.select(scores, config=SelectConfig(drop="25%"))
    )
    worst = set(values().mean(0).argsort()[:3].tolist())
    assert set(whence.select.select(scores, config=SelectConfig(drop=3)).dropped) == worst
    assert (
        set(whence.select.select(table(values(), values="loss"), config=SelectConfig(keep=3)).keep.nonzero().flatten().tolist())
        == worst
    )


def test_values_of_every_kind_are_ranked_by_what_they_are():
    """Every kind of table by every criterion; what is kept was read off by hand."""
    numbers, by_kind = [[0.3, -0.1, 0.9, 0.5]], {"scores": "influence", "self-influence": "self-influence", "loss": "loss"}
    # A high score or draw helps; high self-influence and high loss are suspicious.
    worth_keeping = {"scores": {2, 3}, "random": {2, 3}, "self-influence": {0, 1}, "loss": {0, 1}}
    for kind, by in {**by_kind, "random": "random"}.items():
        marked = table(numbers, values=kind)
        for wanted in (None, "influence", "self-influence", "loss", "random"):
            config = SelectConfig(by=wanted, drop=2)
            if wanted in (None, by):
                chosen = whence.select.select(marked, config=config)
                assert kept(chosen) == worth_keeping[kind] and chosen.by == by
                continue
            with pytest.raises(
                BadInput, match=f"found by='{wanted}' for a table of 1 x 4 values that are '{kind}'; .*by='{by}'"
            ):
                whence.select.select(marked, config=config)
        other_end = whence.select.select(marked, config=SelectConfig(drop=2, prefer="low"))
        assert kept(other_end) == {0, 1}
    with pytest.raises(UnknownOption, match="found a table with values='size'; needed one of: scores, self-influence"):
        whence.select.select(table(numbers, values="size"), config=SelectConfig(drop=2))


def without(path, name, more=()):
    """A record as another program would write it: without a field, and without the digest of itself."""
    content = {field: value for field, value in json.loads(path.read_text()).items() if field not in (name, SEAL)}
    path.write_text(json.dumps(content | dict(more)))


def test_tables_of_the_library_say_what_their_values_are(tmp_path):
    task, data = make("linear", 8)
    for kind, made in (
        ("scores", whence.attribute(task, data, whence.data.Dataset(data.examples[:2]), runtime=QUIET)),
        ("self-influence", whence.self_influence(task, data, runtime=QUIET)),
        ("loss", whence.select.value_table(task, data, "loss", runtime=QUIET)),
        ("random", whence.select.value_table(None, data, "random")),
    ):
        save_table(made, tmp_path / kind)
        assert made.values == load_table(tmp_path / kind).values == mean_table([made, made]).values == kind
        ensemble = Ensemble(tmp_path / f"mean of {kind}")
        ensemble.add(made, member="a")
        assert ensemble.table().values == kind
        with pytest.raises(BadInput, match="other values than the ensemble in"):
            ensemble.add(replace(made, values="loss" if kind == "scores" else "scores"), member="b")
        # Written before tables said so: the unit, which nothing else has, tells.
        for path in (tmp_path / kind / "table.json", tmp_path / f"mean of {kind}" / "ensemble.json"):
            without(path, "values")
        assert load_table(tmp_path / kind).values == Ensemble(tmp_path / f"mean of {kind}").table().values == kind
        with pytest.raises(BadInput, match="found tables of .* and of .*; needed tables of one kind"):
            mean_table([made, replace(made, values="loss" if kind == "scores" else "scores")])
    # The example that does most to itself goes first, where it was kept.
    own = whence.self_influence(task, data, runtime=QUIET)
    assert whence.select.select(own, config=SelectConfig(drop=1)).dropped == [int(own.scores[0].argmax())]
    without(tmp_path / "loss" / "table.json", "values", {"values": "size"})
    with pytest.raises(BadInput, match="which is no score table"):
        load_table(tmp_path / "loss")


def test_values_per_token():
    found = whence.select.select(table(values()), tokens=SIZES, config=SelectConfig(keep=4, per_token=True))
    best = (values().mean(0) / torch.tensor(SIZES)).argsort(descending=True)[:4]
    assert kept(found) == set(best.tolist())
    assert found.unit == "nats per token" and found.decisions[0].tokens == 3


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), min_size=1, max_size=7), st.integers(0, 120))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_quotas_follow_the_water_level(groups, amount):
    weights, caps = [list(side) for side in zip(*groups, strict=True)]
    given_out, exact = allot(amount, weights, caps), water_level(amount, weights, caps)
    assert sum(given_out) == sum(exact) == min(amount, sum(cap for weight, cap in groups if weight))
    for got, level, cap in zip(given_out, exact, caps, strict=True):
        assert abs(got - level) < 1 and 0 <= got <= cap


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("effective", [1.5, 3.0, 5.5])
def test_weights_are_the_best_that_are_as_even(seed, effective):
    wanted = torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = soft_weights(wanted, effective)
    assert float(weights.mean()) == pytest.approx(1)
    assert float(weights.sum() ** 2 / weights.square().sum()) == pytest.approx(effective)
    # Maximise w v with sum w = 7 and sum w^2 <= 49 / effective.
    best = minimize(
        lambda w: -w @ wanted.numpy(), np.ones(7), jac=lambda w: -wanted.numpy(), bounds=[(0, None)] * 7, method="SLSQP",
        constraints=[
            {"type": "eq", "fun": lambda w: w.sum() - 7},
            {"type": "ineq", "fun": lambda w: 49 / effective - w @ w},
        ],
        options={"maxiter": 500, "ftol": 1e-12},
    )  # fmt: skip
    assert float(weights @ wanted) == pytest.approx(-best.fun, abs=1e-6)
    torch.testing.assert_close(weights, torch.from_numpy(best.x), atol=1e-3, rtol=0)


def test_weights_at_the_ends():
    assert torch.equal(soft_weights(torch.zeros(4), 1.0), torch.ones(4, dtype=torch.float64))
    assert torch.equal(soft_weights(torch.tensor([1.0, 2.0]), 2.0), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(soft_weights(torch.tensor([1.0, 2.0, 2.0]), 1.0), torch.tensor([0, 1.5, 1.5]).double())


def test_reweighting_keeps_each_groups_share():
    found = whence.select.select(table(values()), groups=NAMES, config=SelectConfig(keep="50%", reweight=True))
    assert float(found.weights.mean()) == pytest.approx(1)
    for name in "abc":
        inside = torch.tensor([other == name for other in NAMES])
        assert float(found.weights[inside].sum()) == pytest.approx(12 * {"a": 1, "b": 3, "c": 2}[name] / 6, rel=0.35)
        part = found.weights[inside]
        assert float(part.sum() ** 2 / part.square().sum()) <= inside.sum()
    assert found.summary()["effective_examples"] <= 7
    assert (
        found.predicted_change()
        > whence.select.select(table(values()), config=SelectConfig(keep="100%")).predicted_change()
        == 0
    )
    assert found.decisions[int(found.weights.argmax())].reason.startswith("weight ")


def test_of_near_duplicates_the_best_is_kept():
    found = whence.select.select(
        table([[1.0, 3.0, 2.0, 2.5, 0.0]]), duplicates={"t1": "t0", "t2": "t0"}, config=SelectConfig(keep=3)
    )
    assert kept(found) == {1, 3, 4}
    assert [decision.duplicate_of for decision in found.decisions] == ["t1", None, "t1", None, None]
    assert found.decisions[2].reason.startswith("dropped: a near-duplicate of 't1', which ranks higher")
    assert kept(whence.select.select(table([[1.0, 3.0, 2.0]]), duplicates={"t1": "t0"})) == {1, 2}
    assert found.summary()["duplicates_dropped"] == 2


def test_reasons_ranks_and_summary():
    found = whence.select.select(table([[0.5, -0.25, 0.0, 1.0]]), config=SelectConfig(drop=2))
    assert [decision.reason for decision in found.decisions] == [
        "kept: it helps the validation set (+0.5); rank 2 of 4, of which 2 are kept",
        "dropped: it harms the validation set (-0.25); rank 4 of 4, of which 2 are kept",
        "dropped: it does nothing to the validation set; rank 3 of 4, of which 2 are kept",
        "kept: it helps the validation set (+1); rank 1 of 4, of which 2 are kept",
    ]
    forced = whence.select.select(table([[0.5, -0.25, -0.5]]), tokens=[3, 1, 1], config=SelectConfig(keep="2 tokens"))
    assert [decision.reason for decision in forced.decisions] == [
        "dropped, though it helps the validation set (+0.5); rank 1 of 3, of which 2 tokens are kept",
        "kept, though it harms the validation set (-0.25); rank 2 of 3, of which 2 tokens are kept",
        "kept, though it harms the validation set (-0.5); rank 3 of 3, of which 2 tokens are kept",
    ]
    low = whence.select.select(table([[0.5, -0.25]]), config=SelectConfig(keep=1, prefer="low"))
    assert [decision.reason.split(" (")[0] for decision in low.decisions] == [
        "dropped: it helps the validation set",
        "kept: it harms the validation set",
    ]
    summary = found.summary()
    assert summary["kept"] == summary["dropped"] == 2 and summary["predicted_change"] == 0.25
    assert summary["kept_though_harmful"] == summary["dropped_though_helpful"] == 0
    grouped = whence.select.select(
        table([[0.5, -0.25, 0.0, 1.0]]), groups=[1, 1, 2, 2], tokens=[5, 5, 5, 5], config=SelectConfig(keep=2)
    )
    assert grouped.decisions[3].reason.endswith("rank 1 of 2 in '2', of which 1 are kept")
    assert grouped.summary()["groups"] == {"1": {"examples": 2, "kept": 1}, "2": {"examples": 2, "kept": 1}}
    assert grouped.summary()["tokens_kept"] == 10
    tokens = whence.select.select(
        table([[2.0, 1.0]], values="self-influence"), tokens=[5, 5], config=SelectConfig(keep="7 tokens")
    )
    assert tokens.decisions[1].reason == "kept: its self-influence is 1; rank 1 of 2, of which 7 tokens are kept"
    assert (
        whence.select.select(table([[2.0, 1.0]], values="random"), config=SelectConfig(keep=1))
        .decisions[0]
        .reason.startswith("kept: drawn at random; rank 1")
    )


def test_a_selection_is_written_and_read(tmp_path):
    found = whence.select.select(
        table(values()), groups=NAMES, tokens=SIZES, duplicates={"t3": "t2"}, config=SelectConfig(keep=5)
    )
    found.save(tmp_path / "chosen")
    assert whence.select.load_selection(tmp_path / "chosen") == found
    lines = (tmp_path / "chosen" / "list.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(table(values()).train_ids)
    (tmp_path / "chosen" / "summary.json").write_text("{}")
    with pytest.raises(BadInput, match="which holds no selection .*needed list.jsonl and summary.json"):
        whence.select.load_selection(tmp_path / "chosen")


def test_what_is_kept_is_written_as_it_was(tmp_path):
    records = [{"id": name, "text": f"text {name} \u00e9", "meta": {"a": [1, 2.5, None]}} for name in table(values()).train_ids]
    chosen = whence.select.select(table(values()), config=SelectConfig(keep=5))
    chosen.save(tmp_path / "chosen", records=records)
    lines = [json.loads(line) for line in (tmp_path / "chosen" / "kept.jsonl").read_text("utf-8").splitlines()]
    assert lines == [record for record, keep in zip(records, chosen.keep.tolist(), strict=True) if keep] and len(lines) == 5
    assert whence.select.load_selection(tmp_path / "chosen") == chosen
    # What JSON does not hold as it is is not turned into something else.
    for odd in (
        torch.zeros(4097),
        np.zeros(2, dtype="datetime64[s]"),
        np.ma.masked_equal([0, 1], 0),
        np.array([np.nan]),
        float("nan"),
        (1, 2),
        {1: "a"},
    ):
        chosen.save(tmp_path / "odd", records=[{**record, "odd": odd} for record in records])
        assert not (tmp_path / "odd" / "kept.jsonl").exists() and (tmp_path / "odd" / "list.jsonl").exists()
    # Small arrays are lists, of the same numbers.
    small = {"x": np.float32(0.1) * np.ones((2, 2), dtype="float32"), "y": np.int64(2), "z": [torch.tensor([True, False])]}
    chosen.save(tmp_path / "small", records=[{**record, **small} for record in records])
    line = json.loads((tmp_path / "small" / "kept.jsonl").read_text("utf-8").splitlines()[0])
    tenth = float(np.float32(0.1))
    assert (line["x"], line["y"], line["z"]) == ([[tenth] * 2] * 2, 2, [[True, False]])
    with pytest.raises(BadInput, match="found 2 records for 12 decisions; needed the record of every example"):
        chosen.save(tmp_path / "few", records=records[:2])


def test_a_selection_says_what_its_values_say(tmp_path):
    noted = replace(table(values()), notes=("damping 0.1 x mean eigenvalue",))
    chosen = whence.select.select(noted, config=SelectConfig(keep=5))
    chosen.save(tmp_path / "chosen")
    assert chosen.summary()["notes"] == ["damping 0.1 x mean eigenvalue"]
    assert whence.select.load_selection(tmp_path / "chosen").notes == chosen.notes


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "found no budget; needed keep or drop"),
        ({"keep": 3, "drop": 3}, "found keep=3 and drop=3; needed one of them"),
        ({"keep": "half"}, "found the amount 'half'; needed a number of examples, a share, or a number of tokens"),
        ({"keep": 0}, "found the amount 0"),
        ({"keep": True}, "found keep=True; needed a text or a whole number"),
        ({"keep": 1.5}, "found the amount 1.5"),
        ({"keep": "120%"}, "found the amount '120%'"),
        ({"keep": 13}, "found keep=13 of 12 examples; needed something to choose from; do this: keep less"),
        ({"drop": 12}, "found drop=12 of 12 examples; needed something to keep; do this: drop less"),
        ({"keep": 3, "quota": "equal"}, "found quota='equal' without groups"),
        ({"keep": 3, "per_token": True}, "found per_token without tokens"),
        ({"keep": "9 tokens"}, "found a budget in tokens without tokens"),
        ({"keep": "9 tokens", "tokens": SIZES, "reweight": True}, "found reweight with a budget in tokens"),
        ({"duplicates": {}, "reweight": True}, "found no budget"),
        ({"keep": 3, "groups": ["a"]}, "found 1 groups for 12 examples; needed one for each"),
        ({"keep": 3, "tokens": [1]}, "found 1 tokens for 12 examples"),
        ({"keep": 3, "duplicates": {"t1": "x"}}, "found the near-duplicate 'x', which has no value"),
        ({"keep": 3, "groups": NAMES, "quota": {"a": 1}}, r"found quotas for a \('b' is only there or only in the data\)"),
        ({"keep": 3, "groups": NAMES, "quota": {"a": 1, "b": -1, "c": 1}}, "found negative quotas, or none above 0"),
    ],
)
def test_what_cannot_be_done_is_said(options, text):
    options = dict(options)
    with pytest.raises(BadInput, match=text):
        facts = {name: options.pop(name) for name in ("groups", "tokens", "duplicates") if name in options}
        whence.select.select(table(values()), config=SelectConfig(**options), **facts)


def test_unknown_words_and_bad_tables():
    for options, text in (
        ({"by": "size"}, "found by='size'; needed one of: influence, self-influence, loss, knn-shapley, random"),
        ({"prefer": "best"}, "found prefer='best'; needed one of: high, low"),
        ({"quota": "fair"}, "found quota='fair'; needed one of: proportional, equal"),
    ):
        with pytest.raises(UnknownOption, match=text):
            whence.select.select(table(values()), config=SelectConfig(keep=1, **options))
    with pytest.raises(NonFinite, match="found the value nan of 't1'"):
        whence.select.select(table([[0.0, float("nan")]]), config=SelectConfig(keep=1))
    wrong = whence.ScoreTable(torch.zeros(2, 3), ("q",), ("a", "b"), "", "")
    with pytest.raises(BadInput, match=r"found values of shape \(2, 3\) for 1 query and 2 train ids"):
        whence.select.select(wrong, config=SelectConfig(keep=1))


def test_value_tables_are_those_of_the_functions_behind_them():
    task, data = make("linear", 8)
    asked = whence.data.Dataset(data.examples[:2])
    influence = whence.select.value_table(task, data, validation=asked, runtime=QUIET)
    assert torch.equal(influence.scores, whence.attribute(task, data, asked, runtime=QUIET).scores)
    own = whence.select.value_table(task, data, "self-influence", method="kfac", runtime=QUIET)
    assert torch.equal(own.scores, whence.self_influence(task, data, method="kfac", runtime=QUIET).scores)
    with torch.no_grad():
        losses = task.loss(task.model, task.collate(data.examples))
    torch.testing.assert_close(whence.select.value_table(task, data, "loss", runtime=QUIET).scores[0], losses)
    drawn = [whence.select.value_table(None, data, "random", seed=seed).scores for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2]) and drawn[0].shape == (1, 8)


def test_value_tables_say_what_is_missing():
    task, data = make("linear", 4)
    for arguments, options, text in (
        ((task, data), {}, "found by='influence' without a validation set"),
        ((task, data, "loss"), {"validation": data}, "found by='loss' with a validation set; needed one for influence"),
        ((task, data, "loss"), {"method": "kfac"}, "found method for by='loss'; needed it for influence only"),
        ((task, data, "random"), {"method": whence.EKFAC()}, "found method for by='random'"),
        ((None, data, "loss"), {}, "found by='loss' without a task"),
    ):
        with pytest.raises(BadInput, match=text):
            whence.select.value_table(*arguments, **options)
    with pytest.raises(UnknownOption, match="found by='size'; needed one of: influence"):
        whence.select.value_table(task, data, "size")


def test_budgets_read():
    assert Budget.read("20000 tokens").units(10) == 20000 and Budget.read("12.5%").units(16) == 2


# Every example adds its worth to the model; losses fall with it. So the truth is known.
WORTH = torch.tensor([[3.0, -2.0, 1.0, 0.5, -1.0, 2.0, -3.0, 0.0], [2.0, -1.0, 2.0, 0.5, -2.0, 1.0, -2.0, 0.0]])


def trained(keep, seed):
    return WORTH[:, keep].sum(1) + 0.1 * torch.randn(2, generator=torch.Generator().manual_seed(seed))


def measured(model):
    return -model


def test_the_proof_measures_what_was_planted(tmp_path):
    found = whence.select.select(table(WORTH), config=SelectConfig(drop=3))
    rival = whence.select.select(table(-WORTH), config=SelectConfig(drop=3))
    retraining = Retraining(seeds=range(4), folder=tmp_path, fingerprint="planted", quiet=True)
    proof = whence.select.prove(found, trained, measured, retraining, rivals={"reversed": rival})
    # The noise of a seed is the same with and without, so the change is exactly minus what was predicted.
    assert proof.over_all("influence").mean == pytest.approx(-found.predicted_change(), abs=1e-5)
    twins = torch.stack([WORTH[:, random_twin(found, seed).dropped].sum(1).mean() for seed in range(4)])
    assert proof.over_random("influence").mean == pytest.approx(-found.predicted_change() - float(twins.mean()), abs=1e-5)
    assert proof.over_rival("reversed").high < 0
    assert [row[0] for row in proof.cells()] == ["everything", "influence", "reversed", "random"]
    assert all(len(row) == len(proof.header) for row in proof.cells())
    assert set(proof.to_dict()["over_random"]) == {"influence", "reversed"}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    def never(keep, seed):
        raise AssertionError

    again = whence.select.prove(found, never, measured, retraining, rivals={"reversed": rival})
    assert again.to_dict() == proof.to_dict() and before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


@pytest.mark.parametrize("counts", ["examples", "tokens"])
def test_random_data_is_of_the_same_make(counts):
    keep, tokens = ("30 tokens", SIZES) if counts == "tokens" else (6, None)
    found = whence.select.select(table(values()), groups=NAMES, tokens=tokens, config=SelectConfig(quota="equal", keep=keep))
    twins = [random_twin(found, seed) for seed in (0, 0, 1)]
    assert kept(twins[0]) == kept(twins[1]) != kept(twins[2])
    for name in "abc":
        size = [
            sum((SIZES[i] if counts == "tokens" else 1) for i in kept(one) if NAMES[i] == name) for one in (found, twins[2])
        ]
        assert size[1] <= size[0] and (size[1] == size[0] or counts == "tokens")
    plain = whence.select.select(table(values()), config=SelectConfig(keep=6))
    assert len(kept(random_twin(plain, 5))) == 6


def test_proofs_that_would_not_be_one(tmp_path):
    found = whence.select.select(table(WORTH), config=SelectConfig(drop=3))
    retraining = Retraining(folder=tmp_path, fingerprint="")
    other = whence.select.select(table(values(size=8)[:, [1, 0, 2]]), config=SelectConfig(drop=1))
    for selection, rivals, text in (
        (found, {"random": found}, "found a rival named 'random'"),
        (found, {"x": other}, "found a rival 'x' of other examples"),
        (
            whence.select.select(table(WORTH), config=SelectConfig(keep=3, reweight=True)),
            {},
            "found weights in the selection 'influence'",
        ),
        (
            whence.select.select(table(WORTH, values="random"), config=SelectConfig(by="random", keep=3)),
            {},
            "found a random selection to prove",
        ),
    ):
        with pytest.raises(BadInput, match=text):
            whence.select.prove(selection, trained, measured, retraining, rivals=rivals)
