"""Shrinking gradients: projections, rank-c factors, and how rows lie in tensors."""

from whence.compress.codec import RowCodec
from whence.compress.factors import factorize
from whence.compress.kronecker import Kronecker, RowSums, projected_shape
from whence.compress.projection import AxesSketch, Random, random_matrix
from whence.compress.quantized_codec import QuantizedCodec

__all__ = [
    "AxesSketch",
    "Kronecker",
    "QuantizedCodec",
    "Random",
    "RowCodec",
    "RowSums",
    "factorize",
    "projected_shape",
    "random_matrix",
]
