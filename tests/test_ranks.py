"""Ranks and rank correlation against scipy."""

import pytest
import torch

from whence.evaluate import ranks, spearman

stats = pytest.importorskip("scipy.stats")


def values(kind, *shape):
    generator = torch.Generator().manual_seed(sum(shape))
    if kind == "ties":
        return torch.randint(4, shape, generator=generator)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["distinct", "ties"])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_ranks_are_scipys(kind, dim):
    found = values(kind, 5, 17, 3)
    expected = torch.from_numpy(stats.rankdata(found.numpy(), axis=dim))
    assert torch.equal(ranks(found, dim), expected.double())
    assert ranks(found.float()).dtype == torch.float64


@pytest.mark.parametrize("kind", ["distinct", "ties"])
def test_spearman_is_scipys(kind):
    a, b = values(kind, 6, 40), values(kind, 7, 40)[:6]
    expected = torch.tensor([stats.spearmanr(x, y).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)])
    torch.testing.assert_close(spearman(a, b), expected.double(), rtol=0, atol=1e-12)


def test_spearman_broadcasts_and_knows_only_the_order():
    a, b = values("distinct", 3, 1, 20), values("distinct", 4, 20)
    found = spearman(a, b)
    assert found.shape == (3, 4)
    torch.testing.assert_close(found, spearman(a.exp(), b**3))
    torch.testing.assert_close(found, -spearman(-a, b))
    assert spearman(b, b).tolist() == [1.0] * 4


def test_a_constant_row_gives_zero():
    flat, other = torch.full((2, 9), 0.1), values("distinct", 2, 9)
    assert spearman(flat, other).tolist() == spearman(other, flat).tolist() == spearman(flat, flat).tolist() == [0.0, 0.0]


def test_infinities_have_a_place():
    assert ranks(torch.tensor([float("inf"), 0.0, -float("inf")])).tolist() == [3.0, 2.0, 1.0]
