"""Captured gradients of model families equal plain autograd's on one example at a time, in float64."""

import math

import pytest
import torch
from torch import nn

import whence
from tests import families
from tests.reference.gradients import dense_gradients, unit_gradients
from tests.test_capture import assert_same_sum, captured
from whence.capture import check_task, plan_units
from whence.curvature import fit_ekfac
from whence.errors import BadInput, Unsupported
from whence.settings import FitConfig


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", families.FAMILIES)
def test_equals_autograd(name):
    if families.FAMILIES[name].hf:
        pytest.importorskip("transformers")
    task, dataset = families.make(name)
    with families.WideArithmetic():
        untouched = check_task(task, plan := plan_units(task), dataset.examples)
        _, found = captured(task, dataset, plan=plan)
        expected = unit_gradients(task, plan, dense_gradients(task, dataset.examples))
    assert {p for unit in plan.units for p in unit.parameters} == task.tracked
    assert math.isfinite(sum(float(rows.square().sum()) for rows in found))
    for unit, actual, wanted in zip(plan.units, found, expected, strict=True):
        assert actual.shape == wanted.shape == (len(dataset), unit.outputs, unit.inputs), unit
        assert_same_sum(actual, wanted, terms=4096)
    assert len(untouched) < len(plan.units) / 2


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("title", families.LAYERS)
def test_every_layer_equals_autograd(title):
    if title.startswith("Hugging Face"):
        pytest.importorskip("transformers")
    task, dataset = families.make_layer(title)
    with families.WideArithmetic():
        plan, found = captured(task, dataset)
        expected = unit_gradients(task, plan, dense_gradients(task, dataset.examples))
        check_task(task, plan, dataset.examples)
    assert {p for unit in plan.units for p in unit.parameters} == task.tracked
    for actual, wanted in zip(found, expected, strict=True):
        assert_same_sum(actual, wanted, terms=4096)


@pytest.mark.parametrize("name", ["t5", "bart", "mpnet", "places"])
def test_curvature_of_what_all_examples_share(name):
    """The trace of the empirical Fisher in EK-FAC's bases is the mean squared length of the gradients, of every unit."""
    if families.FAMILIES[name].hf:
        pytest.importorskip("transformers")
    task, dataset = families.make(name)
    plan = plan_units(task)
    with families.WideArithmetic():
        check_task(task, plan, dataset.examples)
        fitted = fit_ekfac(task, plan, dataset, FitConfig(labels="dataset"), max_positions=100, quiet=True)
        expected = unit_gradients(task, plan, dense_gradients(task, dataset.examples))
    for block, wanted in zip(fitted.blocks, expected, strict=True):
        trace = float(wanted.square().sum()) / len(dataset)
        assert float(block.values_OI.sum()) == pytest.approx(trace, rel=1e-6, abs=1e-12), block.unit


@pytest.mark.parametrize("examples", [3, 4, 8, 12])
def test_places_without_an_axis_for_the_examples_whatever_their_number(examples):
    """Also where there are as many examples as places, or half as many, in the check or later."""
    torch.manual_seed(0)
    task, records = families._by_hand(examples, 8)
    dataset = task.prepare(records)
    plan = plan_units(task)
    check_task(task, plan, dataset.examples)
    for count in (examples, 2, 1):
        some = whence.data.Dataset(dataset.examples[:count])
        _, found = captured(task, some, plan=plan)
        for actual, wanted in zip(found, unit_gradients(task, plan, dense_gradients(task, some.examples)), strict=True):
            assert_same_sum(actual, wanted, terms=4096)


