"""Detection of flipped labels against loops over pairs and thresholds."""

import json

import numpy as np
import pytest
import torch

from tests.reference.measures import auc, average_precision
from whence.errors import BadInput, NonFinite
from whence.evaluate import detection, flip_labels, mislabel_report


def case(seed=0, *, size=120, lift=1.0, ties=False):
    generator = torch.Generator().manual_seed(seed)
    flipped = torch.rand(size, generator=generator) < 0.25
    scores = torch.randn(size, generator=generator, dtype=torch.float64) + lift * flipped
    return scores.round() if ties else scores, flipped


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_numbers_are_those_of_the_loops(seed, ties):
    scores, flipped = case(seed, ties=ties)
    found = detection(scores, flipped, num_draws=10)
    assert found.auc.mean == pytest.approx(auc(scores.tolist(), flipped.tolist()))
    assert found.average_precision == pytest.approx(average_precision(scores.tolist(), flipped.tolist()))


def test_inspected_shares():
    scores, flipped = case(ties=True)
    found = detection(scores, flipped, num_draws=10).found
    # Any order of equal scores is as good as another: the mean over many.
    generator = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(4000):
        order = (scores + 1e-6 * torch.rand(120, generator=generator)).argsort(descending=True)
        seen.append([float(flipped[order[:count]].sum() / flipped.sum()) for count in (12, 24, 36)])
    assert list(found) == [0.1, 0.2, 0.3]
    assert list(found.values()) == pytest.approx(np.mean(seen, 0).tolist(), abs=0.005)


def test_the_interval_is_that_of_draws_done_one_by_one():
    scores, flipped = case(ties=True, size=40)
    found = detection(scores, flipped, num_draws=50, seed=5).auc
    generator, drawn = torch.Generator().manual_seed(5), []
    wrong, right = scores[flipped], scores[~flipped]
    for _ in range(50):
        picked = [side[torch.randint(len(side), (len(side),), generator=generator)] for side in (wrong, right)]
        drawn.append(auc(torch.cat(picked).tolist(), [True] * len(wrong) + [False] * len(right)))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))


def test_laws():
    scores, flipped = case()
    found = detection(scores, flipped)
    assert detection(scores.exp(), flipped).to_dict() == found.to_dict() == detection(scores, flipped).to_dict()
    assert detection(-scores, flipped).auc.mean == pytest.approx(1 - found.auc.mean)
    assert detection(flipped.double(), flipped).auc.mean == detection(flipped.double(), flipped).average_precision == 1.0
    assert detection(torch.zeros(120), flipped).auc.mean == 0.5
    assert detection(torch.zeros(120), flipped).found[0.1] == pytest.approx(0.1)
    assert found.auc.low < found.auc.mean < found.auc.high


def test_scores_that_know_nothing_have_an_interval_around_a_half():
    found = [detection(*case(seed, lift=0.0), num_draws=200).auc for seed in range(40)]
    assert sum(interval.low < 0.5 < interval.high for interval in found) >= 33  # of 40 nominal 95 % intervals


def test_the_report_holds_every_score_against_the_loss():
    scores, flipped = case(lift=2.0)
    losses, _ = case(1, lift=0.0)
    report = mislabel_report({"good": scores, "same": losses}, losses, flipped)
    assert list(report.detections) == ["loss", "good", "same"]
    assert report.gains["same"] == report.gains["same"].__class__(0.0, 0.0, 0.0)
    gain = report.gains["good"]
    assert gain.mean == pytest.approx(report.detections["good"].auc.mean - report.detections["loss"].auc.mean)
    assert 0 < gain.low < gain.mean < gain.high
    record = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert record["num_flipped"] == int(flipped.sum()) and set(record["gains_over_loss"]) == {"good", "same"}
    assert set(record["detections"]["loss"]["found"]) == {"0.1", "0.2", "0.3"}


def test_flips():
    labels = torch.arange(1000) % 5
    flipped, where = flip_labels(labels, 0.3, 5, seed=1)
    assert int(where.sum()) == 300 and torch.equal(flipped != labels, where)
    assert int(flipped.min()) == 0 and int(flipped.max()) == 4
    shifts = torch.bincount((flipped - labels)[where] % 5, minlength=5)
    assert shifts[0] == 0 and shifts[1:].min() > 50  # 75 expected of each
    again, other = flip_labels(labels, 0.3, 5, seed=1)[0], flip_labels(labels, 0.3, 5, seed=2)[0]
    assert torch.equal(flipped, again) and not torch.equal(flipped, other)
    assert torch.equal(labels, torch.arange(1000) % 5)
    assert torch.equal(flip_labels(labels, 0.0, 5)[0], labels)


def test_impossible_requests_are_refused():
    labels = torch.tensor([0, 1, 2])
    for wrong, classes in ((labels, 2), (labels - 1, 3), (labels.double(), 3), (labels * 0, 1), (labels[:0], 3)):
        with pytest.raises(BadInput, match="needed whole numbers from 0 to classes - 1"):
            flip_labels(wrong, 0.1, classes)
    with pytest.raises(BadInput, match="share=1.5"):
        flip_labels(labels, 1.5, 3)
    scores, flipped = case()
    for some, where in ((scores[1:], flipped), (scores, flipped & False), (scores, flipped | True)):
        with pytest.raises(BadInput, match="needed one score per example, some of them flipped and some not"):
            detection(some, where)
    with pytest.raises(BadInput, match="num_draws=0"):
        detection(scores, flipped, num_draws=0)
    with pytest.raises(NonFinite, match="a NaN or infinite score"):
        detection(scores / 0, flipped)
    with pytest.raises(BadInput, match="a score named 'loss'"):
        mislabel_report({"loss": scores}, scores, flipped)
