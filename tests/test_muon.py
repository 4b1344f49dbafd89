"""Muon: what it multiplies gradients with, against derivatives of its direction, and SOURCE on its runs against exact derivatives."""

import pytest
import torch
from torch import nn

import whence
from tests.settings import QUIET
from tests.test_source import COUNT, _Bound, agreement, data, queries_of, source_table
from whence.errors import Unsupported
from whence.unroll.scaling import Orthogonal

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def direction(matrix):
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def polynomial(matrix, steps=5):
    """`torch.optim.Muon`'s own iteration, which works in bfloat16, in double precision."""
    a, b, c = COEFFICIENTS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm()
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def scaling(matrix):
    left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
    return Orthogonal(left, right.T, singular, 1e-6, 1.0)


@pytest.mark.parametrize("shape", [(4, 4), (3, 6), (6, 3), (1, 5)])
def test_it_is_the_derivative_of_the_direction(shape):
    torch.manual_seed(0)
    matrix = torch.randn(*shape).double()
    wanted = torch.func.jacfwd(direction)(matrix).flatten(2).flatten(0, 1)
    eye = torch.eye(matrix.numel()).double().view(-1, *shape)
    found = scaling(matrix).times(eye).flatten(1)
    torch.testing.assert_close(found, wanted.T, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found, found.T)
    assert torch.linalg.eigvalsh(found)[0] > -1e-9
    assert scaling(matrix).times(matrix[None]).abs().max() < 1e-9  # a longer gradient turns nothing


def test_small_singular_values_count_as_the_slope_allows():
    matrix = torch.diag(torch.tensor([1.0, 1e-9, 0.0]).double())
    eye = torch.eye(9).double().view(-1, 3, 3)
    found = Orthogonal(*torch.linalg.svd(matrix)[:1], torch.eye(3).double(), matrix.diagonal(), 0.01, 1.0).times(eye)
    assert torch.isfinite(found).all() and torch.linalg.eigvalsh(found.flatten(1))[-1] <= 100 * (1 + 1e-9)


class Muon(torch.optim.Optimizer):
    """Muon in double precision, under the name that the recorder writes down."""

    def __init__(self, params, lr, weight_decay=0.1, momentum=0.95):
        settings = {"ns_coefficients": COEFFICIENTS, "ns_steps": 5, "adjust_lr_fn": None, "nesterov": True}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, **settings})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = polynomial(p.grad.lerp(buffer, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def network(kind):
    torch.manual_seed(0)
    sizes = [(4, 3)] if kind == "softmax" else [(4, 8), (8, 8), (8, 3)]
    layers = [part for size in sizes for part in (nn.Linear(*size, bias=False), nn.Tanh())]
    return nn.Sequential(*layers[:-1]).double()


def recorded(folder, kind, make, epochs=10, size=10):
    inputs, labels = data()
    model = network(kind)
    start = [value.detach().clone() for value in model.parameters()]
    optimizer = make(model.parameters())
    generator = torch.Generator().manual_seed(1)
    batches = [one for _ in range(epochs) for one in torch.randperm(COUNT, generator=generator).split(size)]
    with whence.Recorder(folder, model, optimizer, every=len(batches) // 6) as run:
        for batch in batches:
            run.batch(f"t{place}" for place in batch.tolist())
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch].to(next(model.parameters()))), labels[batch]).backward()
            optimizer.step()
    task = whence.Classification(model)
    records = [{"id": f"t{n}", "inputs": x, "label": y} for n, (x, y) in enumerate(zip(inputs, labels.tolist(), strict=True))]
    return model, task, task.prepare(records), start, batches


