"""Captured gradients equal plain autograd's, for every kind of layer, in float64."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import whence
from tests import zoo
from tests.reference.gradients import dense_gradients, unit_gradients
from tests.settings import QUIET
from whence.capture import capture, check_task, frozen, plan_units
from whence.errors import BadInput, NonFinite, Unsupported


def run(task, plan, examples, consume, **options):
    """`capture` of some examples."""

    def alone(place):
        return task.collate([examples[place]])

    return capture(task, plan, task.collate(examples), consume, num_examples=len(examples), alone=alone, **options)


def captured(task, dataset, objective="loss", chunk=None, plan=None):
    plan = plan or plan_units(task)
    rows = []
    examples = list(dataset.examples)
    for start in range(0, len(examples), chunk or len(examples)):
        part = examples[start : start + (chunk or len(examples))]
        sums = [0.0] * len(plan.units)

        def consume(index, pair, sums=sums):
            sums[index] = sums[index] + pair.gradient()

        run(task, plan, part, consume, objective=objective)
        rows.append(sums)
    return plan, [torch.cat([sums[index] for sums in rows]) for index in range(len(plan.units))]


def assert_same_sum(actual, expected, terms, name=""):
    """Two orders of one sum of `terms` products may differ by rounding only."""
    if name == "llama":  # its norm layers compute in float32 whatever the weights are
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)
        return
    scale = max(expected.abs().max().item(), 1e-3)
    atol = 64 * torch.finfo(expected.dtype).eps * math.sqrt(terms) * scale
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad", "ignore:Using padding='same'")
@pytest.mark.parametrize("name", zoo.NAMES)
def test_equals_autograd(name):
    task, dataset = zoo.make(name)
    plan, found = captured(task, dataset)
    expected = unit_gradients(task, plan, dense_gradients(task, dataset.examples))
    assert {p for unit in plan.units for p in unit.parameters} == task.tracked
    for unit, actual, wanted in zip(plan.units, found, expected, strict=True):
        assert actual.shape == wanted.shape == (len(dataset), unit.outputs, unit.inputs), unit
        assert_same_sum(actual, wanted, terms=4096, name=name)
    if name == "llama":
        task.model.float()
    assert check_task(task, plan, dataset.examples) == [
        unit.name for unit, wanted in zip(plan.units, expected, strict=True) if not bool(wanted.any())
    ]


@pytest.mark.parametrize("name", ["linear", "gpt2", "conv2d", "lone_parameter"])
def test_batch_size_and_order_change_nothing(name):
    task, dataset = zoo.make(name)
    _, together = captured(task, dataset)
    for chunk in (1, 2):
        _, parts = captured(task, dataset, chunk=chunk)
        for one, other in zip(together, parts, strict=True):
            assert_same_sum(other, one, terms=4096)


@pytest.mark.parametrize("name", ["linear", "gpt2", "bert", "lone_parameter"])
def test_the_model_is_left_as_it_was(name):
    task, dataset = zoo.make(name)
    task.model.train()
    first = next(task.model.parameters())
    first.requires_grad_(False)
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    captured(task, dataset)
    assert task.model.training and not first.requires_grad
    assert all(parameter.grad is None for parameter in task.model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in task.model.state_dict().items())
    assert not any(module._forward_hooks for module in task.model.modules())


def test_no_weight_gradient_is_computed():
    """Forward and input gradients only: two thirds of a training step's products, a little less for the first layer."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)).double()
    task = whence.Classification(model)
    dataset = task.prepare([(torch.randn(64, dtype=torch.float64), 1) for _ in range(8)])
    plan, batch = plan_units(task), task.collate(dataset.examples)
    layer = 2 * 8 * 64 * 64
    with FlopCounterMode(display=False) as counter:
        capture(task, plan, batch, lambda index, pair: None, num_examples=8)
    assert counter.get_total_flops() == 3 * layer + 2 * layer  # three forward; input gradients of all but the first
    with FlopCounterMode(display=False) as training:
        task.loss(model, batch).sum().backward()
    assert training.get_total_flops() == 3 * layer + 2 * layer + 3 * layer


