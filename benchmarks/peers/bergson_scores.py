"""Score tables of bergson: its pipelines `ekfac` and `trackstar`, called as its command line calls them.

    python benchmarks/peers/bergson_scores.py --setting FOLDER --output FOLDER [--method NAME ...]

The peer reads a Hugging Face folder and a tokenized dataset, which are written for it, and attributes the weight matrices of the blocks: no
biases, no embedding, no LM head. Every setting that is not in `_METHODS` is the peer's default; the token budget of a batch may not exceed
the model's context. Times leave out the peer's own start-up and the writing of its inputs.
"""

import contextlib
import functools
import io
import json
import sys
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
from bergson.__main__ import main as bergson
from bergson.data import load_scores
from exchange import CannotRun, Setting, Table, main
from transformers import PreTrainedTokenizerFast

from whence.tasks import CausalLM

_TOKEN_BATCH = 2048
_KFAC = ("ekfac", "--method", "kfac")
_METHODS = {
    # The verb's own default is K-FAC; the eigenvalue correction is an option.
    "ekfac": ("EK-FAC, damping 0.1 x mean", (*_KFAC, "--hessian_cfg.ev_correction", "true")),
    "kfac": ("K-FAC, damping 0.1 x mean", _KFAC),
    "trackstar-16": ("TrackStar, p = 16", ("trackstar", "--projection_dim", "16")),
    "trackstar-32": ("TrackStar, p = 32", ("trackstar", "--projection_dim", "32")),
    "trackstar-64": ("TrackStar, p = 64", ("trackstar", "--projection_dim", "64")),
    "trackstar-16-unit": ("TrackStar, p = 16, unit norm", ("trackstar", "--projection_dim", "16", "--unit_normalize", "true")),
    "trackstar-32-unit": ("TrackStar, p = 32, unit norm", ("trackstar", "--projection_dim", "32", "--unit_normalize", "true")),
}


class _Steps(io.StringIO):
    """What the peer prints, with the time at which each step starts."""

    def __init__(self):
        super().__init__()
        self.times = {}

    def write(self, text):
        if text.startswith("Step"):
            self.times[text.split("/")[0]] = time.perf_counter()
        return super().write(text)


def table(setting: Setting, name: str) -> Table:
    """One method.

    Raises:
        CannotRun: If the model is not a causal language model of transformers.
    """
    if not isinstance(setting.task, CausalLM) or not hasattr(setting.task.model, "save_pretrained"):
        raise CannotRun("the peer takes causal language models of transformers only")
    label, command = _METHODS[name]
    is_kfac = command[0] == "ekfac"
    with tempfile.TemporaryDirectory(prefix="bergson-") as scratch:
        folder = Path(scratch)
        run = folder / "run"
        arguments = [*command, str(run), *_inputs(setting, folder)]
        steps = _Steps()
        started = time.perf_counter()
        with contextlib.redirect_stdout(steps):
            _call(arguments)
        seconds = time.perf_counter() - started
        # EK-FAC starts with the queries, TrackStar with the curvature of the training set.
        first = 2 if is_kfac else 1
        fit_seconds = steps.times[f"Step {first + 1}"] - steps.times[f"Step {first}"]
        stored = load_scores(run / "scores")
        if not stored.is_written():
            raise RuntimeError("the peer left some scores unwritten")
        widths = json.loads((run / "query" / "info.json").read_text(encoding="utf-8"))["grad_sizes"]
        scores = np.array(stored[:]).T
    # Of a projected method, what the peer's index would keep: one float32 per dimension.
    kept = None if is_kfac else 4 * sum(widths.values())
    unit = "dot product of the gradients of summed losses, the query's preconditioned with the inverse mean curvature"
    if name.endswith("unit"):
        unit = "cosine of the two gradients, each times the inverse root of the mean curvature"
    return Table(scores, label, unit, fit_seconds, seconds - fit_seconds, kept)


def _inputs(setting: Setting, folder: Path) -> list[str]:
    model = setting.task.model
    model.save_pretrained(folder / "model")
    tokenizer = setting.task.tokenizer or _some_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    for name, dataset in (("train", setting.train), ("queries", setting.queries)):
        rows = [
            {key: np.asarray(example.fields[key]).tolist() for key in ("input_ids", "labels")} for example in dataset.examples
        ]
        datasets.Dataset.from_list(rows).save_to_disk(folder / name)
    tokens = min(_TOKEN_BATCH, setting.task.max_length)
    flags = ["--model", folder / "model", "--data.dataset", folder / "train", "--query.dataset", folder / "queries"]
    return [*map(str, flags), "--token_batch_size", str(tokens)]


def _some_tokenizer() -> PreTrainedTokenizerFast:
    # The peer opens a tokenizer even when the data are token ids.
    from tokenizers import Tokenizer, models

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"?": 0}, "?")), unk_token="?")


def _call(arguments: list[str]) -> None:
    before, sys.argv = sys.argv, ["bergson", *arguments]
    try:
        bergson()
    finally:
        sys.argv = before


if __name__ == "__main__":
    datasets.disable_progress_bars()
    main("bergson", {name: functools.partial(table, name=name) for name in _METHODS}, description=__doc__)
