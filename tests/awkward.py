"""Modules, losses and batches that are easily got wrong, each with its records, in float64 and seeded.

`tests/test_twin.py` holds each against autograd, once as it is and once after doing what the refusal says.
"""

import dataclasses
from collections import UserDict, namedtuple
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, rnn, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

import whence
from tests.families import Experts
from whence.tasks import Outputs

AWKWARD = {}
FLOAT = torch.float64


def make(name):
    """A function from options to the task, and its records."""
    torch.manual_seed(sum(map(ord, name)))
    before = torch.get_default_dtype()
    torch.set_default_dtype(FLOAT)
    try:
        return AWKWARD[name]()
    finally:
        torch.set_default_dtype(before)


def awkward(function):
    AWKWARD[function.__name__] = function
    return function


def rows(count=6, shape=(4,), classes=3):
    return [(torch.randn(*shape), number % classes) for number in range(count)]


def losses(logits, labels, **options):
    return nn.functional.cross_entropy(logits, labels, reduction="none", **options)


def classified(model, records=None):
    return (lambda **options: whence.Classification(model, **options)), records or rows()


def custom(model, logits, records=None, collate=None, labels=lambda batch: batch[1]):
    """A task whose loss and outputs come from a function of model and batch that gives logits."""

    def loss(model, batch):
        return losses(logits(model, batch), labels(batch))

    def outputs(model, batch):
        values = logits(model, batch)
        return Outputs(values, torch.arange(len(values)), labels(batch), "categorical")

    def task(**options):
        return whence.Custom(model, loss, outputs=outputs, collate=collate, **options)

    return task, records or rows()


class Net(nn.Module):
    """Parts by name, and a function of them and the inputs."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, torch.Tensor) else part)

    def forward(self, *inputs):
        return self.function(self, *inputs)


class Scaled(nn.Module):
    """A layer and a parameter of its own, called as a whole or in parts."""

    def __init__(self):
        super().__init__()
        self.lin, self.scale = nn.Linear(4, 3), nn.Parameter(torch.rand(3))

    def encode(self, inputs):
        return self.lin(inputs) * self.scale

    def forward(self, inputs):
        return self.encode(inputs)


def _layer(make_layer, shape=(4,)):
    def build():
        model = nn.Sequential(
            nn.Unflatten(1, shape) if shape != (4,) else nn.Identity(), make_layer(), nn.Flatten(), nn.Linear(5, 3)
        )
        return classified(model)

    return build


AWKWARD |= {
    "weight_norm": _layer(lambda: parametrizations.weight_norm(nn.Linear(4, 5))),
    "weight_norm of a convolution": _layer(lambda: parametrizations.weight_norm(nn.Conv1d(1, 5, 4)), (1, 4)),
    "weight_norm, old form": _layer(lambda: weight_norm(nn.Linear(4, 5))),
    "spectral_norm": _layer(lambda: parametrizations.spectral_norm(nn.Linear(4, 5))),
    "spectral_norm, old form": _layer(lambda: spectral_norm(nn.Linear(4, 5))),
    "orthogonal": _layer(lambda: parametrizations.orthogonal(nn.Linear(4, 5))),
    "pruned weight": _layer(lambda: prune.l1_unstructured(nn.Linear(4, 5), "weight", 0.3)),
    "pruned bias": _layer(lambda: prune.l1_unstructured(nn.Linear(4, 5), "bias", 0.3)),
}


class Reader(nn.Module):
    """A recurrent layer's last state."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.out = layer, nn.Linear(5, 3)

    def forward(self, inputs):
        return self.out(self.layer(inputs)[1][0][-1])


@awkward
def normed_recurrent_layer():
    return classified(Reader(parametrizations.weight_norm(nn.LSTM(3, 5, batch_first=True), "weight_hh_l0")), rows(shape=(4, 3)))


def _parameter(value, function):
    return lambda: classified(Net(function, encoder=nn.Linear(4, 3), own=value()))


AWKWARD |= {
    "parameter without axes": _parameter(lambda: torch.tensor(0.3), lambda net, x: net.encoder(x) * net.own.exp()),
    "complex parameter": _parameter(
        lambda: torch.randn(3, dtype=torch.complex128),
        lambda net, x: net.encoder(torch.fft.irfft(torch.fft.rfft(x) * net.own, n=4)),
    ),
    "complex parameter without axes": _parameter(
        lambda: torch.tensor(1 + 2j, dtype=torch.complex128), lambda net, x: (net.encoder(x) * net.own).abs()
    ),
    "parameter without numbers": _parameter(lambda: torch.empty(0), lambda net, x: net.encoder(x)),
    "parameter of another precision": _parameter(
        lambda: torch.rand(3, dtype=torch.float32), lambda net, x: net.encoder(x) * net.own.double()
    ),
}


@awkward
def complex_layer():
    return custom(nn.Linear(4, 3, dtype=torch.complex128), lambda model, batch: model(batch[0].to(torch.complex128)).abs())