def test_mixed_precision_is_close():
    torch.manual_seed(0)
    task, dataset = zoo.make("gpt2")
    task.model.float()
    plan = plan_units(task)
    sums = [0.0] * len(plan.units)

    def consume(index, pair):
        sums[index] = sums[index] + pair.gradient().float()

    batch = task.collate(dataset.examples)
    capture(task, plan, batch, consume, num_examples=len(dataset), autocast=torch.bfloat16)
    expected = unit_gradients(task, plan, dense_gradients(task, dataset.examples))
    actual, wanted = (torch.cat([row.flatten(1) for row in rows], 1) for rows in (sums, expected))
    assert torch.nn.functional.cosine_similarity(actual, wanted).min() > 0.99
    assert check_task(task, plan, dataset.examples, autocast=torch.bfloat16) == []


def test_bfloat16_weights():
    task, dataset = zoo.make("gpt2")
    task.model.bfloat16()
    assert check_task(task, plan_units(task), dataset.examples) == []


def test_measurement_of_margin():
    task, dataset = zoo.make("linear")
    margin = whence.Classification(task.model, measure="margin")
    plan, found = captured(margin, dataset, objective="measurement")
    expected = unit_gradients(task, plan, dense_gradients(margin, dataset.examples, "measurement"))
    for actual, wanted in zip(found, expected, strict=True):
        assert_same_sum(actual, wanted, terms=4096)
    batch = task.collate(dataset.examples)
    p = torch.softmax(task.model(batch["inputs"]["inputs"]), -1).gather(1, batch["target"][:, None])[:, 0]
    torch.testing.assert_close(margin.measurement(task.model, batch), (p / (1 - p)).log())


def test_measurement_of_a_language_models_margin():
    """The gradients point where those of the log-probability do, so ranks of documents are the same."""
    task, dataset = zoo.make("gpt2")
    margin = whence.CausalLM(task.model, None, measure="margin")
    plan, found = captured(margin, dataset, objective="measurement")
    expected = unit_gradients(task, plan, dense_gradients(margin, dataset.examples, "measurement"))
    for actual, wanted in zip(found, expected, strict=True):
        assert_same_sum(actual, wanted, terms=4096)
    batch = task.collate(dataset.examples)
    task.model.eval()  # it has dropout
    counts = (batch["labels"][:, 1:] >= 0).sum(1)
    p = (-task.loss(task.model, batch) / counts).exp()
    torch.testing.assert_close(margin.measurement(task.model, batch), counts * (p / (1 - p)).log())
    assert margin.unit == "log-odds of the query's tokens" and margin.highest_measurement is None
    _, plain = captured(task, dataset, objective="measurement")
    flat = [torch.cat([rows.flatten(1) for rows in units], 1) for units in (found, plain)]
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(*flat), torch.ones(len(dataset)).to(flat[0]))


def test_coverage_is_told():
    task, _ = zoo.make("gpt2")
    partial = whence.CausalLM(task.model, None, track=["*mlp*"], ignore=["*h.0*"])
    coverage = plan_units(partial).coverage
    tracked = sum(p.numel() for n, p in task.model.named_parameters() if "h.1.mlp" in n)
    assert coverage.tracked == tracked and "transformer.wte.weight" in coverage.left_out
    assert f"tracking {tracked:,} of" in str(coverage) and "left out: transformer.wte.weight" in str(coverage)


def test_only_trainable_parameters_by_default():
    task, _ = zoo.make("linear")
    task.model.body[0].requires_grad_(False)
    assert whence.Classification(task.model).tracked == {"body.2.weight"}


def test_unsupported_parameter_is_an_error_with_a_way_out():
    task, _ = zoo.make("lone_parameter")
    task.functional = False
    with pytest.raises(
        Unsupported, match=r"found 1 parameter\(s\) that no layer rule covers, the first 'gain'.*functional=True"
    ):
        plan_units(task)