def unrolled(model, start, batches, rate, decay=0.1, momentum=0.95):
    """Final parameters as a function of every example's weight, differentiated forwards, shape (P, N)."""
    inputs, labels = data()
    names = [name for name, _ in model.named_parameters()]

    def losses(values, batch):
        outputs = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (inputs[batch],))
        return nn.functional.cross_entropy(outputs, labels[batch], reduction="none")

    def final(weights):
        values, buffers = list(start), [torch.zeros_like(value) for value in start]
        for batch in batches:
            gradients = torch.func.grad(lambda now, batch=batch: (weights[batch] * losses(now, batch)).mean())(values)
            buffers = [momentum * old + (1 - momentum) * new for old, new in zip(buffers, gradients, strict=True)]
            mixed = [momentum * old + (1 - momentum) * new for old, new in zip(buffers, gradients, strict=True)]
            values = [
                value * (1 - rate * decay) - rate * max(1.0, value.shape[0] / value.shape[1]) ** 0.5 * polynomial(update)
                for value, update in zip(values, mixed, strict=True)
            ]
        return torch.cat([value.flatten() for value in values])

    return final(torch.ones(COUNT).double()), torch.func.jacfwd(final)(torch.ones(COUNT).double())


@pytest.mark.parametrize(("kind", "least"), [("softmax", 0.85), ("mlp", 0.75)])
def test_source_follows_a_run_with_muon(tmp_path, kind, least):
    model, task, train_set, start, batches = recorded(tmp_path, kind, lambda ps: Muon(ps, lr=0.01))
    final, tangent_PN = unrolled(model, start, batches, 0.01)
    torch.testing.assert_close(final, nn.utils.parameters_to_vector(model.parameters()).detach(), rtol=0, atol=1e-9)
    queries = queries_of(task)
    measured = task.collate(queries.examples)
    names = [name for name, _ in model.named_parameters()]

    def measurement(values):
        return task.measurement(_Bound(model, dict(zip(names, values, strict=True))), measured)

    gradients = torch.func.jacrev(measurement)([value.detach() for value in model.parameters()])
    wanted = torch.cat([part.flatten(1) for part in gradients], 1) @ tangent_PN
    found = agreement(source_table(task, tmp_path, train_set, queries).scores, wanted)
    print(kind, found)
    influence = agreement(whence.attribute(task, train_set, queries, runtime=QUIET).scores, wanted)
    assert found > least and found > influence + 0.1


def test_the_muon_of_torch_is_recorded_and_attributed(tmp_path):
    _, task, train_set, *_ = recorded(tmp_path / "run", "mlp", lambda ps: torch.optim.Muon(ps, lr=0.01))
    table = source_table(task, tmp_path / "run", train_set, queries_of(task, 2))
    assert torch.isfinite(table.scores).all() and table.scores.any()
    with pytest.raises(Unsupported, match="found form='diagonal' for an optimizer that mixes the entries of a gradient"):
        source_table(task, tmp_path / "run", train_set, queries_of(task, 2), form="diagonal")


def test_a_second_optimizer_is_noticed(tmp_path):
    inputs, labels = data()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3)).double()
    first, second = torch.optim.Muon([model[0].weight], lr=0.01), torch.optim.AdamW([model[0].bias], lr=0.01)
    with whence.Recorder(tmp_path, model, first, every=1) as run:
        run.batch(f"t{place}" for place in range(COUNT))
        nn.functional.cross_entropy(model(inputs), labels).backward()
        second.step()
        first.step()
    task = whence.Classification(model)
    records = [{"id": f"t{n}", "inputs": x, "label": int(y)} for n, (x, y) in enumerate(zip(inputs, labels, strict=True))]
    with pytest.raises(Unsupported, match="found a run whose '0.bias' moved though the recorded optimizer never stepped it"):
        source_table(task, tmp_path, task.prepare(records), queries_of(task, 2))


def test_another_muon_is_refused(tmp_path):
    def make(parameters):
        made = Muon(parameters, lr=0.01)
        for group in made.param_groups:
            del group["ns_coefficients"]
        return made

    _, task, train_set, *_ = recorded(tmp_path, "softmax", make, epochs=1)
    with pytest.raises(
        Unsupported,
        match="found a run with Muon of tests.test_muon, whose state is momentum_buffer: its steps follow no rule known",
    ):
        source_table(task, tmp_path, train_set, queries_of(task, 2))
