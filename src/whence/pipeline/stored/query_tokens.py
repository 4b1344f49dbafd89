"""The other side of a score: what a document says for each token of the query.

A query's measurement is a sum over its scored tokens, so its gradient is one, and a score, which is linear in that, splits over them.

Axes: A scored tokens of a query, K documents, Q queries.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from whence.data import Example
from whence.report import Hit
from whence.tasks import AbstractTask, CausalLM
from whence.tasks.causal_lm import token_queries
from whence.tasks.token_loss import IGNORED

__all__ = ["TOKENS_AT_ONCE", "queries_of_tokens", "query_tokens_note", "texts_of_tokens", "with_query_tokens"]

TOKENS_AT_ONCE = 32
# Each token takes a gradient.
_MOST_TOKENS = 512
# The parts add up to the score but for rounding, or something is left out of them.
_SUM = 0.01


class Stage(Protocol):
    """What scores hits."""

    def query_parts(self, query: int, rows: Sequence[int]) -> Tensor:
        """Parts of one query's scores of some rows, ascending, by its tokens, shape (A, K); no parts where there are none."""
        ...


def queries_of_tokens(task: AbstractTask, example: Example) -> list[Example]:
    """A query for each scored token of a query, those of a foil behind its own; none where the measurement is no sum over them."""
    queries = token_queries(example) if isinstance(task, CausalLM) and task.measure == "loss" else []
    return queries if 1 < len(queries) <= _MOST_TOKENS else []


def texts_of_tokens(task: AbstractTask, example: Example) -> tuple[str, ...]:
    """What each query of `queries_of_tokens` asks about; tokens of a foil have a "not" before them."""
    assert isinstance(task, CausalLM)
    texts, at = [], 0
    for query in queries_of_tokens(task, example):
        side = "foil_" if "foil_ids" in query.fields else ""
        labels = query.fields[f"{side}labels"]
        (position,) = (labels != IGNORED).nonzero()[0]
        if side or example.token_spans is None:
            texts.append(("not " if side else "") + task.tokenizer.decode([int(labels[position])]))
        else:
            # Characters that several tokens share are the first one's.
            start, stop = map(int, example.token_spans[position])
            texts.append(example.text[max(start, at) : stop])
            at = max(at, stop)
    return tuple(texts)


def with_query_tokens(stage: Stage, query: int, hits: Sequence[Hit]) -> list[Hit]:
    """Hits with a part for each token of the query; without, where the parts do not add up to a score.

    Args:
        stage: What scored them.
        query: Number of the query.
        hits: Of that query.
    """
    if not hits:
        return []
    rows = sorted({hit.row for hit in hits})
    parts_AK = stage.query_parts(query, rows).double().cpu()
    parts_of = dict(zip(rows, parts_AK.T, strict=True))
    # Against the sizes of the parts: where these cancel out, what is rounded off is as large as it was.
    room = {row: _SUM * float(parts_A.abs().sum()) for row, parts_A in parts_of.items()}
    if not len(parts_AK) or any(abs(float(parts_of[hit.row].sum()) - hit.score) > room[hit.row] for hit in hits):
        return list(hits)
    return [replace(hit, query_scores=tuple(parts_of[hit.row].tolist())) for hit in hits]


def query_tokens_note(task: AbstractTask, examples: Sequence[Example], sides: Sequence[Sequence[Hit]]) -> tuple[str, ...]:
    """How many queries have no parts by their own tokens, and why; nothing of those that are about one token.

    Args:
        task: The task.
        examples: The queries.
        sides: The hits of each.
    """
    is_sum = isinstance(task, CausalLM) and task.measure == "loss"
    without = sum(
        not any(hit.query_scores for hit in hits) and bool(hits) and not (is_sum and len(token_queries(example)) == 1)
        for example, hits in zip(examples, sides, strict=True)
    )
    if not without:
        return ()
    why = f"they have more than {_MOST_TOKENS} of them, or the parts do not add up to the scores"
    return (
        f"{without:,} queries have no scores of their own tokens: "
        + (why if is_sum else "the measurement is not a language model's sum over them"),
    )
