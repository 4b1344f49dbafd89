"""Removal tests against a training function whose answer is known in closed form."""

import json
import math
from dataclasses import dataclass

import pytest
import torch

from whence.errors import BadInput, NonFinite
from whence.evaluate import RemovalResult, Retraining, mean_interval, measure_runs, random_removals, removal_test, t_quantile
from whence.evaluate.retrain import Run

TARGETS = torch.tensor([1.0, 2.0, 3.0, 10.0], dtype=torch.float64)
PENALTY = 1.0


@dataclass(frozen=True)
class Ridge:
    """One weight on the feature 1: the kept targets' sum over (count + penalty). The seed shifts it."""

    shift: float = 0.0

    def __call__(self, keep, seed):
        return TARGETS[keep].sum() / (keep.sum() + PENALTY) + self.shift * seed


def weight_and_double(model):
    return torch.stack([model, 2 * model])


def not_a_number(model):
    return torch.stack([model * math.nan])


def run(folder, *, train=Ridge(), measure=weight_and_double, removals=None, seeds=(0, 1), **options) -> RemovalResult:
    removals = {"top": [[3]], "random": [[0], [1]]} if removals is None else removals
    return removal_test(
        train, measure, 4, removals, Retraining(seeds=seeds, folder=folder, fingerprint="f", quiet=True, **options)
    )


def test_numbers_by_hand(tmp_path):
    result = run(tmp_path, train=Ridge(shift=0.5))
    # On everything 16/5 = 3.2; without the 10, 6/4 = 1.5; without the 1, 15/4; without the 2, 14/4.
    torch.testing.assert_close(result.baseline_SQ, torch.tensor([[3.2, 6.4], [3.7, 7.4]]).double())
    torch.testing.assert_close(result.conditions["top"].rises, torch.tensor([-1.7, -3.4]).double())
    random = result.conditions["random"]
    torch.testing.assert_close(random.rises_SQ, torch.tensor([[0.55, 1.1], [0.3, 0.6]]).double())
    # Two values a, b: the standard error of their mean is |a - b| / 2.
    torch.testing.assert_close(random.standard_errors, torch.tensor([0.125, 0.25]).double())
    # Seed means 0.825 and 0.45: mean 0.6375, half width 12.7062 * 0.1875.
    assert random.overall.mean == pytest.approx(0.6375)
    assert random.overall.high - random.overall.mean == pytest.approx(12.7062 * 0.1875)
    assert random.num_removed == (1, 1)
    assert result.difference("random", "top").mean == pytest.approx(0.6375 + 2.55)


def test_second_call_trains_nothing(tmp_path):
    first = run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(before) == 6
    second = run(tmp_path, train=None)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert json.dumps(first.to_dict()) == json.dumps(second.to_dict())


@pytest.mark.parametrize("content", ["", "{", '{"seed": 0}', '{"seed": 0, "removed": [], "losses": [NaN, 1]}'])
def test_corrupted_file_is_done_again(tmp_path, content):
    first = run(tmp_path)
    path = tmp_path / f"{Run((), 0).key(4, 'f')}.json"
    path.write_text(content)
    assert run(tmp_path).to_dict() == first.to_dict()
    assert json.loads(path.read_text())["losses"] == first.baseline_SQ[0].tolist()


def test_another_fingerprint_shares_nothing(tmp_path):
    run(tmp_path)
    runs = [Run((), 0)]
    measure_runs(Ridge(), weight_and_double, runs, num_examples=4, folder=tmp_path, fingerprint="g", quiet=True)
    assert len(list(tmp_path.iterdir())) == 7


def test_processes_give_the_same_bits(tmp_path):
    alone, together = run(tmp_path / "one"), run(tmp_path / "two", workers=2)
    assert alone.to_dict() == together.to_dict()


def test_a_failing_worker_ends_the_test(tmp_path):
    for workers in (1, 2):
        with pytest.raises(NonFinite, match="a loss that is not a number after training with seed"):
            run(tmp_path, measure=not_a_number, workers=workers)
    assert not list(tmp_path.iterdir())


def test_one_seed_has_no_interval(tmp_path):
    result = run(tmp_path, seeds=(0,), removals={"top": [[3]]})
    assert result.to_dict()["conditions"]["top"]["overall"]["low"] is None
    assert str(result.conditions["top"].overall) == "-2.55 (one run, no interval)"
    json.dumps(result.to_dict(), allow_nan=False)


def test_impossible_requests_are_refused(tmp_path):
    for removals, text in [
        ({"none": [[1]]}, "a name other than 'none'"),
        ({"top": [[1], [2], [3]]}, "1 set for all seeds or 2 sets"),
        ({"top": [[4]]}, "index 4 in condition 'top'"),
        ({"top": [[-1]]}, "index -1"),
        ({"top": [range(4)]}, "removes everything"),
    ]:
        with pytest.raises(BadInput, match=text):
            run(tmp_path, removals=removals)
    with pytest.raises(BadInput, match="all different"):
        run(tmp_path, seeds=(1, 1))
    with pytest.raises(BadInput, match="workers=0"):
        run(tmp_path, workers=0)
    with pytest.raises(BadInput, match="2 examples to draw from"):
        random_removals(4, 3, exclude=[0, 1])


def test_another_number_of_queries_is_refused(tmp_path):
    run(tmp_path, seeds=(0,), removals={"top": [[3]]})
    with pytest.raises(BadInput, match="runs that measured 1, 2 queries"):
        run(tmp_path, seeds=(0,), removals={"top": [[2]]}, measure=lambda model: model.reshape(1))


def test_random_removals():
    drawn = random_removals(100, 10, exclude=range(50), seed=1)
    assert drawn == random_removals(100, 10, exclude=range(50), seed=1) != random_removals(100, 10, exclude=range(50), seed=2)
    assert len(set(drawn)) == 10 and min(drawn) >= 50


def test_t_quantile_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    for degrees in (1, 2, 5, 30, 31, 60, 1000):
        assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=1e-3 if degrees < 31 else 1e-4)
    assert mean_interval(torch.tensor([2.0, 2.0, 2.0])).low == 2.0
