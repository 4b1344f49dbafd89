"""Real data that is at hand without any download.

Axes: N training examples, Q queries, D inputs.
"""

import sys
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.demo.corpus import MODULES, python_docs
from whence.errors import BadInput

__all__ = ["diabetes", "digits", "dimmed", "documents", "labelled_texts", "tuning_documents"]

_TEXTS, _TEXT_QUERIES = 300, 80

Split = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def digits() -> Split:
    """1,200 training images and 200 queries of the 1,797 that scikit-learn carries: 8 x 8 pixels in [0, 1], flat, with their classes.

    Returns:
        (inputs, classes) to train on, and (inputs, classes) of the queries.
    """
    bunch = _sklearn("load_digits")
    inputs_ND = torch.from_numpy(bunch.data / 16.0).float()
    return _split(inputs_ND, torch.from_numpy(bunch.target).long(), 1200, 200)


def dimmed(images_ND: Tensor) -> Tensor:
    """Images with three quarters of their brightness: the same digits, for a network too."""
    return 0.75 * images_ND


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
    records = python_docs(
        max_documents=6000, max_characters=420, min_characters=200, per_topic=40, per_source=12, per_module=200
    )
    return [records[index] for index in np.random.default_rng(0).permutation(len(records))]


def tuning_documents() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Short passages of Python's own documentation, in a fixed random order, split by what they document.

    Returns:
        To pretrain on, the language reference and the docstrings of every third well-known module and of all that are less so; to
        fine-tune on, the docstrings of the rest.
    """
    everything = [*MODULES, *sorted(sys.stdlib_module_names - set(MODULES))]
    no_limit = 10**6
    records = python_docs(
        everything, max_documents=no_limit, max_characters=210, min_characters=110,
        per_topic=no_limit, per_source=no_limit, per_module=no_limit,
    )  # fmt: skip
    records = [records[index] for index in np.random.default_rng(0).permutation(len(records))]
    tuned = set(MODULES) - set(MODULES[::3])
    parts: dict[bool, list[dict[str, str]]] = {False: [], True: []}
    for record in records:
        parts[record["source"].split(".")[0] in tuned].append(record)
    return parts[False], parts[True]


def labelled_texts(words: int, length: int) -> Split:
    """300 texts to train on and 80 queries: documentation of four modules of Python's library, and which of them it is.

    Args:
        words: Numbers of words; 0 is for the rarer ones.
        length: Words of a text, after the name of what it documents, which would give the module away.

    Returns:
        (word numbers (N, length), classes), and the same of the queries.
    """
    texts = [(record["source"].split(".")[0], record["text"].split(":", 1)[-1].lower().split()) for record in documents()]
    commonest = [word for word, _ in Counter(word for _, text in texts for word in text).most_common(words - 1)]
    numbers = {word: number for number, word in enumerate(commonest, 1)}
    modules = [module for module, _ in Counter(module for module, text in texts if len(text) >= length).most_common(4)]
    chosen = [(modules.index(module), text[:length]) for module, text in texts if module in modules and len(text) >= length]
    inputs_NL = torch.tensor([[numbers.get(word, 0) for word in text] for _, text in chosen])
    return _split(inputs_NL, torch.tensor([label for label, _ in chosen]), _TEXTS, _TEXT_QUERIES)


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
