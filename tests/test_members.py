"""Methods averaged over short runs beside a recorded one: against the same runs made by torch's own optimizers."""

import pytest
import torch
from torch import nn

import whence
from tests.settings import QUIET, keywords_of
from tests.test_source import OPTIMIZERS, data, network, queries_of, train, train_in_stages
from whence.distributed import Ranks
from whence.errors import BadInput, Unsupported
from whence.pipeline.exact.scorer import TableRequest
from whence.pipeline.through import members as members_module
from whence.progress import meter
from whence.store import read_json, write_record
from whence.unroll import Clipping, Replay, clipping_of, short_run, short_runs, steps_of


def over_members(task, folder, train_set, queries, method="ekfac", **options):
    return whence.attribute(task, train_set, queries, **keywords_of(method=method, run=folder, **options))


def trained_by_torch(model, start, batches, rates, name, number):
    """A short run by hand: half of the final weights and half of the first ones, shuffled, then every other step."""
    inputs, labels = data()
    generator = torch.Generator().manual_seed(number)
    other = network("mlp")
    with torch.no_grad():
        first = start.split([value.numel() for value in model.parameters()])
        for value, final, begun in zip(other.parameters(), model.parameters(), first, strict=True):
            order = torch.randperm(value.numel(), generator=generator)
            value.copy_(0.5 * final + 0.5 * begun[order].view_as(value))
    optimizer = OPTIMIZERS[name](other.parameters())
    for step in range(number % 2, len(batches), 2):
        optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.zero_grad()
        nn.functional.cross_entropy(other(inputs[batches[step]]), labels[batches[step]]).backward()
        optimizer.step()
    return other


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_it_is_the_mean_over_models_that_torch_trains(tmp_path, name):
    model, task, train_set, (start, batches, rates) = train(
        tmp_path / "run", name, kind="mlp", epochs=20, every=30, falling=True
    )
    queries = queries_of(task, 3)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    table = over_members(
        task, tmp_path / "run", train_set, queries,
        members=2, factors=tmp_path / "factors", per_unit=True, tokens_of=["t3"],
    )  # fmt: skip
    assert all(torch.equal(value, before[key]) for key, value in model.named_parameters())
    models = [model, *(trained_by_torch(model, start, batches, rates, name, number) for number in range(2))]
    parts = [
        whence.attribute(whence.Classification(one), train_set, queries, tokens_of=["t3"], runtime=QUIET) for one in models
    ]
    torch.testing.assert_close(table.scores, sum(part.scores for part in parts) / 3, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(table.tokens["t3"], sum(part.tokens["t3"] for part in parts) / 3, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(sum(table.parts.values()), table.scores)
    assert (parts[1].scores - parts[0].scores).abs().max() > 0.1 * parts[0].scores.abs().max()
    assert table.method.endswith("3 models of a run")
    assert table.notes[0].startswith("mean over the final weights and 2 short runs of 60 of a recorded run's 120 steps")
    assert {path.name for path in (tmp_path / "factors").iterdir()} == {"final", "member-0", "member-1"}
    again = over_members(task, tmp_path / "run", train_set, queries, members=2, factors=tmp_path / "factors")
    torch.testing.assert_close(again.scores, table.scores)


def test_every_stage_gives_its_steps(tmp_path, monkeypatch):
    stages = {"first": range(30), "second": range(20, 50)}
    task, train_set = train_in_stages(tmp_path, stages, lambda parameters: torch.optim.SGD(parameters, lr=0.3, momentum=0.9))
    run = whence.runs.open_run(tmp_path)
    assert steps_of(run, 3) == list(range(12))
    monkeypatch.setattr(short_runs, "_FEWEST", 2)
    assert [steps_of(run, number) for number in (0, 3, 9)] == [[0, 6], [3, 9], [3, 9]]
    monkeypatch.setattr(short_runs, "_FEWEST", 3)
    assert [steps_of(run, number) for number in (0, 3, 9)] == [[0, 4, 6, 10], [3, 9], [1, 5, 7, 11]]
    table = over_members(task, tmp_path, train_set, queries_of(task, 2), members=1)
    assert bool(torch.isfinite(table.scores).all())
    assert "10 examples that the run never met are scored too, the first '50'" in table.notes


def recorded(folder, model, optimizer, steps, max_norm=None):
    """A run of batches of ten, clipped to a norm; its task and training examples."""
    inputs, labels = data()
    with whence.Recorder(folder, model, optimizer, every=5) as run:
        for step in range(steps):
            batch = torch.arange(step % 6, 60, 6)
            run.batch(f"t{place}" for place in batch.tolist())
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            if max_norm is not None:
                run.clip(max_norm)
            optimizer.step()
    task = whence.Classification(model)
    records = [{"id": f"t{n}", "inputs": x, "label": y} for n, (x, y) in enumerate(zip(inputs, labels.tolist(), strict=True))]
    return task, task.prepare(records)


def test_clipped_gradients_are_cut_to_the_run_s_norm(tmp_path):
    inputs, labels = data()
    model, other = network("mlp"), network("mlp")
    task, train_set = recorded(tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.5), 30, max_norm=0.1)
    replay = Replay(task, train_set, whence.runs.open_run(tmp_path), max_positions=100)
    clipping = clipping_of(replay)
    assert clipping.norm(0) == pytest.approx(0.1) and not clipping.notes()
    with meter("short run", 30, quiet=True) as progress:
        short = short_run(replay, 0, clipping, progress)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value, final, first in zip(other.parameters(), model.parameters(), network("mlp").parameters(), strict=True):
            order = torch.randperm(value.numel(), generator=generator)
            value.copy_(0.5 * final + 0.5 * first.flatten()[order].view_as(value))
    optimizer = torch.optim.SGD(other.parameters(), lr=0.5)
    for step in range(30):
        batch = torch.arange(step % 6, 60, 6)
        optimizer.zero_grad()
        nn.functional.cross_entropy(other(inputs[batch]), labels[batch]).backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.1)
        optimizer.step()
    for name, value in other.named_parameters():
        torch.testing.assert_close(short.weights[name], value.detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("is_new", [False, True])
def test_stages_keep_the_optimizer_and_the_norm_that_the_run_had(tmp_path, is_new):
    """By torch: two stages with other norms, moments kept over the border or not; the record may not say which."""
    inputs, labels = data()
    model, other = network("mlp"), network("mlp")
    first = [value.detach().clone() for value in model.parameters()]

    def steps(trained, take):
        optimizer = OPTIMIZERS["adamw"](trained.parameters())
        for number, norm in enumerate((0.1, 0.02)):
            optimizer = OPTIMIZERS["adamw"](trained.parameters()) if number and is_new else optimizer
            take(number, optimizer)
            for step in range(10):
                batch = torch.arange(step % 6, 60, 6)
                optimizer.zero_grad()
                nn.functional.cross_entropy(trained(inputs[batch]), labels[batch]).backward()
                yield batch.tolist(), norm
                optimizer.step()

    recorder = whence.Recorder(tmp_path, model, OPTIMIZERS["adamw"](model.parameters()), every=5)
    watched = lambda number, optimizer: recorder.stage(f"{number}", optimizer if is_new or not number else None)  # noqa: E731
    with recorder as run:
        for batch, norm in steps(model, watched):
            run.batch(batch)
            run.clip(norm)
    task = whence.Classification(model)
    train_set = task.prepare(list(zip(inputs, labels.tolist(), strict=True)))
    recorded_run = whence.runs.open_run(tmp_path)
    replay = Replay(task, train_set, recorded_run, max_positions=100)
    clipping = clipping_of(replay)
    assert [clipping.norm(start) for start in (0, 10)] == pytest.approx([0.1, 0.02], rel=1e-4)
    with meter("short run", 20, quiet=True) as progress:
        short = short_run(replay, 0, clipping, progress)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value, final, begun in zip(other.parameters(), model.parameters(), first, strict=True):
            order = torch.randperm(value.numel(), generator=generator)
            value.copy_(0.5 * final + 0.5 * begun.flatten()[order].view_as(value))
    for _, norm in steps(other, lambda number, optimizer: None):
        nn.utils.clip_grad_norm_(other.parameters(), norm)
    for name, value in other.named_parameters():
        torch.testing.assert_close(short.weights[name], value.detach(), rtol=1e-6, atol=1e-9)
    table = over_members(task, tmp_path, train_set, queries_of(task, 2), members=1)
    assert not any("norm" in note or "empty optimizer" in note for note in table.notes)
    record = read_json(tmp_path / "run.json")
    for stage in record["stages"]:
        del stage["is_new"]
    write_record(tmp_path / "run.json", record)
    table = over_members(task, tmp_path, train_set, queries_of(task, 2), members=1)
    assert any(note.startswith("short runs begin the stages from steps 10 on with an empty optimizer") for note in table.notes)


def test_norms_that_are_not_known_or_differ_are_said():
    assert Clipping({}, (0,)).notes() == [
        "short runs cut gradients by the factors of the recorded steps: what norm the run cut them to is not known"
    ]
    assert "what norm the stages from steps 5 on cut them to" in Clipping({0: (1.0, 1.001)}, (5,)).notes()[0]
    assert Clipping({0: (1.0, 1.001)}).notes() == [] and Clipping({}).norm(0) is None
    (note,) = Clipping({0: (1.0, 2.0)}).notes()
    assert "norms from 1 to 2 in a stage; short runs cut to the mean, 1.5" in note


def test_what_cannot_be_trained_again_is_refused(tmp_path):
    _, task, train_set, _ = train(tmp_path / "run", "sgd", epochs=1, every=3)
    with pytest.raises(BadInput, match="found members for ekfac without a run; needed the folder of a recorded"):
        whence.EKFAC(members=2)
    with pytest.raises(BadInput, match="found members=0 for ekfac; needed a positive number"):
        whence.EKFAC(run=tmp_path / "run", members=0)
    with pytest.raises(BadInput, match="found checkpoints=5 with members=2 for ekfac; needed one of them"):
        whence.EKFAC(run=tmp_path / "run", members=2, checkpoints=5)
    with pytest.raises(BadInput, match="needed the final weights alone"):
        whence.self_influence(task, train_set, method=whence.EKFAC(run=tmp_path / "run", members=1), runtime=QUIET)
    wanted = TableRequest.of(queries_of(task, 2), train_set)
    with pytest.raises(BadInput, match="found members for 2 processes; needed one process"):
        members_module.over_members(
            task, train_set, wanted, whence.EKFAC(run=tmp_path / "run", members=1), whence.Runtime(ranks=Ranks(0, 2))
        )
    model = nn.Sequential(network("mlp"), nn.BatchNorm1d(3).double())
    task, train_set = recorded(tmp_path / "batches", model, torch.optim.SGD(model.parameters(), lr=0.1), 10)
    with pytest.raises(Unsupported, match="found a model with statistics of batches, which short runs would not learn"):
        over_members(task, tmp_path / "batches", train_set, queries_of(task, 2), members=1)


def test_what_they_take_is_forecast(tmp_path):
    _, task, train_set, _ = train(tmp_path, "sgd", epochs=4, every=6)
    seconds = [
        whence.pipeline.forecast_exact(task, train_set, 4, method=whence.EKFAC(run=tmp_path, members=members), runtime=QUIET)
        for members in (1, 3)
    ]
    assert [found.footprint.passes for found in seconds] == [2, 4]
    assert seconds[0].seconds.training > 0 and "training" in str(seconds[0])


def test_what_pretrained_weights_know_is_not_learned_again(tmp_path):
    model, _, _, _ = train(tmp_path / "first", "sgd", kind="mlp", epochs=40, every=60)
    task, train_set = recorded(tmp_path / "tuned", model, torch.optim.SGD(model.parameters(), lr=1e-3), 10)
    with pytest.raises(
        BadInput, match="found a short run of 10 steps that ends with a loss of .*; needed a run from random weights"
    ):
        over_members(task, tmp_path / "tuned", train_set, queries_of(task, 2), members=1)
