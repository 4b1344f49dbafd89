"""Parts for images (B, W, height, width) and signals (B, W, T): convolutions, and norms by channel."""

import torch
import torch.nn.utils.parametrizations as parametrizations
from torch import nn

from tests.fuzz.formula import WIDTH, Formula, Part, parameter

__all__ = ["IMAGE", "SIGNAL"]


def _with_values(norm):
    for value in norm.parameters():
        value.data.normal_(1.0, 0.5)
    if getattr(norm, "running_mean", None) is not None:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    return norm


def _squeeze(m, x):
    pooled = x.flatten(2).mean(2)
    scale = m.up(m.down(pooled).tanh()).sigmoid()
    return x * scale.view(*scale.shape, *[1] * (x.ndim - 2))


def _channels_last(m, x):
    return m.norm(x.contiguous(memory_format=torch.channels_last))


def _convolutions(conv, turned, size):
    """What there is for two and for one dimension alike."""
    return {
        "convolution": Part(lambda: conv(WIDTH, WIDTH, 3, padding=1)),
        "convolution without bias": Part(lambda: conv(WIDTH, WIDTH, 3, padding=1, bias=False)),
        "convolution of one": Part(lambda: conv(WIDTH, WIDTH, 1)),
        "wide and back": Part(lambda: nn.Sequential(conv(WIDTH, 6, 3, padding=1), nn.Tanh(), conv(6, WIDTH, 1))),
        "grouped": Part(lambda: conv(WIDTH, WIDTH, 3, padding=1, groups=2)),
        "depthwise": Part(lambda: conv(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)),
        "dilated": Part(lambda: conv(WIDTH, WIDTH, 3, padding=2, dilation=2)),
        "dilated, grouped, same": Part(lambda: conv(WIDTH, WIDTH, 3, padding="same", dilation=2, groups=2)),
        "even kernel, same": Part(lambda: conv(WIDTH, WIDTH, 2, padding="same")),
        "valid": Part(lambda: nn.Sequential(conv(WIDTH, 3, 3, padding="valid"), turned(3, WIDTH, 3))),
        "circular": Part(lambda: conv(WIDTH, WIDTH, 3, padding=1, padding_mode="circular")),
        "reflected": Part(lambda: conv(WIDTH, WIDTH, 3, padding=1, padding_mode="reflect")),
        "strided and back": Part(lambda: nn.Sequential(conv(WIDTH, 5, 2, stride=2), nn.Tanh(), turned(5, WIDTH, 2, stride=2))),
        "transposed": Part(lambda: turned(WIDTH, WIDTH, 3, padding=1)),
        "transposed, grouped": Part(lambda: turned(WIDTH, WIDTH, 3, padding=1, groups=2)),
        "convolution applied twice": Part(
            lambda: Formula(lambda m, x: m.conv(m.conv(x).tanh()), conv=conv(WIDTH, WIDTH, 3, padding=1))
        ),
        "residual": Part(lambda: Formula(lambda m, x: x + m.conv(x).relu(), conv=conv(WIDTH, WIDTH, 3, padding=1))),
        "called by keyword": Part(lambda: Formula(lambda m, x: m.conv(input=x), conv=conv(WIDTH, WIDTH, 1))),
        "weight norm": Part(lambda: parametrizations.weight_norm(conv(WIDTH, WIDTH, 3, padding=1))),
        "spectral norm": Part(lambda: parametrizations.spectral_norm(conv(WIDTH, WIDTH, 1))),
        "group norm": Part(lambda: _with_values(nn.GroupNorm(2, WIDTH))),
        "group norm without affine": Part(lambda: nn.GroupNorm(2, WIDTH, affine=False)),
        "group norm applied twice": Part(
            lambda: Formula(lambda m, x: m.norm(m.norm(x).tanh()), norm=_with_values(nn.GroupNorm(2, 4)))
        ),
        "prelu by channel": Part(lambda: nn.PReLU(WIDTH)),
        "squeeze and excite": Part(lambda: Formula(_squeeze, down=nn.Linear(WIDTH, 2), up=nn.Linear(2, WIDTH))),
        "dropout of channels": Part(lambda: nn.Dropout1d(0.5) if size == 1 else nn.Dropout2d(0.5)),
        "scale by channel": Part(
            lambda: Formula(lambda m, x: x * m.gain + m.shift, gain=parameter(WIDTH, *[1] * size), shift=parameter(1))
        ),
    }


def _norms(batch, instance):
    return {
        "batch norm": Part(lambda: _with_values(batch(WIDTH))),
        "batch norm without affine": Part(lambda: _with_values(batch(WIDTH, affine=False))),
        "batch norm without statistics": Part(
            lambda: batch(WIDTH, track_running_stats=False), mixes_examples=True, limits=("running statistics",)
        ),
        "batch norm applied twice": Part(
            lambda: Formula(lambda m, x: m.norm(m.norm(x).tanh()), norm=_with_values(batch(WIDTH)))
        ),
        "instance norm": Part(lambda: _with_values(instance(WIDTH, affine=True))),
        "instance norm with statistics": Part(lambda: _with_values(instance(WIDTH, affine=True, track_running_stats=True))),
    }


IMAGE: dict[str, Part] = {
    **_convolutions(nn.Conv2d, nn.ConvTranspose2d, 2),
    **_norms(nn.BatchNorm2d, nn.InstanceNorm2d),
    "uneven kernel": Part(lambda: nn.Conv2d(WIDTH, WIDTH, (3, 1), padding=(1, 0))),
    "channels last": Part(
        lambda: Formula(
            lambda m, x: m.conv(x.contiguous(memory_format=torch.channels_last)), conv=nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        )
    ),
    # After a layer: on an input that asks for no gradient PyTorch 2.13 crashes on the way back.
    "group norm, channels last": Part(
        lambda: nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), Formula(_channels_last, norm=_with_values(nn.GroupNorm(2, 4))))
    ),
    "linear over channels": Part(
        lambda: Formula(lambda m, x: m.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), layer=nn.Linear(WIDTH, WIDTH))
    ),
    "layer norm over channels": Part(
        lambda: Formula(lambda m, x: m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=nn.LayerNorm(WIDTH))
    ),
    "layer norm over all": Part(lambda: _with_values(nn.LayerNorm((WIDTH, 4, 4)))),
    "three dimensions": Part(
        lambda: Formula(lambda m, x: m.conv(x[:, :, None])[:, :, 0], conv=nn.Conv3d(WIDTH, WIDTH, (1, 3, 3), padding=(0, 1, 1)))
    ),
    "images on the batch axis": Part(
        lambda: Formula(lambda m, x: m.conv(x.reshape(-1, 2, 4, 4)).reshape(x.shape), conv=nn.Conv2d(2, 2, 3, padding=1))
    ),
}

SIGNAL: dict[str, Part] = {
    **_convolutions(nn.Conv1d, nn.ConvTranspose1d, 1),
    **_norms(nn.BatchNorm1d, nn.InstanceNorm1d),
    "linear over time": Part(lambda: nn.Linear(6, 6)),
    "recurrent over time": Part(
        lambda: Formula(lambda m, x: m.layer(x.mT)[0].mT, layer=nn.GRU(WIDTH, WIDTH, batch_first=True))
    ),
}
