"""Diffusion against one example and one draw at a time: losses, measurements, gradients, curvature, and refusals."""

import json
import math
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

import whence
from tests.pages import run_blocks, run_example
from tests.reference import diffusion as twin
from tests.settings import QUIET
from tests.test_capture import run
from whence.capture import check_task, plan_units
from whence.capture.blocks import as_blocks
from whence.curvature import fit_ekfac, fit_kfac
from whence.curvature.labels import check_outputs
from whence.errors import BadInput, UnknownOption, Unsupported
from whence.settings import FitConfig
from whence.tasks import step_back

SHAPE = (2, 4, 4)


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.joint, self.out = nn.GroupNorm(2, width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, hidden):
        rows = self.norm(hidden).flatten(2).transpose(1, 2)
        q, k, v = self.joint(rows).chunk(3, -1)
        found = self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        return hidden + found.transpose(1, 2).reshape(hidden.shape)


class TinyUNet(nn.Module):
    """Down, attention at the bottom, up, with a skip; told the time, and maybe a class."""

    def __init__(self, classes=None, lone=False):
        super().__init__()
        self.time = nn.Linear(4, 4)
        self.label = None if classes is None else nn.Embedding(classes, 4)
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.down, self.attention, self.up = (
            nn.Conv2d(4, 4, 3, stride=2, padding=1),
            Attention(4),
            nn.Conv2d(4, 4, 3, padding=1),
        )
        self.last = nn.Conv2d(8, 2, 1)
        self.gain = nn.Parameter(torch.rand(4, 1, 1)) if lone else None

    def forward(self, images, times, labels=None):
        angles = times[:, None].to(images.dtype) * torch.tensor([0.05, 0.5], dtype=images.dtype)
        told = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        if labels is not None:
            told = told + self.label(labels)
        top = nn.functional.silu(self.norm(self.first(images)) + told[:, :, None, None])
        if self.gain is not None:
            top = top * self.gain
        bottom = self.attention(torch.tanh(self.down(top)))
        return self.last(torch.cat([top, self.up(nn.functional.interpolate(bottom, scale_factor=2.0))], 1))


class Told(TinyUNet):
    """Told a sequence of states beside the time, as of a text encoder."""

    def __init__(self):
        super().__init__()
        self.states = nn.Linear(3, 4)

    def forward(self, images, times, condition):
        return super().forward(images + self.states(condition).mean((1, 2))[:, None, None, None], times)


NOISED = {field.name for field in fields(whence.tasks.Draws)}
MEASURED = {field.name for field in fields(whence.tasks.Measured)} - {"draws"}


def made(count=4, *, classes=None, lone=False, network=None, **options):
    torch.manual_seed(3)
    network = TinyUNet(classes, lone) if network is None else network
    noised = {"draws": 3, "shared": False, **{name: options.pop(name) for name in NOISED & options.keys()}}
    measured = {name: options.pop(name) for name in MEASURED & options.keys()}
    measured |= {"draws": options.pop("measured_draws")} if "measured_draws" in options else {}
    task = whence.Diffusion(
        network.double(),
        noised=whence.tasks.Draws(**noised),
        measured=whence.tasks.Measured(**measured),
        functional=lone,
        **options,
    )
    records = [{"id": f"{n}", "image": torch.randn(SHAPE).double()} for n in range(count)]
    if classes:
        records = [{**record, "label": n % classes} for n, record in enumerate(records)]
    if isinstance(network, Told):
        records = [{**record, "condition": torch.randn(5, 3).double()} for record in records]
    return task, task.prepare(records)


def gradients(task, dataset, objective="loss"):
    """Blocks (B, O, I) per unit, from one batch."""
    plan = plan_units(task)
    total = [torch.zeros(len(dataset), unit.outputs, unit.inputs).double() for unit in plan.units]

    def consume(index, pair):
        total[index] += pair.gradient()

    run(task, plan, dataset.examples, consume, objective=objective)
    return plan, total


def close(found, wanted, rtol=1e-9):
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=rtol * float(wanted.abs().max()) + 1e-18)


