"""Measurements of one's own, tables of numbers, several losses, and losses that couple a batch."""

import numpy as np
import pytest
import torch
from torch import nn

import whence
from tests import families
from tests.pages import run_blocks
from tests.reference.gradients import dense_gradients, unit_gradients
from tests.settings import QUIET
from tests.test_capture import assert_same_sum, captured
from whence.capture import check_task, plan_units
from whence.errors import BadInput, UnknownOption
from whence.load import load_records


def head_start(model, batch):
    """How much more a classifier gives the first class than the second."""
    logits = model(batch["inputs"]["inputs"])
    return logits[:, 0] - logits[:, 1]


def first_token(model, batch):
    """The logit of token 7 after the first token."""
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0, 7]


def table(count=6, classes=True):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return [(row, number % 2 if classes else row.sum().sin()) for number, row in enumerate(rows)]


@pytest.mark.parametrize("name", ["classification", "regression", "prediction", "custom", "causal_lm", "two heads"])
def test_a_measurement_is_one_function(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    if name == "classification":
        task = whence.Classification(model, measure=head_start, unit="logits")
        dataset = task.prepare(table())
    elif name in ("regression", "prediction"):
        measure = (lambda model, batch: model(batch["inputs"]["inputs"])[:, 0].exp()) if name == "regression" else "prediction"
        task = whence.Regression(model[:2], measure=measure)
        dataset = task.prepare([(row, torch.zeros(5, dtype=torch.float64)) for row, _ in table()])
    elif name == "custom":
        task = whence.Custom(model, lambda m, x: m(x).square().sum(1), measure=lambda m, x: m(x)[:, 0] * m(x)[:, 1])
        dataset = task.prepare([row for row, _ in table()])
    elif name == "causal_lm":
        pytest.importorskip("transformers")
        made, dataset = families.make("gpt_neox")
        task = whence.CausalLM(made.model, None, measure=first_token, unit="logits")
    else:
        made, dataset = families.make("two_heads")
        # One number out of both heads.
        task = whence.Custom(
            made.model, made.loss, measure=lambda m, batch: m(batch["inputs"])[0][:, 2] * m(batch["inputs"])[1][:, 1]
        )
    plan, found = captured(task, dataset, objective="measurement")
    for actual, wanted in zip(
        found, unit_gradients(task, plan, dense_gradients(task, dataset.examples, "measurement")), strict=True
    ):
        assert_same_sum(actual, wanted, terms=4096)
    check_task(task, plan, dataset.examples, objective="measurement")
    if name in ("classification", "causal_lm"):
        scores = whence.attribute(task, dataset, dataset, method="kfac", runtime=QUIET)
        assert scores.unit == "logits" and torch.isfinite(scores.scores).all()


def test_units_of_measurements():
    layer = nn.Linear(4, 2)
    assert whence.Classification(layer, measure=head_start).unit == "units of the measurement"
    assert whence.Regression(layer, measure="prediction").unit == "units of the prediction"
    with pytest.raises(BadInput, match="found unit='x' for measure='margin'; needed no unit, since that is in log-odds"):
        whence.Classification(layer, measure="margin", unit="x")
    with pytest.raises(
        UnknownOption, match="measure='nope'; needed one of: loss, prediction; or a function of model and batch"
    ):
        whence.Regression(layer, measure="nope")


def test_a_measurement_that_sums_up_is_refused():
    task = whence.Classification(nn.Linear(4, 2).double(), measure=lambda model, batch: head_start(model, batch).sum())
    with pytest.raises(BadInput, match=r"a measurement of shape \(\) for \d examples"):
        check_task(task, plan_units(task), task.prepare(table()).examples, objective="measurement")


def contrastive(model, batch):
    """In-batch negatives (van den Oord et al. 2018, equation 4): every other second sentence of the batch is a wrong answer."""
    left, right = (nn.functional.normalize(model(side), dim=-1) for side in batch)
    return nn.functional.cross_entropy(5 * left @ right.T, torch.arange(len(left)), reduction="none")


def apart(model, batch):
    """The same with negatives that each record brings along."""
    left, right, wrong = (nn.functional.normalize(model(side), dim=-1) for side in batch)
    logits = 5 * torch.cat([(left * right).sum(1, keepdim=True), torch.einsum("bd,bnd->bn", left, wrong)], 1)
    return nn.functional.cross_entropy(logits, torch.zeros(len(left), dtype=torch.long), reduction="none")


def test_a_contrastive_loss_is_refused_and_one_with_negatives_of_its_own_is_not():
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    vectors = torch.randn(8, 6, 4, dtype=torch.float64)
    coupled = whence.Custom(model, contrastive)
    pairs = [(row[0], row[1]) for row in vectors]
    with pytest.raises(BadInput, match=r"depends on the other examples of its batch.*in-batch negatives"):
        whence.attribute(coupled, pairs, pairs[:1], method="grad-dot-exact", runtime=QUIET)
    task = whence.Custom(model, apart)
    dataset = task.prepare([(row[0], row[1], row[2:]) for row in vectors])
    plan, found = captured(task, dataset)
    for actual, wanted in zip(found, unit_gradients(task, plan, dense_gradients(task, dataset.examples)), strict=True):
        assert_same_sum(actual, wanted, terms=4096)
    check_task(task, plan, dataset.examples)


def test_arrays_as_records(tmp_path):
    rows, labels = np.arange(6.0).reshape(3, 2), np.array([0, 1, 1])
    records = whence.load_arrays(rows, labels, ids=["a", "b", "c"])
    task = whence.Classification(nn.Linear(2, 2))
    dataset = task.prepare(records)
    assert dataset.ids == ("a", "b", "c") and task.collate(dataset.examples)["target"].tolist() == [0, 1, 1]
    assert task.collate(dataset.examples)["inputs"]["inputs"].tolist() == rows.tolist()
    real = whence.load_arrays(rows.astype(int), labels / 2)
    batch = whence.Regression(nn.Linear(2, 1)).prepare(real)
    assert batch.ids == ("0", "1", "2") and batch.examples[1].fields["target"] == 0.5
    names = whence.Classification(nn.Linear(2, 2), labels=["no", "yes"])
    assert names.prepare(whence.load_arrays(rows, np.array(["yes", "no", "yes"]))).examples[0].fields["target"] == 1
    np.savez(tmp_path / "train.npz", X=rows, y=labels, ids=["a", "b", "c"])
    assert task.prepare(load_records(str(tmp_path / "train.npz"))).fingerprint == dataset.fingerprint


def test_a_data_frame_brings_its_ids():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"age": [30, 40], "size": [1.5, 1.6]}, index=["ann", "bob"])
    records = whence.load_arrays(frame, pandas.Series([True, False]))
    assert [record["id"] for record in records] == ["ann", "bob"] and records[0]["label"] == 1
    with pytest.raises(BadInput, match="a table and targets with the same index in another order"):
        whence.load_arrays(frame, pandas.Series([True, False], index=["bob", "ann"]))
    with pytest.raises(BadInput, match="a table of type object; needed numbers only"):
        whence.load_arrays(frame.assign(name=["x", "y"]), [0, 1])


