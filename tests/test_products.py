"""Curvature products against matrices formed by loops."""

import pytest
import torch

import whence
from tests.reference import curvature as reference
from tests.reference.gradients import unit_gradients
from tests.zoo import NAMES, Sequences, make
from whence.capture import as_blocks, as_parameters, check_task, plan_units
from whence.curvature import Curvature, Damped, dense, flatten, products, random_like, rows, scaled, split, top_eigenvalue
from whence.errors import BadInput, NonFinite, UnknownOption, Unsupported

# Its recomputation is closed to torch.func, and to second derivatives.
CLOSED = "checkpoint_reentrant"
KINDS = ("gauss_newton", "hessian", "empirical_fisher")


def vectors(plan, count, seed=0):
    like = [torch.zeros(1, unit.outputs, unit.inputs, dtype=torch.float64) for unit in plan.units]
    return random_like(like, count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted({*NAMES} - {CLOSED}))
def test_products_are_those_of_the_formed_matrix(name, kind):
    task, examples = make(name, 3)
    plan = plan_units(task)
    blocks = vectors(plan, 2)
    found = flatten(Curvature(task, plan, examples.examples, kind, max_positions=10).times(blocks))
    if kind == "hessian":
        expected = reference.hessian_times(task, plan, examples.examples, flatten(blocks))
    else:
        expected = flatten(blocks) @ getattr(reference, kind)(task, plan, examples.examples)
    assert not found.requires_grad
    close = 1e-4 if name == "llama" else 1e-10  # its norms run in float32
    torch.testing.assert_close(found, expected, rtol=close, atol=close * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["tied", "gpt2", "two_inputs", "conv2d_groups", "lone_parameter"])
def test_dense_is_the_formed_matrix(name):
    task, examples = make(name, 3)
    plan = plan_units(task)
    operator = Curvature(task, plan, examples.examples)
    torch.testing.assert_close(dense(operator), reference.gauss_newton(task, plan, examples.examples), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_and_parameters_are_two_forms_of_one_vector(name):
    task, _ = make(name, 1)
    plan = plan_units(task)
    blocks = vectors(plan, 3)
    tensors = as_parameters(plan, task.model, blocks)
    shapes = {key: value.shape for key, value in task.model.named_parameters()}
    assert {key: value.shape[1:] for key, value in tensors.items()} == shapes
    for found, expected in zip(as_blocks(plan, tensors), blocks, strict=True):
        assert torch.equal(found, expected)
    for found, expected in zip(unit_gradients(task, plan, tensors), blocks, strict=True):
        assert torch.equal(found, expected)


def test_norms_over_several_axes_have_a_form_too():
    body = torch.nn.Sequential(torch.nn.LayerNorm((4, 6)), torch.nn.Linear(6, 3)).double()
    task = whence.Classification(Sequences(body))
    examples = task.prepare([(torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)), seed) for seed in range(3)])
    plan = plan_units(task)
    check_task(task, plan, examples.examples)
    matrix = dense(Curvature(task, plan, examples.examples, "hessian"))
    torch.testing.assert_close(matrix, matrix.T)


@pytest.mark.parametrize("kind", KINDS)
def test_chosen_examples_count_as_often_as_they_are_named(kind):
    task, examples = make("gpt2", 4)
    plan = plan_units(task)
    blocks = vectors(plan, 2)
    operator = Curvature(task, plan, examples.examples, kind)
    alone = [flatten(operator.times(blocks, [index])) for index in range(4)]
    found = flatten(operator.times(blocks, [1, 3, 1]))
    torch.testing.assert_close(found, (2 * alone[1] + alone[3]) / 3)
    torch.testing.assert_close(flatten(operator.times(blocks)), sum(alone) / 4)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_chunks_change_nothing(kind, monkeypatch):
    task, examples = make("gpt2", 5)
    plan = plan_units(task)
    blocks = vectors(plan, 5)
    expected = flatten(Curvature(task, plan, examples.examples, kind).times(blocks))
    monkeypatch.setitem(products._AT_ONCE, "cpu", 40)
    monkeypatch.setattr(rows, "_NUMBERS", 300)
    found = flatten(Curvature(task, plan, examples.examples, kind, max_positions=20).times(blocks))
    torch.testing.assert_close(found, expected)


def test_only_tracked_parameters_are_differentiated():
    task, examples = make("gpt2", 3)
    task = whence.CausalLM(task.model, tokenizer=None, track=["*.mlp.*", "*ln_f*"])
    plan = plan_units(task)
    expected = reference.gauss_newton(task, plan, examples.examples)
    torch.testing.assert_close(dense(Curvature(task, plan, examples.examples)), expected, rtol=1e-9, atol=1e-12)


def test_the_model_is_left_as_it_was():
    task, examples = make("dropout", 3)
    plan = plan_units(task)
    task.model.train()
    Curvature(task, plan, examples.examples).times(vectors(plan, 1))
    assert task.model.training and all(p.requires_grad and p.grad is None for p in task.model.parameters())
    assert not any(module._forward_hooks for module in task.model.modules())


def test_it_equals_curvlinops():
    curvlinops = pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()
    task = whence.Classification(model)
    inputs, labels = torch.randn(8, 6, dtype=torch.float64), torch.randint(3, (8,))
    examples = task.prepare(list(zip(inputs, labels.tolist(), strict=True)))
    plan = plan_units(task)
    parameters = [model.get_parameter(name) for unit in plan.units for name in unit.parameters]
    blocks = vectors(plan, 2)
    tangents = [value.movedim(0, -1) for value in as_parameters(plan, model, blocks).values()]
    theirs = {"gauss_newton": "GGNLinearOperator", "hessian": "HessianLinearOperator"}
    for kind, name in theirs.items():
        loss = torch.nn.CrossEntropyLoss(reduction="mean")
        operator = getattr(curvlinops, name)(model, loss, parameters, [(inputs, labels)])
        expected = flatten(Curvature(task, plan, examples.examples, kind).times(blocks))
        names = as_parameters(plan, model, blocks)
        products = dict(zip(names, (value.movedim(-1, 0) for value in operator @ tangents), strict=True))
        torch.testing.assert_close(flatten(as_blocks(plan, products)), expected)


