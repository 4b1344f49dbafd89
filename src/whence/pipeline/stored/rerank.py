"""The second stage of a query: better scores for the shortlist that a scan of small codes leaves.

Axes: Q queries, K hits, L rows of one query's shortlist, S of some queries' shortlists together.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from whence.capture import check_task
from whence.compress import Aligned
from whence.data import Dataset, Example
from whence.errors import BadInput, StoreMismatch
from whence.pipeline.inputs import as_dataset
from whence.pipeline.stored.prepared import PreparedQuery
from whence.pipeline.stored.query_tokens import queries_of_tokens
from whence.pipeline.stored.same_model import TEXT_TASKS
from whence.pipeline.stored.whole_gradients import WholeGradients
from whence.progress import meter
from whence.report import Hit
from whence.score import Top, token_scores
from whence.sharded_weights import refuse_sharded
from whence.store import Store, with_deleted

__all__ = ["ExactStage", "Stage", "check_same_rows", "matched", "reranked"]


class Stage(Protocol):
    """What scores a shortlist: a larger store, or the model itself."""

    @property
    def at_once(self) -> int:
        """Queries answered at a time."""
        ...

    def scores(self, queries: range, rows: Sequence[int]) -> Tensor:
        """Scores of some queries for some rows of the store, shape (Q, S)."""
        ...

    def with_tokens(self, hit: Hit, query: int) -> tuple[Hit, bool]:
        """The hit with a score per token, and whether it has none because its row is too far from its gradient."""
        ...

    def query_parts(self, query: int, rows: Sequence[int]) -> Tensor:
        """Parts of one query's scores of some rows, ascending, by its tokens, shape (A, K); no parts where there are none."""
        ...


