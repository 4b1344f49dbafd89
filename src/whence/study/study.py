"""A study of a corpus: what many queries, in named sets, have in common in the documents that they come from."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whence.data import Dataset
from whence.digests import digested_once
from whence.errors import BadInput
from whence.pipeline.inputs import as_dataset
from whence.progress import meter
from whence.report import Beside
from whence.score import word_index
from whence.settings import (
    Damping,
    ExactSettings,
    Runtime,
    StudyConfig,
    final_settings,
    keeping_factors,
    records_only,
)
from whence.store import Store, open_store, write_json
from whence.study.copied import beside_tails
from whence.study.corpus import corpus_of_data, corpus_of_store, values_of
from whence.study.correlation import by_sets, correlations
from whence.study.kept_scores import Corpus, keep_scores
from whence.study.kinds import kind_shares, kinds_of
from whence.study.page import write_study
from whence.study.questions import Questions, against_foils, questions_in
from whence.study.readouts import histograms, tails_and_mass
from whence.study.recall import Recall, first_by_words, holders_of, recall_of
from whence.study.result import Reading, Study
from whence.study.side_by_side import side_by_side
from whence.tasks import AbstractTask

__all__ = ["study"]

# Passes over the queries' scores for one reading: sorting, counting, ranking.
_PASSES = 4


@records_only(config=StudyConfig, method=ExactSettings, damping=Damping, runtime=Runtime)
@digested_once()
def study(
    task: AbstractTask,
    corpus: Store | str | Path | Dataset | Iterable[Any],
    sets: Mapping[str, Dataset | Iterable[Any]],
    folder: str | Path,
    *,
    config: StudyConfig = StudyConfig(),
    method: str | ExactSettings | None = None,
    damping: Damping = Damping(),
    runtime: Runtime = Runtime(),
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
        sets: Queries by name of their set, as `task.prepare` takes them. Records may have `foil`, to be held against, and `answer`
            and `steps`, to be searched for in the top tails; see `whence.study.questions.questions_in`.
        folder: Where scores, study.json and study.html go.
        config: What is read off the scores.
        method: For training data, an exact method; None for "ekfac". Its curvature is kept in the study's own folder if it names none.
        damping: For a store, as in `whence.query`.
        runtime: How the job runs.

    Returns:
        The study.

    Raises:
        BadInput: If there are no sets, a query has no loss to divide by, k does not fit the corpus, or a setting is given that the kind of
            corpus has no use for.
    """
    folder = Path(folder)
    is_store = isinstance(corpus, Store | str | Path)
    _check_corpus(is_store, method, damping, runtime)
    settings = None if is_store else keeping_factors(final_settings(method or "ekfac"), folder / "factors")
    questions = questions_in(task, sets)
    queries, rows_of_set, texts = questions.queries, questions.rows_of_set, questions.texts
    nats_A, measurements_A = values_of(task, texts)
    nats_Q, measurements_Q = nats_A[: len(queries)], questions.weights_QA @ measurements_A
    _check_nats(queries, nats_Q)
    if isinstance(corpus, Store | str | Path):
        store = corpus if isinstance(corpus, Store) else open_store(corpus)
        k = _tail(config.k, len(store))
        ready = corpus_of_store(store, task, texts, damping, runtime.quiet)
    else:
        train = as_dataset(task, corpus)
        k = _tail(config.k, len(train))
        assert settings is not None
        ready = corpus_of_data(task, train, texts, settings, runtime)
    ready = against_foils(ready, questions.weights_QA)
    numbered = kinds_of(ready.documents(), config.kinds)
    scores = keep_scores(ready, folder / "scores", nats_Q, quiet=runtime.quiet)
    readings = {}
    for name, by_norm in (("per nat", False), ("per nat and norm", True)):
        if by_norm and not scores.has_norms:
            continue
        with meter(f"reading {name}", _PASSES * len(queries), quiet=runtime.quiet) as progress:
            tails, mass, sizes_Q2 = tails_and_mass(scores, k, by_norm=by_norm, progress=progress)
            counted = histograms(scores, rows_of_set, sizes_Q2, by_norm=by_norm, progress=progress)
            alike, pearson = (
                by_sets(correlations(scores, by_norm=by_norm, progress=progress, of=what), rows_of_set, seed=config.seed)
                for what in ("ranks", "scores")
            )
        shares = [
            share
            for label, rows in rows_of_set.items()
            for side in ("top", "bottom")
            for share in kind_shares(numbered, tails.side(side)[0][rows.start : rows.stop], label, side, seed=config.seed)
        ]
        readings[name] = Reading(name, tails, mass, counted, alike, pearson, tuple(shares))
    beside, recall = _by_words(ready, questions, readings, folder / "words", config)
    result = Study(
        folder, rows_of_set, queries.ids, tuple(example.text or example.id for example in queries.examples), tuple(nats_Q.tolist()),
        tuple(measurements_Q.tolist()), readings, scores, ready, len(numbered.names), k, task.unit, beside, recall,
    )  # fmt: skip
    if config.side_by_side is not None:
        result = dataclasses.replace(result, sides=side_by_side(result, config.side_by_side))
    write_json(folder / "study.json", result.to_dict())
    write_study(folder / "study.html", result)
    return result


def _by_words(
    corpus: Corpus, questions: Questions, readings: Mapping[str, Reading], folder: Path, config: StudyConfig
) -> tuple[tuple[Beside, ...], tuple[Recall, ...]]:
    """What is copied, and whether the top tails say what was sought: all that needs the words of the corpus."""
    if not config.verbatim and not any(questions.sought):
        return (), ()
    texts = (str(document.get("text", "")) for document in corpus.documents())
    index = word_index(texts, folder, identity=json.dumps(dict(corpus.identity)))
    tails, recall = [reading.tails for reading in readings.values()], []
    if any(questions.sought):
        holders = holders_of(corpus, questions)
        by_words = first_by_words(questions, index, tails[0].high_QK.shape[1])
        for name, reading in readings.items():
            recall += recall_of(name, reading.tails.high_QK, questions, holders, by_words, index.num_documents)
    return beside_tails(corpus, questions.queries.examples, tails, index) if config.verbatim else (), tuple(recall)


def _check_corpus(is_store: bool, method: Any, damping: Damping, runtime: Runtime) -> None:
    """Refuse what the kind of corpus has no use for.

    Raises:
        BadInput: If there is such a setting.
    """
    unused = [*(["method"] if method is not None else []), *runtime.chosen]
    if is_store and unused:
        raise BadInput(
            found=f"{', '.join(unused)} for a store",
            needed="training data for it: a store has its method and curvature inside",
            do=f"leave {unused[0]} out, or study the data itself",
        )
    if not is_store and damping != Damping():
        raise BadInput(
            found="damping for training data",
            needed="a store for it: a method has its own",
            do="write it into the method, such as method=whence.EKFAC(damping=...)",
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
