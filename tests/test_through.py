"""Methods that go through a recorded run, besides SOURCE itself: TracIn, ASTRA-SOURCE, parts by segment, what does not fit in memory."""

import pytest
import torch

import whence
from tests.reference.gradients import dense_gradients
from tests.settings import keywords_of
from tests.test_source import COUNT, queries_of, source_table, train
from whence.capture import plan_units
from whence.curvature import Curvature, dense, fit_ekfac_pooled
from whence.errors import BadInput, OutOfMemory, UnknownOption
from whence.pipeline import forecast_exact
from whence.unroll import implicit_damping, scaling_of
from whence.unroll.exponential import chebyshev, expanded


def scored(task, folder, train_set, queries, method, **options):
    return whence.attribute(task, train_set, queries, **keywords_of(method=method, run=folder, **options))


@pytest.mark.parametrize(("name", "gain"), [("sgd", 1.0), ("momentum", 10.0), ("adamw", 1.0)])
def test_tracin_is_the_sum_over_checkpoints(tmp_path, name, gain):
    _, task, train_set, (_, _, rates) = train(tmp_path, name, kind="mlp", epochs=3, every=7, falling=True)
    run, queries = whence.runs.open_run(tmp_path), queries_of(task, 3)
    table = scored(task, tmp_path, train_set, queries, "tracin")
    wanted, before = 0, 0
    for step in run.checkpoints[1:]:
        with run.weights(task.model, [step]):
            asked, given = (
                torch.cat([part.flatten(1) for part in dense_gradients(task, one, objective).values()], 1)
                for one, objective in ((queries.examples, "measurement"), (train_set.examples, "loss"))
            )
        wanted = wanted - gain * sum(rates[before:step]) / COUNT * asked @ given.T
        before = step
    torch.testing.assert_close(table.scores, wanted)
    assert table.method == "tracin, 3 checkpoints" and table.unit == task.unit
    assert "TracIn over 3 checkpoints of 18 steps" in table.notes
    assert any("takes every step for plain gradient descent" in note for note in table.notes) == (name == "adamw")


@pytest.mark.parametrize("method", ["source", "tracin", "astra-source"])
def test_parts_by_segment_add_up(tmp_path, method):
    _, task, train_set, _ = train(tmp_path, "adamw", kind="mlp", epochs=3, every=6)
    queries = queries_of(task, 2)
    table = scored(task, tmp_path, train_set, queries, method, per_segment=True)
    assert list(table.parts) == ["steps 0 to 6", "steps 6 to 12", "steps 12 to 18"]
    torch.testing.assert_close(sum(table.parts.values()), table.scores, rtol=0, atol=0)
    torch.testing.assert_close(scored(task, tmp_path, train_set, queries, method).scores, table.scores)
    if method != "source":
        return
    # The last part is what one segment there says of the query itself.
    run = whence.runs.open_run(tmp_path)
    assert table.parts["steps 12 to 18"].abs().sum() > 0 and run.segments(3)[-1].start == 12


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_astra_source_solves_with_the_matrix_itself(tmp_path, name):
    """One segment: dense Gauss-Newton matrix at the mean weights, damped as the segment says, inverted."""
    _, task, train_set, _ = train(tmp_path, name, kind="mlp", epochs=3, every=6)
    run, queries, plan = whence.runs.open_run(tmp_path), queries_of(task, 2), plan_units(task)
    found = scored(
        task, tmp_path, train_set, queries, "astra-source", segments=1,
        iterations=4000, batch_examples=COUNT, tolerance=1e-9,
    )  # fmt: skip
    (segment,) = run.segments(1)
    scaling = scaling_of(run, plan, segment) if segment.is_adaptive else None
    values = implicit_damping(plan.units, segment, scaling)
    reach, decay = segment.reach["0.weight"], segment.decay["0.weight"]
    if scaling is None:
        assert values == pytest.approx([(1 + decay) / reach] * 2)
    else:
        assert values == pytest.approx([(1 + decay) / reach * float((1 / one.values_OI).mean()) for one in scaling])
    with run.weights(task.model, segment.checkpoints):
        matrix = dense(Curvature(task, plan, train_set.examples))
    sizes = [unit.outputs * unit.inputs for unit in plan.units]
    damping = torch.cat([torch.full((size,), value).double() for size, value in zip(sizes, values, strict=True)])
    from tests.reference.gradients import unit_gradients

    def flat(examples, objective):
        rows = unit_gradients(task, plan, dense_gradients(task, examples, objective))
        return torch.cat([row.flatten(1) for row in rows], 1)

    solved = torch.linalg.solve(matrix + torch.diag(damping), flat(queries.examples, "measurement").T).T
    wanted = 0
    for step in segment.checkpoints:
        with run.weights(task.model, [step]):
            wanted = wanted - solved @ flat(train_set.examples, "loss").T / COUNT / len(segment.checkpoints)
    torch.testing.assert_close(found.scores, wanted, rtol=1e-5, atol=1e-7)
    assert any(note.startswith("steps 0 to 18: relative residual at most") for note in found.notes)


