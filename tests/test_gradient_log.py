"""Gradients logged while training: equal to captured ones where weights stand still, and training as it would be without."""

import pytest
import torch
from torch import nn

import whence
from tests import zoo
from tests.settings import QUIET, keywords_of
from whence.capture import plan_units
from whence.curvature.kfac import FitRun, fit_factors, prepare_fit
from whence.errors import BadInput, NonFinite, StoreMismatch, Unsupported
from whence.progress import meter
from whence.settings import FitConfig
from whence.store import read_tensors


class Words(nn.Module):
    """An embedding, a norm, an in-place layer, and a layer used twice."""

    def __init__(self):
        super().__init__()
        self.table, self.norm = nn.Embedding(7, 6), nn.LayerNorm(6)
        self.layer, self.again, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids):
        hidden = self.layer(self.norm(self.table(ids)))
        hidden += 1
        hidden = torch.relu_(self.again(torch.tanh(self.again(hidden))))
        return self.head(hidden.mean(1))


def problem(seed=0, count=20):
    torch.manual_seed(seed)
    model = Words().double()
    generator = torch.Generator().manual_seed(1)
    records = [(torch.randint(7, (5,), generator=generator), number % 3) for number in range(count)]
    return model, whence.Classification(model), records


def epochs(model, records, optimizer, log=None, *, count=1, size=4, reduction="mean", pieces=1, **given):
    """Plain training; with a log it watches."""
    for epoch in range(count):
        order = torch.randperm(len(records), generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(size * pieces):
            optimizer.zero_grad()
            for piece in batch.split(size):
                inputs = torch.stack([records[one][0] for one in piece])
                labels = torch.tensor([records[one][1] for one in piece])

                def backward(inputs=inputs, labels=labels):
                    (nn.functional.cross_entropy(model(inputs), labels, reduction=reduction) / pieces).backward()

                if log is None:
                    backward()
                    continue
                with log.batch(piece, divided_by=given.get("divided_by")):
                    backward()
            optimizer.step()


def rows_of(store):
    return {name: torch.cat([part[name] for _, part in store.shards()]) for _, part in store.shards() for name in part}


@pytest.mark.parametrize("method", ["logra", "factgrass", "lorif", "grad-cos"])
@pytest.mark.parametrize("scale", [{}, {"reduction": "sum", "divided_by": 1}, {"pieces": 2, "divided_by": 8.0, "size": 4}])
def test_where_the_learning_rate_is_0_the_store_is_the_one_that_is_built(tmp_path, method, scale):
    model, task, records = problem(count=24)
    options = {"method": method, "rank": 2, "dtype": "float64"}
    built = whence.build(
        task,
        records,
        tmp_path / "built",
        config=whence.BuildConfig(batch_positions=64, **options),
        runtime=QUIET,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    log = whence.pipeline.GradientLog(
        tmp_path / "logged", task, records, quiet=True, config=whence.BuildConfig(batch_positions=64, **options)
    )
    epochs(model, records, optimizer, log, count=2, **scale)
    logged = log.finish()
    assert logged.ids() == built.ids() and logged.blueprint.model == built.blueprint.model
    mine, theirs = rows_of(logged), rows_of(built)
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-10, atol=1e-11 * float(value.abs().max()))
    a, b = (whence.score_table(store, task, records[:3], runtime=QUIET) for store in (logged, built))
    torch.testing.assert_close(a.scores, b.scores, rtol=1e-7, atol=1e-9)
    assert any("logged while training" in note for note in a.notes) and not any("logged" in note for note in b.notes)
    assert not (tmp_path / "logged" / "logged").exists() and logged.bad_files() == {}


@pytest.mark.parametrize("name", ["images", "twice", "bottleneck"])
def test_other_layers(tmp_path, name):
    cases = {case.__name__: case for case in (zoo.Twice, zoo.Bottleneck)}
    torch.manual_seed(0)
    if name == "images":
        model = zoo.Images(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 3))).double()
        inputs = torch.randn(12, 2, 6, 6, dtype=torch.float64)
    else:
        model, inputs = cases[name.capitalize()]().double(), torch.randn(12, 4, 6, dtype=torch.float64)
    task = whence.Classification(model)
    records = [(one, number % 3) for number, one in enumerate(inputs)]
    built = whence.build(
        task, records, tmp_path / "built", config=whence.BuildConfig(method="logra", rank=2, dtype="float64"), runtime=QUIET
    )
    log = whence.pipeline.GradientLog(
        tmp_path / "logged", task, records, quiet=True, config=whence.BuildConfig(method="logra", rank=2, dtype="float64")
    )
    epochs(model, records, torch.optim.SGD(model.parameters(), lr=0.0), log)
    mine, theirs = rows_of(log.finish()), rows_of(built)
    for key, value in theirs.items():
        torch.testing.assert_close(mine[key], value, rtol=1e-10, atol=1e-12)


