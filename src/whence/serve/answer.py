"""From questions to answers: one scan for all that wait together.

Axes: Q questions, N rows.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from whence.data import Dataset, Example
from whence.errors import NonFinite
from whence.pipeline.stored.prepared import PreparedQuery, hit_of, token_notes
from whence.pipeline.stored.query_tokens import query_tokens_note, texts_of_tokens, with_query_tokens
from whence.progress import meter
from whence.report import Hit
from whence.score import Ends, believable_unit, both_ends, shard_scores
from whence.serve.hosted_store import HostedStore
from whence.serve.question import Question
from whence.serve.shares import share_lines
from whence.workers import RowChoice

__all__ = ["Asker", "Masks", "answered"]

_KEPT_MASKS = 32


class Asker(Protocol):
    """Who waits for an answer."""

    @property
    def question(self) -> Question:
        """What was asked, with its completion."""
        ...

    @property
    def is_wanted(self) -> bool:
        """Whether the answer is still waited for."""
        ...

    def report(self, phase: str, done: int, total: int) -> None:
        """Say how far it is."""
        ...


class Masks:
    """The rows that recent filters let through, so that asking again with the same one reads nothing.

    Args:
        hosted: Whose rows.
        hides_sources: As in `Catalog.rows_of`.
    """

    def __init__(self, hosted: HostedStore, *, hides_sources: bool = False):
        self.hosted, self.hides_sources = hosted, hides_sources
        self.masks: dict[Any, Tensor] = {}

    def of(self, question: Question) -> Tensor | None:
        """Rows that may be hits, shape (N,); None for all."""
        if question.filter.is_empty:
            return None
        mask = self.masks.pop(question.filter, None)
        self.masks[question.filter] = (
            self.hosted.catalog.rows_of(question.filter, hides_sources=self.hides_sources) if mask is None else mask
        )
        if len(self.masks) > _KEPT_MASKS:
            del self.masks[next(iter(self.masks))]
        return self.masks[question.filter]


def answered(
    hosted: HostedStore,
    askers: Sequence[Asker],
    prepared: Sequence[tuple[Example, dict[str, Any]]],
    masks: Masks,
    credits: bool = False,
) -> list[dict[str, Any] | None]:
    """Answers to several questions at once.

    Args:
        hosted: Who is asked.
        askers: Who asks.
        prepared: Each one's example and what an answer says of it, from `HostedStore.example`.
        masks: Rows by filter.
        credits: Whether every score is wanted, for payouts.

    Returns:
        Per asker what the log keeps, without training text; None for those that nobody waits for any more. With `credits` also `scores` of
        all rows, shape (N,), whatever a filter lets through.

    Raises:
        NonFinite: If a measurement or a sum of scores is no number.
    """
    started = time.monotonic()
    examples = [dataclasses.replace(example, id=str(index)) for index, (example, _) in enumerate(prepared)]
    keep = [masks.of(asker.question) for asker in askers]
    for asker in askers:
        asker.report("gradients", 0, 1)
    query = hosted.prepared.prepare(Dataset(examples), quiet=True)
    ends = _scan(hosted, query, askers, keep, credits)
    if ends is None or ends.sums_QG2 is None:
        return [None] * len(askers)
    if not bool(query.rows.values.isfinite().all() and ends.sums_QG2.isfinite().all()):
        raise NonFinite(found="a measurement or scores that are not finite", needed="finite ones", do="ask something else")
    answers: list[dict[str, Any] | None] = []
    for index, asker in enumerate(askers):
        answered_sides = _sides(query, asker, index, ends)
        if answered_sides is None:
            answers.append(None)
            continue
        sides, notes_of_tokens = answered_sides
        question, facts, allowed = asker.question, prepared[index][1], keep[index]
        value_1 = query.rows.values[index : index + 1]
        shown = [hit["score"] for side in sides for hit in side]
        has_parts = any("query_scores" in hit for side in sides for hit in side)
        parts = {"query_tokens": list(texts_of_tokens(hosted.prepared.task, examples[index]))} if has_parts else {}
        unit, sizes = believable_unit(query.unit, hosted.prepared.task, value_1, [shown], [examples[index]])
        answers.append(
            {
                "store": hosted.name,
                **facts,
                "k": question.k,
                "tokens_asked": question.tokens,
                "filter": dataclasses.asdict(question.filter),
                "measurement": float(value_1),
                "measurement_unit": hosted.prepared.task.unit,
                "unit": unit,
                "method": query.method,
                "num_examples": len(query.store),
                "num_allowed": len(query.store) if allowed is None else int(allowed.sum()),
                "notes": [*query.notes, *notes_of_tokens, *sizes],
                **parts,
                "proponents": sides[0],
                "opponents": sides[1],
                "shares": share_lines(hosted.catalog.sources, ends.sums_QG2[index]),
                "seconds": time.monotonic() - started,
                **(
                    {}
                    if ends.scores_QN is None
                    else {"scores": ends.scores_QN[index].float().numpy(), "score_unit": query.unit}
                ),
            }
        )
    return answers


def _scan(
    hosted: HostedStore, query: PreparedQuery, askers: Sequence[Asker], keep: Sequence[Tensor | None], credits: bool
) -> Ends | None:
    """Both ends of every question's ranking and the sums of its sources; None once nobody waits for any of them."""
    k = max(asker.question.k for asker in askers)
    allowed = {index: mask for index, mask in enumerate(keep) if mask is not None}
    sources = len(hosted.catalog.sources)

    def is_wanted() -> bool:
        return any(asker.is_wanted for asker in askers)

    with meter("scan", len(query.store), quiet=True) as progress:
        if hosted.prepared.workers is not None:

            def advance(rows: int) -> None:
                progress.advance(rows)
                for asker in askers:
                    asker.report("scan", progress.done, len(query.store))

            return hosted.prepared.workers.top_scores(
                query.store, query.preconditioned, k, norms_Q=query.norms_Q, roots=query.roots,
                choice=RowChoice({index: mask.numpy() for index, mask in allowed.items()}, (hosted.catalog.source_N, sources), credits),
                advance=advance, is_wanted=is_wanted,
            )  # fmt: skip

        def watched() -> Iterator[tuple[int, Tensor]]:
            for start, scores_QN in shard_scores(query.store, query.preconditioned, query.norms_Q, roots=query.roots):
                if not is_wanted():
                    return
                yield start, scores_QN
                for asker in askers:
                    asker.report("scan", start + scores_QN.shape[1], len(query.store))

        groups = (torch.from_numpy(hosted.catalog.source_N), sources)
        ends = both_ends(
            watched(), query.preconditioned[0], k, progress=progress, keep=allowed, groups=groups, is_whole=credits
        )
        return ends if progress.done == len(query.store) else None


