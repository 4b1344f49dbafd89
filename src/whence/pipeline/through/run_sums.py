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
        prepared: Prepared,
        rows: int,
        segments: Sequence[Segment],
        *,
        per_segment: bool,
        per_unit: bool,
        tokens: Sequence[int],
    ):
        self.prepared, self.segments, self.token_rows = prepared, segments, set(tokens)
        self.per_segment, self.per_unit = per_segment, per_unit
        parts = len(segments) if per_segment else len(prepared.plan.units) if per_unit else 1
        self.scores_UQN = torch.zeros(parts, rows, len(prepared.train), dtype=torch.float64)
        lengths = {row: prepared.train.examples[row].length for row in tokens}
        self.tokens = {row: torch.zeros(rows, length, dtype=torch.float64) for row, length in lengths.items()}

    def add(self, number: int, blocks: Blocks) -> None:
        """One pass at the weights that the model has now.

        Args:
            number: Of the segment.
            blocks: What its gradients are multiplied with, per unit (Q, O, I).
        """
        prepared, shares = self.prepared, self.segments[number].shares
        order = [row for row, example in enumerate(prepared.train.examples) if example.id in shares]
        chosen = [prepared.train.examples[row] for row in order]
        shares_N = torch.tensor([shares[example.id] for example in chosen], dtype=torch.float64)
        with meter("scan", -(-len(chosen) // prepared.ranks.count), quiet=prepared.quiet) as progress:
            scores = exact_scores(
                prepared.task, prepared.plan, chosen, blocks, max_positions=prepared.max_positions, progress=progress,
                parts=Parts(
                    per_unit=self.per_unit, tokens=[position for position, row in enumerate(order) if row in self.token_rows]
                ),
                ranks=prepared.ranks,
            )  # fmt: skip
        part_UQN = scores.scores_QN[None] if scores.units_UQN is None else scores.units_UQN
        mine = slice(number, number + 1) if self.per_segment else slice(None)
        self.scores_UQN[mine, :, order] += part_UQN * shares_N
        for position, parts_QT in scores.tokens.items():
            self.tokens[order[position]] += parts_QT * shares_N[position]

    def finished(self) -> ExactScores:
        """All of it."""
        parts_UQN = self.scores_UQN if self.per_segment or self.per_unit else None
        return ExactScores(self.scores_UQN.sum(0), parts_UQN, self.tokens, None)
