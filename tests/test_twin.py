"""The functional twin, and everything else that swaps weights, on modules, losses and batches that are easily got wrong."""

import re
import warnings

import pytest
import torch

import whence
from tests.awkward import AWKWARD, Scaled, make
from tests.settings import QUIET, keywords_of

# Where the true cause leaves nothing to try.
REFUSED = {
    "complex_outputs": "found a model that returns complex numbers; needed a tensor of real numbers",
    "outputs: tuple": r"found a model that returns a tuple of 2; needed a tensor of real numbers",
    "torch.jit": r"found 2 parameter\(s\) in modules of torch.jit, the first 'weight'; needed modules in Python, .* from$",
}
# Where autograd itself has no second derivative, so that there is nothing to compare with.
NO_REFERENCE = {
    "checkpointed, reentrant",
    "adaptive softmax",
    "adaptive softmax with a layer of width 0",
    "adaptive softmax over tokens",
}


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, about old forms and layers of width 0
        yield


def numbers(values, parameters):
    """Gradients as one vector, complex numbers as their two parts."""
    found = [torch.zeros_like(own) if value is None else value for own, value in zip(parameters, values, strict=True)]
    found = [value.to_dense() if value.is_sparse else value for value in found]
    return torch.cat([(torch.view_as_real(value) if value.is_complex() else value).flatten().double() for value in found])


def tracked(task):
    return [value for name, value in task.model.named_parameters() if name in task.tracked]


def gradients(task, records):
    """By plain autograd, one example at a time."""
    rows, parameters = [], tracked(task)
    task.model.eval()
    for example in task.prepare(records).examples:
        for parameter in parameters:
            parameter.grad = None
        loss = task.loss(task.model, task.collate([example])).sum()
        loss.backward()
        rows.append(numbers([parameter.grad for parameter in parameters], parameters))
    for parameter in parameters:
        parameter.grad = None
    return torch.stack(rows)


def gauss_newton(task, records):
    """The mean of J^T H J over examples, formed row by row."""
    total, parameters, examples = 0.0, tracked(task), task.prepare(records).examples
    for example in examples:
        values_C = task.outputs(task.model, task.collate([example])).values_MC[0]
        rows = [torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True) for value in values_C]
        jacobian_CN = torch.stack([numbers(row, parameters) for row in rows])
        p_C = values_C.detach().softmax(-1)
        total = total + jacobian_CN.T @ (torch.diag(p_C) - torch.outer(p_C, p_C)) @ jacobian_CN / len(examples)
    return total


def advice(message):
    """What a refusal says to pass, as options."""
    if "functional=True" in message:
        return {"functional": True}
    found = re.search(r"ignore=(\[[^\]]+\])", message)
    return {"ignore": eval(found[1])} if found else None


def followed(name, options, run):
    """The task and what `run` gives for it, after doing whatever refusals say; or the last refusal."""
    for _ in range(4):
        build, records = make(name)
        try:
            task = build(**options)
            return task, records, run(task, records)
        except whence.WhenceError as error:
            more = advice(str(error))
            if more is None or more.items() <= options.items():
                return None, records, str(error)
            options = {**options, **more}
    raise AssertionError(f"no end of advice: {options}")


def same(found, expected, name=""):
    close = 1e-6 if "precision" in name else 1e-9  # a parameter in float32
    torch.testing.assert_close(found, expected, rtol=0, atol=close * float(expected.abs().max()))


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("name", AWKWARD)
def test_what_a_refusal_says_leads_to_autograds_scores(name, functional):
    def run(task, records):
        return whence.attribute(task, records, records[:2], method="grad-dot-exact", runtime=QUIET).scores

    task, records, found = followed(name, {"functional": functional}, run)
    if name in REFUSED:
        assert re.search(REFUSED[name], found)
        return
    assert task is not None, found
    rows = gradients(task, records)
    same(found, rows[:2] @ rows.T / len(rows), name)


@pytest.mark.parametrize("name", sorted({*AWKWARD} - {*REFUSED} - NO_REFERENCE))
def test_solvers_equal_the_formed_matrix(name):
    def run(task, records):
        options = {"method": "cg", "absolute_damping": 0.1, "tolerance": 1e-12, "iterations": 200}
        return whence.attribute(task, records, records[:2], **keywords_of(**options)).scores

    task, records, found = followed(name, {"functional": True}, run)
    assert task is not None, found
    task.model.eval()
    rows, matrix = gradients(task, records), gauss_newton(task, records)
    expected = rows[:2] @ torch.linalg.solve(matrix + 0.1 * torch.eye(len(matrix), dtype=torch.float64), rows.T) / len(rows)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("count", [4, 5, 6, 261])
def test_a_tensor_that_all_examples_share_is_never_cut(count):
    torch.manual_seed(0)
    prototypes = torch.randn(5, 3, dtype=torch.float64)
    records = [torch.randn(4, dtype=torch.float64) for _ in range(count)]

    def collate(found):
        return {"inputs": torch.stack(found), "prototypes": prototypes}

    def loss(model, batch):
        return -(-(model(batch["inputs"])[:, None] - batch["prototypes"]).square().sum(-1)).logsumexp(-1)

    task = whence.Custom(Scaled().double(), loss, collate=collate, functional=True)
    found = whence.attribute(task, records, records[:2], method="grad-dot-exact", runtime=QUIET).scores
    rows = gradients(task, records)
    same(found, rows[:2] @ rows.T / count)
