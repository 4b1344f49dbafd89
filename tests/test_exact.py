"""Exact scores against dense gradients and inverses, against retraining in closed form, and in all their parts."""

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import whence
from tests import zoo
from tests.reference.ekfac import dense_inverse
from tests.reference.gradients import dense_gradients, unit_gradients
from tests.settings import QUIET, keywords_of, settings_of
from whence.capture import capture, plan_units
from whence.compress import Kronecker
from whence.curvature import fit_ekfac, fit_kfac
from whence.data import Dataset
from whence.errors import BadInput, NonFinite, UnknownOption
from whence.score import LowRank, token_scores, truncate
from whence.settings import FitConfig

NAMES = [
    "linear",
    "gpt2",
    "llama",
    "bert",
    "conv2d_groups",
    "two_inputs",
    "tied",
    "applied_twice",
    "lone_parameter",
    "layer_norm",
]
# Batches of a few examples, padded where lengths differ; the curvature of each test is fitted in the same ones, since the basis of directions
# that no factor reaches is anyone's choice.
BATCH = 40


def case(name, queries=3, count=14):
    task, dataset = zoo.make(name, count=min(count, 11) if name == "bert" else count)  # this one has 16 positions
    examples = list(dataset.examples)
    return task, plan_units(task), Dataset(examples[queries:]), Dataset(examples[:queries])


def dense_rows(task, plan, dataset, objective="loss"):
    return [rows.flatten(1) for rows in unit_gradients(task, plan, dense_gradients(task, dataset.examples, objective))]


def inverses(task, plan, train, method="ekfac", relative=0.1):
    if method == "grad-dot-exact":
        return [torch.eye(unit.outputs * unit.inputs).double() for unit in plan.units]
    fit = fit_ekfac if method == "ekfac" else fit_kfac
    found = fit(task, plan, train, FitConfig(samples=1), max_positions=BATCH, quiet=True)
    return [dense_inverse(block, relative * block.mean_eigenvalue) for block in found.blocks]


def attribute(task, train, queries, method="ekfac", **options):
    if method != "grad-dot-exact":
        options = {"relative_damping": 0.1, "samples": 1, **options}
    return whence.attribute(task, train, queries, **keywords_of(method=method, **{"batch_positions": BATCH, **options}))


def close(found, wanted, rtol=1e-8):
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=rtol * float(wanted.abs().max()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["ekfac", "kfac", "grad-dot-exact"])
def test_scores_equal_the_formula_with_every_matrix_formed(name, method):
    task, plan, train, queries = case(name)
    table = attribute(task, train, queries, method, per_unit=True)
    rows, asked = dense_rows(task, plan, train), dense_rows(task, plan, queries, "measurement")
    parts = [
        -(q @ inverse @ g.T) / len(train)
        for q, inverse, g in zip(asked, inverses(task, plan, train, method), rows, strict=True)
    ]
    # The norms of this Llama compute in float32, whatever the model.
    rtol = 1e-5 if name == "llama" else 1e-8
    close(table.scores, sum(parts), rtol)
    assert list(table.parts) == [unit.name for unit in plan.units]
    for found, wanted in zip(table.parts.values(), parts, strict=True):
        torch.testing.assert_close(found, wanted, rtol=rtol, atol=rtol * float(table.scores.abs().max()))
    close(sum(table.parts.values()), table.scores)
    assert table.query_ids == ("0", "1", "2") and table.train_ids[0] == "3"


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "linear"])
@pytest.mark.parametrize("rank", [None, 2])
def test_token_scores_add_up_and_are_those_of_the_example_alone(name, rank):
    task, plan, train, queries = case(name)
    chosen = [example.id for example in train.examples]
    table = attribute(task, train, queries, "grad-dot-exact", tokens_of=chosen[::2], query_rank=rank)
    assert list(table.tokens) == chosen[::2]
    rows = unit_gradients(task, plan, dense_gradients(task, queries.examples, "measurement"))
    blocks = [b.dense() if isinstance(b, LowRank) else b for b in truncate([-row / len(train) for row in rows], rank)]
    whole = Kronecker(plan.units, (None,) * len(plan.units), (None,) * len(plan.units))
    for place in range(0, len(train), 2):
        found = table.tokens[chosen[place]]
        torch.testing.assert_close(found.sum(1), table.scores[:, place], rtol=1e-9, atol=1e-9)
        for query in range(len(queries)):
            alone = token_scores(task, plan, whole, train.examples[place], [block[query] for block in blocks])
            close(found[query], alone, 1e-5 if name == "llama" else 1e-8)


