"""Diffusion as it is trained: what the network is told is hidden now and then, images are augmented, draws go through in parts."""

import numpy as np
import pytest
import torch

import whence
from tests.pages import run_example
from tests.reference import diffusion as twin
from tests.settings import QUIET
from tests.test_diffusion import SHAPE, Told, close, gradients, made
from whence.capture import check_task, plan_units
from whence.capture.blocks import as_blocks
from whence.curvature import Curvature, fit_ekfac
from whence.errors import BadInput, UnknownOption, Unsupported
from whence.settings import FitConfig
from whence.tasks import Draws, Guidance

NULL = np.linspace(-1, 1, 15).reshape(5, 3)


def brightened(image, generator):
    return image + 0.3 * torch.randn((), generator=generator, dtype=image.dtype)


def told(kind="condition", **options):
    """A task whose network is told a condition or a class, with guidance."""
    drop, scale = options.pop("drop", 0.0), options.pop("scale", 1.0)
    torch.manual_seed(0)
    if kind == "condition":
        return made(network=Told(), guidance=Guidance(drop=drop, scale=scale, null_condition=NULL), **options)
    task, dataset = made(classes=4, guidance=Guidance(drop=drop, scale=scale, null_label=3), **options)
    return task, dataset


def assert_gradients(task, dataset, objective, value_of):
    """Captured gradients of all examples in one batch are those of one draw of one example at a time."""
    plan, found = gradients(task, dataset, objective)
    for place, example in enumerate(dataset.examples):
        grads = twin.gradient(task, value_of(example))
        for unit, wanted in zip(found, as_blocks(plan, {name: g[None] for name, g in grads.items()}), strict=True):
            close(unit[place], wanted[0], 1e-8)


@pytest.mark.parametrize("kind", ["condition", "label"])
@pytest.mark.parametrize("augment", [None, "flip", brightened])
def test_training_losses_are_those_of_what_training_saw(kind, augment):
    task, dataset = told(kind, drop=0.4, draws=4, augment=augment)
    plan = plan_units(task)
    check_task(task, plan, dataset.examples)
    hidden = task.collate(dataset.examples)["hidden"]
    assert 0 < int(hidden.sum()) < hidden.numel()
    losses = task.loss(task.model, task.collate(dataset.examples))
    for loss, example in zip(losses, dataset.examples, strict=True):
        close(loss.detach(), twin.training_loss(task, example).detach())
    assert_gradients(task, dataset, "loss", lambda example: twin.training_loss(task, example))
    outputs = task.outputs(task.model, task.collate(dataset.examples))
    close(outputs.losses(len(dataset)).detach(), losses.detach())


@pytest.mark.parametrize("kind", ["condition", "label"])
def test_queries_are_measured_with_the_guided_prediction_of_the_image_as_it_is(kind):
    task, dataset = told(kind, drop=0.4, scale=2.5, augment="flip")
    check_task(task, plan_units(task), dataset.examples, objective="measurement")
    found = task.measurement(task.model, task.collate(dataset.examples))
    for value, example in zip(found, dataset.examples, strict=True):
        close(value.detach(), -twin.guided_loss(task, example, 2.5).detach())
    assert_gradients(task, dataset, "measurement", lambda example: -twin.guided_loss(task, example, 2.5))
    plain, _ = told(kind, drop=0.4, augment="flip")
    for value, example in zip(plain.measurement(plain.model, plain.collate(dataset.examples)), dataset.examples, strict=True):
        close(value.detach(), -twin.guided_loss(plain, example, 1.0).detach())
    # Training losses, and so stores, do not depend on how queries are guided.
    assert task.preprocessing == plain.preprocessing != told(kind, drop=0.2, augment="flip")[0].preprocessing


def test_a_null_of_a_record_comes_before_that_of_the_settings():
    task, dataset = told(drop=0.5)
    own = np.full((5, 3), 0.25)
    records = [{"id": e.id, "image": e.fields["image"], "condition": e.fields["condition"]} for e in dataset.examples]
    other = task.prepare([{**records[0], "null_condition": own}, *records[1:]])
    batch = task.collate(other.examples)
    close(batch["null_condition"][0], torch.from_numpy(own))
    close(batch["null_condition"][1], torch.from_numpy(NULL))
    assert other.fingerprint != task.prepare(records).fingerprint


