"""SOURCE on recorded runs: against dense exponentials, and against exact derivatives of the run."""

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import whence
from tests.reference.ekfac import corrected_values, label_gradients
from tests.reference.unroll import _phi, exact_unrolling, source
from tests.settings import QUIET, keywords_of
from whence.capture import plan_units
from whence.curvature import fit_ekfac, fit_ekfac_pooled
from whence.data import Dataset
from whence.errors import BadInput, StoreMismatch, Unsupported
from whence.unroll import shrinkage

COUNT, CLASSES, WIDTH = 60, 3, 4


def data(seed=0, count=COUNT):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)
    true = torch.randn(WIDTH, CLASSES, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    labels = (inputs @ true + torch.randn(count, CLASSES, generator=generator, dtype=torch.float64)).argmax(1)
    return inputs, labels


def network(kind, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(WIDTH, CLASSES)] if kind == "softmax" else [nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, CLASSES)]
    return nn.Sequential(*layers).double()


OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.3),
    "momentum": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.03, weight_decay=0.01),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.03, weight_decay=0.1),
}


def train(folder, name, *, kind="softmax", epochs=6, size=10, every=6, falling=False):
    """A recorded run; returns its model, its task, the training examples, and what exact unrolling needs of it."""
    inputs, labels = data()
    model = network(kind)
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimizer = OPTIMIZERS[name](model.parameters())
    top = optimizer.param_groups[0]["lr"]
    generator = torch.Generator().manual_seed(1)
    batches, rates = [], []
    total = epochs * COUNT // size
    with whence.Recorder(folder, model, optimizer, every=every) as run:
        for _ in range(epochs):
            for batch in torch.randperm(COUNT, generator=generator).split(size):
                optimizer.param_groups[0]["lr"] = top * (1 - len(batches) / total if falling else 1.0)
                run.batch(f"t{place}" for place in batch.tolist())
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                batches.append(batch)
    task = whence.Classification(model)
    records = [{"id": f"t{n}", "inputs": x, "label": y} for n, (x, y) in enumerate(zip(inputs, labels.tolist(), strict=True))]
    return model, task, task.prepare(records), (start, batches, rates)


def train_in_stages(folder, stages, new_optimizer):
    """A recorded run of six steps a stage, each stage on examples of its own; returns its task and the training examples."""
    inputs, labels = data()
    model = network("mlp")
    optimizer = new_optimizer(model.parameters())
    with whence.Recorder(folder, model, optimizer, every=3) as run:
        for stage, places in stages.items():
            optimizer = new_optimizer(model.parameters())
            run.stage(stage, optimizer)
            for step in range(6):
                batch = list(places)[step % 2 :: 2]
                run.batch(batch)
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
                optimizer.step()
    task = whence.Classification(model)
    return task, task.prepare(list(zip(inputs, labels.tolist(), strict=True)))


def queries_of(task, count=12):
    inputs, labels = data(5, count)
    return task.prepare(list(zip(inputs, labels.tolist(), strict=True)))


def truth(name, kind, task, queries, start, batches, rates, model, outer=False):
    """The exact derivative of every query's measurement by every example's weight, shape (Q, N), or with outer products for Hessians."""
    inputs, labels = data()
    shapes = [(key, value.shape) for key, value in model.named_parameters()]

    def unflat(values):
        parts = values.split([shape.numel() for _, shape in shapes])
        return {key: part.view(shape) for (key, shape), part in zip(shapes, parts, strict=True)}

    def loss(values):
        outputs = torch.func.functional_call(model, unflat(values), (inputs,))
        return nn.functional.cross_entropy(outputs, labels, reduction="none")

    settings = {
        "sgd": {},
        "momentum": {"momentum": 0.9, "weight_decay": 0.01},
        "adam": {"optimizer": "adam", "weight_decay": 0.01},
        "adamw": {"optimizer": "adamw", "weight_decay": 0.1},
    }[name]
    final, tangent_PN = exact_unrolling(loss, start, batches, rates, **settings, outer=outer)
    torch.testing.assert_close(final, nn.utils.parameters_to_vector(model.parameters()).detach(), rtol=0, atol=1e-9)
    measured = task.collate(queries.examples)
    gradients_QP = torch.func.jacrev(lambda values: task.measurement(_Bound(model, unflat(values)), measured))(final)
    return gradients_QP @ tangent_PN