@pytest.mark.parametrize("name", ["linear", "gpt2", "conv2d_groups", "applied_twice", "lone_parameter"])
@pytest.mark.parametrize("cheaper", [True, False])
@pytest.mark.parametrize("rank", [1, 3, 1000])
def test_low_rank_queries_are_the_truncated_ones_in_either_order(monkeypatch, name, cheaper, rank):
    monkeypatch.setattr("whence.score.contract._factors_are_cheaper", lambda block, pair: cheaper)
    monkeypatch.setattr("whence.pipeline.exact.measure._WHOLE_NUMBERS", 1)  # one query at a time
    task, plan, train, queries = case(name)
    table = attribute(task, train, queries, "grad-dot-exact", query_rank=rank)
    total = 0.0
    asked = unit_gradients(task, plan, dense_gradients(task, queries.examples, "measurement"))
    for q, g in zip(asked, dense_rows(task, plan, train), strict=True):
        u, s, vt = torch.linalg.svd(q, full_matrices=False)
        cut = q if rank * sum(q.shape[1:]) >= q[0].numel() else (u[..., :rank] * s[:, None, :rank]) @ vt[:, :rank]
        total = total - cut.flatten(1) @ g.T / len(train)
    close(table.scores, total)
    assert f"queries of rank {rank}" in table.method


def test_the_cheapest_order_is_taken():
    from whence.records import Dense, Pair
    from whence.score.contract import _factors_are_cheaper

    long_and_narrow = Pair(Dense(torch.zeros(4, 500, 8)), Dense(torch.zeros(4, 500, 8)))
    short_and_wide = Pair(Dense(torch.zeros(4, 2, 500)), Dense(torch.zeros(4, 2, 500)))
    assert not _factors_are_cheaper(LowRank(torch.zeros(16, 4, 8), torch.zeros(16, 4, 8)), long_and_narrow)
    assert _factors_are_cheaper(LowRank(torch.zeros(16, 4, 500), torch.zeros(16, 4, 500)), short_and_wide)


@pytest.mark.parametrize("name", ["gpt2", "conv1d", "linear"])
def test_chunks_and_batches_are_invisible(monkeypatch, name):
    task, _, train, queries = case(name)
    options = {"tokens_of": ["5"], "per_unit": True, "normalize": "relatif"}
    wanted = attribute(task, train, queries, "grad-dot-exact", **options, batch_positions=1000)
    monkeypatch.setattr("whence.score.contract._CHUNK_NUMBERS", {"cpu": 1})
    monkeypatch.setattr("whence.curvature.squares._CHUNK_NUMBERS", 1)
    monkeypatch.setattr("whence.curvature.squares._HELD_NUMBERS", 1)
    for size in (1, 30):
        found = attribute(task, train, queries, "grad-dot-exact", **options, batch_positions=size)
        close(found.scores, wanted.scores)
        close(found.tokens["5"], wanted.tokens["5"])


def test_a_batch_that_did_not_fit_is_not_counted_twice(monkeypatch):
    task, _, train, queries = case("applied_twice")
    options = {"tokens_of": ["5"], "normalize": "relatif"}
    wanted = attribute(task, train, queries, "grad-dot-exact", **options)

    def sometimes(*args, num_examples, **kwargs):
        result = capture(*args, num_examples=num_examples, **kwargs)
        if num_examples > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return result

    monkeypatch.setattr("whence.score.exact.capture", sometimes)
    found = attribute(task, train, queries, "grad-dot-exact", **options)
    close(found.scores, wanted.scores)
    close(found.tokens["5"], wanted.tokens["5"])


@pytest.mark.parametrize("rank", [None, 1000])
def test_groups_are_weighted_sums_of_queries(rank):
    task, _, train, queries = case("gpt2")
    table = attribute(task, train, queries)
    groups = {"0 - 1": {"0": 1.0, "1": -1.0}, "mean": {"0": 1 / 3, "1": 1 / 3, "2": 1 / 3}}
    found = attribute(task, train, queries, groups=groups, query_rank=rank)
    assert found.query_ids == ("0 - 1", "mean")
    close(found.scores, torch.stack([table.scores[0] - table.scores[1], table.scores.mean(0)]))
    with pytest.raises(BadInput, match="found the group 'a' with the query 'b'; needed ids of queries, such as '0'"):
        attribute(task, train, queries, groups={"a": {"b": 1.0}})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["ekfac", "grad-dot-exact"])
