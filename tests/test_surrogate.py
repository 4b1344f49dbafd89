"""The indicator against finite differences of dense solves, and its limits."""

import json
import math

import pytest
import torch

from whence.errors import BadInput, NonFinite
from whence.evaluate import choose_by_surrogate

DAMPINGS = (1e-6, 1e-4, 1e-2, 1e-1, 1.0, 1e2, 1e6)


def rows(seed=0, *, num_train=30, num_queries=4, sizes=((12,),)):
    generator = torch.Generator().manual_seed(seed)

    def draw(count, size):
        spread = torch.logspace(0, -2, math.prod(size), dtype=torch.float64).view(size)
        return torch.randn(count, *size, generator=generator, dtype=torch.float64) * spread

    return [draw(num_train, size) for size in sizes], [draw(num_queries, size) for size in sizes]


def dense_scores(train, queries, relative):
    total = 0.0
    for gradients, asked in zip(train, queries, strict=True):
        gradients, asked = gradients.flatten(1), asked.flatten(1)
        fisher = gradients.T @ gradients / len(gradients)
        damped = fisher + relative * fisher.trace() / len(fisher) * torch.eye(len(fisher)).double()
        total = total - asked @ torch.linalg.solve(damped, gradients.T) / len(gradients)
    return total - total.mean(1, keepdim=True)


@pytest.mark.parametrize("sizes", [((12,),), ((40,),), ((3, 4), (8,), (5, 9))])
def test_the_indicator_is_a_derivative(sizes):
    train, queries = rows(sizes=sizes)
    dampings = (1e-2, 1e-1, 1.0, 10.0)
    found = choose_by_surrogate(train, queries, dampings)
    step = 1e-4
    for place, damping in enumerate(dampings):
        sizes_Q = [dense_scores(train, queries, damping * math.exp(sign * step)).norm(dim=1).log() for sign in (-1, 1)]
        torch.testing.assert_close(found.indicators_LQ[place], (sizes_Q[0] - sizes_Q[1]) / (2 * step), rtol=0, atol=1e-6)


def test_limits():
    train, queries = rows()
    found = choose_by_surrogate(train, queries, DAMPINGS)
    assert (found.indicators_LQ[-1] > 0.999).all() and (found.indicators_LQ[0] < 0.01).all()
    means = [interval.mean for interval in found.indicators]
    assert means == sorted(means)


def test_one_eigenvalue_is_matched_by_an_equal_damping():
    """With F a multiple of the identity the indicator is damping / (eigenvalue + damping) exactly."""
    train = [torch.cat([torch.eye(3), -torch.eye(3)]).double() * 5]
    queries = [torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).double()]
    found = choose_by_surrogate(train, queries, (0.25, 1.0, 3.0))
    torch.testing.assert_close(found.indicators_LQ, torch.tensor([[0.2] * 2, [0.5] * 2, [0.75] * 2], dtype=torch.float64))
    assert found.relative_damping == 1.0 and not found.is_at_the_edge


def test_the_choice():
    train, queries = rows()
    found = choose_by_surrogate(train, queries, DAMPINGS[::-1])
    assert found.relative_dampings == DAMPINGS
    gaps = [abs(interval.mean - 0.5) for interval in found.indicators]
    assert found.relative_damping == DAMPINGS[gaps.index(min(gaps))]
    higher = choose_by_surrogate(train, queries, DAMPINGS, target=0.95)
    assert higher.relative_damping > found.relative_damping
    assert choose_by_surrogate(train, queries, (1e5, 1e6)).relative_damping == 1e5
    assert choose_by_surrogate(train, queries, (1e-6, 1e-5)).is_at_the_edge


def test_scale_and_rotation_change_nothing():
    train, queries = rows()
    found = choose_by_surrogate(train, queries, DAMPINGS).indicators_LQ
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1)).double())[0]
    turned = choose_by_surrogate([7 * train[0] @ turn], [3 * queries[0] @ turn], DAMPINGS).indicators_LQ
    torch.testing.assert_close(found, turned)


def test_a_unit_without_gradients_changes_nothing():
    train, queries = rows()
    more = choose_by_surrogate([*train, torch.zeros(30, 2)], [*queries, torch.ones(4, 2)], DAMPINGS)
    torch.testing.assert_close(more.indicators_LQ, choose_by_surrogate(train, queries, DAMPINGS).indicators_LQ)


def test_result_is_json():
    record = json.loads(json.dumps(choose_by_surrogate(*rows(), DAMPINGS).to_dict(), allow_nan=False))
    assert [point["relative_damping"] for point in record["indicators"]] == list(DAMPINGS)
    assert record["target"] == 0.5 and not record["is_at_the_edge"]


def test_impossible_requests_are_refused():
    train, queries = rows()
    for left, right in ((train, []), ([], []), (train, [queries[0][:, 1:]]), ([train[0], train[0][1:]], queries * 2)):
        with pytest.raises(BadInput, match="needed the same units on both sides, each with a row per example"):
            choose_by_surrogate(left, right, DAMPINGS)
    for dampings, target in (((), 0.5), ((0.0, 1.0), 0.5), ((1.0,), 1.0)):
        with pytest.raises(BadInput, match="needed positive dampings and a target between 0 and 1"):
            choose_by_surrogate(train, queries, dampings, target=target)
    with pytest.raises(BadInput, match="query 1, whose scores are the same for every training example"):
        choose_by_surrogate(train, [queries[0] * torch.tensor([[1.0], [0.0], [1.0], [1.0]])], DAMPINGS)
    with pytest.raises(NonFinite, match="a NaN or infinite gradient"):
        choose_by_surrogate(train, [queries[0] / 0], DAMPINGS)
