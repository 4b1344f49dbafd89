"""What of the parts of a run adds up to a table.

Axes: Q queries, N training examples, U parts (units or segments), T positions.
"""

from collections.abc import Sequence

import torch

from whence.capture import Blocks
from whence.pipeline.exact.prepare import Prepared
from whence.progress import meter
from whence.score import ExactScores, Parts, exact_scores
from whence.unroll import Segment

__all__ = ["RunSums"]


class RunSums:
    """Adds up scores over the passes through a run, each over the examples of a segment.

    Args:
        ready: Checked task and data.
        rows: Of the table.
        segments: Of the run.
        per_segment: Whether to keep each segment's part.
        per_unit: Whether to keep each unit's part.
        tokens: Places of examples of which each position's part is wanted.
    """

    def __init__(
        self,
        ready: Prepared,
        rows: int,
        segments: Sequence[Segment],
        *,
        per_segment: bool,
        per_unit: bool,
        tokens: Sequence[int],
    ):
        self.ready, self.segments, self.places = ready, segments, set(tokens)
        self.per_segment, self.per_unit = per_segment, per_unit
        parts = len(segments) if per_segment else len(ready.plan.units) if per_unit else 1
        self.scores_UQN = torch.zeros(parts, rows, len(ready.train), dtype=torch.float64)
        lengths = {place: ready.train.examples[place].length for place in tokens}
        self.tokens = {place: torch.zeros(rows, length, dtype=torch.float64) for place, length in lengths.items()}

    def add(self, number: int, blocks: Blocks) -> None:
        """One pass at the weights that the model has now.

        Args:
            number: Of the segment.
            blocks: What its gradients are multiplied with, per unit (Q, O, I).
        """
        ready, shares = self.ready, self.segments[number].shares
        order = [place for place, example in enumerate(ready.train.examples) if example.id in shares]
        chosen = [ready.train.examples[place] for place in order]
        shares_N = torch.tensor([shares[example.id] for example in chosen], dtype=torch.float64)
        with meter("scan", len(chosen), quiet=ready.quiet) as progress:
            found = exact_scores(
                ready.task, ready.plan, chosen, blocks, max_positions=ready.max_positions, progress=progress,
                parts=Parts(
                    per_unit=self.per_unit, tokens=[position for position, place in enumerate(order) if place in self.places]
                ),
            )  # fmt: skip
        part_UQN = found.scores_QN[None] if found.units_UQN is None else found.units_UQN
        mine = slice(number, number + 1) if self.per_segment else slice(None)
        self.scores_UQN[mine, :, order] += part_UQN * shares_N
        for position, parts_QT in found.tokens.items():
            self.tokens[order[position]] += parts_QT * shares_N[position]

    def finished(self) -> ExactScores:
        """All of it."""
        parts_UQN = self.scores_UQN if self.per_segment or self.per_unit else None
        return ExactScores(self.scores_UQN.sum(0), parts_UQN, self.tokens, None)