def test_normalizations_and_self_influence(name, method):
    task, plan, train, queries = case(name)
    rows, asked = dense_rows(task, plan, train), dense_rows(task, plan, queries, "measurement")
    matrices = inverses(task, plan, train, method)
    scores = attribute(task, train, queries, method).scores
    own = sum(((g @ m) * g).sum(1) for g, m in zip(rows, matrices, strict=True))
    theirs = sum(((q @ m) * q).sum(1) for q, m in zip(asked, matrices, strict=True))
    moved = sum((g @ m).square().sum(1) for g, m in zip(rows, matrices, strict=True))
    rtol = 1e-5 if name == "llama" else 1e-8
    options = {} if method == "grad-dot-exact" else {"relative_damping": 0.1, "samples": 1}
    table = whence.self_influence(
        task, train, method=settings_of(method=method, **options), runtime=whence.Runtime(batch_positions=BATCH, quiet=True)
    )
    close(table.scores[0], own / len(train), rtol)
    assert table.query_ids == ("self-influence",) and table.train_ids == tuple(example.id for example in train.examples)
    found = attribute(task, train, queries, method, normalize="relatif", tokens_of=["4"], per_unit=True)
    close(found.scores, scores / own.sqrt(), rtol)
    close(found.tokens["4"].sum(1), found.scores[:, 1])
    close(sum(found.parts.values()), found.scores)
    close(attribute(task, train, queries, method, normalize="theta-relatif").scores, scores / moved.sqrt(), rtol)
    cosine = attribute(task, train, queries, method, normalize="cosine")
    close(cosine.scores, len(train) * scores / theirs.sqrt()[:, None] / own.sqrt(), rtol)
    assert cosine.unit == "cosine" and float(cosine.scores.abs().max()) <= 1 + 1e-9


def test_self_influence_is_the_score_for_oneself():
    task, _, train, _ = case("linear")
    table = attribute(task, train, train)
    found = whence.self_influence(
        task,
        train,
        method=whence.EKFAC(damping=whence.Damping(relative=0.1), fit=whence.FitConfig(samples=1)),
        runtime=whence.Runtime(batch_positions=BATCH, quiet=True),
    )
    close(found.scores[0], table.scores.diagonal())


def test_ridge_regression_predicts_leave_one_out():
    """One linear layer with the minimised loss's weight decay as damping: EK-FAC is the exact Hessian, the score the derivative."""
    torch.manual_seed(0)
    inputs, noise, decay = torch.randn(60, 4).double(), torch.randn(60).double(), 0.1
    targets = inputs @ torch.tensor([1.0, -2.0, 0.5, 0.0]).double() + 0.3 + noise
    x = torch.cat([inputs, torch.ones(60, 1).double()], 1)

    def fit(weights_N):
        hessian = x.T @ (weights_N[:, None] * x) / 60 + decay * torch.eye(5).double()
        return torch.linalg.solve(hessian, x.T @ (weights_N * targets) / 60)

    def task_of(weights):
        layer = nn.Linear(4, 1).double()
        with torch.no_grad():
            layer.weight.copy_(weights[None, :4])
            layer.bias.copy_(weights[4:])
        return whence.Regression(layer)

    ones = torch.ones(60).double()
    task = task_of(fit(ones))
    train = task.prepare(list(zip(inputs, targets, strict=True)))
    queries = task.prepare([(torch.randn(4).double(), torch.randn(()).double()) for _ in range(5)])
    table = whence.attribute(task, train, queries, method=whence.EKFAC(damping=whence.Damping(absolute=decay)), runtime=QUIET)

    def measured(weights_N):
        with torch.no_grad():
            other = task_of(fit(weights_N))
            return other.measurement(other.model, other.collate(queries.examples))

    base = measured(ones)
    step = 1e-5
    for place in range(0, 60, 7):
        derivative = (measured(ones + step * (torch.arange(60) == place)) - base) / step
        torch.testing.assert_close(table.scores[:, place], derivative, rtol=1e-3, atol=1e-6)
    removed = torch.stack([measured(ones - (torch.arange(60) == place).double()) - base for place in range(60)], 1)
    slope = float((removed * table.removal_effect()).sum() / table.removal_effect().square().sum())
    assert slope == pytest.approx(1.0, abs=0.15)
    for found, truth in zip(table.removal_effect(), removed, strict=True):
        assert float(torch.corrcoef(torch.stack([found, truth]))[0, 1]) > 0.98