def test_guided_images_follow_guided_predictions(tmp_path):
    """Sampled step by step by hand, with one network call for each prediction; and the trajectory's probability is theirs."""
    np.save(tmp_path / "null.npy", NULL)
    schedule = whence.tasks.NoiseSchedule.linear(12)
    guidance = Guidance(scale=3.0, null_condition=str(tmp_path / "null.npy"))
    task, _ = made(1, network=Told(), schedule=schedule, measure="trajectory", guidance=guidance)
    condition = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double()
    (record,) = whence.pipeline.sample_images(task, 1, SHAPE, steps=3, conditions=[condition])
    null, path, steps = torch.from_numpy(NULL), record["trajectory"], record["steps"]
    total = 0.0
    for j in range(2):
        now, then = schedule.kept_S[steps[j]], schedule.kept_S[steps[j + 1]]
        with_it, without = (task.model(path[j][None], steps[j][None], each[None])[0] for each in (condition, null))
        image = (path[j] - (1 - now).sqrt() * (without + 3.0 * (with_it - without))) / now.sqrt()
        alpha = now / then
        mean = then.sqrt() * (1 - alpha) / (1 - now) * image + alpha.sqrt() * (1 - then) / (1 - now) * path[j]
        deviation = ((1 - then) / (1 - now) * (1 - alpha)).sqrt()
        total = total + torch.distributions.Normal(mean, deviation).log_prob(path[j + 1]).sum()
        assert float((path[j + 1] - mean).detach().abs().max() / deviation) < 5  # the noise that was drawn
    queries = task.prepare([record])
    close(task.measurement(task.model, task.collate(queries.examples))[0].detach(), total.detach())


def test_what_is_told_is_hidden_with_its_probability():
    task, dataset = told(drop=0.3, draws=1000, stratified=False)
    hidden = task.collate(dataset.examples)["hidden"].double().mean(1)
    assert bool(((hidden - 0.3).abs() < 0.07).all()) and len(set(hidden.tolist())) > 1
    task, dataset = told(drop=0.3, draws=10)
    hidden = task.collate(dataset.examples)["hidden"]
    assert bool((hidden.sum(1) == 3).all())  # stratified: as many as that says
    counts = torch.zeros(10)
    for seed in range(200):
        other, _ = told(drop=0.3, draws=10, seed=seed)
        counts += other.collate(dataset.examples)["hidden"].sum(0) / len(dataset)
    assert bool(((counts / 200 - 0.3).abs() < 0.08).all())  # every draw alike
    alone = task.collate([dataset.examples[2]])["hidden"]
    assert torch.equal(alone[0], hidden[2])
    shared, _ = told(drop=0.3, draws=10, shared=True)
    rows = shared.collate(dataset.examples)["hidden"]
    assert torch.equal(rows[0], rows[3])


def test_augmentations_come_from_seed_id_and_number_alone():
    task, dataset = told(augment=brightened, draws=5)
    together = task.collate(dataset.examples)["augmented"]
    assert torch.equal(together[1], task.collate([dataset.examples[1]])["augmented"][0])
    assert not torch.equal(together[0] - together[0, 0], torch.zeros_like(together[0]))
    flips, _ = told(augment="flip", draws=40)
    found = flips.collate(dataset.examples)
    for image, seen in zip(found["image"], found["augmented"], strict=True):
        is_flipped = [torch.equal(each, image.flip(-1)) for each in seen]
        assert 5 < sum(is_flipped) < 35
        assert all(flip or torch.equal(each, image) for flip, each in zip(is_flipped, seen, strict=True))
    bare, _ = told(draws=40)
    close(bare.collate(dataset.examples)["noise"], found["noise"], 1e-15)  # the draws of noise are what they were
    assert len({each.preprocessing for each in (task, flips, bare)}) == 3


def test_an_augmentation_by_name(tmp_path):
    (tmp_path / "mine.py").write_text("def dimmed(image, generator):\n    return image * 0.5\n")
    task, dataset = told(augment=f"{tmp_path / 'mine.py'}:dimmed")
    batch = task.collate(dataset.examples)
    close(batch["augmented"], 0.5 * batch["image"][:, None].expand_as(batch["noise"]))


