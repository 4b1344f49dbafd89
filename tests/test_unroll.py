"""The exact derivative of a recorded run: against the forward oracle, against retraining with a changed weight, forwards and backwards."""

import json
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import whence
from tests import zoo
from tests.memory import LiveBytes
from tests.pages import run_blocks
from tests.reference.unroll import exact_unrolling
from tests.settings import QUIET, keywords_of
from tests.test_source import COUNT, OPTIMIZERS, data, network, queries_of, train, truth
from whence.cli import main
from whence.errors import BadInput, NonFinite, OutOfMemory, StoreMismatch, UnknownOption, Unsupported
from whence.pipeline import forecast_exact
from whence.progress import meter
from whence.unroll import Replay, measure_sweep, metagradients, verify


@dataclass(frozen=True)
class Case:
    """A way to train: by stage an optimizer (None goes on with the last), on the same data."""

    stages: tuple = (lambda model: torch.optim.SGD(model.parameters(), lr=0.2),)
    steps: int = 7
    micro: int = 1
    max_norm: float | None = None
    divided_by: float | None = None
    every: int = 3
    is_repeated: bool = False


def adamw(model, **options):
    return torch.optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.1, **options)


def momentum(model, **options):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01, **options)


def grouped(model):
    weights, biases = ([p for p in model.parameters() if p.ndim == size] for size in (2, 1))
    return torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.2}, {"params": biases, "lr": 0.1, "weight_decay": 0.0}], lr=0.02
    )


CASES = {
    "nesterov": Case((lambda model: momentum(model, nesterov=True),)),
    "dampening": Case((lambda model: momentum(model, dampening=0.5),)),
    "adam with decay": Case(
        (lambda model: torch.optim.Adam(model.parameters(), lr=0.03, weight_decay=0.1, betas=(0.8, 0.95)),)
    ),
    "large eps": Case((lambda model: adamw(model, eps=0.1),)),
    "accumulated": Case((adamw,), micro=3),
    "sum over a fixed number": Case((momentum,), micro=2, divided_by=7.0),
    "clipped": Case((adamw,), max_norm=0.1),
    "sometimes clipped": Case((momentum,), max_norm=0.45),
    "groups": Case((grouped,)),
    "twice in a batch": Case((adamw,), is_repeated=True),
    "one checkpoint": Case((adamw,), every=100),
    "a new optimizer": Case((adamw, adamw), every=7),
    "a new optimizer with momentum": Case((momentum, momentum)),
    "the optimizer goes on": Case((adamw, None)),
    "from SGD to AdamW": Case((momentum, adamw), every=7),
    "then the head alone": Case((adamw, lambda model: torch.optim.SGD(model[2].parameters(), lr=0.2, momentum=0.5))),
}


def trained(case, folder=None, scale=None, dtype=torch.float64):
    """The run of a case, recorded if there is a folder, with weights of the examples' losses."""
    inputs, labels = (value.to(dtype) if value.is_floating_point() else value for value in data())
    model = network("mlp").to(dtype)
    scale = torch.ones(COUNT, dtype=dtype) if scale is None else scale
    generator = torch.Generator().manual_seed(3)
    optimizer = case.stages[0](model)
    recorder = None if folder is None else whence.Recorder(folder, model, optimizer, every=case.every).__enter__()
    for number, make in enumerate(case.stages):
        if make is not None and number:
            optimizer = make(model)
        if recorder is not None:
            recorder.stage(f"stage {number}", optimizer)
        for step in range(case.steps):
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] = group.get("initial_lr", group["lr"])
                group["lr"] *= 1 - 0.5 * step / case.steps
            optimizer.zero_grad()
            chosen = (
                torch.randint(COUNT, (12,), generator=generator)
                if case.is_repeated
                else torch.randperm(COUNT, generator=generator)[:12]
            )
            for part in chosen.chunk(case.micro):
                if recorder is not None:
                    recorder.batch([f"t{place}" for place in part.tolist()], divided_by=case.divided_by)
                losses = nn.functional.cross_entropy(model(inputs[part]), labels[part], reduction="none")
                ((losses * scale[part]).sum() / (case.divided_by or 12)).backward()
            if case.max_norm is not None:
                if recorder is not None:
                    recorder.clip(case.max_norm)
                else:
                    nn.utils.clip_grad_norm_(model.parameters(), case.max_norm)
            optimizer.step()
    if recorder is not None:
        recorder.__exit__(None, None, None)
    return model


