"""What each layer type contributes: from its input and output gradient to gradient pairs.

Axes: B batch, T positions, I inputs, O outputs, N length of a vector parameter. Every rule returns one pair per call; pairs of several
calls add up. Gradients are of each example's summed loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from whence.errors import Unsupported
from whence.internals import BATCH_NORMS
from whence.records import Dense, OneHot, Pair

__all__ = ["Rule", "matrix_pair", "rule_for", "vector_pair"]

PairRule = Callable[[Any, Tensor, Tensor, bool], Pair]


@dataclass(frozen=True)
class Rule:
    """How one layer type is captured.

    Args:
        weight: From (module, input, output gradient, whether the bias is joined) to the pair of the weight. Both tensors have the layer's
            own axes, examples first.
        matrix: The weight, or its gradient, as a matrix (outputs, inputs).
        bias_positions: From (module, output gradient) to (B, T, O), for a bias on its own.
        vector: Whether the weight is a vector, so that a joined bias is appended instead of being a column of ones.
        foldable: Whether the layer treats all leading axes alike, so that positions folded into the batch axis may be unfolded before it.
        transposed: Whether the weight lies the other way round, (inputs, outputs).
        fewest_axes: Of an output that has an axis for the examples.
        looks_up: Whether it looks rows up, whose ids may lack that axis.
        finds_ids: Whether it is told something else than these ids, which it makes itself.
    """

    weight: PairRule
    matrix: Callable[[Tensor], Tensor]
    bias_positions: Callable[[Any, Tensor], Tensor]
    vector: bool = False
    foldable: bool = True
    transposed: bool = False
    fewest_axes: int = 2
    looks_up: bool = False
    finds_ids: bool = False

    def from_matrix(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `matrix`, with any leading axes: (..., outputs, inputs) to (..., *shape)."""
        turned = matrix.mT if self.transposed else matrix
        return turned.reshape(*matrix.shape[:-2], *shape)

    def bias(self, module: Any, grad: Tensor) -> Pair:
        """The pair of a bias that is not joined to its weight: the output gradient summed over positions."""
        return vector_pair(self.bias_positions(module, grad).sum(1))


def vector_pair(gradient_BN: Tensor) -> Pair:
    """A vector parameter's per-example gradient as a pair with one output and one position."""
    ones_B11 = gradient_BN.new_ones(len(gradient_BN), 1, 1)
    return Pair(Dense(ones_B11), Dense(gradient_BN[:, None, :]))


def matrix_pair(gradient_BOI: Tensor) -> Pair:
    """A matrix's per-example gradient, written out, as a pair with a position for each of its rows."""
    batch, outputs, _ = gradient_BOI.shape
    rows_BO = torch.arange(outputs, device=gradient_BOI.device).expand(batch, -1)
    return Pair(OneHot(rows_BO, outputs, gradient_BOI.dtype), Dense(gradient_BOI), is_by_position=False)


def _positions(values: Tensor) -> Tensor:
    """(B, ..., N) as (B, T, N)."""
    return values.reshape(values.shape[0], -1, values.shape[-1])


def _linear(module: Any, inputs: Tensor, grad: Tensor, joined: bool) -> Pair:
    return Pair(Dense(_positions(grad)), Dense(_positions(inputs), has_one=joined))


def _embedding(module: Any, inputs: Tensor, grad: Tensor, joined: bool) -> Pair:
    ids_BT = inputs.reshape(inputs.shape[0], -1)
    grad_BTN = _positions(grad)
    if module.padding_idx is not None:  # PyTorch gives this row no gradient
        grad_BTN = grad_BTN.masked_fill((ids_BT == module.padding_idx)[..., None], 0.0)
    return Pair(OneHot(ids_BT, module.num_embeddings, grad.dtype), Dense(grad_BTN))


def _scaled_embedding(module: Any, inputs: Tensor, grad: Tensor, joined: bool) -> Pair:
    return _embedding(module, inputs, grad * module.embed_scale, joined)