def test_softmax_regression_predicts_leave_one_out():
    """Retrained by Newton's method; EK-FAC approximates this Hessian, so the slope is near one and the order is right."""
    torch.manual_seed(0)
    decay, count, classes = 0.03, 60, 3
    inputs = torch.randn(count, 3).double()
    labels = (inputs @ torch.randn(3, classes).double() + torch.randn(count, classes).double()).argmax(1)
    x = torch.cat([inputs, torch.ones(count, 1).double()], 1)

    def fit(weights_N, theta, rounds):
        def objective(theta):
            losses = nn.functional.cross_entropy(x @ theta.view(classes, 4).T, labels, reduction="none")
            return (weights_N * losses).sum() / count + 0.5 * decay * theta.square().sum()

        for _ in range(rounds):
            gradient = torch.func.grad(objective)(theta)
            theta = theta - torch.linalg.solve(torch.func.hessian(objective)(theta), gradient)
        return theta

    def task_of(theta):
        weights = theta.view(classes, 4)
        layer = nn.Linear(3, classes).double()
        with torch.no_grad():
            layer.weight.copy_(weights[:, :3])
            layer.bias.copy_(weights[:, 3])
        return whence.Classification(layer)

    ones = torch.ones(count).double()
    best = fit(ones, torch.zeros(classes * 4).double(), 12)
    task = task_of(best)
    train = task.prepare(list(zip(inputs, labels.tolist(), strict=True)))
    queries = task.prepare([(torch.randn(3).double(), label) for label in (0, 1, 2, 0)])
    table = whence.attribute(task, train, queries, method=whence.EKFAC(damping=whence.Damping(absolute=decay)), runtime=QUIET)

    def measured(weights_N):
        other = task_of(fit(weights_N, best, 3))
        with torch.no_grad():
            return other.measurement(other.model, other.collate(queries.examples))

    base = measured(ones)
    removed = torch.stack([measured(ones - (torch.arange(count) == place).double()) - base for place in range(count)], 1)
    slope = float((removed * table.removal_effect()).sum() / table.removal_effect().square().sum())
    assert slope == pytest.approx(1.0, abs=0.25)
    for found, truth in zip(table.removal_effect(), removed, strict=True):
        assert float(torch.corrcoef(torch.stack([found, truth]))[0, 1]) > 0.85


def test_the_curvature_may_come_from_elsewhere(tmp_path, monkeypatch):
    task, _, train, queries = case("linear")
    half = Dataset(train.examples[::2])
    wanted = attribute(task, train, queries, fit_on=half)
    assert any(f"{len(half)} examples" in note for note in wanted.notes)
    spread = attribute(task, train, queries, fit_on=4)
    assert any("4 examples" in note for note in spread.notes)
    found = attribute(task, train, queries, fit_on=half, factors=tmp_path)
    assert torch.equal(found.scores, wanted.scores)
    for module in ("kfac", "ekfac"):
        monkeypatch.setattr(f"whence.curvature.{module}.capture", None)
    again = attribute(task, train, queries, fit_on=half, factors=tmp_path, relative_damping=0.5)
    assert not torch.equal(again.scores, wanted.scores) and again.method == "ekfac, damping 0.5 x mean"
    for wrong in (0, len(train) + 1):
        with pytest.raises(BadInput, match=f"found fit_on={wrong}; needed 1 to {len(train)} training examples"):
            attribute(task, train, queries, fit_on=wrong)


