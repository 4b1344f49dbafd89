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
from whence.pipeline.stored.prepared import PreparedQuery, hit_of
from whence.progress import meter
from whence.score import Ends, believable_unit, both_ends, shard_scores
from whence.serve.hosted_store import Desk
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
        desk: Whose rows.
    """

    def __init__(self, desk: Desk):
        self.desk = desk
        self.known: dict[Any, Tensor] = {}

    def of(self, question: Question) -> Tensor | None:
        """Rows that may be hits, shape (N,); None for all."""
        if question.filter.is_empty:
            return None
        found = self.known.pop(question.filter, None)
        self.known[question.filter] = self.desk.catalog.rows_of(question.filter) if found is None else found
        if len(self.known) > _KEPT_MASKS:
            del self.known[next(iter(self.known))]
        return self.known[question.filter]


def answered(
    desk: Desk, askers: Sequence[Asker], prepared: Sequence[tuple[Example, dict[str, Any]]], masks: Masks
) -> list[dict[str, Any] | None]:
    """Answers to several questions at once.

    Args:
        desk: Who is asked.
        askers: Who asks.
        prepared: Each one's example and what an answer says of it, from `Desk.example`.
        masks: Rows by filter.

    Returns:
        Per asker what the log keeps, without training text; None for those that nobody waits for any more.

    Raises:
        NonFinite: If a measurement or a sum of scores is no number.
    """
    started = time.monotonic()
    examples = [dataclasses.replace(example, id=str(place)) for place, (example, _) in enumerate(prepared)]
    keep = [masks.of(asker.question) for asker in askers]
    for asker in askers:
        asker.report("gradients", 0, 1)
    asked = desk.warm.prepare(Dataset(examples), quiet=True)
    ends = _scan(desk, asked, askers, keep)
    if ends is None or ends.sums_QG2 is None:
        return [None] * len(askers)
    if not bool(asked.rows.values.isfinite().all() and ends.sums_QG2.isfinite().all()):
        raise NonFinite(found="a measurement or scores that are not finite", needed="finite ones", do="ask something else")
    found: list[dict[str, Any] | None] = []
    for place, asker in enumerate(askers):
        sides = _sides(asked, asker, place, ends)
        if sides is None:
            found.append(None)
            continue
        question, told, allowed = asker.question, prepared[place][1], keep[place]
        value_1 = asked.rows.values[place : place + 1]
        largest_1 = torch.tensor([max((abs(hit["score"]) for side in sides for hit in side), default=0.0)])
        unit, sizes = believable_unit(asked.unit, desk.warm.task, value_1, largest_1)
        found.append(
            {
                "store": desk.name,
                **told,
                "k": question.k,
                "filter": dataclasses.asdict(question.filter),
                "measurement": float(value_1),
                "measurement_unit": desk.warm.task.unit,
                "unit": unit,
                "method": asked.method,
                "num_examples": len(asked.store),
                "num_allowed": len(asked.store) if allowed is None else int(allowed.sum()),
                "notes": [*asked.notes, *sizes],
                "proponents": sides[0],
                "opponents": sides[1],
                "shares": share_lines(desk.catalog.sources, ends.sums_QG2[place]),
                "seconds": time.monotonic() - started,
            }
        )
    return found


def _scan(desk: Desk, asked: PreparedQuery, askers: Sequence[Asker], keep: Sequence[Tensor | None]) -> Ends | None:
    """Both ends of every question's ranking and the sums of its sources; None once nobody waits for any of them."""
    k = max(asker.question.k for asker in askers)
    allowed = {place: mask for place, mask in enumerate(keep) if mask is not None}
    sources = len(desk.catalog.sources)

    def is_wanted() -> bool:
        return any(asker.is_wanted for asker in askers)

    with meter("scan", len(asked.store), quiet=True) as progress:
        if desk.warm.workers is not None:

            def advance(rows: int) -> None:
                progress.advance(rows)
                for asker in askers:
                    asker.report("scan", progress.done, len(asked.store))

            return desk.warm.workers.top_scores(
                asked.store, asked.preconditioned, k, norms_Q=asked.norms_Q, roots=asked.roots,
                choice=RowChoice({place: mask.numpy() for place, mask in allowed.items()}, (desk.catalog.source_N, sources)),
                advance=advance, is_wanted=is_wanted,
            )  # fmt: skip

        def watched() -> Iterator[tuple[int, Tensor]]:
            for start, scores_QN in shard_scores(asked.store, asked.preconditioned, asked.norms_Q, roots=asked.roots):
                if not is_wanted():
                    return
                yield start, scores_QN
                for asker in askers:
                    asker.report("scan", start + scores_QN.shape[1], len(asked.store))

        groups = (torch.from_numpy(desk.catalog.source_N), sources)
        found = both_ends(watched(), asked.preconditioned[0], k, progress=progress, keep=allowed, groups=groups)
        return found if progress.done == len(asked.store) else None


def _sides(asked: PreparedQuery, asker: Asker, place: int, ends: Ends) -> list[list[dict[str, Any]]] | None:
    """Both sides of one question's ranking; None if nobody waits for it any more."""
    k, done = asker.question.k, 0
    found = []
    for top, sign in ((ends.high, 1), (ends.low, -1)):
        pairs = zip(top.scores_QK[place, :k].tolist(), top.rows_QK[place, :k].tolist(), strict=True)
        side = []
        # A row that a filter leaves out has the score that no hit has.
        for row, score in [(row, score) for score, row in pairs if score * sign > 0]:
            if not asker.is_wanted:
                return None
            hit = {"row": row, "score": score, "tokens": []}
            if asker.question.tokens:
                scored, _ = asked.with_tokens(hit_of(asked.store, row, score), place)
                hit["tokens"] = list(zip(map(list, scored.token_spans), scored.token_scores, strict=True))
                done += 1
                asker.report("tokens", done, 2 * k)
            side.append(hit)
        found.append(side)
    return found