def operator(name="linear", kind="gauss_newton", count=3):
    task, examples = make(name, count)
    plan = plan_units(task)
    return Curvature(task, plan, examples.examples, kind), vectors(plan, 1)


@pytest.mark.parametrize("kind", ["gauss_newton", "hessian"])
@pytest.mark.parametrize("name", sorted({*NAMES} - {CLOSED}))
def test_without_tangents_products_are_the_same(name, kind):
    """Where forward mode does not go through, second passes back do."""
    product, blocks = operator(name, kind)
    expected = flatten(product.times(blocks))
    product.plan.route.has_tangents = False
    found = flatten(product.times(blocks))
    assert not found.requires_grad and not product.plan.route.has_tangents
    close = 1e-4 if name == "llama" else 1e-10
    torch.testing.assert_close(found, expected, rtol=close, atol=close * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["gauss_newton", "hessian"])
def test_a_model_closed_to_both_is_refused(kind):
    product, blocks = operator(CLOSED, kind)
    with pytest.raises(Unsupported, match="switch off gradient checkpointing"):
        product.times(blocks)


def test_an_unknown_kind_is_refused():
    with pytest.raises(UnknownOption, match="kind='fisher'.*one of: gauss_newton, hessian, empirical_fisher"):
        operator(kind="fisher")


def test_half_precision_is_refused():
    task, examples = make("linear", 3)
    task.model.half()
    with pytest.raises(Unsupported, match="weights of type torch.float16.*load the model in float32"):
        Curvature(task, plan_units(task), examples.examples)


def test_blocks_of_another_plan_are_refused():
    product, blocks = operator()
    with pytest.raises(BadInput, match=r"1 blocks of shapes \(1, 5, 7\); needed 2 of shapes \(Q, 5, 7\), \(Q, 3, 5\)"):
        product.times(blocks[:1])


@pytest.mark.parametrize("kind", ["gauss_newton", "hessian"])
def test_an_example_without_finite_outputs_is_named(kind):
    task, _ = make("linear", 3)
    examples = task.prepare(
        [{"id": name, "inputs": torch.full((4, 6), value), "label": 0} for name, value in (("a", 1.0), ("b", float("nan")))]
    )
    plan = plan_units(task)
    with pytest.raises(NonFinite, match="outputs for the example 'b'"):
        Curvature(task, plan, examples.examples, kind).times(vectors(plan, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_that_is_not_finite_is_named(kind):
    product, blocks = operator(kind=kind)
    blocks[1][0, 0, 0] = float("inf")
    with pytest.raises(NonFinite, match=f"product of the {kind} matrix in 'body.0.weight'"):
        product.times(blocks)


@pytest.mark.parametrize("name", ["tied", "gpt2"])
def test_the_top_eigenvalue_is_that_of_the_dense_matrix(name):
    product, _ = operator(name)
    values = torch.linalg.eigvalsh(dense(product))
    assert abs(top_eigenvalue(product, iterations=60) / float(values[-1]) - 1) < 1e-8
    rough = top_eigenvalue(product, iterations=10, seed=1)
    assert 0.9 * float(values[-1]) < rough <= float(values[-1]) * (1 + 1e-12)


def test_the_top_eigenvalue_of_a_preconditioned_damped_matrix():
    product, like = operator("tied")
    units = len(like)
    damped = Damped(product, [0.01 * (unit + 1) for unit in range(units)])
    weights = torch.rand(flatten(like).shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    expected = float(torch.linalg.eigvals(torch.diag(weights) @ dense(damped)).real.max())
    found = top_eigenvalue(damped, lambda blocks: split(flatten(blocks) * weights, like), iterations=80)
    assert abs(found / expected - 1) < 1e-8


def test_the_top_eigenvalue_of_a_zero_matrix_is_zero():
    class Zero:
        def __len__(self):
            return 1

        def zeros(self, count):
            return [torch.zeros(count, 2, 3)]

        def times(self, blocks, chosen=None):
            return scaled(blocks, 0.0)

    assert top_eigenvalue(Zero()) == 0.0


def test_a_preconditioner_has_to_be_positive():
    product, _ = operator("tied")
    with pytest.raises(BadInput, match="a preconditioner with -.*symmetric positive definite"):
        top_eigenvalue(product, lambda blocks: scaled(blocks, -1.0))


def test_damping_is_one_number_per_unit():
    product, blocks = operator()
    with pytest.raises(BadInput, match=r"1 dampings, the smallest 0.1; needed 2 numbers, one per unit"):
        Damped(product, [0.1])
    with pytest.raises(BadInput, match="the smallest -0.1"):
        Damped(product, [0.1, -0.1])
    found = flatten(Damped(product, [0.1, 0.2]).times(blocks)) - flatten(product.times(blocks))
    torch.testing.assert_close(found, flatten([0.1 * blocks[0], 0.2 * blocks[1]]))


def test_a_matrix_too_large_to_write_out_is_refused():
    class Large:
        def zeros(self, count):
            return [torch.zeros(count, 200, 200)]

    with pytest.raises(BadInput, match="40,000 rows to be written out; needed at most 20,000"):
        dense(Large())