def test_damping_is_chosen_and_told(capsys):
    task, _, train, queries = case("linear")
    table = whence.attribute(task, train, queries)
    assert table.method == "ekfac, default damping"
    assert table.notes[1:3] == (
        "all labels, weighted, 11 examples",
        "damping 0.1 x mean eigenvalue, the default of Kronecker-factored curvature",
    )
    assert table.unit == task.unit
    told = capsys.readouterr().err
    assert "tracking" in told and "damping 0.1" in told
    task.recipe = whence.Recipe("sgd", 50.0)
    known = whence.attribute(task, train, queries, method="pcg", runtime=QUIET)
    assert known.method == "pcg, recipe damping" and "damping 0.02 from the training recipe" in known.notes[2]
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", ["linear", "gpt2"])
def test_a_sweep_is_one_table_per_damping(name):
    task, _, train, queries = case(name)
    found = whence.pipeline.damping_sweep(
        task,
        train,
        queries,
        [1.0, 1e-3, 1e-2],
        method=whence.EKFAC(fit=whence.FitConfig(samples=1)),
        runtime=whence.Runtime(batch_positions=BATCH, quiet=True),
    )
    assert list(found.tables) == [1e-3, 1e-2, 1.0] and len(found.agreement) == 2
    tables = [attribute(task, train, queries, relative_damping=value) for value in found.tables]
    for table, wanted in zip(found.tables.values(), tables, strict=True):
        close(table.scores, wanted.scores)
        assert (table.method, table.query_ids, table.train_ids) == (wanted.method, wanted.query_ids, wanted.train_ids)
    for agreement, left, right in zip(found.agreement, tables, tables[1:], strict=False):
        each = [spearmanr(a, b).statistic for a, b in zip(left.scores, right.scores, strict=True)]
        assert agreement == pytest.approx(sum(each) / len(each))
    for wrong in ([], [0.1, 0.1]):
        with pytest.raises(BadInput, match="needed different dampings, and a method with curvature"):
            whence.pipeline.damping_sweep(task, train, queries, wrong, runtime=QUIET)
    with pytest.raises(BadInput, match=r"found relative_dampings=\[0.1\] for grad-dot-exact"):
        whence.pipeline.damping_sweep(task, train, queries, [0.1], method="grad-dot-exact", runtime=QUIET)


def test_settings_without_an_effect_are_refused():
    task, _, train, queries = case("linear")
    with pytest.raises(UnknownOption, match="unknown method 'ek'; needed one of: arnoldi, astra, astra-source, cg"):
        whence.attribute(task, train, queries, method="ek", runtime=QUIET)
    with pytest.raises(UnknownOption, match="normalize='l2'; needed one of: cosine, relatif, theta-relatif"):
        whence.attribute(task, train, queries, method=whence.EKFAC(normalize="l2"), runtime=QUIET)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="relative_damping for grad-dot-exact; needed what it takes: normalize, query_rank"):
        whence.attribute(task, train, queries, method=settings_of(method="grad-dot-exact", relative_damping=0.1), runtime=QUIET)
    for option in ({"labels": "sampled"}, {"samples": 1}, {"seed": 1}, {"factors": "x"}, {"fit_on": 3}, {"sharing": "reduce"}):
        with pytest.raises(BadInput, match="for grad-dot-exact; needed what it takes: normalize, query_rank"):
            whence.attribute(task, train, queries, **keywords_of(method="grad-dot-exact", **option))
    with pytest.raises(BadInput, match="found tokens_of with 'x'; needed ids of training examples"):
        whence.attribute(task, train, queries, tokens_of=["x"], runtime=QUIET)
    with pytest.raises(BadInput, match="found query_rank=0 for ekfac; needed a positive number"):
        whence.attribute(task, train, queries, method=whence.EKFAC(query_rank=0), runtime=QUIET)


def test_both_sides_are_checked_first():
    task, _, train, queries = case("linear")

    def mean(model, batch):
        return model(batch[0]).mean()

    custom = whence.Custom(task.model, lambda model, batch: model(batch[0])[:, 0], measure=mean)
    rows = custom.prepare([(torch.randn(4, 6).double(), 0) for _ in range(4)])
    with pytest.raises(BadInput, match="a measurement of shape"):
        whence.attribute(custom, rows, rows, method="grad-dot-exact", runtime=QUIET)


def test_a_score_that_is_not_finite_is_named(monkeypatch):
    task, _, train, queries = case("linear")

    def broken(task, plan, batch, consume, **kwargs):
        def spoil(index, pair):
            pair.outputs.values_BTN[1, 0, 0] = float("inf")
            consume(index, pair)

        return capture(task, plan, batch, spoil, **kwargs)

    monkeypatch.setattr("whence.score.exact.capture", broken)
    with pytest.raises(NonFinite, match="found a NaN or infinite score through 'body.0.weight' of the example '4'"):
        whence.attribute(task, train, queries, runtime=QUIET)
    with pytest.raises(NonFinite, match="found a NaN or infinite gradient norm of the example '4'"):
        whence.self_influence(task, train, runtime=QUIET)


def test_a_damping_below_rounding_is_raised_and_told():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    task = whence.Classification(network)
    train = task.prepare([(torch.randn(4), place % 3) for place in range(20)])
    told = "is raised to what rounding adds to their eigenvalues"
    assert not any(told in note for note in attribute(task, train, train).notes)
    notes = attribute(task, train, train, relative_damping=1e-30).notes
    assert any(note.startswith("damping of 2 units ('0.weight' first)") and note.endswith(told) for note in notes), notes
