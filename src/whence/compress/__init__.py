"""Shrinking gradients: projections, rank-c factors, and how rows lie in tensors."""

from whence.compress.aligned import REST, Aligned, Axes, Whitened, numbers_held
from whence.compress.codec import RowCodec
from whence.compress.encoder import Encoder, RowConsumer
from whence.compress.factors import factorize
from whence.compress.kronecker import Kronecker, RowSums, projected_shape
from whence.compress.masked import BLOW_UP, ChannelMask, EntryMask, entries_of
from whence.compress.projection import AxesSketch, Random, nystroem_directions, random_matrix
from whence.compress.quantize import quantize, to_integers
from whence.compress.quantized_codec import QuantizedCodec
from whence.compress.residual import Residual
from whence.compress.sparse import SparseSketch, random_places
from whence.compress.turn import TURNED, turn, turn_back
from whence.compress.whole import WholeProjection, joined_unit

__all__ = [
    "BLOW_UP",
    "TURNED",
    "turn",
    "turn_back",
    "quantize",
    "to_integers",
    "REST",
    "Aligned",
    "Axes",
    "Whitened",
    "numbers_held",
    "AxesSketch",
    "ChannelMask",
    "Encoder",
    "EntryMask",
    "Kronecker",
    "QuantizedCodec",
    "Random",
    "Residual",
    "RowCodec",
    "RowConsumer",
    "RowSums",
    "SparseSketch",
    "WholeProjection",
    "entries_of",
    "factorize",
    "joined_unit",
    "projected_shape",
    "nystroem_directions",
    "random_matrix",
    "random_places",
]