class _Bound(nn.Module):
    def __init__(self, model, values):
        super().__init__()
        self.inner, self.values = [model], values

    def forward(self, inputs):
        return torch.func.functional_call(self.inner[0], self.values, (inputs,))


def agreement(found, wanted):
    return sum(spearmanr(a, b).statistic for a, b in zip(found, wanted, strict=True)) / len(wanted)


def source_table(task, folder, train_set, queries, **options):
    return whence.attribute(task, train_set, queries, **keywords_of(method="source", run=folder, **options))


def pooled(task, run, segment, train_set, average=False):
    sets = [segment.checkpoints] if average else [(step,) for step in segment.checkpoints]
    weights = [lambda steps=steps: run.weights(task.model, steps) for steps in sets]
    chosen = Dataset([example for example in train_set.examples if example.id in segment.shares])
    return fit_ekfac_pooled(task, plan_units(task), chosen, weights, quiet=True)


@pytest.mark.parametrize(
    ("name", "form"), [(name, "full") for name in OPTIMIZERS] + [("adam", "diagonal"), ("adamw", "diagonal")]
)
@pytest.mark.parametrize("kind", ["softmax", "mlp"])
def test_scores_equal_dense_exponentials(tmp_path, name, form, kind):
    _, task, train_set, (_, _, rates) = train(tmp_path, name, kind=kind, epochs=4, every=4, falling=True)
    run, queries = whence.runs.open_run(tmp_path), queries_of(task, 3)
    table = source_table(task, tmp_path, train_set, queries, form=form)
    gain, decay = {"sgd": (1, 0), "momentum": (10, 0.01), "adam": (1, 0.01), "adamw": (1, 0.1)}[name]
    stops = (8, 16, 24)
    reaches = [gain * sum(rates[stop - 8 : stop]) for stop in stops]
    segments = [((stop - 4, stop), torch.full((COUNT,), 1 / COUNT).double()) for stop in stops]
    curvatures = [pooled(task, run, segment, train_set) for segment in run.segments(3)]
    scales = None
    if name.startswith("adam"):
        scales = [_scales(run, task, checkpoints) for checkpoints, _ in segments]
    wanted = source(
        task, run, train_set.examples, queries.examples, segments, curvatures, reaches,
        [decay * reach for reach in reaches], scales, name == "adamw", form,
    )  # fmt: skip
    torch.testing.assert_close(table.scores, wanted, rtol=1e-7, atol=1e-8 if form == "full" else 1e-10)
    assert table.method.startswith("source, 3 segments") and table.unit == task.unit
    assert "SOURCE over 3 segments of 24 steps, 6 checkpoints" in table.notes


def _scales(run, task, checkpoints):
    """1 / (sqrt(v) + eps), by hand, per unit in the order of its matrix: every row of the weight, then its bias."""
    found = []
    for unit in plan_units(task).units:
        total = 0
        for step in checkpoints:
            kept = run.tensors(step)
            parts = []
            for name in unit.parameters:
                second = kept[f"state_exp_avg_sq.{name}"] / (1 - 0.999**step)
                parts.append(1 / (second.sqrt() + 1e-8))
            total = total + torch.cat([parts[0], parts[1][:, None]], 1).flatten() / len(checkpoints)
        found.append(total)
    return found


@pytest.mark.parametrize("name", ["sgd", "momentum"])
@pytest.mark.parametrize("epochs", [2, 10, 30])
def test_with_the_exact_curvature_it_is_the_derivative_of_training(tmp_path, monkeypatch, name, epochs):
    """Softmax regression, exact unrolling as truth: what segments, shares and terminal velocity leave out is small."""
    model, task, train_set, rest = train(tmp_path, name, epochs=epochs, every=epochs)
    run, queries = whence.runs.open_run(tmp_path), queries_of(task)
    monkeypatch.setattr("whence.pipeline.through.source.carry", _exact_carry(model, run))
    table = source_table(task, tmp_path, train_set, queries)
    wanted = truth(name, "softmax", task, queries, *rest, model)
    assert agreement(table.scores, wanted) > 0.95
    slope = float((table.scores * wanted).sum() / table.scores.square().sum())
    assert slope == pytest.approx(1.0, abs=0.15)


