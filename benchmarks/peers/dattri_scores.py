"""Score tables of dattri: TRAK, conjugate gradients, EK-FAC, LoGra and FactGraSS, at the peer's defaults and at one other damping each.

    python benchmarks/peers/dattri_scores.py --setting FOLDER --output FOLDER [--method NAME ...]

TRAK and conjugate gradients attribute all parameters; EK-FAC, LoGra and FactGraSS the linear layers, no convolutions, and of a language model
those of the blocks. The peer sums the inverses of its batches' Hessians, so conjugate gradients get the training set as one batch, as it
recommends.
"""

import functools
import tempfile
import time
from types import SimpleNamespace

import torch
from dattri.algorithm.factgrass import FactGraSSAttributor
from dattri.algorithm.influence_function import IFAttributorCG, IFAttributorEKFAC
from dattri.algorithm.logra import LoGraAttributor
from dattri.algorithm.trak import TRAKAttributor
from dattri.task import AttributionTask
from exchange import CannotRun, Setting, Table, linear_model, main
from torch import nn
from torch.utils.data import DataLoader

from whence.tasks import CausalLM, Classification

_BATCH = 32
_CG_QUERIES = 10
_OWN_DAMPING = 1e-5  # inside the peer, for None
_PROJECTED = {"LoGra": LoGraAttributor, "FactGraSS": FactGraSSAttributor}
_UNIT = "gradient of the query's loss x inverse of the mean curvature x gradient of the example's loss"


def trak(setting: Setting) -> Table:
    """512 dimensions, no regularization: the defaults. A text's margin is that of its mean token, as in the peer's example."""
    model, loss = _functional(setting)

    def probability(parameters, example):
        return torch.exp(-loss(parameters, tuple(part[None] for part in example)))

    def margin(parameters, example):
        log_p = -loss(parameters, tuple(part[None] for part in example))
        return log_p - torch.log(-torch.expm1(log_p))

    attributor = TRAKAttributor(AttributionTask(margin, model, model.state_dict()), probability)
    scores, *seconds = _timed(
        attributor, _tuples(setting, setting.train, _BATCH), None, _tuples(setting, setting.queries, _BATCH)
    )
    return Table(scores, "TRAK, 512 dimensions, ridge 0", "margin of the query", *seconds, bytes_per_example=4 * 512)


def conjugate_gradients(setting: Setting, iterations: int, damping: float) -> Table:
    """Of the Hessian of the mean loss.

    Raises:
        CannotRun: On a language model.
    """
    if isinstance(setting.task, CausalLM):
        raise CannotRun("every query takes ten Hessian products over the whole training set as one batch: hours, or no memory")
    model, loss = _functional(setting)
    task = AttributionTask(loss, model, model.state_dict())
    attributor = IFAttributorCG(task, max_iter=iterations, regularization=damping)
    train = _tuples(setting, setting.train, len(setting.train))
    # Every query of a batch runs the whole training set at once: 200 of them on a small CNN take more than 20 GB.
    scores, *seconds = _timed(attributor, train, train, _tuples(setting, setting.queries, _CG_QUERIES))
    return Table(scores, f"conjugate gradients, {iterations} iterations, damping {damping:g}", _UNIT, *seconds)


def ekfac(setting: Setting, damping: float) -> Table:
    """With the labels of the training set.

    Raises:
        CannotRun: On a language model.
    """
    if isinstance(setting.task, CausalLM):
        raise CannotRun("the peer's EK-FAC raises an unbound-variable error on sequences")
    model, loss = _functional(setting)
    attributor = IFAttributorEKFAC(AttributionTask(loss, model, model.state_dict()), damping=damping)
    train = _tuples(setting, setting.train, len(setting.train))
    scores, *seconds = _timed(attributor, train, train, _tuples(setting, setting.queries, len(setting.queries)))
    return Table(scores, f"EK-FAC, damping {damping:g}", _UNIT, *seconds)