def _sides(
    query: PreparedQuery, asker: Asker, index: int, ends: Ends
) -> tuple[list[list[dict[str, Any]]], tuple[str, ...]] | None:
    """Both sides of one question's ranking, and what is said of scores of tokens; None if nobody waits for it any more."""
    k, done = asker.question.k, 0
    sides, withheld, unread = [], 0, 0
    for top, sign in ((ends.high, 1), (ends.low, -1)):
        pairs = zip(top.scores_QK[index, :k].tolist(), top.rows_QK[index, :k].tolist(), strict=True)
        side = []
        # A row that a filter leaves out has the score that no hit has.
        for row, score in [(row, score) for score, row in pairs if score * sign > 0]:
            if not asker.is_wanted:
                return None
            hit = {"row": row, "score": score, "tokens": []}
            if asker.question.tokens:
                scored, is_far = query.with_tokens(hit_of(query.store, row, score), index)
                withheld, unread = withheld + is_far, unread + (not scored.token_scores and not is_far)
                hit["tokens"] = list(zip(map(list, scored.token_spans), scored.token_scores, strict=True))
                done += 1
                asker.report("tokens", done, 2 * k)
            side.append(hit)
        sides.append(side)
    notes = token_notes(query.method, withheld, unread)
    return sides, notes + (_with_parts(query, index, [hit for side in sides for hit in side]) if asker.question.tokens else ())


def _with_parts(query: PreparedQuery, index: int, hits: list[dict[str, Any]]) -> tuple[str, ...]:
    """Add what each hit says for each token of the question, where the parts add up to its score; what is said where they do not."""
    scored = with_query_tokens(query, index, [Hit("", hit["row"], hit["score"]) for hit in hits])
    for hit, parts in zip(hits, scored, strict=True):
        if parts.query_scores:
            hit["query_scores"] = list(parts.query_scores)
    return query_tokens_note(query.task, [query.dataset.examples[index]], [scored])
