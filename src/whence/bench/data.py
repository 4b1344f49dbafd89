"""Real data that is at hand without any download.

Axes: N training examples, Q queries, D inputs.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.demo.corpus import python_docs
from whence.errors import BadInput

__all__ = ["diabetes", "digits", "documents"]

Split = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def digits() -> Split:
    """1,200 training images and 200 queries of the 1,797 that scikit-learn carries: 8 x 8 pixels in [0, 1], flat, with their classes.

    Returns:
        (inputs, classes) to train on, and (inputs, classes) of the queries.
    """
    bunch = _sklearn("load_digits")
    inputs_ND = torch.from_numpy(bunch.data / 16.0).float()
    return _split(inputs_ND, torch.from_numpy(bunch.target).long(), 1200, 200)


def diabetes() -> Split:
    """342 training rows and 100 queries of scikit-learn's diabetes table: ten columns and a target, all of unit variance.

    Returns:
        (inputs, targets) to train on, and (inputs, targets) of the queries.
    """
    bunch = _sklearn("load_diabetes")
    inputs_ND = torch.from_numpy(bunch.data / bunch.data.std(0)).float()
    targets_N = torch.from_numpy((bunch.target - bunch.target.mean()) / bunch.target.std()).float()
    return _split(inputs_ND, targets_N, 342, 100)


def documents() -> list[dict[str, str]]:
    """Passages of Python's own documentation, longer than the demo's, in a fixed random order."""
    found = python_docs(max_documents=6000, max_characters=420, min_characters=200, per_topic=40, per_source=12, per_module=200)
    return [found[place] for place in np.random.default_rng(0).permutation(len(found))]


def _split(inputs_ND: Tensor, targets_N: Tensor, train: int, queries: int) -> Split:
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(targets_N)))
    first, second = order[:train], order[train : train + queries]
    return (inputs_ND[first], targets_N[first]), (inputs_ND[second], targets_N[second])


def _sklearn(name: str) -> Any:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise BadInput(
            found="no scikit-learn, which carries the data", needed="it, for the bench", do="pip install 'whence-tda[bench]'"
        ) from error
    return getattr(datasets, name)()