def projected(setting: Setting, kind: str, dimensions: int, damping: float | None) -> Table:
    """Empirical Fisher of projected gradients, per layer.

    FactGraSS projects four times as many entries as it keeps, the peer's default. Damping None is the peer's own, of the mean eigenvalue.
    """
    model, layers = linear_model(setting)
    wrapped = _WithLoss(model, setting.task)
    task = AttributionTask(lambda model, batch, device: model(**batch).loss, wrapped, wrapped.state_dict())
    # Of convolutions the peer says in a log message that it skips them, and then fails.
    names = [f"model.{name}" for name in layers if isinstance(model.get_submodule(name), nn.Linear)]
    with tempfile.TemporaryDirectory(prefix="dattri-") as folder:
        attributor = _PROJECTED[kind](task, names, damping=damping, proj_dim=dimensions, cache_dir=folder)
        train = _dictionaries(setting, setting.train)
        scores, *seconds = _timed(attributor, train, train, _dictionaries(setting, setting.queries))
        kept = 4 * attributor.total_proj_dim
    label = f"{kind}, {dimensions} per layer, damping {damping or _OWN_DAMPING:g} x mean eigenvalue"
    return Table(scores, label, _UNIT, *seconds, bytes_per_example=kept)


class _WithLoss(nn.Module):
    """A model that returns the summed loss: the peer takes no other for batches that are mappings, and fails on tuples."""

    def __init__(self, model, task):
        super().__init__()
        self.model, self.task = model, task

    def forward(self, **fields):
        if not isinstance(self.task, CausalLM):
            fields = {"target": fields.pop("target"), "inputs": fields}
        return SimpleNamespace(loss=self.task.loss(self.model, fields).sum())


def _functional(setting):
    """The model, and its mean loss per token or example as the peer wants it: of parameters and a tuple of tensors."""
    if not isinstance(setting.task, CausalLM | Classification):
        raise CannotRun("the adapter knows classes and tokens")
    model, _ = linear_model(setting)
    if isinstance(setting.task, CausalLM):
        model.set_attn_implementation("eager")  # torch.func has no batching rule for the fused kernel

    def loss(parameters, data):
        inputs, target = data
        if not isinstance(setting.task, CausalLM):
            return nn.functional.cross_entropy(torch.func.functional_call(model, parameters, inputs), target)
        logits_BTV = torch.func.functional_call(model, parameters, kwargs={"input_ids": inputs}).logits
        return nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), target[:, 1:].flatten())

    return model, loss


def _tuples(setting, dataset, size):
    def collate(examples):
        batch = setting.task.collate(examples)
        if isinstance(setting.task, CausalLM):
            return batch["input_ids"], batch["labels"]
        if set(batch["inputs"]) != {"inputs"}:
            raise CannotRun("the adapter knows models with one input")
        return batch["inputs"]["inputs"], batch["target"]

    return DataLoader(dataset.examples, batch_size=size, collate_fn=collate)


def _dictionaries(setting, dataset):
    def collate(examples):
        batch = setting.task.collate(examples)
        return batch if isinstance(setting.task, CausalLM) else {**batch["inputs"], "target": batch["target"]}

    return DataLoader(dataset.examples, batch_size=_BATCH, collate_fn=collate)


def _timed(attributor, full, train, queries):
    """Scores (queries, train), seconds to fit, seconds to score."""
    started = time.perf_counter()
    attributor.cache(full)
    fitted = time.perf_counter()
    scores = attributor.attribute(queries) if train is None else attributor.attribute(train, queries)
    return scores.detach().T, fitted - started, time.perf_counter() - fitted


_METHODS = {
    "trak": trak,
    "cg": functools.partial(conjugate_gradients, iterations=10, damping=0.0),
    "cg-damped": functools.partial(conjugate_gradients, iterations=20, damping=1e-2),
    "ekfac": functools.partial(ekfac, damping=0.0),
    "ekfac-damped": functools.partial(ekfac, damping=1e-2),
    "logra-4096": functools.partial(projected, kind="LoGra", dimensions=4096, damping=None),
    "logra-256": functools.partial(projected, kind="LoGra", dimensions=256, damping=None),
    "logra-256-damped": functools.partial(projected, kind="LoGra", dimensions=256, damping=1e-2),
    "factgrass-256": functools.partial(projected, kind="FactGraSS", dimensions=256, damping=None),
    "factgrass-256-damped": functools.partial(projected, kind="FactGraSS", dimensions=256, damping=1e-2),
    "factgrass-1024-damped": functools.partial(projected, kind="FactGraSS", dimensions=1024, damping=1e-2),
}

if __name__ == "__main__":
    main("dattri", _METHODS, description=__doc__)
