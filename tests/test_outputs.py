"""Outputs and their likelihoods against the task's own loss and autograd."""

import pytest
import torch
from torch.func import hessian

import whence
from tests.zoo import NAMES, make
from whence.errors import Unsupported
from whence.tasks import Outputs
from whence.tasks.outputs import drawn_classes

LIKELIHOODS = ("categorical", "gaussian")


def outputs(likelihood, rows=7, size=4):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(rows, size, generator=generator, dtype=torch.float64, requires_grad=True)
    classes = torch.randint(size, (rows,), generator=generator)
    targets = classes if likelihood == "categorical" else torch.randn(rows, size, generator=generator, dtype=torch.float64)
    return Outputs(values, torch.tensor([0, 0, 1, 2, 2, 2, 2]), targets, likelihood)


@pytest.mark.parametrize("name", NAMES)
def test_their_losses_are_the_tasks(name):
    task, examples = make(name)
    batch = task.collate(examples.examples)
    task.model.eval()
    with torch.no_grad():
        found = task.outputs(task.model, batch).losses(len(examples))
        torch.testing.assert_close(found, task.loss(task.model, batch), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_residuals_are_the_gradient(likelihood):
    found = outputs(likelihood)
    found.losses(3).sum().backward()
    torch.testing.assert_close(found.residuals(), found.values_MC.grad)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_hessian_is_the_second_derivative(likelihood):
    found = outputs(likelihood)
    tangents = torch.randn(found.values_MC.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def total(values):
        return Outputs(values, found.owners_M, found.targets, likelihood).losses(3).sum()

    full = hessian(total)(found.values_MC.detach())
    expected = torch.einsum("mcnd,nd->mc", full, tangents)
    torch.testing.assert_close(found.hessian_times(tangents), expected)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_residuals_of_sampled_targets_have_the_hessian_as_second_moment(likelihood):
    found = outputs(likelihood, rows=7)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([found.sampled(generator).residuals() for _ in range(4000)])
    moment = torch.einsum("smc,smd->mcd", draws, draws) / len(draws)
    eye = torch.eye(4, dtype=torch.float64)
    expected = torch.stack([found.hessian_times(eye[c].expand(7, 4)) for c in range(4)], -1)
    # Entries of the moment have a variance of at most 3 for Gaussian products: six standard errors.
    assert (moment - expected).abs().max() < 6 * (3 / 4000) ** 0.5


def test_a_custom_task_says_its_outputs_or_is_refused():
    model = torch.nn.Linear(3, 2).double()
    records = [(torch.randn(3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)) for _ in range(4)]

    def loss(model, batch):
        return 0.5 * (model(batch[0]) - batch[1]).square().sum(1)

    def told(model, batch):
        return Outputs(model(batch[0]), torch.arange(len(batch[0])), batch[1], "gaussian")

    task = whence.Custom(model, loss, outputs=told)
    batch = task.collate(task.prepare(records).examples)
    torch.testing.assert_close(task.outputs(model, batch).losses(4), loss(model, batch))
    with pytest.raises(Unsupported, match="likelihood is not known"):
        whence.Custom(model, loss).outputs(model, batch)


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 37, 2048])
def test_a_drawn_class_is_where_the_distribution_function_passes_the_number(classes):
    generator = torch.Generator().manual_seed(classes)
    p = (3 * torch.randn(50, classes, generator=generator, dtype=torch.float64)).softmax(-1)
    p[:, : classes // 3] = 0.0  # classes that cannot be drawn, at the start
    uniform = torch.rand(50, 1, generator=generator, dtype=torch.float64)
    below = p.cumsum(-1)
    expected = torch.searchsorted(below, uniform * below[:, -1:])[:, 0]
    assert drawn_classes(p, uniform).equal(expected)
    assert (drawn_classes(p, torch.full((50, 1), 1.0 - 1e-16).double()) < classes).all()
