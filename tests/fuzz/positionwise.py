"""Parts that treat every position alike: vectors (B, W) and sequences (B, T, W) go through all of them."""

import torch
import torch.nn.utils.parametrizations as parametrizations
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

from tests.fuzz.formula import WIDTH, Formula, Part, parameter

__all__ = ["POSITIONWISE", "VECTOR"]


def _linear(inputs: int = WIDTH, outputs: int = WIDTH, bias: bool = True) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias)


class SameLinear(nn.Linear):
    """A subclass that keeps its parent's forward."""


class ScaledLinear(nn.Linear):
    """A subclass that does not."""

    def forward(self, input):
        return 2 * F.linear(input, self.weight.tanh(), self.bias)


class OwnRMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.variance_epsilon = parameter(WIDTH, mean=1.0), 1e-5

    def forward(self, hidden):
        return self.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.variance_epsilon)


class OffsetRMSNorm(nn.Module):
    """As in Gemma: the scale is one plus the weight."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = parameter(WIDTH), 1e-5

    def forward(self, hidden):
        return (1 + self.weight) * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.eps)


class Doubled(nn.Module):
    """A parametrization of one's own."""

    def forward(self, weight):
        return weight + weight.square()


class Frozen(torch.autograd.Function):
    """An operation with a derivative of its own and no rule for vmap."""

    @staticmethod
    def forward(ctx, values):
        ctx.save_for_backward(values)
        return values.sin()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


def _pruned(method):
    def make():
        layer = _linear()
        method(layer, "weight", amount=0.3)
        return layer

    return make


def _tied_pair():
    left, right = _linear(), _linear()
    right.weight = left.weight
    return Formula(lambda m, x: m.right(torch.tanh(m.left(x))), left=left, right=right)


def _tied_bias():
    left, right = _linear(), _linear()
    right.bias = left.bias
    return Formula(lambda m, x: m.right(torch.tanh(m.left(x))), left=left, right=right)


def _tied_norm():
    left, right = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
    right.weight = left.weight
    return Formula(lambda m, x: m.right(torch.tanh(m.left(x))), left=left, right=right)


def _experts(m, x):
    flat = x.reshape(-1, WIDTH)
    chosen = m.router(flat).argmax(-1)
    mixed = torch.zeros_like(flat)
    for number, expert in enumerate((m.first, m.second)):
        rows = torch.where(chosen == number)[0]
        mixed = mixed.index_add(0, rows, expert(flat[rows]))
    return (flat * m.router(flat).amax(-1, keepdim=True) + mixed).view(x.shape)


def _complex(m, x):
    return torch.view_as_real(x.to(m.turn.dtype) * m.turn).sum(-1).to(x.dtype) + x


def _parametrized():
    layer = _linear()
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def _norm_with_values(norm):
    for value in norm.parameters():
        value.data.normal_(1.0, 0.5)
    return norm