def task_of(model):
    inputs, labels = data()
    task = whence.Classification(model)
    records = [
        {"id": f"t{n}", "inputs": x, "label": y, "source": f"source {n % 3}"}
        for n, (x, y) in enumerate(zip(inputs, labels.tolist(), strict=True))
    ]
    return task, task.prepare(records)


def unrolled(task, folder, train_set, queries, **options):
    return whence.attribute(task, train_set, queries, **keywords_of(method="unroll", run=folder, **options))


def measured(model, queries):
    task = whence.Classification(model)
    with torch.no_grad():
        return task.measurement(model, task.collate(queries.examples)).double()


def retrained_difference(case, queries, place, h=1e-5):
    """Central difference of every query's measurement by an example's weight."""
    found = []
    for sign in (1, -1):
        scale = torch.ones(COUNT, dtype=torch.float64)
        scale[place] += sign * h
        found.append(measured(trained(case, scale=scale), queries))
    return (found[0] - found[1]) / (2 * h)


@pytest.mark.parametrize("kind", ["softmax", "mlp"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_oracle(tmp_path, name, kind):
    """Forward mode with every Hessian written out (tests/reference), over four epochs."""
    model, task, train_set, rest = train(tmp_path, name, kind=kind, epochs=4, every=5, falling=True)
    queries = queries_of(task, 3)
    wanted = truth(name, kind, task, queries, *rest, model)
    table = unrolled(task, tmp_path, train_set, queries)
    torch.testing.assert_close(table.scores, wanted, rtol=1e-9, atol=1e-13)
    each = {name: [name] for name in train_set.ids}
    for mode in ("forward", "reverse"):
        found = whence.runs.group_effects(task, train_set, queries, tmp_path, by=each, mode=mode, runtime=QUIET)
        torch.testing.assert_close(found.scores, wanted, rtol=1e-9, atol=1e-13)
        assert found.train_ids == train_set.ids and mode in found.method
    assert table.method == "unroll, 24 steps" and table.unit == task.unit
    assert table.notes[0].startswith("exact derivative of 24 steps, replayed to within ")


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_derivative_of_retraining(tmp_path, name):
    case = CASES[name]
    task, train_set = task_of(trained(case, tmp_path))
    queries = queries_of(task, 3)
    table = unrolled(task, tmp_path, train_set, queries)
    for place in (0, 7, 31):
        torch.testing.assert_close(table.scores[:, place], retrained_difference(case, queries, place), rtol=1e-5, atol=2e-8)
    groups = whence.runs.group_effects(task, train_set, queries, tmp_path, runtime=QUIET)
    assert groups.train_ids == ("source 0", "source 1", "source 2")
    wanted = torch.stack([table.scores[:, start::3].sum(1) for start in range(3)], 1)
    torch.testing.assert_close(groups.scores, wanted, rtol=1e-9, atol=1e-13)
    if case.max_norm:
        clipped = sum(factor < 1 for factor in whence.runs.open_run(tmp_path).log.factors)
        assert f"{clipped} clipped steps, their factors differentiated" in table.notes[0]
        assert (clipped == 7) == (name == "clipped") and clipped > 0


def test_a_factor_that_is_no_clipping_is_a_constant(tmp_path):
    """Gradients halved by hand in every step: an SGD of half the rate."""
    inputs, labels = data()
    model = network("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    with whence.Recorder(tmp_path, model, optimizer, every=3) as run:
        for step in range(6):
            run.batch(f"t{place}" for place in range(step, step + 10))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[step : step + 10]), labels[step : step + 10]).backward()
            for parameter in model.parameters():
                parameter.grad *= 0.5
            run.scaled(0.5)
            optimizer.step()
    task, train_set = task_of(model)
    queries = queries_of(task, 2)
    table = unrolled(task, tmp_path, train_set, queries)
    assert "6 clipped steps, their factors constants, since the cut is not that of one norm" in table.notes[0]
    shapes = [(key, value.shape) for key, value in model.named_parameters()]
    start = nn.utils.parameters_to_vector(network("mlp").parameters()).detach()

    def loss(values):
        parts = values.split([shape.numel() for _, shape in shapes])
        weights = {key: part.view(shape) for (key, shape), part in zip(shapes, parts, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(model, weights, (inputs,)), labels, reduction="none")

    final, tangent_PN = exact_unrolling(loss, start, [torch.arange(n, n + 10) for n in range(6)], [0.1] * 6)
    asked_inputs, asked_labels = data(5, 2)

    def measure(values):
        parts = values.split([shape.numel() for _, shape in shapes])
        weights = {key: part.view(shape) for (key, shape), part in zip(shapes, parts, strict=True)}
        outputs = torch.func.functional_call(model, weights, (asked_inputs,))
        return -nn.functional.cross_entropy(outputs, asked_labels, reduction="none")

    torch.testing.assert_close(table.scores, torch.func.jacrev(measure)(final) @ tangent_PN, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    "name", ["regression", "conv2d", "layer_norm", "attention", "lone_parameter", "tied", "two_inputs", "gpt2", "llama", "bert"]
)
def test_models_of_all_kinds(tmp_path, name):
    """Two steps of AdamW on all examples, the second from a checkpoint; against retraining."""

    def run(folder, scale):
        task, examples = zoo.make(name, 4)
        task.model.eval()
        optimizer = torch.optim.AdamW(task.model.parameters(), lr=0.02, eps=0.01)  # smooth enough for differences
        batch = task.collate(examples.examples)
        recorder = None if folder is None else whence.Recorder(folder, task.model, optimizer, every=1).__enter__()
        for _ in range(2):
            if recorder is not None:
                recorder.batch(examples.ids)
            optimizer.zero_grad()
            (task.loss(task.model, batch) * scale).mean().backward()
            optimizer.step()
        if recorder is not None:
            recorder.__exit__(None, None, None)
        with torch.no_grad():
            return task, examples, task.measurement(task.model, batch)

    task, examples, _ = run(tmp_path, torch.ones(4).double())
    table = unrolled(task, tmp_path, examples, examples, batch_positions=13)
    h, tolerance = (1e-3, 2e-2) if name == "llama" else (1e-5, 1e-4)  # its norms are computed in single precision
    for place in range(2):
        change = torch.eye(4).double()[place] * h
        wanted = (run(None, 1 + change)[2] - run(None, 1 - change)[2]) / (2 * h)
        torch.testing.assert_close(table.scores[:, place], wanted, rtol=tolerance, atol=tolerance * 1e-2)


def test_one_step_and_a_convex_end_predict_removal(tmp_path):
    """y = x: with one step of SGD the change is linear in the weight; at the end of a convex run nearly so."""
    case = Case(steps=1)
    task, train_set = task_of(trained(case, tmp_path / "one"))
    queries = queries_of(task, 6)
    table = unrolled(task, tmp_path / "one", train_set, queries)
    base, met = measured(task.model, queries), whence.runs.open_run(tmp_path / "one").log.members[0]
    places = [train_set.ids.index(whence.runs.open_run(tmp_path / "one").ids[member]) for member in met]
    scale = torch.ones(COUNT, dtype=torch.float64)
    scale[places[0]] = 0.0
    moved = measured(trained(case, scale=scale), queries) - base
    torch.testing.assert_close(table.removal_effect()[:, places[0]], moved, rtol=0.2, atol=1e-3)

    model, task, train_set, _ = train(tmp_path / "convex", "momentum", epochs=30, every=60)
    queries = queries_of(task, 6)
    table = unrolled(task, tmp_path / "convex", train_set, queries)
    base, moved = measured(model, queries), []
    inputs, labels = data()
    for place in range(8):
        kept = network("softmax")
        optimizer = OPTIMIZERS["momentum"](kept.parameters())
        generator = torch.Generator().manual_seed(1)
        for _ in range(30):
            for batch in torch.randperm(COUNT, generator=generator).split(10):
                optimizer.zero_grad()
                losses = nn.functional.cross_entropy(kept(inputs[batch]), labels[batch], reduction="none")
                losses.mul(batch != place).mean().backward()
                optimizer.step()
        moved.append(measured(kept, queries) - base)
    moved = torch.stack(moved, 1)
    slope = float((table.removal_effect()[:, :8] * moved).sum() / table.removal_effect()[:, :8].square().sum())
    assert slope == pytest.approx(1.0, abs=0.2)  # leaving out one of 60 also lowers the curvature
    assert float((table.removal_effect()[:, :8] - moved).norm() / moved.norm()) < 0.2


def test_cuts_do_not_show(tmp_path):
    """Positions, rows and states at a time, and the root schedule, change no number."""
    case = CASES["a new optimizer"]
    task, train_set = task_of(trained(case, tmp_path))
    queries, run = queries_of(task, 5), whence.runs.open_run(tmp_path)
    wanted = unrolled(task, tmp_path, train_set, queries).scores
    for options in ({"batch_positions": 5}, {"memory_gib": 5e-5}, {"groups": {"a": {"1": 1.0}, "b": {"0": 2.0, "4": -1.0}}}):
        found = unrolled(task, tmp_path, train_set, queries, **options).scores
        expected = torch.stack([wanted[1], 2 * wanted[0] - wanted[4]]) if "groups" in options else wanted
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    replay = Replay(task, train_set, run, max_positions=5)
    rows = {name: torch.randn(3, *value.shape).double() for name, value in task.model.named_parameters()}
    with replay.prepared_model(), meter("", 1, quiet=True) as progress:
        verify(replay, progress)
        assert replay.fresh == {7}
        cuts = [(1, 1), (2, 2), (3, 64), (100, 1)]
        found = [metagradients(replay, rows, length=length, at_once=at_once, progress=progress) for length, at_once in cuts]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-10, atol=1e-14)
    tight, wide = (measure_sweep(task, run, train_set.examples, 5, room_bytes=size) for size in (35_000, 1 << 30))
    assert (wide.rows, wide.length, wide.max_positions) == (5, 7, 12) and wide.peak_bytes < wide.room_bytes
    assert tight.rows < 5 and tight.length == 3
    assert str(wide).startswith("memory: peak about 0 of 1,024 MiB: double backward of 12 positions")


def test_single_precision_is_near(tmp_path):
    double, single = (
        task_of(trained(CASES["sometimes clipped"], tmp_path / str(dtype), dtype=dtype))
        for dtype in (torch.float64, torch.float32)
    )
    wanted = unrolled(*double[:1], tmp_path / "torch.float64", double[1], queries_of(double[0], 3)).scores
    found = unrolled(*single[:1], tmp_path / "torch.float32", single[1], queries_of(single[0], 3)).scores
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3


def rough(model):
    return torch.optim.SGD(model.parameters(), lr=2.0, momentum=0.9)


@pytest.mark.parametrize(("case", "steps"), [(CASES["sometimes clipped"], 7), (Case((rough, rough), every=7), 14)])
def test_smoothness_is_that_of_three_runs(tmp_path, case, steps):
    task, train_set = task_of(trained(case, tmp_path))
    found = whence.runs.smoothness(task, train_set, tmp_path, share=0.3, h=0.25, seed=4, runtime=QUIET)
    met = whence.runs.open_run(tmp_path).ids
    chosen = torch.randperm(len(met), generator=torch.Generator().manual_seed(4))[: found.examples]
    ends = []
    for times in range(3):
        scale = torch.ones(COUNT, dtype=torch.float64)
        scale[[int(met[place][1:]) for place in chosen.tolist()]] -= 0.25 * times
        ends.append(nn.utils.parameters_to_vector(trained(case, scale=scale).parameters()).detach())
    first, second = ends[1] - ends[0], ends[2] - ends[1]
    assert found.value == pytest.approx(float((first.abs() * first.sign() * second.sign()).sum() / first.abs().sum()), abs=1e-6)
    assert found.examples == round(0.3 * len(met)) and found.value < 1
    assert f"examples lowered by 0.25 twice{'' if found.is_smooth else '; below 0.8'}" in str(found)
    wanted = {"value": found.value, "examples": found.examples, "h": 0.25, "steps": steps, "is_smooth": found.is_smooth}
    assert found.to_dict() == wanted and found.is_smooth == (steps == 7)


def test_a_rough_run_is_said_to_be_one(tmp_path):
    inputs, labels = data()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.5)
    with whence.Recorder(tmp_path, model, optimizer, every=10) as run:
        for step in range(30):
            batch = list(range(step % 12 * 5, step % 12 * 5 + 5))
            run.batch(f"t{place}" for place in batch)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    task, train_set = task_of(model)
    table = unrolled(task, tmp_path, train_set, queries_of(task, 1))
    assert "so the derivative may say little about retraining: a larger batch, a smaller learning rate" in table.notes[1]


