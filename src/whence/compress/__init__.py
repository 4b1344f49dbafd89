"""Shrinking gradients: projections, rank-c factors, and how rows lie in tensors."""

from whence.compress.codec import RowCodec
from whence.compress.encoder import Encoder, RowConsumer
from whence.compress.factors import factorize
from whence.compress.kronecker import Kronecker, RowSums, projected_shape
from whence.compress.projection import AxesSketch, Random, random_matrix

__all__ = [
    "AxesSketch",
    "Encoder",
    "Kronecker",
    "Random",
    "RowCodec",
    "RowConsumer",
    "RowSums",
    "factorize",
    "projected_shape",
    "random_matrix",
]