def _normed(module: Any, inputs: Tensor) -> Tensor:
    wide = inputs if inputs.dtype == torch.float64 else inputs.float()
    if isinstance(module, nn.LayerNorm):
        return nn.functional.layer_norm(wide, module.normalized_shape, eps=module.eps)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if eps is None:  # nn.RMSNorm's default
        eps = torch.finfo(inputs.dtype).eps
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)


def _norm(module: Any, inputs: Tensor, grad: Tensor, joined: bool) -> Pair:
    width = module.weight.numel()
    normed_BTN = _normed(module, inputs).reshape(inputs.shape[0], -1, width)
    grad_BTN = grad.to(normed_BTN.dtype).reshape(normed_BTN.shape)
    scale_BN = torch.einsum("btn,btn->bn", grad_BTN, normed_BTN)
    return vector_pair(torch.cat([scale_BN, grad_BTN.sum(1)], 1) if joined else scale_BN)


def _channels_normed(module: Any, inputs: Tensor) -> Tensor:
    wide = inputs if inputs.dtype == torch.float64 else inputs.float()
    if isinstance(module, nn.GroupNorm):
        return nn.functional.group_norm(wide, module.num_groups, eps=module.eps)
    mean, variance = module.running_mean.to(wide), module.running_var.to(wide)
    return nn.functional.batch_norm(wide, mean, variance, eps=module.eps)


def _channel_norm(module: Any, inputs: Tensor, grad: Tensor, joined: bool) -> Pair:
    """A norm with one scale per channel, channels on the second axis."""
    normed_BNT = _channels_normed(module, inputs).reshape(*inputs.shape[:2], -1)
    grad_BNT = grad.to(normed_BNT.dtype).reshape(normed_BNT.shape)
    scale_BN = torch.einsum("bnt,bnt->bn", grad_BNT, normed_BNT)
    return vector_pair(torch.cat([scale_BN, grad_BNT.sum(2)], 1) if joined else scale_BN)


