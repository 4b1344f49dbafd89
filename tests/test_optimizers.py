"""Optimizers of other packages: told by their state and steps, and held against derivatives of their runs as these packages make them."""

import pytest
import torch
from torch import nn

import whence
from tests.reference.unroll import source_averaged
from tests.settings import QUIET, settings_of
from tests.test_muon import Muon, unrolled
from tests.test_source import COUNT, _Bound, agreement, data, network, pooled, queries_of, source_table
from whence.data import Dataset
from whence.errors import StoreMismatch, Unsupported
from whence.optimizers import Averaging, candidates, fitting_rules

schedulefree = pytest.importorskip("schedulefree")
others = pytest.importorskip("pytorch_optimizer")

MAKERS = {
    "schedule-free adamw": lambda ps: schedulefree.AdamWScheduleFree(ps, lr=0.05, weight_decay=0.1, warmup_steps=5, eps=1e-4),
    "schedule-free sgd": lambda ps: schedulefree.SGDScheduleFree(ps, lr=0.5, weight_decay=0.01, momentum=0.8),
    "shampoo": lambda ps: others.Shampoo(ps, lr=0.1, weight_decay=0.01, matrix_eps=0.01),
    "shampoo, decoupled": lambda ps: others.Shampoo(ps, lr=0.1, weight_decay=0.1, weight_decouple=True, matrix_eps=0.01),
    "lamb": lambda ps: others.Lamb(ps, lr=0.02, weight_decay=0.1, eps=1e-3),
    "lamb, coupled": lambda ps: others.Lamb(ps, lr=0.02, weight_decay=0.1, weight_decouple=False, eps=1e-3),
    "soap": lambda ps: others.SOAP(ps, lr=0.02, weight_decay=0.1, eps=1e-4),
}
EXACT = [name for name in MAKERS if name != "soap"]


def batches_of(epochs, size=10):
    generator = torch.Generator().manual_seed(1)
    return [one for _ in range(epochs) for one in torch.randperm(COUNT, generator=generator).split(size)]


def run_of(name, folder=None, *, kind="mlp", epochs=4, every=8, scale=None, stop=None):
    """The final model of a run, recorded if there is a folder, with weights of its examples; stopped after some steps, or gone on with."""
    inputs, labels = data()
    model, scale = network(kind), torch.ones(COUNT).double() if scale is None else scale
    optimizer = MAKERS[name](model.parameters())
    recorder = None if folder is None else whence.Recorder(folder, model, optimizer, every=every).__enter__()
    start = 0 if recorder is None else recorder.restore()
    if hasattr(optimizer, "train"):
        optimizer.train()
    for number, batch in enumerate(batches_of(epochs)):
        if number < start:
            continue
        if number == stop:
            assert recorder is not None
            recorder.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
            raise KeyboardInterrupt
        if recorder is not None:
            recorder.batch(f"t{place}" for place in batch.tolist())
        optimizer.zero_grad()
        losses = nn.functional.cross_entropy(model(inputs[batch]), labels[batch], reduction="none")
        (losses * scale[batch]).mean().backward()
        optimizer.step()
    if recorder is not None:
        recorder.__exit__(None, None, None)  # while the optimizer is in training mode, as where eval() is called later
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    return model


def task_of(model):
    inputs, labels = data()
    task = whence.Classification(model)
    records = [{"id": f"t{n}", "inputs": x, "label": y} for n, (x, y) in enumerate(zip(inputs, labels.tolist(), strict=True))]
    return task, task.prepare(records)


def derivative(name, queries, places, *, kind="mlp", epochs=4, h=1e-5):
    """Central differences of every query's measurement by examples' weights, by training again with the package's own optimizer."""
    found = []
    for place in places:
        ends = []
        for sign in (1, -1):
            scale = torch.ones(COUNT).double()
            scale[place] += sign * h
            task, _ = task_of(run_of(name, kind=kind, epochs=epochs, scale=scale))
            with torch.no_grad():
                ends.append(task.measurement(task.model, task.collate(queries.examples)))
        found.append((ends[0] - ends[1]) / (2 * h))
    return torch.stack(found, 1)


def unroll(task, folder, train_set, queries):
    return whence.attribute(task, train_set, queries, method=whence.settings.Unroll(run=folder), runtime=QUIET)


