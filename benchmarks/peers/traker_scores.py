"""Score tables of traker: TRAK on one model with 512 dimensions, at its default ridge of 0 and at larger ones.

    python benchmarks/peers/traker_scores.py --setting FOLDER --output FOLDER [--method NAME ...]

All parameters are attributed, as the peer does by default, in single precision: its default of half precision is made for GPUs, and takes
nine times as long on a CPU. What is differentiated is the margin log p / (1 - p) of the label, the peer's own for classes; for text, which
the peer leaves to its users, the sum of the margins over the scored tokens, weighted by the mean of 1 - p (Park et al. 2023, section 5.2).
The peer's ridge is absolute, and 0; here the others are shares of the mean eigenvalue of the features' second moment, so that one list fits
every model. Which of them is best is for the caller to find out on queries that are then left out.
"""

import copy
import functools
import shutil
import tempfile
import time
from pathlib import Path

import torch
from exchange import CannotRun, Setting, Table, main
from trak import TRAKer
from trak.modelout_functions import AbstractModelOutput

from whence.tasks import CausalLM, Classification

_DIMENSIONS = 512
_BATCH = 32
_RIDGES = (0.0, 0.01, 0.1, 1.0, 10.0)


class _TextOutput(AbstractModelOutput):
    """Margins of a text's scored tokens."""

    def __init__(self):
        """The peer's base class wants one."""

    @staticmethod
    def get_output(model, weights, buffers, input_ids, labels):
        return _margins(_logits(model, weights, buffers, input_ids[None]), labels[None]).sum()

    def get_out_to_loss_grad(self, model, weights, buffers, batch):
        input_ids, labels = batch
        margins_BT = _margins(_logits(model, weights, buffers, input_ids), labels)
        is_scored_BT = labels[:, 1:] != -100
        rest_BT = torch.sigmoid(-margins_BT) * is_scored_BT
        return (rest_BT.sum(1) / is_scored_BT.sum(1)).detach()[:, None]


def _logits(model, weights, buffers, input_ids):
    return torch.func.functional_call(model, (weights, buffers), kwargs={"input_ids": input_ids}).logits[:, :-1]


def _margins(logits_BTV, labels_BT):
    """Of the next token, shape (B, T - 1), zero where it is not scored."""
    labels_BT = labels_BT[:, 1:]
    log_p_BTV = logits_BTV.log_softmax(-1)
    chosen_BT1 = labels_BT.clamp_min(0)[..., None]
    rest_BT = log_p_BTV.scatter(-1, chosen_BT1, -torch.inf).logsumexp(-1)
    own_BT = log_p_BTV.gather(-1, chosen_BT1).squeeze(-1)
    return (own_BT - rest_BT) * (labels_BT != -100)


class Analysis:
    """The features of one process, in a temporary folder."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="traker-")
        self.features = Path(self.folder.name) / "features"
        self.fit = None

    def table(self, setting: Setting, ridge: float) -> Table:
        """One ridge, as a share of the mean eigenvalue.

        Raises:
            CannotRun: If the peer's margins do not fit the task.
        """
        if not isinstance(setting.task, CausalLM | Classification):
            raise CannotRun("margins need classes or tokens")
        if self.fit is None:
            self.fit = self._featurize(setting)
        fit_seconds, mean_eigenvalue = self.fit
        # The peer finalizes features once only, so every ridge gets a copy.
        folder = self.features.with_name(f"ridge-{ridge:g}")
        shutil.copytree(self.features, folder)
        started = time.perf_counter()
        trak = _traker(setting, folder, ridge * mean_eigenvalue)
        trak.load_checkpoint(trak.model.state_dict(), model_id=0)
        trak.finalize_features()
        finalized = time.perf_counter()
        trak.start_scoring_checkpoint("queries", trak.model.state_dict(), model_id=0, num_targets=len(setting.queries))
        for batch in _batches(setting.task, setting.queries):
            trak.score(batch, num_samples=len(batch[0]))
        scores = torch.as_tensor(trak.finalize_scores("queries")).T
        seconds = (fit_seconds + finalized - started, time.perf_counter() - finalized)
        unit = "margin of the query, up to a factor: the peer scales the inverse by the mean of its entries"
        label = f"TRAK, JL {_DIMENSIONS}, ridge {ridge:g}{' x mean eigenvalue' if ridge else ''}"
        return Table(scores, label, unit, *seconds, bytes_per_example=4 * _DIMENSIONS)

    def _featurize(self, setting):
        started = time.perf_counter()
        trak = _traker(setting, self.features, 0.0)
        trak.load_checkpoint(trak.model.state_dict(), model_id=0)
        for batch in _batches(setting.task, setting.train):
            trak.featurize(batch, num_samples=len(batch[0]))
        seconds = time.perf_counter() - started
        features = torch.as_tensor(trak.saver.current_store["grads"][:]).double()
        return seconds, float(features.square().sum() / _DIMENSIONS)


def _traker(setting, folder, ridge):
    model, task = copy.deepcopy(setting.task.model), "image_classification"
    if isinstance(setting.task, CausalLM):
        task = _TextOutput()
        model.set_attn_implementation("eager")  # torch.func has no batching rule for the fused kernel
    options = {"device": "cpu", "proj_dim": _DIMENSIONS, "use_half_precision": False, "logging_level": 40}
    return TRAKer(model, task, len(setting.train), save_dir=str(folder), lambda_reg=ridge, **options)


def _batches(task, dataset):
    for start in range(0, len(dataset), _BATCH):
        batch = task.collate(dataset.examples[start : start + _BATCH])
        if isinstance(task, CausalLM):
            yield batch["input_ids"], batch["labels"]
        elif set(batch["inputs"]) == {"inputs"}:
            yield batch["inputs"]["inputs"], batch["target"]
        else:
            raise CannotRun("the peer's margin for classes takes models with one input")


if __name__ == "__main__":
    table = Analysis().table
    main("traker", {f"jl512-ridge-{ridge:g}": functools.partial(table, ridge=ridge) for ridge in _RIDGES}, description=__doc__)