@awkward
def complex_outputs():
    return classified(Net(lambda net, x: net.layer(x.to(torch.complex128)), layer=nn.Linear(4, 3, dtype=torch.complex128)))


def _stacked(records, axis=0):
    return torch.stack([record[0] for record in records], axis)


def _labels(records):
    return torch.tensor([int(record[1]) for record in records])


def _called(model, batch):
    return model(batch[0])


Pair = namedtuple("Pair", "inputs labels")


@dataclasses.dataclass
class Record:
    inputs: torch.Tensor
    labels: torch.Tensor


class Entries(Mapping):
    """A mapping that PyTorch knows nothing of."""

    def __init__(self, entries):
        self.entries = entries

    def __getitem__(self, key):
        return self.entries[key]

    def __iter__(self):
        return iter(self.entries)

    def __len__(self):
        return len(self.entries)


def _batched(form, read):
    return lambda: custom(
        Scaled(),
        lambda model, batch: model(read(batch, "inputs")),
        collate=lambda records: form(inputs=_stacked(records), labels=_labels(records)),
        labels=lambda batch: read(batch, "labels"),
    )


AWKWARD |= {
    "batch: dict": _batched(dict, lambda batch, name: batch[name]),
    "batch: namedtuple": _batched(Pair, getattr),
    "batch: dataclass": _batched(Record, getattr),
    "batch: UserDict": _batched(UserDict, lambda batch, name: batch[name]),
    "batch: Mapping": _batched(lambda **entries: Entries(entries), lambda batch, name: batch[name]),
}


def _ragged():
    return [(torch.randn(2 + number % 4, 3), number % 3) for number in range(6)]


def _packed(model, batch):
    return model(rnn.pack_padded_sequence(batch[0], batch[2], batch_first=True, enforce_sorted=False))


def _padded(lengths):
    def collate(records):
        sequences = [record[0] for record in records]
        return rnn.pad_sequence(sequences, batch_first=True), _labels(records), lengths([len(one) for one in sequences])

    return collate


AWKWARD |= {
    "time first": lambda: custom(
        Reader(nn.LSTM(3, 5)), _called, rows(shape=(6, 3)), lambda records: (_stacked(records, 1), _labels(records))
    ),
    "time first, ordinary layers": lambda: custom(
        Net(lambda net, x: net.b(torch.tanh(net.a(x)).mean(0)), a=nn.Linear(3, 4), b=nn.Linear(4, 3)),
        _called,
        rows(shape=(6, 3)),
        lambda records: (_stacked(records, 1), _labels(records)),
    ),
    "packed sequences": lambda: custom(
        Reader(nn.LSTM(3, 5, batch_first=True)),
        _called,
        _ragged(),
        lambda records: (rnn.pack_sequence([record[0] for record in records], enforce_sorted=False), _labels(records)),
    ),
    "lengths as a list": lambda: custom(Reader(nn.LSTM(3, 5, batch_first=True)), _packed, _ragged(), _padded(list)),
    "lengths as a tensor": lambda: custom(Reader(nn.LSTM(3, 5, batch_first=True)), _packed, _ragged(), _padded(torch.tensor)),
}


def _shared(like, use, records=None):
    """A tensor that belongs to no example, with as many entries as there are examples."""

    def build():
        shared = like()
        return custom(Scaled(), use, records, lambda found: (_stacked(found), _labels(found), shared))

    return build


AWKWARD |= {
    "shared prototypes": _shared(
        lambda: torch.randn(6, 3), lambda model, batch: -(model(batch[0])[:, None] - batch[2]).square().sum(-1)
    ),
    "shared weights": _shared(lambda: torch.rand(6), lambda model, batch: model(batch[0]) * batch[2][:3]),
    "calls a method": lambda: custom(Scaled(), lambda model, batch: model.encode(batch[0])),
    "calls a layer and reads a parameter": lambda: custom(Scaled(), lambda model, batch: model.lin(batch[0]) * model.scale),
    "calls the model and reads a parameter": lambda: custom(
        Scaled(), lambda model, batch: model(batch[0]) * model.get_parameter("scale")
    ),
    "uses a layer's weight without the layer": lambda: custom(
        Scaled(), lambda model, batch: nn.functional.linear(batch[0], model.lin.weight, model.lin.bias) * model.scale
    ),
    "adds a penalty": lambda: custom(
        Scaled(), lambda model, batch: model(batch[0]) * sum(value.square().sum() for value in model.parameters())
    ),
}


class Adaptive(nn.Module):
    """Tail layers see rare classes only; the last is of width 0 if the inputs are narrow."""

    def __init__(self, width):
        super().__init__()
        self.body, self.head = nn.Linear(4, width), nn.AdaptiveLogSoftmaxWithLoss(width, 12, cutoffs=[3, 6])

    def forward(self, inputs, labels):
        flat = torch.tanh(self.body(inputs)).flatten(0, -2)
        return -self.head(flat, labels.flatten()).output.view(labels.shape)


