"""Methods of the final weights along a recorded run: against dense matrices at the recorded weights."""

import pytest
import torch
from torch import nn

import whence
from tests.settings import QUIET, keywords_of
from tests.test_source import COUNT, data, network, queries_of, train, train_in_stages
from whence.data import Dataset
from whence.errors import BadInput, StoreMismatch
from whence.pipeline.through.along import Point, points_of


def along(task, folder, train_set, queries, method="ekfac", **options):
    return whence.attribute(task, train_set, queries, **keywords_of(method=method, run=folder, **options))


def at_step(folder, kind, step):
    """The run's network as it was, read from the file by hand."""
    model = network(kind)
    kept = whence.runs.open_run(folder).tensors(step)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(kept[f"model.{name}"])
    return model


def dense_scores(model, count, damping):
    """-(1/N) grad m^T (H + damping)^-1 grad loss with the Hessian of a softmax, which is its Gauss-Newton matrix."""
    inputs, labels = data()
    values = nn.utils.parameters_to_vector(model.parameters()).detach()
    names = [name for name, _ in model.named_parameters()]
    shapes = [value.shape for value in model.parameters()]

    def losses(flat, x, y):
        parts = [part.view(shape) for part, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
        logits = torch.func.functional_call(model, dict(zip(names, parts, strict=True)), (x,))
        return nn.functional.cross_entropy(logits, y, reduction="none")

    hessian = torch.func.hessian(lambda flat: losses(flat, inputs, labels).mean())(values)
    grads = torch.func.jacrev(losses)(values, inputs, labels)
    asked = torch.func.jacrev(losses)(values, *data(5, count))  # the measurement is log p, so minus the loss
    return asked @ torch.linalg.solve(hessian + damping * torch.eye(len(values), dtype=hessian.dtype), grads.T) / COUNT


@pytest.mark.parametrize("count", [1, 2, 9])
def test_scores_are_those_of_dense_matrices_on_the_way(tmp_path, count):
    _, task, train_set, (_, _, rates) = train(tmp_path, "sgd", epochs=4, every=4, falling=True)
    queries = queries_of(task, 3)
    table = along(
        task, tmp_path, train_set, queries, "pcg",
        absolute_damping=0.05, tolerance=1e-10, iterations=200, checkpoints=count,
    )  # fmt: skip
    # 24 steps with falling rates, checkpoints after every 4: the halves of the sum of rates lie at 1/4 and 3/4 of it.
    done = [sum(rates[:step]) for step in range(25)]
    middles = [(part + 0.5) * done[24] / count for part in range(count)]
    kept = [4, 8, 12, 16, 20, 24]
    chosen = kept if count == 9 else [min(kept, key=lambda step: abs(done[step] - middle)) for middle in middles]
    edges = [0, *((done[a] + done[b]) / 2 for a, b in zip(chosen, chosen[1:], strict=False)), done[24]]
    weights = [(right - left) / done[24] for left, right in zip(edges, edges[1:], strict=False)]
    assert sum(weights) == pytest.approx(1)
    wanted = sum(
        weight * dense_scores(at_step(tmp_path, "softmax", step), len(queries), 0.05)
        for step, weight in zip(chosen, weights, strict=True)
    )
    torch.testing.assert_close(table.scores, wanted, rtol=1e-7, atol=1e-12)
    assert f"after {', '.join(map(str, chosen))} steps, weighted by the learning rate" in table.notes[0]
    assert table.method.endswith("along a run")


@pytest.mark.parametrize("method", ["ekfac", "kfac", "astra"])
def test_they_are_means_of_tables_at_the_recorded_weights(tmp_path, method):
    model, task, train_set, _ = train(tmp_path / "run", "adamw", kind="mlp", epochs=4, every=8)
    queries = queries_of(task, 2)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    options = {"normalize": "relatif"} if method != "astra" else {"iterations": 5}
    table = along(
        task,
        tmp_path / "run",
        train_set,
        queries,
        method,
        factors=tmp_path / "factors",
        per_unit=True,
        tokens_of=["t3"],
        **options,
    )
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name])
    points = points_of(whence.runs.open_run(tmp_path / "run"), 3)
    parts = [
        whence.attribute(
            whence.Classification(at_step(tmp_path / "run", "mlp", point.step)), train_set, queries,
            tokens_of=["t3"], **keywords_of(method=method, **options),
        )
        for point in points
    ]  # fmt: skip
    torch.testing.assert_close(table.scores, sum(p.weight * t.scores for p, t in zip(points, parts, strict=True)))
    torch.testing.assert_close(table.tokens["t3"], sum(p.weight * t.tokens["t3"] for p, t in zip(points, parts, strict=True)))
    torch.testing.assert_close(sum(table.parts.values()), table.scores)
    assert {path.name for path in (tmp_path / "factors").iterdir()} == {f"step-{point.step}" for point in points}
    again = along(
        task, tmp_path / "run", train_set, queries, method,
        factors=tmp_path / "factors", groups={"a - b": {"0": 1, "1": -1}}, **options,
    )  # fmt: skip
    if "normalize" not in options and method != "astra":
        torch.testing.assert_close(again.scores[0], table.scores[0] - table.scores[1])


