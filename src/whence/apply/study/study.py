"""A study of a corpus: what many queries, in named sets, have in common in the documents that they come from."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whence.apply.study.corpus import corpus_of_data, corpus_of_store, values_of
from whence.apply.study.correlation import by_sets, correlations
from whence.apply.study.kept_scores import keep_scores
from whence.apply.study.kinds import kind_shares, kinds_of
from whence.apply.study.page import write_study
from whence.apply.study.readouts import histograms, tails_and_mass
from whence.apply.study.result import Reading, Study
from whence.curvature import DampingRule
from whence.data import Dataset
from whence.errors import BadInput
from whence.pipeline.inputs import as_dataset
from whence.progress import meter
from whence.store import Store, open_store, write_json
from whence.tasks import AbstractTask

__all__ = ["study"]

# Passes over the queries' scores for one reading: sorting, counting, ranking.
_PASSES = 3


def study(
    task: AbstractTask,
    corpus: Store | str | Path | Dataset | Iterable[Any],
    sets: Mapping[str, Dataset | Iterable[Any]],
    folder: str | Path,
    *,
    k: int | None = None,
    kinds: Mapping[str, str] | None = None,
    method: str | None = None,
    relative_damping: float | None = None,
    absolute_damping: float | None = None,
    damping_rule: DampingRule | None = None,
    factors: str | Path | None = None,
    fit_on: int | None = None,
    query_rank: int | None = None,
    memory_gib: float | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Study:
    """Compare named sets of queries by where in a corpus they come from (Ruis et al. 2024, arXiv 2411.12580).

    The corpus is scored once, in its order, shard by shard, and every score is kept in the folder: a run that was stopped goes on with the
    shard it was at, and other readings of the same scores cost no pass over the corpus. What is read off them takes one query at a time, or
    half a gibibyte of ranks, so that memory does not grow with the number of queries times documents: both tails, full histograms, how few
    documents hold the positive influence, which kinds of document are in the tails more often than in the corpus, and the rank correlation
    of every pair of queries, which is exact, over all documents.

    Every score is divided by the query's loss (the nats of its completion), so that long and surprising completions compare with short ones,
    and in a second reading also by the document's norm, so that documents with large gradients do not come first for every query. Raw scores
    and both divisors are kept beside these.

    Args:
        task: The model.
        corpus: A store of it or its folder; or the training data itself, which is then gone through with whole gradients.
        sets: Queries by name of their set, as `task.prepare` takes them.
        folder: Where scores, study.json and study.html go.
        k: Documents of a tail, on each side of each query; None for 50, or a tenth of a small corpus.
        kinds: By id of a document its kind; None takes the source.
        method: For training data, one of `whence.EXACT_METHODS`; None for "ekfac".
        relative_damping: Share of each unit's mean eigenvalue.
        absolute_damping: Value in units of the loss's curvature.
        damping_rule: For a store, as in `whence.query`.
        factors: For training data, folder where the curvature is kept; None keeps it in the study's own.
        fit_on: For training data, fit the curvature on so many examples.
        query_rank: For training data, singular directions kept of every query's gradient.
        memory_gib: For training data, memory to take besides the model, in GiB.
        seed: Of bootstrap and permutation draws.
        quiet: No progress on stderr.

    Returns:
        The study.

    Raises:
        BadInput: If there are no sets, a query has no loss to divide by, k does not fit the corpus, or a setting is given that the kind of
            corpus has no use for.
    """
    folder = Path(folder)
    is_store = isinstance(corpus, Store | str | Path)
    _check_settings(is_store, method=method, factors=factors, fit_on=fit_on, query_rank=query_rank, memory_gib=memory_gib)
    if not is_store and damping_rule is not None:
        raise BadInput(
            found="damping_rule for training data", needed="a store for it", do="leave it out, or pass relative_damping"
        )
    queries, places = _joined(task, sets)
    dampings = {"relative_damping": relative_damping, "absolute_damping": absolute_damping}
    nats_Q, measurements_Q = values_of(task, queries)
    _check_nats(queries, nats_Q)
    if isinstance(corpus, Store | str | Path):
        store = corpus if isinstance(corpus, Store) else open_store(corpus)
        k = _tail(k, len(store))
        ready = corpus_of_store(store, task, queries, quiet, **dampings, damping_rule=damping_rule)
    else:
        train = as_dataset(task, corpus)
        k = _tail(k, len(train))
        ready = corpus_of_data(
            task, train, queries, quiet,
            method=method or "ekfac", factors=Path(factors) if factors is not None else folder / "factors", fit_on=fit_on,
            query_rank=query_rank, memory_gib=memory_gib, **dampings,
        )  # fmt: skip
    numbered = kinds_of(ready.documents(), kinds)
    kept = keep_scores(ready, folder / "scores", nats_Q, quiet=quiet)
    readings = {}
    for name, by_norm in (("per nat", False), ("per nat and norm", True)):
        if by_norm and not kept.has_norms:
            continue
        with meter(f"reading {name}", _PASSES * len(queries), quiet=quiet) as progress:
            tails, mass, sizes_Q2 = tails_and_mass(kept, k, by_norm=by_norm, progress=progress)
            counted = histograms(kept, places, sizes_Q2, by_norm=by_norm, progress=progress)
            matrix_QQ = correlations(kept, by_norm=by_norm, progress=progress)
        shares = [
            share
            for label, rows in places.items()
            for side in ("top", "bottom")
            for share in kind_shares(numbered, tails.side(side)[0][rows.start : rows.stop], label, side, seed=seed)
        ]
        readings[name] = Reading(name, tails, mass, counted, by_sets(matrix_QQ, places, seed=seed), tuple(shares))
    found = Study(
        folder, places, queries.ids, tuple(example.text or example.id for example in queries.examples), tuple(nats_Q.tolist()),
        tuple(measurements_Q.tolist()), readings, kept, ready, len(numbered.names), k, task.unit,
    )  # fmt: skip
    write_json(folder / "study.json", found.to_dict())
    write_study(folder / "study.html", found)
    return found


def _joined(task: AbstractTask, sets: Mapping[str, Dataset | Iterable[Any]]) -> tuple[Dataset, dict[str, range]]:
    """All queries, named set/id, and the rows of each set.

    Raises:
        BadInput: If there are no sets.
    """
    if not isinstance(sets, Mapping) or not sets:
        raise BadInput(
            found="no sets of queries", needed="one or more by name", do="such as sets={'facts': [...], 'code': [...]}"
        )
    examples, places = [], {}
    for name, records in sets.items():
        some = as_dataset(task, records).examples
        places[name] = range(len(examples), len(examples) + len(some))
        examples += [dataclasses.replace(example, id=f"{name}/{example.id}") for example in some]
    return Dataset(examples), places


def _check_settings(is_store: bool, **given: Any) -> None:
    names = [name for name, value in given.items() if value is not None]
    if is_store and names:
        raise BadInput(
            found=f"{', '.join(names)} for a store",
            needed="training data for it: a store has its method and curvature inside",
            do=f"leave {names[0]} out, or study the data itself",
        )


def _check_nats(queries: Dataset, nats_Q: Tensor) -> None:
    wrong = (~(torch.isfinite(nats_Q) & (nats_Q > 0))).nonzero()[:, 0].tolist()
    if wrong:
        raise BadInput(
            found=f"the query {queries.ids[wrong[0]]!r} with a loss of {float(nats_Q[wrong[0]]):g}",
            needed="a positive number to divide its scores by",
            do="leave the query out",
        )


def _tail(k: int | None, num_documents: int) -> int:
    if k is None:
        return max(1, min(50, num_documents // 10))
    if not 1 <= k <= num_documents // 2:
        raise BadInput(
            found=f"k={k} for {num_documents:,} documents",
            needed=f"1 to {num_documents // 2:,}, so that the tails do not overlap",
            do="choose another k",
        )
    return k
