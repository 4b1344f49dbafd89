"""Calibration against a plain regression, its laws, and draws done one by one."""

import json
import math

import numpy as np
import pytest
import torch

from tests.reference.measures import fit
from whence.errors import BadInput, NonFinite
from whence.evaluate import calibration


def pairs(num_subsets=40, num_queries=5, *, slope=1.0, noise=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(0.5, 2.0, num_queries, dtype=torch.float64)
    predicted = torch.randn(num_subsets, num_queries, generator=generator, dtype=torch.float64) * scales
    error = torch.randn(num_subsets, num_queries, generator=generator, dtype=torch.float64)
    return predicted, slope * predicted + noise * error + 100.0


def test_numbers_are_those_of_a_plain_regression():
    predicted, actual = pairs()
    found = calibration(predicted, actual)
    assert (found.slope.mean, found.correlation.mean) == pytest.approx(fit(predicted, actual))
    for query in range(5):
        x, y = predicted[:, query].numpy(), actual[:, query].numpy()
        assert float(found.slopes_Q[query]) == pytest.approx(np.polyfit(x, y, 1)[0])
        assert float(found.correlations_Q[query]) == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_the_interval_is_that_of_draws_done_one_by_one():
    predicted, actual = pairs()
    found = calibration(predicted, actual, num_draws=200, seed=3)
    drawn = torch.randint(40, (200, 40), generator=torch.Generator().manual_seed(3))
    fits = np.array([fit(predicted[places], actual[places]) for places in drawn])
    expected = np.quantile(fits, [0.025, 0.975], axis=0)
    assert (found.slope.low, found.slope.high) == pytest.approx(expected[:, 0])
    assert (found.correlation.low, found.correlation.high) == pytest.approx(expected[:, 1])


def test_the_slope_knows_the_unit_and_the_interval_holds_it():
    held = sum(
        (found := calibration(*pairs(slope=0.5, seed=seed), num_draws=300).slope).low <= 0.5 <= found.high for seed in range(40)
    )
    assert held >= 32  # of 40 nominal 95 % intervals
    predicted, actual = pairs()
    wrong_unit = calibration(predicted / 10, actual)
    assert wrong_unit.slope.mean == pytest.approx(10 * calibration(predicted, actual).slope.mean)
    assert wrong_unit.correlation.mean == pytest.approx(calibration(predicted, actual).correlation.mean)
    exact = calibration(predicted, predicted - 7)
    assert (exact.slope.low, exact.slope.high, exact.correlation.mean) == pytest.approx((1.0, 1.0, 1.0))


def test_constants_per_query_change_nothing():
    predicted, actual = pairs()
    shift = torch.arange(5.0, dtype=torch.float64)
    assert calibration(predicted + shift, actual - shift).slope.mean == pytest.approx(calibration(predicted, actual).slope.mean)


def test_bins():
    predicted, actual = pairs()
    found = calibration(predicted, actual, num_bins=7)
    assert sum(point.count for point in found.bins) == 200 and len(found.bins) == 7
    centres = [point.predicted for point in found.bins]
    assert centres == sorted(centres)
    order = (predicted - predicted.mean(0)).flatten().argsort()[: found.bins[0].count]
    first = (actual - actual.mean(0)).flatten()[order]
    assert found.bins[0].actual == pytest.approx(float(first.mean()))
    assert found.bins[0].standard_error == pytest.approx(float(first.std()) / math.sqrt(len(first)))


def test_a_query_without_spread_has_no_slope_of_its_own():
    predicted, actual = pairs()
    predicted[:, 2] = 0.1
    record = json.loads(json.dumps(calibration(predicted, actual).to_dict(), allow_nan=False))
    assert record["slopes"][2] is None and record["correlations"][2] is None and record["slopes"][1] is not None
    # With few subsets some draws hold one subset only; they have no slope.
    few = calibration(predicted[:3], actual[:3])
    assert math.isfinite(few.slope.low) and math.isfinite(few.slope.high)


def test_seeded():
    assert calibration(*pairs()).to_dict() == calibration(*pairs()).to_dict()
    assert calibration(*pairs(), seed=1).slope != calibration(*pairs()).slope


def test_impossible_requests_are_refused():
    predicted, actual = pairs()
    for x, y in ((predicted, actual[1:]), (predicted[:2], actual[:2]), (predicted[0], actual[0])):
        with pytest.raises(BadInput, match=r"needed the same shape \(subsets, queries\), 3 subsets or more"):
            calibration(x, y)
    with pytest.raises(BadInput, match="num_bins=0, num_draws=1000"):
        calibration(predicted, actual, num_bins=0)
    with pytest.raises(BadInput, match="predictions that are the same for every subset"):
        calibration(torch.full_like(predicted, 0.3), actual)
    with pytest.raises(NonFinite, match="a NaN or infinite prediction or measurement"):
        calibration(predicted, actual / 0)