SPLIT = {"drop": 0.4, "scale": 2.0, "augment": "flip", "draws": 6}


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_draws_in_parts_give_the_gradients_of_all_together(at_once):
    whole, dataset = told(**SPLIT)
    task, _ = told(at_once=at_once, **SPLIT)
    plan = plan_units(task)
    check_task(task, plan, dataset.examples)
    for objective in ("loss", "measurement"):
        _, found = gradients(task, task.prepare(_records(dataset)), objective)
        _, wanted = gradients(whole, dataset, objective)
        for unit, expected in zip(found, wanted, strict=True):
            close(unit, expected)
    assert task.preprocessing == whole.preprocessing


def test_curvature_and_scores_of_draws_in_parts(tmp_path):
    whole, dataset = told(**SPLIT)
    task, _ = told(at_once=2, **SPLIT)
    parts = task.prepare(_records(dataset))
    for config in (FitConfig(labels="dataset"), FitConfig(labels="dataset", sharing="reduce"), FitConfig(samples=2)):
        first, second = (
            fit_ekfac(t, plan_units(t), d, config, max_positions=100, quiet=True) for t, d in ((whole, dataset), (task, parts))
        )
        for one, other in zip(first.blocks, second.blocks, strict=True):
            close(one.values_OI.sort(-1)[0].sum(0), other.values_OI.sort(-1)[0].sum(0), 1e-6)
    for method in ("grad-dot-exact", whence.EKFAC(fit=FitConfig(labels="dataset"))):
        tables = [whence.attribute(t, d, d, method=method, runtime=QUIET) for t, d in ((whole, dataset), (task, parts))]
        close(tables[1].scores, tables[0].scores, 1e-6)
    config = whence.BuildConfig(method="logra", rank=4, dtype="float32")
    stores = [
        whence.build(t, d, tmp_path / f"{n}", config=config, runtime=QUIET)
        for n, (t, d) in enumerate(((whole, dataset), (task, parts)))
    ]
    scores = [
        whence.score_table(s, t, d, runtime=QUIET).scores
        for s, t, d in zip(stores, (whole, task), (dataset, parts), strict=True)
    ]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-4 * float(scores[0].abs().max()))
    with pytest.raises(Unsupported, match=r"tokens_of for examples that the model sees in several parts \(at_once\)"):
        whence.attribute(task, parts, parts, method="grad-dot-exact", tokens_of=["1"], runtime=QUIET)


@pytest.mark.parametrize("kind", ["gauss_newton", "hessian", "empirical_fisher"])
def test_products_with_curvature_of_draws_in_parts(kind):
    whole, dataset = told(count=2, **SPLIT)
    task, _ = told(count=2, at_once=3, **SPLIT)
    first = Curvature(whole, plan_units(whole), dataset.examples, kind)
    second = Curvature(task, plan_units(task), task.prepare(_records(dataset)).examples, kind)
    generator = torch.Generator().manual_seed(0)
    blocks = [torch.randn(block.shape, generator=generator, dtype=block.dtype) for block in first.zeros(2)]
    for one, other in zip(first.times(blocks), second.times(blocks), strict=True):
        close(other, one)


def test_memory_is_that_of_the_draws_at_once():
    """What autograd keeps of the network does not grow with the draws, and the network never sees more rows than a part has."""

    class Watched(Told):
        def forward(self, images, times, condition):
            rows.append(len(images))
            return super().forward(images, times, condition)

    def kept(task):
        sizes, batch = [], task.collate(dataset.examples)
        with torch.autograd.graph.saved_tensors_hooks(lambda value: sizes.append(value.numel()) or value, lambda value: value):
            task.loss(task.model, batch)
        return sum(sizes)

    rows = []
    task, dataset = made(1, network=Watched(), draws=12, at_once=3)
    together, _ = made(1, network=Watched(), draws=12)
    assert kept(task) < kept(together) / 5
    rows.clear()
    gradients(task, dataset)
    assert rows == [3] * 8  # forward, and forward again on the way back