def test_a_run_that_was_another_is_refused(tmp_path):
    inputs, labels = data()

    def recorded(folder, layers, factor=1.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), *layers, nn.Linear(8, 3)).double()
        optimizer = momentum(model)
        with whence.Recorder(tmp_path / folder, model, optimizer, every=3) as run:
            for _ in range(6):
                run.batch(f"t{place}" for place in range(20))
                optimizer.zero_grad()
                (factor * nn.functional.cross_entropy(model(inputs[:20]), labels[:20])).backward()
                optimizer.step()
        task, train_set = task_of(model)
        return unrolled(task, tmp_path / folder, train_set, queries_of(task, 1))

    text = "found a replay of the steps 0 to 3 that ends .* of their way from the recorded weights; needed the same run to within 1e-06"
    with pytest.raises(
        StoreMismatch, match=rf"{text}; do this: look for dropout \('1' has some: record a run with none\), augmentation"
    ):
        recorded("dropout", [nn.Dropout(0.3)])
    with pytest.raises(
        StoreMismatch, match=f"{text}; do this: look for augmentation .*another loss than the task's, such as a factor"
    ):
        recorded("factor", [nn.Tanh()], factor=2.0)
    with pytest.raises(StoreMismatch, match="found a run that changed the buffer '1.running_mean' up to step 0, as batch norm"):
        recorded("norm", [nn.BatchNorm1d(8)])
    assert recorded("plain", [nn.Tanh()]).scores.any()


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * grad * ctx.saved_tensors[0]