def _exact_carry(model, run):
    inputs, labels = data()

    def loss(values):
        weight = values[: CLASSES * WIDTH].view(CLASSES, WIDTH)
        return nn.functional.cross_entropy(inputs @ weight.T + values[CLASSES * WIDTH :], labels)

    def carry(curvature, segment, rows, scaling, form):
        hessian = 0
        for step in segment.checkpoints:
            with run.weights(model, [step]):
                values = nn.utils.parameters_to_vector(model.parameters()).detach()
            hessian = hessian + torch.func.hessian(loss)(values) / len(segment.checkpoints)
        flat = torch.cat([rows[0][:, :, :-1].flatten(1), rows[0][:, :, -1]], 1)
        reach, decay = segment.reach["0.weight"], segment.decay["0.weight"]
        x = reach * hessian + decay * torch.eye(len(hessian)).double()
        made = (flat @ _phi(x) * reach, flat @ torch.matrix_exp(-x))
        cut = CLASSES * WIDTH
        return [[torch.cat([one[:, :cut].view(-1, CLASSES, WIDTH), one[:, cut:, None]], 2)] for one in made]

    return carry


@pytest.mark.parametrize(("name", "least"), [("sgd", 0.93), ("momentum", 0.88), ("adamw", 0.9)])
def test_it_is_nearer_to_the_derivative_of_training_than_influence(tmp_path, name, least):
    model, task, train_set, rest = train(tmp_path, name, epochs=10, every=10)
    queries = queries_of(task)
    wanted = truth(name, "softmax", task, queries, *rest, model)
    found = agreement(source_table(task, tmp_path, train_set, queries).scores, wanted)
    influence = agreement(whence.attribute(task, train_set, queries, runtime=QUIET).scores, wanted)
    assert found > least and found > influence


def test_the_pooled_fit_is_that_of_the_mean_curvature(tmp_path):
    _, task, train_set, _ = train(tmp_path, "sgd", kind="mlp", epochs=3, every=6)
    run, plan = whence.runs.open_run(tmp_path), plan_units(task)
    last = run.checkpoints[-1]
    twice = [lambda: run.weights(task.model, [last])] * 2
    single, double = fit_ekfac(task, plan, train_set, quiet=True), fit_ekfac_pooled(task, plan, train_set, twice, quiet=True)
    for mine, theirs in zip(double.blocks, single.blocks, strict=True):
        torch.testing.assert_close(mine.values_OI, theirs.values_OI)
    for (left, right), (other, more) in zip(double.kfac, single.kfac, strict=True):
        torch.testing.assert_close(left.T @ right, other.T @ more)
    steps = run.checkpoints[1:]
    found = fit_ekfac_pooled(task, plan, train_set, [lambda s=s: run.weights(task.model, [s]) for s in steps], quiet=True)
    wanted = [torch.zeros_like(block.values_OI) for block in found.blocks]
    outputs = torch.zeros(CLASSES, CLASSES).double()
    inputs = torch.stack([torch.as_tensor(example.fields["inputs"]) for example in train_set.examples])
    for step in steps:
        with run.weights(task.model, [step]):
            for unit, gradients in enumerate(label_gradients(task, plan, train_set.examples)):
                block = found.blocks[unit]
                wanted[unit] += corrected_values(gradients, block.outputs_OO, block.inputs_II) / len(steps)
            p = task.model(inputs).softmax(1).detach()
            outputs += (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).mean(0) / len(steps)
    for block, values in zip(found.blocks, wanted, strict=True):
        torch.testing.assert_close(block.values_OI, values, rtol=1e-9, atol=1e-14)
    basis = found.blocks[-1].outputs_OO
    diagonal = basis.T @ outputs @ basis
    torch.testing.assert_close(diagonal, torch.diag(diagonal.diagonal()), rtol=0, atol=1e-12)
    assert found.note.endswith(f"mean over {len(steps)} checkpoints")