WAYS = {
    "noise": {"schedule": "linear"},
    "noise, cosine, shared": {"schedule": "cosine", "shared": True},
    "v": {"schedule": "linear", "prediction": "v", "stratified": False},
    "image": {"schedule": "cosine", "prediction": "image"},
    "flow": {"schedule": "flow"},
    "condition": {"network": Told()},
    "classes": {"classes": 3},
    "functional": {"lone": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_losses_and_gradients_are_those_of_one_draw_at_a_time(way):
    task, dataset = made(**WAYS[way])
    plan, found = gradients(task, dataset)
    check_task(task, plan, dataset.examples)
    assert sum(len(unit.parameters) for unit in plan.units) == len(list(task.model.parameters()))
    losses = task.loss(task.model, task.collate(dataset.examples))
    for place, example in enumerate(dataset.examples):
        value = twin.loss(task, example)
        close(losses[place].detach(), value.detach())
        grads = twin.gradient(task, value)
        for unit, wanted in zip(found, as_blocks(plan, {name: g[None] for name, g in grads.items()}), strict=True):
            close(unit[place], wanted[0])


@pytest.mark.parametrize("way", ["noise", "v", "image", "flow"])
def test_outputs_split_the_loss_and_their_curvature_does_not_depend_on_the_noise(way):
    task, dataset = made(2, **WAYS[way])
    check_outputs(task, dataset.examples)
    outputs = task.outputs(task.model, task.collate(dataset.examples))
    close(outputs.losses(2).detach(), task.loss(task.model, task.collate(dataset.examples)).detach())
    assert outputs.values_MC.shape == (6, math.prod(SHAPE))


@pytest.mark.parametrize("prediction", ["noise", "v", "image"])
def test_times_weigh_by_their_signal_to_noise_ratio_up_to_a_bound(prediction):
    task, dataset = made(prediction=prediction, min_snr=5.0, draws=8)
    batch = task.collate(dataset.examples)
    losses = task.loss(task.model, batch)
    for example, loss in zip(dataset.examples, losses, strict=True):
        close(loss.detach(), twin.loss_by_image_errors(task, example).detach())
    check_outputs(task, dataset.examples)
    close(task.outputs(task.model, batch).losses(len(dataset)).detach(), losses.detach())
    plain, _ = made(prediction=prediction, draws=8)
    assert plain.preprocessing != task.preprocessing
    _, found = gradients(task, dataset)
    wanted = twin.gradient(task, twin.loss_by_image_errors(task, dataset.examples[0]))
    for unit, block in zip(found, as_blocks(plan_units(task), {name: g[None] for name, g in wanted.items()}), strict=True):
        close(unit[0], block[0])


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_the_gauss_newton_matrix_of_ekfac(sharing):
    """Eigenvalues estimated from drawn labels approach the diagonal of the exact matrix in the bases that were found."""
    task, dataset = made(3, draws=2)
    plan = plan_units(task)
    config = FitConfig(samples=150, sharing=sharing)
    found = fit_ekfac(task, plan, dataset, config, max_positions=100, quiet=True)
    exact = sum(twin.gauss_newton(task, example) for example in dataset.examples) / len(dataset)
    assert found.trace() == pytest.approx(float(exact.trace()), rel=0.1)
    # The input convolution, whose parameters are a block of the exact matrix.
    names = [name for name, _ in task.model.named_parameters()]
    sizes = [parameter.numel() for _, parameter in task.model.named_parameters()]
    starts = dict(zip(names, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
    weight, bias = (torch.arange(n) + starts[name] for name, n in (("first.weight", 72), ("first.bias", 4)))
    places = torch.cat([weight.view(4, 18), bias.view(4, 1)], 1).flatten()
    block = next(block for block in found.blocks if block.unit.name == "first.weight")
    vectors = torch.kron(block.outputs_OO, block.inputs_II)
    wanted = (vectors * (exact[places][:, places] @ vectors)).sum(0).view(block.values_OI.shape)
    assert float((block.values_OI - wanted).norm() / wanted.norm()) < 0.15


def test_reduced_factors_keep_the_draws_apart():
    """Sums over the positions of one draw, never over draws: as if every draw were an example."""
    task, dataset = made(2, draws=3)
    plan = plan_units(task)
    config = FitConfig(labels="dataset", sharing="reduce")
    together = fit_kfac(task, plan, dataset, config, max_positions=100, quiet=True)
    place = next(index for index, unit in enumerate(plan.units) if unit.name == "first.weight")
    wanted = torch.zeros(19, 19).double()
    for example in dataset.examples:
        batch = task.collate([example])
        for time, noise in zip(batch["time"][0], batch["noise"][0], strict=True):
            signal, strength = twin.mixture(task.schedule.kept_S, time)
            noisy = signal * batch["image"] + strength * noise
            patches = nn.functional.unfold(noisy, 3, padding=1)[0].mean(1)
            row = torch.cat([patches, torch.ones(1).double()])
            wanted += torch.outer(row, row)
    basis = together.blocks[place].inputs_II
    inside = basis.T @ wanted @ basis
    # Eigenvectors of the twin's sum, but for its scale.
    assert float((inside - torch.diag(inside.diagonal())).norm() / inside.norm()) < 1e-8


def test_the_empirical_fisher_takes_the_loss_of_the_noise_that_was_drawn():
    task, dataset = made(4)
    plan, found = gradients(task, dataset)
    fitted = fit_ekfac(task, plan, dataset, FitConfig(labels="dataset"), max_positions=100, quiet=True)
    exact = sum(float(unit.square().sum()) for unit in found) / len(dataset)
    assert fitted.trace() == pytest.approx(exact)


@pytest.mark.parametrize("way", ["noise", "v"])
@pytest.mark.parametrize("measure", ["loss", "square_norm", "simple_elbo", "elbo", "loss_at"])
def test_measurements_are_those_of_one_draw_at_a_time(measure, way):
    options = {"time": 700} if measure == "loss_at" else {}
    task, dataset = made(measure=measure, **WAYS[way], **options)
    plan, found = gradients(task, dataset, "measurement")
    kept = task.schedule.kept_S
    values = task.measurement(task.model, task.collate(dataset.examples))
    for place, example in enumerate(dataset.examples):
        drawn = twin.draws(task, example)
        if measure == "loss":
            wanted = -twin.loss(task, example)
        elif measure == "square_norm":
            wanted = twin.square_norm(task, example)
        elif measure == "loss_at":
            wanted = -sum(twin.error(task, example, torch.tensor(700), e)[0].square().mean() for _, e in drawn) / 3
        else:
            wanted = 0.0
            size = math.prod(SHAPE)
            for time, noise in drawn:
                factor = {"noise": 1, "v": kept[time], "image": kept[time] / (1 - kept[time])}[task.prediction]
                square = twin.error(task, example, time, noise)[0].square().sum() * factor
                ratio = kept / (1 - kept)
                weight = ratio[time - 1] / ratio[time] - 1 if time > 0 and measure == "elbo" else 1.0
                wanted = wanted - 0.5 * 1000 * weight * square / 3
            if measure == "elbo":
                image = torch.as_tensor(example.fields["image"])
                last = kept[-1]
                prior = 0.5 * (last * image.square().sum() + size * (1 - last) - size - size * torch.log(1 - last))
                wanted = wanted - prior - 0.5 * size * torch.log(2 * math.pi / ratio[0])
        close(values[place].detach(), wanted.detach())
        grads = twin.gradient(task, wanted)
        for unit, block in zip(found, as_blocks(plan, {name: g[None] for name, g in grads.items()}), strict=True):
            close(unit[place], block[0], 1e-8)


def test_the_elbo_is_the_sum_of_the_divergences_of_every_step():
    """With one stratified draw per step the bound is that of Ho et al. 2020, equation 5, term by term."""
    steps = 6
    schedule = whence.tasks.NoiseSchedule.linear(steps, 0.1, 0.5)
    task, dataset = made(1, schedule=schedule, draws=steps, measure="elbo")
    example = dataset.examples[0]
    drawn = twin.draws(task, example)
    assert [int(time) for time, _ in drawn] == list(range(steps))
    estimates, noises = {}, {}
    with torch.no_grad():
        for time, noise in drawn:
            found = twin.error(task, example, time, noise)[1][0]
            estimates[int(time)], noises[int(time)] = [found], [noise]
        value = task.measurement(task.model, task.collate([example]))
    wanted = twin.negative_elbo_by_terms(schedule.kept_S, torch.as_tensor(example.fields["image"]), estimates, noises)
    assert float(value) == pytest.approx(-wanted)


@pytest.mark.parametrize("way", ["noise", "v", "image"])
def test_a_trajectory_has_the_probability_of_its_draws(way):
    schedule = whence.tasks.NoiseSchedule.cosine(20)
    task, _ = made(1, schedule=schedule, prediction=way, measure="trajectory", clip=2.0)
    records = whence.pipeline.sample_images(task, 3, SHAPE, steps=7, seed=1)
    queries = task.prepare(records)
    plan, found = gradients(task, queries, "measurement")
    check_task(task, plan, queries.examples, objective="measurement")
    for place, record in enumerate(records):
        wanted = 0.0
        path, steps = record["trajectory"], record["steps"]
        for j in range(5 + 1):
            now, then = schedule.kept_S[steps[j]], schedule.kept_S[steps[j + 1]]
            predicted = task.model(path[j][None], steps[j][None])[0]
            if way == "image":
                image = predicted
            elif way == "v":
                image = now.sqrt() * path[j] - (1 - now).sqrt() * predicted
            else:
                image = (path[j] - (1 - now).sqrt() * predicted) / now.sqrt()
            alpha = now / then
            mean = then.sqrt() * (1 - alpha) / (1 - now) * image.clamp(-2, 2) + alpha.sqrt() * (1 - then) / (1 - now) * path[j]
            normal = torch.distributions.Normal(mean, ((1 - then) / (1 - now) * (1 - alpha)).sqrt())
            wanted = wanted + normal.log_prob(path[j + 1]).sum()
        close(task.measurement(task.model, task.collate([queries.examples[place]]))[0].detach(), wanted.detach())
        grads = twin.gradient(task, wanted)
        for unit, block in zip(found, as_blocks(plan, {name: g[None] for name, g in grads.items()}), strict=True):
            close(unit[place], block[0], 1e-8)


def test_a_trajectory_is_told_the_condition_that_led_to_it():
    task, _ = made(1, schedule="cosine", network=Told(), measure="trajectory")
    conditions = [torch.randn(5, 3, generator=torch.Generator().manual_seed(n)).double() for n in range(2)]
    records = whence.pipeline.sample_images(task, 2, SHAPE, steps=4, seed=1, conditions=conditions)
    same = whence.pipeline.sample_images(task, 1, SHAPE, steps=4, seed=1, conditions=conditions[1:])
    assert torch.equal(records[1]["condition"], conditions[1]) and not torch.equal(records[0]["image"], same[0]["image"])
    right = task.measurement(task.model, task.collate(task.prepare(records).examples))
    swapped = [{**record, "condition": conditions[1 - n]} for n, record in enumerate(records)]
    wrong = task.measurement(task.model, task.collate(task.prepare(swapped).examples))
    alone = task.measurement(task.model, task.collate(task.prepare(records[1:]).examples))
    close(right[1:].detach(), alone.detach())
    assert float((right - wrong).detach().abs().min()) > 1e-3


def test_sampled_images_do_not_depend_on_their_number_or_batch():
    task, _ = made(1, schedule=whence.tasks.NoiseSchedule.linear(10))
    first = whence.pipeline.sample_images(task, 5, SHAPE, batch_images=2)
    again = whence.pipeline.sample_images(task, 2, SHAPE)
    for a, b in zip(first, again, strict=False):
        close(a["image"], b["image"])
    assert first[0]["trajectory"].shape == (11, *SHAPE) and torch.equal(first[0]["image"], first[0]["trajectory"][-1])
    flow, _ = made(1, schedule="flow", classes=2)
    (record,) = whence.pipeline.sample_images(flow, 1, SHAPE, steps=3, labels=[1])
    noisy = torch.randn(SHAPE, generator=_first_generator(), dtype=torch.float64)[None]
    with torch.no_grad():
        for time in (1.0, 2 / 3, 1 / 3):
            noisy = noisy - flow.model(noisy, torch.tensor([time]).double(), torch.tensor([1])) / 3
    close(record["image"], noisy[0])
    assert record["label"] == 1 and "trajectory" not in record


def _first_generator():
    from whence.pipeline.sample_images import _generator

    return _generator(0, 0)


def test_a_step_back_has_the_mean_and_variance_of_bayes():
    """Of x_j given x_t and the image: two Gaussians multiplied."""
    schedule = whence.tasks.NoiseSchedule.linear(50)
    now, then = schedule.kept_S[30], schedule.kept_S[12]
    noisy, image = torch.randn(1, 3).double(), torch.randn(1, 3).double()
    mean, variance = step_back(schedule, noisy, image, torch.tensor([30]), torch.tensor([12]))
    share = now / then
    precision = share / (1 - share) + 1 / (1 - then)
    wanted = (share.sqrt() * noisy / (1 - share) + then.sqrt() * image / (1 - then)) / precision
    close(mean, wanted)
    close(variance.flatten(), 1 / precision[None])


def test_draws_belong_to_id_seed_and_number():
    task, dataset = made(3, draws=4)
    alone = task.collate([dataset.examples[1]])
    together = task.collate(dataset.examples)
    assert torch.equal(alone["noise"][0], together["noise"][1]) and torch.equal(alone["time"][0], together["time"][1])
    more, _ = made(3, draws=9)
    assert torch.equal(more.collate(dataset.examples)["noise"][:, :4], together["noise"])
    assert not torch.equal(together["noise"][0], together["noise"][1])
    other, _ = made(3, draws=4, seed=1)
    assert not torch.equal(other.collate(dataset.examples)["noise"], together["noise"])
    shared, _ = made(3, draws=4, shared=True)
    assert torch.equal(shared.collate(dataset.examples)["noise"][0], shared.collate(dataset.examples)["noise"][2])
    assert [int(time) // 250 for time in together["time"][0]] == [0, 1, 2, 3]
    digests = {each.preprocessing for each in (task, more, other, shared)}
    assert len(digests) == 4


def test_schedules_are_those_of_the_papers():
    linear = whence.tasks.NoiseSchedule.linear()
    betas = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_allclose(linear.kept_S, np.cumprod(1 - betas))
    cosine = whence.tasks.NoiseSchedule.cosine(100)
    level = np.cos((np.arange(101) / 100 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(cosine.kept_S[:99], (level / level[0])[1:100])
    signal, noise = linear.mix(torch.tensor([0, 500]))
    close(signal.square() + noise.square(), torch.ones(2).double())
    flow = whence.tasks.NoiseSchedule.flow(1000.0)
    assert flow.mix(torch.tensor([0.25]))[0].item() == 0.75
    assert flow.for_network(torch.tensor([0.25]), torch.float32).item() == 250.0
    assert linear.digest != cosine.digest != flow.digest != whence.tasks.NoiseSchedule.flow().digest
    assert int(linear.times(torch.tensor(0.9999999))) == 999


@pytest.mark.parametrize("output", ["loss", "square_norm"])
def test_trak_and_d_trak_are_their_formulas(output, tmp_path):
    """Projection wide enough to keep everything: score = +q^T (F + damping)^-1 phi, phi and q gradients of the same function."""
    measure = "loss" if output == "loss" else "square_norm"
    task, train = made(6, output=output, measure=measure)
    queries = task.prepare([{"id": f"q{n}", "image": torch.randn(SHAPE).double()} for n in range(3)])
    store = whence.build(
        task, train, tmp_path / "store", config=whence.BuildConfig(method="trak", rank=400, dtype="float32"), runtime=QUIET
    )
    table = whence.score_table(store, task, queries, damping=whence.Damping(relative=1e-3), runtime=QUIET)

    def rows(dataset):
        values = [twin.loss(task, e) if output == "loss" else -twin.square_norm(task, e) for e in dataset.examples]
        return torch.stack([torch.cat([g.flatten() for g in twin.gradient(task, value).values()]) for value in values])

    train_NP, queries_QP = -rows(train), -rows(queries)
    fisher_NN = train_NP @ train_NP.T / len(train)
    # In the rows' span, where a random projection of many numbers nearly keeps inner products.
    products = queries_QP @ train_NP.T
    inverse = torch.linalg.inv(fisher_NN + 1e-9 * float(fisher_NN.trace()) * torch.eye(6).double())
    wanted = products @ inverse / len(train)
    correlation = torch.corrcoef(torch.stack([table.scores.double().flatten(), wanted.flatten()]))[0, 1]
    assert float(correlation) > 0.9
    own = whence.score_table(store, task, train, damping=whence.Damping(relative=1e-3), runtime=QUIET).scores
    assert bool((own.diagonal() > 0).all())


def test_the_whole_road_gives_the_signs_of_the_twin():
    task, train = made(5)
    queries = task.prepare([{"id": f"q{n}", "image": torch.randn(SHAPE).double()} for n in range(2)])
    table = whence.attribute(task, train, queries, method="grad-dot-exact", runtime=QUIET)
    for place, query in enumerate(queries.examples):
        asked = twin.gradient(task, -twin.loss(task, query))
        for number, example in enumerate(train.examples):
            given = twin.gradient(task, twin.loss(task, example))
            wanted = -sum(float((asked[name] * given[name]).sum()) for name in asked) / len(train)
            assert float(table.scores[place, number]) == pytest.approx(wanted, rel=1e-6)
    assert table.unit.startswith("inner product") and task.unit == "mean squared error of the network's prediction, negated"


def test_a_network_that_gives_a_variance_too():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Conv2d(2, 4, 1)

        def forward(self, images, times):
            return self.last(images)

    task, dataset = made(network=Both())
    found = task.predict(task.model, torch.randn(3, *SHAPE).double(), torch.zeros(3).long())
    assert found.shape == (3, *SHAPE)
    wrong, dataset = made(network=nn.Sequential(nn.Conv2d(2, 3, 1)))
    wrong.model.forward = lambda images, times: wrong.model[0](images)
    with pytest.raises(BadInput, match=r"a prediction of shape \(12, 3, 4, 4\) for noisy images of shape \(12, 2, 4, 4\)"):
        wrong.loss(wrong.model, wrong.collate(dataset.examples))


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"schedule": "quadratic"}, UnknownOption, "found schedule='quadratic'; needed one of: linear, cosine, flow"),
        ({"schedule": 3}, BadInput, "a schedule of type int"),
        ({"prediction": "score"}, UnknownOption, "found prediction='score'; needed one of: noise, v, image, flow"),
        ({"min_snr": 0.0}, BadInput, "found min_snr=0.0 with the schedule"),
        ({"min_snr": 5.0, "schedule": "flow"}, BadInput, "found min_snr=5.0 with the schedule 'flow matching'"),
        ({"measure": "likelihood"}, UnknownOption, "found measure='likelihood'; needed one of: loss, loss_at"),
        ({"output": "margin"}, UnknownOption, "found output='margin'; needed one of: loss, square_norm"),
        ({"draws": 0}, BadInput, "found draws=0; needed 1 draw or more"),
        ({"clip": 0.0}, BadInput, "found clip=0.0; needed a positive clip or none"),
        ({"prediction": "flow"}, Unsupported, "prediction='flow' with the schedule 'linear, 1,000 steps'"),
        ({"schedule": "flow", "prediction": "v"}, Unsupported, "prediction='v' with the schedule 'flow matching'"),
        ({"schedule": "flow", "measure": "elbo"}, Unsupported, "measure='elbo' with flow matching; needed a schedule in steps"),
        ({"time": 3}, BadInput, "time=3 with measure='loss'; needed a time with 'loss_at'"),
        ({"measure": "loss_at"}, BadInput, "time=None with measure='loss_at'"),
        ({"measure": "loss_at", "time": 1000}, BadInput, "time=1000; needed a step from 0 to 999"),
        ({"measure": "loss_at", "time": 0.5}, BadInput, "time=0.5; needed a step from 0 to 999"),
        ({"measure": "loss_at", "time": 2.0, "schedule": "flow"}, BadInput, "time=2.0; needed a number from 0 to 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options, kind, text):
    with pytest.raises(kind) as caught:
        made(**options)
    assert text in str(caught.value)


def test_records_that_cannot_be_used_are_refused():
    task, dataset = made()
    for record, text in (
        ({"label": 1}, "record 0 without an image"),
        ("text", "text, which cannot be read (No such file or directory); needed an image file"),
        (object(), "record 0 whose image is no array of numbers"),
        ({"image": np.zeros(SHAPE), "label": 0.5}, "record 0 with the label 0.5; needed one class number"),
    ):
        with pytest.raises(BadInput) as caught:
            task.prepare([record])
        assert text in str(caught.value)
    mixed = task.prepare([np.zeros((2, 4, 4)), np.zeros((2, 8, 8))])
    with pytest.raises(BadInput, match="images of the shapes"):
        task.collate(mixed.examples)
    uneven = task.prepare([{"image": np.zeros(SHAPE), "condition": np.zeros((n, 3))} for n in (2, 3)])
    with pytest.raises(BadInput, match="conditions of the shapes .*; do this: fill the conditions up to one length"):
        task.collate(uneven.examples)
    some = task.prepare([{"image": np.zeros(SHAPE), "label": 1}, {"image": np.zeros(SHAPE)}])
    with pytest.raises(BadInput, match="labels on some images; needed images of one shape, and labels on all or none"):
        task.collate(some.examples)
    asking, _ = made(measure="trajectory")
    with pytest.raises(BadInput, match=r"a query without the trajectory that led to it.*whence.pipeline.sample_images"):
        asking.measurement(asking.model, asking.collate(dataset.examples))
    with pytest.raises(Unsupported, match=r"a schedule without steps \(flow matching\)"):
        whence.tasks.NoiseSchedule.flow().steps()
    for options, text in (
        ({"count": 0}, "count=0, steps=1000, batch_images=64"),
        ({"count": 2, "steps": 1001}, "at most the 1,000 steps of the schedule"),
        ({"count": 2, "labels": [1]}, "1 labels for 2 images"),
        ({"count": 2, "conditions": [1]}, "1 conditions for 2 images"),
    ):
        with pytest.raises(BadInput) as caught:
            whence.pipeline.sample_images(task, shape=SHAPE, **options)
        assert text in str(caught.value)


def _unet():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=4, in_channels=2, out_channels=2, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
        attention_head_dim=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=3,
    )  # fmt: skip


def _dit():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=2, out_channels=4, num_layers=1, sample_size=4, patch_size=2,
        norm_num_groups=2, num_embeds_ada_norm=3,
    )  # fmt: skip


@pytest.mark.parametrize(("network", "sharing"), [(_unet, "expand"), (_dit, "reduce")])
def test_networks_of_diffusers(network, sharing):
    """Every parameter of a UNet and of a DiT, class-conditional, held against autograd; curvature fits."""
    task, dataset = made(3, classes=3, network=network(), draws=2)
    plan = plan_units(task)
    assert plan.coverage.left_out == () and plan.functional == ()
    check_task(task, plan, dataset.examples)
    check_outputs(task, dataset.examples)
    table = whence.attribute(task, dataset, dataset, method=whence.EKFAC(fit=whence.FitConfig(sharing=sharing)), runtime=QUIET)
    assert bool((table.scores.diagonal() > 0).all())


def test_a_network_of_diffusers_that_is_told_a_condition():
    """A UNet with cross-attention, as in latent diffusion: every parameter held against autograd, and refused without conditions."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    network = diffusers.UNet2DConditionModel(
        sample_size=4, in_channels=2, out_channels=2, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
        attention_head_dim=4, cross_attention_dim=3, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    task, bare = made(3, network=network, draws=2)
    with pytest.raises(BadInput, match="images without a condition for a UNet2DConditionModel"):
        task.loss(task.model, task.collate(bare.examples))
    records = [{"id": str(n), "image": torch.randn(SHAPE).double(), "condition": torch.randn(5, 3)} for n in range(3)]
    dataset = task.prepare(records)
    plan = plan_units(task)
    assert plan.coverage.left_out == () and plan.functional == ()
    check_task(task, plan, dataset.examples)
    check_outputs(task, dataset.examples)
    table = whence.attribute(task, dataset, dataset, method="ekfac", runtime=QUIET)
    assert bool((table.scores.diagonal() > 0).all())


def test_a_pipeline_from_its_folder(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    network = _unet()
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=50, prediction_type="v_prediction")
    diffusers.DDPMPipeline(network, scheduler).save_pretrained(tmp_path / "made")
    task = whence.tasks.load_diffusion(tmp_path / "made", noised=whence.tasks.Draws(draws=2))
    assert task.prediction == "v" and task.schedule.name == "DDPMScheduler, 50 steps" and task.draws == 2
    assert task.weights == whence.Diffusion(network).weights
    close(task.schedule.kept_S, scheduler.alphas_cumprod.double())
    assert whence.tasks.load_diffusion(tmp_path / "made", schedule="linear").prediction == "noise"
    flow = whence.tasks.NoiseSchedule.from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler())
    assert flow.prediction == "flow" and flow.time_scale == 1000.0
    assert whence.Diffusion(network, schedule=diffusers.DDPMScheduler(prediction_type="sample")).prediction == "image"
    with pytest.raises(Unsupported, match="a DDPMScheduler with the prediction type 'score'"):
        whence.Diffusion(network, schedule=diffusers.DDPMScheduler(prediction_type="score"))


@pytest.mark.parametrize(
    ("index", "kind", "text"),
    [
        (None, BadInput, "which is no pipeline with a denoiser and a scheduler"),
        ('{"vae": ["diffusers", "AutoencoderKL"]}', BadInput, "which is no pipeline with a denoiser and a scheduler"),
        (
            '{"unet": ["diffusers", "UNet3D"], "scheduler": ["diffusers", "DDPMScheduler"]}',
            BadInput,
            "a pipeline with a UNet3D; needed a ModelMixin that diffusers has",
        ),
        (
            '{"unet": ["diffusers", "PriorTransformer"], "scheduler": ["diffusers", "DDPMScheduler"]}',
            Unsupported,
            "a PriorTransformer, which is also given proj_embedding",
        ),
    ],
)
def test_folders_that_cannot_be_loaded_are_refused(index, kind, text, tmp_path):
    pytest.importorskip("diffusers")
    if index is not None:
        (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(kind) as caught:
        whence.tasks.load_diffusion(tmp_path)
    assert text in str(caught.value)


def test_the_blocks_of_the_page_run_as_they_stand(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = run_blocks("docs/diffusion.md", 4)
    assert names["table"].scores.shape == names["trak"].scores.shape == names["d_trak"].scores.shape == (2, 60)
    assert (tmp_path / "influence.html").read_text("utf-8").count("<img") == 2 * 17


@pytest.mark.slow
def test_the_example_runs_and_its_images_lose_without_their_sources(tmp_path):
    printed = run_example("diffusion/digits.py", "--output", tmp_path, timeout=1800)
    rows = json.loads((tmp_path / "removal.json").read_text("utf-8"))
    top, by_chance = (sum(row[name] for row in rows) for name in ("rise without its top 10", "rise without 10 random"))
    assert len(rows) == 4 and top > by_chance
    assert "influence.html" in printed


def test_scores_split_over_draws_and_so_over_times():
    task, train = made(3, draws=4)
    table = whence.attribute(task, train, train, method="grad-dot-exact", tokens_of=["1"], runtime=QUIET)
    asked = twin.gradient(task, -twin.loss(task, train.examples[0]))
    for number, (time, noise) in enumerate(twin.draws(task, train.examples[1])):
        given = twin.gradient(task, twin.error(task, train.examples[1], time, noise)[0].square().mean() / 4)
        wanted = -sum(float((asked[name] * given[name]).sum()) for name in asked) / len(train)
        assert float(table.tokens["1"][0, number]) == pytest.approx(wanted, rel=1e-6)


def test_examples_outlive_a_move_of_the_tensor_that_they_came_from():
    """As when a bank sends its training data to other processes, which moves it to shared memory."""
    task, _ = made(1)
    images = torch.ones(2, 64, 64)
    dataset = task.prepare(list(images))
    pointer = images.data_ptr()
    images.share_memory_()
    assert images.data_ptr() != pointer
    torch.full((8192,), math.nan)  # may well take the memory that was left
    assert all((example.fields["image"] == 1).all() for example in dataset.examples)
    assert not np.shares_memory(dataset.examples[0].fields["image"], images.numpy())


def test_a_pipeline_without_diffusers_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    index = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r"found no diffusers; .*pip install 'whence-tda\[diffusion\]'"):
        whence.tasks.load_diffusion(tmp_path)
