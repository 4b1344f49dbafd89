"""Brittleness and removal curves against retraining by brute force, with a model that is fitted in closed form."""

import json
from dataclasses import dataclass

import pytest
import torch

from whence.errors import BadInput, NonFinite
from whence.evaluate import Retraining, brittleness, removal_curve
from whence.records import ScoreTable

GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.arange(60) % 2
FEATURES = torch.randn(60, generator=GENERATOR, dtype=torch.float64) + 1.5 * LABELS
QUERY_LABELS = torch.tensor([0, 1, 0, 1, 0, 1, 0])
QUERIES = torch.tensor([0.72, 0.78, -1.0, 3.0, 0.5, 1.1, 5.0], dtype=torch.float64)
KS = (2, 5, 10, 16)


@dataclass(frozen=True)
class Means:
    """The class with the nearer mean; the seed moves them a little."""

    def __call__(self, keep, seed):
        shift = 0.02 * seed
        return [float(FEATURES[keep & (label == LABELS)].mean()) + shift for label in (0, 1)]


def correct(means):
    nearer_one = (QUERIES - means[1]).abs() < (QUERIES - means[0]).abs()
    return (nearer_one.long() == QUERY_LABELS).double()


def distance_loss(means):
    return torch.stack([(value - means[label]).abs() for value, label in zip(QUERIES, QUERY_LABELS.tolist(), strict=True)])


def table(scores):
    queries = tuple(f"q{number}" for number in range(len(scores)))
    return ScoreTable(scores, queries, tuple(f"t{number}" for number in range(scores.shape[1])), "none", "nearest")


# An example of the query's class that holds the class mean on the query's side.
NEAREST = torch.where(LABELS[None] == QUERY_LABELS[:, None], (QUERY_LABELS * -2 + 1)[:, None] * FEATURES, -100.0)


def run(
    folder, *, scores=NEAREST, measure=correct, train=Means(), labels=LABELS, ks=KS, seeds=(0, 1, 2), workers=1, draw_seed=0
):
    return brittleness(
        train, measure, table(scores), labels, QUERY_LABELS,
        Retraining(seeds=seeds, folder=folder, fingerprint="f", workers=workers, quiet=True), ks=ks, draw_seed=draw_seed,
    )  # fmt: skip


def flips_by_force(order, query, seeds):
    """Smallest k that flips the query, every k tried."""
    flipped = []
    for k in KS:
        keep = torch.ones(60, dtype=torch.bool)
        keep[order[:k]] = False
        if sum(float(correct(Means()(keep, seed))[query]) for seed in seeds) / len(seeds) < 0.5:
            flipped.append(k)
    return min(flipped, default=None)


def test_flips_are_those_of_trying_every_k(tmp_path):
    found = run(tmp_path)
    everything = torch.ones(60, dtype=torch.bool)
    kept = [query for query in range(7) if all(correct(Means()(everything, seed))[query] for seed in (0, 1, 2))]
    assert found.num_queries == 7 and found.query_ids == tuple(f"q{query}" for query in kept) and "q6" not in found.query_ids
    expected = [flips_by_force(NEAREST[query].argsort(descending=True), query, (0, 1, 2)) for query in kept]
    assert list(found.flipped_at["proponents"]) == expected
    assert len({at for at in expected if at is not None}) > 1 and None in expected
    for k in KS:
        share = sum(at is not None and at <= k for at in expected) / len(kept)
        assert found.share("proponents", k).mean == pytest.approx(share)


def test_only_queries_that_stand_are_trained_for(tmp_path):
    found = run(tmp_path)
    runs = 3 + sum(3 * (len(KS) if at is None else KS.index(at) + 1) for places in found.flipped_at.values() for at in places)
    # Two queries of one class may ask for the same removal, which is trained once.
    assert found.num_runs == len(list(tmp_path.iterdir())) <= runs
    assert run(tmp_path, train=None).to_dict() == found.to_dict()


def test_controls_stay_in_their_class_and_proponents_beat_them(tmp_path):
    found = run(tmp_path)
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert list(record["shares"]) == ["proponents", "random, same label", "random"]
    at = {name: found.share(name, KS[-1]).mean for name in found.flipped_at}
    assert at["proponents"] > at["random, same label"] and at["proponents"] > at["random"]
    removed = [set(json.loads(path.read_text())["removed"]) for path in tmp_path.iterdir()]
    one_class = [places for places in removed if places and len({int(LABELS[place]) for place in places}) == 1]
    assert len(one_class) > len(removed) / 2
    # Nested: each larger removal holds a smaller one that was tried before.
    for small, large in zip(KS, KS[1:], strict=False):
        for places in (found for found in removed if len(found) == large):
            assert any(len(fewer) == small and fewer < places for fewer in removed)


