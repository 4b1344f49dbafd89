"""Token scores of one tokenizer for the tokens of another: they travel by characters.

Axes: T tokens of an example, C characters of its text.
"""

from pathlib import Path

import numpy as np
import torch

from whence.data import Dataset, Example
from whence.errors import BadInput
from whence.guide.token_scores import TokenScores
from whence.store import write_tensors
from whence.tasks.token_loss import IGNORED

__all__ = ["by_characters", "carry_scores"]


def carry_scores(scores: TokenScores, train: Dataset, folder: str | Path) -> TokenScores:
    """Scores of a proxy's tokens for the tokens of the model that is to be trained.

    A token's score is spread evenly over its characters, and every character's over the tokens that cover it, so that the scores of a text
    add up to what they did. What falls on a token that is not scored, such as the first one, is left out.

    Args:
        scores: The proxy's.
        train: The same texts, by id, as the other model's task prepared them.
        folder: Where the scores are kept.

    Returns:
        Scores of these tokens; a note says what they are made from and how much was left out.

    Raises:
        BadInput: If an example has another text, or no known characters of its tokens.
    """
    by_row: dict[int, torch.Tensor] = {}
    left_out = total = 0.0
    targets = {example.id: example for example in train.examples}
    if targets.keys() != set(scores.train.ids):
        name = next(iter(targets.keys() ^ set(scores.train.ids)))
        raise BadInput(
            found=f"the example {name!r} for one of two tokenizers only",
            needed="the same records for both, each as one example",
            do='read both with long="truncate", or cut long texts beforehand',
        )
    rows = {name: row for row, name in enumerate(train.ids)}
    for source, scores_T in zip(scores.train.examples, scores.examples(), strict=True):
        target = targets[source.id]
        carried_T = by_characters(source, scores_T, target)
        total += float(scores_T.abs().nansum())
        left_out += abs(float(scores_T.nansum()) - float(carried_T.nansum()))
        by_row[rows[source.id]] = carried_T
    file = Path(folder) / "carried.safetensors"
    write_tensors(file, {"scores": torch.cat([by_row[row] for row in range(len(train))]).float()})
    share = left_out / total if total else 0.0
    note = f"scores are of another tokenizer's tokens, carried by characters; {share:.1%} of them fell on tokens that are not scored"
    return TokenScores(train, ((file, range(len(train))),), scores.method, (*scores.notes, note))


def by_characters(source: Example, scores_T: torch.Tensor, target: Example) -> torch.Tensor:
    """Scores of one text's tokens from those of other tokens of the same text.

    Args:
        source: The text as one tokenizer reads it.
        scores_T: Of its tokens, NaN where not scored.
        target: The text as the other one does. It may be cut earlier or later: what is beyond falls away.

    Returns:
        Of the target's tokens, float64, NaN where not scored.

    Raises:
        BadInput: If the texts differ, or nobody knows which characters a token has.
    """
    if source.token_spans is None or target.token_spans is None or source.text != target.text:
        raise BadInput(
            found=f"the example {source.id!r} "
            + ("with two texts" if source.text != target.text else "without the characters of its tokens"),
            needed="one text that both tokenizers cut, with fast tokenizers, which say where",
            do="pass the records as texts to both",
        )
    size = len(source.text)
    owners_TC, covers_TC = _covers(source.token_spans, size), _covers(target.token_spans, size)
    density_C = np.zeros(size)
    for (start, stop), score in zip(owners_TC, scores_T.double().nan_to_num(nan=0.0).tolist(), strict=True):
        density_C[start:stop] += score / max(1, stop - start)
    count_C = np.zeros(size)
    for start, stop in covers_TC:
        count_C[start:stop] += 1
    each_C = density_C / np.maximum(count_C, 1)
    labels = np.asarray(target.fields["labels"])
    is_scored = (labels != IGNORED) & (np.arange(len(labels)) > 0)
    sums = [each_C[start:stop].sum() for start, stop in covers_TC]
    return torch.tensor(np.where(is_scored, sums, np.nan))


def _covers(spans: np.ndarray, size: int) -> list[tuple[int, int]]:
    """Characters of each token; one without any of its own has none."""
    return [(int(start), min(int(stop), size)) for start, stop in spans]