def _adaptive(width, tokens):
    def build():
        labels = [0, 1, 0, 1, 7, 0, 4, 5]
        if tokens:
            records = [(torch.randn(3, 4), torch.tensor([label, 0, labels[-1 - at]])) for at, label in enumerate(labels)]
        else:
            records = [(torch.randn(4), label) for label in labels]

        def loss(model, batch):
            found = model(*batch)
            return found.sum(1) if tokens else found

        model = Adaptive(width)
        return (lambda **options: whence.Custom(model, loss, **options)), records

    return build


def _looped(net, x):
    return torch.stack([net.layer(row) for row in x])


def _looped_in_rows(net, x):
    return torch.cat([net.layer(row[None]) for row in x])


def _checkpointed(reentrant):
    def function(net, x):
        return net.out(checkpoint(lambda hidden: torch.tanh(hidden) * net.gain, net.layer(x), use_reentrant=reentrant))

    return lambda: classified(Net(function, layer=nn.Linear(4, 5), gain=torch.rand(5), out=nn.Linear(5, 3)))


class OwnProduct(torch.autograd.Function):
    """Closed to torch.func."""

    @staticmethod
    def forward(ctx, left, right):
        ctx.save_for_backward(left, right)
        return left * right

    @staticmethod
    def backward(ctx, grad):
        left, right = ctx.saved_tensors
        return grad * right, (grad * left).sum(0)


def _some_rows(net, x):
    chosen = (x[:, 0] > 0).nonzero()[:, 0]
    logits = net.all(x)
    return logits.index_add(0, chosen, net.some(x[chosen])) if len(chosen) else logits


def _remembering(net, x):
    net.last = net.own * 2
    return net.encoder(x) * net.last


AWKWARD |= {
    "adaptive softmax": _adaptive(32, tokens=False),
    "adaptive softmax with a layer of width 0": _adaptive(6, tokens=False),
    "adaptive softmax over tokens": _adaptive(32, tokens=True),
    "experts": lambda: classified(Experts(), rows(count=8, shape=(5, 6))),
    "experts over rows": lambda: classified(
        Net(_some_rows, all=nn.Linear(4, 3), some=nn.Linear(4, 3)), rows(count=9)
    ),
    "positions counted from 0": lambda: custom(
        Net(lambda net, x: net.out((net.words(x) + net.places(torch.arange(x.shape[1]))).tanh().sum(1)),
            words=nn.Embedding(9, 4), places=nn.Embedding(6, 4), out=nn.Linear(4, 3)),
        _called,
        [(torch.randint(9, (6,)), number % 3) for number in range(6)],
    ),
    "a layer per example": lambda: classified(Net(_looped, layer=nn.Linear(4, 3))),
    "a layer per row": lambda: classified(Net(_looped_in_rows, layer=nn.Linear(4, 3))),
    "a layer on a vector of its own": lambda: classified(
        Net(lambda net, x: net.out(x) * net.gate(net.own).sum(), out=nn.Linear(4, 3), gate=nn.Linear(2, 2), own=torch.randn(2))
    ),
    "checkpointed": _checkpointed(False),
    "checkpointed, reentrant": _checkpointed(True),
    "an operation of one's own": _parameter(lambda: torch.rand(3), lambda net, x: OwnProduct.apply(net.encoder(x), net.own)),
    "vmap inside": lambda: classified(
        Net(lambda net, x: torch.vmap(lambda one: torch.tanh(x @ one))(net.own).mean(0), own=torch.randn(5, 4, 3))
    ),
    "a computed weight that is kept": _parameter(lambda: torch.rand(3), _remembering),
    "sparse table": lambda: custom(
        Net(lambda net, x: net.out(net.words(x).mean(1)), words=nn.Embedding(9, 4, sparse=True), out=nn.Linear(4, 3)),
        _called,
        [(torch.randint(9, (5,)), number % 3) for number in range(6)],
    ),
    "channels last": lambda: custom(
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(12, 3)).to(
            memory_format=torch.channels_last
        ),
        lambda model, batch: model(batch[0].to(memory_format=torch.channels_last)),
        rows(shape=(2, 6, 6)),
    ),
    "outputs: mapping": lambda: classified(Net(lambda net, x: {"logits": net.layer(x), "inputs": x}, layer=nn.Linear(4, 3))),
    "outputs: tuple": lambda: classified(Net(lambda net, x: (net.layer(x), x), layer=nn.Linear(4, 3))),
    "outputs: another mapping": lambda: classified(Net(lambda net, x: {"scores": net.layer(x)}, layer=nn.Linear(4, 3))),
    "torch.jit": lambda: classified(torch.jit.script(nn.Linear(4, 3))),
    "a part of torch.jit": lambda: classified(nn.Sequential(nn.Linear(4, 5), torch.jit.script(nn.PReLU()), nn.Linear(5, 3))),
    "table with max_norm": lambda: classified(
        Net(lambda net, x: net.out(net.words(x).mean(1)), words=nn.Embedding(9, 4, max_norm=1.0), out=nn.Linear(4, 3)),
        [(torch.randint(9, (5,)), number % 3) for number in range(6)],
    ),
}  # fmt: skip
