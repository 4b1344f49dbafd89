"""Projections, factors and the layout of rows."""

import hashlib

import pytest
import torch

from tests import zoo
from tests.reference.influence import projected_rows
from whence.capture import capture, plan_units
from whence.compress import AxesSketch, Kronecker, RowCodec, RowSums, factorize, projected_shape, random_matrix
from whence.compress.stored import room_for, score_rows
from whence.records import Dense, OneHot


def test_random_matrices_never_change():
    """Stores do not keep them, so a change of one bit would make every store unreadable."""
    rademacher = random_matrix("rademacher", 37, 5, seed=3, name="layer:inputs")
    gaussian = random_matrix("gaussian", 37, 5, seed=3, name="layer:inputs")
    assert hashlib.sha256(rademacher.numpy().tobytes()).hexdigest()[:16] == "4d2f7915c6cfacf3"
    # Logarithm and cosine may differ in the last bit between C libraries.
    assert hashlib.sha256((gaussian * 1e4).round().int().numpy().tobytes()).hexdigest()[:16] == "19bb9c308a296bb8"
    assert not torch.equal(rademacher, random_matrix("rademacher", 37, 5, seed=3, name="layer:outputs"))
    assert not torch.equal(rademacher, random_matrix("rademacher", 37, 5, seed=4, name="layer:inputs"))


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_random_matrices_keep_inner_products(kind):
    """E[P P^T] = I; the mean over draws lies within five standard errors (variance of an entry is at most 2 / D)."""
    draws, width = 400, 8
    mean = sum(m @ m.T for m in (random_matrix(kind, 6, width, seed=s, name="") for s in range(draws))) / draws
    assert (mean - torch.eye(6)).abs().max() < 5 * (2 / width / draws) ** 0.5


@pytest.mark.parametrize("name", ["linear", "gpt2", "conv2d_groups", "layer_norm", "two_inputs", "tied", "applied_twice"])
@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_factored_projection_equals_dense_kronecker(name, kind):
    task, dataset = zoo.make(name)
    plan = plan_units(task)
    kronecker = Kronecker.random(
        plan.units, [projected_shape(unit, 3) for unit in plan.units], kind=kind, seed=1, device=task.device
    )
    sums = RowSums(kronecker, len(dataset))
    capture(task, plan, task.collate(dataset.examples), sums, num_examples=len(dataset))
    for row, wanted in zip(sums.finished(), projected_rows(task, plan, kronecker, dataset.examples), strict=True):
        torch.testing.assert_close(row.flatten(1), wanted, rtol=1e-9, atol=1e-11)


def test_a_side_shorter_than_the_rank_is_kept_whole():
    task, _ = zoo.make("layer_norm")
    units = plan_units(task).units
    shapes = [projected_shape(unit, 4) for unit in units]
    kronecker = Kronecker.random(units, shapes, kind="gaussian", seed=0, device=task.device)
    assert kronecker.shapes() == [(4, 4), (1, 10), (3, 5)]
    assert kronecker.gains()[1] == 1.0 and kronecker.outputs[1] is None and kronecker.inputs[1] is None


def test_one_hot_is_a_lookup():
    ids, matrix = torch.randint(7, (3, 4)), torch.randn(7, 5)
    side = OneHot(ids, 7)
    torch.testing.assert_close(side.times(matrix), side.dense() @ matrix)
    ones = Dense(torch.randn(3, 4, 6), has_one=True)
    torch.testing.assert_close(ones.times(matrix), ones.dense() @ matrix)
    assert ones.size == 7 and ones.dense()[..., -1].eq(1).all()


@pytest.mark.parametrize(("size", "width"), [(12, 4), (60, 4)])
def test_axes_are_the_leading_eigenvectors(size, width):
    torch.manual_seed(0)
    scales = 3.0 ** -torch.arange(size).double()
    values = torch.randn(5, 40, size).double() * scales
    mask = torch.rand(5, 40) < 0.8
    sketch = AxesSketch(size, width, seed=0, name="x", device=torch.device("cpu"))
    sketch.sketch += sketch.product(Dense(values[:2]), mask[:2])
    sketch.sketch += sketch.product(Dense(values[2:]), mask[2:])
    kept = values[mask]
    wanted = torch.linalg.eigh(kept.T @ kept)[1].flip(1)[:, :width]
    overlap = (sketch.axes().double().T @ wanted).abs()
    torch.testing.assert_close(overlap, torch.eye(width).double(), rtol=0, atol=1e-4)