def test_training_is_as_it_would_be_and_rows_are_of_their_step(tmp_path):
    plain, _, records = problem()
    epochs(plain, records, torch.optim.SGD(plain.parameters(), lr=0.5), count=2)
    model, task, _ = problem()
    log = whence.pipeline.GradientLog(
        tmp_path / "log", task, records, quiet=True, config=whence.BuildConfig(method="logra", rank=2, dtype="float64")
    )
    epochs(model, records, torch.optim.SGD(model.parameters(), lr=0.5), log, count=2)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    logged = rows_of(log.finish())["slab.0"]

    other, again, _ = problem()  # the weights at each step of the last epoch, and plain builds there
    optimizer = torch.optim.SGD(other.parameters(), lr=0.5)
    epochs(other, records, optimizer)
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(1))
    for number, batch in enumerate(order.split(4)):
        built = whence.build(
            again,
            records,
            tmp_path / f"at-{number}",
            config=whence.BuildConfig(method="logra", rank=2, dtype="float64"),
            runtime=QUIET,
        )
        torch.testing.assert_close(logged[batch], rows_of(built)["slab.0"][batch], rtol=1e-9, atol=1e-12)
        optimizer.zero_grad()
        inputs = torch.stack([records[one][0] for one in batch])
        nn.functional.cross_entropy(other(inputs), torch.tensor([records[one][1] for one in batch])).backward()
        optimizer.step()


def test_factors_are_those_of_a_fit(tmp_path):
    model, task, records = problem()
    log = whence.pipeline.GradientLog(tmp_path / "log", task, records, factors=tmp_path / "factors", quiet=True)
    epochs(model, records, torch.optim.SGD(model.parameters(), lr=0.0), log, count=3)
    log.finish()
    train = task.prepare(records)
    fit = prepare_fit(task, plan_units(task), train, FitConfig(labels="dataset"), FitRun(max_positions=64, quiet=True))
    with meter("factors", len(train), quiet=True) as progress:
        wanted = fit_factors(fit, progress)
    found = read_tensors(tmp_path / "factors" / "factors.safetensors")
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)
    options = {"labels": "dataset", "method": "kfac"}
    mine = whence.attribute(task, train, records[:2], **keywords_of(factors=tmp_path / "factors", **options))
    theirs = whence.attribute(task, train, records[:2], **keywords_of(**options))
    torch.testing.assert_close(mine.scores, theirs.scores, rtol=1e-6, atol=1e-9)


def test_a_stopped_log_goes_on(tmp_path):
    model, task, records = problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    log = whence.pipeline.GradientLog(tmp_path / "log", task, records, quiet=True)
    epochs(model, records[:10], optimizer, log)
    with pytest.raises(BadInput, match="found another build writing to .*logged; needed one at a time"):
        whence.pipeline.GradientLog(tmp_path / "log", task, records, quiet=True)
    log._lock.close()  # what the system does when a process is killed
    with pytest.raises(StoreMismatch, match="found a log with another (blueprint|data)"):
        whence.pipeline.GradientLog(
            tmp_path / "log", task, records, quiet=True, config=whence.BuildConfig(method="logra", rank=3)
        )
    log = whence.pipeline.GradientLog(tmp_path / "log", task, records, quiet=True)
    with log.batch([15]):
        nn.functional.cross_entropy(model(records[15][0][None]), torch.tensor([records[15][1]])).backward()
    store = log.finish()
    assert store.ids() == (*map(str, range(10)), "15")
    with pytest.raises(BadInput, match="found a finished store in .*; needed a folder of its own for every log"):
        whence.pipeline.GradientLog(tmp_path / "log", task, records, quiet=True)