@pytest.mark.parametrize("name", EXACT)
def test_unrolling_is_the_derivative_of_the_run(tmp_path, name):
    task, train_set = task_of(run_of(name, tmp_path))
    queries = queries_of(task, 3)
    table = unroll(task, tmp_path, train_set, queries)
    assert float(table.notes[0].split("within ")[1].split()[0]) < 1e-9
    places = [0, 17, 44]
    torch.testing.assert_close(table.scores[:, places], derivative(name, queries, places), rtol=2e-5, atol=2e-8)
    groups = whence.runs.group_effects(
        task, train_set, queries, tmp_path, by={"a": ["t0", "t17"]}, mode="forward", runtime=QUIET
    )
    torch.testing.assert_close(groups.scores[:, 0], table.scores[:, [0, 17]].sum(1), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", MAKERS)
def test_the_rule_is_told_by_state_and_steps(tmp_path, name):
    run_of(name, tmp_path, epochs=1)
    (rules,) = whence.runs.open_run(tmp_path).record["rules"]
    assert rules["groups"] == [[name.split(",")[0]]] and rules["start"] == 0


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("schedule-free adamw", 0.8), ("schedule-free sgd", 0.9), ("shampoo", 0.8), ("lamb", 0.75), ("soap", 0.7),
    ],
)  # fmt: skip
def test_source_follows_the_run(tmp_path, name, least):
    task, train_set = task_of(run_of(name, tmp_path, kind="softmax", epochs=8, every=8))
    queries = queries_of(task, 6)
    places = list(range(0, COUNT, 3))
    wanted = derivative(name, queries, places, kind="softmax", epochs=8)
    found = agreement(source_table(task, tmp_path, train_set, queries).scores[:, places], wanted)
    influence = agreement(whence.attribute(task, train_set, queries, runtime=QUIET).scores[:, places], wanted)
    print(name, found, influence)
    assert found > least


@pytest.mark.parametrize("kind", ["softmax", "mlp"])
@pytest.mark.parametrize("name", ["schedule-free adamw", "schedule-free sgd"])
def test_source_through_an_average_equals_dense_matrices(tmp_path, name, kind):
    task, train_set = task_of(run_of(name, tmp_path, kind=kind, epochs=4, every=4))
    run, queries = whence.runs.open_run(tmp_path), queries_of(task, 3)
    table = source_table(task, tmp_path, train_set, queries)
    (group,) = run.record["settings"][0]["groups"]
    b = group["betas"][0] if "betas" in group else group["momentum"]
    segments, scales, known = [], [], Averaging()
    for start, stop in ((0, 8), (8, 16), (16, 24)):
        steps = []
        for (rate,) in run.log.rates[start:stop]:
            share, known = known.step(group, rate)
            steps.append((rate, rate * group["weight_decay"], share))
        segments.append(((stop - 4, stop), b, steps))
        scales.append(_scales(run, task, (stop - 4, stop)) if "betas" in group else None)
    curvatures = [pooled(task, run, segment, train_set) for segment in run.segments(3)]
    wanted = source_averaged(
        task, run, train_set.examples, queries.examples, segments, curvatures, scales if "betas" in group else None
    )
    torch.testing.assert_close(table.scores, wanted, rtol=1e-7, atol=1e-9)


def _scales(run, task, checkpoints):
    from whence.capture import plan_units

    found = []
    for unit in plan_units(task).units:
        total = 0
        for step in checkpoints:
            kept = run.tensors(step)
            parts = [1 / ((kept[f"state_exp_avg_sq.{name}"] / (1 - 0.999**step)).sqrt() + 1e-4) for name in unit.parameters]
            total = total + torch.cat([parts[0], parts[1][:, None]], 1).flatten() / len(checkpoints)
        found.append(total)
    return found


@pytest.mark.parametrize("name", ["schedule-free adamw", "schedule-free sgd"])
def test_fast_weights_average_and_gradients_are_told_apart(tmp_path, name):
    model = run_of(name, tmp_path, every=6)
    run = whence.runs.open_run(tmp_path)
    last = run.tensors(24)
    (group,) = run.groups(23)
    b = group["betas"][0] if "betas" in group else group["momentum"]
    for key, x in model.named_parameters():
        y, z = last[f"model.{key}"], last[f"state_z.{key}"]
        assert torch.equal(run.values(24, "measurements")[key], x) and not torch.equal(x, y)
        torch.testing.assert_close(y, (1 - b) * z + b * x.detach())
        torch.testing.assert_close(run.values(24, "gradients")[key], y)
    task, train_set = task_of(model)
    assert torch.isfinite(
        whence.attribute(
            task, train_set, Dataset(train_set.examples[:2]), method=whence.settings.TracIn(run=tmp_path), runtime=QUIET
        ).scores
    ).all()
    recipe = run.recipe()
    assert recipe.learning_rate_sum == pytest.approx(sum(rate for (rate,) in run.log.rates) / 2)
    with pytest.raises(Unsupported, match="found astra-source for a run with a Schedule-Free optimizer"):
        whence.attribute(
            task, train_set, Dataset(train_set.examples[:2]), method=whence.settings.AstraSource(run=tmp_path), runtime=QUIET
        )
    wrong = network("mlp")
    wrong.load_state_dict({key.removeprefix("model."): value for key, value in last.items() if key.startswith("model.")})
    with pytest.raises(StoreMismatch, match=r"ended with; .*eval\(\) mode it is to be used"):
        source_table(task_of(wrong)[0], tmp_path, train_set, Dataset(train_set.examples[:2]))