def test_what_cannot_be_differentiated_is_refused(tmp_path, monkeypatch):
    model = trained(CASES["accumulated"], tmp_path)
    task, train_set = task_of(model)
    queries = queries_of(task, 2)
    with pytest.raises(
        BadInput, match=r"found a task that leaves out '0.bias', which the run has changed; needed a task that tracks"
    ):
        unrolled(whence.Classification(model, ignore=["0.bias"]), tmp_path, train_set, queries)
    with pytest.raises(BadInput, match=r"found a loss of shape \(\) for 4 examples; needed one loss per example"):
        unrolled(custom(model, lambda m, batch: task.loss(m, batch).mean()), tmp_path, train_set, queries, batch_positions=4)
    with pytest.raises(
        OutOfMemory, match="found room for 0 MiB; needed .* MiB: the double backward of one example, one row, and states"
    ):
        unrolled(task, tmp_path, train_set, queries, memory_gib=1e-6)
    with pytest.raises(
        NonFinite, match="found scores of '0' that are NaN or infinite; needed a run whose derivative stays finite"
    ):
        unrolled(custom(model, task.loss, lambda m, batch: task.loss(m, batch) * torch.nan), tmp_path, train_set, queries)
    with pytest.raises(
        Unsupported, match="found a loss that cannot be differentiated twice .a backward pass marked as differentiable o"
    ):
        unrolled(custom(model, lambda m, batch: Once.apply(task.loss(m, batch).sqrt())), tmp_path, train_set, queries)
    with monkeypatch.context() as patch:
        patch.setattr("whence.unroll.derivative.torch.autograd.grad", no_second(torch.autograd.grad))
        with pytest.raises(
            Unsupported, match="cannot be differentiated twice .derivative for aten::x is not implemented.; needed second"
        ):
            unrolled(task, tmp_path, train_set, queries)