def test_stages_count_by_what_was_met_in_them(tmp_path):
    stages = {"first": range(30), "second": range(20, 50)}
    task, train_set = train_in_stages(tmp_path, stages, lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    queries = queries_of(task, 2)
    table = along(task, tmp_path, train_set, queries, checkpoints=1, tokens_of=["25"])
    points = points_of(whence.runs.open_run(tmp_path), 1)
    assert [(point.step, round(point.weight, 6), len(point.shares)) for point in points] == [(3, 0.5, 30), (9, 0.5, 30)]
    first, second = (
        whence.attribute(
            whence.Classification(at_step(tmp_path, "mlp", point.step)),
            Dataset([example for example in train_set.examples if example.id in point.shares]), queries, runtime=QUIET,
        ).scores
        for point in points
    )  # fmt: skip
    torch.testing.assert_close(table.scores[:, :20], first[:, :20] / 2)
    torch.testing.assert_close(table.scores[:, 20:30], first[:, 20:] / 2 + second[:, :10] / 2)
    torch.testing.assert_close(table.scores[:, 30:50], second[:, 10:] / 2)
    torch.testing.assert_close(table.tokens["25"].sum(1), table.scores[:, 25])
    assert not table.scores[:, 50:].any()
    assert "10 examples that the run never met score 0, the first '50'" in table.notes


def test_points_stand_for_equal_sums_of_learning_rates(tmp_path):
    train(tmp_path, "sgd", epochs=8, every=2, falling=True)
    run = whence.runs.open_run(tmp_path)
    points = points_of(run, 3)
    assert all(isinstance(point, Point) for point in points)
    assert [point.step for point in points] == [4, 14, 28]  # of 48: rates fall, so the middles lie early
    assert sum(point.weight for point in points) == pytest.approx(1)
    assert all(0.25 < point.weight < 0.42 for point in points)
    every = points_of(run, 100)
    assert [point.step for point in every] == list(range(2, 49, 2)) and sum(p.weight for p in every) == pytest.approx(1)


def test_where_there_is_no_table_it_is_refused(tmp_path):
    _, task, train_set, _ = train(tmp_path, "sgd", epochs=1, every=3)
    queries = queries_of(task, 2)
    for ask in (
        lambda: whence.self_influence(task, train_set, method=whence.EKFAC(run=tmp_path), runtime=QUIET),
        lambda: whence.pipeline.damping_sweep(
            task, train_set, queries, [0.1], method=whence.EKFAC(run=tmp_path), runtime=QUIET
        ),
    ):
        with pytest.raises(BadInput, match="needed the final weights alone: only tables of scores are averaged over a run"):
            ask()
    with pytest.raises(BadInput, match="found run for cg; needed what it takes"):
        along(task, tmp_path, train_set, queries, "cg")
    with pytest.raises(BadInput, match="found checkpoints=0 for ekfac; needed a positive number"):
        along(task, tmp_path, train_set, queries, checkpoints=0)
    other = whence.Classification(network("softmax", seed=4))
    with pytest.raises(StoreMismatch, match="is not what the run in .* ended with"):
        along(other, tmp_path, train_set, queries)


def test_a_run_that_never_learned_has_no_middle(tmp_path):
    stages = {"still": range(60)}
    task, train_set = train_in_stages(tmp_path, stages, lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    with pytest.raises(BadInput, match="found a run whose learning rates are all 0; needed a step that moved the weights"):
        along(task, tmp_path, train_set, queries_of(task, 2))