def test_a_label_that_is_looked_up_is_not_taken_for_a_place():
    """Ids of one axis that is that of the examples, beside a gradient that the check finds wrong for another reason."""

    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.label, self.layer = nn.Embedding(5, 4), nn.Linear(4, 3)

        def forward(self, ids):
            return self.layer(torch.tanh(self.label(ids) + self.label.weight.sum(0)))

    task = whence.Classification(Told().double())
    examples = task.prepare([(torch.tensor(number % 5), number % 3) for number in range(6)]).examples
    with pytest.raises(Unsupported, match=r"captured gradient of 'label.weight' that differs"):
        check_task(task, plan := plan_units(task), examples)
    assert not plan.route.bare
    right = whence.Classification(nn.Sequential(nn.Embedding(5, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    dataset = right.prepare([(torch.tensor(number % 5), number % 3) for number in range(6)])
    check_task(right, plan := plan_units(right), dataset.examples)
    assert not plan.route.bare


def test_a_table_of_places_that_does_more_than_look_up_is_not_let_pass():
    class Scaled(nn.Embedding):
        def forward(self, ids):
            return 2.0 * super().forward(ids)

    model = nn.Sequential(Scaled(6, 4), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()
    records = [(torch.randint(6, (2,)), number % 3) for number in range(4)]
    task = whence.Classification(model)
    with pytest.raises(Unsupported, match=r"layer '0', of which it cannot be told which rows .* pass functional=True"):
        check_task(task, plan_units(task), task.prepare(records).examples)
    task = whence.Classification(model, functional=True)
    dataset = task.prepare(records)
    check_task(task, plan := plan_units(task), dataset.examples)
    _, found = captured(task, dataset, plan=plan)
    for actual, wanted in zip(found, unit_gradients(task, plan, dense_gradients(task, dataset.examples)), strict=True):
        assert_same_sum(actual, wanted, terms=4096)


def test_few_parameters_without_a_rule_go_through_the_twin_unasked():
    """And the answer says so; many are refused."""
    pytest.importorskip("transformers")
    small = {**families._VIT, "hidden_size": 32, "intermediate_size": 128, "image_size": 4, "patch_size": 4}
    task, records = families._pixels("ViT", small, 4)()
    dataset = task.prepare(records)
    plan = plan_units(task)
    names = ("vit.embeddings.cls_token", "vit.embeddings.position_embeddings")
    assert plan.functional == names == plan.coverage.unasked
    assert str(plan.coverage).endswith(f"; in a pass of their own through torch.func, having no layer rule: {', '.join(names)}")
    check_task(task, plan, dataset.examples)
    _, found = captured(task, dataset, plan=plan)
    for actual, wanted in zip(found, unit_gradients(task, plan, dense_gradients(task, dataset.examples)), strict=True):
        assert_same_sum(actual, wanted, terms=4096)
    asked = whence.Classification(task.model, functional=True)
    assert plan_units(asked).coverage.unasked == ()
    narrow, _ = families._pixels("ViT", {**families._VIT, "image_size": 8, "patch_size": 4})()
    with pytest.raises(Unsupported, match=r"2 parameter\(s\) that no layer rule covers"):
        plan_units(narrow)


def test_an_expert_taken_for_an_ordinary_layer_is_refused():
    """By the check, or, where its two examples happen to be routed alike, by the first batch."""
    found = {"check": 0, "batch": 0}
    for seed in range(20):
        torch.manual_seed(seed)
        task = whence.Classification(families.Experts().double())
        dataset = task.prepare([(torch.randn(5, 6, dtype=torch.float64), number % 3) for number in range(7)])
        way_out = pytest.raises(Unsupported, match="pass functional=True")
        try:
            check_task(task, plan_units(task), dataset.examples)
        except Unsupported:
            found["check"] += 1
        else:
            found["batch"] += 1
            with way_out:
                captured(task, dataset)
    assert found["check"] > found["batch"]


def test_experts_that_are_not_called_have_no_gradient():
    class Sparse(families.Experts):
        def forward(self, inputs):
            flat = torch.tanh(self.first(inputs)).flatten(0, 1)
            weights, chosen = self.router(flat).softmax(-1).topk(1)
            mixed = torch.zeros_like(flat)
            for number in chosen.unique().tolist():
                rows = torch.where(chosen[:, 0] == number)[0]
                mixed = mixed.index_add(0, rows, self.experts[number](flat[rows]) * weights[rows])
            return self.head((flat + mixed).view(*inputs.shape[:2], -1)).mean(1)

    torch.manual_seed(0)
    task = whence.Classification(Sparse().double(), functional=["experts.*"])
    dataset = task.prepare([(torch.randn(2, 6, dtype=torch.float64), number % 3) for number in range(4)])
    plan, found = captured(task, dataset)
    expected = unit_gradients(task, plan, dense_gradients(task, dataset.examples))
    for actual, wanted in zip(found, expected, strict=True):
        assert_same_sum(actual, wanted, terms=4096)
    unused = [
        row for unit, rows in zip(plan.units, found, strict=True) if "experts" in unit.name for row in rows if not row.any()
    ]
    assert unused


def test_a_batch_norm_without_statistics_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)).double()
    with pytest.raises(Unsupported, match="the batch norm '1' without running statistics"):
        plan_units(whence.Classification(model))
    # Two positions are a batch, one example is none of its own.
    pooled = nn.Sequential(nn.Conv1d(2, 4, 1), nn.BatchNorm1d(4, track_running_stats=False), nn.Flatten(), nn.Linear(12, 3))
    task = whence.Classification(pooled.double(), functional=True)
    examples = task.prepare([(torch.randn(2, 3, dtype=torch.float64), number % 3) for number in range(4)]).examples
    with pytest.raises(whence.WhenceError, match="without running statistics"):
        check_task(task, plan_units(task), examples)


def test_an_expert_with_one_position():
    class Lonely(families.Experts):
        def forward(self, inputs):
            hidden = torch.tanh(self.first(inputs))
            return self.head(hidden.index_add(0, torch.tensor([1]), self.experts[0](hidden[1:])))

    task = whence.Classification(Lonely().double(), track=["first.*", "head.*", "experts.0.*"])
    examples = task.prepare([(torch.randn(6, dtype=torch.float64), number % 2) for number in range(2)]).examples
    with pytest.raises(BadInput, match="a model or a loss that fails on the example '0' alone"):
        check_task(task, plan_units(task), examples)


def test_patterns_send_known_layers_through_the_twin():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    task = whence.Classification(model, functional=["2.*"])
    plan = plan_units(task)
    assert plan.functional == ("2.weight", "2.bias") and [layer.name for layer in plan.layers] == ["0"]
    with pytest.raises(whence.WhenceError, match="pattern 'nope', which matches no parameter"):
        whence.Classification(model, functional=["nope"])


def test_a_tied_weight_that_is_also_used_alone_is_caught():
    class Reused(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
            self.matrix = self.layer.weight

        def forward(self, inputs):
            return self.head(torch.tanh(self.layer(inputs)) @ self.matrix)

    examples = [(torch.randn(4, dtype=torch.float64), number % 2) for number in range(4)]
    task = whence.Classification(Reused().double())
    with pytest.raises(Unsupported, match=r"captured gradient of 'matrix' that differs.*pass functional=True"):
        check_task(task, plan_units(task), task.prepare(examples).examples)
    task = whence.Classification(task.model, functional=["matrix"])
    dataset = task.prepare(examples)
    plan, found = captured(task, dataset)
    for actual, wanted in zip(found, unit_gradients(task, plan, dense_gradients(task, dataset.examples)), strict=True):
        assert_same_sum(actual, wanted, terms=4096)


def test_patterns_do_not_let_unknown_layers_pass():
    task = whence.Classification(families.TokenViT().double(), functional=["block.*"])
    with pytest.raises(
        Unsupported,
        match=r"2 parameter\(s\) that no layer rule covers, the first 'first' of a TokenViT.*add \['first', 'places'\] to functional",
    ):
        plan_units(task)
