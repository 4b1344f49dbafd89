"""Which examples a task is checked on: those that would show what can go wrong, in the data as it is.

Padding shows between the shortest and the longest, negatives of other classes between two labels, positives between two of one label, a
mask's reach between the emptiest and the fullest, and a few at once show what two do not. What comes and goes with the example, as the
hardest negative does, shows among many.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from whence.data import Example

__all__ = ["companions", "telling_examples"]

_MOST, _FEWEST = 6, 4
# Examples of one batch whose values are looked at.
_CROWD = 24
# Parameters times positions: about a second of arithmetic, forwards and backwards, on one core.
_BUDGET = 2e10
# Examples that are looked at, and numbers of a field of theirs.
_CANDIDATES, _NUMBERS = 2048, 4096

Trait = float | str


def telling_examples(examples: Sequence[Example], parameters: int) -> list[Example]:
    """Up to six examples of different lengths, labels and contents, two of one label among them.

    Args:
        examples: The data; of a long one an even sample is looked at.
        parameters: Of the model, which decide how long the examples may be.

    Returns:
        The shortest first; two at least, if there are two.
    """
    candidates = _affordable(_candidates(examples), parameters)
    traits = [_traits(example) for example in candidates]
    chosen: list[int] = []
    for name in _by_importance(traits):
        by_index = {index: values[name] for index, values in enumerate(traits) if name in values}
        order = sorted(by_index, key=lambda index: (isinstance(by_index[index], str), by_index[index], index))  # noqa: B023, used at once
        low, high = order[0], order[-1]
        if by_index[low] != by_index[high]:
            chosen += [low, high]
    chosen = list(dict.fromkeys(chosen))[: _MOST - 1]
    chosen += _alike(traits, chosen)
    spread = [index * len(candidates) // _MOST for index in range(_MOST)]
    for index in dict.fromkeys([*spread, *range(min(len(candidates), _FEWEST))]):
        if len(chosen) < _FEWEST and index not in chosen:
            chosen.append(index)
    examples_kept, cost = [], 0.0
    for index in chosen[:_MOST]:
        cost += parameters * candidates[index].length
        if len(examples_kept) < 2 or cost <= _BUDGET:
            examples_kept.append(candidates[index])
    return sorted(examples_kept, key=lambda example: example.length)


def companions(examples: Sequence[Example], chosen: Sequence[Example], parameters: int) -> list[Example]:
    """Examples that fill a batch up to the size of real ones, as far as a forward pass of them is cheap.

    Args:
        examples: The data.
        chosen: Those that are checked.
        parameters: Of the model.

    Returns:
        None of those that are chosen; maybe none at all.
    """
    longest = max(example.length for example in chosen)
    room = min(_CROWD, int(_BUDGET / max(1, parameters * longest))) - len(chosen)
    if room < 1:
        return []
    own = {example.id for example in chosen}
    others = [example for example in _candidates(examples) if example.id not in own and example.length <= longest]
    step = max(1, len(others) // room)
    return others[::step][:room]


def _candidates(examples: Sequence[Example]) -> list[Example]:
    """Some of the examples, evenly; of those on a disk a few runs of neighbours, which lie in one file."""
    if isinstance(examples, list | tuple):
        return list(examples[:: max(1, len(examples) // _CANDIDATES)])
    runs, length = 8, 32
    if len(examples) <= runs * length:
        return list(examples)
    starts = [index * (len(examples) - length) // (runs - 1) for index in range(runs)]
    return [example for start in starts for example in examples[start : start + length]]


def _affordable(candidates: list[Example], parameters: int) -> list[Example]:
    """Those of lengths that four can be run of; but two different lengths, if there are."""
    lengths = sorted({example.length for example in candidates})
    limit = max(_BUDGET / (_FEWEST * parameters), *lengths[:2])
    return [example for example in candidates if example.length <= limit]


def _traits(example: Example) -> dict[str, Trait]:
    """What tells an example from others: by name, a number or a word."""
    traits: dict[str, Trait] = {"length": float(example.length)}
    for name, value in example.fields.items():
        if isinstance(value, str):
            traits[f"is {name}"] = value
            continue
        array = _array(value)
        if array is None:
            continue
        if array.size == 1:
            traits[f"is {name}"] = _finite(array.item())
            continue
        traits[f"size of {name}"] = float(array.size)
        head = array.reshape(-1)[:_NUMBERS]
        if head.size:
            traits[f"most of {name}"] = _finite(head.max())
            traits[f"sum of {name}"] = _finite(head.sum(dtype=np.float64))
    return traits


def _array(value: Any) -> np.ndarray | None:
    if isinstance(value, torch.Tensor):
        value = value.detach()
        value = value.abs() if value.is_complex() else value.float() if value.dtype == torch.bfloat16 else value
        return value.cpu().numpy()
    try:
        array = np.abs(value) if np.iscomplexobj(value) else np.asarray(value)
    except (ValueError, TypeError):
        return None
    return array if array.dtype.kind in "biuf" else None


def _finite(value: Any) -> float:
    """The number, and infinity for one that is none: what cannot be used is looked at first."""
    return float(value) if np.isfinite(value) else float("inf")


def _by_importance(traits: Sequence[dict[str, Trait]]) -> list[str]:
    """Names of the traits: lengths, then single values such as labels, then how much there is, then what."""
    kinds = ("length", "is", "size", "most", "sum")
    names = dict.fromkeys(name for values in traits for name in values)
    # Of single values those with few others first: a label rather than a real target.
    counts = {name: len({values[name] for values in traits if name in values}) for name in names}
    return sorted(names, key=lambda name: (kinds.index(name.split(" ")[0]), counts[name]))


def _alike(traits: Sequence[dict[str, Trait]], chosen: Sequence[int]) -> list[int]:
    """Another example with the label of one that is chosen, where no two of them have the same."""
    for name in _by_importance(traits):
        values = [values.get(name) for values in traits]
        if not name.startswith("is ") or len(set(values)) in (1, len(values)):
            continue
        taken = {values[index] for index in chosen}
        if len(taken) < len(set(chosen)):
            return []
        return [index for index, value in enumerate(values) if value in taken and index not in chosen][:1]
    return []