def test_arrays_that_do_not_fit(tmp_path):
    for X, y, says in (
        ([[1.0], [1.0, 2.0]], [0, 1], "a X that is no array"),
        (np.ma.masked_array(np.zeros((2, 2)), np.eye(2)), [0, 1], "masked entries in X"),
        (3.0, [0, 1], "a X without rows"),
    ):
        with pytest.raises(BadInput, match=f"found {says}"):
            whence.load_arrays(X, y)
    with pytest.raises(BadInput, match="found one string as ids"):
        whence.load_arrays(np.zeros((3, 2)), [0, 1, 1], ids="abc")
    assert len(whence.load_arrays(torch.zeros(3, 2, requires_grad=True), torch.tensor([0, 1, 1]))) == 3
    with pytest.raises(BadInput, match="found 3 rows, 2 targets and 3 ids"):
        whence.load_arrays(np.zeros((3, 2)), [0, 1])
    np.savez(tmp_path / "train.npz", inputs=np.zeros((3, 2)))
    with pytest.raises(BadInput, match=r"cannot be read \(arrays inputs, not X and y\)"):
        load_records(str(tmp_path / "train.npz"))
    (tmp_path / "no.npz").write_bytes(b"no")
    with pytest.raises(BadInput, match="no.npz, which cannot be read"):
        load_records(str(tmp_path / "no.npz"))


def test_the_page_on_all_this_runs(tmp_path, monkeypatch):
    """The python blocks of docs/beyond_text.md, one after the other."""
    pytest.importorskip("PIL")
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    names = run_blocks("docs/beyond_text.md", 5)
    assert names["hits"].query_images and names["table"].unit == "logits"