def test_what_cannot_be_logged_is_told(tmp_path):
    model, task, records = problem()
    for method in ("aligned", "logra-pca", "trak", "trackstar", "grass"):
        with pytest.raises(BadInput, match=f"found method {method}, which learns from the data before it stores|found method"):
            whence.pipeline.GradientLog(tmp_path / "a", task, records, config=whence.BuildConfig(method=method))
    with pytest.raises(Unsupported, match="found a compiled model; needed layers that can be watched"):
        whence.pipeline.GradientLog(tmp_path / "a", whence.Classification(torch.compile(model)), records)
    normed = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    with pytest.raises(Unsupported, match="found a BatchNorm1d, whose statistics mix the examples of a batch; needed a grad"):
        whence.pipeline.GradientLog(tmp_path / "a", whence.Classification(normed), [(torch.randn(4), 0)])
    torch.manual_seed(0)
    scaled = whence.Classification(zoo.Scaled().double(), functional=True)
    with pytest.raises(Unsupported, match="found 'gain', a parameter that no layer rule covers; needed layers that"):
        whence.pipeline.GradientLog(tmp_path / "a", scaled, [(torch.randn(4, 6).double(), 0)])
    log = whence.pipeline.GradientLog(tmp_path / "b", task, records, quiet=True)
    with pytest.raises(BadInput, match="found a log without a batch; needed at least one"):
        log.finish()
    with (
        pytest.raises(BadInput, match="found a batch of 1 examples with divided_by=None, one of them 'x', not in the training"),
        log.batch(["x"]),
    ):
        pass
    with pytest.raises(BadInput, match="found '5' as the ids of a batch; needed several"), log.batch(5):
        pass
    with (
        pytest.raises(BadInput, match="found a batch of 1 examples with divided_by=-1; needed ids such as '0'"),
        log.batch([0], divided_by=-1),
    ):
        pass
    with (
        pytest.raises(BadInput, match="found a batch without a backward pass through the model; needed loss.backward"),
        log.batch([0]),
    ):
        pass
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        BadInput, match=r"found a logged gradient of '\d+' that is not that of .* \(along it, 0.25 times as long"
    ):
        epochs(model, records, optimizer, log, divided_by=1)
    with pytest.raises(BadInput, match="found a logged gradient of '1' that is not that of the task's loss"), log.batch([1]):
        nn.functional.cross_entropy(model(records[0][0][None]), torch.tensor([records[0][1]])).backward()
    with pytest.raises(NonFinite, match="found a gradient of the example '0' that bfloat16 cannot hold"):
        log._is_checked = True
        with log.batch([0]):
            (model(records[0][0][None]).sum() * float("nan")).backward()


def test_under_autocast_and_with_dropout(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    task = whence.Classification(model)
    records = [(torch.randn(6), number % 3) for number in range(12)]
    log = whence.pipeline.GradientLog(
        tmp_path / "half",
        task,
        records,
        quiet=True,
        config=whence.BuildConfig(method="logra", autocast="bfloat16", dtype="float32"),
    )
    inputs, labels = torch.stack([one for one, _ in records]), torch.tensor([label for _, label in records])
    with log.batch(range(12)), torch.autocast("cpu", torch.bfloat16):
        nn.functional.cross_entropy(model(inputs).float(), labels).backward()
    mine = rows_of(log.finish())["slab.0"]
    theirs = rows_of(
        whence.build(
            task, records, tmp_path / "whole", config=whence.BuildConfig(method="logra", dtype="float32"), runtime=QUIET
        )
    )["slab.0"]
    assert float((mine - theirs).norm() / theirs.norm()) < 0.02
    model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 3))
    log = whence.pipeline.GradientLog(tmp_path / "dropout", whence.Classification(model), records, quiet=True)
    with log.batch(range(12)):
        nn.functional.cross_entropy(model(inputs), labels).backward()
    assert len(log.finish()) == 12