def test_one_segment_without_end_is_influence_without_damping(tmp_path):
    _, task, train_set, _ = train(tmp_path, "sgd", epochs=2, every=12)
    queries, run = queries_of(task, 3), whence.runs.open_run(tmp_path)
    run.log.rates[:] = [[1e12]] * run.steps
    ready = {"segments": 1, "any_loss": True}  # no run could have had such rates
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("whence.pipeline.through.cut.open_run", lambda folder: run)
        found = source_table(task, tmp_path, train_set, queries, **ready)
    wanted = whence.attribute(
        task, train_set, queries, method=whence.EKFAC(damping=whence.Damping(absolute=1e-12)), runtime=QUIET
    )
    # Shifting all logits alike changes nothing: there the curvature is zero, and gradients vanish but for rounding.
    torch.testing.assert_close(found.scores, wanted.scores, rtol=1e-4, atol=1e-4)


def test_mean_weights_make_one_fit_per_segment(tmp_path):
    _, task, train_set, (_, _, rates) = train(tmp_path, "momentum", kind="mlp", epochs=4, every=4)
    run, queries = whence.runs.open_run(tmp_path), queries_of(task, 2)
    table = source_table(task, tmp_path, train_set, queries, segments=2, average_weights=True)
    assert table.method == "source, 2 segments, mean weights"
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    segment = run.segments(2)[0]
    with run.weights(task.model, segment.checkpoints):
        for name, value in task.model.named_parameters():
            mean = sum(run.tensors(step)[f"model.{name}"] for step in (4, 8, 12)) / 3
            torch.testing.assert_close(value.detach(), mean)
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert len(pooled(task, run, segment, train_set, average=True).blocks) == 2
    assert agreement(table.scores, source_table(task, tmp_path, train_set, queries).scores) > 0.9


def test_stages_are_attributed_to_their_own_examples(tmp_path):
    stages = {"first": range(30), "second": range(20, 60)}
    task, train_set = train_in_stages(tmp_path, stages, OPTIMIZERS["momentum"])
    found = whence.runs.open_run(tmp_path).segments(3)
    assert [(one.start, one.stop, one.checkpoints) for one in found] == [
        (0, 3, (3,)), (3, 6, (6,)), (6, 9, (9,)), (9, 12, (12,)),
    ]  # fmt: skip
    assert set(found[0].shares) == {str(n) for n in range(30)} and found[0].shares["3"] == pytest.approx(1 / 30)
    assert set(found[2].shares) == {str(n) for n in range(20, 60)} and sum(found[2].shares.values()) == pytest.approx(1)
    queries = queries_of(task, 2)
    table = source_table(task, tmp_path, train_set, queries, per_unit=True, tokens_of=["3"], factors=tmp_path / "factors")
    torch.testing.assert_close(sum(table.parts.values()), table.scores)
    torch.testing.assert_close(table.tokens["3"].sum(1), table.scores[:, 3])
    again = source_table(task, tmp_path, train_set, queries, factors=tmp_path / "factors", groups={"a - b": {"0": 1, "1": -1}})
    torch.testing.assert_close(again.scores[0], table.scores[0] - table.scores[1])


def test_examples_that_were_never_met_score_zero(tmp_path):
    _, task, train_set, _ = train(tmp_path, "sgd", epochs=1, every=3)
    inputs, labels = data(7, 2)
    more = task.prepare(
        [{"id": f"new{n}", "inputs": x, "label": int(y)} for n, (x, y) in enumerate(zip(inputs, labels, strict=True))]
    )
    table = source_table(task, tmp_path, Dataset([*more.examples, *train_set.examples]), queries_of(task, 2))
    assert not table.scores[:, :2].any() and table.scores[:, 2:].all()
    assert "2 examples that the run never met score 0, the first 'new0'" in table.notes


