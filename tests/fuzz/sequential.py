"""Parts that mix the positions of a sequence (B, T, W)."""

import torch
from torch import nn
from torch.nn import functional as F

from tests.fuzz.formula import WIDTH, Formula, Part, parameter

__all__ = ["LENGTH", "SEQUENCE"]

LENGTH = 3
"""Positions of a sequence where nothing else says so."""


def _linear():
    return nn.Linear(WIDTH, WIDTH)


def _attention(**options):
    def attend(m, x):
        return m.attention(x, x, x, need_weights=False)[0]

    return lambda: Formula(attend, attention=nn.MultiheadAttention(WIDTH, 2, batch_first=True, **options))


def _time_first_attention():
    def attend(m, x):
        turned = x.transpose(0, 1)
        return m.attention(turned, turned, turned)[0].transpose(0, 1)

    return Formula(attend, attention=nn.MultiheadAttention(WIDTH, 2))


def _fused(causal):
    def attend(m, x):
        query, key, value = (layer(x)[:, None] for layer in (m.query, m.key, m.value))
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)[:, 0]

    return lambda: Formula(attend, query=_linear(), key=_linear(), value=_linear())


def _by_hand(m, x):
    query, key, value = m.packed(x).chunk(3, -1)
    scores = query @ key.mT / WIDTH**0.5
    mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    return m.out(scores.masked_fill(mask, -torch.inf).softmax(-1) @ value)


def _relative(m, x):
    length = x.shape[1]
    distance = (torch.arange(length)[:, None] - torch.arange(length)[None]).abs().clamp_max(2)
    scores = m.query(x) @ m.key(x).mT + m.bias(distance)[..., 0]
    return scores.softmax(-1) @ x


def _recurrent(kind, width=WIDTH, **options):
    return lambda: Formula(lambda m, x: m.layer(x)[0], layer=kind(WIDTH, width, batch_first=True, **options))


def _time_first(kind):
    def run(m, x):
        return m.layer(x.transpose(0, 1))[0].transpose(0, 1)

    return lambda: Formula(run, layer=kind(WIDTH, WIDTH))


def _cell(m, x):
    state, found = x.new_zeros(len(x), WIDTH), []
    for step in x.unbind(1):
        state = m.cell(step, state)
        found.append(state)
    return torch.stack(found, 1)


def _long_short_cell(m, x):
    state, found = (x.new_zeros(len(x), WIDTH), x.new_zeros(len(x), WIDTH)), []
    for step in x.unbind(1):
        state = m.cell(step, state)
        found.append(state[0])
    return torch.stack(found, 1)


def _over_time(m, x):
    return m.conv(x.mT).mT


def _causal_over_time(m, x):
    return m.conv(F.pad(x.mT, (2, 0))).mT


def _first_for_all(m, x):
    return x + m.layer(x[:, 0])[:, None]


def _time_folded_first(m, x):
    """Positions before examples on one axis: entries of one example do not lie together."""
    folded = m.layer(x.transpose(0, 1).reshape(-1, WIDTH))
    return folded.view(x.shape[1], len(x), WIDTH).transpose(0, 1)


def _positions_table(m, x):
    return x + m.table(torch.arange(x.shape[1]))


def _positions_table_by_batch(m, x):
    return x + m.table(torch.arange(x.shape[1])[None])


def _class_token(m, x):
    return m.layer(torch.cat([m.token.expand(len(x), 1, WIDTH), x], 1))[:, 1:] + m.token


def _memory(m, x):
    """Rows that all examples share go through a layer of their own: as many as there may be examples."""
    memory = m.layer(m.rows)
    return x + (x @ memory.T).softmax(-1) @ memory


_MIXED = {"mixes_positions": True}

