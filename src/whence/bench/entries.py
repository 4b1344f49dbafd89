"""What the bench runs: baselines, and every method of `whence methods` at the settings that are compared."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from whence.bench.denoiser import MEASURED, NOISED, DenoiserRetrain, denoising
from whence.bench.settings import Setting
from whence.methods import EXACT_METHODS, METHODS, exact_method_named
from whence.pipeline import attribute, build, score_table, self_influence
from whence.records import ScoreTable
from whence.score import bm25, loss_scores, random_scores, representation_similarity, tf_idf
from whence.settings import BuildConfig, Damping, GradDot, Runtime, exact_settings
from whence.store.files import read_json
from whence.tasks import AbstractTask, Draws, Measured
from whence.unroll import open_run

__all__ = ["DIFFUSION_ENTRIES", "ENTRIES", "MEDIUM_ENTRIES", "Entry", "controls_of", "entries_of"]

Make = Callable[..., ScoreTable]
"""Called with a setting, the task of one of its models, a folder to work in, and maybe a damping."""

_QUIET = Runtime(quiet=True)
# One product of 64 queries with the matrix of 1,024 documents takes six minutes of a core.
_TOO_LONG = ("text", "text-long")
# Methods whose queries are also asked in another format.
_FORMATTED = ("grad-dot-exact", "ekfac")


@dataclass(frozen=True)
class Entry:
    """One row of the bench.

    Args:
        name: Name of the files it leaves.
        make: See `Make`.
        has_damping: Whether its damping is also swept, to compare the chosen with the tuned value.
        is_ensembled: Whether it is also run on several models and averaged.
        has_control: Whether every query is also given the scores of another one: what of them is not about the question.
        has_format: Whether it also scores the queries in the setting's other format.
        not_on: Names of settings where it would take too long.
    """

    name: str
    make: Make
    has_damping: bool = False
    is_ensembled: bool = False
    has_control: bool = False
    has_format: bool = False
    not_on: tuple[str, ...] = ()


def _stored(method: str, **options: Any) -> Entry:
    def make(setting: Setting, task: AbstractTask, work: Path, relative_damping: float | None = None) -> ScoreTable:
        # One fit serves EK-FAC and all of its codes.
        fitted = work.parent / work.name.replace(name, "ekfac") / "factors"
        fit = {"factors": fitted} if METHODS[method].encoder == "aligned" else {}
        store = build(task, setting.train, work / "store", config=BuildConfig(method=method, **fit, **options), runtime=_QUIET)
        return score_table(store, task, setting.queries, damping=Damping(relative=relative_damping), runtime=_QUIET)

    name = "-".join([method, *(f"{key.replace('_', '')}{value}" for key, value in options.items())])
    return Entry(name, make, has_damping=METHODS[method].curvature == "fisher")


def _exact(method: str, *, is_ensembled: bool = False, not_on: tuple[str, ...] = ()) -> Entry:
    has_factors, has_solver = EXACT_METHODS[method].factors is not None, EXACT_METHODS[method].solver is not None

    def make(setting: Setting, task: AbstractTask, work: Path, relative_damping: float | None = None) -> ScoreTable:
        options = {"relative_damping": relative_damping, "factors": work / "factors" if has_factors else None}
        return attribute(task, setting.train, setting.queries, method=exact_settings(method, options), runtime=_QUIET)

    # A sweep with a solver would take as many solves.
    return Entry(
        method, make,
        has_damping=has_factors and not has_solver, is_ensembled=is_ensembled, has_format=method in _FORMATTED, not_on=not_on,
    )  # fmt: skip


def _cut(name: str, label: str, **fit: Any) -> Entry:
    """EK-FAC without all eigenvectors of its long sides."""

    def make(setting: Setting, task: AbstractTask, work: Path) -> ScoreTable:
        settings = exact_settings("ekfac", {"factors": work / "factors", **fit})
        table = attribute(task, setting.train, setting.queries, method=settings, runtime=_QUIET)
        return replace(table, method=f"{table.method}; {label}")

    return Entry(name, make)


def _gradient_norm(setting: Setting, task: AbstractTask, work: Path) -> ScoreTable:
    """Each training example's gradient norm, the same for every query: what knows nothing of the question."""
    norms_N = self_influence(task, setting.train, method=GradDot(), runtime=_QUIET).scores[0].sqrt()
    scores_QN = norms_N.expand(len(setting.queries), -1).contiguous()
    return ScoreTable(scores_QN, setting.queries.ids, setting.train.ids, "norm of the training gradient", "gradient norm")


