"""Score tables of kronfluence: EK-FAC, K-FAC, diagonal and identity (plain gradient dot products).

    python benchmarks/peers/kronfluence_scores.py --setting FOLDER --output FOLDER [--method NAME ...]

Of a language model the linear layers of the blocks are attributed, as in the peer's own example for GPT-2, and for the methods that end in
-head the LM head too. The labels of the Fisher are sampled once per position, as the peer does. A fit is shared by the methods that differ
in damping or not at all, and counts in full for each.
"""

import functools
import tempfile
import time

import torch
from exchange import Setting, Table, linear_model, main
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs

_TRAIN_BATCH = 32
_DEFAULT_DAMPING = ScoreArguments().damping_factor


class _Task(Task):
    """The setting's task in the peer's terms; the measurement is the loss, so that a proponent's score is positive."""

    def __init__(self, task, modules):
        self.task, self.modules = task, modules
        self.generator = torch.Generator().manual_seed(0)

    def compute_train_loss(self, batch, model, sample=False):
        if not sample:
            return self.task.loss(model, batch).sum()
        outputs = self.task.outputs(model, batch).sampled(self.generator)
        return outputs.losses(int(outputs.owners_M.max()) + 1).sum()

    def compute_measurement(self, batch, model):
        return self.task.loss(model, batch).sum()

    def get_influence_tracked_modules(self):
        return self.modules

    def get_attention_mask(self, batch):
        return self.task.positions(batch)


class Analysis:
    """The fits of one process, in a temporary folder.

    Args:
        empirical: Whether the Fisher takes the training labels instead of sampled ones: nothing random, for comparisons.
    """

    def __init__(self, empirical: bool = False):
        self.empirical = empirical
        self.folder = tempfile.TemporaryDirectory(prefix="kronfluence-")
        self.fits = {}

    def table(self, setting: Setting, strategy: str, damping: float | None, head: bool = False) -> Table:
        """One method; damping None is the peer's heuristic, a tenth of the mean eigenvalue."""
        if (strategy, head) not in self.fits:
            self.fits[strategy, head] = self._fit(setting, strategy, head)
        analyzer, fit_seconds = self.fits[strategy, head]
        started = time.perf_counter()
        analyzer.compute_pairwise_scores(
            scores_name=f"{strategy}-{damping}",
            factors_name=strategy,
            query_dataset=setting.queries.examples,
            train_dataset=setting.train.examples,
            per_device_query_batch_size=len(setting.queries),
            per_device_train_batch_size=_TRAIN_BATCH,
            score_args=ScoreArguments(damping_factor=damping),
            overwrite_output_dir=True,
        )
        scores = analyzer.load_pairwise_scores(f"{strategy}-{damping}")["all_modules"]
        names = {"ekfac": "EK-FAC", "kfac": "K-FAC", "diagonal": "diagonal Fisher", "identity": "gradient dot product"}
        label = "heuristic damping" if damping is None else f"damping {damping:g}"
        method = ", ".join([names[strategy], *([] if strategy == "identity" else [label]), *(["LM head too"] if head else [])])
        unit = "gradient of the query's loss x inverse of the mean curvature x gradient of the example's summed loss"
        return Table(scores, method, unit, fit_seconds, time.perf_counter() - started)

    def _fit(self, setting, strategy, head):
        started = time.perf_counter()
        model, modules = linear_model(setting, head=head)
        task = _Task(setting.task, modules)
        model = prepare_model(model, task)
        name = f"{strategy}-head" if head else strategy
        analyzer = Analyzer(name, model, task, cpu=True, disable_tqdm=True, log_level=40, output_dir=self.folder.name)
        analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=setting.task.collate))
        analyzer.fit_all_factors(
            factors_name=strategy,
            dataset=setting.train.examples,
            per_device_batch_size=_TRAIN_BATCH,
            factor_args=FactorArguments(strategy=strategy, use_empirical_fisher=self.empirical),
        )
        return analyzer, time.perf_counter() - started


if __name__ == "__main__":
    table = Analysis().table
    strategies = {
        "ekfac": functools.partial(table, strategy="ekfac", damping=_DEFAULT_DAMPING),
        "ekfac-heuristic": functools.partial(table, strategy="ekfac", damping=None),
        "ekfac-head-heuristic": functools.partial(table, strategy="ekfac", damping=None, head=True),
        "kfac": functools.partial(table, strategy="kfac", damping=_DEFAULT_DAMPING),
        "kfac-heuristic": functools.partial(table, strategy="kfac", damping=None),
        "diagonal": functools.partial(table, strategy="diagonal", damping=_DEFAULT_DAMPING),
        "diagonal-heuristic": functools.partial(table, strategy="diagonal", damping=None),
        "identity": functools.partial(table, strategy="identity", damping=_DEFAULT_DAMPING),
    }
    main("kronfluence", strategies, description=__doc__)