def _conv(module: Any, inputs: Tensor, grad: Tensor, joined: bool) -> Pair:
    """Convolution as a linear layer over unfolded patches (Grosse and Martens 2016, section 3)."""
    flat = isinstance(module, nn.Conv1d)
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    if module.padding == "valid":
        before = after = (0,) * len(kernel)
    elif module.padding == "same":
        total = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        before = tuple(t // 2 for t in total)
        after = tuple(t - b for t, b in zip(total, before, strict=True))
    else:
        before = after = module.padding
    pads = [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]
    padded = nn.functional.pad(inputs, pads)
    if flat:
        padded, kernel, stride, dilation = padded[:, :, None], (1, *kernel), (1, *stride), (1, *dilation)
    patches_BIT = nn.functional.unfold(padded, kernel, dilation=dilation, stride=stride)
    grad_BOT = grad.flatten(2)
    if module.groups == 1:
        return Pair(Dense(grad_BOT.transpose(1, 2)), Dense(patches_BIT.transpose(1, 2), has_one=joined))
    # With groups each output sees its own inputs, so the gradient is written out: small, for the kernels are.
    batch, positions = patches_BIT.shape[0], patches_BIT.shape[2]
    by_group = patches_BIT.view(batch, module.groups, -1, positions)
    grads = grad_BOT.view(batch, module.groups, -1, positions)
    rows_BOI = torch.einsum("bgot,bgit->bgoi", grads, by_group).flatten(1, 2)
    if joined:
        rows_BOI = torch.cat([rows_BOI, grad_BOT.sum(2)[..., None]], -1)
    numbers_BO = torch.arange(module.out_channels, device=grad.device).expand(batch, -1)
    return Pair(OneHot(numbers_BO, module.out_channels, grad.dtype), Dense(rows_BOI))


def _as_is(weight: Tensor) -> Tensor:
    return weight.flatten(1)


def _transposed(weight: Tensor) -> Tensor:
    return weight.T


def _one_row(weight: Tensor) -> Tensor:
    return weight.reshape(1, -1)


def _features(module: Any, grad: Tensor) -> Tensor:
    """(B, ..., *shape) as (B, T, O), for a bias of one axis or, in a norm over several, more."""
    return grad.reshape(grad.shape[0], -1, module.bias.numel())


def _channels_last(module: Any, grad: Tensor) -> Tensor:
    return grad.reshape(*grad.shape[:2], -1).transpose(1, 2)


LINEAR = Rule(_linear, _as_is, _features)
TRANSPOSED = Rule(_linear, _transposed, _features, transposed=True)
EMBEDDING = Rule(_embedding, _as_is, _features, looks_up=True)
SCALED_EMBEDDING = Rule(_scaled_embedding, _as_is, _features, looks_up=True)
# A table of places, such as BART's and OPT's, makes ids from a length or a mask; they are found when it runs.
POSITIONS = Rule(_embedding, _as_is, _features, looks_up=True, finds_ids=True)
NORM = Rule(_norm, _one_row, _features, vector=True)
CHANNEL_NORM = Rule(_channel_norm, _one_row, _channels_last, vector=True, foldable=False)
CONV = Rule(_conv, _as_is, _channels_last, foldable=False, fewest_axes=3)
IMAGE_CONV = Rule(_conv, _as_is, _channels_last, foldable=False, fewest_axes=4)


# How classes of norms without a mean are called: T5's, and those of its like.
_ROOT_MEAN_SQUARE = (
    "RMSNorm", "T5LayerNorm", "SwitchTransformersLayerNorm", "Pix2StructLayerNorm", "Pop2PianoLayerNorm", "UdopLayerNorm",
)  # fmt: skip


def rule_for(module: Any) -> Rule | None:
    """The rule of a layer, or None if there is none.

    A subclass counts only if it keeps its parent's `forward`, since a changed one may use the weight differently. Whether the rule
    gives this model's gradients is checked on real examples before a build (`capture.check`).

    Raises:
        Unsupported: If the layer's type is known but not the way it is set up.
    """
    # fully_shard gives a layer a class of its own, named after the layer's.
    name, forward = type(module).__name__.removeprefix("FSDP"), type(module).forward
    if (forward is nn.Linear.forward and name != "NonDynamicallyQuantizableLinear") or name == "FalconLinear":
        return LINEAR
    if name == "Conv1D" and getattr(module, "weight", None) is not None and hasattr(module, "nf"):
        return TRANSPOSED
    # The embedding of Gemma and other models of Hugging Face: rows times a constant.
    is_scaled = name.endswith("ScaledWordEmbedding") and hasattr(module, "embed_scale")
    is_table = isinstance(module, nn.Embedding | nn.EmbeddingBag)
    if is_table and (module.max_norm is not None or module.scale_grad_by_freq):
        raise Unsupported(
            found="an embedding with max_norm or scale_grad_by_freq",
            needed="a plain embedding, whose gradient is that of the loss",
            do="leave its weight out with ignore=[...]",
        )
    if forward is nn.Embedding.forward or is_scaled:
        return SCALED_EMBEDDING if is_scaled else EMBEDDING
    if isinstance(module, nn.Embedding):
        return POSITIONS
    if forward is nn.LayerNorm.forward and module.weight is not None:
        return NORM
    if name.endswith(_ROOT_MEAN_SQUARE) and getattr(getattr(module, "weight", None), "ndim", 0) == 1:
        return NORM
    # Without running statistics a batch norm mixes the examples of a batch even in evaluation mode.
    is_frozen = isinstance(module, BATCH_NORMS) and module.running_mean is not None
    keeps_forward = forward in (nn.GroupNorm.forward, nn.BatchNorm1d.forward)
    if keeps_forward and module.weight is not None and (is_frozen or isinstance(module, nn.GroupNorm)):
        return CHANNEL_NORM
    if forward in (nn.Conv1d.forward, nn.Conv2d.forward) and module.padding_mode == "zeros":
        return CONV if isinstance(module, nn.Conv1d) else IMAGE_CONV
    return None
