"""What every adapter shares: the setting it reads, the score tables it writes, and its command line."""

import argparse
import copy
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whence import bench
from whence.data import Dataset
from whence.tasks import CausalLM
from whence.tasks.base import AbstractTask

__all__ = ["CannotRun", "Setting", "Table", "linear_model", "load", "main"]


class CannotRun(Exception):
    """A method that does not apply to the setting's model, or has no result on it; the message is the reason."""


@dataclass(frozen=True)
class Setting:
    """A trained model with the examples it was trained on and the queries.

    Args:
        task: Its `model` is the module; its loss is the sum over an example's positions.
        train: What was trained on.
        queries: What is asked.
    """

    task: AbstractTask
    train: Dataset
    queries: Dataset


@dataclass(frozen=True)
class Table:
    """What one method of a peer makes of a setting.

    Args:
        scores: Shape (queries, train), positive where more weight on the training example lowers the query's loss.
        method: Name and settings, for people.
        unit: What one unit of score means, as the peer defines it.
        fit_seconds: Time for everything that does not depend on the queries.
        score_seconds: Time for the rest.
        bytes_per_example: What is kept on disk or in memory per training example between queries; None if nothing is.
    """

    scores: Tensor | np.ndarray
    method: str
    unit: str
    fit_seconds: float
    score_seconds: float
    bytes_per_example: float | None = None


def load(folder: Path) -> Setting:
    """The bench's setting in a folder, with its first model, or one that the checks beside this file have put there."""
    if (folder / "setting.pt").exists():
        return torch.load(folder / "setting.pt", weights_only=False)
    found = bench.load_setting(folder)
    return Setting(found.task, found.train, found.queries)


def linear_model(setting: Setting, *, head: bool = False) -> tuple[nn.Module, list[str]]:
    """A copy of the model for peers that know linear and convolutional layers only.

    Args:
        setting: Its model may have transposed linear layers (`Conv1D` of transformers); they become ordinary ones.
        head: Whether the LM head is to be attributed with the blocks, as a layer apart from the embedding it may share its weight with.

    Returns:
        The copy, and the names of the layers to attribute.

    Raises:
        CannotRun: If `head` is asked of a model without one.
    """
    model = copy.deepcopy(setting.task.model)
    for name, layer in list(model.named_modules()):
        if type(layer).__name__ == "Conv1D":
            linear = nn.Linear(*layer.weight.shape, device=layer.weight.device, dtype=layer.weight.dtype)
            linear.weight = nn.Parameter(layer.weight.detach().T.contiguous())
            linear.bias = nn.Parameter(layer.bias.detach())
            model.set_submodule(name, linear)
    is_language_model = isinstance(setting.task, CausalLM)
    if head and not is_language_model:
        raise CannotRun("the model has no LM head, its last layer is attributed by the other methods")
    last = model.get_output_embeddings() if is_language_model and not head else None
    linear_layers = (nn.Linear, nn.Conv2d)
    return model, [name for name, layer in model.named_modules() if isinstance(layer, linear_layers) and layer is not last]


def main(peer: str, methods: Mapping[str, Callable[[Setting], Table]], *, description: str) -> None:
    """Run the methods that the command line names, all of them by default, and write one table each.

    A method that fails says why in one line and the others go on; the exit status is 1 if one failed that applies to the model.

    Args:
        peer: Name of the peer's distribution.
        methods: Functions by name.
        description: For `--help`.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--setting", type=Path, required=True, help="folder with the model and the data")
    parser.add_argument("--output", type=Path, required=True, help="folder for the tables, one folder each")
    parser.add_argument(
        "--method", nargs="+", choices=list(methods), default=list(methods), metavar="NAME", help="default: all"
    )
    arguments = parser.parse_args()
    # Peers announce every step and every deprecation; what matters is what they raise.
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    setting = load(arguments.setting)
    setting.task.model.eval()
    failed = False
    for name in arguments.method:
        try:
            before = _cpu_seconds()
            table = methods[name](setting)
            cpu_seconds = _cpu_seconds() - before
            _write(table, setting, arguments.output / f"{peer}-{name}", f"{peer} {version(peer)}", cpu_seconds)
            print(f"{peer} {name}: {table.fit_seconds:.1f} s fit, {table.score_seconds:.1f} s score", flush=True)
        except CannotRun as reason:
            print(f"{peer} {name}: no table, {reason}", flush=True)
        except Exception as error:  # noqa: BLE001  A peer may fail in any way; its other methods still count.
            failed = True
            print(f"{peer} {name}: failed, {type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)
    raise SystemExit(int(failed))


def _cpu_seconds() -> float:
    found = os.times()
    return found.user + found.system + found.children_user + found.children_system


def _write(table: Table, setting: Setting, folder: Path, peer: str, cpu_seconds: float) -> None:
    scores = np.asarray(table.scores, np.float32)
    shape = (len(setting.queries), len(setting.train))
    if scores.shape != shape:
        raise ValueError(f"scores of shape {scores.shape}, not {shape}")
    if not np.isfinite(scores).all():
        raise CannotRun(f"{(~np.isfinite(scores)).sum()} of {scores.size} scores are not finite")
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "scores.npy", scores)
    record: dict[str, Any] = {
        "method": f"{peer.split()[0]} {table.method}",
        "query_ids": list(setting.queries.ids),
        "train_ids": list(setting.train.ids),
        "unit": table.unit,
        "seconds": table.fit_seconds + table.score_seconds,
        "fit_seconds": table.fit_seconds,
        "score_seconds": table.score_seconds,
        "cpu_seconds": cpu_seconds,
        "bytes_per_example": table.bytes_per_example,
        "peer": peer,
    }
    (folder / "table.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
