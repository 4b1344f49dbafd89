"""What turns token ids (B, T) into features: sequences (B, T, W), or one vector (B, W) for a bag of them."""

import torch
from torch import nn
from torch.nn import functional as F

from tests.fuzz.formula import WIDTH, Formula, Part, parameter

__all__ = ["BAG", "PAD", "TABLE", "VOCABULARY"]

VOCABULARY = 7
PAD = 0


def _table(**options):
    return lambda: nn.Embedding(VOCABULARY, WIDTH, **options)


def _bag(**options):
    return lambda: nn.EmbeddingBag(VOCABULARY, WIDTH, **options)


def _with_offsets(m, ids):
    return m.bag(ids.flatten(), torch.arange(len(ids)) * ids.shape[1])


def _weighted(m, ids):
    return m.bag(ids, per_sample_weights=m.share.exp().expand(ids.shape))


def _one_hot(m, ids):
    return F.one_hot(ids, VOCABULARY).to(m.layer.weight.dtype) @ m.layer.weight


_NO_GRADIENT_OF_THE_LOSS = ("max_norm or scale_grad_by_freq",)

TABLE: dict[str, Part] = {
    "embedding": Part(_table()),
    "embedding with padding": Part(_table(padding_idx=PAD)),
    "embedding with max_norm": Part(_table(max_norm=1.0), limits=_NO_GRADIENT_OF_THE_LOSS),
    "embedding by frequency": Part(_table(scale_grad_by_freq=True), limits=_NO_GRADIENT_OF_THE_LOSS),
    "sparse embedding": Part(_table(sparse=True)),
    "sparse embedding with padding": Part(_table(sparse=True, padding_idx=PAD)),
    "embedding from outside": Part(
        lambda: Formula(lambda m, ids: F.embedding(ids, m.table, padding_idx=PAD), table=parameter(VOCABULARY, WIDTH))
    ),
    "embedding by index": Part(lambda: Formula(lambda m, ids: m.table[ids], table=parameter(VOCABULARY, WIDTH))),
    "one-hot vectors": Part(lambda: Formula(_one_hot, layer=nn.Linear(WIDTH, VOCABULARY, bias=False))),
    "embedding used twice": Part(lambda: Formula(lambda m, ids: m.table(ids) * m.table(ids.flip(1)), table=_table()()), True),
    "bags of one": Part(lambda: Formula(lambda m, ids: m.bag(ids.reshape(-1, 1)).view(*ids.shape, WIDTH), bag=_bag()())),
    "scaled embedding": Part(lambda: Formula(lambda m, ids: m.table(input=ids) * WIDTH**0.5, table=_table()())),
}
BAG: dict[str, Part] = {
    "bag": Part(_bag(), True),
    "bag of sums": Part(_bag(mode="sum"), True),
    "bag of sums with padding": Part(_bag(mode="sum", padding_idx=PAD)),
    "bag of means with padding": Part(_bag(padding_idx=PAD)),
    "bag of maxima": Part(_bag(mode="max"), True),
    "bag, sparse": Part(_bag(sparse=True), True),
    "bag with offsets": Part(lambda: Formula(_with_offsets, bag=_bag()()), True),
    "bag with weights": Part(lambda: Formula(_weighted, bag=_bag(mode="sum")(), share=parameter()), True),
    "bag with max_norm": Part(_bag(max_norm=1.0), True, limits=_NO_GRADIENT_OF_THE_LOSS),
}