@pytest.mark.parametrize("name", ["schedule-free adamw", "schedule-free sgd", "shampoo", "lamb"])
def test_a_stopped_run_goes_on_to_the_same_record(tmp_path, name):
    whole = run_of(name, tmp_path / "whole", every=6)
    with pytest.raises(KeyboardInterrupt):
        run_of(name, tmp_path / "cut", every=6, stop=15)
    cut = run_of(name, tmp_path / "cut", every=6)
    for one, other in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.equal(one, other)
    records = [whence.runs.open_run(tmp_path / place).record for place in ("whole", "cut")]
    assert [kept["sha256"] for kept in records[0]["checkpoints"]] == [kept["sha256"] for kept in records[1]["checkpoints"]]
    assert records[0]["rules"] == records[1]["rules"]


def test_a_state_that_is_not_all_tensors_is_not_restored(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_of("soap", tmp_path, every=6, stop=15)
    with pytest.raises(
        Unsupported, match="whose SOAP keeps .*precondition_frequency.*, which a checkpoint of the run has no place"
    ):
        run_of("soap", tmp_path, every=6)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda ps: others.Lion(ps, lr=0.01), "whose state is exp_avg: it steps along signs"),
        (lambda ps: others.AdaFactor(ps, lr=0.01), "exp_avg_sq_row: of how long its gradients would have been"),
        (lambda ps: others.Shampoo(ps, lr=0.01, momentum=0.9), "inv_pre_cond_0, .*: its steps follow no rule known here"),
        (lambda ps: others.SOAP(ps, lr=0.01, normalize_gradient=True), "whose state is GG, Q, .*: its steps follow no rule"),
        (lambda ps: others.StableAdamW(ps, lr=0.01), "its steps follow no rule known here"),
    ],
)
def test_what_cannot_be_understood_is_refused(tmp_path, monkeypatch, make, why):
    monkeypatch.setitem(MAKERS, "odd", make)
    task, train_set = task_of(run_of("odd", tmp_path, epochs=1, every=3))
    for method in ("source", "tracin", "unroll"):
        with pytest.raises(Unsupported, match=f"found a run with .*{why}.*do this: choose another method"):
            whence.attribute(
                task, train_set, Dataset(train_set.examples[:1]), method=settings_of(method=method, run=tmp_path), runtime=QUIET
            )


def test_eight_bits_are_refused(tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3))
    inputs, labels = data()
    optimizer = bitsandbytes.optim.AdamW8bit(model.parameters(), lr=0.01, min_8bit_size=0)
    try:
        with whence.Recorder(tmp_path, model, optimizer, every=2) as run:
            for _ in range(2):
                run.batch(range(COUNT))
                nn.functional.cross_entropy(model(inputs.float()), labels).backward()
                optimizer.step()
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        pytest.skip(f"no 8-bit step on this device: {error}")
    with pytest.raises(Unsupported, match="state1, state2.*: it keeps moments in few bits"):
        whence.runs.open_run(tmp_path).segments(1)


