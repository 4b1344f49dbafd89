"""What shrinks gradients, against matrices written out and whole gradients."""

import pytest
import torch

from tests import zoo
from tests.reference import raw
from tests.reference.gradients import dense_gradients, unit_gradients
from tests.test_capture import run
from whence.capture import plan_units
from whence.compress import ChannelMask, EntryMask, SparseSketch, WholeProjection, random_places
from whence.compress import whole as whole_module
from whence.curvature import fit_mask, mask_objective
from whence.progress import meter
from whence.records import Dense, OneHot

CPU = torch.device("cpu")
MODELS = ("linear", "gpt2", "conv2d_groups", "two_inputs", "tied", "applied_twice", "lone_parameter")


def encoded(task, plan, encoder, examples):
    consumer = encoder.rows(len(examples))
    run(task, plan, examples, consumer)
    rows = consumer.finished()
    assert [tuple(row.shape[1:]) for row in rows] == encoder.shapes() and len(encoder.units) == len(rows)
    return rows


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "sparse"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("block_numbers", [1 << 20, 60])
def test_whole_projection_is_one_matrix_times_the_whole_gradient(monkeypatch, name, kind, block_numbers):
    monkeypatch.setattr(whole_module, "_DENSE_NUMBERS", 7 * block_numbers)
    monkeypatch.setattr(whole_module, "_SPARSE_NUMBERS", block_numbers)
    monkeypatch.setattr(whole_module, "_GRADIENT_NUMBERS", 3 * block_numbers)
    task, dataset = zoo.make(name)
    plan = plan_units(task)
    encoder = WholeProjection(plan.units, 7, kind, 3, CPU)
    (rows,) = encoded(task, plan, encoder, dataset.examples)
    matrix = raw.whole_projection(plan, kind, 7, 3, lambda unit: max(1, block_numbers // unit.inputs))
    torch.testing.assert_close(rows[:, 0], raw.whole_gradients(task, plan, dataset.examples) @ matrix)
    assert encoder.gains() == [pytest.approx(float(matrix.square().sum()) / 7, rel=0.2 if kind == "gaussian" else 1e-6)]


@pytest.mark.parametrize("name", MODELS)
def test_masks_are_some_entries_of_the_whole_gradient(name):
    task, dataset = zoo.make(name)
    plan = plan_units(task)
    encoder = EntryMask.random(plan.units, 5, seed=1, device=CPU)
    (rows,) = encoded(task, plan, encoder, dataset.examples)
    gradients = raw.whole_gradients(task, plan, dataset.examples)
    matrix = raw.entry_matrix(gradients.shape[1], encoder.places_M, encoder.sketch, encoder.scale)
    torch.testing.assert_close(rows[:, 0], gradients @ matrix)
    assert encoder.gains() == [pytest.approx(float(matrix.square().sum()) / 5)] and len(encoder.places_M) == 20


@pytest.mark.parametrize(("rank", "blow_up"), [(1, 4), (2, 4), (2, 9), (3, 1), (100, 4)])
@pytest.mark.parametrize("name", MODELS)
def test_channels_are_a_part_of_every_unit(name, rank, blow_up):
    task, dataset = zoo.make(name)
    plan = plan_units(task)
    encoder = ChannelMask.random(plan.units, rank, seed=1, device=CPU, blow_up=blow_up)
    for unit, channels in zip(plan.units, encoder.channels, strict=True):
        if min(unit.outputs, unit.inputs) >= 9:
            wanted = unit.outputs * unit.inputs / min(blow_up * rank**2, unit.outputs * unit.inputs)
            assert channels.scale**2 == pytest.approx(wanted)
    rows = encoded(task, plan, encoder, dataset.examples)
    whole = unit_gradients(task, plan, dense_gradients(task, dataset.examples))
    for row, gradient, channels in zip(rows, whole, encoder.channels, strict=True):
        torch.testing.assert_close(row.flatten(1), raw.channel_rows(gradient, channels))
        if rank == 100:
            torch.testing.assert_close(row, gradient)


def test_random_choices_never_change():
    """Stores do not keep them."""
    sketch = SparseSketch.random(8, 5, seed=3, name="layer", device=CPU)
    assert (sketch.slots_N.tolist(), sketch.signs_N.int().tolist()) == ([3, 2, 3, 0, 3, 4, 1, 3], [-1, 1, -1, 1, -1, -1, 1, -1])
    assert random_places(50, 6, seed=3, name="layer").tolist() == [5, 12, 14, 21, 35, 42]
    assert random_places(50, 49, seed=3, name="layer").unique().numel() == 49


@pytest.mark.parametrize("make", [lambda s: raw.sketch_matrix(SparseSketch.random(6, 8, seed=s, name="", device=CPU)), None])
def test_inner_products_are_kept_on_average(make):
    """E[P P^T] = 1 within five standard errors of the mean over draws; an off-diagonal product has variance 1 / 8, entries' choice 3."""
    draws = 2000

    def chosen(seed):
        places = random_places(6, 2, seed=seed, name="")
        return torch.eye(6).double()[:, places] * 3**0.5

    mean = sum(matrix @ matrix.T for matrix in map(make or chosen, range(draws))) / draws
    assert (mean - torch.eye(6)).abs().max() < 5 * ((1 / 8 if make else 2) / draws) ** 0.5


def test_columns_of_a_side_are_those_of_its_vectors():
    torch.manual_seed(0)
    for places in (torch.tensor([4, 0, 4, 2]), torch.randint(5, (9,))):
        check_columns(places)


def check_columns(places):
    for side in (Dense(torch.randn(2, 3, 5)), Dense(torch.randn(2, 3, 4), has_one=True), OneHot(torch.randint(5, (2, 3)), 5)):
        assert torch.equal(side.columns(places), side.dense()[..., places])


def test_the_mask_objective_is_the_mean_correlation():
    torch.manual_seed(0)
    entries, raw_products, logits = torch.randn(6, 9).double(), torch.randn(6, 6).double(), torch.randn(9).double()
    torch.testing.assert_close(mask_objective(entries, raw_products, logits), raw.mask_objective(entries, raw_products, logits))


@pytest.mark.parametrize("width", [8, 32])
def test_a_learned_mask_keeps_more_of_the_products_than_a_random_one(width):
    task, dataset = zoo.make("gpt2", count=24)
    plan = plan_units(task)
    with meter("", 24, quiet=True) as progress:
        found = fit_mask(task, plan, dataset.examples, width=width, seed=0, max_positions=100, progress=progress)["places"]
    assert len(found) == 4 * width and torch.equal(found, found.unique())
    gradients = raw.whole_gradients(task, plan, dataset.examples, lambda model, batch: -task.output_function(model, batch))
    products = gradients @ gradients.T

    def agreement(places):
        masked = gradients[:, places] @ gradients[:, places].T
        return sum(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(masked, products, strict=True)) / 24

    random = [agreement(random_places(gradients.shape[1], 4 * width, seed=seed, name="")) for seed in range(20)]
    assert agreement(found) > max(random)


def test_a_mask_of_everything_needs_no_learning():
    task, dataset = zoo.make("linear")
    plan = plan_units(task)
    size = sum(unit.outputs * unit.inputs for unit in plan.units)
    with meter("", 5, quiet=True) as progress:
        found = fit_mask(task, plan, dataset.examples, width=size, seed=0, max_positions=100, progress=progress)
    assert found["places"].tolist() == list(range(size))