def no_second(grad):
    def found(outputs, inputs, *arguments, **options):
        if "is_grads_batched" in options:
            raise RuntimeError("derivative for aten::x is not implemented")
        return grad(outputs, inputs, *arguments, **options)

    return found


def custom(model, loss, measure=None):
    task = whence.Custom(model, loss, measure=measure)
    task.collate = whence.Classification(model).collate
    return task


def test_half_precision_and_other_optimizers_are_refused(tmp_path):
    inputs, labels = data()
    kinds = (
        (
            torch.optim.RMSprop,
            torch.float64,
            "found a run with RMSprop, whose state is square_avg, step: its steps follow no rule known here; needed steps of SGD, Adam",
        ),
        (lambda ps: torch.optim.AdamW(ps, amsgrad=True), torch.float64, "found a run with AdamW with amsgrad"),
        (
            torch.optim.SGD,
            torch.bfloat16,
            "found the parameter '0.bias' in torch.bfloat16; needed float32 or float64: half precision",
        ),
    )
    for number, (make, dtype, text) in enumerate(kinds):
        model = network("mlp").to(dtype)
        optimizer = make(model.parameters())
        with whence.Recorder(tmp_path / str(number), model, optimizer, every=1) as run:
            run.batch(f"t{place}" for place in range(COUNT))
            nn.functional.cross_entropy(model(inputs.to(dtype)), labels).backward()
            optimizer.step()
        task, train_set = task_of(model)
        with pytest.raises(Unsupported, match=text):
            unrolled(task, tmp_path / str(number), train_set, queries_of(task, 1))