POSITIONWISE: dict[str, Part] = {
    "linear": Part(_linear),
    "linear without bias": Part(lambda: _linear(bias=False)),
    "perceptron": Part(lambda: nn.Sequential(_linear(WIDTH, 5), nn.Tanh(), _linear(5, WIDTH))),
    "perceptron in place": Part(lambda: nn.Sequential(_linear(WIDTH, 5), nn.ELU(inplace=True), _linear(5, WIDTH))),
    "subclass of linear": Part(lambda: SameLinear(WIDTH, WIDTH)),
    "subclass with its own forward": Part(lambda: ScaledLinear(WIDTH, WIDTH)),
    "dropout": Part(lambda: nn.Sequential(_linear(), nn.Dropout(0.5))),
    "layer norm": Part(lambda: _norm_with_values(nn.LayerNorm(WIDTH))),
    "layer norm without bias": Part(lambda: _norm_with_values(nn.LayerNorm(WIDTH, bias=False))),
    "layer norm without affine": Part(lambda: nn.LayerNorm(WIDTH, elementwise_affine=False)),
    "rms norm": Part(lambda: _norm_with_values(nn.RMSNorm(WIDTH, eps=1e-5))),
    "rms norm of one's own": Part(OwnRMSNorm),
    "rms norm with an offset": Part(OffsetRMSNorm),
    "weight norm": Part(lambda: parametrizations.weight_norm(_linear())),
    "weight norm, old form": Part(lambda: nn.utils.weight_norm(_linear())),
    "weight norm without bias": Part(lambda: parametrizations.weight_norm(_linear(bias=False))),
    "spectral norm": Part(lambda: parametrizations.spectral_norm(_linear())),
    "spectral norm, old form": Part(lambda: nn.utils.spectral_norm(_linear())),
    "orthogonal": Part(lambda: parametrizations.orthogonal(_linear())),
    "parametrized": Part(_parametrized),
    "pruned": Part(_pruned(prune.l1_unstructured)),
    "pruned at random": Part(_pruned(prune.random_unstructured)),
    "masked weight": Part(
        lambda: Formula(lambda m, x: F.linear(x, m.layer.weight * (m.layer.weight > 0)), layer=_linear(bias=False))
    ),
    "scalar": Part(lambda: Formula(lambda m, x: x * m.scale.exp(), scale=parameter())),
    "scalar of a layer": Part(lambda: Formula(lambda m, x: m.layer(x) * m.scale, layer=_linear(), scale=parameter(mean=1.0))),
    "gain": Part(lambda: Formula(lambda m, x: x * m.gain, gain=parameter(WIDTH, mean=1.0))),
    "gain of one number": Part(lambda: Formula(lambda m, x: x * m.gain, gain=parameter(1, mean=1.0))),
    "shift": Part(lambda: Formula(lambda m, x: x + m.shift, shift=parameter(WIDTH))),
    "bare matrix": Part(lambda: Formula(lambda m, x: x @ m.matrix, matrix=parameter(WIDTH, WIDTH))),
    "bare cube": Part(lambda: Formula(lambda m, x: torch.einsum("...i,ijk,...j->...k", x, m.cube, x), cube=parameter(4, 4, 4))),
    "list of parameters": Part(
        lambda: Formula(
            lambda m, x: (x @ m.list[0]).tanh() @ m.list[1], list=nn.ParameterList([parameter(4, 3), parameter(3, 4)])
        )
    ),
    "einsum with a layer's weight": Part(
        lambda: Formula(lambda m, x: torch.einsum("oi,...i->...o", m.layer.weight, x), layer=_linear(bias=False))
    ),
    "complex": Part(lambda: Formula(_complex, turn=nn.Parameter(torch.complex(torch.randn(WIDTH), torch.randn(WIDTH))))),
    "prelu": Part(nn.PReLU),
    "bilinear": Part(lambda: Formula(lambda m, x: m.layer(x, x), layer=nn.Bilinear(WIDTH, WIDTH, WIDTH))),
    "residual": Part(lambda: Formula(lambda m, x: x + m.layer(x).tanh(), layer=_linear())),
    "gate": Part(lambda: Formula(lambda m, x: m.up(x) * m.gate(x).sigmoid(), up=_linear(), gate=_linear())),
    "applied twice": Part(lambda: Formula(lambda m, x: m.layer(m.layer(x).tanh()), layer=_linear())),
    "norm applied twice": Part(lambda: Formula(lambda m, x: m.norm(m.norm(x).tanh()), norm=nn.LayerNorm(WIDTH))),
    "tied weights": Part(_tied_pair),
    "tied biases": Part(_tied_bias),
    "tied norms": Part(_tied_norm),
    "tied, transposed": Part(lambda: Formula(lambda m, x: F.linear(m.layer(x).tanh(), m.layer.weight.T), layer=_linear(4, 5))),
    "weight outside its layer too": Part(
        lambda: Formula(lambda m, x: m.layer(x) + F.linear(x.tanh(), m.layer.weight), layer=_linear())
    ),
    "weight outside its layer only": Part(
        lambda: Formula(lambda m, x: F.linear(x, m.layer.weight, m.layer.bias), layer=_linear())
    ),
    "bias outside its layer too": Part(lambda: Formula(lambda m, x: m.layer(x) * m.layer.bias, layer=_linear())),
    "norm's weight outside it too": Part(lambda: Formula(lambda m, x: m.norm(x) + m.norm.weight, norm=nn.LayerNorm(WIDTH))),
    "penalty of a weight": Part(
        lambda: Formula(lambda m, x: m.layer(x) + m.layer.weight.square().mean(), layer=_linear(bias=False))
    ),
    "called by keyword": Part(lambda: Formula(lambda m, x: m.layer(input=x), layer=_linear())),
    "checkpoint": Part(
        lambda: Formula(lambda m, x: checkpoint(lambda y: m.layer(y).tanh(), x, use_reentrant=False), layer=_linear())
    ),
    "checkpoint, reentrant": Part(
        lambda: Formula(lambda m, x: checkpoint(lambda y: m.layer(y).tanh(), x, use_reentrant=True), layer=_linear())
    ),
    "layer that is never called": Part(lambda: Formula(lambda m, x: x, layer=_linear())),
    "parameter that is never used": Part(lambda: Formula(lambda m, x: x, lone=parameter(3))),
    "detached branch": Part(lambda: Formula(lambda m, x: m.layer(x) + m.other(x).detach(), layer=_linear(), other=_linear())),
    "branch without gradients": Part(
        lambda: Formula(lambda m, x: m.layer(x) + _without_gradients(m.other, x), layer=_linear(), other=_linear())
    ),
    "operation of one's own": Part(lambda: Formula(lambda m, x: Frozen.apply(m.layer(x)), layer=_linear())),
    "low rank adapter": Part(
        lambda: Formula(lambda m, x: m.layer(x) + x @ m.down @ m.up, layer=_linear(), down=parameter(4, 2), up=parameter(2, 4))
    ),
    "weights made for each example": Part(
        lambda: Formula(
            lambda m, x: torch.einsum("...ij,...j->...i", m.layer(x).unflatten(-1, (4, 4)), x), layer=_linear(4, 16)
        )
    ),
    "experts": Part(lambda: Formula(_experts, router=_linear(), first=_linear(), second=_linear())),
    "in place on a layer's output": Part(lambda: Formula(lambda m, x: m.layer(x).add_(1.0).mul_(0.5), layer=_linear())),
    "half of the features": Part(
        lambda: Formula(lambda m, x: torch.cat([m.layer(x[..., :2]), x[..., 2:]], -1), layer=_linear(2, 2))
    ),
    "batch twice in one call": Part(
        lambda: Formula(lambda m, x: sum(m.layer(torch.cat([x, x + 1])).chunk(2)), layer=_linear())
    ),
    "parameter through a layer": Part(
        lambda: Formula(lambda m, x: x * m.layer(m.row), layer=_linear(), row=parameter(1, WIDTH))
    ),
    "vector through a layer": Part(lambda: Formula(lambda m, x: x * m.layer(m.row), layer=_linear(), row=parameter(WIDTH))),
    "table through a layer": Part(
        lambda: Formula(lambda m, x: (x @ m.layer(m.table).T).softmax(-1) @ m.table, layer=_linear(), table=parameter(3, WIDTH))
    ),
    "memory table": Part(
        lambda: Formula(
            lambda m, x: (x @ m.table.weight.T).softmax(-1) @ m.table(torch.arange(3)), table=nn.Embedding(3, WIDTH)
        )
    ),
    "row of a table": Part(
        lambda: Formula(lambda m, x: x + m.table(torch.zeros(1, dtype=torch.long)), table=nn.Embedding(2, 4))
    ),
    "float32 inside": Part(lambda: Formula(lambda m, x: m.layer(x.float().to(x.dtype)), layer=_linear())),
    "output of a layer twice": Part(lambda: Formula(lambda m, x: (y := m.layer(x)) * y.tanh(), layer=_linear())),
    "nested layers": Part(lambda: nn.Sequential(nn.ModuleDict({"a": _linear()})["a"], nn.Sequential(nn.Sequential(_linear())))),
}


def _without_gradients(layer, x):
    with torch.no_grad():
        return layer(x)


def _statistics(norm):
    norm = _norm_with_values(norm)
    if norm.running_mean is not None:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    return norm


VECTOR: dict[str, Part] = {
    "batch norm": Part(lambda: _statistics(nn.BatchNorm1d(WIDTH))),
    "batch norm without affine": Part(lambda: _statistics(nn.BatchNorm1d(WIDTH, affine=False))),
    "batch norm without statistics": Part(
        lambda: nn.BatchNorm1d(WIDTH, track_running_stats=False), mixes_examples=True, limits=("running statistics",)
    ),
    "prelu by channel": Part(lambda: nn.PReLU(WIDTH)),
    "group norm": Part(lambda: _norm_with_values(nn.GroupNorm(2, WIDTH))),
    "vector as an image": Part(lambda: Formula(lambda m, x: m.conv(x[:, None])[:, 0], conv=nn.Conv1d(1, 1, 3, padding=1))),
    "mean over the batch": Part(lambda: Formula(lambda m, x: m.layer(x - x.mean(0)), layer=_linear()), mixes_examples=True),
}
"""For vectors (B, W) only, since channels are their second axis."""