@pytest.mark.slow
def test_the_example_prints_its_table(tmp_path):
    pytest.importorskip("diffusers")
    words = ("--images", "12", "--steps", "5", "--draws", "2", "--converged", "4")
    printed = run_example("diffusion/guided.py", "--output", tmp_path / "made", *words, timeout=900).splitlines()
    assert [line.split(" | ")[:2] for line in printed if "%" in line] == [
        [scale, draws] for scale in ("1", "3") for draws in ("2 training", "2 own", "4 own")
    ]
    assert (tmp_path / "made" / "pipeline" / "model_index.json").exists() and (tmp_path / "made" / "made.npz").exists()


def _records(dataset):
    names = ("image", "label", "condition")
    return [{"id": e.id, **{name: e.fields[name] for name in names if name in e.fields}} for e in dataset.examples]


def test_queries_with_draws_of_their_own():
    shared, dataset = made(shared=True, draws=4)
    own, _ = made(shared=True, draws=4, measured_draws="own")
    batch = own.collate(dataset.examples)
    assert torch.equal(batch["noise"], shared.collate(dataset.examples)["noise"])
    assert not torch.equal(batch["noise"], batch["asked:noise"]) and torch.equal(
        batch["asked:noise"][0], batch["asked:noise"][1]
    )
    close(own.loss(own.model, batch), shared.loss(shared.model, batch))
    found = own.measurement(own.model, batch)
    for value, example in zip(found, dataset.examples, strict=True):
        image, drawn = (
            torch.as_tensor(example.fields["image"]),
            zip(batch["asked:time"][0], batch["asked:noise"][0], strict=True),
        )
        errors = [(torch.sub(*twin.prediction(own, time, noise, image, []))).square().mean() for time, noise in drawn]
        close(value.detach(), -torch.stack(errors).mean().detach())
    assert own.preprocessing == shared.preprocessing


def test_answers_say_whose_draws_queries_met(tmp_path):
    """And what that does: with shared draws an image that has nothing in common with the query scores more."""
    for draws, text in (("training", "adds something positive to every score"), ("own", "independent of training's")):
        task, dataset = made(3, shared=True, measured_draws=draws)
        table = whence.attribute(task, dataset, dataset, method="grad-dot-exact", runtime=QUIET)
        assert sum(text in note for note in table.notes) == 1
        config = whence.BuildConfig(method="logra", rank=4)
        store = whence.build(task, dataset, tmp_path / draws, config=config, runtime=QUIET)
        hits = whence.query(store, task, dataset, runtime=QUIET)
        assert sum(text in note for note in hits.notes) == 1
    own, dataset = made(3, shared=False)
    table = whence.attribute(own, dataset, dataset, method="grad-dot-exact", runtime=QUIET)
    # Both sides have the same ids here, and so the same draws.
    assert sum("but for an example of the same id" in note for note in table.notes) == 1
    assert not any("of their own, independent of training's" in note for note in table.notes)
    guided, dataset = told(scale=2.0)
    table = whence.attribute(guided, dataset, dataset, method="grad-dot-exact", runtime=QUIET)
    assert "queries are measured under guidance of scale 2" in table.notes


def test_unshared_draws_are_the_same_where_ids_are():
    """Unless queries have their own."""
    task, dataset = made(2, shared=False)
    other = task.prepare([{"id": id_, "image": torch.zeros(SHAPE).double()} for id_ in (dataset.ids[0], "q")])
    batch, asked = task.collate(dataset.examples), task.collate(other.examples)
    assert torch.equal(batch["noise"][0], asked["noise"][0]) and not torch.equal(batch["noise"][1], asked["noise"][1])
    own, _ = made(2, shared=False, measured_draws="own")
    assert not torch.equal(batch["noise"][0], own.collate(other.examples)["asked:noise"][0])


def test_shared_draws_add_something_positive():
    """Averaged over seeds: the score of an unrelated image is larger with shared draws than with the query's own."""
    totals = {"training": 0.0, "own": 0.0}
    for draws in totals:
        for seed in range(6):
            task, dataset = made(6, shared=True, draws=1, seed=seed, measured_draws=draws)
            queries = task.prepare(
                [{"id": "q", "image": torch.randn(SHAPE, generator=torch.Generator().manual_seed(9)).double()}]
            )
            table = whence.attribute(task, dataset, queries, method="grad-dot-exact", runtime=QUIET)
            totals[draws] += float(table.scores.mean())
    assert totals["training"] > 0 and totals["training"] > totals["own"]