def test_settings_without_a_use_are_refused(tmp_path):
    task, train_set = task_of(trained(CASES["accumulated"], tmp_path))
    queries = queries_of(task, 2)
    unused = {
        "per_unit": {"per_unit": True},
        "tokens_of": {"tokens_of": ["t0"]},
    }
    for name, option in unused.items():
        with pytest.raises(BadInput, match=f"found {name} for unroll; needed a run and nothing else"):
            unrolled(task, tmp_path, train_set, queries, **option)
    for option in ({"samples": 2}, {"factors": tmp_path / "f"}, {"segments": 2}, {"normalize": "cosine"}):
        with pytest.raises(BadInput, match=f"found {next(iter(option))} for unroll; needed what it takes: run"):
            unrolled(task, tmp_path, train_set, queries, **option)
    with pytest.raises(BadInput, match="found a forecast of unroll, which depends on the recorded run"):
        forecast_exact(task, train_set, 2, method="unroll")
    with pytest.raises(BadInput, match="found share=0 and h=0.5; needed a share above 0"):
        whence.runs.smoothness(task, train_set, tmp_path, share=0.0)
    with pytest.raises(BadInput, match="found share=0.1 and h=0.7; needed a share above 0"):
        whence.runs.smoothness(task, train_set, tmp_path, h=0.7)
    wrong = (
        (UnknownOption, "found mode='sideways'; needed one of: auto, reverse, forward", {"mode": "sideways"}),
        (UnknownOption, "found by='author'; needed 'source', or ids", {"by": "author"}),
        (BadInput, "found by={'a': \\[\\]}; needed ids of examples", {"by": {"a": []}}),
        (BadInput, "found the example 'x' which is not in the training data", {"by": {"a": ["x"]}}),
        (BadInput, "found the example 't1' in two groups", {"by": {"a": ["t1"], "b": ["t1"]}}),
    )
    for kind, text, options in wrong:
        with pytest.raises(kind, match=text):
            whence.runs.group_effects(task, train_set, queries, tmp_path, runtime=QUIET, **options)
    nameless = task.prepare([(torch.zeros(4), 0)])
    with pytest.raises(BadInput, match="found 1 examples without a source, the first '0'"):
        whence.runs.group_effects(task, nameless, queries, tmp_path, runtime=QUIET)


def test_examples_that_were_never_met_score_zero(tmp_path):
    task, train_set = task_of(trained(Case(steps=1), tmp_path))
    table = unrolled(task, tmp_path, train_set, queries_of(task, 2))
    assert int(table.scores.any(0).sum()) == 12 and "48 examples that the run never met score 0" in table.notes[-1]
    groups = {"all": train_set.ids[:30]}  # the rest is in no group
    found = whence.runs.group_effects(task, train_set, queries_of(task, 2), tmp_path, by=groups, runtime=QUIET)
    assert "forward" in found.method
    torch.testing.assert_close(found.scores[:, 0], table.scores[:, :30].sum(1))