def test_the_expansion_is_the_function_and_no_longer_than_needed():
    torch.manual_seed(0)
    root = torch.randn(12, 12).double()
    scale = torch.rand(12).double() + 0.1
    matrix = root @ root.T * scale  # similar to a symmetric one, not symmetric
    top = float(torch.linalg.eigvals(matrix).real.max())
    for size in (1e-3, 1.0, 300.0):
        x = matrix * (size / top)
        terms = chebyshev(lambda values: torch.exp(-values), size, 1e-10)
        (found,) = expanded(lambda rows, x=x: rows @ x.T, torch.eye(12).double()[None], size, [terms])
        torch.testing.assert_close(found[0].T, torch.matrix_exp(-x), rtol=0, atol=1e-8)
        assert len(terms) < 12 + 4 * (size * 23) ** 0.5


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_short_of_memory_queries_go_in_chunks_and_units_in_groups(tmp_path, name, monkeypatch):
    _, task, train_set, _ = train(tmp_path / "run", name, kind="mlp", epochs=2, every=4)
    queries = queries_of(task, 5)
    whole = source_table(task, tmp_path / "run", train_set, queries)
    from dataclasses import replace

    import whence.pipeline.exact.prepare as prepare

    known = prepare.measure

    def short(*args, **options):
        found = known(*args, **options)
        return replace(found, rows_at_once=2, fit=replace(found.fit, group_bytes=1))

    monkeypatch.setattr(prepare, "measure", short)
    with pytest.raises(OutOfMemory, match="found room for 2 of 5 queries at a time; needed room for all, or a place where"):
        source_table(task, tmp_path / "run", train_set, queries)
    factors = tmp_path / "factors"
    found = source_table(task, tmp_path / "run", train_set, queries, factors=factors)
    torch.testing.assert_close(found.scores, whole.scores, rtol=1e-9, atol=1e-12)
    segments = sorted(part.name for part in factors.iterdir() if part.is_dir())
    assert len(segments) == 3 and all(one.startswith("segment-") for one in segments)
    assert (factors / segments[0] / "values-0-1.safetensors").exists() and (
        factors / segments[0] / "bases-1-2.safetensors"
    ).exists()
    assert found.notes == whole.notes
    bare = scored(task, tmp_path / "run", train_set, queries, "tracin")
    monkeypatch.undo()
    torch.testing.assert_close(bare.scores, scored(task, tmp_path / "run", train_set, queries, "tracin").scores)


def test_the_pooled_fit_in_groups_is_the_same(tmp_path):
    _, task, train_set, _ = train(tmp_path, "sgd", kind="mlp", epochs=2, every=6)
    run, plan = whence.runs.open_run(tmp_path), plan_units(task)
    weights = [lambda step=step: run.weights(task.model, [step]) for step in run.checkpoints]
    whole = fit_ekfac_pooled(task, plan, train_set, weights, quiet=True)
    parts = fit_ekfac_pooled(task, plan, train_set, weights, room_bytes=1, quiet=True)
    for mine, theirs in zip(parts.blocks, whole.blocks, strict=True):
        assert torch.equal(mine.values_OI, theirs.values_OI) and torch.equal(mine.inputs_II, theirs.inputs_II)


def test_a_forecast_counts_checkpoints_and_segments(tmp_path):
    _, task, train_set, _ = train(tmp_path, "sgd", kind="mlp", epochs=4, every=4)
    plain = forecast_exact(task, train_set, 3, method=whence.EKFAC(factors=tmp_path / "factors"))
    found = forecast_exact(task, train_set, 3, method=whence.Source(run=tmp_path, factors=tmp_path / "factors"))
    assert found.to_dict()["passes_to_fit"] == 12 and found.to_dict()["passes_to_score"] == 6
    assert found.footprint.fit.disk == 3 * plain.footprint.fit.disk
    fast = {"segments": 2, "average_weights": True}
    found = forecast_exact(task, train_set, 3, **keywords_of(method="source", run=tmp_path, **fast))
    assert (found.to_dict()["passes_to_fit"], found.to_dict()["passes_to_score"]) == (4, 2)
    found = forecast_exact(task, train_set, 3, method=whence.settings.TracIn(run=tmp_path))
    assert (found.to_dict()["passes_to_fit"], found.to_dict()["passes_to_score"]) == (0, 6)
    with pytest.raises(BadInput, match="found method='source' without a run"):
        forecast_exact(task, train_set, 3, method="source")


def test_what_has_no_use_is_refused(tmp_path):
    _, task, train_set, _ = train(tmp_path, "sgd", epochs=1, every=3)
    queries = queries_of(task, 2)
    for option in ({"segments": 2}, {"average_weights": True}, {"form": "diagonal"}):
        with pytest.raises(
            BadInput, match=f"found {next(iter(option))} for tracin; needed what it takes: any_loss, per_segment, run"
        ):
            scored(task, tmp_path, train_set, queries, "tracin", **option)
    with pytest.raises(BadInput, match="found form='diagonal' for a run with SGD; needed an optimizer that multiplies"):
        source_table(task, tmp_path, train_set, queries, form="diagonal")
    with pytest.raises(UnknownOption, match="found form='half'; needed one of: full, diagonal"):
        whence.Source(run=tmp_path, form="half")
    with pytest.raises(BadInput, match="found per_unit with per_segment; needed one of them"):
        source_table(task, tmp_path, train_set, queries, per_unit=True, per_segment=True)
    with pytest.raises(BadInput, match="found factors for tracin; needed what it takes"):
        scored(task, tmp_path, train_set, queries, "tracin", factors=tmp_path / "factors")
