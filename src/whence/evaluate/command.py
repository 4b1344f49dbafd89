"""Training by somebody else's code: a function in a file, or a command, that reports the queries' measurements itself."""

import json
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whence.errors import BadInput
from whence.functions import function_at
from whence.store import fitted, parse_json, read_plain

__all__ = ["CommandTrain", "FileTrain", "as_reported"]

_PLACEHOLDERS = ("{keep}", "{seed}", "{result}")


@dataclass(frozen=True)
class CommandTrain:
    """Training as a command that is run once per subset and seed.

    Args:
        command: With the places {keep} (a JSON file with the indices of the examples to train on), {seed}, and {result} (where the command
            writes a JSON list of one number per query). It is not run by a shell.

    Raises:
        BadInput: If a place is missing.
    """

    command: str

    def __post_init__(self):
        missing = [placeholder for placeholder in _PLACEHOLDERS if placeholder not in self.command]
        if missing:
            raise BadInput(
                found=f"a command without {', '.join(missing)}",
                needed="all of " + ", ".join(_PLACEHOLDERS),
                do="such as: 'python train.py --keep {keep} --seed {seed} --out {result}'",
            )

    def __call__(self, keep: Tensor, seed: int) -> list[float]:
        """Run it; returns what it reported.

        Raises:
            BadInput: If it fails or reports no list of numbers.
        """
        with tempfile.TemporaryDirectory(prefix="whence-bank-") as folder:
            keep_file, result = Path(folder) / "keep.json", Path(folder) / "result.json"
            keep_file.write_text(json.dumps(torch.nonzero(keep).flatten().tolist()), encoding="utf-8")
            values = {"{keep}": str(keep_file), "{seed}": str(seed), "{result}": str(result)}
            words = shlex.split(self.command)
            for placeholder, value in values.items():
                words = [word.replace(placeholder, value) for word in words]
            try:
                done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
            except OSError as error:
                raise BadInput(
                    found=f"{words[0]}, which cannot be run ({error.strerror})", needed="a program", do="check the command"
                ) from error
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise BadInput(
                    found=f"exit status {done.returncode} of {shlex.join(words)} ({last[:300]})",
                    needed="a command that trains and writes its result",
                    do="run it by hand with such arguments",
                )
            try:
                numbers = fitted(list[float], parse_json(read_plain(result), any_number=True), "the result")
                return [float(value) for value in numbers]
            except (OSError, ValueError, TypeError) as error:
                raise BadInput(
                    found=f"no list of numbers in the result of {words[0]} ({error})",
                    needed="one number per query, as a JSON list in the file {result}",
                    do="write it before the command ends",
                ) from error


@dataclass(frozen=True)
class FileTrain:
    """Training as a function `train(keep, seed)` in a Python file, found again by every worker.

    Args:
        name: As file.py:function; called with a boolean tensor (N,) and a seed, returns one number per query.
    """

    name: str

    def __call__(self, keep: Tensor, seed: int) -> Any:
        """Call it."""
        return _loaded(self.name)(keep, seed)


def as_reported(values: Any) -> Tensor:
    """What the training function returned, as numbers per query: the `measure` of both kinds.

    Raises:
        BadInput: If it is no list of numbers.
    """
    try:
        return torch.as_tensor(values, dtype=torch.float64).detach().flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(
            found=f"a training function that returned {type(values).__name__}",
            needed="one number per query, as a list or a tensor",
            do="return the queries' losses or measurements",
        ) from error


@cache
def _loaded(name: str) -> Callable[[Tensor, int], Any]:
    return function_at(name)
