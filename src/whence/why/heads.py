"""Which attention head a score comes through: the rows and columns of the projections that belong to it.

Axes: T positions, O outputs, I inputs, H heads, D width of a head.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from whence.capture import Plan, capture
from whence.data import Example
from whence.records import Dense, Pair
from whence.score import LowRank, QueryBlock
from whence.tasks import AbstractTask

__all__ = ["head_scores", "heads_of", "modules_of"]

Slices = Sequence[tuple[str, str, slice]]
"""For each head of a unit its name, the side it is a part of ("outputs" or "inputs"), and where there."""

_OWN = {"q_proj": "outputs", "k_proj": "outputs", "v_proj": "outputs", "o_proj": "inputs", "out_proj": "inputs"}
# Fused projections whose rows are all of one head's queries, keys and values, then the next one's.
_BY_HEAD = ("gpt_neox", "bloom")


def heads_of(model: nn.Module, plan: Plan) -> dict[int, Slices]:
    """By unit, the heads that its rows or columns belong to; units that are no projection of a known form are left out.

    Keys and values that several heads share are the group's.

    Args:
        model: A language model with a configuration of transformers.
        plan: Its units.
    """
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads = getattr(config, "num_attention_heads", None)
    width = getattr(config, "hidden_size", None)
    if not isinstance(heads, int) or not isinstance(width, int) or heads < 1:
        return {}
    shared = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or width // heads
    slices = {}
    for index, unit in enumerate(plan.units):
        if len(unit.layers) == 1:
            sliced = _of_layer(unit.layers[0], (heads, shared, size), getattr(config, "model_type", ""))
            sides = {"outputs": unit.outputs, "inputs": unit.inputs}
            # A bias is one more column.
            if sliced and all(where.stop <= sides[side] for _, side, where in sliced) and _covers(sliced, sides):
                slices[index] = sliced
    return slices


def _of_layer(layer: str, sizes: tuple[int, int, int], family: str) -> Slices:
    heads, shared, size = sizes
    parent, _, name = layer.rpartition(".")
    if "attn" not in parent.rpartition(".")[2] and "attention" not in parent.rpartition(".")[2]:
        return ()
    if name in _OWN:
        is_shared = name in ("k_proj", "v_proj") and shared < heads
        count, kind = (shared, "key-value group") if is_shared else (heads, "head")
        return [(f"{parent} {kind} {h}", _OWN[name], slice(h * size, (h + 1) * size)) for h in range(count)]
    if name == "c_attn":  # queries of all heads, then keys, then values
        return [
            (f"{parent} head {h}", "outputs", slice((part * heads + h) * size, (part * heads + h + 1) * size))
            for part in range(3)
            for h in range(heads)
        ]
    if name == "query_key_value" and family in _BY_HEAD:
        return [(f"{parent} head {h}", "outputs", slice(3 * h * size, 3 * (h + 1) * size)) for h in range(heads)]
    if name == "c_proj" or (name == "dense" and family in _BY_HEAD):
        return [(f"{parent} head {h}", "inputs", slice(h * size, (h + 1) * size)) for h in range(heads)]
    return ()


def _covers(sliced: Slices, sides: Mapping[str, int]) -> bool:
    """Whether the slices are all of the side, but for a bias behind it."""
    covered = sum(where.stop - where.start for _, _, where in sliced)
    side = sliced[0][1]
    return sides[side] - covered in ((0,) if side == "outputs" else (0, 1))


def head_scores(
    task: AbstractTask, plan: Plan, example: Example, blocks: Sequence[QueryBlock], heads: Mapping[int, Slices]
) -> dict[str, float]:
    """Each head's part of one example's score: of its rows of the queries', keys' and values' weights and its columns of the output's.

    A score is the sum over a weight's entries of the query's times the gradient's, so it splits over any set of them.

    Args:
        task: Model and loss.
        plan: Its units.
        example: The training example.
        blocks: One preconditioned query, per unit of shape (1, O, I).
        heads: As `heads_of` gives them.
    """
    parts: dict[str, float] = {}

    def consume(index: int, pair: Pair) -> None:
        if index not in heads:
            return
        block, pair = blocks[index], pair.wide()
        assert isinstance(pair.outputs, Dense)  # no projection is a table
        left_TO, right_TI = pair.outputs.dense()[0], pair.inputs.dense()[0]
        weight_OI = (block.dense() if isinstance(block, LowRank) else block)[0].to(left_TO)
        sums = {
            "outputs": (left_TO * (right_TI @ weight_OI.T)).sum(0),
            "inputs": (right_TI * (left_TO @ weight_OI)).sum(0),
        }
        for name, side, where in heads[index]:
            parts[name] = parts.get(name, 0.0) + float(sums[side][where].sum())

    batch = task.collate([example])
    capture(task, plan, batch, consume, num_examples=1, alone=lambda _: batch)
    return parts


def modules_of(layers: Mapping[str, float]) -> dict[str, float]:
    """Parts of layers added up by the module that holds them, such as an attention or an MLP.

    >>> modules_of({"h.0.mlp.up.weight": 1.0, "h.0.mlp.down.weight": 2.0, "head.weight": 4.0})
    {'h.0.mlp': 3.0, '(the model)': 4.0}
    """
    sums: dict[str, float] = {}
    for name, part in layers.items():
        module = ".".join(name.split(".")[:-2]) or "(the model)"
        sums[module] = sums.get(module, 0.0) + part
    return sums
