"""Recorded runs of tasks beside classifiers and language models, attributed through."""

import math

import pytest
import torch

import whence
from tests.reference.gradients import dense_gradients
from tests.settings import QUIET
from tests.test_diffusion import Told
from tests.test_diffusion import made as diffusion
from tests.test_task_kinds import made, tokenizer  # noqa: F401
from whence.pipeline.through.along import points_of

pytest.importorskip("transformers")

RATE, STEPS = 0.05, 4


def task_of(name, tokenizer):  # noqa: F811
    """A task with a model in evaluation mode, and its dataset."""
    torch.manual_seed(0)
    if name == "diffusion":
        guidance = whence.tasks.Guidance(drop=0.3, null_condition=torch.zeros(5, 3).double().numpy(), scale=2.0)
        task, dataset = diffusion(
            4, network=Told(), guidance=guidance, augment="flip", draws=4, at_once=2, measured_draws="own"
        )
    else:
        task, records = made(name, tokenizer)
        if (
            name == "bart"
        ):  # the tokenizer has one mark for padding and for the start of an answer, which a pass back would leave out
            for table in (module for module in task.model.modules() if isinstance(module, torch.nn.Embedding)):
                table.padding_idx = None
        dataset = task.prepare([{"id": f"t{number}", **record} for number, record in enumerate(records)])
    task.model.eval()
    return task, dataset


def trained(task, dataset, folder=None, scale=None):
    """The task's model after a few steps of momentum on its own loss, recorded into a folder if there is one."""
    scale = torch.ones(len(dataset), dtype=torch.float64) if scale is None else scale
    optimizer = torch.optim.SGD(task.model.parameters(), lr=RATE, momentum=0.5)
    recorder = None if folder is None else whence.Recorder(folder, task.model, optimizer, every=2, seed=0)
    if recorder is not None:
        recorder.__enter__()
    for _ in range(STEPS):
        if recorder is not None:
            recorder.batch(dataset.ids)
        optimizer.zero_grad()
        (task.loss(task.model, task.collate(dataset.examples)) * scale).mean().backward()
        optimizer.step()
    if recorder is not None:
        recorder.__exit__(None, None, None)
    return task.model


@pytest.fixture(params=["bart", "tagger", "dpo", "diffusion"])
def run(request, tmp_path, tokenizer):  # noqa: F811
    """Task, dataset, folder of a recorded run, and the weights before it."""
    task, dataset = task_of(request.param, tokenizer)
    start = {name: value.detach().clone() for name, value in task.model.state_dict().items()}
    trained(task, dataset, tmp_path / "run")
    return task, dataset, tmp_path / "run", start


def test_unrolled_scores_are_the_derivative_of_training_again(run):
    task, dataset, folder, start = run
    end = {name: value.detach().clone() for name, value in task.model.state_dict().items()}
    table = whence.attribute(task, dataset, dataset, method=whence.settings.Unroll(run=folder), runtime=QUIET)
    ends = []
    h = 1e-5
    for sign in (1, -1):
        task.model.load_state_dict(start)
        scale = torch.ones(len(dataset), dtype=torch.float64)
        scale[1] += sign * h
        trained(task, dataset, scale=scale)
        with torch.no_grad():
            ends.append(task.measurement(task.model, task.collate(dataset.examples)).double())
    task.model.load_state_dict(end)
    wanted = (ends[0] - ends[1]) / (2 * h)
    largest = float(table.scores.abs().max())
    torch.testing.assert_close(table.scores[:, 1], wanted, rtol=1e-4, atol=1e-6 * largest)
    assert math.isfinite(largest) and largest > 0
    assert not any("looked up for padding" in note for note in table.notes)


def test_a_row_of_padding_that_another_layer_trains_is_told(tmp_path, tokenizer):  # noqa: F811
    task, dataset = task_of("bart", tokenizer)
    task.model.model.shared.padding_idx = 0
    trained(task, dataset, tmp_path / "run")
    table = whence.attribute(task, dataset, dataset, method=whence.settings.Unroll(run=tmp_path / "run"), runtime=QUIET)
    assert sum("'model.shared' is looked up for padding, too, and trained elsewhere" in note for note in table.notes) == 1


def test_tracin_and_ekfac_along_the_run_are_what_they_are_at_its_checkpoints(run):
    task, dataset, folder, _ = run
    opened = whence.runs.open_run(folder)
    found = whence.attribute(task, dataset, dataset, method=whence.settings.TracIn(run=folder), runtime=QUIET)
    wanted, before = 0.0, 0
    for step in opened.checkpoints[1:]:
        with opened.weights(task.model, [step]):
            asked, given = (
                torch.cat([part.flatten(1) for part in dense_gradients(task, dataset.examples, objective).values()], 1)
                for objective in ("measurement", "loss")
            )
        # Momentum of .5 moves twice as far as the rate says.
        wanted = wanted - 2 * RATE * (step - before) / len(dataset) * asked @ given.T
        before = step
    torch.testing.assert_close(found.scores, wanted, rtol=1e-6, atol=1e-9 * float(wanted.abs().max()))
    fit = whence.FitConfig(labels="dataset")
    along = whence.attribute(task, dataset, dataset, method=whence.EKFAC(run=folder, checkpoints=2, fit=fit), runtime=QUIET)
    mean = 0.0
    for point in points_of(opened, 2):
        with opened.weights(task.model, [point.step]):
            mean = (
                mean
                + point.weight * whence.attribute(task, dataset, dataset, method=whence.EKFAC(fit=fit), runtime=QUIET).scores
            )
    torch.testing.assert_close(along.scores, mean, rtol=1e-6, atol=1e-9 * float(mean.abs().max()))
    source = whence.attribute(task, dataset, dataset, method=whence.Source(run=folder, segments=1), runtime=QUIET)
    assert bool(torch.isfinite(source.scores).all()) and float(source.scores.abs().max()) > 0
    assert any("queries meet" in note for note in source.notes) == (task.kind == "diffusion")