def test_shrinkage_is_safe_at_zero():
    x = torch.tensor([0.0, 1e-300, 1e-9, 1.0, 800.0], dtype=torch.float64)
    torch.testing.assert_close(shrinkage(x), torch.tensor([1, 1, 1 - 5e-10, 0.6321205588285577, 1 / 800], dtype=torch.float64))


def test_what_does_not_fit_is_refused(tmp_path):
    folder = tmp_path / "run"
    model, task, train_set, _ = train(folder, "sgd", epochs=2, every=6)
    queries = queries_of(task, 2)
    with pytest.raises(BadInput, match="found method='source' without a run; needed the folder of a recorded training run"):
        whence.attribute(task, train_set, queries, method="source", runtime=QUIET)
    for option in (
        {"relative_damping": 0.1},
        {"absolute_damping": 0.1},
        {"fit_on": 3},
        {"query_rank": 2},
        {"normalize": "cosine"},
    ):
        with pytest.raises(BadInput, match=f"found {next(iter(option))} for source; needed what it takes"):
            source_table(task, folder, train_set, queries, **option)
    with pytest.raises(BadInput, match="found segments=0 for source; needed a positive number"):
        whence.Source(run=folder, segments=0)
    with pytest.raises(BadInput, match="found segments=0; needed 1 or more"):
        whence.runs.open_run(folder).segments(0)
    fewer = Dataset(train_set.examples[1:])
    with pytest.raises(StoreMismatch, match="found 1 of the run's 60 examples not in the training data, the first 't0'"):
        source_table(task, folder, fewer, queries)
    with pytest.raises(BadInput, match="found iterations for source; needed what it takes"):
        source_table(task, folder, train_set, queries, iterations=3)
    other = whence.Classification(network("softmax", seed=4))
    with pytest.raises(
        StoreMismatch, match="found a model whose '0.weight' is not what the run in .* ended with; needed the model"
    ):
        source_table(other, folder, train_set, queries)
    with pytest.raises(
        BadInput, match="found method='source', which goes back through a recorded run; needed a method of the final weights"
    ):
        whence.self_influence(task, train_set, method="source", runtime=QUIET)
    with pytest.raises(BadInput, match="found method='source', which goes back through a recorded run; needed"):
        whence.pipeline.damping_sweep(task, train_set, queries, [0.1], method="source", runtime=QUIET)


def recorded_once(folder, make):
    inputs, labels = data()
    model = network("softmax")
    optimizer = make(model.parameters())
    with whence.Recorder(folder, model, optimizer, every=1) as run:
        for _ in range(3):
            run.batch(range(COUNT))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    return whence.runs.open_run(folder)


def test_an_unknown_optimizer_is_refused(tmp_path):
    for number, (make, why) in enumerate([
        (lambda ps: torch.optim.RMSprop(ps, lr=0.1), "RMSprop, whose state is square_avg, step: its steps follow no rule"),
        (lambda ps: torch.optim.AdamW(ps, amsgrad=True), "AdamW with amsgrad, whose state is exp_avg, exp_avg_sq, max_"),
        (lambda ps: torch.optim.NAdam(ps, lr=0.1), "NAdam, whose state is exp_avg, exp_avg_sq, mu_product, step: its steps follow"),
        (lambda ps: torch.optim.RAdam(ps, lr=0.1), "RAdam, whose state is exp_avg, exp_avg_sq, step: its steps follow no rule"),
        (lambda ps: torch.optim.Adafactor(ps, lr=0.1), "Adafactor, whose state is col_var, row_var, step, variance: of how long"),
    ]):  # fmt: skip
        run = recorded_once(tmp_path / str(number), make)
        with pytest.raises(Unsupported, match=f"found a run with {why}.*needed steps of SGD, Adam"):
            run.segments(1)


def test_names_promise_nothing(tmp_path):
    """An AdamW that is an SGD is taken for what it does."""
    for name in ("AdamW", "SOAP", "DistributedShampoo"):
        run = recorded_once(tmp_path / name, lambda ps, name=name: type(name, (torch.optim.SGD,), {})(ps, lr=0.1))
        (segment,) = run.segments(1)
        assert not segment.is_adaptive and segment.reach["0.weight"] == pytest.approx(0.3)