def test_unsupported_embedding():
    task = whence.Classification(nn.Embedding(4, 3, max_norm=1.0))
    with pytest.raises(Unsupported, match="max_norm or scale_grad_by_freq: layer ''"):
        plan_units(task)


class Bounded(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.bag, self.head = nn.Embedding(9, 4, max_norm=1.0), nn.EmbeddingBag(9, 4, max_norm=0.5), nn.Linear(4, 3)

    def forward(self, ids):
        return self.head(self.table(ids).mean(1) + self.bag(ids))


def test_tables_with_max_norm_that_are_left_out_are_read_and_never_written_to(tmp_path):
    torch.manual_seed(0)
    model, records = Bounded().double(), [(torch.randint(9, (4,)), number % 3) for number in range(6)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task = whence.Classification(model, ignore=["table.*", "bag.*"])
    dataset = task.prepare(records)
    store = whence.build(
        task,
        dataset,
        tmp_path / "store",
        config=whence.BuildConfig(method="grad-dot", rank=100, dtype="float64"),
        runtime=QUIET,
    )
    found = whence.score_table(store, task, dataset, runtime=QUIET).scores
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    rows = torch.cat([dense_gradients(task, dataset.examples)[name].flatten(1) for name in ("head.weight", "head.bias")], 1)
    torch.testing.assert_close(found, rows @ rows.T / 6)


def test_weight_used_outside_its_layer_is_caught():
    class Sneaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, inputs):
            return self.second(torch.tanh(nn.functional.linear(self.first(inputs), self.first.weight))).mean(1)

    _, dataset = zoo.make("linear")
    task = whence.Classification(Sneaky().double())
    with pytest.raises(Unsupported, match="captured gradient of 'first.weight' that differs from autograd's"):
        check_task(task, plan_units(task), dataset.examples)


def test_examples_mixed_up_by_a_layer():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, inputs):
            return self.second(self.first(inputs.flatten(0, 1)[:7])).mean() + inputs.new_zeros(len(inputs), 3)

    _, dataset = zoo.make("linear")
    task = whence.Classification(Pooled().double())
    with pytest.raises(Unsupported, match=r"layer 'second' with 7 leading entries for a batch of \d examples"):
        check_task(task, plan_units(task), dataset.examples)


def _custom(model, loss):
    task = whence.Custom(model.double(), loss)
    rows = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return task, task.prepare(list(rows)).examples


@pytest.mark.parametrize(
    ("loss", "kind", "text"),
    [
        (lambda m, x: m(x).square().mean(), BadInput, r"loss of shape \(\) for \d examples; .*reduction='none'"),
        (lambda m, x: m(x).square().sum(1) / len(x), BadInput, "divided by the number of examples"),
        (lambda m, x: (m(x) - m(x).mean(0)).square().sum(1), BadInput, "depends on the other examples of its batch"),
        (lambda m, x: nn.functional.dropout(m(x)).square().sum(1), BadInput, "changes from call to call"),
        (lambda m, x: m(x).square().sum(1) * torch.nan, NonFinite, r"loss of nan for the example '\d'"),
        (lambda m, x: m(x).detach().square().sum(1), Unsupported, "does not depend on any tracked layer"),
    ],
)
def test_wrong_losses_are_detected(loss, kind, text):
    torch.manual_seed(0)
    task, examples = _custom(nn.Linear(4, 3), loss)
    with pytest.raises(kind, match=text):
        check_task(task, plan_units(task), examples)


def test_batch_norm_in_training_mode_is_detected():
    class Stubborn(nn.BatchNorm1d):
        def forward(self, inputs):
            return nn.functional.batch_norm(inputs, None, None, self.weight, self.bias, training=True)

    model = nn.Sequential(nn.Linear(4, 4), Stubborn(4), nn.Linear(4, 3)).double()
    task = whence.Custom(model, lambda m, x: m(torch.cat([x, x + 1])).square().sum(1)[: len(x)], ignore=["1.*"])
    examples = task.prepare(list(torch.randn(6, 4, dtype=torch.float64))).examples
    with pytest.raises(BadInput, match="depends on the other examples"):
        check_task(task, plan_units(task), examples)