def _through_run(name: str, method: str, not_on: tuple[str, ...] = (), **options: Any) -> Entry:
    """A method on the first model's run, which is trained again to be recorded, once for all of them."""

    def make(setting: Setting, task: AbstractTask, work: Path) -> ScoreTable:
        first = work.parent / work.name.replace(name, "source")
        folder = first / "run"
        if not (folder / "run.json").exists() or not read_json(folder / "run.json")["finished"]:
            setting.retrain.recorded(0, folder, setting.train)
        # The fits at single checkpoints serve every method that takes them.
        fitted = work if options.get("average_weights") or not EXACT_METHODS[method].needs_run else first
        factors = fitted / "factors" if EXACT_METHODS[method].factors is not None else None
        run = open_run(folder)
        with run.weights(task.model, run.checkpoints[-1:], at="measurements"):
            settings = exact_settings(method, {"run": folder, "factors": factors, **options})
            return attribute(task, setting.train, setting.queries, method=settings, runtime=_QUIET)

    return Entry(name, make, not_on=not_on)


def _of_images(name: str, method: str, *, noised: Draws = NOISED, measured: Measured = MEASURED, **fit: Any) -> Entry:
    """An entry for generated images.

    Raises:
        UnknownOption: If there is no such method.
    """
    has_factors = method not in METHODS and exact_method_named(method).factors is not None

    def make(setting: Setting, task: AbstractTask, work: Path, relative_damping: float | None = None) -> ScoreTable:
        denoiser = denoising(task.model, setting.retrain.settings, noised=noised, measured=measured, recipe=task.recipe)
        if method in METHODS:
            store = build(denoiser, setting.train, work / "store", config=BuildConfig(method=method), runtime=_QUIET)
            damping = Damping(relative=relative_damping)
            table = score_table(store, denoiser, setting.queries, damping=damping, runtime=_QUIET)
        else:
            given = {"relative_damping": relative_damping, "factors": work / "factors"} if has_factors else {}
            settings = exact_settings(method, {**given, **fit})
            table = attribute(denoiser, setting.train, setting.queries, method=settings, runtime=_QUIET)
        return replace(table, method=f"{name}; {table.method}")

    return Entry(name, make, has_damping=has_factors or method in METHODS, is_ensembled=name == "ekfac-expand")


def _tf_idf(setting: Setting, task: AbstractTask, work: Path) -> ScoreTable:
    return tf_idf(setting.train, setting.queries)


def _pixels(setting: Setting, task: AbstractTask, work: Path) -> ScoreTable:
    """Cosine of the images themselves: what a search for similar pictures would find."""
    train, queries = (
        torch.stack([torch.as_tensor(example.fields["image"]).flatten() for example in data.examples]).double()
        for data in (setting.train, setting.queries)
    )
    train, queries = (nn.functional.normalize(rows, dim=1) for rows in (train, queries))
    return ScoreTable(queries @ train.T, setting.queries.ids, setting.train.ids, "cosine", "cosine of the pixels")


def entries_of(setting: Setting) -> "tuple[Entry, ...]":
    """What is compared on a setting."""
    if setting.name == "text-medium":
        return MEDIUM_ENTRIES
    return DIFFUSION_ENTRIES if isinstance(setting.retrain, DenoiserRetrain) else ENTRIES


def controls_of(setting: Setting) -> "tuple[Entry, ...]":
    """What any method has to beat on a setting: it knows nothing of the question, or nothing of the model's gradients."""
    if isinstance(setting.retrain, DenoiserRetrain):
        return (*_BASELINES, Entry("pixels", _pixels), Entry("gradient-norm", _gradient_norm))
    return (*_OF_TEXTS, Entry("tf-idf", _tf_idf), Entry("gradient-norm", _gradient_norm))


# Without gradients: what every method has to beat.
_BASELINES = (
    Entry("random", lambda setting, task, work: random_scores(setting.train, setting.queries, seed=0)),
    Entry("loss", lambda setting, task, work: loss_scores(task, setting.train, setting.queries)),
)
_OF_TEXTS = (
    *_BASELINES,
    Entry("bm25", lambda setting, task, work: bm25(setting.train, setting.queries), has_format=True),
    Entry(
        "similarity",
        lambda setting, task, work: representation_similarity(task, setting.train, setting.queries),
        has_format=True,
    ),
)

