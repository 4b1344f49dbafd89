"""Which examples are left out of each training run of a bank.

Axes: M subsets, N training examples.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from whence.errors import BadInput

__all__ = ["leave_k_out", "leave_one_out", "random_subsets"]


def random_subsets(num_examples: int, count: int, *, fraction: float = 0.5, seed: int = 0) -> Tensor:
    """Subsets of one size, drawn without replacement, each on its own (Ilyas et al. 2022, section 2).

    The first subsets of a longer series are those of a shorter one, so a bank can grow.

    Args:
        num_examples: Training examples.
        count: Subsets.
        fraction: Share of the examples that is kept, rounded to whole examples.
        seed: The same seed draws the same subsets.

    Returns:
        Shape (M, N), True for what is kept.

    Raises:
        BadInput: If nothing would be kept, or nothing left out, or `count` is not positive.

    >>> random_subsets(4, 2).sum(1)
    tensor([2, 2])
    """
    size = round(fraction * num_examples)
    if not 0 < size < num_examples or count < 1:
        raise BadInput(
            found=f"{count} subsets of {size} of {num_examples} examples (fraction {fraction})",
            needed="one or more subsets that keep some examples and leave some out",
            do="choose a fraction between 0 and 1, such as 0.5",
        )
    return _drawn(num_examples, count, size, seed)


def leave_k_out(num_examples: int, k: int, count: int, *, seed: int = 0) -> Tensor:
    """Subsets that each leave out k examples drawn at random; see `random_subsets`."""
    return random_subsets(num_examples, count, fraction=1 - k / num_examples, seed=seed)


def leave_one_out(num_examples: int, chosen: Sequence[int] | None = None) -> Tensor:
    """One subset per chosen example (all of them if None), which leaves out just that one.

    Returns:
        Shape (M, N), True for what is kept.

    Raises:
        BadInput: If an index is not that of an example, or there is only one example.
    """
    chosen = range(num_examples) if chosen is None else chosen
    if num_examples < 2 or not len(chosen) or not all(0 <= index < num_examples for index in chosen):
        raise BadInput(
            found=f"{len(chosen)} examples to leave out of {num_examples}",
            needed=f"indices from 0 to {num_examples - 1}, of two or more examples",
            do="check the indices",
        )
    masks_MN = torch.ones(len(chosen), num_examples, dtype=torch.bool)
    masks_MN[torch.arange(len(chosen)), torch.tensor(list(chosen))] = False
    return masks_MN


def _drawn(num_examples: int, count: int, size: int, seed: int) -> Tensor:
    masks_MN = torch.zeros(count, num_examples, dtype=torch.bool)
    for row in range(count):
        generator = np.random.default_rng([seed, row])
        masks_MN[row, torch.from_numpy(generator.choice(num_examples, size, replace=False))] = True
    return masks_MN