def test_patterns_that_match_nothing():
    with pytest.raises(BadInput, match="pattern 'nope', which matches no parameter"):
        whence.Classification(nn.Linear(2, 2), track=["nope"])
    with pytest.raises(BadInput, match="no parameter to attribute"):
        whence.Classification(nn.Linear(2, 2).requires_grad_(False))


def test_a_layer_may_be_called_by_keyword():
    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 2).double()

        def forward(self, x):
            return self.layer(input=x)

    task = whence.Classification(Named())
    examples = task.prepare([{"x": torch.randn(3, dtype=torch.float64), "label": n % 2} for n in range(4)]).examples
    assert check_task(task, plan_units(task), examples) == []


def test_a_written_out_activation_becomes_one_kernel_for_a_while():
    module = pytest.importorskip("transformers.activations").NewGELUActivation()
    values = torch.linspace(-9, 9, 1001, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad((written_out := module(values)).sum(), values)
    with frozen(module):
        with frozen(module):  # as a check inside a capture
            pass
        found = module(values)
        (slope,) = torch.autograd.grad(found.sum(), values)
    torch.testing.assert_close(found, written_out, rtol=0, atol=1e-14)
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-14)
    assert "Gelu" in type(found.grad_fn).__name__
    assert "forward" not in vars(module)


def _linear_layers():
    conv = pytest.importorskip("transformers.pytorch_utils").Conv1D(5, 7)
    return {"Linear": torch.nn.Linear(7, 5), "Linear without bias": torch.nn.Linear(7, 5, bias=False), "Conv1D": conv}


@pytest.mark.parametrize("name", ["Linear", "Linear without bias", "Conv1D"])
def test_linear_layers_take_the_fastest_product_for_a_while(name):
    torch.manual_seed(0)
    module = _linear_layers()[name]
    inputs, weights = torch.randn(2, 3, 7, requires_grad=True), torch.randn(2, 3, 5)

    def values():
        """Output, slope by the input, and the slope of a square of that: the product is differentiated twice."""
        output = module(inputs)
        (slope,) = torch.autograd.grad((output.sin() * weights).sum(), inputs, create_graph=True)
        (curve,) = torch.autograd.grad(slope.square().sum(), inputs)
        return output, slope, curve

    expected = values()
    with frozen(module):
        found = values()
        assert "_Product" in type(module(inputs).grad_fn).__name__
    assert "forward" not in vars(module) and "_Product" not in type(module(inputs).grad_fn).__name__
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["Linear", "Conv1D"])
def test_calls_that_the_fastest_product_is_not_made_for_go_to_the_layer_itself(name):
    torch.manual_seed(0)
    module, inputs = _linear_layers()[name], torch.randn(4, 7)
    expected = module(inputs).detach()
    wide = module(inputs).double().detach()
    shift = {key: value.detach() + 1 for key, value in module.named_parameters()}
    shifted = torch.func.functional_call(module, shift, inputs)
    tangents = torch.func.jvp(lambda values: torch.func.functional_call(module, values, inputs), (shift,), (shift,))[1]
    with frozen(module):
        torch.testing.assert_close(torch.func.vmap(module)(inputs), expected)
        torch.testing.assert_close(torch.func.functional_call(module, shift, inputs), shifted)
        found = torch.func.jvp(lambda values: torch.func.functional_call(module, values, inputs), (shift,), (shift,))[1]
        torch.testing.assert_close(found, tangents)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(inputs, inputs)
            assert torch.autograd.forward_ad.unpack_dual(module(dual)).tangent is not None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert module(inputs).dtype == torch.bfloat16
        module.weight.requires_grad_(True)
        module(inputs).sum().backward()
        assert module.weight.grad is not None
        torch.testing.assert_close(module.double()(inputs.double()), wide, rtol=1e-5, atol=1e-5)
        assert module(inputs.double()).dtype == torch.float64