DIFFUSION_ENTRIES = (
    *_BASELINES,
    Entry("pixels", _pixels),
    _of_images("grad-dot", "grad-dot-exact"),
    _of_images("trak", "trak"),
    _of_images("d-trak", "trak", measured=replace(MEASURED, output="square_norm", measure="square_norm")),
    _of_images("kfac-expand", "kfac"),
    _of_images("kfac-reduce", "kfac", sharing="reduce"),
    _of_images("ekfac-expand", "ekfac"),
    _of_images("ekfac-reduce", "ekfac", sharing="reduce"),
    _of_images("ekfac-empirical", "ekfac", labels="dataset"),
    _of_images("ekfac-elbo", "ekfac", measured=replace(MEASURED, measure="elbo")),
    _of_images("ekfac-own-draws", "ekfac", noised=replace(NOISED, shared=False)),
    _of_images("ekfac-own-queries", "ekfac", measured=replace(MEASURED, draws="own")),
    _of_images("grad-dot-own-draws", "grad-dot-exact", noised=replace(NOISED, shared=False)),
)


ENTRIES = (
    *_OF_TEXTS,
    _exact("grad-dot-exact"),
    _exact("kfac"),
    _exact("ekfac", is_ensembled=True),
    _through_run("ekfac-run", "ekfac"),
    _through_run("tracin", "tracin"),
    _through_run("less", "less"),
    _through_run("dvemb", "dvemb", not_on=_TOO_LONG),
    _through_run("source", "source"),
    _through_run("fast-source", "source", average_weights=True),
    _through_run("astra-source", "astra-source", not_on=_TOO_LONG),
    _through_run("unroll", "unroll", not_on=_TOO_LONG),
    _exact("pcg", is_ensembled=True, not_on=_TOO_LONG),
    _exact("cg", not_on=_TOO_LONG),
    _exact("astra", not_on=_TOO_LONG),
    _exact("lissa", not_on=_TOO_LONG),
    _exact("nystroem", not_on=_TOO_LONG),
    _exact("arnoldi", not_on=_TOO_LONG),
    _exact("datainf"),
    _stored("aligned", bytes_per_example=64),
    _stored("aligned", bytes_per_example=128),
    _stored("aligned", bytes_per_example=256),
    _stored("aligned", bytes_per_example=512),
    _stored("aligned", bytes_per_example=2048),
    # From a sample of a quarter: what becomes of data that is larger than the sample.
    _stored("aligned", bytes_per_example=512, axes_examples=256),
    # On layers smaller than the rank the projection keeps everything: these rows show the method without compression.
    _stored("grad-dot", rank=32),
    _stored("grad-cos", rank=32),
    _stored("logra", rank=16),
    _stored("logra", rank=32),
    _stored("logra-kfac", rank=16),
    _stored("logra-kfac", rank=32),
    _stored("logra-ekfac", rank=16),
    _stored("logra-ekfac", rank=32),
    _stored("logra-cos", rank=16),
    _stored("logra-pca", rank=16),
    _stored("factgrass", rank=16),
    _stored("factgrass", rank=32),
    _stored("factgrass", rank=16, blow_up=16),
    _stored("trackstar", rank=16),
    _stored("trackstar", rank=32),
    # Numbers of the whole row. Dense matrices for 2,048 take minutes a table on the text.
    _stored("trak", rank=512),
    _stored("trak", rank=2048, projection="sparse"),
    _stored("grass", rank=512),
    _stored("grass", rank=512, blow_up=16),
    _stored("grass-selective", rank=512),
    _stored("lorif", rank=32, factor_rank=1),
    _stored("lorif", rank=32, factor_rank=2),
    _stored("lorif", side_divisor=4, factor_rank=2),
)

# No dampings are swept and no further models are made: a row takes minutes.
MEDIUM_ENTRIES = tuple(
    replace(entry, has_damping=False, has_control=entry.name == "ekfac", has_format=False)
    for entry in (
        *_OF_TEXTS,
        Entry("gradient-norm", _gradient_norm),
        _exact("grad-dot-exact"),
        _stored("logra", rank=16),
        # All eigenvectors, which is what the default comes to at this size.
        _exact("ekfac"),
        _exact("kfac"),
        _stored("aligned", bytes_per_example=512),
        _cut("ekfac-axes", "sides above 1,024: their axes", largest_side=1024, directions=0),
        _cut("ekfac-directions128", "sides above 1,024: 128 directions", largest_side=1024, directions=128),
        _stored("trackstar", rank=16),
        _stored("lorif", rank=32, factor_rank=2),
        _stored("aligned", bytes_per_example=2048),
        _stored("aligned", bytes_per_example=128),
        _cut("ekfac-directions1024", "sides above 1,024: 1,024 directions", largest_side=1024, directions=1024),
    )
)