@pytest.mark.parametrize(
    ("settings", "kind", "text"),
    [
        (lambda: Guidance(drop=1.0), BadInput, "found drop=1.0; needed a probability from 0 to below 1"),
        (lambda: Guidance(null_label=-1), BadInput, "found null_label=-1; needed a label from 0"),
        (lambda: Guidance(null_condition="nothing.npy"), BadInput, "found null_condition='nothing.npy', which cannot be read"),
        (lambda: Guidance(null_condition=[[1.0], [2.0, 3.0]]), BadInput, "needed an array of finite numbers"),
        (lambda: Draws(draws=10, at_once=3), BadInput, "found at_once=3 of 10 draws; needed a divisor of the draws"),
        (
            lambda: Draws(augment="rotate"),
            BadInput,
            "found augment='rotate'; needed 'flip', a function augment(image, generator)",
        ),
        (lambda: made(measured_draws="other"), UnknownOption, "found draws='other'; needed one of: training, own"),
        (lambda: told(scale=2.0, measure="elbo"), Unsupported, "measure='elbo' under guidance of scale 2; needed scale 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, kind, text):
    with pytest.raises(kind) as caught:
        settings()
    assert text in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"no array"])
def test_a_damaged_file_of_a_null_condition_is_refused_in_a_line(tmp_path, content):
    (tmp_path / "null.npy").write_bytes(content)
    with pytest.raises(BadInput, match=r"null\.npy', which cannot be read .*needed a file that numpy\.save wrote"):
        Guidance(null_condition=tmp_path / "null.npy")


def test_records_that_do_not_go_with_guidance_are_refused():
    for options, network, text in (
        (
            {"drop": 0.1},
            Told(),
            r"guidance without what stands for no condition; needed null_condition; do this: pass Guidance\(null_con",
        ),
        (
            {"scale": 2.0, "null_condition": np.zeros((4, 3))},
            Told(),
            r"a null_condition of shape \(4, 3\) for conditions of shape \(5, 3\)",
        ),
        ({"drop": 0.1, "null_label": 3}, None, "guidance for images that have neither a label nor a condition"),
    ):
        task, dataset = made(network=network, guidance=Guidance(**options))
        with pytest.raises(BadInput, match=text):
            task.collate(dataset.examples)
    for conditions, text in (
        ([np.zeros((5, 3)), np.zeros((4, 3))], r"conditions of the shapes \(4, 3\), \(5, 3\)"),
        (["a cat", "a dog"], "record 0 whose 'condition' is text; needed what the network takes: an array"),
    ):
        with pytest.raises(BadInput, match=text):
            whence.pipeline.sample_images(told()[0], 2, SHAPE, steps=2, conditions=conditions)
    image = np.zeros(SHAPE)
    for record, text in (
        ({"image": image, "condition": "a cat"}, "record 0 whose 'condition' is text"),
        ({"image": image, "steps": [3, 1]}, "record 0 with only one of trajectory and steps"),
        (
            {"image": image, "trajectory": np.zeros((4, *SHAPE)), "steps": [3]},
            r"a trajectory of shape \(4, 2, 4, 4\) and 1 steps",
        ),
        *(
            (
                {"image": image, "trajectory": np.zeros((4, *SHAPE)), "steps": steps},
                f"record 0 with the steps {', '.join(map(str, steps))}.*; needed falling step numbers, none below 0",
            )
            for steps in ([2, 1, -1], [0, 1, 2], [3, 3, 0])
        ),
    ):
        with pytest.raises(BadInput, match=text):
            told()[0].prepare([record])
    task, dataset = told(augment=lambda image: image)
    with pytest.raises(BadInput, match=r"an augmentation that fails on the example '0' \(TypeError: "):
        task.collate(dataset.examples)
    task, dataset = told(augment=lambda image, generator: image[:1])
    with pytest.raises(
        BadInput, match=r"an augmented image of shape \(1, 4, 4\) for the example '0'; needed a tensor of shape"
    ):
        task.collate(dataset.examples)