@dataclass(frozen=True)
class BySeed:
    """What was kept, and the seed."""

    def __call__(self, keep, seed):
        return bool(keep.all()), seed


def right_when_whole_or_seed_zero(model):
    return torch.full((7,), float(model[0] or model[1] == 0))


def test_half_of_the_seeds_is_not_a_flip(tmp_path):
    for seeds, at in (((0, 1), None), ((0, 1, 2), KS[0])):
        found = run(tmp_path, train=BySeed(), measure=right_when_whole_or_seed_zero, seeds=seeds)
        assert set(found.flipped_at["proponents"]) == {at}


def test_draws_are_seeded(tmp_path):
    assert run(tmp_path / "a").to_dict() == run(tmp_path / "b").to_dict()
    files = [{path.name for path in folder.iterdir()} for folder in (tmp_path / "a", tmp_path / "b")]
    run(tmp_path / "b", draw_seed=1)
    assert files[0] == files[1] < {path.name for path in (tmp_path / "b").iterdir()}


def test_impossible_requests_are_refused(tmp_path):
    for options, text in [
        ({"labels": LABELS[1:]}, r"labels of shape \(59,\) and \(7,\) for a table of \(7, 60\)"),
        ({"ks": (0, 2)}, "for 60 training examples; needed positive numbers, all different, that leave something"),
        ({"ks": (60,)}, "that leave something to train on"),
        ({"ks": (2, 2)}, "all different"),
        ({"ks": (40,)}, "30 training examples with the label 1 of a query; needed at least 40"),
        ({"seeds": (1, 1)}, r"the seeds \[1, 1\]; needed at least one, all different"),
        ({"workers": 0}, "workers=0"),
        ({"measure": distance_loss}, "values from .* for 7 queries; needed 1 for each query that the model gets right"),
    ]:
        with pytest.raises(BadInput, match=text):
            run(tmp_path / text[:5], **options)
    with pytest.raises(BadInput, match="none of 7 queries right in all 1 full runs"):
        run(tmp_path / "none", measure=lambda means: torch.zeros(7), seeds=(0,))
    with pytest.raises(NonFinite, match="a NaN or infinite score in the table of nearest"):
        run(tmp_path / "nan", scores=NEAREST / 0)


def curve(folder, *, scores=NEAREST, workers=1, **options):
    return removal_curve(
        Means(), distance_loss, table(scores),
        Retraining(seeds=(0, 1, 2), folder=folder, fingerprint="f", workers=workers, quiet=True), **options,
    )  # fmt: skip


def test_the_curve_is_that_of_the_summed_scores(tmp_path):
    scores = torch.randn(7, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = curve(tmp_path, scores=scores, fractions=(0.2, 0.05))
    assert found.fractions == (0.05, 0.2) and found.num_removed == (3, 12)
    everything = torch.ones(60, dtype=torch.bool)
    for fraction, number in ((0.05, 3), (0.2, 12)):
        keep = everything.clone()
        keep[scores.sum(0).argsort(descending=True)[:number]] = False
        rises = [
            float((distance_loss(Means()(keep, seed)) - distance_loss(Means()(everything, seed))).mean()) for seed in (0, 1, 2)
        ]
        assert found.rise(fraction).mean == pytest.approx(sum(rises) / 3)
        assert found.over_random(fraction).mean == pytest.approx(found.rise(fraction).mean - found.random(fraction).mean)
        # Each seed has its own random examples.
        sets = {
            tuple(record["removed"])
            for path in tmp_path.iterdir()
            if len((record := json.loads(path.read_text()))["removed"]) == number
        }
        assert len(sets) == 4
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [point["num_removed"] for point in record["points"]] == [3, 12] and record["num_seeds"] == 3


def test_scores_that_are_the_truth_rise_over_random(tmp_path):
    everything = torch.ones(60, dtype=torch.bool)
    rises = []
    for example in range(60):
        keep = everything.clone()
        keep[example] = False
        rises.append(distance_loss(Means()(keep, 0)) - distance_loss(Means()(everything, 0)))
    true = curve(tmp_path, scores=torch.stack(rises, 1), fractions=(0.1, 0.3))
    assert true.over_random(0.1).low > 0 and true.over_random(0.3).low > 0
    assert true.rise(0.1).mean < true.rise(0.3).mean


def test_impossible_curves_are_refused(tmp_path):
    for fractions in ((0.001,), (1.0,), (0.1, 0.101), ()):
        with pytest.raises(BadInput, match="needed different numbers of examples, at least 1 and not all"):
            curve(tmp_path, fractions=fractions)
    with pytest.raises(BadInput, match="workers=0"):
        curve(tmp_path, workers=0)