@dataclass(frozen=True)
class ExactStage:
    """Influence under the EK-FAC inside a store of codes, from whole gradients of the model.

    Args:
        prepared: The queries, made ready against the store.
        encoder: What made its codes; its halves of the damped inverse are taken whole.
        examples: The training examples in the order of the store's rows.
        quiet: No progress on stderr.
        last_query: The last query whose tokens were asked for, preconditioned.
    """

    prepared: PreparedQuery
    encoder: Aligned
    examples: Sequence[Example]
    quiet: bool
    last_query: dict[int, list[Tensor]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def prepare(cls, prepared: PreparedQuery, train: Dataset | Iterable[Any] | None, quiet: bool) -> "ExactStage":
        """Match the training data with the store, and check the model on two of its examples.

        Raises:
            BadInput: If there is no training data, or no EK-FAC in the store.
        """
        if not isinstance(prepared.encoder, Aligned):
            raise BadInput(
                found=f"Rerank(by='exact') for a store of {prepared.method}",
                needed="a store of aligned, whose codes hold EK-FAC and its damping",
                do="pass a larger store of the same data as Rerank(by=...), or ask whence.attribute",
            )
        if train is None:
            raise BadInput(
                found="Rerank(by='exact') without training data",
                needed="the data that the store was built from, since its gradients are taken again",
                do="write Rerank(train=...), on the command line --train",
            )
        refuse_sharded(prepared.task.model, "Rerank(by='exact')")
        examples = matched(prepared.store, as_dataset(prepared.task, train))
        check_task(prepared.task, prepared.plan, examples)
        return cls(prepared, prepared.encoder, examples, quiet)

    @property
    def gradients(self) -> WholeGradients:
        """What exact scores are made of."""
        return WholeGradients(self.prepared.task, self.prepared.plan, self.encoder, self.prepared.max_positions)

    @property
    def at_once(self) -> int:
        """Queries whose whole gradients fit."""
        return self.gradients.at_once

    def scores(self, queries: range, rows: Sequence[int]) -> Tensor:
        """-(1/N) grad m^T (H + damping)^-1 grad loss_i, shape (Q, S), float64; the model runs on these rows' examples again."""
        examples = [self.examples[row] for row in rows]
        blocks = self.blocks(self.prepared.dataset.examples[queries.start : queries.stop])
        with meter("rerank", len(examples), quiet=self.quiet) as progress:
            return self.gradients.scores(blocks, examples, progress)

    def with_tokens(self, hit: Hit, query: int) -> tuple[Hit, bool]:
        """The hit with a score per token, if it is known where its tokens are; these are exact."""
        example = self.examples[hit.row]
        if example.token_spans is None:
            return hit, False
        if query not in self.last_query:
            self.last_query.clear()
            self.last_query[query] = [
                block_QOI[0] for block_QOI in self.blocks(self.prepared.dataset.examples[query : query + 1])
            ]
        parts_T = token_scores(self.prepared.task, self.prepared.plan, self.gradients.whole, example, self.last_query[query])
        spans = tuple((int(a), int(b)) for a, b in example.token_spans)
        return replace(hit, token_spans=spans, token_scores=tuple(parts_T.tolist())), False

    def query_parts(self, query: int, rows: Sequence[int]) -> Tensor:
        """Parts of one query's scores of some rows by its tokens, shape (A, K); the model runs on these rows' examples again."""
        parts = [torch.zeros(0, len(rows))]
        examples, size = queries_of_tokens(self.prepared.task, self.prepared.dataset.examples[query]), self.at_once
        for start in range(0, len(examples), size):
            blocks = self.blocks(examples[start : start + size])
            with meter("query tokens", len(rows), quiet=True) as progress:
                parts.append(self.gradients.scores(blocks, [self.examples[row] for row in rows], progress).cpu())
        return torch.cat(parts)

    def blocks(self, queries: Sequence[Example]) -> list[Tensor]:
        """Preconditioned queries, per unit of shape (Q, O, I), on the model's device: their products with gradients are scores."""
        scale = -1.0 / len(self.prepared.store)
        return [block * scale for block in self.gradients.preconditioned(queries, "measurement")]


def reranked(stage: Stage, high: Top, low: Top, k: int) -> tuple[Top, Top, int]:
    """The shortlist of each query in the order of better scores.

    A query is answered from its own shortlist only: what else is asked with it does not change its answer.

    Args:
        stage: What scores them.
        high: The shortlist's upper half, shape (Q, K).
        low: Its lower half.
        k: Hits wanted on each side.

    Returns:
        Highest first, lowest first (equal scores in row order), and how many rows were scored.
    """
    best: list[tuple[Tensor, ...]] = []
    count = 0
    for start in range(0, len(high.rows_QK), stage.at_once):
        queries = range(start, min(start + stage.at_once, len(high.rows_QK)))
        shortlists = [torch.cat([high.rows_QK[query], low.rows_QK[query]]).unique() for query in queries]
        rows_S = torch.cat(shortlists).unique()
        scores_QS = stage.scores(queries, rows_S.tolist())
        count += len(rows_S)
        for scores_S, rows_L in zip(scores_QS, shortlists, strict=True):
            scores_L = scores_S[torch.searchsorted(rows_S, rows_L)]
            up, down = scores_L.argsort(descending=True, stable=True)[:k], scores_L.argsort(stable=True)[:k]
            best.append((scores_L[up], rows_L[up], scores_L[down], rows_L[down]))
    up_scores, up_rows, down_scores, down_rows = (torch.stack(part) for part in zip(*best, strict=True))
    return Top(up_scores, up_rows), Top(down_scores, down_rows), count


def matched(store: Store, train: Dataset) -> Sequence[Example]:
    """Training examples in the order of a store's rows, proved to be those that it was built from.

    A dataset is proved as a whole, by its fingerprint. Where rows of it were deleted and their examples are not given, either, the texts of a
    language model are compared one by one; other examples hold more than their text.

    Args:
        store: The store.
        train: At least its examples, in any order.

    Returns:
        One per row.

    Raises:
        StoreMismatch: If one is missing or another than it was.
    """
    datasets = store.datasets()
    if not store.num_deleted and datasets == [(train.fingerprint, len(train))]:
        return train.examples
    by_id = {example.id: example for example in train.examples}
    matching = []
    for stored in store.examples():
        example = by_id.get(stored["id"])
        if example is None:
            raise StoreMismatch(
                found=f"training data of {len(train):,} examples without {stored['id']!r}",
                needed=f"all {len(store):,} that {store.folder} was built from",
                do="pass the same data (--train); where more was appended, all of it together",
            )
        if (example.text, example.length, example.prompt, [list(pair) for pair in example.scored]) != (
            stored.get("text", ""),
            stored["length"],
            stored.get("prompt", 0),
            stored.get("scored", []),
        ):
            raise StoreMismatch(**_changed(store, f"another text or length of the training example {example.id!r}"))
        matching.append(example)
    start, built = 0, _as_built(store, by_id) if store.num_deleted else {}
    is_told_by_text = store.blueprint.task.get("kind") in TEXT_TASKS
    for fingerprint, rows in datasets:
        # Not everything has a text: this covers tensors too.
        own, whole = matching[start : start + rows], built.get(fingerprint)
        if whole is None or len(whole) == rows:
            is_proved = Dataset(own).fingerprint == fingerprint
        elif is_told_by_text and all(example.text for example in own):
            is_proved = True  # compared above
        elif None in whole:
            raise StoreMismatch(
                found=f"training data without the {len(whole) - rows:,} examples that were deleted from {store.folder}",
                needed="them, too, to tell whether the others are what the store was built from: only language models' texts tell that alone",
                do="pass the whole data, or build the store again from the examples that are left",
            )
        else:
            is_proved = Dataset([example for example in whole if example is not None]).fingerprint == fingerprint
        if not is_proved:
            what = f"the ids but not the contents of rows {start:,} to {start + rows - 1:,} in the training data"
            raise StoreMismatch(**_changed(store, what))
        start += rows
    return matching


def check_same_rows(store: Store, larger: Store) -> None:
    """Refuse a second store of other data.

    Raises:
        StoreMismatch: If its rows are not of the same examples in the same order.
    """
    is_other = store.datasets() != larger.datasets()
    if is_other or (store.num_deleted + larger.num_deleted and store.ids() != larger.ids()):
        raise StoreMismatch(
            found=f"a store of {len(larger):,} examples in {larger.folder} to rerank {len(store):,} of {store.folder}",
            needed="two stores built from the same data, appended in the same order, with the same rows deleted",
            do="build the second from the data of the first",
        )


def _as_built(store: Store, by_id: Mapping[str, Example]) -> dict[str, list[Example | None]]:
    """By fingerprint of a dataset its examples as they were built, with those that were deleted; None for what is not given."""
    complete = with_deleted(store)
    stored_examples = complete.examples()
    return {
        fingerprint: [by_id.get(stored["id"]) for stored in itertools.islice(stored_examples, rows)]
        for fingerprint, rows in complete.datasets()
    }


def _changed(store: Store, what: str) -> dict[str, str]:
    return {
        "found": what,
        "needed": f"the examples that {store.folder} was built from, prepared the same way",
        "do": "pass the same data and the same options of the task, or build the store again",
    }