SEQUENCE: dict[str, Part] = {
    "attention": Part(_attention(), **_MIXED),
    "attention with extra bias": Part(_attention(add_bias_kv=True), **_MIXED),
    "attention without bias": Part(_attention(bias=False), **_MIXED),
    "attention, time first": Part(_time_first_attention, **_MIXED),
    "encoder layer": Part(lambda: nn.TransformerEncoderLayer(WIDTH, 2, 5, batch_first=True), **_MIXED),
    "encoder layer, norm first": Part(
        lambda: nn.TransformerEncoderLayer(WIDTH, 2, 5, batch_first=True, norm_first=True, activation="gelu"), **_MIXED
    ),
    "decoder layer": Part(
        lambda: Formula(lambda m, x: m.layer(x, x), layer=nn.TransformerDecoderLayer(WIDTH, 2, 5, batch_first=True)), **_MIXED
    ),
    "fused attention": Part(_fused(False), **_MIXED),
    "fused causal attention": Part(_fused(True)),
    "attention by hand": Part(lambda: Formula(_by_hand, packed=nn.Linear(WIDTH, 12), out=_linear())),
    "relative attention": Part(lambda: Formula(_relative, query=_linear(), key=_linear(), bias=nn.Embedding(3, 1)), **_MIXED),
    "rnn": Part(_recurrent(nn.RNN)),
    "lstm": Part(_recurrent(nn.LSTM)),
    "lstm, two layers": Part(_recurrent(nn.LSTM, num_layers=2)),
    "lstm with projection": Part(_recurrent(nn.LSTM, width=5, proj_size=WIDTH)),
    "lstm, time first": Part(_time_first(nn.LSTM)),
    "gru": Part(_recurrent(nn.GRU)),
    "gru, both directions": Part(_recurrent(nn.GRU, width=2, bidirectional=True), **_MIXED),
    "gru, time first": Part(_time_first(nn.GRU)),
    "rnn cell": Part(lambda: Formula(_cell, cell=nn.RNNCell(WIDTH, WIDTH))),
    "gru cell": Part(lambda: Formula(_cell, cell=nn.GRUCell(WIDTH, WIDTH))),
    "lstm cell": Part(lambda: Formula(_long_short_cell, cell=nn.LSTMCell(WIDTH, WIDTH))),
    "convolution over time": Part(lambda: Formula(_over_time, conv=nn.Conv1d(WIDTH, WIDTH, 3, padding=1)), **_MIXED),
    "causal convolution": Part(lambda: Formula(_causal_over_time, conv=nn.Conv1d(WIDTH, WIDTH, 3, groups=4))),
    "first position for all": Part(lambda: Formula(_first_for_all, layer=_linear())),
    "time before batch": Part(lambda: Formula(lambda m, x: m.layer(x.transpose(0, 1)).transpose(0, 1), layer=_linear())),
    "norm, time before batch": Part(
        lambda: Formula(lambda m, x: m.norm(x.transpose(0, 1)).transpose(0, 1), norm=nn.LayerNorm(WIDTH))
    ),
    "folded": Part(lambda: Formula(lambda m, x: m.layer(x.flatten(0, 1)).view(x.shape), layer=_linear())),
    "folded, time first": Part(lambda: Formula(_time_folded_first, layer=_linear())),
    "table of positions": Part(lambda: Formula(_positions_table, table=nn.Embedding(16, WIDTH))),
    "table of positions, one row": Part(lambda: Formula(_positions_table_by_batch, table=nn.Embedding(16, WIDTH))),
    "parameter of positions": Part(lambda: Formula(lambda m, x: x + m.places[:, : x.shape[1]], places=parameter(1, 16, WIDTH))),
    "class token": Part(lambda: Formula(_class_token, layer=_linear(), token=parameter(1, 1, WIDTH))),
    "memory of five": Part(lambda: Formula(_memory, layer=_linear(), rows=parameter(5, WIDTH))),
    "memory of two": Part(lambda: Formula(_memory, layer=_linear(), rows=parameter(2, WIDTH))),
    "norm over positions": Part(
        lambda: Formula(lambda m, x: m.norm(x.mT).mT, norm=nn.InstanceNorm1d(WIDTH, affine=True)), **_MIXED
    ),
    "batch norm over features": Part(lambda: Formula(lambda m, x: m.norm(x.mT).mT, norm=nn.BatchNorm1d(WIDTH))),
    "last position first": Part(lambda: Formula(lambda m, x: m.layer(x).flip(1), layer=_linear()), **_MIXED),
}
