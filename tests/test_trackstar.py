"""TrackStar as a store: scores equal the formulas as written."""

import pytest
import torch

import whence
from tests import zoo
from tests.reference import trackstar
from tests.reference.gradients import dense_gradients, unit_gradients
from tests.settings import QUIET
from whence.capture import plan_units
from whence.compress import Kronecker, projected_shape
from whence.curvature import fit_second_moments, side_scales
from whence.data import Dataset
from whence.progress import meter
from whence.store import verify_store

OPTIONS = {"method": "trackstar", "dtype": "float64", "rows_per_shard": 4, "batch_positions": 40}
MODELS = ("linear", "gpt2", "conv2d_groups", "two_inputs", "tied", "lone_parameter")


def units_of(task, plan, examples, objective="loss"):
    return unit_gradients(task, plan, dense_gradients(task, examples, objective))


@pytest.mark.parametrize("name", MODELS)
def test_second_moments_split_over_the_sides(name):
    task, dataset = zoo.make(name, count=9)
    plan = plan_units(task)
    with meter("", 9, quiet=True) as progress:
        found = fit_second_moments(task, plan, dataset.examples, max_positions=20, progress=progress)
    for index, gradients in enumerate(units_of(task, plan, dataset.examples)):
        left, right = side_scales(found[f"outputs.{index}"], found[f"inputs.{index}"])
        torch.testing.assert_close(torch.outer(left, right).pow(-2), trackstar.factored_moments(gradients), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rank", [2, 1000])
def test_scores_equal_the_naive_formula(tmp_path, name, rank):
    task, dataset = zoo.make(name, count=14)
    train, asked = Dataset(dataset.examples[3:]), Dataset(dataset.examples[:3])
    store = whence.build(task, train, tmp_path / "store", config=whence.BuildConfig(rank=rank, **OPTIONS), runtime=QUIET)
    table = whence.score_table(store, task, asked, damping=whence.Damping(relative=0.2), runtime=QUIET)
    plan = plan_units(task)
    kronecker = Kronecker.random(
        plan.units, [projected_shape(unit, rank) for unit in plan.units], kind="rademacher", seed=0, device=task.device
    )
    rows, queries = [], []
    gradients = zip(units_of(task, plan, train.examples), units_of(task, plan, asked.examples, "measurement"), strict=True)
    for (g, q), unit, left, right in zip(gradients, plan.units, kronecker.outputs, kronecker.inputs, strict=True):
        scale = trackstar.factored_moments(g).rsqrt()
        left = torch.eye(unit.outputs).double() if left is None else left.double()
        right = torch.eye(unit.inputs).double() if right is None else right.double()
        for found, gradient in ((rows, g), (queries, q)):
            found.append((gradient * scale).flatten(1) @ torch.kron(left, right))
    share = trackstar.share_where_spectra_cross(rows, queries)
    roots = [trackstar.root(g, q, share, 0.2) for g, q in zip(rows, queries, strict=True)]
    # The scaled projections are kept in float32.
    torch.testing.assert_close(table.scores, trackstar.cosines(rows, queries, roots), rtol=1e-4, atol=1e-6)
    assert table.unit == "cosine" and verify_store(store) == []
    assert f"whitened by {share:.2g} of the queries' second moments" in table.notes[-1]
    hits = whence.query(store, task, asked, k=2, damping=whence.Damping(relative=0.2), runtime=QUIET)
    best = table.scores[0].max()
    assert best <= 0 or hits.proponents[0][0].score == pytest.approx(float(best), rel=1e-9)


def test_an_example_is_its_own_best_proponent(tmp_path):
    """A measurement is minus a loss, so the cosine of an example with itself is 1."""
    task, dataset = zoo.make("gpt2", count=9)
    store = whence.build(task, dataset, tmp_path / "store", config=whence.BuildConfig(rank=3, **OPTIONS), runtime=QUIET)
    scores = whence.score_table(store, task, dataset, runtime=QUIET).scores
    torch.testing.assert_close(scores.diagonal(), torch.ones(9).double())
    assert scores.max() <= 1 + 1e-9