def test_the_command_line(tmp_path, model_folder, data_file, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from whence.load import load_records

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    task = whence.CausalLM(model, AutoTokenizer.from_pretrained(model_folder))
    train_set = task.prepare(load_records(str(data_file)))
    optimizer = adamw(model)
    with whence.Recorder(tmp_path / "run", model, optimizer, every=2) as recorder:
        for start in (0, 4, 8, 0):
            batch = train_set.examples[start : start + 4]
            recorder.batch([example.id for example in batch])
            task.loss(model, task.collate(batch)).mean().backward()
            recorder.clip(1.0)
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(tmp_path / "trained")
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path / "trained")

    def run(*words):
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    attribute = ["attribute", tmp_path / "trained", data_file, data_file, "-o", tmp_path / "t", "--method", "unroll"]
    through = [*attribute, "--run", tmp_path / "run"]
    status, out, err = run(*through)
    found = json.loads(out)
    assert status == 0 and any("smoothness" in note for note in found.pop("notes"))
    assert found == {"table": str(tmp_path / "t"), "method": "unroll, 4 steps", "queries": 12, "train": 12}
    assert "memory: peak about" in err and "4 clipped steps, their factors differentiated" in err
    attribute[5] = through[5] = tmp_path / "sources"
    status, out, _ = run(*through, "--by-source", "--mode", "forward")
    assert status == 0 and json.loads(out)["method"] == "unroll of 1 groups, forward, 4 steps" and json.loads(out)["train"] == 1
    status, out, _ = run("smoothness", tmp_path / "trained", data_file, "--run", tmp_path / "run", "--json")
    assert status == 0 and json.loads(out)["steps"] == 4 and -1 <= json.loads(out)["value"] <= 1
    status, out, _ = run("smoothness", tmp_path / "trained", data_file, "--run", tmp_path / "run")
    assert status == 0 and out.startswith("smoothness ")
    attribute[5] = through[5] = tmp_path / "none"
    for words, text in (
        (
            [*attribute, "--by-source"],
            "found method='unroll' without a run; needed the folder of a recorded training run",
        ),
        ([*attribute[:-1], "source", "--run", "r", "--by-source"], "found --by-source for method source; needed"),
        ([*through, "--mode", "forward"], "found --mode forward without --by-source"),
        ([*through, "--by-source", "--segments", "2"], "found segments for unroll; needed what it takes: run"),
        ([*through, "--by-source", "--fit-on", "3"], "found fit_on for unroll; needed what it takes: run"),
        ([*through, "--segments", "2"], "found segments for unroll; needed what it takes: run"),
        (
            ["forecast", tmp_path / "trained", data_file, "--exact", "unroll", "--queries", data_file],
            "found a forecast of unroll",
        ),
    ):
        status, out, err = run(*words)
        assert status == 2 and text in err and err.strip().count("\n") == 0 and not out


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run_blocks("docs/exact-unrolling.md", 3)
    assert names["effects"].train_ids == ("even", "odd") and "smoothness 0." in capsys.readouterr().out
    together = torch.stack([names["table"].scores[:, start::2].sum(1) for start in range(2)], 1)
    torch.testing.assert_close(names["effects"].scores, together, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 4])
def test_the_forecast_holds(tmp_path, rows):
    """The double backward of a language model's step takes no more than was said, and not a fraction of it."""
    task, examples = zoo.make("gpt2", 8)
    task.model.eval()
    optimizer = adamw(task.model)
    with whence.Recorder(tmp_path, task.model, optimizer, every=1) as recorder:
        recorder.batch(examples.ids)
        task.loss(task.model, task.collate(examples.examples)).mean().backward()
        optimizer.step()
    task.model.zero_grad(set_to_none=True)
    run = whence.runs.open_run(tmp_path)
    room = measure_sweep(task, run, examples.examples, rows, room_bytes=1 << 30)
    replay = Replay(task, examples, run, max_positions=room.max_positions)
    wanted = {name: torch.randn(rows, *value.shape).double() for name, value in task.model.named_parameters()}
    with replay.prepared_model(), meter("", 1, quiet=True) as progress, LiveBytes() as live:
        metagradients(replay, wanted, length=room.length, at_once=room.at_once, progress=progress)
    assert 0.3 * room.peak_bytes < live.peak < room.peak_bytes