def test_muon_and_adamw_in_one_run(tmp_path):
    """Weights by Muon, biases by AdamW; the exact derivative by both, and SOURCE near it."""
    inputs, labels = data()

    def trained(folder=None, scale=None):
        model, scale = network("mlp"), torch.ones(COUNT).double() if scale is None else scale
        optimizers = [
            Muon([p for p in model.parameters() if p.ndim == 2], lr=0.02),
            torch.optim.AdamW([p for p in model.parameters() if p.ndim == 1], lr=0.02, eps=1e-4),
        ]
        recorder = None if folder is None else whence.Recorder(folder, model, optimizers, every=8).__enter__()
        for batch in batches_of(4):
            if recorder is not None:
                recorder.batch(f"t{place}" for place in batch.tolist())
            for optimizer in optimizers:
                optimizer.zero_grad()
            losses = nn.functional.cross_entropy(model(inputs[batch]), labels[batch], reduction="none")
            (losses * scale[batch]).mean().backward()
            for optimizer in optimizers:
                optimizer.step()
        if recorder is not None:
            recorder.__exit__(None, None, None)
        return model

    task, train_set = task_of(trained(tmp_path))
    run, queries = whence.runs.open_run(tmp_path), queries_of(task, 3)
    (settings,) = run.record["settings"]
    assert settings["optimizer"] == "Muon + AdamW" and [group["optimizer"] for group in settings["groups"]] == ["Muon", "AdamW"]
    assert [names[0] for names in run.record["rules"][0]["groups"]] == ["muon", "adamw"]
    table = unroll(task, tmp_path, train_set, queries)
    for place in (0, 31):
        ends = []
        for sign in (1, -1):
            scale = torch.ones(COUNT).double()
            scale[place] += sign * 1e-5
            model = trained(scale=scale)
            with torch.no_grad():
                ends.append(task.measurement(model, task.collate(queries.examples)))
        torch.testing.assert_close(table.scores[:, place], (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-7)
    assert agreement(source_table(task, tmp_path, train_set, queries).scores, table.scores) > 0.6


def test_all_optimizers_step_in_every_step(tmp_path):
    model = network("mlp")
    inputs, labels = data()
    halves = [torch.optim.SGD(model[place].parameters(), lr=0.1) for place in (0, 2)]
    with pytest.raises(Unsupported, match="found two optimizers that step '0.weight'; needed one for every parameter"):
        whence.Recorder(tmp_path, model, [halves[0], halves[0]], every=1)
    with (
        pytest.raises(whence.errors.BadInput, match="found a second step of SGD before the other optimizers made theirs"),
        whence.Recorder(tmp_path, model, halves, every=1) as run,
    ):
        run.batch(range(COUNT))
        nn.functional.cross_entropy(model(inputs), labels).backward()
        halves[0].step()
        halves[0].step()


def test_unrolling_muon_is_the_oracle(tmp_path):
    """In double precision; with torch's own, in bfloat16, the replay is the run and the derivative that of the polynomial."""
    inputs, labels = data()
    for make, tolerance in ((Muon, 1e-9), (torch.optim.Muon, 1e-2)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False)).double()
        start = [value.detach().clone() for value in model.parameters()]
        optimizer = make(model.parameters(), lr=0.01)
        batches = batches_of(2)
        with whence.Recorder(tmp_path / make.__module__, model, optimizer, every=4) as run:
            for batch in batches:
                run.batch(f"t{place}" for place in batch.tolist())
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
                optimizer.step()
        task, train_set = task_of(model)
        queries = queries_of(task, 3)
        table = unroll(task, tmp_path / make.__module__, train_set, queries)
        final, tangent_PN = unrolled(model, start, batches, 0.01)
        measured = task.collate(queries.examples)
        names = [name for name, _ in model.named_parameters()]

        def measurement(values, names=names, measured=measured, model=model, task=task):
            return task.measurement(_Bound(model, dict(zip(names, values, strict=True))), measured)

        gradients = torch.func.jacrev(measurement)([value.detach() for value in model.parameters()])
        wanted = torch.cat([part.flatten(1) for part in gradients], 1) @ tangent_PN
        if tolerance < 1e-3:
            torch.testing.assert_close(table.scores, wanted, rtol=1e-7, atol=1e-10)
        else:
            assert agreement(table.scores, wanted) > 0.9
        assert float(table.notes[0].split("within ")[1].split()[0]) < 1e-6


def test_a_step_that_computes_its_own_gradients_is_told_by_them(tmp_path):
    """As Lightning steps: forward and backward pass are in a closure."""
    inputs, labels = data()
    model = network("mlp")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss

    with whence.Recorder(tmp_path, model, optimizer, every=2) as run:
        for _ in range(4):
            run.batch(range(COUNT))
            optimizer.step(closure)
    assert whence.runs.open_run(tmp_path).record["rules"][0]["groups"] == [["adamw"]]


def test_formulas_tell_each_other_apart():
    """A step of Adam fits no formula of AdamW, and half a step none at all."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(3, 2).double())
    optimizer = torch.optim.Adam([p], lr=0.1, weight_decay=0.1)
    for count in range(3):
        p.grad = torch.randn(3, 2).double()
        before, known = p.detach().clone(), {key: value.clone() for key, value in optimizer.state.get(p, {}).items()}
        optimizer.step()
        group, after = optimizer.param_groups[0], optimizer.state[p]
        assert {rule.name for rule in candidates(group, after, 2)} == {"adam", "adamw"}
        assert fitting_rules(before, p.detach(), p.grad, (known, after), group, count) == ["adam"]
        assert fitting_rules(before, (before + p.detach()) / 2, p.grad, (known, after), group, count) == []
        assert fitting_rules(before, before, p.grad, (known, after), group, count) is None