def test_axes_of_token_ids_are_the_frequent_tokens():
    ids = torch.tensor([[0, 3, 3, 3, 5, 5]])
    sketch = AxesSketch(8, 2, seed=0, name="x", device=torch.device("cpu"))
    sketch.sketch += sketch.product(OneHot(ids, 8), torch.ones(1, 6, dtype=torch.bool))
    wanted = torch.zeros(8, 2)
    wanted[3, 0] = wanted[5, 1] = 1
    torch.testing.assert_close(sketch.axes(), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_factors_are_the_best_of_their_rank(rank):
    torch.manual_seed(0)
    matrices = (
        torch.randn(6, 9, 4).double() @ torch.diag(torch.tensor([9.0, 3.0, 1.0, 0.1]).double()) @ torch.randn(6, 4, 7).double()
    )
    left, right = factorize(matrices, rank, seed=0, name="x")
    u, s, vt = torch.linalg.svd(matrices, full_matrices=False)
    best = (u[..., :rank] * s[:, None, :rank]) @ vt[:, :rank]
    # Power iteration stops after 8 or 16 rounds: its error is within a small share of the best possible one.
    error, least = ((m - matrices).norm(dim=(1, 2)) for m in (left.transpose(1, 2) @ right, best))
    assert (error <= least * 1.02 + 1e-9).all()
    eye = torch.eye(rank).double().expand(6, -1, -1)
    torch.testing.assert_close(right @ right.transpose(1, 2), eye, atol=1e-9, rtol=0)


def test_factors_of_degenerate_matrices():
    torch.manual_seed(0)
    rank_one = torch.randn(9, 1).double() @ torch.randn(1, 7).double()
    matrices = torch.stack([torch.zeros(9, 7).double(), rank_one, rank_one * 1e-30])
    left, right = factorize(matrices, 3, seed=0, name="x")
    assert torch.isfinite(left).all() and torch.isfinite(right).all()
    torch.testing.assert_close(left.transpose(1, 2) @ right, matrices, atol=1e-12, rtol=1e-9)


def test_a_row_depends_on_nothing_but_itself():
    torch.manual_seed(0)
    matrices = torch.randn(5, 8, 6).double()
    together = factorize(matrices, 2, seed=0, name="x")
    alone = [factorize(matrix[None], 2, seed=0, name="x") for matrix in matrices]
    for place in range(2):
        torch.testing.assert_close(together[place], torch.cat([pair[place] for pair in alone]), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("num_queries", [1, 2, 7, 8, 40])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_rows_are_multiplied_in_the_queries_precision(monkeypatch, stored, wide, num_queries):
    monkeypatch.setattr("whence.compress.stored._BLOCK_NUMBERS", 300)
    torch.manual_seed(0)
    rows, query = torch.randn(53, 33, dtype=torch.float64).to(stored), torch.randn(num_queries, 33, dtype=wide)
    scores = torch.ones(53, num_queries, dtype=wide)
    score_rows(rows, query, scores, room_for(wide))
    wanted = 1 + rows.to(wide).double() @ query.double().T
    torch.testing.assert_close(scores.double(), wanted, rtol=0, atol=32 * 33**0.5 * torch.finfo(wide).eps)


SHAPES = ((8, 8), (1, 6), (70, 70), (3, 40))


@pytest.mark.parametrize("num_queries", [1, 3, 4, 9])  # few and many queries take different orders of the same sum
@pytest.mark.parametrize("factor_rank", [None, 1, 2])
def test_scores_are_inner_products_of_decoded_rows(monkeypatch, factor_rank, num_queries):
    monkeypatch.setattr("whence.compress.factors._CACHE_NUMBERS", 1 << 12)  # several blocks, the last one short
    monkeypatch.setattr("whence.compress.stored._BLOCK_NUMBERS", 1 << 12)
    torch.manual_seed(0)
    names = tuple("abcd")
    codec = RowCodec(names, SHAPES, factor_rank, torch.float64, seed=0)
    rows = [torch.randn(21, *shape).double() for shape in SHAPES]
    queries = [torch.randn(num_queries, *shape).double() for shape in SHAPES]
    tensors = codec.encode(rows)
    assert {name: tuple(t.shape[1:]) for name, t in tensors.items()} == codec.layout()
    assert sum(t[0].numel() * t.element_size() for t in tensors.values()) == codec.row_bytes()
    decoded = [codec.decode(tensors, index) for index in range(4)]
    wanted = sum(q.flatten(1) @ d.T for q, d in zip(queries, decoded, strict=True))
    torch.testing.assert_close(codec.scorer(queries)(tensors), wanted)
    for index, (row, shape) in enumerate(zip(rows, SHAPES, strict=True)):
        names_read = codec.tensors_of(index)
        torch.testing.assert_close(codec.decode({n: tensors[n] for n in names_read}, index), decoded[index])
        if codec.ranks[index] is None:
            torch.testing.assert_close(decoded[index], row.flatten(1))
        else:
            assert torch.linalg.matrix_rank(decoded[index].view(-1, *shape)).max() <= factor_rank
    assert codec.ranks == ([None] * 4 if factor_rank is None else [factor_rank, None, factor_rank, factor_rank])
